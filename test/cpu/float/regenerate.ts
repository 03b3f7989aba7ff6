/** Writes float/golden.json and x87/golden.json anew from this machine's processor; never to make a comparison pass. */
import { X87_GOLDEN, x87Families } from "../x87/families";
import { recordTranscendental } from "../x87/transcendental";
import { VECTOR_GOLDEN, vectorFamilies } from "./families";
import { record } from "./series";

record(vectorFamilies, VECTOR_GOLDEN);
record(x87Families, X87_GOLDEN);
recordTranscendental();

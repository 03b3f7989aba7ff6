import { describeIntegerCode } from "./run-series";

// Compatibility mode: 32-bit code with flat segments, 16-bit code with segments that have bases and limits.
// Files of their own, so that the modes run side by side. The recorded results are a real processor's: see golden/.
describeIntegerCode((mode) => mode !== 64, 12);

import { describeVectorCode } from "./run-series";

// Files of their own, so that the modes run side by side. The recorded results are a real processor's: see golden/.
describeVectorCode((mode) => mode !== 64);

import { describeIntegerCode } from "./run-series";

// Files of their own, so that the modes run side by side. The recorded results are a real processor's: see golden/.
describeIntegerCode((mode) => mode === 64, 25);

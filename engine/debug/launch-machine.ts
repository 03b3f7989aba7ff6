/** Machines as the debugger launches them: an empty processor name stands for the default model. */
import { DEFAULT_MODEL } from "../cpu/models/models";
import { createMachine } from "../machine/create";
import type { CreateMachine } from "./engine-host";

export const launchMachine: CreateMachine = (config, environment) =>
  createMachine({ ...config, cpu: config.cpu === "" ? DEFAULT_MODEL : config.cpu }, environment);

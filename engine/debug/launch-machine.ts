/** Machines as the debugger launches them: an empty processor name stands for the default model. */
import { DEFAULT_MODEL } from "../cpu/models/models";
import { bytesSource } from "../devices/block-image";
import { type DiskSource, MachineError } from "../machine/config";
import { createMachine } from "../machine/create";
import type { Machine, MachineEnvironment } from "../machine/machine";
import type { LaunchDisk, LaunchRequest } from "./api";

/** @throws MachineError when there is no such file */
export type OpenDisk = (path: string) => DiskSource;

/** In a browser there are no files to open: disks come as bytes. */
const noFiles: OpenDisk = (path) => {
  throw new MachineError(`disk ${path}: files cannot be opened here`);
};

export function launchMachine(request: LaunchRequest, environment: MachineEnvironment, open = noFiles): Machine {
  const { diskFiles = [], ...config } = request;
  const source = (disk: LaunchDisk): DiskSource => ("path" in disk ? open(disk.path) : bytesSource(disk.bytes));
  return createMachine(
    {
      ...config,
      cpu: config.cpu === "" ? DEFAULT_MODEL : config.cpu,
      disks: diskFiles.map((disk) => ({ name: disk.name, source: source(disk) })),
    },
    environment,
  );
}

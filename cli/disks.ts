/** Disk images as files: read when the guest reads, and written back at the end only when that was asked for. */
import { closeSync, openSync, writeSync } from "node:fs";
import { basename } from "node:path";
import { diskSource } from "../engine/debug/worker-disk";
import type { DiskConfig } from "../engine/machine/config";
import type { DiskChanges } from "../engine/machine/machine";
import { reasonOf, UsageError } from "./usage";

export interface DiskArgument {
  readonly file: string;
  /** Changes go back into the file when the run ends. */
  readonly write: boolean;
  readonly readOnly: boolean;
}

/** FILE, FILE,write or FILE,readonly. */
export function diskArgument(value: string): DiskArgument {
  const match = /^(.+?)(?:,(write|readonly))?$/.exec(value);
  if (!match) throw new UsageError(`--disk "${value}": use FILE, FILE,write or FILE,readonly`);
  return { file: match[1], write: match[2] === "write", readOnly: match[2] === "readonly" };
}

/** An open image. */
export class DiskFile {
  readonly config: DiskConfig;
  private readonly fd: number;

  /** @throws UsageError when it cannot be opened */
  constructor(private readonly argument: DiskArgument) {
    const { file, write, readOnly } = argument;
    try {
      this.fd = openSync(file, write ? "r+" : "r");
      this.config = { name: basename(file), readOnly, source: diskSource(this.fd) };
    } catch (error) {
      throw new UsageError(`disk ${file}: ${reasonOf(error)}`);
    }
  }

  /** Ends the use of the file; before that, what the guest changed is written when it was asked for. */
  close(changes: DiskChanges): void {
    try {
      if (this.argument.write) {
        for (const { offset, bytes } of changes) writeSync(this.fd, bytes, 0, bytes.length, offset);
      }
    } catch (error) {
      throw new UsageError(`disk ${this.argument.file}: cannot be written: ${reasonOf(error)}`);
    } finally {
      closeSync(this.fd);
    }
  }
}

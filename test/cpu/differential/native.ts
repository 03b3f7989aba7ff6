/** The machine's own processor as the other side of the comparison: compiles and runs native/harness.c. */
import { execFileSync, spawnSync } from "node:child_process";
import { existsSync, mkdirSync, statSync } from "node:fs";
import { join } from "node:path";
import { decodeResults, encodeInstances, type Instance, type Result } from "./instance";

const SOURCE = join(process.cwd(), "test", "cpu", "differential", "native", "harness.c");
const FOLDER = join(process.cwd(), "node_modules", ".cache", "differential");
const PROGRAM = join(FOLDER, "harness");

/** Compiles the harness if need be. Returns whether this machine can run it (Linux on x86-64 with gcc). */
export function nativeAvailable(): boolean {
  if (process.platform !== "linux" || process.arch !== "x64") return false;
  if (existsSync(PROGRAM) && statSync(PROGRAM).mtimeMs > statSync(SOURCE).mtimeMs) return true;
  mkdirSync(FOLDER, { recursive: true });
  const flags = ["-O2", "-Wall", "-static-pie", "-fno-stack-protector"];
  return spawnSync("gcc", [...flags, "-o", PROGRAM, SOURCE]).status === 0;
}

/** Runs instances on the processor of this machine. */
export function runNative(instances: readonly Instance[]): Result[] {
  const output = execFileSync(PROGRAM, instances[0].vector ? ["vector"] : [], {
    input: encodeInstances(instances),
    maxBuffer: 1 << 30,
  });
  return decodeResults(output, instances);
}

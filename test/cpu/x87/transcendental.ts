/**
 * Transcendental instructions against recorded results. Processors agree to the last place but one only, so that the results
 * themselves are recorded: ST(0), ST(1), and the status word without C1, which tells of the last place.
 */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { FloatState, type NativeResult, nativeAvailable, runNative } from "../float/native";
import { runOurs, toNative, type X87Instance, x87Instance } from "./cases";

const FILE = join(process.cwd(), "test", "cpu", "x87", "transcendental.json");
export const COUNT = 2000;

export const transcendentalInstance = (i: number): X87Instance => x87Instance(i * 7919 + 13, "transcendental");

interface Outcome {
  /** As 80-bit numbers. */
  readonly registers: readonly bigint[];
  /** Status without C1, tags and exception. */
  readonly rest: string;
}

const C1 = 0x200;

function text({ state, vector }: NativeResult): string {
  const registers = [0, 1].map((i) => {
    const at = FloatState.st(i);
    return Buffer.from(state.bytes.subarray(at, at + 10))
      .reverse()
      .toString("hex");
  });
  return `${registers.join(" ")} ${(state.fsw & ~C1).toString(16)} ${state.ftw.toString(16)} ${vector}`;
}

function parse(line: string): Outcome {
  const [st0, st1, ...rest] = line.split(" ");
  return { registers: [st0, st1].map((r) => BigInt(`0x${r}`)), rest: rest.join(" ") };
}

/** Numbers in the order of their values, one apart where the encodings are neighbours. */
const rank = (bits: bigint): bigint => ((bits >> 64n) << 63n) | (bits & ((1n << 63n) - 1n));

/** Whether two outcomes agree, results to within one unit in the last place. */
function near(a: Outcome, b: Outcome): boolean {
  return (
    a.rest === b.rest &&
    a.registers.every((bits, i) => {
      const difference = rank(bits) - rank(b.registers[i]);
      return difference >= -1n && difference <= 1n;
    })
  );
}

/** Instances whose outcome is not near the recorded one, in words; and how many are exactly as recorded. */
export function compareWithRecorded(): { readonly different: readonly string[]; readonly exact: number } {
  const recorded = JSON.parse(readFileSync(FILE, "utf8")) as readonly string[];
  const different: string[] = [];
  let exact = 0;
  for (let i = 0; i < COUNT; i++) {
    const instance = transcendentalInstance(i);
    const ours = text(runOurs(instance));
    if (ours === recorded[i]) exact++;
    else if (!near(parse(ours), parse(recorded[i]))) {
      const code = instance.code.map((b) => b.toString(16)).join(" ");
      different.push(`${i}: ${code} gives ${ours}, a processor ${recorded[i]}`);
    }
  }
  return { different, exact };
}

/** Writes the recorded results anew. @throws Error when this machine cannot run the harness */
export function recordTranscendental(): void {
  if (!nativeAvailable()) throw new Error("golden results come from Linux on x86-64 with gcc");
  const instances = Array.from({ length: COUNT }, (_, i) => transcendentalInstance(i));
  writeFileSync(FILE, `${JSON.stringify(runNative(instances.map(toNative)).map(text), null, 1)}\n`);
}

/**
 * x87, MMX and vector registers by name, for debuggers. They lie together in a processor's block, from the x87 control word
 * on; whoever keeps a copy of that stretch (a hypervisor that has put the guest's away) can have it read the same way.
 */
import { Off } from "./state";

/** Where the stretch is: `at` is the offset of the x87 control word in `bytes`. */
export interface FloatState {
  readonly bytes: Uint8Array;
  readonly at: number;
}

interface Place {
  /** From the x87 control word. */
  readonly offset: number;
  readonly size: number;
}

const REGISTERS = 8;
const VECTORS = 16;
const from = (offset: number): number => offset - Off.FCW;

const FIXED: ReadonlyMap<string, Place> = new Map<string, Place>([
  ["fcw", { offset: from(Off.FCW), size: 2 }],
  ["fsw", { offset: from(Off.FSW), size: 2 }],
  ["ftw", { offset: from(Off.FTW), size: 1 }],
  ["fop", { offset: from(Off.FOP), size: 2 }],
  ["fip", { offset: from(Off.FIP), size: 8 }],
  ["fdp", { offset: from(Off.FDP), size: 8 }],
  ["mxcsr", { offset: from(Off.MXCSR), size: 4 }],
  ...Array.from({ length: REGISTERS }, (_, n): [string, Place] => [
    `mm${n}`,
    { offset: from(Off.X87) + 16 * n, size: 8 },
  ]),
  ...Array.from({ length: VECTORS }, (_, n): [string, Place][] => [
    [`xmm${n}`, { offset: from(Off.VECTOR) + 64 * n, size: 16 }],
    [`ymm${n}`, { offset: from(Off.VECTOR) + 64 * n, size: 32 }],
  ]).flat(),
]);

function placeOf(state: FloatState, name: string): Place | undefined {
  const fixed = FIXED.get(name);
  if (fixed) return fixed;
  const stack = /^st([0-7])$/.exec(name);
  if (!stack) return undefined;
  // ST(i) counts from the top of the stack, which the status word names (SDM 1 8.1.2).
  const top = (state.bytes[state.at + from(Off.FSW) + 1] >> 3) & 7;
  return { offset: from(Off.X87) + 16 * ((top + Number(stack[1])) & 7), size: 10 };
}

/** @returns undefined when `name` is none of these registers */
export function readFloatRegister(state: FloatState, name: string): bigint | undefined {
  const place = placeOf(state, name);
  if (!place) return undefined;
  let value = 0n;
  for (let i = place.size - 1; i >= 0; i--) value = (value << 8n) | BigInt(state.bytes[state.at + place.offset + i]);
  return value;
}

/** @returns false when `name` is none of these registers */
export function writeFloatRegister(state: FloatState, name: string, value: bigint): boolean {
  const place = placeOf(state, name);
  if (!place) return false;
  let rest = value;
  for (let i = 0; i < place.size; i++, rest >>= 8n) state.bytes[state.at + place.offset + i] = Number(rest & 0xffn);
  return true;
}

/** PCMPESTRI, PCMPESTRM, PCMPISTRI, PCMPISTRM (SDM 1 12.10; SDM 2B 4.1). */
import { Rflags } from "../../../../state";
import { RESULT, source, type VectorFunction } from "./vector-function";

/** Aggregation, immediate bits 3:2. */
const Aggregation = { EQUAL_ANY: 0, RANGES: 1, EQUAL_EACH: 2, EQUAL_ORDERED: 3 } as const;

/** Result of comparing: the mask IntRes2, and the flags. */
interface Outcome {
  readonly mask: number;
  readonly flags: number;
}

/** Elements of an operand, sign-extended where the immediate says they are signed. */
function elements(view: DataView, n: 0 | 1, immediate: number): number[] {
  const at = source(n);
  const wide = immediate & 1;
  const signed = immediate & 2;
  const list: number[] = [];
  for (let i = 0; i < (wide ? 8 : 16); i++) {
    if (wide) list.push(signed ? view.getInt16(at + i * 2, true) : view.getUint16(at + i * 2, true));
    else list.push(signed ? view.getInt8(at + i) : view.getUint8(at + i));
  }
  return list;
}

/** Number of elements before the first that is 0. */
function implicitLength(list: readonly number[]): number {
  const end = list.indexOf(0);
  return end < 0 ? list.length : end;
}

/** Length in a register: its magnitude, at most as many as there are elements. */
function explicitLength(value: bigint, count: number): number {
  const magnitude = value < 0n ? -value : value;
  return magnitude > BigInt(count) ? count : Number(magnitude);
}

/** IntRes1: a bit for each element of the second operand (SDM 2B table 4-4 for elements beyond the ends). */
function aggregate(how: number, a: readonly number[], lengthA: number, b: readonly number[], lengthB: number): number {
  const count = a.length;
  let bits = 0;
  for (let j = 0; j < count; j++) {
    let match: boolean;
    switch (how) {
      case Aggregation.EQUAL_ANY:
        match = j < lengthB && a.slice(0, lengthA).includes(b[j]);
        break;
      case Aggregation.RANGES:
        match = false;
        for (let i = 0; j < lengthB && i + 1 < lengthA; i += 2) match ||= a[i] <= b[j] && b[j] <= a[i + 1];
        break;
      case Aggregation.EQUAL_EACH:
        match = j < lengthA && j < lengthB ? a[j] === b[j] : j >= lengthA && j >= lengthB;
        break;
      default:
        match = true;
        for (let i = 0; i < lengthA && i + j < count; i++) match &&= i + j < lengthB && a[i] === b[i + j];
    }
    if (match) bits |= 1 << j;
  }
  return bits;
}

function compare(view: DataView, immediate: number, lengths: readonly [bigint, bigint] | null): Outcome {
  const a = elements(view, 0, immediate);
  const b = elements(view, 1, immediate);
  const count = a.length;
  const lengthA = lengths ? explicitLength(lengths[0], count) : implicitLength(a);
  const lengthB = lengths ? explicitLength(lengths[1], count) : implicitLength(b);
  let mask = aggregate((immediate >> 2) & 3, a, lengthA, b, lengthB);
  const all = (1 << count) - 1;
  const polarity = (immediate >> 4) & 3;
  if (polarity === 1) mask ^= all;
  else if (polarity === 3) mask ^= (1 << lengthB) - 1;
  let flags = 0;
  if (mask !== 0) flags |= Rflags.CF;
  if (lengthB < count) flags |= Rflags.ZF;
  if (lengthA < count) flags |= Rflags.SF;
  if (mask & 1) flags |= Rflags.OF;
  return { mask, flags };
}

/** The lowest or, with immediate bit 6, the highest element that matched; the number of elements where none did. */
function indexOf({ mask }: Outcome, immediate: number): number {
  if (mask === 0) return immediate & 1 ? 8 : 16;
  return immediate & 0x40 ? 31 - Math.clz32(mask) : 31 - Math.clz32(mask & -mask);
}

/** The mask as bits, or with immediate bit 6 as elements of all ones. */
function writeMask(view: DataView, { mask }: Outcome, immediate: number): void {
  for (let i = 0; i < 16; i++) {
    const expanded = mask & (1 << (immediate & 1 ? i >> 1 : i)) ? 0xff : 0;
    view.setUint8(RESULT + i, immediate & 0x40 ? expanded : i < 2 ? (mask >> (i * 8)) & 0xff : 0);
  }
}

/** Lengths in the third operand: of the first and second, 8 bytes each, sign-extended. */
const lengthsOf = (view: DataView): readonly [bigint, bigint] => [
  view.getBigInt64(source(2), true),
  view.getBigInt64(source(2) + 8, true),
];

const STRINGS = [
  { name: "PCMPESTRI", explicit: true },
  { name: "PCMPESTRM", explicit: true },
  { name: "PCMPISTRI", explicit: false },
  { name: "PCMPISTRM", explicit: false },
] as const;

/** All leave both results: the mask in RESULT, the index in bits 23:16 of the answer above the flags of RFLAGS. */
export const STRING_FUNCTIONS: readonly VectorFunction[] = STRINGS.map(({ name, explicit }) => ({
  name,
  run: (view, _length, immediate) => {
    const outcome = compare(view, immediate, explicit ? lengthsOf(view) : null);
    writeMask(view, outcome, immediate);
    return outcome.flags | (indexOf(outcome, immediate) << 16);
  },
}));

/** Floating-point and vector registers in words. */

const BIAS = 16383;
const EXPONENT_MAX = 0x7fff;
const INTEGER_BIT = 1n << 63n;

/** A double-extended value (SDM 1 4.2.2) as a decimal number; as many digits as a double has. */
export function extendedText(bits: bigint): string {
  const sign = (bits >> 79n) & 1n ? "-" : "";
  const exponent = Number((bits >> 64n) & 0x7fffn);
  const significand = bits & ((1n << 64n) - 1n);
  if (exponent === EXPONENT_MAX) {
    if (significand === INTEGER_BIT) return `${sign}Infinity`;
    if ((significand & INTEGER_BIT) === 0n) return "unsupported";
    return significand & (1n << 62n) ? "QNaN" : "SNaN";
  }
  if (significand === 0n) return exponent === 0 ? `${sign}0` : "unsupported";
  if (exponent !== 0 && (significand & INTEGER_BIT) === 0n) return "unsupported";
  const power = Math.max(exponent, 1) - BIAS - 63;
  // In two steps: the significand alone is no problem, the power may be beyond a double's.
  const half = Math.trunc(power / 2);
  const value = Number(significand) * 2 ** half * 2 ** (power - half);
  if (value === 0 || !Number.isFinite(value)) return `${sign}${decimalOf(significand, power)}`;
  return `${sign}${value}`;
}

/** significand * 2^power beyond a double's range, by its logarithm. */
function decimalOf(significand: bigint, power: number): string {
  const log = Math.log10(Number(significand)) + power * Math.log10(2);
  const exponent = Math.floor(log);
  return `${(10 ** (log - exponent)).toPrecision(10)}e${exponent < 0 ? "" : "+"}${exponent}`;
}

function bytesOf(value: bigint, size: number): DataView {
  const view = new DataView(new ArrayBuffer(size));
  let rest = value;
  for (let i = 0; i < size; i++, rest >>= 8n) view.setUint8(i, Number(rest & 0xffn));
  return view;
}

const float = (value: number): string => (Object.is(value, -0) ? "-0" : String(value));

/** The lanes of a vector register in each of the usual types, the lowest first. */
export function laneTexts(value: bigint, bits: number): readonly { readonly name: string; readonly text: string }[] {
  const view = bytesOf(value, bits / 8);
  const lanes = (size: number, read: (at: number) => string): string =>
    Array.from({ length: bits / 8 / size }, (_, i) => read(i * size)).join(", ");
  const hex = (size: number, read: (at: number) => number | bigint) => (at: number) =>
    `0x${read(at)
      .toString(16)
      .padStart(2 * size, "0")}`;
  return [
    { name: "f32", text: lanes(4, (at) => float(view.getFloat32(at, true))) },
    { name: "f64", text: lanes(8, (at) => float(view.getFloat64(at, true))) },
    { name: "i32", text: lanes(4, (at) => String(view.getInt32(at, true))) },
    {
      name: "u64",
      text: lanes(
        8,
        hex(8, (at) => view.getBigUint64(at, true)),
      ),
    },
    {
      name: "u32",
      text: lanes(
        4,
        hex(4, (at) => view.getUint32(at, true)),
      ),
    },
    {
      name: "u16",
      text: lanes(
        2,
        hex(2, (at) => view.getUint16(at, true)),
      ),
    },
    {
      name: "u8",
      text: lanes(
        1,
        hex(1, (at) => view.getUint8(at)),
      ),
    },
  ];
}

/** Bit test and scan, counts, CRC32 (SDM 1 5.1.6, 5.1.15). */
import type { Context, Reference } from "./context";
import type { Size, Value } from "./expressions";
import { define, type Family } from "./registry";
import { Form } from "./shape";

type BitOperation = "test" | "set" | "reset" | "complement";

function applyBit(c: Context, operation: BitOperation, value: Value, mask: Value): Value {
  if (operation === "set") return c.or(value, mask);
  if (operation === "reset") return c.and(value, c.not(mask));
  return c.xor(value, mask);
}

/**
 * BT, BTS, BTR, BTC: CF is the bit, the other flags stay. With a register as bit offset and memory as bit base, the whole
 * signed offset counts: it addresses bits far from the operand (SDM 2A, BT).
 */
const bitTest =
  (operation: BitOperation) =>
  (c: Context): void => {
    const size = c.size(0);
    const bits = size * 8;
    const inMemory = c.form(0) === Form.MEMORY;
    const access = operation === "test" ? "read" : "modify";
    let value: Value;
    let store: (v: Value) => void;
    let index: Value;
    if (inMemory && c.form(1) === Form.REGISTER) {
      const offset = c.let(c.signExtend(c.read(1), 8));
      const step = c.and(c.sar(offset, c.constant(8, 3)), c.constant(8, -size));
      const address = c.let(c.wrapOffset(c.add(c.offset(), step)));
      const linear = c.linear("operand", address, size, access);
      const reference: Reference = c.reference(linear, size, access, "operand");
      value = c.let(reference.load(size));
      store = (v) => reference.store(v);
      index = c.low(offset, size);
    } else {
      index = c.readAs(1, size);
      if (operation === "test") {
        value = c.read(0);
        store = () => {};
      } else {
        const destination = c.modify(0);
        value = destination.value;
        store = (v) => destination.write(v);
      }
    }
    const at = c.let(c.and(index, c.constant(size, bits - 1)));
    const bit = c.let(c.low(c.zeroExtend(c.and(c.shr(value, at), c.constant(size, 1)), 8), 4));
    if (operation !== "test") store(c.let(applyBit(c, operation, value, c.shl(c.constant(size, 1), at))));
    c.setCarry(bit);
  };

/** BSF and BSR: a zero source sets ZF and leaves the destination, which processors keep whole even in 32-bit forms. */
const scan =
  (forward: boolean) =>
  (c: Context): void => {
    const size = c.size(0);
    const source = c.read(1);
    const zero = c.let(c.isZero(source));
    c.if(c.isZero(zero), () => {
      const wide = size === 8 ? source : c.zeroExtend(source, 4);
      const top = c.constant(wide.size, wide.size * 8 - 1);
      const found = forward ? c.ctz(wide) : c.sub(top, c.clz(wide));
      c.write(0, c.let(c.low(found, size)));
    });
    // Only ZF is defined; the others are as after a logical operation on the source.
    c.flagsLogic(source);
  };

/** TZCNT and LZCNT: CF for a zero source, ZF for a zero result. */
const countZeros =
  (trailing: boolean) =>
  (c: Context): void => {
    const size = c.size(0);
    const bits = size * 8;
    const source = c.read(1);
    let n: Value;
    if (size >= 4) n = trailing ? c.ctz(source) : c.clz(source);
    else {
      const wide = c.zeroExtend(source, 4);
      n = trailing ? c.ctz(c.or(wide, c.constant(4, 1 << bits))) : c.sub(c.clz(wide), c.constant(4, 32 - bits));
      n = c.low(n, size);
    }
    const r = c.let(n);
    c.write(0, r);
    c.flagsOf(r, c.isZero(source), c.constant(4, 0));
  };

function popcnt(c: Context): void {
  const size = c.size(0);
  const source = c.read(1);
  const wide = size === 8 ? source : c.zeroExtend(source, 4);
  c.write(0, c.let(c.low(c.popcnt(wide), size)));
  // All clear but ZF.
  c.setFlagBits(c.shlBy(c.isZero(source), 6), c.constant(4, 0));
}

/** CRC-32C (polynomial 11EDC6F41, reflected), one byte after the other. */
function crc32(c: Context): void {
  const source = c.read(1);
  const crc = c.mutable(c.low(c.read(0), 4));
  for (let byte = 0; byte < source.size; byte++) {
    const next = c.low(c.shrBy(source, byte * 8), 1);
    c.assign(crc, c.xor(crc, c.zeroExtend(next, 4)));
    for (let i = 0; i < 8; i++) {
      const odd = c.neg(c.and(crc, c.constant(4, 1)));
      c.assign(crc, c.xor(c.shrBy(crc, 1), c.and(odd, c.constant(4, 0x82f63b78))));
    }
  }
  c.write(0, c.let(c.zeroExtend(crc, c.size(0) as Size)));
}

export const bits: Family = {
  BT: define(bitTest("test"), { memoryAddressSize: true }),
  BTS: define(bitTest("set"), { memoryAddressSize: true }),
  BTR: define(bitTest("reset"), { memoryAddressSize: true }),
  BTC: define(bitTest("complement"), { memoryAddressSize: true }),
  BSF: define(scan(true)),
  BSR: define(scan(false)),
  TZCNT: define(countZeros(true)),
  LZCNT: define(countZeros(false)),
  POPCNT: define(popcnt),
  CRC32: define(crc32),
};

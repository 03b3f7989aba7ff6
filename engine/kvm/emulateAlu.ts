/** Arithmetic of the emulator with its flags (SDM 1 appendix A): operands are unsigned numbers of `size` bytes. */
import { Rflags } from "../cpu/state";
import { maskOf, signed, signOf } from "./emulateTypes";

/** Two-operand arithmetic and logic. */
export type Alu = "ADD" | "OR" | "ADC" | "SBB" | "AND" | "SUB" | "XOR" | "CMP";
/** Mnemonics of type `Alu`. */
export const ALU: ReadonlySet<string> = new Set(["ADD", "OR", "ADC", "SBB", "AND", "SUB", "XOR", "CMP"]);
/** Shifts and rotates. */
export const SHIFTS: ReadonlySet<string> = new Set(["ROL", "ROR", "RCL", "RCR", "SHL", "SHR", "SAR"]);
/** Bit tests. */
export const BITS: ReadonlySet<string> = new Set(["BT", "BTS", "BTR", "BTC"]);

/** RFLAGS of the emulated instruction, and the operations that set them. */
export class EmulFlags {
  rflags = 0n;

  setFlag(flag: number, on: boolean): void {
    this.rflags = on ? this.rflags | BigInt(flag) : this.rflags & ~BigInt(flag);
  }
  flag(flag: number): boolean {
    return (this.rflags & BigInt(flag)) !== 0n;
  }

  /** SF, ZF and PF of a result. */
  setResultFlags(result: bigint, size: number): void {
    const r = result & maskOf(size);
    this.setFlag(Rflags.ZF, r === 0n);
    this.setFlag(Rflags.SF, (r & signOf(size)) !== 0n);
    let low = Number(r & 0xffn);
    low ^= low >> 4;
    low ^= low >> 2;
    low ^= low >> 1;
    this.setFlag(Rflags.PF, (low & 1) === 0);
  }

  /** The eight operations of the first opcode rows. @returns the result, cut to size */
  alu(op: Alu, a: bigint, b: bigint, size: number): bigint {
    const mask = maskOf(size);
    const carry = this.flag(Rflags.CF) ? 1n : 0n;
    let r: bigint;
    switch (op) {
      case "ADD":
      case "ADC": {
        const sum = a + b + (op === "ADC" ? carry : 0n);
        r = sum & mask;
        this.setFlag(Rflags.CF, sum > mask);
        this.setFlag(Rflags.OF, ((a ^ r) & (b ^ r) & signOf(size)) !== 0n);
        this.setFlag(Rflags.AF, ((a ^ b ^ r) & 0x10n) !== 0n);
        break;
      }
      case "SUB":
      case "SBB":
      case "CMP": {
        const difference = a - b - (op === "SBB" ? carry : 0n);
        r = difference & mask;
        this.setFlag(Rflags.CF, difference < 0n);
        this.setFlag(Rflags.OF, ((a ^ b) & (a ^ r) & signOf(size)) !== 0n);
        this.setFlag(Rflags.AF, ((a ^ b ^ r) & 0x10n) !== 0n);
        break;
      }
      default:
        r = op === "AND" ? a & b : op === "OR" ? a | b : a ^ b;
        this.setFlag(Rflags.CF, false);
        this.setFlag(Rflags.OF, false);
        this.setFlag(Rflags.AF, false);
    }
    this.setResultFlags(r, size);
    return r;
  }

  /** Shifts and rotates (SDM 2B: RCL/RCR/ROL/ROR, SAL/SAR/SHL/SHR). */
  shift(op: string, value: bigint, rawCount: number, size: number): bigint {
    const bits = size * 8;
    const mask = maskOf(size);
    let count = rawCount & (size === 8 ? 63 : 31);
    if (count === 0) return value;
    const top = (v: bigint) => (v & signOf(size)) !== 0n;
    let r = value;
    switch (op) {
      case "SHL":
        this.setFlag(Rflags.CF, count <= bits && ((value >> BigInt(bits - count)) & 1n) !== 0n);
        r = (value << BigInt(count)) & mask;
        this.setFlag(Rflags.OF, top(r) !== this.flag(Rflags.CF));
        break;
      case "SHR":
        this.setFlag(Rflags.CF, ((value >> BigInt(count - 1)) & 1n) !== 0n);
        this.setFlag(Rflags.OF, top(value));
        r = value >> BigInt(count);
        break;
      case "SAR": {
        const s = signed(value, size);
        this.setFlag(Rflags.CF, ((s >> BigInt(count - 1)) & 1n) !== 0n);
        this.setFlag(Rflags.OF, false);
        r = (s >> BigInt(count)) & mask;
        break;
      }
      case "ROL":
        count %= bits;
        r = ((value << BigInt(count)) | (value >> BigInt(bits - count))) & mask;
        this.setFlag(Rflags.CF, (r & 1n) !== 0n);
        this.setFlag(Rflags.OF, top(r) !== this.flag(Rflags.CF));
        return r;
      case "ROR":
        count %= bits;
        r = ((value >> BigInt(count)) | (value << BigInt(bits - count))) & mask;
        this.setFlag(Rflags.CF, top(r));
        this.setFlag(Rflags.OF, top(r) !== ((r & (signOf(size) >> 1n)) !== 0n));
        return r;
      default: {
        // RCL and RCR go through CF: one bit at a time.
        for (let i = count % (bits + 1); i > 0; i--) {
          const carry = this.flag(Rflags.CF) ? 1n : 0n;
          if (op === "RCL") {
            this.setFlag(Rflags.CF, top(r));
            r = ((r << 1n) | carry) & mask;
          } else {
            this.setFlag(Rflags.CF, (r & 1n) !== 0n);
            r = (r >> 1n) | (carry << BigInt(bits - 1));
          }
        }
        const second = (r & (signOf(size) >> 1n)) !== 0n;
        this.setFlag(Rflags.OF, top(r) !== (op === "RCL" ? this.flag(Rflags.CF) : second));
        return r;
      }
    }
    this.setFlag(Rflags.AF, false);
    this.setResultFlags(r, size);
    return r;
  }

  /** Condition code of Jcc, SETcc, CMOVcc (SDM 1 appendix B). */
  condition(code: number): boolean {
    const f = (flag: number) => this.flag(flag);
    let met: boolean;
    switch (code >> 1) {
      case 0:
        met = f(Rflags.OF);
        break;
      case 1:
        met = f(Rflags.CF);
        break;
      case 2:
        met = f(Rflags.ZF);
        break;
      case 3:
        met = f(Rflags.CF) || f(Rflags.ZF);
        break;
      case 4:
        met = f(Rflags.SF);
        break;
      case 5:
        met = f(Rflags.PF);
        break;
      case 6:
        met = f(Rflags.SF) !== f(Rflags.OF);
        break;
      default:
        met = f(Rflags.ZF) || f(Rflags.SF) !== f(Rflags.OF);
    }
    return code & 1 ? !met : met;
  }

  /** SHLD and SHRD (SDM 2B). @returns the result; flags stay for a count of 0 */
  doubleShift(m: "SHLD" | "SHRD", a: bigint, b: bigint, rawCount: number, size: number): bigint {
    const bits = size * 8;
    const count = rawCount & (size === 8 ? 63 : 31);
    if (count === 0 || count > bits) return a;
    const n = BigInt(count);
    const rest = BigInt(bits - count);
    const r = m === "SHLD" ? ((a << n) | (b >> rest)) & maskOf(size) : ((a >> n) | (b << rest)) & maskOf(size);
    this.setFlag(Rflags.CF, ((m === "SHLD" ? a >> rest : a >> (n - 1n)) & 1n) !== 0n);
    this.setFlag(Rflags.OF, ((a ^ r) & signOf(size)) !== 0n);
    this.setFlag(Rflags.AF, false);
    this.setResultFlags(r, size);
    return r;
  }

  /** BSF, BSR, TZCNT, LZCNT, POPCNT. @returns null where the destination stays as it is */
  bitScan(m: "BSF" | "BSR" | "TZCNT" | "LZCNT" | "POPCNT", value: bigint, size: number): bigint | null {
    const text = value.toString(2);
    const bits = size * 8;
    const lowest = value === 0n ? bits : text.length - 1 - text.lastIndexOf("1");
    const highest = text.length - 1;
    if (m === "POPCNT") {
      for (const flag of [Rflags.CF, Rflags.OF, Rflags.SF, Rflags.AF, Rflags.PF]) this.setFlag(flag, false);
      this.setFlag(Rflags.ZF, value === 0n);
      return BigInt(text.split("1").length - 1);
    }
    if (m === "TZCNT" || m === "LZCNT") {
      const n = value === 0n ? bits : m === "TZCNT" ? lowest : bits - 1 - highest;
      this.setFlag(Rflags.CF, value === 0n);
      this.setFlag(Rflags.ZF, n === 0);
      return BigInt(n);
    }
    const index = BigInt(m === "BSF" ? lowest : highest);
    for (const flag of [Rflags.CF, Rflags.OF, Rflags.AF]) this.setFlag(flag, false);
    this.setResultFlags(value === 0n ? 0n : index, size);
    this.setFlag(Rflags.ZF, value === 0n);
    return value === 0n ? null : index;
  }

  /** DAA, DAS, AAA, AAS, AAM, AAD on AX (SDM 2A). @returns the new AX, or null for #DE */
  decimal(m: string, ax: number, base: number): number | null {
    let al = ax & 0xff;
    let ah = (ax >> 8) & 0xff;
    const adjustLow = (al & 0xf) > 9 || this.flag(Rflags.AF);
    this.setFlag(Rflags.OF, false);
    switch (m) {
      case "DAA":
      case "DAS": {
        const old = al;
        const carry = this.flag(Rflags.CF);
        const sign = m === "DAA" ? 1 : -1;
        let borrow = false;
        if (adjustLow) {
          borrow = carry || (m === "DAA" ? al + 6 > 0xff : al < 6);
          al = (al + sign * 6) & 0xff;
        }
        this.setFlag(Rflags.AF, adjustLow);
        const adjustHigh = old > 0x99 || carry;
        if (adjustHigh) al = (al + sign * 0x60) & 0xff;
        this.setFlag(Rflags.CF, adjustHigh || (m === "DAS" && borrow));
        break;
      }
      case "AAA":
      case "AAS":
        if (adjustLow) {
          const whole = (((ah << 8) | al) + (m === "AAA" ? 0x106 : -6)) & 0xffff;
          al = whole & 0xff;
          ah = m === "AAA" ? whole >> 8 : ((whole >> 8) - 1) & 0xff;
        }
        this.setFlag(Rflags.AF, adjustLow);
        this.setFlag(Rflags.CF, adjustLow);
        al &= 0xf;
        break;
      case "AAM":
        if (base === 0) return null;
        this.setFlag(Rflags.CF, false);
        this.setFlag(Rflags.AF, false);
        ah = Math.floor(al / base);
        al %= base;
        break;
      default:
        this.setFlag(Rflags.CF, false);
        this.setFlag(Rflags.AF, false);
        al = (al + ah * base) & 0xff;
        ah = 0;
    }
    this.setResultFlags(BigInt(al), 1);
    return (ah << 8) | al;
  }
}

/** The `size` bytes of `value` in the other order. */
export const byteSwap = (value: bigint, size: number): bigint => {
  let r = 0n;
  for (let i = 0; i < size; i++) r = (r << 8n) | ((value >> BigInt(i * 8)) & 0xffn);
  return r;
};

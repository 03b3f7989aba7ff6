/**
 * What a debugger may write into a register: the checks the processor itself would make on a load, so that a write from
 * outside never leads to a state no program could reach.
 */

import { registerRow, STORED_MSRS } from "./registers";
import { CodeMode, Rflags, SegAttr } from "./state";

/** What the checks need to know of the processor. */
export interface RegisterCheckContext {
  readonly codeMode: number;
  readonly physicalBits: number;
  readonly linearBits: number;
  /** CR4 bits this processor has. */
  readonly cr4Allowed: bigint;
  readonly xcr0Allowed: bigint;
  read(name: string): bigint;
}

const hex = (value: bigint): string => `0x${value.toString(16)}`;

const CR0_DEFINED = 0xe005003fn;
const PG = 1n << 31n;
const PE = 1n;
const EFER_DEFINED = 0xd01n;
const EFER_LME = 1n << 8n;
const EFER_LMA = 1n << 10n;
const CR4_PAE = 1n << 5n;
const CR4_PCIDE = 1n << 17n;

export function isCanonical(address: bigint, linearBits: number): boolean {
  return BigInt.asUintN(64, BigInt.asIntN(linearBits, address)) === address;
}

/** @throws RangeError that names the register, the value and the rule with its section */
export function checkRegisterWrite(name: string, value: bigint, cpu: RegisterCheckContext): void {
  const row = registerRow(name);
  if (!row) throw new RangeError(`there is no register ${name}`);
  const refuse = (why: string): never => {
    throw new RangeError(`${name} cannot be set to ${hex(value)}: ${why}`);
  };
  if (value < 0n || value >> BigInt(row.width) !== 0n) refuse(`it has ${row.width} bits`);
  const long = cpu.codeMode === CodeMode.LONG64;
  const canonical = () => {
    if (!isCanonical(value, cpu.linearBits))
      refuse(`not a canonical address of ${cpu.linearBits} bits (SDM 1 3.3.7.1)`);
  };
  const reserved = (allowed: bigint, section: string) => {
    const bad = value & ~allowed;
    if (bad !== 0n) refuse(`bits ${hex(bad)} are reserved (${section})`);
  };

  if (name === "rip") {
    if (long) canonical();
    else if (value >> 32n !== 0n) refuse("outside 64-bit mode it has 32 bits");
  } else if (name === "rflags") {
    if (!(value & BigInt(Rflags.FIXED))) refuse("bit 1 is always 1 (SDM 1 3.4.3)");
    reserved(0x3f7fd7n, "SDM 1 3.4.3");
    if (value & BigInt(Rflags.VM) && cpu.read("ia32_efer") & EFER_LMA)
      refuse("there is no virtual-8086 mode in IA-32e mode");
  } else if (name.endsWith(".attributes")) {
    reserved(BigInt(0xff | SegAttr.AVL | SegAttr.L | SegAttr.DB | SegAttr.G | SegAttr.UNUSABLE), "SDM 3C table 25-2");
  } else if (name.endsWith(".base")) canonical();
  else if (name === "cpl") refuse("it follows from CS and SS; set ss.attributes");
  else if (name === "cr0") {
    reserved(CR0_DEFINED, "SDM 3A 2.5");
    if (value & PG && !(value & PE)) refuse("PG needs PE (SDM 3A 2.5)");
    if (value & (1n << 29n) && !(value & (1n << 30n))) refuse("NW needs CD (SDM 3A 2.5)");
    if (value & PG && cpu.read("ia32_efer") & EFER_LME && !(cpu.read("cr4") & CR4_PAE)) {
      refuse("paging with EFER.LME needs CR4.PAE (SDM 3A 4.1.2)");
    }
    if (!(value & PG) && cpu.read("cr4") & CR4_PCIDE)
      refuse("PG cannot be cleared while CR4.PCIDE is set (SDM 3A 4.10.1)");
  } else if (name === "cr3") {
    const pcid = cpu.read("cr4") & CR4_PCIDE ? 0xfffn : 0x18n;
    const page = ((1n << BigInt(cpu.physicalBits)) - 1n) & ~0xfffn;
    if (cpu.read("ia32_efer") & EFER_LMA) reserved(page | pcid, "SDM 3A table 4-12");
  } else if (name === "cr4") {
    reserved(cpu.cr4Allowed, "not offered by this processor model");
    if (!(value & CR4_PAE) && cpu.read("ia32_efer") & EFER_LMA)
      refuse("PAE cannot be cleared in IA-32e mode (SDM 3A 4.1.2)");
  } else if (name === "xcr0") {
    reserved(cpu.xcr0Allowed, "not offered by this processor model");
    if (!(value & 1n)) refuse("bit 0 is always 1 (SDM 3A 13.3)");
    if ((value & 6n) === 4n) refuse("AVX needs SSE (SDM 3A 13.3)");
  } else if (name === "dr6" || name === "dr7") {
    if (value >> 32n !== 0n) refuse("bits 63:32 are 0 (SDM 3A 17.2)");
  } else if (name === "mxcsr") {
    reserved(0xffffn, "SDM 1 10.2.3");
  } else if (name === "ia32_efer") {
    reserved(EFER_DEFINED, "SDM 4 table 2-2");
    const active = (value & EFER_LME) !== 0n && (cpu.read("cr0") & PG) !== 0n;
    if (active !== ((value & EFER_LMA) !== 0n)) refuse("LMA is LME and CR0.PG (SDM 3A 9.8.5)");
  } else if (name === "ia32_pat") {
    for (let i = 0n; i < 8n; i++) {
      const type = (value >> (i * 8n)) & 0xffn;
      if (type === 2n || type === 3n || type > 7n) refuse(`PA${i} holds memory type ${type} (SDM 3A 11.12.2)`);
    }
  } else if (STORED_MSRS.some((m) => m.name === name && m.canonical)) canonical();
}

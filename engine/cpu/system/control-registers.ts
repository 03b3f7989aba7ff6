/**
 * Control registers: MOV CR, CLTS, LMSW, SMSW with the checks of SDM 3A 2.5 and the instruction page of MOV, and the
 * switches of mode they make (SDM 3A 9.8, 9.9).
 */
import { type Cpu, CpuFault, Next, type SystemHandler, Vector } from "../cpu";
import { OperandKind } from "../isa/instruction";
import type { CpuModel } from "../models/model";
import { Off, Seg, SegAttr } from "../state";
import { Cr0, Cr4, Efer } from "./bits";
import { checkUmip } from "./descriptor-tables";
import {
  effectiveAddress,
  gp0,
  is64BitMode,
  isLongMode,
  memoryLinear,
  readGpr,
  readOperand,
  requireCpl0,
  undefinedOpcode,
  writeGpr,
} from "./operands";

const CR0_DEFINED = Cr0.PE | Cr0.MP | Cr0.EM | Cr0.TS | Cr0.ET | Cr0.NE | Cr0.WP | Cr0.AM | Cr0.NW | Cr0.CD | Cr0.PG;

const FEATURE_BITS = [
  ["vme", Cr4.VME | Cr4.PVI],
  ["tsc", Cr4.TSD],
  ["de", Cr4.DE],
  ["pse", Cr4.PSE],
  ["pae", Cr4.PAE],
  ["mce", Cr4.MCE],
  ["pge", Cr4.PGE],
  ["fxsr", Cr4.OSFXSR],
  ["sse", Cr4.OSXMMEXCPT],
  ["umip", Cr4.UMIP],
  ["la57", Cr4.LA57],
  ["vmx", Cr4.VMXE],
  ["fsgsbase", Cr4.FSGSBASE],
  ["pcid", Cr4.PCIDE],
  ["xsave", Cr4.OSXSAVE],
  ["smep", Cr4.SMEP],
  ["smap", Cr4.SMAP],
  ["pku", Cr4.PKE],
] as const;

/** CR4 bits a processor model has: setting another one is #GP(0). */
export function cr4Allowed(model: CpuModel): number {
  let bits: number = Cr4.PCE;
  for (const [feature, bit] of FEATURE_BITS) if (model.features.has(feature)) bits |= bit;
  return bits;
}

const CR3_NO_FLUSH = 1n << 63n;

/** PAE paging, with its PDPTE registers, is on in a state of CR0, CR4 and EFER. */
const paePaging = (cr0: number, cr4: number, efer: number): boolean =>
  cr0 < 0 && (cr4 & Cr4.PAE) !== 0 && (efer & Efer.LMA) === 0;

/**
 * Writes CR0 (SDM 3A 2.5; 9.8.5 for the activation of IA-32e mode).
 * @throws CpuFault #GP(0); nothing has changed then
 */
function writeCr0(cpu: Cpu, value: bigint): void {
  const { state } = cpu;
  if (value >> 32n !== 0n) throw gp0();
  const before = state.lo(Off.CR0);
  const next = (Number(value) & CR0_DEFINED) | Cr0.ET;
  const cr4 = state.lo(Off.CR4);
  const efer = state.lo(Off.EFER);
  const pg = next < 0;
  if (pg && !(next & Cr0.PE)) throw gp0();
  if (next & Cr0.NW && !(next & Cr0.CD)) throw gp0();
  if (!(next & Cr0.WP) && cr4 & Cr4.CET) throw gp0();
  if (!pg && before < 0 && (is64BitMode(cpu) || cr4 & Cr4.PCIDE)) throw gp0();
  let lma = efer & Efer.LMA;
  if (pg && before >= 0 && efer & Efer.LME) {
    const cs = state.segAttributes(Seg.CS);
    const tss16 = (state.segAttributes(Seg.TR) & 0xf) < 8 && state.segAttributes(Seg.TR) & SegAttr.P;
    if (!(cr4 & Cr4.PAE) || cs & SegAttr.L || tss16) throw gp0();
    lma = Efer.LMA;
  } else if (!pg) lma = 0;
  if (!cpu.vmx.crAllowed(0, BigInt(next >>> 0))) throw gp0();
  // Turning PAE paging on, or changing CD or NW under it, loads the PDPTE registers (SDM 3A 4.4.1).
  const changed = before ^ next;
  const reload = (changed & (Cr0.PG | Cr0.CD | Cr0.NW)) !== 0;
  if (reload && paePaging(next, cr4, lma) && !cpu.mmu.loadPdptes(state.u64(Off.CR3))) throw gp0();
  state.setLo(Off.CR0, next);
  state.setLo(Off.EFER, (efer & ~Efer.LMA) | lma);
  if (changed & (Cr0.PG | Cr0.PE | Cr0.WP)) cpu.mmu.invalidateAll(true);
  cpu.contextChanged();
}

/**
 * Writes CR3 without the privileges' checks: loads PDPTEs, drops translations as the no-flush bit says.
 * @returns false when reserved bits, or a PDPTE, make it #GP(0)
 */
export function loadCr3(cpu: Cpu, value: bigint): boolean {
  const { state } = cpu;
  const cr4 = state.lo(Off.CR4);
  const pcide = (cr4 & Cr4.PCIDE) !== 0;
  const keep = pcide && (value & CR3_NO_FLUSH) !== 0n;
  const next = pcide ? value & ~CR3_NO_FLUSH : value;
  const beyond = next >> BigInt(cpu.model.physicalBits) !== 0n;
  if (isLongMode(cpu) && beyond) return false;
  if (paePaging(state.lo(Off.CR0), cr4, state.lo(Off.EFER)) && !cpu.mmu.loadPdptes(next)) return false;
  state.setU64(Off.CR3, next);
  if (!keep) cpu.mmu.invalidatePcid(pcide ? Number(next & 0xfffn) : 0);
  cpu.contextChanged();
  return true;
}

/** Global pages outlast it (SDM 3A 4.10.4.1). @throws CpuFault #GP(0); nothing has changed then */
function movToCr3(cpu: Cpu, value: bigint): void {
  const { state } = cpu;
  const context = state.lo(Off.TLB_CONTEXT);
  const code = state.lo(Off.CODE_CONTEXT);
  if (!loadCr3(cpu, value)) throw gp0();
  if ((state.lo(Off.CR4) & Cr4.PGE) === 0) return;
  cpu.mmu.carryGlobals(context);
  cpu.code.carryGlobals(code);
}

/** Writes CR4. @throws CpuFault #GP(0); nothing has changed then */
function writeCr4(cpu: Cpu, value: bigint): void {
  const { state } = cpu;
  if (value >> 32n !== 0n) throw gp0();
  const next = Number(value) | 0;
  const before = state.lo(Off.CR4);
  const changed = before ^ next;
  if (next & ~cr4Allowed(cpu.model)) throw gp0();
  const long = isLongMode(cpu);
  if (long && (!(next & Cr4.PAE) || changed & Cr4.LA57)) throw gp0();
  if (changed & next & Cr4.PCIDE && (!long || (state.lo(Off.CR3) & 0xfff) !== 0)) throw gp0();
  if (next & Cr4.CET && !(state.lo(Off.CR0) & Cr0.WP)) throw gp0();
  if (!cpu.vmx.crAllowed(4, value)) throw gp0();
  const pae = paePaging(state.lo(Off.CR0), next, state.lo(Off.EFER));
  if (pae && changed & (Cr4.PAE | Cr4.PGE | Cr4.PSE | Cr4.SMEP) && !cpu.mmu.loadPdptes(state.u64(Off.CR3))) throw gp0();
  state.setLo(Off.CR4, next);
  const drops = Cr4.PGE | Cr4.PAE | Cr4.PSE | Cr4.LA57 | Cr4.SMEP | Cr4.PCIDE | Cr4.SMAP | Cr4.PKE;
  if (changed & drops) cpu.mmu.invalidateAll(true);
  cpu.contextChanged();
}

/** Privilege, and the registers that exist: CR0, 2, 3, 4, 8 (8 in 64-bit mode, where alone it can be encoded). */
function checkRegister(cpu: Cpu, register: number): void {
  if (![0, 2, 3, 4, 8].includes(register)) throw undefinedOpcode();
  requireCpl0(cpu);
}

const movCr: SystemHandler = (cpu, instruction) => {
  const write = instruction.operands[0].kind === OperandKind.CONTROL;
  const register = instruction.operands[write ? 0 : 1].reg;
  const gpr = instruction.operands[write ? 1 : 0];
  checkRegister(cpu, register);
  if (!write) {
    let value = readControl(cpu, register);
    if (cpu.guest) value = cpu.guest.interceptCr(register, "mov-from", value, instruction);
    if (register === 8) value = BigInt(cpu.guest?.readTprShadow() ?? cpu.interrupts.readCr8());
    writeGpr(cpu, gpr.reg, gpr.size, value);
    return Next.SEQUENTIAL;
  }
  let value = readGpr(cpu, gpr.reg, gpr.size);
  if (cpu.guest) value = cpu.guest.interceptCr(register, "mov-to", value, instruction);
  if (register === 0) writeCr0(cpu, value);
  else if (register === 2) cpu.state.setU64(Off.CR2, value);
  else if (register === 3) {
    movToCr3(cpu, value);
  } else if (register === 4) writeCr4(cpu, value);
  else {
    if (value > 15n) throw gp0();
    if (!cpu.guest?.writeTprShadow(Number(value))) cpu.interrupts.writeCr8(Number(value));
  }
  return Next.ATTENTION;
};

function readControl(cpu: Cpu, register: number): bigint {
  const { state } = cpu;
  switch (register) {
    case 0:
      return state.u64(Off.CR0);
    case 2:
      return state.u64(Off.CR2);
    case 3:
      return state.u64(Off.CR3);
    case 4:
      return state.u64(Off.CR4);
    default:
      return 0n;
  }
}

const clts: SystemHandler = (cpu, instruction) => {
  requireCpl0(cpu);
  const { state } = cpu;
  if (cpu.guest) {
    const value = cpu.guest.interceptCr(0, "clts", 0n, instruction);
    state.setLo(Off.CR0, Number(value & 0xffff_ffffn) | 0);
  } else state.setLo(Off.CR0, state.lo(Off.CR0) & ~Cr0.TS);
  cpu.contextChanged();
  return Next.ATTENTION;
};

/** LMSW sets PE but never clears it (SDM 2A LMSW). */
const lmsw: SystemHandler = (cpu, instruction) => {
  requireCpl0(cpu);
  const source = readOperand(cpu, instruction, 0) & 0xffffn;
  const { state } = cpu;
  if (cpu.guest) {
    writeCr0(cpu, cpu.guest.interceptCr(0, "lmsw", source, instruction, memoryLinear(cpu, instruction)));
  } else {
    const cr0 = state.lo(Off.CR0);
    writeCr0(cpu, BigInt(((cr0 & ~0xe) | (Number(source) & 0xf)) >>> 0));
  }
  return Next.ATTENTION;
};

const smsw: SystemHandler = (cpu, instruction) => {
  checkUmip(cpu);
  const operand = instruction.operands[0];
  let value = cpu.state.u64(Off.CR0);
  if (cpu.guest) value = cpu.guest.interceptCr(0, "smsw", value, instruction, memoryLinear(cpu, instruction));
  if (operand.kind === OperandKind.GPR) writeGpr(cpu, operand.reg, instruction.operandSize, value);
  else cpu.mmu.write(effectiveAddress(cpu, instruction, 2, true), 2, value & 0xffffn);
  return Next.SEQUENTIAL;
};

export const controlHandlers: Readonly<Record<string, SystemHandler>> = {
  MOV_CR: movCr,
  CLTS: clts,
  LMSW: lmsw,
  SMSW: smsw,
};

/** EFER: reserved bits, and LME, which may not change under paging (SDM 3A 2.2.1). @throws CpuFault #GP(0) */
export function writeEfer(cpu: Cpu, value: bigint): void {
  const { state } = cpu;
  const { features } = cpu.model;
  let allowed: number = Efer.LMA;
  if (features.has("syscall")) allowed |= Efer.SCE;
  if (features.has("lm")) allowed |= Efer.LME;
  if (features.has("nx")) allowed |= Efer.NXE;
  if (features.has("svm")) allowed |= Efer.SVME;
  if (features.has("auto-ibrs")) allowed |= Efer.AIBRSE;
  const low = Number(value & 0xffff_ffffn) | 0;
  if (value >> 32n !== 0n || low & ~allowed) throw new CpuFault(Vector.GP, 0);
  const before = state.lo(Off.EFER);
  if ((before ^ low) & Efer.LME && state.lo(Off.CR0) < 0) throw gp0();
  // LMA is read-only: it follows LME and CR0.PG.
  state.setLo(Off.EFER, (low & ~Efer.LMA) | (before & Efer.LMA));
  if ((before ^ low) & Efer.NXE) cpu.mmu.invalidateAll(true);
  cpu.contextChanged();
}

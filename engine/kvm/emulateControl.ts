/**
 * System instructions of the emulator (arch/x86/kvm/emulate.c): segment loads and far transfers, descriptor tables, control
 * and debug registers, MSRs, interrupts in real mode, ports. Guests reach them here while their state is one VMX cannot hold
 * (without unrestricted guest), or by the forced-emulation prefix.
 */
import { OperandKind } from "../cpu/isa/instruction";
import { Rflags, Seg } from "../cpu/state";
import { kvmCpuid } from "./cpuid";
import type { EmulHandler, X86Emulator } from "./emulate";
import { accessSystem, loadSegmentDescriptor, Transfer } from "./emulateSegment";
import { moveStack, popValue, pushValue, writableFlags } from "./emulateStack";
import { emIn, emOut } from "./emulateString";
import { EmulFault, ioNeeded, maskOf, numberOf, unhandleable } from "./emulateTypes";
import { Cr0, Cr4, isLongMode, isProtmode, kvmReadCr0, kvmReadCr3, kvmReadCr4 } from "./kvmCacheRegs";
import { kvmMmuInvlpg } from "./mmu/mmu";
import { kvmGetMsrWithFilter, kvmMsrUserSpace, kvmSetMsrWithFilter } from "./msrFilter";
import { kvmReadL1Tsc } from "./pvclock";
import { type KvmVcpu, VcpuReg } from "./types";
import { KVM_X86_SHADOW_INT_MOV_SS, KVM_X86_SHADOW_INT_STI, type KvmSegment, KvmX86Quirk } from "./uapi";
import { kvmGetDr, kvmSetDr } from "./x86Debug";
import { ExcVector } from "./x86Events";
import { kvmGetCr8, kvmLmsw, kvmSetCr0, kvmSetCr3, kvmSetCr4, kvmSetCr8, kvmSetXcr } from "./x86Regs";

const gp = (errorCode = 0): never => {
  throw new EmulFault(ExcVector.GP, errorCode);
};
const ud = (): never => {
  throw new EmulFault(ExcVector.UD);
};
const gpIf = (failed: boolean | number): void => {
  if (failed) gp();
};

const cplOf = (c: X86Emulator): number => c.vcpu.module.ops.getCpl(c.vcpu);
/** Virtual-8086 mode counts as CPL 3. */
const isVm86 = (c: X86Emulator): boolean => isProtmode(c.vcpu) && c.flag(Rflags.VM);

/** Only at CPL 0. */
const privileged =
  (handler: EmulHandler): EmulHandler =>
  (c) => {
    if (cplOf(c) !== 0) gp();
    handler(c);
  };

/** #UD in real and virtual-8086 mode. */
const protectedOnly =
  (handler: EmulHandler): EmulHandler =>
  (c) => {
    if (!isProtmode(c.vcpu) || isVm86(c)) ud();
    handler(c);
  };

// --- segments and far transfers -----------------------------------------------------------------------------------------

/** load_segment_descriptor */
function loadSegment(c: X86Emulator, seg: number, selector: number): void {
  const loaded = loadSegmentDescriptor(c.vcpu, selector, seg, cplOf(c), Transfer.NONE);
  c.vcpu.module.ops.setSegment(c.vcpu, seg, loaded);
  if (seg === Seg.SS) c.interruptibility = KVM_X86_SHADOW_INT_MOV_SS;
}

/** Where a far transfer goes: the pointer in the instruction or in memory. */
function farPointer(c: X86Emulator): { selector: number; offset: bigint } {
  const { insn } = c;
  const pointer = insn.operands.find((op) => op.kind === OperandKind.FAR || op.kind === OperandKind.MEMORY);
  const size = insn.operandSize;
  if (pointer?.kind === OperandKind.FAR) {
    return { selector: insn.immediate2 & 0xffff, offset: c.immediate & maskOf(size) };
  }
  const offset = c.readLinear(c.memoryLinear(size, false), size);
  const selector = Number(c.readLinear(c.memoryLinear(2, false, BigInt(size)), 2));
  return { selector, offset };
}

/** assign_eip_far: RIP must lie in the new code segment, or be canonical. */
function farTarget(c: X86Emulator, cs: KvmSegment, offset: bigint): bigint {
  if (isLongMode(c.vcpu) && cs.l) {
    const bits = c.vcpu.module.host.processors[0].model.linearBits;
    if (BigInt.asUintN(64, BigInt.asIntN(bits, offset)) !== offset) gp();
    return offset;
  }
  const target = offset & 0xffffffffn;
  if (target > BigInt(cs.limit >>> 0)) gp();
  return target;
}

function enterCodeSegment(c: X86Emulator, cs: KvmSegment, target: bigint): void {
  c.vcpu.module.ops.setSegment(c.vcpu, Seg.CS, cs);
  c.code64 = isLongMode(c.vcpu) && cs.l !== 0;
  c.target = target;
}

const jumpFar: EmulHandler = (c) => {
  const { selector, offset } = farPointer(c);
  const cs = loadSegmentDescriptor(c.vcpu, selector, Seg.CS, cplOf(c), Transfer.CALL_JMP);
  enterCodeSegment(c, cs, farTarget(c, cs, offset));
};

const callFar: EmulHandler = (c) => {
  const { selector, offset } = farPointer(c);
  const old = c.vcpu.module.ops.getSegment(c.vcpu, Seg.CS).selector;
  const cs = loadSegmentDescriptor(c.vcpu, selector, Seg.CS, cplOf(c), Transfer.CALL_JMP);
  const target = farTarget(c, cs, offset);
  pushValue(c, BigInt(old));
  pushValue(c, c.ctxt.eip + BigInt(c.insn.length));
  enterCodeSegment(c, cs, target);
};

const returnFar: EmulHandler = (c) => {
  const [op] = c.insn.operands;
  const offset = popValue(c);
  const selector = Number(popValue(c) & 0xffffn);
  const cs = loadSegmentDescriptor(c.vcpu, selector, Seg.CS, cplOf(c), Transfer.RET);
  enterCodeSegment(c, cs, farTarget(c, cs, offset));
  if (op.kind === OperandKind.IMMEDIATE) moveStack(c, c.immediate);
};

const loadFarPointer =
  (seg: number): EmulHandler =>
  (c) => {
    const [dst] = c.insn.operands;
    const { selector, offset } = farPointer(c);
    loadSegment(c, seg, selector);
    c.writeReg(dst.reg, dst.size, offset);
  };

// --- interrupts in real mode ----------------------------------------------------------------------------------------------

/** emulate_int_real: through the vector table; protected mode's gates are not emulated. */
function interruptReal(c: X86Emulator, vector: number, back: bigint): void {
  if (isProtmode(c.vcpu)) throw unhandleable;
  const { ops } = c.vcpu.module;
  const idt = ops.getIdt(c.vcpu);
  pushValue(c, c.rflags, 2);
  c.rflags &= ~BigInt(Rflags.IF | Rflags.TF | Rflags.AC);
  pushValue(c, BigInt(ops.getSegment(c.vcpu, Seg.CS).selector), 2);
  pushValue(c, back, 2);
  const entry = new Uint8Array(4);
  accessSystem(c.vcpu, idt.base + BigInt(vector * 4), entry, false);
  const cs = loadSegmentDescriptor(c.vcpu, entry[2] | (entry[3] << 8), Seg.CS, 0, Transfer.NONE);
  enterCodeSegment(c, cs, BigInt(entry[0] | (entry[1] << 8)));
}

const interrupt = (c: X86Emulator, vector: number): void =>
  interruptReal(c, vector, c.ctxt.eip + BigInt(c.insn.length));

/** em_iret in real mode. */
const interruptReturn: EmulHandler = (c) => {
  if (isProtmode(c.vcpu)) throw unhandleable;
  const size = c.insn.operandSize;
  const offset = popValue(c);
  const selector = Number(popValue(c) & 0xffffn);
  const flags = popValue(c);
  if (offset & ~0xffffn) gp();
  const cs = loadSegmentDescriptor(c.vcpu, selector, Seg.CS, 0, Transfer.NONE);
  const writable = writableFlags(c, size);
  c.rflags = (c.rflags & ~writable) | (flags & writable) | 2n;
  enterCodeSegment(c, cs, offset);
};

/** emulator_bad_iopl */
const badIopl = (c: X86Emulator): boolean =>
  isProtmode(c.vcpu) && (isVm86(c) || cplOf(c) > ((Number(c.rflags) >> Rflags.IOPL_SHIFT) & 3));

// --- descriptor tables ----------------------------------------------------------------------------------------------------

const loadTable =
  (which: "gdt" | "idt"): EmulHandler =>
  (c) => {
    const size = c.code64 ? 8 : 4;
    const limit = Number(c.readLinear(c.memoryLinear(2, false), 2));
    const raw = c.readLinear(c.memoryLinear(size, false, 2n), size);
    const base = c.insn.operandSize === 2 ? raw & 0xffffffn : raw;
    const bits = c.vcpu.module.host.processors[0].model.linearBits;
    if (c.code64 && BigInt.asUintN(64, BigInt.asIntN(bits, base)) !== base) gp();
    const { ops } = c.vcpu.module;
    if (which === "gdt") ops.setGdt(c.vcpu, { base, limit });
    else ops.setIdt(c.vcpu, { base, limit });
  };

/** User-mode instruction prevention (SDM 3A 2.5, CR4.UMIP). */
const umip =
  (handler: EmulHandler): EmulHandler =>
  (c) => {
    if (kvmReadCr4(c.vcpu) & Cr4.UMIP && cplOf(c) > 0) gp();
    handler(c);
  };

const storeTable = (which: "gdt" | "idt"): EmulHandler =>
  umip((c) => {
    const { ops } = c.vcpu.module;
    const { base, limit } = which === "gdt" ? ops.getGdt(c.vcpu) : ops.getIdt(c.vcpu);
    const size = c.code64 ? 8 : 4;
    c.writeLinear(c.memoryLinear(2, true), 2, BigInt(limit));
    c.writeLinear(
      c.memoryLinear(size, true, 2n),
      size,
      c.insn.operandSize === 2 ? base & 0xffffffn : base & maskOf(size),
    );
  });

const storeSelector = (seg: number): EmulHandler =>
  umip(
    protectedOnly((c) =>
      c.writeOperand(c.insn.operands[0], BigInt(c.vcpu.module.ops.getSegment(c.vcpu, seg).selector)),
    ),
  );

const loadSystemSegment = (seg: number): EmulHandler =>
  protectedOnly(privileged((c) => loadSegment(c, seg, Number(c.readOperand(c.insn.operands[0]) & 0xffffn))));

// --- control and debug registers ------------------------------------------------------------------------------------------

function readControl(vcpu: KvmVcpu, cr: number): bigint {
  switch (cr) {
    case 0:
      return kvmReadCr0(vcpu);
    case 2:
      return vcpu.arch.cr2;
    case 3:
      return kvmReadCr3(vcpu);
    case 4:
      return kvmReadCr4(vcpu);
    case 8:
      return kvmGetCr8(vcpu);
    default:
      return ud();
  }
}

function writeControl(vcpu: KvmVcpu, cr: number, value: bigint): boolean {
  switch (cr) {
    case 0:
      return kvmSetCr0(vcpu, value);
    case 2:
      vcpu.arch.cr2 = value;
      return false;
    case 3:
      return kvmSetCr3(vcpu, value);
    case 4:
      return kvmSetCr4(vcpu, value);
    case 8:
      return kvmSetCr8(vcpu, value);
    default:
      return ud();
  }
}

const moveControl: EmulHandler = (c) => {
  const [dst, src] = c.insn.operands;
  if (dst.kind === OperandKind.CONTROL) gpIf(writeControl(c.vcpu, dst.reg, c.readOperand(src)));
  else c.writeOperand(dst, readControl(c.vcpu, src.reg) & maskOf(dst.size));
};

const DR7_GD = 1n << 13n;
const DR6_BD = 1n << 13n;

const moveDebug: EmulHandler = (c) => {
  const [dst, src] = c.insn.operands;
  const dr = dst.kind === OperandKind.DEBUG ? dst.reg : src.reg;
  if (dr > 7 || (kvmReadCr4(c.vcpu) & Cr4.DE && (dr === 4 || dr === 5))) ud();
  if (c.vcpu.arch.dr7 & DR7_GD) {
    c.vcpu.arch.dr6 |= DR6_BD;
    throw new EmulFault(ExcVector.DB);
  }
  if (dst.kind === OperandKind.DEBUG) gpIf(kvmSetDr(c.vcpu, dr, c.readOperand(src)));
  else c.writeOperand(dst, kvmGetDr(c.vcpu, dr) & maskOf(dst.size));
};

const storeMachineStatus: EmulHandler = umip((c) => {
  const [dst] = c.insn.operands;
  c.writeOperand(dst, kvmReadCr0(c.vcpu) & maskOf(dst.size));
});

// --- MSRs and what the processor tells about itself -------------------------------------------------------------------------

const edxEax = (c: X86Emulator): bigint => c.readReg(VcpuReg.RAX, 4) | (c.readReg(VcpuReg.RDX, 4) << 32n);

function setEdxEax(c: X86Emulator, value: bigint): void {
  c.writeReg(VcpuReg.RAX, 4, value & 0xffffffffn);
  c.writeReg(VcpuReg.RDX, 4, (value >> 32n) & 0xffffffffn);
}

/** em_rdmsr: a failure may be userspace's (KVM_CAP_X86_USER_SPACE_MSR). */
const readMsr: EmulHandler = (c) => {
  const index = Number(c.readReg(VcpuReg.RCX, 4));
  const data = kvmGetMsrWithFilter(c.vcpu, index);
  if (typeof data === "bigint") {
    setEdxEax(c, data);
    return;
  }
  if (kvmMsrUserSpace(c.vcpu, false, index, 0n, "completeEmulatedRdmsr", data)) throw ioNeeded;
  gp();
};

const writeMsr: EmulHandler = (c) => {
  const index = Number(c.readReg(VcpuReg.RCX, 4));
  const data = edxEax(c);
  const r = kvmSetMsrWithFilter(c.vcpu, index, data);
  if (r === 0) return;
  if (kvmMsrUserSpace(c.vcpu, true, index, data, "completeEmulatedWrmsr", r)) throw ioNeeded;
  gp();
};

const cpuid: EmulHandler = (c) => {
  if (c.vcpu.arch.miscFeaturesEnables & 1n && cplOf(c) !== 0) gp();
  const leaf = Number(c.readReg(VcpuReg.RAX, 4));
  const { eax, ebx, ecx, edx } = kvmCpuid(c.vcpu, leaf, Number(c.readReg(VcpuReg.RCX, 4)));
  c.writeReg(VcpuReg.RAX, 4, BigInt(eax >>> 0));
  c.writeReg(VcpuReg.RBX, 4, BigInt(ebx >>> 0));
  c.writeReg(VcpuReg.RCX, 4, BigInt(ecx >>> 0));
  c.writeReg(VcpuReg.RDX, 4, BigInt(edx >>> 0));
};

const readTsc: EmulHandler = (c) => {
  if (kvmReadCr4(c.vcpu) & Cr4.TSD && cplOf(c) !== 0) gp();
  setEdxEax(c, kvmReadL1Tsc(c.vcpu));
};

/** VMware's pseudo counters of RDPMC: host TSC, real time, apparent time. */
const VMWARE_PMC_FIRST = 0x10000n;
const VMWARE_PMC_LAST = 0x10002n;

const readCounter: EmulHandler = (c) => {
  const index = c.readReg(VcpuReg.RCX, 4);
  const backdoor = c.vcpu.module.params.enable_vmware_backdoor;
  if (!backdoor || index < VMWARE_PMC_FIRST || index > VMWARE_PMC_LAST) gp();
  const { host } = c.vcpu.module;
  setEdxEax(c, BigInt(index === VMWARE_PMC_FIRST ? host.clock.now : host.clock.now + c.vcpu.kvm.arch.kvmclockOffset));
};

const setExtendedControl: EmulHandler = (c) => {
  if (!(kvmReadCr4(c.vcpu) & Cr4.OSXSAVE)) ud();
  gpIf(cplOf(c) !== 0 || kvmSetXcr(c.vcpu, Number(c.readReg(VcpuReg.RCX, 4)), edxEax(c)));
};

/** em_hypercall: the instruction becomes this vendor's and is executed again. */
const hypercall: EmulHandler = (c) => {
  if (!(c.vcpu.kvm.arch.disabledQuirks & BigInt(KvmX86Quirk.FIX_HYPERCALL_INSN))) {
    const cs = c.code64 ? 0n : c.vcpu.module.ops.getSegmentBase(c.vcpu, Seg.CS);
    c.writeLinear(c.truncate(cs + c.ctxt.eip), 3, numberOf(Uint8Array.of(0x0f, 0x01, 0xc1)));
    c.target = c.ctxt.eip;
    return;
  }
  ud();
};

const bound: EmulHandler = (c) => {
  const [dst] = c.insn.operands;
  const size = c.insn.operandSize;
  const index = BigInt.asIntN(size * 8, c.readReg(dst.reg, size));
  const low = BigInt.asIntN(size * 8, c.readLinear(c.memoryLinear(size, false), size));
  const high = BigInt.asIntN(size * 8, c.readLinear(c.memoryLinear(size, false, BigInt(size)), size));
  if (index < low || index > high) throw new EmulFault(ExcVector.BR);
};

/** By mnemonic. */
// biome-ignore format: a table of short handlers
export const CONTROL: Readonly<Record<string, EmulHandler>> = {
  MOV_SREG: (c) => {
    const [dst, src] = c.insn.operands;
    if (dst.reg === Seg.CS) ud();
    loadSegment(c, dst.reg, Number(c.readOperand(src) & 0xffffn));
  },
  POP_SREG: (c) => {
    const selector = Number(popValue(c) & 0xffffn);
    loadSegment(c, c.insn.operands[0].reg, selector);
  },
  LES: loadFarPointer(Seg.ES), LDS: loadFarPointer(Seg.DS), LSS: loadFarPointer(Seg.SS), LFS: loadFarPointer(Seg.FS),
  LGS: loadFarPointer(Seg.GS),
  JMP_FAR: jumpFar, CALL_FAR: callFar, RET_FAR: returnFar,
  INT: (c) => interrupt(c, c.insn.immediate & 0xff),
  INT3: (c) => interrupt(c, 3),
  INTO: (c) => {
    if (c.flag(Rflags.OF)) interrupt(c, 4);
  },
  IRET: interruptReturn,
  BOUND: bound,
  CLI: (c) => {
    if (badIopl(c)) gp();
    c.setFlag(Rflags.IF, false);
  },
  STI: (c) => {
    if (badIopl(c)) gp();
    c.interruptibility = KVM_X86_SHADOW_INT_STI;
    c.setFlag(Rflags.IF, true);
  },
  HLT: privileged((c) => {
    c.vcpu.arch.haltRequest = true;
  }),
  LGDT: privileged(loadTable("gdt")), LIDT: privileged(loadTable("idt")), SGDT: storeTable("gdt"), SIDT: storeTable("idt"),
  LLDT: loadSystemSegment(Seg.LDTR), LTR: loadSystemSegment(Seg.TR), SLDT: storeSelector(Seg.LDTR), STR: storeSelector(Seg.TR),
  MOV_CR: privileged(moveControl), MOV_DR: privileged(moveDebug), SMSW: storeMachineStatus,
  LMSW: privileged((c) => kvmLmsw(c.vcpu, c.readOperand(c.insn.operands[0]) & 0xffffn)),
  CLTS: privileged((c) => gpIf(kvmSetCr0(c.vcpu, kvmReadCr0(c.vcpu) & ~Cr0.TS))),
  INVLPG: privileged((c) => {
    try {
      kvmMmuInvlpg(c.vcpu, c.memoryLinear(1, false));
    } catch (e) {
      // An address outside the segment invalidates nothing.
      if (!(e instanceof EmulFault)) throw e;
    }
  }),
  INVD: privileged(() => {}), WBINVD: privileged(() => {}), WBNOINVD: privileged(() => {}),
  RDMSR: privileged(readMsr), WRMSR: privileged(writeMsr), CPUID: cpuid, RDTSC: readTsc, RDPMC: readCounter,
  RDTSCP: (c) => {
    readTsc(c);
    c.writeReg(VcpuReg.RCX, 4, c.vcpu.vmx.uretMsrs.tscAux & 0xffffffffn);
  },
  RDPID: (c) => c.writeReg(c.insn.operands[0].reg, c.insn.operands[0].size, c.vcpu.vmx.uretMsrs.tscAux),
  XSETBV: setExtendedControl,
  VMCALL: hypercall, VMMCALL: hypercall,
  IN: emIn, OUT: emOut,
};

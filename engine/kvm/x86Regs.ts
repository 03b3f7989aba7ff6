/** Control registers, XCR0 and the register ioctls (arch/x86/kvm/x86.c). Setters answer true where #GP(0) is due. */
import { Seg } from "../cpu/state";
import { kvmUpdateCpuidRuntime } from "./cpuid";
import { KvmError } from "./errno";
import {
  Cr0,
  Cr4,
  EferBit,
  is64BitMode,
  isLongMode,
  isPae,
  isPaePaging,
  isPaging,
  isProtmode,
  kvmPdptrRead,
  kvmReadCr0,
  kvmReadCr3,
  kvmReadCr4,
  kvmRegisterMarkDirty,
  kvmRegisterReadRaw,
  kvmRegisterWriteRaw,
  kvmRipRead,
  kvmRipWrite,
} from "./kvmCacheRegs";
import { kvmGetApicBase, kvmLapicGetCr8, kvmSetApicBase, kvmVcpuIsBsp } from "./lapic";
import { kvmReadGuest } from "./memslots";
import { KvmReq, kvmClearRequest, kvmMakeRequest, kvmTestRequest } from "./requests";
import { type KvmVcpu, VcpuReg } from "./types";
import {
  KVM_MAX_XCRS,
  KVM_SREGS2_FLAGS_PDPTRS_VALID,
  type KvmDebugregs,
  KvmMpState,
  type KvmRegs,
  type KvmSregs,
  type KvmSregs2,
  KvmVcpuEvent,
  type KvmVcpuEvents,
  type KvmXcrs,
} from "./uapi";
import { kvmGetRflagsForUser, kvmSetRflags, kvmUpdateDr7, kvmUpdateDr0123 } from "./x86Debug";
import {
  ExcVector,
  exceptionHasErrorCode,
  kvmDeliverExceptionPayload,
  kvmQueueInterrupt,
  processNmi,
} from "./x86Events";

const CR0_DEFINED = Cr0.PE | Cr0.MP | Cr0.EM | Cr0.TS | Cr0.ET | Cr0.NE | Cr0.WP | Cr0.AM | Cr0.NW | Cr0.CD | Cr0.PG;
const CR0_PDPTR_BITS = Cr0.CD | Cr0.NW | Cr0.PG;
const CR4_PDPTR_BITS = Cr4.PGE | Cr4.PSE | Cr4.PAE | Cr4.SMEP;
const CR8_RESERVED_BITS = ~0xfn;

/** kvm_is_valid_cr0 */
const kvmIsValidCr0 = (cr0: bigint): boolean =>
  cr0 >> 32n === 0n && !(cr0 & Cr0.NW && !(cr0 & Cr0.CD)) && !(cr0 & Cr0.PG && !(cr0 & Cr0.PE));

/** kvm_is_valid_cr4 */
const kvmIsValidCr4 = (vcpu: KvmVcpu, cr4: bigint): boolean =>
  (cr4 & vcpu.arch.cr4GuestRsvdBits) === 0n && vcpu.module.ops.isValidCr4(vcpu, cr4);

/** load_pdptrs: PAE's four entries are read when CR3 is loaded (SDM 3A 4.4.1). @returns false when one is not valid */
function loadPdptrs(vcpu: KvmVcpu, cr3: bigint): boolean {
  const bytes = new Uint8Array(32);
  if (!kvmReadGuest(vcpu.kvm, Number(cr3 & 0xffffffe0n), bytes)) return false;
  const view = new DataView(bytes.buffer);
  const reserved = (~((1n << BigInt(vcpu.arch.maxphyaddr)) - 1n) & ((1n << 64n) - 1n)) | 0x1e6n;
  const pdptrs: bigint[] = [];
  for (let i = 0; i < 4; i++) {
    const pdpte = view.getBigUint64(i * 8, true);
    if (pdpte & 1n && pdpte & reserved) return false;
    pdptrs.push(pdpte);
  }
  for (let i = 0; i < 4; i++) vcpu.arch.pdptrs[i] = pdptrs[i];
  kvmRegisterMarkDirty(vcpu, VcpuReg.PDPTR);
  kvmMakeRequest(KvmReq.LOAD_MMU_PGD, vcpu);
  return true;
}

/** kvm_post_set_cr0 */
function kvmPostSetCr0(vcpu: KvmVcpu, old: bigint, cr0: bigint): void {
  if ((old ^ cr0) & Cr0.PG) {
    kvmMakeRequest(KvmReq.TLB_FLUSH_GUEST, vcpu);
    kvmMakeRequest(KvmReq.LOAD_MMU_PGD, vcpu);
  }
}

/** kvm_set_cr0 (SDM 3A 2.5, 10.8.5 for what leads to long mode). */
export function kvmSetCr0(vcpu: KvmVcpu, value: bigint): boolean {
  const old = kvmReadCr0(vcpu);
  if (!kvmIsValidCr0(value)) return true;
  const cr0 = (value | Cr0.ET) & CR0_DEFINED;
  const paging = (cr0 & Cr0.PG) !== 0n;
  if (vcpu.arch.efer & EferBit.LME && !isPaging(vcpu) && paging) {
    if (!isPae(vcpu) || vcpu.module.ops.getCsDbLBits(vcpu).l) return true;
  }
  if (!(vcpu.arch.efer & EferBit.LME) && paging && isPae(vcpu) && (cr0 ^ old) & CR0_PDPTR_BITS) {
    if (!loadPdptrs(vcpu, kvmReadCr3(vcpu))) return true;
  }
  if (!paging && (is64BitMode(vcpu) || kvmReadCr4(vcpu) & Cr4.PCIDE)) return true;
  vcpu.module.ops.setCr0(vcpu, cr0);
  kvmPostSetCr0(vcpu, old, cr0);
  return false;
}

/** kvm_lmsw: the low four bits; PE cannot be cleared. */
export function kvmLmsw(vcpu: KvmVcpu, msw: bigint): void {
  kvmSetCr0(vcpu, (kvmReadCr0(vcpu) & ~0xen) | (msw & 0xfn));
}

/** kvm_set_cr3 */
export function kvmSetCr3(vcpu: KvmVcpu, value: bigint): boolean {
  const keep = (value >> 63n) & 1n && kvmReadCr4(vcpu) & Cr4.PCIDE;
  const cr3 = keep ? value & ~(1n << 63n) : value;
  if (isLongMode(vcpu) && cr3 >> BigInt(vcpu.arch.maxphyaddr) !== 0n) return true;
  if (isPaePaging(vcpu) && !loadPdptrs(vcpu, cr3)) return true;
  vcpu.arch.cr3 = cr3;
  kvmRegisterMarkDirty(vcpu, VcpuReg.CR3);
  kvmMakeRequest(KvmReq.LOAD_MMU_PGD, vcpu);
  if (!keep) kvmMakeRequest(KvmReq.TLB_FLUSH_GUEST, vcpu);
  return false;
}

/** kvm_set_cr4 */
export function kvmSetCr4(vcpu: KvmVcpu, cr4: bigint): boolean {
  const old = kvmReadCr4(vcpu);
  if (!kvmIsValidCr4(vcpu, cr4)) return true;
  if (isLongMode(vcpu)) {
    if (!(cr4 & Cr4.PAE) || (cr4 ^ old) & Cr4.LA57) return true;
  } else if (isPaging(vcpu) && cr4 & Cr4.PAE && (cr4 ^ old) & CR4_PDPTR_BITS && !loadPdptrs(vcpu, kvmReadCr3(vcpu))) {
    return true;
  }
  if (cr4 & Cr4.PCIDE && !(old & Cr4.PCIDE) && (kvmReadCr3(vcpu) & 0xfffn || !isLongMode(vcpu))) return true;
  vcpu.module.ops.setCr4(vcpu, cr4);
  // SDM 3A 4.10.4.1: these change what cached translations mean.
  const flushing = Cr4.PGE | Cr4.PAE | Cr4.PSE | Cr4.PCIDE | Cr4.SMEP | Cr4.LA57;
  if ((cr4 ^ old) & flushing) kvmMakeRequest(KvmReq.TLB_FLUSH_GUEST, vcpu);
  return false;
}

/** kvm_get_cr8 */
export const kvmGetCr8 = (vcpu: KvmVcpu): bigint => (vcpu.apic ? BigInt(kvmLapicGetCr8(vcpu)) : vcpu.arch.cr8);

/** kvm_set_cr8 */
export function kvmSetCr8(vcpu: KvmVcpu, cr8: bigint): boolean {
  if (cr8 & CR8_RESERVED_BITS) return true;
  if (vcpu.apic) vcpu.apic.chip.writeCr8(Number(cr8));
  else vcpu.arch.cr8 = cr8;
  return false;
}

/** XCR0 bits the guest's CPUID offers (leaf 0Dh). */
function guestSupportedXcr0(vcpu: KvmVcpu): bigint {
  const entry = vcpu.arch.cpuidEntries.find((e) => e.function === 0xd && e.index === 0);
  return entry ? BigInt(entry.eax >>> 0) | (BigInt(entry.edx >>> 0) << 32n) : 0n;
}

/** __kvm_set_xcr */
export function kvmSetXcr(vcpu: KvmVcpu, index: number, value: bigint): boolean {
  if (index !== 0 || !(value & 1n)) return true;
  if (value & 4n && !(value & 2n)) return true;
  if (value & ~(guestSupportedXcr0(vcpu) | 1n)) return true;
  vcpu.arch.xcr0 = value;
  kvmUpdateCpuidRuntime(vcpu);
  return false;
}

// --- ioctls ---------------------------------------------------------------------------------------------------------

// biome-ignore format: a table
const REG_ORDER = [
  ["rax", VcpuReg.RAX], ["rbx", VcpuReg.RBX], ["rcx", VcpuReg.RCX], ["rdx", VcpuReg.RDX], ["rsi", VcpuReg.RSI],
  ["rdi", VcpuReg.RDI], ["rsp", VcpuReg.RSP], ["rbp", VcpuReg.RBP], ["r8", 8], ["r9", 9], ["r10", 10], ["r11", 11],
  ["r12", 12], ["r13", 13], ["r14", 14], ["r15", 15],
] as const;

/** KVM_GET_REGS */
export function kvmArchVcpuIoctlGetRegs(vcpu: KvmVcpu): KvmRegs {
  const regs = {} as KvmRegs;
  for (const [name, index] of REG_ORDER) regs[name] = kvmRegisterReadRaw(vcpu, index);
  regs.rip = kvmRipRead(vcpu);
  regs.rflags = kvmGetRflagsForUser(vcpu);
  return regs;
}

/** KVM_SET_REGS: a pending exception is forgotten. */
export function kvmArchVcpuIoctlSetRegs(vcpu: KvmVcpu, regs: KvmRegs): void {
  for (const [name, index] of REG_ORDER) kvmRegisterWriteRaw(vcpu, index, BigInt.asUintN(64, regs[name]));
  kvmRipWrite(vcpu, BigInt.asUintN(64, regs.rip));
  kvmSetRflags(vcpu, regs.rflags | 2n);
  vcpu.arch.exception.pending = false;
  kvmMakeRequest(KvmReq.EVENT, vcpu);
}

// biome-ignore format: a table
const SREG_ORDER = [
  ["cs", Seg.CS], ["ds", Seg.DS], ["es", Seg.ES], ["fs", Seg.FS], ["gs", Seg.GS], ["ss", Seg.SS], ["tr", Seg.TR],
  ["ldt", Seg.LDTR],
] as const;

/** KVM_GET_SREGS */
export function kvmArchVcpuIoctlGetSregs(vcpu: KvmVcpu): KvmSregs {
  const sregs: KvmSregs = { ...getSregsCommon(vcpu), interrupt_bitmap: [0n, 0n, 0n, 0n] };
  const { interrupt } = vcpu.arch;
  if (interrupt.injected && !interrupt.soft) {
    sregs.interrupt_bitmap[interrupt.nr >> 6] = 1n << BigInt(interrupt.nr & 63);
  }
  return sregs;
}

type SregsCommon = Omit<KvmSregs, "interrupt_bitmap">;

/** __get_sregs_common */
function getSregsCommon(vcpu: KvmVcpu): SregsCommon {
  const { ops } = vcpu.module;
  const { arch } = vcpu;
  const sregs = {} as SregsCommon;
  for (const [name, seg] of SREG_ORDER) sregs[name] = ops.getSegment(vcpu, seg);
  sregs.gdt = ops.getGdt(vcpu);
  sregs.idt = ops.getIdt(vcpu);
  sregs.cr0 = kvmReadCr0(vcpu);
  sregs.cr2 = arch.cr2;
  sregs.cr3 = kvmReadCr3(vcpu);
  sregs.cr4 = kvmReadCr4(vcpu);
  sregs.cr8 = kvmGetCr8(vcpu);
  sregs.efer = arch.efer;
  sregs.apic_base = kvmGetApicBase(vcpu);
  return sregs;
}

/** kvm_is_valid_sregs */
function kvmIsValidSregs(vcpu: KvmVcpu, s: SregsCommon): boolean {
  if (s.efer & EferBit.LME && s.cr0 & Cr0.PG) {
    if (!(s.cr4 & Cr4.PAE) || !(s.efer & EferBit.LMA)) return false;
    if (s.cr3 >> BigInt(vcpu.arch.maxphyaddr) !== 0n) return false;
  } else if (s.efer & EferBit.LMA || s.cs.l) {
    return false;
  }
  return kvmIsValidCr4(vcpu, s.cr4) && kvmIsValidCr0(s.cr0);
}

/** KVM_SET_SREGS: of the interrupt bitmap the lowest vector counts. @throws KvmError EINVAL */
export function kvmArchVcpuIoctlSetSregs(vcpu: KvmVcpu, s: KvmSregs): void {
  setSregsCommon(vcpu, s, "KVM_SET_SREGS", true);
  const word = s.interrupt_bitmap.findIndex((bits) => bits !== 0n);
  if (word < 0) return;
  let bit = 0;
  while (!((s.interrupt_bitmap[word] >> BigInt(bit)) & 1n)) bit++;
  kvmQueueInterrupt(vcpu, word * 64 + bit, false);
  kvmMakeRequest(KvmReq.EVENT, vcpu);
}

/** KVM_GET_SREGS2 */
export function kvmArchVcpuIoctlGetSregs2(vcpu: KvmVcpu): KvmSregs2 {
  const sregs: KvmSregs2 = { ...getSregsCommon(vcpu), flags: 0n, pdptrs: [0n, 0n, 0n, 0n] };
  if (!isPaePaging(vcpu)) return sregs;
  sregs.flags = BigInt(KVM_SREGS2_FLAGS_PDPTRS_VALID);
  for (let i = 0; i < 4; i++) sregs.pdptrs[i] = kvmPdptrRead(vcpu, i);
  return sregs;
}

/** KVM_SET_SREGS2. @throws KvmError EINVAL */
export function kvmArchVcpuIoctlSetSregs2(vcpu: KvmVcpu, s: KvmSregs2): void {
  const validPdptrs = (s.flags & BigInt(KVM_SREGS2_FLAGS_PDPTRS_VALID)) !== 0n;
  const pae = (s.cr0 & Cr0.PG) !== 0n && (s.cr4 & Cr4.PAE) !== 0n && (s.efer & EferBit.LMA) === 0n;
  if (s.flags & ~BigInt(KVM_SREGS2_FLAGS_PDPTRS_VALID) || (validPdptrs && !pae)) {
    throw new KvmError("EINVAL", "KVM_SET_SREGS2", "unknown flags, or PDPTRs without PAE paging");
  }
  setSregsCommon(vcpu, s, "KVM_SET_SREGS2", !validPdptrs);
  if (!validPdptrs) return;
  for (let i = 0; i < 4; i++) vcpu.arch.pdptrs[i] = s.pdptrs[i];
  kvmRegisterMarkDirty(vcpu, VcpuReg.PDPTR);
  kvmMakeRequest(KvmReq.LOAD_MMU_PGD, vcpu);
}

/** __set_sregs_common. @param updatePdptrs PAE's page-directory pointers are read from memory */
function setSregsCommon(vcpu: KvmVcpu, s: SregsCommon, ioctl: string, updatePdptrs: boolean): void {
  const { ops } = vcpu.module;
  const { arch } = vcpu;
  if (!kvmIsValidSregs(vcpu, s)) {
    throw new KvmError("EINVAL", ioctl, "CR0, CR3, CR4, EFER and CS.L do not go together, or have reserved bits");
  }
  if (kvmSetApicBase(vcpu, s.apic_base, true)) {
    throw new KvmError("EINVAL", ioctl, `IA32_APIC_BASE 0x${s.apic_base.toString(16)} is not legal`);
  }
  kvmUpdateCpuidRuntime(vcpu);
  ops.setIdt(vcpu, s.idt);
  ops.setGdt(vcpu, s.gdt);
  arch.cr2 = s.cr2;
  const paging = ((kvmReadCr0(vcpu) ^ s.cr0) & Cr0.PG) !== 0n;
  arch.cr3 = s.cr3;
  kvmRegisterMarkDirty(vcpu, VcpuReg.CR3);
  kvmSetCr8(vcpu, s.cr8);
  // CR0 first loses paging, so that EFER and CR0 never disagree on the way.
  if (paging && !(s.cr0 & Cr0.PG)) ops.setCr0(vcpu, s.cr0);
  ops.setEfer(vcpu, s.efer);
  ops.setCr0(vcpu, s.cr0);
  ops.setCr4(vcpu, s.cr4);
  if (updatePdptrs && isPaePaging(vcpu)) loadPdptrs(vcpu, s.cr3);
  for (const [name, seg] of SREG_ORDER) ops.setSegment(vcpu, seg, s[name]);
  kvmMakeRequest(KvmReq.TLB_FLUSH_GUEST, vcpu);
  kvmMakeRequest(KvmReq.LOAD_MMU_PGD, vcpu);
  // A vCPU that userspace reset is not halted any more.
  const reset = kvmRipRead(vcpu) === 0xfff0n && s.cs.selector === 0xf000 && s.cs.base === 0xffff0000n;
  if (kvmVcpuIsBsp(vcpu) && reset && !isProtmode(vcpu)) arch.mpState = KvmMpState.RUNNABLE;
  kvmMakeRequest(KvmReq.EVENT, vcpu);
}

/** KVM_GET_VCPU_EVENTS */
export function kvmVcpuIoctlX86GetVcpuEvents(vcpu: KvmVcpu): KvmVcpuEvents {
  const { arch } = vcpu;
  const { ops } = vcpu.module;
  const ex = arch.exception;
  const { exceptionPayloadEnabled: payload, tripleFaultEvent } = vcpu.kvm.arch;
  processNmi(vcpu);
  // Without payloads userspace takes a pending exception for an injected one, whose side effects have happened.
  if (!payload && ex.pending) kvmDeliverExceptionPayload(vcpu, ex);
  // #BP and #OF come again by themselves: RIP is still at their instruction, whose length is not part of this.
  const soft = ex.vector === ExcVector.BP || ex.vector === ExcVector.OF;
  return {
    exception: {
      injected: !soft && (payload ? ex.injected : ex.injected || ex.pending) ? 1 : 0,
      nr: ex.vector,
      has_error_code: ex.hasErrorCode ? 1 : 0,
      pending: !soft && payload && ex.pending ? 1 : 0,
      error_code: ex.errorCode,
    },
    interrupt: {
      injected: arch.interrupt.injected && !arch.interrupt.soft ? 1 : 0,
      nr: arch.interrupt.nr,
      soft: 0,
      shadow: ops.getInterruptShadow(vcpu),
    },
    nmi: { injected: arch.nmiInjected ? 1 : 0, pending: arch.nmiPending, masked: ops.getNmiMask(vcpu) ? 1 : 0 },
    sipi_vector: 0,
    flags:
      KvmVcpuEvent.VALID_NMI_PENDING |
      KvmVcpuEvent.VALID_SHADOW |
      KvmVcpuEvent.VALID_SMM |
      (payload ? KvmVcpuEvent.VALID_PAYLOAD : 0) |
      (tripleFaultEvent ? KvmVcpuEvent.VALID_TRIPLE_FAULT : 0),
    smi: { smm: 0, pending: 0, smm_inside_nmi: 0, latched_init: 0 },
    triple_fault: { pending: tripleFaultEvent && kvmTestRequest(KvmReq.TRIPLE_FAULT, vcpu) ? 1 : 0 },
    exception_has_payload: payload && ex.hasPayload ? 1 : 0,
    exception_payload: payload ? ex.payload : 0n,
  };
}

/** KVM_SET_VCPU_EVENTS. @throws KvmError EINVAL */
export function kvmVcpuIoctlX86SetVcpuEvents(vcpu: KvmVcpu, events: KvmVcpuEvents): void {
  const { arch } = vcpu;
  const { ops } = vcpu.module;
  const known =
    KvmVcpuEvent.VALID_NMI_PENDING |
    KvmVcpuEvent.VALID_SIPI_VECTOR |
    KvmVcpuEvent.VALID_SHADOW |
    KvmVcpuEvent.VALID_SMM |
    KvmVcpuEvent.VALID_PAYLOAD |
    KvmVcpuEvent.VALID_TRIPLE_FAULT;
  const fail = (why: string): never => {
    throw new KvmError("EINVAL", "KVM_SET_VCPU_EVENTS", why);
  };
  if (events.flags & ~known) fail("unknown flags");
  if (events.flags & KvmVcpuEvent.VALID_PAYLOAD && !vcpu.kvm.arch.exceptionPayloadEnabled)
    fail("payloads are not enabled");
  if (events.flags & KvmVcpuEvent.VALID_TRIPLE_FAULT && !vcpu.kvm.arch.tripleFaultEvent)
    fail("KVM_CAP_X86_TRIPLE_FAULT_EVENT is not enabled");
  const { smi } = events;
  if (events.flags & KvmVcpuEvent.VALID_SMM && smi && (smi.smm || smi.pending || smi.smm_inside_nmi))
    fail("there is no system-management mode");
  const { exception } = events;
  // Pending and payload mean something together with the flag only.
  const payload = (events.flags & KvmVcpuEvent.VALID_PAYLOAD) !== 0;
  const pending = payload && exception.pending !== 0;
  if ((exception.injected || pending) && (exception.nr > 31 || exception.nr === 2)) fail("not an exception vector");
  processNmi(vcpu);
  arch.exception = {
    pending,
    injected: exception.injected !== 0 && !pending,
    vector: exception.nr,
    hasErrorCode: exception.has_error_code !== 0 && exceptionHasErrorCode(exception.nr),
    errorCode: exception.error_code,
    hasPayload: pending && (events.exception_has_payload ?? 0) !== 0,
    payload: pending ? (events.exception_payload ?? 0n) : 0n,
  };
  arch.interrupt = {
    injected: events.interrupt.injected !== 0,
    nr: events.interrupt.nr,
    soft: events.interrupt.soft !== 0,
  };
  if (events.flags & KvmVcpuEvent.VALID_SHADOW) ops.setInterruptShadow(vcpu, events.interrupt.shadow);
  arch.nmiInjected = events.nmi.injected !== 0;
  if (events.flags & KvmVcpuEvent.VALID_NMI_PENDING) {
    arch.nmiPending = 0;
    arch.nmiQueued = events.nmi.pending;
    if (events.nmi.pending) kvmMakeRequest(KvmReq.NMI, vcpu);
  }
  ops.setNmiMask(vcpu, events.nmi.masked !== 0);
  if (events.flags & KvmVcpuEvent.VALID_SIPI_VECTOR && vcpu.apic) arch.sipiVector = events.sipi_vector;
  if (events.flags & KvmVcpuEvent.VALID_TRIPLE_FAULT) {
    if (events.triple_fault.pending) kvmMakeRequest(KvmReq.TRIPLE_FAULT, vcpu);
    else kvmClearRequest(KvmReq.TRIPLE_FAULT, vcpu);
  }
  kvmMakeRequest(KvmReq.EVENT, vcpu);
}

/** KVM_GET_DEBUGREGS */
export const kvmVcpuIoctlX86GetDebugregs = (vcpu: KvmVcpu): KvmDebugregs => ({
  db: [...vcpu.arch.db],
  dr6: vcpu.arch.dr6,
  dr7: vcpu.arch.dr7,
  flags: 0n,
});

/** KVM_SET_DEBUGREGS. @throws KvmError EINVAL */
export function kvmVcpuIoctlX86SetDebugregs(vcpu: KvmVcpu, regs: KvmDebugregs): void {
  if (regs.flags !== 0n || regs.dr6 >> 32n || regs.dr7 >> 32n) {
    throw new KvmError("EINVAL", "KVM_SET_DEBUGREGS", "flags must be 0, DR6 and DR7 have 32 bits");
  }
  vcpu.arch.db = [...regs.db];
  kvmUpdateDr0123(vcpu);
  vcpu.arch.dr6 = regs.dr6;
  vcpu.arch.dr7 = regs.dr7;
  kvmUpdateDr7(vcpu);
}

/** boot_cpu_has(X86_FEATURE_XSAVE) */
const hostHasXsave = (vcpu: KvmVcpu): boolean =>
  vcpu.module.host.processors[0].model.leaves.some((l) => l.leaf === 1 && (l.ecx >>> 26) & 1);

/** KVM_GET_XCRS: XCR0, if the host has it at all. */
export const kvmVcpuIoctlX86GetXcrs = (vcpu: KvmVcpu): KvmXcrs => ({
  flags: 0,
  xcrs: hostHasXsave(vcpu) ? [{ xcr: 0, value: vcpu.arch.xcr0 }] : [],
});

/** KVM_SET_XCRS. @throws KvmError EINVAL */
export function kvmVcpuIoctlX86SetXcrs(vcpu: KvmVcpu, xcrs: KvmXcrs): void {
  if (xcrs.flags !== 0 || xcrs.xcrs.length > KVM_MAX_XCRS || !hostHasXsave(vcpu)) {
    throw new KvmError("EINVAL", "KVM_SET_XCRS", "flags must be 0, at most 16 registers, and the host must have XSAVE");
  }
  for (const { xcr, value } of xcrs.xcrs) {
    if (xcr === 0 && kvmSetXcr(vcpu, 0, value)) {
      throw new KvmError("EINVAL", "KVM_SET_XCRS", `XCR0 0x${value.toString(16)} is not what CPUID offers`);
    }
  }
}

/**
 * Guests without "unrestricted guest" (arch/x86/kvm/vmx/vmx.c): real mode runs as virtual-8086 mode with a TSS of KVM's own,
 * protected mode without paging on an identity map, and state that VMX cannot hold is emulated.
 */
import { Seg } from "../../cpu/state";
import { CpuBased } from "../../cpu/vmx/controls";
import { Field } from "../../cpu/vmx/fields";
import { kvmEmulateInstruction } from "../emulator";
import { xferToGuestModeWorkPending } from "../entry";
import { isProtmode, kvmRegisterReadRaw, kvmRegisterWriteRaw, kvmRipRead, kvmRipWrite } from "../kvmCacheRegs";
import { kvmReadGuest, kvmSetMemoryRegion, kvmWriteGuest } from "../memslots";
import { KvmReq, kvmMakeRequest, kvmTestRequest } from "../requests";
import {
  IDENTITY_PAGETABLE_PRIVATE_MEMSLOT,
  type Kvm,
  type KvmVcpu,
  PAGE_SIZE,
  TSS_PRIVATE_MEMSLOT,
  VcpuReg,
} from "../types";
import { KvmGuestdbg, type KvmSegment } from "../uapi";
import { ExcVector, kvmQueueException } from "../x86Events";
import { kvmEmulateHaltNoskip } from "../x86Halt";
import { readSegmentFields, SEGMENT_FIELDS, segmentAccessRights, segmentFromAccessRights } from "./segments";
import { controlsClearBit, vmcsRead, vmcsRead32, vmcsWrite, vmcsWrite32 } from "./vmcs";

const RFLAGS_VM = 1n << 17n;
const RFLAGS_IOPL = 3n << 12n;
/** RMODE_GUEST_OWNED_EFLAGS_BITS: all but VM and IOPL. */
const OWNED_RFLAGS = ((1n << 64n) - 1n) & ~(RFLAGS_VM | RFLAGS_IOPL);
const CR4_VME = 1n;
const IF_TF_AC = 0x4_0300n;

/** TSS of virtual-8086 mode: base, redirection bitmap, I/O bitmap, and a byte of ones (RMODE_TSS_SIZE). */
const TSS_BASE_SIZE = 0x68;
const TSS_REDIRECTION_SIZE = 32;
const TSS_IOPB_OFFSET = 0x66;
const RMODE_TSS_SIZE = TSS_BASE_SIZE + TSS_REDIRECTION_SIZE + 65536 / 8 + 1;
const TSS_PAGES = 3;
const BUSY_TSS32 = 0x8b;

/** Order in which segments are changed over. */
const DATA_AND_CODE = [Seg.CS, Seg.SS, Seg.ES, Seg.DS, Seg.FS, Seg.GS] as const;

const noSegment = (): KvmSegment => segmentFromAccessRights(0, 0n, 0xffff, 0x93);

/** vmx->rmode */
export interface RmodeState {
  vm86Active: boolean;
  saveRflags: bigint;
  /** Segments as the guest has them, by number. */
  segs: KvmSegment[];
}
/** State of a vCPU before its first real mode. */
export const newRmodeState = (): RmodeState => ({
  vm86Active: false,
  saveRflags: 0n,
  segs: Array.from({ length: 8 }, noSegment),
});

// --- memory of the VM -------------------------------------------------------------------------------------------------

/** A private slot of fresh host memory, unless the VM has it already. @returns whether it is new */
function privateSlot(kvm: Kvm, slot: number, address: number, pages: number): boolean {
  const kernelPage = kvm.module.host.allocatePages(pages);
  kvmSetMemoryRegion(
    kvm,
    { slot, flags: 0, guest_phys_addr: address, memory_size: pages * PAGE_SIZE, userspace_addr: 0 },
    kernelPage,
  );
  return true;
}

/** init_rmode_tss: no redirection of interrupts, no port allowed beyond the map's end. */
export function initRmodeTss(kvm: Kvm, address: number): void {
  privateSlot(kvm, TSS_PRIVATE_MEMSLOT, address, TSS_PAGES);
  const offset = new Uint8Array(2);
  new DataView(offset.buffer).setUint16(0, TSS_BASE_SIZE + TSS_REDIRECTION_SIZE, true);
  kvmWriteGuest(kvm, address + TSS_IOPB_OFFSET, offset);
  kvmWriteGuest(kvm, address + RMODE_TSS_SIZE - 1, new Uint8Array([0xff]));
}

/** init_rmode_identity_map: 4-MByte pages for guests that run without paging under EPT. */
export function initRmodeIdentityMap(kvm: Kvm): void {
  if (kvm.arch.identityMapReady) return;
  const address = kvm.arch.identityMapAddr;
  privateSlot(kvm, IDENTITY_PAGETABLE_PRIVATE_MEMSLOT, address, 1);
  const table = new Uint8Array(PAGE_SIZE);
  const view = new DataView(table.buffer);
  // Present, writable, user, accessed, dirty, page size.
  for (let i = 0; i < 1024; i++) view.setUint32(i * 4, ((i << 22) | 0xe7) >>> 0, true);
  kvmWriteGuest(kvm, address, table);
  kvm.arch.identityMapReady = true;
}

// --- segments -----------------------------------------------------------------------------------------------------------

function writeSegment(vcpu: KvmVcpu, seg: number, value: KvmSegment): void {
  const f = SEGMENT_FIELDS[seg];
  vmcsWrite32(vcpu, f.selector, value.selector);
  vmcsWrite(vcpu, f.base, value.base);
  vmcsWrite32(vcpu, f.limit, value.limit);
  const ar = segmentAccessRights(value);
  vmcsWrite32(vcpu, f.ar, ar);
  if (seg === Seg.CS) vcpu.vmx.csAr = ar;
}

/** vmx_get_segment in virtual-8086 mode: the guest's own view, with what its MOVs to segment registers changed. */
export function rmodeGetSegment(vcpu: KvmVcpu, seg: number): KvmSegment {
  const saved = vcpu.vmx.rmode.segs[seg];
  const selector = vmcsRead32(vcpu, SEGMENT_FIELDS[seg].selector);
  if (seg === Seg.TR || saved.selector === selector) return { ...saved };
  return { ...saved, selector, base: vmcsRead(vcpu, SEGMENT_FIELDS[seg].base) };
}

/** __vmx_set_segment in virtual-8086 mode. */
export function rmodeSetSegment(vcpu: KvmVcpu, seg: number, value: KvmSegment): void {
  vcpu.vmx.rmode.segs[seg] = { ...value };
  if (seg === Seg.TR) vmcsWrite32(vcpu, Field.GUEST_TR_SELECTOR, value.selector);
  else if (value.s) fixRmodeSeg(vcpu, seg, value);
}

const asVm86 = (seg: number, value: KvmSegment): KvmSegment => ({
  ...value,
  dpl: 3,
  type: seg === Seg.CS ? 3 : value.type,
});

/** fix_rmode_seg: what VM entry wants of virtual-8086 segments; where that does not do, the guest is emulated. */
const fixRmodeSeg = (vcpu: KvmVcpu, seg: number, value: KvmSegment): void =>
  writeSegment(vcpu, seg, asVm86(seg, value));

/** enter_rmode */
export function enterRmode(vcpu: KvmVcpu): void {
  const { rmode } = vcpu.vmx;
  for (const seg of [Seg.TR, ...DATA_AND_CODE]) rmode.segs[seg] = readSegmentFields(vcpu, seg);
  rmode.vm86Active = true;
  vmcsWrite(vcpu, Field.GUEST_TR_BASE, BigInt(vcpu.kvm.arch.tssAddr));
  vmcsWrite32(vcpu, Field.GUEST_TR_LIMIT, RMODE_TSS_SIZE - 1);
  vmcsWrite32(vcpu, Field.GUEST_TR_AR_BYTES, BUSY_TSS32);
  const flags = vmcsRead(vcpu, Field.GUEST_RFLAGS);
  rmode.saveRflags = flags;
  vmcsWrite(vcpu, Field.GUEST_RFLAGS, flags | RFLAGS_IOPL | RFLAGS_VM);
  vmcsWrite(vcpu, Field.GUEST_CR4, vmcsRead(vcpu, Field.GUEST_CR4) | CR4_VME);
  vcpu.module.ops.updateExceptionBitmap(vcpu);
  for (const seg of DATA_AND_CODE) fixRmodeSeg(vcpu, seg, rmode.segs[seg]);
}

/** enter_pmode */
export function enterPmode(vcpu: KvmVcpu): void {
  const { rmode } = vcpu.vmx;
  for (const seg of DATA_AND_CODE) rmode.segs[seg] = rmodeGetSegment(vcpu, seg);
  rmode.vm86Active = false;
  writeSegment(vcpu, Seg.TR, rmode.segs[Seg.TR]);
  const flags = vmcsRead(vcpu, Field.GUEST_RFLAGS);
  vmcsWrite(vcpu, Field.GUEST_RFLAGS, (flags & OWNED_RFLAGS) | (rmode.saveRflags & ~OWNED_RFLAGS));
  const cr4 = vmcsRead(vcpu, Field.GUEST_CR4) & ~CR4_VME;
  vmcsWrite(vcpu, Field.GUEST_CR4, cr4 | (vmcsRead(vcpu, Field.CR4_READ_SHADOW) & CR4_VME));
  vcpu.module.ops.updateExceptionBitmap(vcpu);
  for (const seg of DATA_AND_CODE) writeSegment(vcpu, seg, rmode.segs[seg]);
}

/** RFLAGS as the guest has them, from those of the VMCS. */
export const rmodeReadRflags = (vcpu: KvmVcpu, flags: bigint): bigint =>
  (flags & OWNED_RFLAGS) | (vcpu.vmx.rmode.saveRflags & ~OWNED_RFLAGS);

/** RFLAGS for the VMCS. */
export function rmodeWriteRflags(vcpu: KvmVcpu, flags: bigint): bigint {
  vcpu.vmx.rmode.saveRflags = flags;
  return flags | RFLAGS_IOPL | RFLAGS_VM;
}

// --- state that VM entry takes ------------------------------------------------------------------------------------------

function rmodeSegmentValid(vcpu: KvmVcpu, seg: number): boolean {
  const s = asVm86(seg, vcpu.module.ops.getSegment(vcpu, seg));
  return s.base === BigInt(s.selector << 4) && s.limit === 0xffff && segmentAccessRights(s) === 0xf3;
}

const rpl = (s: KvmSegment): number => s.selector & 3;

function codeSegmentValid(cs: KvmSegment): boolean {
  if (cs.unusable || (cs.type & 9) !== 9 || !cs.s || !cs.present) return false;
  return cs.type & 4 ? cs.dpl <= rpl(cs) : cs.dpl === rpl(cs);
}

const stackSegmentValid = (ss: KvmSegment): boolean =>
  ss.unusable !== 0 || ((ss.type === 3 || ss.type === 7) && ss.s !== 0 && ss.dpl === rpl(ss) && ss.present !== 0);

function dataSegmentValid(s: KvmSegment): boolean {
  if (s.unusable) return true;
  if (!s.s || !s.present) return false;
  return (s.type & 12) === 12 || s.dpl >= rpl(s);
}

const trValid = (tr: KvmSegment): boolean =>
  tr.unusable === 0 && (tr.selector & 4) === 0 && (tr.type === 3 || tr.type === 11) && tr.present !== 0;
const ldtrValid = (ldtr: KvmSegment): boolean =>
  ldtr.unusable !== 0 || ((ldtr.selector & 4) === 0 && ldtr.type === 2 && ldtr.present !== 0);

/** vmx_guest_state_valid: VM entry would take the guest's segments as they are. */
function vmxGuestStateValid(vcpu: KvmVcpu): boolean {
  if (vcpu.module.features.unrestrictedGuest) return true;
  const { ops } = vcpu.module;
  if (!isProtmode(vcpu) || ops.getRflags(vcpu) & RFLAGS_VM) {
    return DATA_AND_CODE.every((seg) => rmodeSegmentValid(vcpu, seg));
  }
  const get = (seg: number) => ops.getSegment(vcpu, seg);
  const cs = get(Seg.CS);
  const ss = get(Seg.SS);
  return (
    rpl(cs) === rpl(ss) &&
    codeSegmentValid(cs) &&
    stackSegmentValid(ss) &&
    [Seg.DS, Seg.ES, Seg.FS, Seg.GS].every((seg) => dataSegmentValid(get(seg))) &&
    trValid(get(Seg.TR)) &&
    ldtrValid(get(Seg.LDTR))
  );
}

/** vmx_emulation_required, kept in vmx->emulation_required. */
export function updateEmulationRequired(vcpu: KvmVcpu): void {
  vcpu.vmx.emulationRequired = vcpu.module.params.emulate_invalid_guest_state && !vmxGuestStateValid(vcpu);
}

// --- exits ----------------------------------------------------------------------------------------------------------------

/** Instructions emulated in one go before pending work is looked at. */
const EMULATION_BATCH = 130;

/** handle_invalid_guest_state: the emulator runs the guest until VM entry takes its state. */
export function handleInvalidGuestState(vcpu: KvmVcpu): number {
  const { vmx, arch } = vcpu;
  const window = (vmx.controls.exec & CpuBased.INTR_WINDOW_EXITING) !== 0;
  for (let count = 0; vmx.emulationRequired && count < EMULATION_BATCH; count++) {
    if (window && vcpu.module.ops.interruptAllowed(vcpu)) {
      controlsClearBit(vcpu, "exec", CpuBased.INTR_WINDOW_EXITING);
      kvmMakeRequest(KvmReq.EVENT, vcpu);
      vcpu.stat.irq_window_exits++;
      return 1;
    }
    if (kvmTestRequest(KvmReq.EVENT, vcpu)) return 1;
    const r = kvmEmulateInstruction(vcpu, 0);
    if (r <= 0) return r;
    if (arch.haltRequest) {
      arch.haltRequest = false;
      return kvmEmulateHaltNoskip(vcpu);
    }
    updateEmulationRequired(vcpu);
    if (xferToGuestModeWorkPending(vcpu)) return 1;
  }
  return 1;
}

/** rmode_exception: exceptions in virtual-8086 mode that are the guest's real-mode ones. */
export function isRmodeException(vcpu: KvmVcpu, vector: number): boolean {
  const { guestDebug } = vcpu.arch;
  switch (vector) {
    case ExcVector.BP:
      vcpu.arch.eventExitInstLen = vmcsRead32(vcpu, Field.VM_EXIT_INSTRUCTION_LEN);
      if (guestDebug & KvmGuestdbg.USE_SW_BP) return false;
      return !(guestDebug & (KvmGuestdbg.SINGLESTEP | KvmGuestdbg.USE_HW_BP));
    case ExcVector.DB:
      return !(guestDebug & (KvmGuestdbg.SINGLESTEP | KvmGuestdbg.USE_HW_BP));
    case ExcVector.DE:
    case ExcVector.OF:
    case ExcVector.BR:
    case ExcVector.UD:
    case ExcVector.DF:
    case ExcVector.SS:
    case ExcVector.GP:
    case ExcVector.MF:
      return true;
    default:
      return false;
  }
}

/** handle_rmode_exception: privileged instructions fault in virtual-8086 mode and are emulated. */
export function handleRmodeException(vcpu: KvmVcpu, vector: number, errorCode: number): number {
  if ((vector === ExcVector.GP || vector === ExcVector.SS) && errorCode === 0) {
    const r = kvmEmulateInstruction(vcpu, 0);
    if (r <= 0) return r;
    if (vcpu.arch.haltRequest) {
      vcpu.arch.haltRequest = false;
      return kvmEmulateHaltNoskip(vcpu);
    }
    updateEmulationRequired(vcpu);
    return 1;
  }
  kvmQueueException(vcpu, vector);
  return 1;
}

/**
 * kvm_inject_realmode_interrupt: through the interrupt table, as the processor does in real mode (SDM 3B 20.1.4).
 * @param length bytes of the instruction behind a software event
 */
export function kvmInjectRealmodeInterrupt(vcpu: KvmVcpu, vector: number, length: number): void {
  const { ops } = vcpu.module;
  const target = new Uint8Array(4);
  const table = ops.getIdt(vcpu);
  if (!kvmReadGuest(vcpu.kvm, Number(table.base) + vector * 4, target)) {
    kvmMakeRequest(KvmReq.TRIPLE_FAULT, vcpu);
    return;
  }
  const flags = ops.getRflags(vcpu);
  const cs = ops.getSegment(vcpu, Seg.CS);
  const ss = ops.getSegment(vcpu, Seg.SS);
  const rip = (kvmRipRead(vcpu) + BigInt(length)) & 0xffffn;
  let rsp = kvmRegisterReadRaw(vcpu, VcpuReg.RSP);
  for (const value of [Number(flags & 0xffffn), cs.selector, Number(rip)]) {
    const sp = Number((rsp - 2n) & 0xffffn);
    rsp = (rsp & ~0xffffn) | BigInt(sp);
    kvmWriteGuest(vcpu.kvm, Number(ss.base) + sp, new Uint8Array([value & 0xff, value >> 8]));
  }
  kvmRegisterWriteRaw(vcpu, VcpuReg.RSP, rsp);
  const view = new DataView(target.buffer);
  const selector = view.getUint16(2, true);
  ops.setSegment(vcpu, Seg.CS, { ...cs, selector, base: BigInt(selector << 4) });
  kvmRipWrite(vcpu, BigInt(view.getUint16(0, true)));
  ops.setRflags(vcpu, flags & ~IF_TF_AC);
  ops.setInterruptShadow(vcpu, 0);
  // The event is in the guest: nothing of it is to be injected again.
  vcpu.arch.interrupt.injected = false;
  vcpu.arch.exception.injected = false;
  vcpu.arch.nmiInjected = false;
}

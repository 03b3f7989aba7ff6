/** Checks on guest RIP, RFLAGS, non-register state and PDPTEs. SDM 3C 27.3.1.4 to 27.3.1.6. */
import { PinBased, SecondaryExec } from "../controls";
import { Field } from "../fields";
import { RevisionWord, SHADOW_VMCS, VMCS_REVISION } from "../vmcs";
import { checks, type EntryCheck, type EntryState, hex, Reads, show } from "./check";

const flow = checks("guest", Reads.RIP | Reads.SEGMENTS | Reads.REGISTERS | Reads.CONTROLS | Reads.EVENT);
const state = checks(
  "guest",
  Reads.STATE | Reads.RIP | Reads.SEGMENTS | Reads.REGISTERS | Reads.CONTROLS | Reads.EVENT,
);

const IF = 1 << 9;
const TF = 1 << 8;
const STI = 1;
const MOV_SS = 2;

const flags = (v: EntryState) => v.u32(Field.GUEST_RFLAGS);
const blocking = (v: EntryState) => v.u32(Field.GUEST_INTERRUPTIBILITY_INFO);
const activity = (v: EntryState) => v.u32(Field.GUEST_ACTIVITY_STATE);
const code64 = (v: EntryState) => v.ia32e && (v.u32(Field.GUEST_CS_AR_BYTES) & (1 << 13)) !== 0;

/**
 * Bits 63:N are identical, N being the linear-address bits. The address behind the lower half's last byte passes, where
 * the guest may have come by itself: fetching there is what faults.
 */
function ripExtended(v: EntryState): boolean {
  const hi = v.hi(Field.GUEST_RIP);
  return hi >> (v.capabilities.linearBits - 32) === hi >> 31;
}

export const guestFlowChecks: readonly EntryCheck[] = [
  flow(
    "guest.rip",
    "3C 27.3.1.4",
    (v) => (code64(v) ? ripExtended(v) : v.hi(Field.GUEST_RIP) === 0),
    (v) =>
      `${show(v, Field.GUEST_RIP)}: bits ${code64(v) ? `63:${v.capabilities.linearBits} must be identical in 64-bit mode` : "63:32 must be 0 outside 64-bit mode"}`,
  ),
  flow(
    "guest.rflags.reserved",
    "3C 27.3.1.4",
    (v) => (flags(v) & 0xffc0_802a) === 2 && v.hi(Field.GUEST_RFLAGS) === 0,
    (v) => `${show(v, Field.GUEST_RFLAGS)}: bit 1 must be 1, bits 3, 5, 15 and 63:22 must be 0`,
  ),
  flow(
    "guest.rflags.vm",
    "3C 27.3.1.4",
    (v) => !v.v8086 || (!v.ia32e && (v.u32(Field.GUEST_CR0) & 1) !== 0),
    (v) => `${show(v, Field.GUEST_RFLAGS)}: VM (bit 17) must be 0 in IA-32e mode and with CR0.PE 0`,
  ),
  flow(
    "guest.rflags.if",
    "3C 27.3.1.4",
    (v) => v.eventType !== 0 || (flags(v) & IF) !== 0,
    (v) => `${show(v, Field.GUEST_RFLAGS)}: IF (bit 9) must be 1 when an external interrupt is injected`,
  ),
];

/** Which events may be injected in which activity state. */
function injectionFitsActivity(v: EntryState): boolean {
  const type = v.eventType;
  if (type < 0) return true;
  const vector = v.u32(Field.VM_ENTRY_INTR_INFO_FIELD) & 0xff;
  switch (activity(v)) {
    case 1:
      return type === 0 || type === 2 || (type === 3 && (vector === 1 || vector === 18)) || type === 7;
    case 2:
      return type === 2 || (type === 3 && vector === 18);
    case 3:
      return false;
    default:
      return true;
  }
}

/** BS must tell whether a single step is pending, where the instruction before cannot be looked at any more. */
function singleStepOk(v: EntryState): boolean {
  if ((blocking(v) & (STI | MOV_SS)) === 0 && activity(v) !== 1) return true;
  const stepping = (flags(v) & TF) !== 0 && (v.u32(Field.GUEST_IA32_DEBUGCTL) & 2) === 0;
  return ((v.u32(Field.GUEST_PENDING_DBG_EXCEPTIONS) & (1 << 14)) !== 0) === stepping;
}

const linkIsNone = (v: EntryState) =>
  v.hi(Field.VMCS_LINK_POINTER) === -1 && v.u32(Field.VMCS_LINK_POINTER) === 0xffff_ffff;

function linkedRevision(v: EntryState): number {
  const at = v.memory.hostOffset(v.address(Field.VMCS_LINK_POINTER));
  return at < 0 ? 0xffff_ffff : v.memory.u32[(at >> 2) + RevisionWord];
}

/** The linked VMCS is a shadow exactly with VMCS shadowing. */
const neededRevision = (v: EntryState): number =>
  VMCS_REVISION + (v.secondary(SecondaryExec.SHADOW_VMCS) ? SHADOW_VMCS : 0);

export const guestStateChecks: readonly EntryCheck[] = [
  state(
    "guest.activity.supported",
    "3C 27.3.1.5",
    (v) => activity(v) <= 1 || activity(v) === 3,
    (v) => `${show(v, Field.GUEST_ACTIVITY_STATE)} must be 0 (active), 1 (HLT) or 3 (wait-for-SIPI)`,
  ),
  state(
    "guest.activity.hlt-dpl",
    "3C 27.3.1.5",
    (v) => activity(v) !== 1 || (v.u32(Field.GUEST_SS_AR_BYTES) & 0x60) === 0,
    (v) => `${show(v, Field.GUEST_SS_AR_BYTES)}: DPL must be 0 in the HLT state`,
  ),
  state(
    "guest.activity.blocking",
    "3C 27.3.1.5",
    (v) => (blocking(v) & (STI | MOV_SS)) === 0 || activity(v) === 0,
    (v) => `${show(v, Field.GUEST_ACTIVITY_STATE)} must be 0 (active) with blocking by STI or MOV SS`,
  ),
  state(
    "guest.activity.injection",
    "3C 27.3.1.5",
    injectionFitsActivity,
    (v) => `${show(v, Field.VM_ENTRY_INTR_INFO_FIELD)} cannot be injected in activity state ${activity(v)}`,
  ),
  state(
    "guest.interruptibility.reserved",
    "3C 27.3.1.5",
    (v) => blocking(v) >>> 4 === 0,
    (v) => `${show(v, Field.GUEST_INTERRUPTIBILITY_INFO)}: bits 31:4 must be 0`,
  ),
  state(
    "guest.interruptibility.sti-and-mov-ss",
    "3C 27.3.1.5",
    (v) => (blocking(v) & (STI | MOV_SS)) !== (STI | MOV_SS),
    (v) => `${show(v, Field.GUEST_INTERRUPTIBILITY_INFO)}: bits 0 (STI) and 1 (MOV SS) must not both be 1`,
  ),
  state(
    "guest.interruptibility.sti-without-if",
    "3C 27.3.1.5",
    (v) => (blocking(v) & STI) === 0 || (flags(v) & IF) !== 0,
    (v) => `${show(v, Field.GUEST_INTERRUPTIBILITY_INFO)}: blocking by STI needs IF in ${show(v, Field.GUEST_RFLAGS)}`,
  ),
  state(
    "guest.interruptibility.interrupt",
    "3C 27.3.1.5",
    (v) => v.eventType !== 0 || (blocking(v) & (STI | MOV_SS)) === 0,
    (v) =>
      `${show(v, Field.GUEST_INTERRUPTIBILITY_INFO)}: bits 0 and 1 must be 0 when an external interrupt is injected`,
  ),
  state(
    "guest.interruptibility.nmi-mov-ss",
    "3C 27.3.1.5",
    (v) => v.eventType !== 2 || (blocking(v) & MOV_SS) === 0,
    (v) => `${show(v, Field.GUEST_INTERRUPTIBILITY_INFO)}: bit 1 (MOV SS) must be 0 when an NMI is injected`,
  ),
  state(
    "guest.interruptibility.smi",
    "3C 27.3.1.5",
    (v) => (blocking(v) & 4) === 0,
    (v) => `${show(v, Field.GUEST_INTERRUPTIBILITY_INFO)}: bit 2 (SMI) must be 0 outside SMM`,
  ),
  state(
    "guest.interruptibility.virtual-nmi",
    "3C 27.3.1.5",
    (v) => v.eventType !== 2 || !v.pin(PinBased.VIRTUAL_NMIS) || (blocking(v) & 8) === 0,
    (v) =>
      `${show(v, Field.GUEST_INTERRUPTIBILITY_INFO)}: bit 3 (NMI) must be 0 when an NMI is injected with virtual NMIs`,
  ),
  state(
    "guest.pending-debug.reserved",
    "3C 27.3.1.5",
    (v) =>
      (v.u32(Field.GUEST_PENDING_DBG_EXCEPTIONS) & 0xffff_aff0) === 0 && v.hi(Field.GUEST_PENDING_DBG_EXCEPTIONS) === 0,
    (v) => `${show(v, Field.GUEST_PENDING_DBG_EXCEPTIONS)}: only bits 3:0, 12 and 14 may be 1`,
  ),
  state(
    "guest.pending-debug.single-step",
    "3C 27.3.1.5",
    singleStepOk,
    (v) =>
      `${show(v, Field.GUEST_PENDING_DBG_EXCEPTIONS)}: with blocking by STI or MOV SS, or in the HLT state, BS (bit 14) must be TF without BTF (${show(v, Field.GUEST_RFLAGS)})`,
  ),
  state(
    "guest.link-pointer.address",
    "3C 27.3.1.5",
    (v) => linkIsNone(v) || v.pageAddressOk(Field.VMCS_LINK_POINTER),
    (v) =>
      `${show(v, Field.VMCS_LINK_POINTER)} must be all ones, or 4-KByte aligned and within ${v.capabilities.physicalBits} address bits`,
    { qualification: 4 },
  ),
  state(
    "guest.link-pointer.revision",
    "3C 27.3.1.5",
    (v) => linkIsNone(v) || !v.pageAddressOk(Field.VMCS_LINK_POINTER) || linkedRevision(v) === neededRevision(v),
    (v) =>
      `${show(v, Field.VMCS_LINK_POINTER)} leads to revision ${hex(linkedRevision(v))}, which must be ${hex(neededRevision(v))} (bit 31 as SHADOW_VMCS)`,
    { qualification: 4, reads: Reads.STATE | Reads.CONTROLS | Reads.OUTSIDE },
  ),
  state(
    "guest.link-pointer.current",
    "3C 27.3.1.5",
    (v) => linkIsNone(v) || v.memory.hostOffset(v.address(Field.VMCS_LINK_POINTER)) !== v.vmcs.at * 4,
    (v) => `${show(v, Field.VMCS_LINK_POINTER)} must not be the current VMCS`,
    { qualification: 4 },
  ),
];

const paePaging = (v: EntryState): boolean =>
  !v.ia32e && v.u32(Field.GUEST_CR0) >>> 31 === 1 && (v.u32(Field.GUEST_CR4) & (1 << 5)) !== 0;

const pdpteOk = (lo: number, hi: number, v: EntryState): boolean =>
  (lo & 1) === 0 || ((lo & 0x1e6) === 0 && v.capabilities.physicalOk(hi));

const fromField = (field: Field, index: number): EntryCheck =>
  checks("guest", Reads.PDPTES | Reads.REGISTERS | Reads.CONTROLS)(
    `guest.pdpte${index}.field`,
    "3C 27.3.1.6",
    (v) => !paePaging(v) || !v.secondary(SecondaryExec.ENABLE_EPT) || pdpteOk(v.u32(field), v.hi(field), v),
    (v) =>
      `${show(v, field)}: bits 2:1, 8:5 and those above ${v.capabilities.physicalBits - 1} must be 0 in a present PDPTE`,
    { qualification: 2 },
  );

/** The four PDPTEs in memory at CR3, for PAE paging without EPT. */
export function pdpteInMemory(v: EntryState, index: number): readonly [lo: number, hi: number] {
  const address = v.address(Field.GUEST_CR3);
  const at = v.memory.hostOffset(address - (address % 32) + index * 8);
  return at < 0 ? [-1, -1] : [v.memory.i32[at >> 2], v.memory.i32[(at >> 2) + 1]];
}

const fromMemory = (index: number): EntryCheck =>
  checks("guest", Reads.OUTSIDE)(
    `guest.pdpte${index}.memory`,
    "3C 27.3.1.6",
    (v) => {
      if (!paePaging(v) || v.secondary(SecondaryExec.ENABLE_EPT)) return true;
      const [lo, hi] = pdpteInMemory(v, index);
      return pdpteOk(lo, hi, v);
    },
    (v) =>
      `PDPTE${index} at ${show(v, Field.GUEST_CR3)}: bits 2:1, 8:5 and those above ${v.capabilities.physicalBits - 1} must be 0 in a present PDPTE`,
    { qualification: 2 },
  );

export const guestPdpteChecks: readonly EntryCheck[] = [
  fromField(Field.GUEST_PDPTR0, 0),
  fromField(Field.GUEST_PDPTR1, 1),
  fromField(Field.GUEST_PDPTR2, 2),
  fromField(Field.GUEST_PDPTR3, 3),
  fromMemory(0),
  fromMemory(1),
  fromMemory(2),
  fromMemory(3),
];

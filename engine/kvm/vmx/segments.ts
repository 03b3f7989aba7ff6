/** Guest segments and descriptor tables in the VMCS (kvm_vmx_segment_fields). */
import { Seg } from "../../cpu/state";
import { Field } from "../../cpu/vmx/fields";
import type { KvmVcpu } from "../types";
import type { KvmSegment } from "../uapi";
import { rmodeGetSegment, rmodeSetSegment, updateEmulationRequired } from "./rmode";
import { vmcsRead, vmcsRead32, vmcsWrite, vmcsWrite32 } from "./vmcs";

/** Fields of each segment register, in the order of Seg. */
// biome-ignore format: a table
export const SEGMENT_FIELDS = [
  { selector: Field.GUEST_ES_SELECTOR, base: Field.GUEST_ES_BASE, limit: Field.GUEST_ES_LIMIT, ar: Field.GUEST_ES_AR_BYTES },
  { selector: Field.GUEST_CS_SELECTOR, base: Field.GUEST_CS_BASE, limit: Field.GUEST_CS_LIMIT, ar: Field.GUEST_CS_AR_BYTES },
  { selector: Field.GUEST_SS_SELECTOR, base: Field.GUEST_SS_BASE, limit: Field.GUEST_SS_LIMIT, ar: Field.GUEST_SS_AR_BYTES },
  { selector: Field.GUEST_DS_SELECTOR, base: Field.GUEST_DS_BASE, limit: Field.GUEST_DS_LIMIT, ar: Field.GUEST_DS_AR_BYTES },
  { selector: Field.GUEST_FS_SELECTOR, base: Field.GUEST_FS_BASE, limit: Field.GUEST_FS_LIMIT, ar: Field.GUEST_FS_AR_BYTES },
  { selector: Field.GUEST_GS_SELECTOR, base: Field.GUEST_GS_BASE, limit: Field.GUEST_GS_LIMIT, ar: Field.GUEST_GS_AR_BYTES },
  { selector: Field.GUEST_LDTR_SELECTOR, base: Field.GUEST_LDTR_BASE, limit: Field.GUEST_LDTR_LIMIT, ar: Field.GUEST_LDTR_AR_BYTES },
  { selector: Field.GUEST_TR_SELECTOR, base: Field.GUEST_TR_BASE, limit: Field.GUEST_TR_LIMIT, ar: Field.GUEST_TR_AR_BYTES },
] as const;

const AR_UNUSABLE = 1 << 16;

/** vmx_segment_access_rights */
export function segmentAccessRights(s: KvmSegment): number {
  if (s.unusable || !s.present) return AR_UNUSABLE;
  return (
    s.type | (s.s << 4) | (s.dpl << 5) | (s.present << 7) | (s.avl << 12) | (s.l << 13) | (s.db << 14) | (s.g << 15)
  );
}

/** The parts of an access-rights word. A segment that is not usable counts as not present. */
export function segmentFromAccessRights(selector: number, base: bigint, limit: number, ar: number): KvmSegment {
  const unusable = (ar >>> 16) & 1;
  return {
    selector,
    base,
    limit,
    type: ar & 15,
    s: (ar >> 4) & 1,
    dpl: (ar >> 5) & 3,
    present: unusable ? 0 : 1,
    avl: (ar >> 12) & 1,
    l: (ar >> 13) & 1,
    db: (ar >> 14) & 1,
    g: (ar >> 15) & 1,
    unusable,
  };
}

const inVm86 = (vcpu: KvmVcpu, seg: number): boolean => vcpu.vmx.rmode.vm86Active && seg !== Seg.LDTR;

/** vmx_get_segment_base */
export const vmxGetSegmentBase = (vcpu: KvmVcpu, seg: number): bigint =>
  inVm86(vcpu, seg) ? rmodeGetSegment(vcpu, seg).base : vmcsRead(vcpu, SEGMENT_FIELDS[seg].base);

/** vmx_get_segment */
export const vmxGetSegment = (vcpu: KvmVcpu, seg: number): KvmSegment =>
  inVm86(vcpu, seg) ? rmodeGetSegment(vcpu, seg) : readSegmentFields(vcpu, seg);

/** A segment as the VMCS holds it. */
export function readSegmentFields(vcpu: KvmVcpu, seg: number): KvmSegment {
  const f = SEGMENT_FIELDS[seg];
  return segmentFromAccessRights(
    vmcsRead32(vcpu, f.selector),
    vmcsRead(vcpu, f.base),
    vmcsRead32(vcpu, f.limit),
    vmcsRead32(vcpu, f.ar),
  );
}

/** __vmx_set_segment. With unrestricted guest all but LDTR must have the accessed bit, as the entry checks want it. */
export function vmxSetSegment(vcpu: KvmVcpu, seg: number, value: KvmSegment): void {
  if (inVm86(vcpu, seg)) rmodeSetSegment(vcpu, seg, value);
  else writeSegmentFields(vcpu, seg, value);
  updateEmulationRequired(vcpu);
}

function writeSegmentFields(vcpu: KvmVcpu, seg: number, value: KvmSegment): void {
  const f = SEGMENT_FIELDS[seg];
  vmcsWrite(vcpu, f.base, value.base);
  vmcsWrite32(vcpu, f.limit, value.limit);
  vmcsWrite32(vcpu, f.selector, value.selector);
  const accessed = vcpu.module.features.unrestrictedGuest && seg !== Seg.LDTR;
  const ar = segmentAccessRights(accessed ? { ...value, type: value.type | 1 } : value);
  vmcsWrite32(vcpu, f.ar, ar);
  if (seg === Seg.CS) vcpu.vmx.csAr = ar;
}

/** Access rights of CS, read once between two exits. */
function csAccessRights(vcpu: KvmVcpu): number {
  if (vcpu.vmx.csAr < 0) vcpu.vmx.csAr = vmcsRead32(vcpu, Field.GUEST_CS_AR_BYTES);
  return vcpu.vmx.csAr;
}

/** vmx_get_cs_db_l_bits */
export function vmxGetCsDbLBits(vcpu: KvmVcpu): { db: number; l: number } {
  const ar = csAccessRights(vcpu);
  return { db: (ar >> 14) & 1, l: (ar >> 13) & 1 };
}

/** vmx_get_cpl: DPL of SS. */
export const vmxGetCpl = (vcpu: KvmVcpu): number =>
  vcpu.vmx.rmode.vm86Active ? 0 : (vmcsRead32(vcpu, Field.GUEST_SS_AR_BYTES) >> 5) & 3;

/** seg_setup: flat real-mode data segment; CS is set by the reset. */
export function segSetup(vcpu: KvmVcpu, seg: number): void {
  const f = SEGMENT_FIELDS[seg];
  vmcsWrite32(vcpu, f.selector, 0);
  vmcsWrite(vcpu, f.base, 0n);
  vmcsWrite32(vcpu, f.limit, 0xffff);
  const ar = seg === Seg.CS ? 0x9b : 0x93;
  vmcsWrite32(vcpu, f.ar, ar);
  if (seg === Seg.CS) vcpu.vmx.csAr = ar;
}

/** vmx_get_idt, and below it its kin for both descriptor tables. */
export const vmxGetIdt = (vcpu: KvmVcpu) => ({
  base: vmcsRead(vcpu, Field.GUEST_IDTR_BASE),
  limit: vmcsRead32(vcpu, Field.GUEST_IDTR_LIMIT),
});
export function vmxSetIdt(vcpu: KvmVcpu, table: { base: bigint; limit: number }): void {
  vmcsWrite(vcpu, Field.GUEST_IDTR_BASE, table.base);
  vmcsWrite32(vcpu, Field.GUEST_IDTR_LIMIT, table.limit);
}
export const vmxGetGdt = (vcpu: KvmVcpu) => ({
  base: vmcsRead(vcpu, Field.GUEST_GDTR_BASE),
  limit: vmcsRead32(vcpu, Field.GUEST_GDTR_LIMIT),
});
export function vmxSetGdt(vcpu: KvmVcpu, table: { base: bigint; limit: number }): void {
  vmcsWrite(vcpu, Field.GUEST_GDTR_BASE, table.base);
  vmcsWrite32(vcpu, Field.GUEST_GDTR_LIMIT, table.limit);
}

/** Checks on guest control registers, debug registers and MSRs. SDM 3C 27.3.1.1. */
import { VmEntryControl } from "../controls";
import { Field } from "../fields";
import { checks, type EntryCheck, hex, Reads, show } from "./check";
import { patOk } from "./pat";

const check = checks("guest", Reads.REGISTERS | Reads.CONTROLS);
const SECTION = "3C 27.3.1.1";
const PE = 1;
const PG = 0x8000_0000;
const PAE = 1 << 5;
const PCIDE = 1 << 17;
/** IA32_DEBUGCTL bits this processor has: LBR and BTF (SDM 3B 18.4.1). */
const DEBUGCTL_BITS = 3;

const canonical = (id: string, field: Field): EntryCheck =>
  check(
    id,
    SECTION,
    (v) => v.canonical(field),
    (v) => `${show(v, field)} must be canonical (${v.capabilities.linearBits}-bit linear addresses)`,
  );

export const guestRegisterChecks: readonly EntryCheck[] = [
  check(
    "guest.cr0.fixed",
    SECTION,
    (v) => v.capabilities.cr0Allowed(v.u32(Field.GUEST_CR0), v.hi(Field.GUEST_CR0), v.unrestricted),
    (v) =>
      `${show(v, Field.GUEST_CR0)} must have ${hex(v.unrestricted ? v.capabilities.cr0Fixed0 & ~(PE | PG) : v.capabilities.cr0Fixed0)} set and bits 63:32 clear`,
  ),
  check(
    "guest.cr0.pg-without-pe",
    SECTION,
    (v) => (v.u32(Field.GUEST_CR0) & PG) === 0 || (v.u32(Field.GUEST_CR0) & PE) !== 0,
    (v) => `${show(v, Field.GUEST_CR0)}: PG (bit 31) needs PE (bit 0)`,
  ),
  check(
    "guest.cr4.fixed",
    SECTION,
    (v) => v.capabilities.cr4Allowed(v.u32(Field.GUEST_CR4), v.hi(Field.GUEST_CR4)),
    (v) =>
      `${show(v, Field.GUEST_CR4)} must have ${hex(v.capabilities.cr4Fixed0)} set and nothing but ${hex(v.capabilities.cr4Fixed1)}`,
  ),
  check(
    "guest.debugctl.reserved",
    SECTION,
    (v) =>
      !v.entry(VmEntryControl.LOAD_DEBUG_CONTROLS) ||
      ((v.u32(Field.GUEST_IA32_DEBUGCTL) & ~DEBUGCTL_BITS) === 0 && v.hi(Field.GUEST_IA32_DEBUGCTL) === 0),
    (v) => `${show(v, Field.GUEST_IA32_DEBUGCTL)} must have no bits but ${hex(DEBUGCTL_BITS)}`,
  ),
  check(
    "guest.ia32e.needs-paging",
    SECTION,
    (v) => !v.ia32e || ((v.u32(Field.GUEST_CR0) & PG) !== 0 && (v.u32(Field.GUEST_CR4) & PAE) !== 0),
    (v) => `IA32E_MODE needs PG and PAE: ${show(v, Field.GUEST_CR0)}, ${show(v, Field.GUEST_CR4)}`,
  ),
  check(
    "guest.cr4.pcide-outside-ia32e",
    SECTION,
    (v) => v.ia32e || (v.u32(Field.GUEST_CR4) & PCIDE) === 0,
    (v) => `${show(v, Field.GUEST_CR4)}: PCIDE (bit 17) needs IA32E_MODE`,
  ),
  check(
    "guest.cr3.width",
    SECTION,
    (v) => v.capabilities.physicalOk(v.hi(Field.GUEST_CR3)),
    (v) => `${show(v, Field.GUEST_CR3)}: bits above ${v.capabilities.physicalBits - 1} must be 0`,
  ),
  check(
    "guest.dr7.high",
    SECTION,
    (v) => !v.entry(VmEntryControl.LOAD_DEBUG_CONTROLS) || v.hi(Field.GUEST_DR7) === 0,
    (v) => `${show(v, Field.GUEST_DR7)}: bits 63:32 must be 0`,
  ),
  canonical("guest.sysenter-esp.canonical", Field.GUEST_SYSENTER_ESP),
  canonical("guest.sysenter-eip.canonical", Field.GUEST_SYSENTER_EIP),
  check(
    "guest.pat",
    SECTION,
    (v) => !v.entry(VmEntryControl.LOAD_IA32_PAT) || patOk(v.get(Field.GUEST_IA32_PAT)),
    (v) => `${show(v, Field.GUEST_IA32_PAT)}: every byte must be 0, 1, 4, 5, 6 or 7`,
  ),
  check(
    "guest.efer.reserved",
    SECTION,
    (v) =>
      !v.entry(VmEntryControl.LOAD_IA32_EFER) ||
      ((v.u32(Field.GUEST_IA32_EFER) & ~v.capabilities.efer) === 0 && v.hi(Field.GUEST_IA32_EFER) === 0),
    (v) => `${show(v, Field.GUEST_IA32_EFER)} must have no bits but ${hex(v.capabilities.efer)}`,
  ),
  check(
    "guest.efer.lma",
    SECTION,
    (v) => !v.entry(VmEntryControl.LOAD_IA32_EFER) || ((v.u32(Field.GUEST_IA32_EFER) & 0x400) !== 0) === v.ia32e,
    (v) => `${show(v, Field.GUEST_IA32_EFER)}: LMA (bit 10) must be ${v.ia32e ? 1 : 0}, as IA32E_MODE`,
  ),
  check(
    "guest.efer.lme",
    SECTION,
    (v) => {
      if (!v.entry(VmEntryControl.LOAD_IA32_EFER) || (v.u32(Field.GUEST_CR0) & PG) === 0) return true;
      const efer = v.u32(Field.GUEST_IA32_EFER);
      return ((efer & 0x400) !== 0) === ((efer & 0x100) !== 0);
    },
    (v) => `${show(v, Field.GUEST_IA32_EFER)}: LMA (bit 10) and LME (bit 8) must be equal when CR0.PG is 1`,
  ),
];

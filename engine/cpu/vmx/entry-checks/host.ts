/** Checks on the host-state area. SDM 3C 27.2.2 to 27.2.4. */
import { VmEntryControl, VmExitControl } from "../controls";
import { Field, vmcsField } from "../fields";
import { checks, type EntryCheck, type EntryState, hex, Reads, show } from "./check";
import { patOk } from "./pat";

const check = checks("host", Reads.HOST | Reads.CONTROLS);

const canonical = (id: string, section: string, field: Field): EntryCheck =>
  check(
    id,
    section,
    (v) => v.canonical(field),
    (v) => `${show(v, field)} must be canonical (${v.capabilities.linearBits}-bit linear addresses)`,
  );

const selector = (id: string, field: Field): EntryCheck =>
  check(
    id,
    "3C 27.2.3",
    (v) => (v.u32(field) & 7) === 0,
    (v) => `${show(v, field)}: RPL (bits 1:0) and TI (bit 2) must be 0`,
  );

const notNull = (id: string, field: Field, applies: (v: EntryState) => boolean = () => true): EntryCheck =>
  check(
    id,
    "3C 27.2.3",
    (v) => !applies(v) || v.u32(field) !== 0,
    () => `${vmcsField(field)?.name} must not be 0`,
  );

export const hostChecks: readonly EntryCheck[] = [
  check(
    "host.cr0.fixed",
    "3C 27.2.2",
    (v) => v.capabilities.cr0Allowed(v.u32(Field.HOST_CR0), v.hi(Field.HOST_CR0), false),
    (v) => `${show(v, Field.HOST_CR0)} must have ${hex(v.capabilities.cr0Fixed0)} set and bits 63:32 clear`,
  ),
  check(
    "host.cr4.fixed",
    "3C 27.2.2",
    (v) => v.capabilities.cr4Allowed(v.u32(Field.HOST_CR4), v.hi(Field.HOST_CR4)),
    (v) =>
      `${show(v, Field.HOST_CR4)} must have ${hex(v.capabilities.cr4Fixed0)} set and nothing but ${hex(v.capabilities.cr4Fixed1)}`,
  ),
  check(
    "host.cr3.width",
    "3C 27.2.2",
    (v) => v.capabilities.physicalOk(v.hi(Field.HOST_CR3)),
    (v) => `${show(v, Field.HOST_CR3)}: bits above ${v.capabilities.physicalBits - 1} must be 0`,
  ),
  canonical("host.sysenter-esp.canonical", "3C 27.2.2", Field.HOST_IA32_SYSENTER_ESP),
  canonical("host.sysenter-eip.canonical", "3C 27.2.2", Field.HOST_IA32_SYSENTER_EIP),
  check(
    "host.pat",
    "3C 27.2.2",
    (v) => !v.exit(VmExitControl.LOAD_IA32_PAT) || patOk(v.get(Field.HOST_IA32_PAT)),
    (v) => `${show(v, Field.HOST_IA32_PAT)}: every byte must be 0, 1, 4, 5, 6 or 7`,
  ),
  check(
    "host.efer.reserved",
    "3C 27.2.2",
    (v) =>
      !v.exit(VmExitControl.LOAD_IA32_EFER) ||
      ((v.u32(Field.HOST_IA32_EFER) & ~v.capabilities.efer) === 0 && v.hi(Field.HOST_IA32_EFER) === 0),
    (v) => `${show(v, Field.HOST_IA32_EFER)} must have no bits but ${hex(v.capabilities.efer)}`,
  ),
  check(
    "host.efer.lma-lme",
    "3C 27.2.2",
    (v) => !v.exit(VmExitControl.LOAD_IA32_EFER) || (v.u32(Field.HOST_IA32_EFER) & 0x500) === (v.host64 ? 0x500 : 0),
    (v) => `${show(v, Field.HOST_IA32_EFER)}: LMA and LME must be ${v.host64 ? 1 : 0}, as HOST_ADDR_SPACE_SIZE`,
  ),
  selector("host.cs.selector", Field.HOST_CS_SELECTOR),
  selector("host.ss.selector", Field.HOST_SS_SELECTOR),
  selector("host.ds.selector", Field.HOST_DS_SELECTOR),
  selector("host.es.selector", Field.HOST_ES_SELECTOR),
  selector("host.fs.selector", Field.HOST_FS_SELECTOR),
  selector("host.gs.selector", Field.HOST_GS_SELECTOR),
  selector("host.tr.selector", Field.HOST_TR_SELECTOR),
  notNull("host.cs.null", Field.HOST_CS_SELECTOR),
  notNull("host.tr.null", Field.HOST_TR_SELECTOR),
  notNull("host.ss.null", Field.HOST_SS_SELECTOR, (v) => !v.host64),
  canonical("host.fs-base.canonical", "3C 27.2.3", Field.HOST_FS_BASE),
  canonical("host.gs-base.canonical", "3C 27.2.3", Field.HOST_GS_BASE),
  canonical("host.gdtr-base.canonical", "3C 27.2.3", Field.HOST_GDTR_BASE),
  canonical("host.idtr-base.canonical", "3C 27.2.3", Field.HOST_IDTR_BASE),
  canonical("host.tr-base.canonical", "3C 27.2.3", Field.HOST_TR_BASE),
  check(
    "host.address-space.outside-ia32e",
    "3C 27.2.4",
    (v) => v.hostLongMode() || (!v.host64 && !v.entry(VmEntryControl.IA32E_MODE)),
    () => "outside IA-32e mode, VM_ENTRY_CONTROLS.IA32E_MODE and VM_EXIT_CONTROLS.HOST_ADDR_SPACE_SIZE must be 0",
    { reads: Reads.CONTROLS | Reads.OUTSIDE },
  ),
  check(
    "host.address-space.inside-ia32e",
    "3C 27.2.4",
    (v) => !v.hostLongMode() || v.host64,
    () => "in IA-32e mode, VM_EXIT_CONTROLS.HOST_ADDR_SPACE_SIZE must be 1",
    { reads: Reads.CONTROLS | Reads.OUTSIDE },
  ),
  check(
    "host.address-space.32-bit",
    "3C 27.2.4",
    (v) => v.host64 || (!v.ia32e && (v.u32(Field.HOST_CR4) & (1 << 17)) === 0 && v.hi(Field.HOST_RIP) === 0),
    (v) =>
      `with HOST_ADDR_SPACE_SIZE 0, IA32E_MODE must be 0, ${show(v, Field.HOST_CR4)} without PCIDE and ${show(v, Field.HOST_RIP)} below 4 GBytes`,
  ),
  check(
    "host.address-space.64-bit",
    "3C 27.2.4",
    (v) => !v.host64 || ((v.u32(Field.HOST_CR4) & (1 << 5)) !== 0 && v.canonical(Field.HOST_RIP)),
    (v) =>
      `with HOST_ADDR_SPACE_SIZE 1, ${show(v, Field.HOST_CR4)} must have PAE and ${show(v, Field.HOST_RIP)} be canonical`,
  ),
];

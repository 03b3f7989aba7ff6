/**
 * The form of a VM-entry check: one row that says what must hold and, in the manual's terms, what is wrong when it does
 * not. The processor decides with the rows; the debugger reports all that fail.
 */
import type { PhysicalMemory } from "../../../memory/physical";
import type { VmxCapabilities } from "../capabilities";
import { CpuBased, SecondaryExec, VmEntryControl, VmExitControl } from "../controls";
import { FIELD_OFFSETS, Field, vmcsField } from "../fields";
import { isCanonical, type Vmcs } from "../vmcs";
import type { FailedCheck } from "../vmx";

/**
 * Groups of VMCS fields. A check names the groups it looks at; it is run again only when one of them was written since
 * the last successful entry.
 */
export const Reads = {
  /** VM-execution, VM-exit and VM-entry controls, addresses and counts included. */
  CONTROLS: 1 << 0,
  HOST: 1 << 1,
  /** The three event-injection fields. */
  EVENT: 1 << 2,
  /** Guest control and debug registers and MSRs. */
  REGISTERS: 1 << 3,
  /** Guest segments, LDTR, TR, GDTR, IDTR. */
  SEGMENTS: 1 << 4,
  /** Guest RIP (its upper half) and RFLAGS (but the arithmetic flags). */
  RIP: 1 << 5,
  /** Guest activity, interruptibility, pending debug exceptions, VMCS link pointer. */
  STATE: 1 << 6,
  PDPTES: 1 << 7,
  /** Something that may change without VMWRITE: memory, or the processor itself. */
  OUTSIDE: 1 << 8,
} as const;
export const READS_ALL = 0x1ff;

/** What checks read: the VMCS, the processor's capabilities, and what the controls make of each other. */
export class EntryState {
  constructor(
    readonly vmcs: Vmcs,
    readonly capabilities: VmxCapabilities,
    readonly memory: PhysicalMemory,
    /** The processor is in IA-32e mode now (in the host). */
    readonly hostLongMode: () => boolean,
  ) {}

  get(field: Field): bigint {
    return this.vmcs.u64(FIELD_OFFSETS[field >> 1] >> 2);
  }
  /** Low half, unsigned. */
  u32(field: Field): number {
    return this.vmcs.u32(FIELD_OFFSETS[field >> 1] >> 2);
  }
  /** High half, signed. */
  hi(field: Field): number {
    return this.vmcs.hi(FIELD_OFFSETS[field >> 1] >> 2);
  }
  address(field: Field): number {
    return this.vmcs.address(FIELD_OFFSETS[field >> 1] >> 2);
  }

  pin(mask: number): boolean {
    return (this.u32(Field.PIN_BASED_VM_EXEC_CONTROL) & mask) !== 0;
  }
  cpu(mask: number): boolean {
    return (this.u32(Field.CPU_BASED_VM_EXEC_CONTROL) & mask) !== 0;
  }
  /** Secondary controls; all 0 unless activated. */
  secondary(mask: number): boolean {
    return this.cpu(CpuBased.ACTIVATE_SECONDARY_CONTROLS) && (this.u32(Field.SECONDARY_VM_EXEC_CONTROL) & mask) !== 0;
  }
  exit(mask: number): boolean {
    return (this.u32(Field.VM_EXIT_CONTROLS) & mask) !== 0;
  }
  entry(mask: number): boolean {
    return (this.u32(Field.VM_ENTRY_CONTROLS) & mask) !== 0;
  }

  get unrestricted(): boolean {
    return this.secondary(SecondaryExec.UNRESTRICTED_GUEST);
  }
  get ia32e(): boolean {
    return this.entry(VmEntryControl.IA32E_MODE);
  }
  get host64(): boolean {
    return this.exit(VmExitControl.HOST_ADDR_SPACE_SIZE);
  }
  get v8086(): boolean {
    return (this.u32(Field.GUEST_RFLAGS) & (1 << 17)) !== 0;
  }

  /** Type of the event to inject, -1 for none. */
  get eventType(): number {
    const info = this.u32(Field.VM_ENTRY_INTR_INFO_FIELD);
    return info >>> 31 ? (info >> 8) & 7 : -1;
  }

  canonical(field: Field): boolean {
    return isCanonical(this.hi(field), this.capabilities.linearBits);
  }
  /** A 4-KByte aligned address within MAXPHYADDR. */
  pageAddressOk(field: Field): boolean {
    return (this.u32(field) & 0xfff) === 0 && this.capabilities.physicalOk(this.hi(field));
  }
}

export interface EntryCheck {
  readonly id: string;
  readonly section: string;
  readonly group: FailedCheck["group"];
  /** Reads bits of what it depends on. */
  readonly reads: number;
  /** Exit qualification of a failed guest check (SDM 3C 27.8): 0 unless the manual says otherwise. */
  readonly qualification: number;
  /** What must hold. */
  readonly holds: (v: EntryState) => boolean;
  /** Field, value and what was allowed. */
  readonly message: (v: EntryState) => string;
}

/** Makes the rows of one file: all of one group, reading the same fields unless a row says otherwise. */
export function checks(group: FailedCheck["group"], reads: number) {
  return (
    id: string,
    section: string,
    holds: (v: EntryState) => boolean,
    message: (v: EntryState) => string,
    options: { readonly reads?: number; readonly qualification?: number } = {},
  ): EntryCheck => ({
    id,
    section,
    group,
    reads: options.reads ?? reads,
    qualification: options.qualification ?? 0,
    holds,
    message,
  });
}

export const hex = (value: bigint | number): string =>
  `0x${(typeof value === "number" ? value >>> 0 : value).toString(16)}`;

/** "GUEST_CR0 0x20" */
export const show = (v: EntryState, field: Field): string => `${vmcsField(field)?.name} ${hex(v.get(field))}`;

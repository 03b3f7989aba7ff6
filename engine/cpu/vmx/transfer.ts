/**
 * The state transfer of VM entry and VM exit: copy plans between a processor's block and the guest-state area of its
 * VMCS. Both lie in the engine's one memory, so that a transfer is a loop over pairs of 32-bit words.
 */
import { Off, SEG_SIZE, SegPart } from "../state";
import { Reads } from "./entry-checks/check";
import { Field } from "./fields";
import { word } from "./vmcs";

/** Pairs: word in the processor's block, word in the VMCS region. */
export interface CopyPlan {
  /** Group of fields it belongs to, Reads bits; 0 when no check looks at them. */
  readonly group: number;
  readonly pairs: Int32Array;
}

const full = (offset: number, field: Field): number[] => [offset >> 2, word(field), (offset + 4) >> 2, word(field) + 1];
const low = (offset: number, field: Field): number[] => [offset >> 2, word(field)];

const NAMES = ["ES", "CS", "SS", "DS", "FS", "GS", "LDTR", "TR"] as const;

const segments = NAMES.flatMap((name, index) => {
  const at = Off.SEG + index * SEG_SIZE;
  return [
    ...low(at + SegPart.SELECTOR, Field[`GUEST_${name}_SELECTOR`]),
    ...full(at + SegPart.BASE, Field[`GUEST_${name}_BASE`]),
    ...low(at + SegPart.LIMIT, Field[`GUEST_${name}_LIMIT`]),
    ...low(at + SegPart.ATTRIBUTES, Field[`GUEST_${name}_AR_BYTES`]),
  ];
});

/**
 * What every VM entry loads and every VM exit saves as it is (SDM 3C 27.3.2, 28.3). CR0, CR4, RIP, RFLAGS, EFER, PAT and
 * the debug controls have rules of their own.
 */
export const GUEST_PLANS: readonly CopyPlan[] = [
  {
    group: Reads.REGISTERS,
    pairs: Int32Array.from([
      ...full(Off.CR3, Field.GUEST_CR3),
      ...low(Off.SYSENTER_CS, Field.GUEST_SYSENTER_CS),
      ...full(Off.SYSENTER_ESP, Field.GUEST_SYSENTER_ESP),
      ...full(Off.SYSENTER_EIP, Field.GUEST_SYSENTER_EIP),
    ]),
  },
  {
    group: Reads.SEGMENTS,
    pairs: Int32Array.from([
      ...segments,
      ...full(Off.GDTR_BASE, Field.GUEST_GDTR_BASE),
      ...low(Off.GDTR_LIMIT, Field.GUEST_GDTR_LIMIT),
      ...full(Off.IDTR_BASE, Field.GUEST_IDTR_BASE),
      ...low(Off.IDTR_LIMIT, Field.GUEST_IDTR_LIMIT),
    ]),
  },
  { group: 0, pairs: Int32Array.from(full(Off.GPR + 4 * 8, Field.GUEST_RSP)) },
];

/** PDPTE registers, with PAE paging under EPT. */
export const PDPTE_PLAN: CopyPlan = {
  group: Reads.PDPTES,
  pairs: Int32Array.from([
    ...full(Off.PDPTE, Field.GUEST_PDPTR0),
    ...full(Off.PDPTE + 8, Field.GUEST_PDPTR1),
    ...full(Off.PDPTE + 16, Field.GUEST_PDPTR2),
    ...full(Off.PDPTE + 24, Field.GUEST_PDPTR3),
  ]),
};

/** What VM exits load from the host-state area as it is (SDM 3C 28.5.1). */
export const HOST_PLAN: CopyPlan = {
  group: 0,
  pairs: Int32Array.from([
    ...full(Off.CR3, Field.HOST_CR3),
    ...low(Off.SYSENTER_CS, Field.HOST_IA32_SYSENTER_CS),
    ...full(Off.SYSENTER_ESP, Field.HOST_IA32_SYSENTER_ESP),
    ...full(Off.SYSENTER_EIP, Field.HOST_IA32_SYSENTER_EIP),
    ...full(Off.GPR + 4 * 8, Field.HOST_RSP),
    ...full(Off.RIP, Field.HOST_RIP),
    ...full(Off.GDTR_BASE, Field.HOST_GDTR_BASE),
    ...full(Off.IDTR_BASE, Field.HOST_IDTR_BASE),
  ]),
};

/** VMCS to processor. */
export function load(plan: CopyPlan, i32: Int32Array, block: number, region: number): void {
  const pairs = plan.pairs;
  for (let k = 0; k < pairs.length; k += 2) i32[block + pairs[k]] = i32[region + pairs[k + 1]];
}

/** Processor to VMCS. @returns the plan's group when any word changed, else 0 */
export function save(plan: CopyPlan, i32: Int32Array, block: number, region: number): number {
  const pairs = plan.pairs;
  let changed = 0;
  for (let k = 0; k < pairs.length; k += 2) {
    const value = i32[block + pairs[k]];
    const at = region + pairs[k + 1];
    changed |= i32[at] ^ value;
    i32[at] = value;
  }
  return changed === 0 ? 0 : plan.group;
}

/** Group a field belongs to, for VMWRITE; and the bits whose change no check minds. */
export interface WriteEffect {
  readonly group: number;
  readonly harmlessLo: number;
  readonly harmlessHi: number;
}

const ARITHMETIC_AND_DF = 0xcd5;

const NON_REGISTER: readonly number[] = [
  Field.GUEST_INTERRUPTIBILITY_INFO,
  Field.GUEST_ACTIVITY_STATE,
  Field.GUEST_PENDING_DBG_EXCEPTIONS,
  Field.VMCS_LINK_POINTER,
];
const EVENT_FIELDS: readonly number[] = [
  Field.VM_ENTRY_INTR_INFO_FIELD,
  Field.VM_ENTRY_EXCEPTION_ERROR_CODE,
  Field.VM_ENTRY_INSTRUCTION_LEN,
];
const SEGMENT_FIELDS: readonly number[] = [
  ...NAMES.flatMap((n) => [
    Field[`GUEST_${n}_SELECTOR`],
    Field[`GUEST_${n}_BASE`],
    Field[`GUEST_${n}_LIMIT`],
    Field[`GUEST_${n}_AR_BYTES`],
  ]),
  Field.GUEST_GDTR_BASE,
  Field.GUEST_GDTR_LIMIT,
  Field.GUEST_IDTR_BASE,
  Field.GUEST_IDTR_LIMIT,
];
const PDPTE_FIELDS: readonly number[] = [
  Field.GUEST_PDPTR0,
  Field.GUEST_PDPTR1,
  Field.GUEST_PDPTR2,
  Field.GUEST_PDPTR3,
];
const UNCHECKED: readonly number[] = [
  Field.GUEST_RSP,
  Field.GUEST_SYSENTER_CS,
  Field.VMX_PREEMPTION_TIMER_VALUE,
  Field.TSC_OFFSET,
  Field.TSC_MULTIPLIER,
  Field.EXCEPTION_BITMAP,
  Field.PAGE_FAULT_ERROR_CODE_MASK,
  Field.PAGE_FAULT_ERROR_CODE_MATCH,
  Field.CR0_GUEST_HOST_MASK,
  Field.CR4_GUEST_HOST_MASK,
  Field.CR0_READ_SHADOW,
  Field.CR4_READ_SHADOW,
];

const NONE: WriteEffect = { group: 0, harmlessLo: 0, harmlessHi: 0 };
const of = (group: number, harmlessLo = 0, harmlessHi = 0): WriteEffect => ({ group, harmlessLo, harmlessHi });

/** What writing a field means for the entry checks. */
export function writeEffect(encoding: number): WriteEffect {
  if (UNCHECKED.includes(encoding)) return NONE;
  // The checks of RIP are about its upper half.
  if (encoding === Field.GUEST_RIP) return of(Reads.RIP, -1, 0);
  if (encoding === Field.GUEST_RFLAGS) return of(Reads.RIP, ARITHMETIC_AND_DF, 0);
  if (NON_REGISTER.includes(encoding)) return of(Reads.STATE);
  if (EVENT_FIELDS.includes(encoding)) return of(Reads.EVENT);
  if (SEGMENT_FIELDS.includes(encoding)) return of(Reads.SEGMENTS);
  if (PDPTE_FIELDS.includes(encoding)) return of(Reads.PDPTES);
  switch ((encoding >> 10) & 3) {
    case 0:
      return of(Reads.CONTROLS);
    case 2:
      return of(Reads.REGISTERS);
    case 3:
      return of(Reads.HOST);
    default:
      return NONE;
  }
}

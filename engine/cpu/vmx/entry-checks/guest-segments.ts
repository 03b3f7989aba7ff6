/** Checks on guest segment registers and descriptor-table registers. SDM 3C 27.3.1.2 and 27.3.1.3. */
import { Field } from "../fields";
import { checks, type EntryCheck, type EntryState, hex, Reads, show } from "./check";

const check = checks("guest", Reads.SEGMENTS | Reads.REGISTERS | Reads.CONTROLS | Reads.RIP);
const SECTION = "3C 27.3.1.2";

interface SegmentFields {
  readonly name: string;
  readonly selector: Field;
  readonly base: Field;
  readonly limit: Field;
  readonly rights: Field;
}

type SegmentName = "ES" | "CS" | "SS" | "DS" | "FS" | "GS" | "LDTR" | "TR";
const fields = (name: SegmentName): SegmentFields => ({
  name: name.toLowerCase(),
  selector: Field[`GUEST_${name}_SELECTOR`],
  base: Field[`GUEST_${name}_BASE`],
  limit: Field[`GUEST_${name}_LIMIT`],
  rights: Field[`GUEST_${name}_AR_BYTES`],
});

const [ES, CS, SS, DS, FS, GS, LDTR, TR] = (["ES", "CS", "SS", "DS", "FS", "GS", "LDTR", "TR"] as const).map(fields);

const UNUSABLE = 1 << 16;
const rights = (v: EntryState, s: SegmentFields): number => v.u32(s.rights);
const type = (v: EntryState, s: SegmentFields): number => rights(v, s) & 0xf;
const dpl = (v: EntryState, s: SegmentFields): number => (rights(v, s) >> 5) & 3;
const rpl = (v: EntryState, s: SegmentFields): number => v.u32(s.selector) & 3;
/** CS and TR count as usable always; unusable TR has a check of its own. */
const usable = (v: EntryState, s: SegmentFields): boolean => s === CS || s === TR || (rights(v, s) & UNUSABLE) === 0;

/** A rule for segments that matter: usable, outside virtual-8086 mode. */
const rule = (
  s: SegmentFields,
  id: string,
  holds: (v: EntryState) => boolean,
  message: (v: EntryState) => string,
  evenVirtual8086 = false,
): EntryCheck =>
  check(`guest.${s.name}.${id}`, SECTION, (v) => (v.v8086 && !evenVirtual8086) || !usable(v, s) || holds(v), message);

function granularityOk(v: EntryState, s: SegmentFields): boolean {
  const limit = v.u32(s.limit);
  const g = (rights(v, s) & (1 << 15)) !== 0;
  return (limit & 0xfff) === 0xfff ? g || limit >>> 20 === 0 : !g && limit >>> 20 === 0;
}

const granularity = (s: SegmentFields, evenVirtual8086 = false): EntryCheck =>
  rule(
    s,
    "granularity",
    (v) => granularityOk(v, s),
    (v) =>
      `${show(v, s.rights)}: G (bit 15) must be 0 when any of bits 11:0 of ${show(v, s.limit)} is 0, and 1 when any of bits 31:20 is 1`,
    evenVirtual8086,
  );

const present = (s: SegmentFields, evenVirtual8086 = false): EntryCheck =>
  rule(
    s,
    "present",
    (v) => (rights(v, s) & 0x80) !== 0,
    (v) => `${show(v, s.rights)}: P (bit 7) must be 1`,
    evenVirtual8086,
  );

const reserved = (s: SegmentFields, evenVirtual8086 = false): EntryCheck =>
  rule(
    s,
    "reserved",
    (v) => (rights(v, s) & 0xfffe_0f00) === 0,
    (v) => `${show(v, s.rights)}: bits 11:8 and 31:17 must be 0`,
    evenVirtual8086,
  );

/** What virtual-8086 mode asks of each of the six segments. */
const virtual8086 = (s: SegmentFields): readonly EntryCheck[] => [
  check(
    `guest.${s.name}.v8086.base`,
    SECTION,
    (v) => !v.v8086 || (v.u32(s.base) === v.u32(s.selector) << 4 && v.hi(s.base) === 0),
    (v) => `${show(v, s.base)} must be ${hex(v.u32(s.selector) << 4)} (selector * 16) in virtual-8086 mode`,
  ),
  check(
    `guest.${s.name}.v8086.limit`,
    SECTION,
    (v) => !v.v8086 || v.u32(s.limit) === 0xffff,
    (v) => `${show(v, s.limit)} must be 0xffff in virtual-8086 mode`,
  ),
  check(
    `guest.${s.name}.v8086.rights`,
    SECTION,
    (v) => !v.v8086 || v.u32(s.rights) === 0xf3,
    (v) => `${show(v, s.rights)} must be 0xf3 in virtual-8086 mode`,
  ),
];

/** What every usable code or data segment must be. */
const common = (s: SegmentFields): readonly EntryCheck[] => [
  rule(
    s,
    "s",
    (v) => (rights(v, s) & 0x10) !== 0,
    (v) => `${show(v, s.rights)}: S (bit 4) must be 1, a code or data segment`,
  ),
  present(s),
  reserved(s),
  granularity(s),
];

const dataType = (s: SegmentFields): EntryCheck =>
  rule(
    s,
    "type",
    (v) => (type(v, s) & 1) !== 0 && ((type(v, s) & 8) === 0 || (type(v, s) & 2) !== 0),
    (v) => `${show(v, s.rights)}: type ${type(v, s)} must be accessed (bit 0) and, if code (bit 3), readable (bit 1)`,
  );

const dataDpl = (s: SegmentFields): EntryCheck =>
  rule(
    s,
    "dpl",
    (v) => v.unrestricted || type(v, s) > 11 || dpl(v, s) >= rpl(v, s),
    (v) => `${show(v, s.rights)}: DPL ${dpl(v, s)} must not be below the RPL of ${show(v, s.selector)}`,
  );

const lowBase = (s: SegmentFields): EntryCheck =>
  check(
    `guest.${s.name}.base`,
    SECTION,
    (v) => !usable(v, s) || v.hi(s.base) === 0,
    (v) => `${show(v, s.base)}: bits 63:32 must be 0`,
  );

const canonicalBase = (s: SegmentFields, section = SECTION): EntryCheck =>
  check(
    `guest.${s.name}.base`,
    section,
    (v) => (s === LDTR && !usable(v, s)) || v.canonical(s.base),
    (v) => `${show(v, s.base)} must be canonical (${v.capabilities.linearBits}-bit linear addresses)`,
  );

const tableRegister = (name: string, base: Field, limit: Field): readonly EntryCheck[] => [
  check(
    `guest.${name}.base`,
    "3C 27.3.1.3",
    (v) => v.canonical(base),
    (v) => `${show(v, base)} must be canonical (${v.capabilities.linearBits}-bit linear addresses)`,
  ),
  check(
    `guest.${name}.limit`,
    "3C 27.3.1.3",
    (v) => v.u32(limit) >>> 16 === 0,
    (v) => `${show(v, limit)}: bits 31:16 must be 0`,
  ),
];

const codeTypeOk = (v: EntryState): boolean => {
  const t = type(v, CS);
  return (t >= 9 && (t & 1) === 1) || (t === 3 && v.unrestricted);
};

const codeDplOk = (v: EntryState): boolean => {
  const t = type(v, CS);
  if (t === 3) return dpl(v, CS) === 0;
  if (t === 9 || t === 11) return dpl(v, CS) === dpl(v, SS);
  return t === 13 || t === 15 ? dpl(v, CS) <= dpl(v, SS) : true;
};

export const guestSegmentChecks: readonly EntryCheck[] = [
  check(
    "guest.tr.selector",
    SECTION,
    (v) => (v.u32(TR.selector) & 4) === 0,
    (v) => `${show(v, TR.selector)}: TI (bit 2) must be 0`,
  ),
  check(
    "guest.ldtr.selector",
    SECTION,
    (v) => !usable(v, LDTR) || (v.u32(LDTR.selector) & 4) === 0,
    (v) => `${show(v, LDTR.selector)}: TI (bit 2) must be 0`,
  ),
  check(
    "guest.ss.selector",
    SECTION,
    (v) => v.v8086 || v.unrestricted || rpl(v, SS) === rpl(v, CS),
    (v) => `${show(v, SS.selector)}: RPL must be that of ${show(v, CS.selector)}`,
  ),
  ...[CS, SS, DS, ES, FS, GS].flatMap(virtual8086),
  canonicalBase(TR),
  canonicalBase(FS),
  canonicalBase(GS),
  canonicalBase(LDTR),
  lowBase(CS),
  lowBase(SS),
  lowBase(DS),
  lowBase(ES),
  rule(
    CS,
    "type",
    codeTypeOk,
    (v) => `${show(v, CS.rights)}: type ${type(v, CS)} must be 9, 11, 13 or 15, or 3 for an unrestricted guest`,
  ),
  rule(
    SS,
    "type",
    (v) => type(v, SS) === 3 || type(v, SS) === 7,
    (v) => `${show(v, SS.rights)}: type ${type(v, SS)} must be 3 or 7`,
  ),
  ...[DS, ES, FS, GS].map(dataType),
  ...[CS, SS, DS, ES, FS, GS].flatMap(common),
  rule(
    CS,
    "dpl",
    codeDplOk,
    (v) =>
      `${show(v, CS.rights)}: DPL ${dpl(v, CS)} must be 0 for type 3, the DPL of SS (${dpl(v, SS)}) for types 9 and 11, and not above it for 13 and 15`,
  ),
  check(
    "guest.ss.dpl",
    SECTION,
    (v) => v.v8086 || v.unrestricted || dpl(v, SS) === rpl(v, SS),
    (v) => `${show(v, SS.rights)}: DPL must be the RPL of ${show(v, SS.selector)}`,
  ),
  check(
    "guest.ss.dpl-zero",
    SECTION,
    (v) => v.v8086 || (type(v, CS) !== 3 && (v.u32(Field.GUEST_CR0) & 1) !== 0) || dpl(v, SS) === 0,
    (v) => `${show(v, SS.rights)}: DPL must be 0 when CS has type 3 or CR0.PE is 0`,
  ),
  ...[DS, ES, FS, GS].map(dataDpl),
  rule(
    CS,
    "l-and-d",
    (v) => !v.ia32e || (rights(v, CS) & (1 << 13)) === 0 || (rights(v, CS) & (1 << 14)) === 0,
    (v) => `${show(v, CS.rights)}: D/B (bit 14) must be 0 when L (bit 13) is 1 in IA-32e mode`,
  ),
  rule(
    TR,
    "type",
    (v) => type(v, TR) === 11 || (!v.ia32e && type(v, TR) === 3),
    (v) => `${show(v, TR.rights)}: type ${type(v, TR)} must be 11 (busy TSS), or 3 outside IA-32e mode`,
    true,
  ),
  rule(
    TR,
    "s",
    (v) => (rights(v, TR) & 0x10) === 0,
    (v) => `${show(v, TR.rights)}: S (bit 4) must be 0`,
    true,
  ),
  present(TR, true),
  check(
    "guest.tr.reserved",
    SECTION,
    (v) => (rights(v, TR) & 0xfffe_0f00) === 0,
    (v) => `${show(v, TR.rights)}: bits 11:8 and 31:17 must be 0`,
  ),
  granularity(TR, true),
  check(
    "guest.tr.unusable",
    SECTION,
    (v) => (rights(v, TR) & UNUSABLE) === 0,
    (v) => `${show(v, TR.rights)}: TR must be usable (bit 16 clear)`,
  ),
  rule(
    LDTR,
    "type",
    (v) => type(v, LDTR) === 2,
    (v) => `${show(v, LDTR.rights)}: type ${type(v, LDTR)} must be 2 (LDT)`,
    true,
  ),
  rule(
    LDTR,
    "s",
    (v) => (rights(v, LDTR) & 0x10) === 0,
    (v) => `${show(v, LDTR.rights)}: S (bit 4) must be 0`,
    true,
  ),
  present(LDTR, true),
  reserved(LDTR, true),
  granularity(LDTR, true),
  ...tableRegister("gdtr", Field.GUEST_GDTR_BASE, Field.GUEST_GDTR_LIMIT),
  ...tableRegister("idtr", Field.GUEST_IDTR_BASE, Field.GUEST_IDTR_LIMIT),
];

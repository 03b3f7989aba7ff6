/**
 * What names mean in an expression: details of the trace point stopped at, registers and their parts and bits, VMCS and
 * kvm_run fields, exit-reason names, symbols. In this order, so that `port` in a filter's condition is the exit's port.
 */
import type { BitField, RegisterRow } from "../cpu/registers";
import { decodeQualification, EXIT_REASONS, exitReasonName } from "../cpu/vmx/exit-reasons";
import { Field, VMCS_FIELDS, type VmcsField, vmcsFieldByName } from "../cpu/vmx/fields";
import type { Machine, VcpuView, VmcsView } from "../machine/machine";
import { TraceKind, type TracePoint } from "../trace";
import { describeBits, extract, insert } from "./bits";
import { codeContext } from "./code";
import { integer, type Result, type Scope, type Value } from "./evaluate";
import type { SpaceName } from "./expression";
import type { SymbolIndex } from "./symbols";

export const fieldWidthBits = (field: VmcsField): number => (field.width === "natural" ? 64 : field.width);

/** A VMCS field in words: its bits, and for the exit's reason and qualification what they say together. */
export function decodeVmcsField(field: VmcsField, vmcs: VmcsView): string {
  const value = vmcs.read(field.encoding);
  const bits = field.bits ? describeBits(value, field.bits) : "";
  if (field.encoding === Field.VM_EXIT_REASON)
    return bits.replace(/BASIC=\w+/, exitReasonName(Number(value & 0xffffn)));
  if (field.encoding !== Field.EXIT_QUALIFICATION) return bits;
  const reason = Number(vmcs.read(Field.VM_EXIT_REASON));
  return decodeQualification(reason, value, Number(vmcs.read(Field.VM_EXIT_INTR_INFO))).text;
}

const LEGACY = ["ax", "cx", "dx", "bx", "sp", "bp", "si", "di"];
const LOW_BYTES = ["al", "cl", "dl", "bl", "spl", "bpl", "sil", "dil"];

interface Part {
  readonly register: string;
  readonly low: number;
  readonly width: number;
}

/** eax, ax, al, ah, r8d ... : the parts of general registers, RIP and RFLAGS by name. */
const PARTS: ReadonlyMap<string, Part> = (() => {
  const parts = new Map<string, Part>();
  const part = (name: string, register: string, width: number, low = 0): void => {
    parts.set(name, { register, low, width });
  };
  LEGACY.forEach((name, i) => {
    part(`e${name}`, `r${name}`, 32);
    part(name, `r${name}`, 16);
    part(LOW_BYTES[i], `r${name}`, 8);
    if (i < 4) part(`${name[0]}h`, `r${name}`, 8, 8);
  });
  for (let i = 8; i < 16; i++) {
    part(`r${i}d`, `r${i}`, 32);
    part(`r${i}w`, `r${i}`, 16);
    part(`r${i}b`, `r${i}`, 8);
  }
  part("eip", "rip", 32);
  part("ip", "rip", 16);
  part("eflags", "rflags", 32);
  part("flags", "rflags", 16);
  part("efer", "ia32_efer", 64);
  return parts;
})();

/** Exit-reason names as constants: `reason == CPUID`. */
const REASONS: ReadonlyMap<string, bigint> = new Map(
  EXIT_REASONS.map((row) => [row.name as string, BigInt(row.reason)]),
);
/** Everything some trace point has as a detail. */
const DETAIL_NAMES: ReadonlySet<string> = new Set([
  ...EXIT_REASONS.flatMap((row) => (row.qualification ?? []).map((field) => field.name)),
  ..."reason qualification rip length port address size input write value index vector type error gpa gla handler".split(
    " ",
  ),
  ..."device bus register exit cause report checks resume injected guestRip direction string rep".split(" "),
]);
const MAX_COMPLETIONS = 200;

function edit(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, i) => i);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++)
      next.push(Math.min(row[j] + 1, next[j - 1] + 1, row[j - 1] + (a[i - 1] === b[j - 1] ? 0 : 1)));
    row = next;
  }
  return row[b.length];
}

/** Everything a trace point's condition may name: its own details and, for exits, the decoded qualification. */
export function detailOf(point: TracePoint | null): Readonly<Record<string, bigint | number | string | boolean>> {
  if (!point) return {};
  const { detail } = point;
  if (point.kind !== TraceKind.VmExit || typeof detail.qualification !== "bigint") return detail;
  const decoded = decodeQualification(
    Number(detail.reason ?? 0) & 0xffff,
    detail.qualification,
    Number(detail.interruptInfo ?? 0),
  );
  return { ...decoded.parts, ...detail };
}

export class MachineScope implements Scope {
  private readonly view: VcpuView;
  private readonly detail: Readonly<Record<string, bigint | number | string | boolean>>;

  /** @param point where the machine stopped, or null between instructions */
  constructor(
    private readonly machine: Machine,
    private readonly vcpu: number,
    private readonly symbols: SymbolIndex,
    point: TracePoint | null,
  ) {
    this.view = machine.vcpus[vcpu];
    this.detail = detailOf(point);
  }

  lookup(name: string, quoted: boolean): Result | undefined {
    if (quoted) return this.symbol(name);
    const explicit = name.startsWith("detail.") ? name.slice(7) : name;
    const lower = name.toLowerCase();
    // A detail that repeats a register ("rip") must not hide it: registers can be assigned to.
    const register = this.register(lower);
    if (register) return register;
    if (Object.hasOwn(this.detail, explicit)) return fromPlain(this.detail[explicit]);
    return this.pseudo(lower) ?? this.dotted(name, lower) ?? this.reason(name) ?? this.symbol(name);
  }

  private register(lower: string): Value | undefined {
    const { registers } = this.view;
    const row = registers.rows.find((r) => r.name === lower);
    if (row) return this.registerValue(row);
    const part = PARTS.get(lower);
    if (part) {
      const field: BitField = { name: lower, low: part.low, width: part.width, help: "" };
      return this.bitsOfRegister(part.register, field, lower);
    }
    const dot = lower.lastIndexOf(".");
    if (dot < 0) return undefined;
    const base = PARTS.get(lower.slice(0, dot))?.register ?? lower.slice(0, dot);
    const field = registers.rows
      .find((r) => r.name === base)
      ?.bits?.find((b) => b.name.toLowerCase() === lower.slice(dot + 1));
    return field ? this.bitsOfRegister(base, field, lower) : undefined;
  }

  private registerValue(row: RegisterRow): Value {
    const { registers } = this.view;
    const value = registers.read(row.name);
    return {
      value,
      signed: false,
      width: row.width,
      help: `${row.help} (${row.section})`,
      decoded: row.bits ? describeBits(value, row.bits) : undefined,
      place: { name: row.name, width: row.width, store: (v) => registers.write(row.name, v) },
    };
  }

  private bitsOfRegister(register: string, field: BitField, name: string): Value {
    const { registers } = this.view;
    const bits = extract(registers.read(register), field);
    return {
      value: bits,
      signed: false,
      width: field.width,
      help: field.help || undefined,
      decoded: field.values?.[Number(bits)],
      place: {
        name,
        width: field.width,
        store: (v) => registers.write(register, insert(registers.read(register), field, v)),
      },
    };
  }

  private pseudo(lower: string): Value | undefined {
    switch (lower) {
      case "pc":
        return { ...integer(codeContext(this.view).linear, false), help: "Linear address of the next instruction." };
      case "vcpu":
        return { ...integer(BigInt(this.vcpu)), help: "Number of this vCPU." };
      case "retired":
        return { ...integer(BigInt(this.view.retired)), help: "Instructions this vCPU has retired." };
      case "instructions":
        return { ...integer(BigInt(this.machine.stats().instructions)), help: "Instructions retired by all vCPUs." };
      default:
        return undefined;
    }
  }

  private dotted(name: string, lower: string): Result | undefined {
    if (lower.startsWith("vmcs12.")) throw new Error("there is no vmcs12: nested virtualization is not running");
    if (lower.startsWith("vmcs.")) return this.vmcs(name.slice(5));
    if (lower.startsWith("kvm_run.")) {
      const run = this.view.kvmRun;
      if (!run) throw new Error("there is no kvm_run page: this machine does not run under KVM");
      const field = name.slice(8);
      return Object.hasOwn(run, field) ? fromPlain(run[field]) : undefined;
    }
    return undefined;
  }

  private vmcs(name: string): Value | undefined {
    const { vmcs } = this.view;
    if (!vmcs) throw new Error("this vCPU has no current VMCS");
    if (name.toLowerCase() === "pointer")
      return { ...integer(BigInt(vmcs.pointer), false), memory: { space: "hpa", address: BigInt(vmcs.pointer) } };
    const [fieldName, bitName, ...more] = name.split(".");
    const field = vmcsFieldByName(fieldName);
    if (!field || more.length > 0) return undefined;
    const width = fieldWidthBits(field);
    const value = vmcs.read(field.encoding);
    const help = `${field.help} (${field.section})`;
    if (bitName === undefined)
      return {
        value,
        signed: false,
        width,
        help,
        decoded: decodeVmcsField(field, vmcs) || undefined,
        place: { name: `vmcs.${field.name}`, width, store: (v) => vmcs.write(field.encoding, v) },
      };
    const bit = field.bits?.find((b) => b.name.toLowerCase() === bitName.toLowerCase());
    if (!bit) return undefined;
    const bits = extract(value, bit);
    return {
      value: bits,
      signed: false,
      width: bit.width,
      help: bit.help,
      decoded: bit.values?.[Number(bits)],
      place: {
        name: `vmcs.${field.name}.${bit.name}`,
        width: bit.width,
        store: (v) => vmcs.write(field.encoding, insert(vmcs.read(field.encoding), bit, v)),
      },
    };
  }

  private reason(name: string): Value | undefined {
    const value = REASONS.get(name);
    return value === undefined ? undefined : { ...integer(value), help: `Exit reason ${name}.` };
  }

  private symbol(name: string): Value | undefined {
    const symbol = this.symbols.find(name);
    return symbol && { ...integer(symbol.address, false), help: `Symbol ${name}, ${symbol.size} bytes.` };
  }

  readMemory(space: SpaceName, address: bigint, length: number): Uint8Array | undefined {
    const bytes = this.machine.readMemory(space, this.vcpu, address, length);
    return bytes.length === length ? bytes : undefined;
  }

  writeMemory(space: SpaceName, address: bigint, bytes: Uint8Array): boolean {
    return this.machine.writeMemory(space, this.vcpu, address, bytes) === bytes.length;
  }

  isAbsent(name: string): boolean {
    return DETAIL_NAMES.has(name.startsWith("detail.") ? name.slice(7) : name);
  }

  suggest(name: string): readonly string[] {
    const lower = name.toLowerCase();
    const worst = lower.length <= 4 ? 1 : 2;
    const names = new Set(this.names(lower.startsWith("vmcs.") ? "vmcs." : ""));
    return [...names]
      .map((n) => ({ n, distance: edit(lower, n.toLowerCase()) }))
      .filter((c) => c.distance <= worst)
      .sort((a, b) => a.distance - b.distance)
      .slice(0, 2)
      .map((c) => c.n);
  }

  private *names(prefix: string): Generator<string> {
    if (prefix.startsWith("vmcs.")) {
      for (const field of VMCS_FIELDS) yield `vmcs.${field.name}`;
      return;
    }
    yield* Object.keys(this.detail);
    for (const row of this.view.registers.rows) yield row.name;
    yield* PARTS.keys();
    yield* ["pc", "vcpu", "retired", "instructions"];
    yield* REASONS.keys();
  }

  /** Names that begin with `prefix`, with a sentence each. */
  completions(prefix: string): { label: string; help: string }[] {
    const lower = prefix.toLowerCase();
    const items: { label: string; help: string }[] = [];
    const offer = (label: string, help: string): void => {
      if (label.toLowerCase().startsWith(lower) && items.length < MAX_COMPLETIONS) items.push({ label, help });
    };
    for (const name of Object.keys(this.detail)) offer(name, "Detail of the trace point stopped at.");
    for (const row of this.view.registers.rows) {
      offer(row.name, row.help);
      if (lower.startsWith(row.name + "."))
        for (const bit of row.bits ?? []) offer(`${row.name}.${bit.name}`, bit.help);
    }
    for (const [name, part] of PARTS) offer(name, `Bits ${part.low + part.width - 1}:${part.low} of ${part.register}.`);
    if (lower.startsWith("vmcs.")) this.offerVmcs(lower, offer);
    else if (this.view.vmcs) offer("vmcs.", "Fields of the current VMCS.");
    const run = this.view.kvmRun;
    if (run && lower.startsWith("kvm_run."))
      for (const name of Object.keys(run)) offer(`kvm_run.${name}`, "Field of kvm_run.");
    else if (run) offer("kvm_run.", "Fields of the mapped kvm_run page.");
    offer("pc", "Linear address of the next instruction.");
    for (const name of REASONS.keys()) offer(name, "Exit reason.");
    if (prefix.length >= 2)
      for (const s of this.symbols.startingWith(prefix, MAX_COMPLETIONS - items.length)) offer(s.name, "Symbol.");
    return items;
  }

  private offerVmcs(lower: string, offer: (label: string, help: string) => void): void {
    for (const field of VMCS_FIELDS) {
      const name = `vmcs.${field.name}`;
      offer(name, field.help);
      if (lower.startsWith(name.toLowerCase() + "."))
        for (const bit of field.bits ?? []) offer(`${name}.${bit.name}`, bit.help);
    }
  }
}

function fromPlain(value: bigint | number | string | boolean): Result {
  switch (typeof value) {
    case "string":
      return value;
    case "boolean":
      return integer(value ? 1n : 0n);
    case "number":
      return integer(BigInt(Math.trunc(value)), value < 0);
    case "bigint":
      return integer(value, value < 0n);
  }
}

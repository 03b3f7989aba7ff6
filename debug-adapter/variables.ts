/** Scopes and variables: registers in groups, the VMCS with decoded bits, kvm_run, details of the trace point stopped at. */
import type { DebugProtocol } from "@vscode/debugprotocol";
import type { BitField, RegisterGroup } from "../engine/cpu/registers";
import type { FieldValue, VmcsFieldValue } from "../engine/debug/api";
import { describeBits, extract } from "../engine/debug/bits";
import { type Handlers, type SessionContext, vcpuOf } from "./context";
import type { NumberFormat } from "./custom-protocol";
import { codeAddress } from "./disassembly";
import { extendedText, laneTexts } from "./float-format";
import { formatValue, printReference } from "./format";
import type { Memory } from "./memory";
import type { FrameInfo, Stack } from "./stack";

interface Item {
  readonly name: string;
  readonly value: bigint | string;
  /** Bits. */
  readonly width: number;
  readonly decoded?: string;
  readonly help?: string;
  /** Expression that names it, and can be assigned unless `readOnly`. */
  readonly expression?: string;
  readonly readOnly?: boolean;
  readonly bits?: readonly BitField[];
  readonly memory?: string;
  readonly children?: () => Promise<readonly Item[]>;
}

interface Container {
  readonly vcpu: number;
  items(): Promise<readonly Item[]>;
}

const GROUP_TITLES: readonly (readonly [RegisterGroup, string])[] = [
  ["general", "General"],
  ["segment", "Segment"],
  ["control", "Control"],
  ["debug", "Debug"],
  ["msr", "MSRs"],
  ["fpu", "x87 and MMX"],
  ["vector", "Vector"],
];
/** In the order they are shown. */
const VMCS_TITLES: Readonly<Record<string, string>> = {
  "exit-information": "Exit information",
  "guest-state": "Guest state",
  "host-state": "Host state",
  "execution-control": "Execution controls",
  "exit-control": "Exit controls",
  "entry-control": "Entry controls",
};

export class Variables {
  private containers = new Map<number, Container>();
  private nextReference = 1;

  constructor(
    private readonly session: SessionContext,
    private readonly stack: Stack,
    private readonly memory: Memory,
  ) {}

  readonly handlers: Handlers = {
    scopes: (args: DebugProtocol.ScopesArguments) => this.scopes(args),
    variables: (args: DebugProtocol.VariablesArguments) => this.variables(args),
    setVariable: (args: DebugProtocol.SetVariableArguments) => this.setVariable(args),
    setExpression: (args: DebugProtocol.SetExpressionArguments) => this.setExpression(args),
  };

  forget(): void {
    this.containers = new Map();
  }

  private add(container: Container): number {
    const reference = this.nextReference++;
    this.containers.set(reference, container);
    return reference;
  }

  /** An expandable value made elsewhere (the console): its bits. */
  bitsReference(vcpu: number, value: bigint, expression: string | undefined, bits: readonly BitField[]): number {
    return this.add({
      vcpu,
      items: async () => bitItems(await this.current(vcpu, expression, value), expression, bits),
    });
  }

  /** A value as it is now: it may have been set since it was shown. */
  private async current(vcpu: number, expression: string | undefined, shown: bigint): Promise<bigint> {
    if (!expression) return shown;
    const { value } = await this.session.engine.request("evaluate", { vcpu, expression, readOnly: true });
    return typeof value === "bigint" ? value : shown;
  }

  private async scopes({ frameId }: DebugProtocol.ScopesArguments): Promise<DebugProtocol.ScopesResponse["body"]> {
    const frame = this.stack.frame(frameId);
    if (!frame) throw new Error("this stack frame is no longer there");
    const { vcpu } = frame;
    this.memory.vcpu = vcpu;
    const { engine } = this.session;
    const { fields } = await engine.request("readRegisters", { vcpu });
    const hasVmcs = (await engine.request("readVmcs", { vcpu })) !== null;
    const run = await engine.request("readKvmRun", { vcpu });
    const scopes: DebugProtocol.Scope[] = [];
    const scope = (name: string, expensive: boolean, items: () => Promise<readonly Item[]>, count?: number): void => {
      scopes.push({
        name,
        variablesReference: this.add({ vcpu, items }),
        expensive,
        ...(count === undefined ? {} : { namedVariables: count }),
        ...(name === "General" ? { presentationHint: "registers" } : {}),
      });
    };
    if (this.detailOf(frame)) scope("Stop", false, async () => this.detailItems(frame));
    for (const [group, title] of GROUP_TITLES) {
      const inGroup = fields.filter((f) => f.row.group === group);
      const count = inGroup.filter((f) => group !== "segment" || !isPart(f, inGroup)).length;
      if (count > 0) scope(title, group !== "general", () => this.registerItems(vcpu, group), count);
      if (group === "general" && fields.some((f) => f.name === "rflags"))
        scope("Flags", true, () => this.flagItems(vcpu));
    }
    if (hasVmcs) scope("VMCS", true, () => this.vmcsItems(vcpu));
    if (run) scope("kvm_run", true, () => this.kvmRunItems(vcpu), Object.keys(run.fields).length);
    return { scopes };
  }

  private detailOf(frame: FrameInfo): Readonly<Record<string, bigint | number | string | boolean>> | undefined {
    const { stop } = this.session;
    if (!stop || stop.vcpu !== frame.vcpu || stop.traceKind === 0) return undefined;
    return stop.detail && Object.keys(stop.detail).length > 0 ? stop.detail : undefined;
  }

  private detailItems(frame: FrameInfo): Item[] {
    return Object.entries(this.detailOf(frame) ?? {}).map(([name, value]) => ({
      name,
      value: typeof value === "number" ? BigInt(Math.trunc(value)) : typeof value === "boolean" ? String(value) : value,
      width: typeof value === "bigint" ? 64 : 32,
      expression: name,
      readOnly: true,
    }));
  }

  private async registerItems(vcpu: number, group: RegisterGroup): Promise<Item[]> {
    const read = async (): Promise<FieldValue[]> => {
      const { fields } = await this.session.engine.request("readRegisters", { vcpu });
      return fields.filter((f) => f.row.group === group);
    };
    const fields = await read();
    if (group === "segment") return segmentItems(fields, read);
    if (group === "fpu") return fields.map((field) => floatItem(field, fields));
    return group === "vector" ? fields.map((field) => vectorItem(field, read)) : fields.map(registerItem);
  }

  private async flagItems(vcpu: number): Promise<Item[]> {
    const { fields } = await this.session.engine.request("readRegisters", { vcpu });
    const flags = fields.find((f) => f.name === "rflags");
    return flags?.row.bits ? bitItems(flags.value, "rflags", flags.row.bits) : [];
  }

  private async vmcsItems(vcpu: number): Promise<Item[]> {
    const vmcs = await this.session.engine.request("readVmcs", { vcpu });
    if (!vmcs) return [];
    const groups = Object.keys(VMCS_TITLES).filter((group) => vmcs.fields.some((f) => f.group === group));
    return [
      {
        name: "pointer",
        value: vmcs.pointer,
        width: 64,
        readOnly: true,
        expression: "vmcs.pointer",
        help: "Physical address of the VMCS region.",
        memory: printReference({ space: "hpa", address: vmcs.pointer }),
      },
      ...groups.map((group): Item => {
        const fields = vmcs.fields.filter((f) => f.group === group);
        return {
          name: VMCS_TITLES[group] ?? group,
          value: `${fields.length} fields`,
          width: 0,
          readOnly: true,
          children: async () => {
            const now = await this.session.engine.request("readVmcs", { vcpu });
            return (now?.fields ?? []).filter((f) => f.group === group).map(vmcsItem);
          },
        };
      }),
    ];
  }

  private async kvmRunItems(vcpu: number): Promise<Item[]> {
    const run = await this.session.engine.request("readKvmRun", { vcpu });
    return Object.entries(run?.fields ?? {}).map(([name, value]) => ({
      name,
      value: typeof value === "number" ? BigInt(Math.trunc(value)) : value,
      width: typeof value === "bigint" ? 64 : 32,
      expression: `kvm_run.${name}`,
      readOnly: true,
    }));
  }

  private async variables(args: DebugProtocol.VariablesArguments): Promise<DebugProtocol.VariablesResponse["body"]> {
    const container = this.containers.get(args.variablesReference);
    if (!container) throw new Error("these values are no longer there: the machine has moved on");
    if (args.filter === "indexed") return { variables: [] };
    const items = await container.items();
    const start = args.start ?? 0;
    const page = items.slice(start, args.count ? start + args.count : undefined);
    const format = this.formatOf(args.format);
    return { variables: page.map((item) => this.variable(container.vcpu, item, format)) };
  }

  formatOf(format: DebugProtocol.ValueFormat | undefined): NumberFormat {
    return format?.hex ? "hex" : this.session.numbers;
  }

  private text(item: Pick<Item, "value" | "width" | "decoded">, format: NumberFormat): string {
    if (typeof item.value === "string") return item.value;
    const number = item.width === 1 ? String(item.value) : formatValue(item.value, item.width, format);
    return item.decoded ? `${number} ${item.decoded}` : number;
  }

  private variable(vcpu: number, item: Item, format: NumberFormat): DebugProtocol.Variable {
    const { bits, children, value } = item;
    const { client } = this.session;
    const reference = children
      ? this.add({ vcpu, items: children })
      : bits && typeof value === "bigint"
        ? this.bitsReference(vcpu, value, item.expression, bits)
        : 0;
    return {
      name: item.name,
      value: this.text(item, format),
      ...(client.variableTypes ? { type: item.help ?? (item.width > 0 ? `${item.width} bits` : "") } : {}),
      variablesReference: reference,
      ...(item.expression ? { evaluateName: item.expression } : {}),
      ...(item.memory && client.memoryReferences ? { memoryReference: item.memory } : {}),
      ...(item.readOnly ? { presentationHint: { attributes: ["readOnly"] } } : {}),
    };
  }

  private async setVariable(
    args: DebugProtocol.SetVariableArguments,
  ): Promise<DebugProtocol.SetVariableResponse["body"]> {
    const container = this.containers.get(args.variablesReference);
    if (!container) throw new Error("these values are no longer there: the machine has moved on");
    const item = (await container.items()).find((i) => i.name === args.name);
    if (!item) throw new Error(`there is no "${args.name}" here`);
    if (item.readOnly || !item.expression) throw new Error(`${args.name} cannot be changed`);
    // What the view shows may come back edited, the meaning still behind the number.
    const shown = item.decoded && args.value.trimEnd().endsWith(` ${item.decoded}`);
    const value = shown ? args.value.trimEnd().slice(0, -item.decoded.length) : args.value;
    const format = this.formatOf(args.format);
    await this.assign(container.vcpu, item.expression, value, format);
    const now = (await container.items()).find((i) => i.name === args.name) ?? item;
    const { value: text, type, variablesReference } = this.variable(container.vcpu, now, format);
    return { value: text, ...(type ? { type } : {}), variablesReference };
  }

  private async setExpression(
    args: DebugProtocol.SetExpressionArguments,
  ): Promise<DebugProtocol.SetExpressionResponse["body"]> {
    return this.assign(this.stack.vcpu(args.frameId), args.expression, args.value, this.formatOf(args.format));
  }

  private async assign(
    vcpu: number,
    target: string,
    value: string,
    format: NumberFormat,
  ): Promise<DebugProtocol.SetExpressionResponse["body"]> {
    // What a value looks like in the view ("0x80000011 PG|PE") may come back edited: the words are not part of it.
    const plain = /^\s*(-?(?:0[xX][0-9a-fA-F_]+|0[bB][01_]+|[0-9]+))(?:\s+[A-Za-z_].*)?\s*$/.exec(value)?.[1] ?? value;
    const { engine } = this.session;
    const right = await engine.request("evaluate", { vcpu, expression: plain, readOnly: true });
    if (typeof right.value === "string") throw new Error(`${target} must be a number, not the string "${right.value}"`);
    const expression = `${target} = ${right.value}`;
    const result = await engine.request("evaluate", { vcpu, expression });
    this.session.invalidate(["variables", "stacks"]);
    if (typeof result.value === "string") return { value: result.value };
    return { value: this.text(result, format), variablesReference: 0 };
  }

  /** Where the value of a variable lies in memory, for data breakpoints; undefined when it has no place there. */
  async memoryOf(variablesReference: number, name: string): Promise<string | undefined> {
    const container = this.containers.get(variablesReference);
    return (await container?.items())?.find((i) => i.name === name)?.memory;
  }

  useThread(threadId: number): void {
    this.memory.vcpu = vcpuOf(threadId);
  }
}

/** Registers whose value is an address people follow. */
const POINTERS: ReadonlySet<string> = new Set(
  "rax rbx rcx rdx rsi rdi rbp rsp r8 r9 r10 r11 r12 r13 r14 r15 cr2 gdtr.base idtr.base dr0 dr1 dr2 dr3".split(" "),
);
const PHYSICAL: ReadonlySet<string> = new Set(["cr3"]);
const PAGE_MASK = 0xf_ffff_ffff_f000n;

function registerItem(field: FieldValue): Item {
  const { name, value, row } = field;
  const memory = POINTERS.has(name)
    ? codeAddress(value)
    : PHYSICAL.has(name)
      ? printReference({ space: "gpa", address: value & PAGE_MASK })
      : undefined;
  return {
    name,
    value,
    width: row.width,
    expression: name,
    help: `${row.help} (SDM ${row.section})`,
    ...(row.bits ? { bits: row.bits, decoded: describeBits(value, row.bits) } : {}),
    ...(memory ? { memory } : {}),
  };
}

/** x87 registers with their number, or "empty" by the tags. */
function floatItem(field: FieldValue, all: readonly FieldValue[]): Item {
  const item = registerItem(field);
  const stack = /^st([0-7])$/.exec(field.name);
  if (!stack) return item;
  const word = (name: string): bigint => all.find((f) => f.name === name)?.value ?? 0n;
  const physical = (((word("fsw") >> 11n) & 7n) + BigInt(stack[1])) & 7n;
  const inUse = (word("ftw") >> physical) & 1n;
  return { ...item, decoded: inUse ? extendedText(field.value) : "empty" };
}

/** A vector register opens to its lanes in the usual types. */
function vectorItem(field: FieldValue, again: () => Promise<readonly FieldValue[]>): Item {
  const item = registerItem(field);
  const { width } = field.row;
  if (width < 128) return item;
  const children = async (): Promise<Item[]> => {
    const value = (await again()).find((f) => f.name === field.name)?.value ?? field.value;
    return laneTexts(value, width).map(({ name, text }) => ({ name, value: text, width: 0, readOnly: true }));
  };
  return { ...item, children };
}

/** A hidden part (`cs.base`) of a register that is itself among `fields`. */
function isPart({ name }: FieldValue, fields: readonly FieldValue[]): boolean {
  const [base, part] = name.split(".");
  return part !== undefined && fields.some((f) => f.name === base);
}

/**
 * One line a segment register, its hidden parts inside.
 * @param again reads the fields anew, for when a line is opened
 */
function segmentItems(fields: readonly FieldValue[], again: () => Promise<readonly FieldValue[]>): Item[] {
  const items: Item[] = [];
  for (const field of fields) {
    if (isPart(field, fields)) continue;
    const base = field.name;
    const partsIn = (all: readonly FieldValue[]): FieldValue[] => all.filter((f) => f.name.startsWith(`${base}.`));
    const parts = partsIn(fields);
    const item = registerItem(field);
    if (parts.length === 0) {
      items.push(item);
      continue;
    }
    const decoded = parts.map((p) => `${p.name.slice(base.length + 1)}=0x${p.value.toString(16)}`).join(" ");
    const children = async (): Promise<Item[]> => {
      const now = await again();
      const { value } = now.find((f) => f.name === base) ?? field;
      return [
        ...(item.bits ? bitItems(value, base, item.bits) : []),
        ...partsIn(now).map((p) => ({ ...registerItem(p), name: p.name.slice(base.length + 1) })),
      ];
    };
    items.push({ ...item, bits: undefined, decoded, children });
  }
  return items;
}

const VMCS_MEMORY = /(_ADDR|_BITMAP(_[AB])?|EPT_POINTER|VMCS_LINK_POINTER)$/;

function vmcsItem(field: VmcsFieldValue): Item {
  const physical = VMCS_MEMORY.test(field.name) && field.value !== 0n && field.name !== "EXCEPTION_BITMAP";
  return {
    name: field.name,
    value: field.value,
    width: field.width,
    expression: `vmcs.${field.name}`,
    help: `${field.help} (SDM ${field.section}, encoding 0x${field.encoding.toString(16)})`,
    readOnly: field.readOnly,
    ...(field.bits ? { bits: field.bits } : {}),
    ...(field.decoded ? { decoded: field.decoded } : {}),
    ...(physical ? { memory: printReference({ space: "hpa", address: field.value & PAGE_MASK }) } : {}),
  };
}

function bitItems(value: bigint, expression: string | undefined, bits: readonly BitField[]): Item[] {
  return bits.map((bit) => {
    const word = extract(value, bit);
    const decoded = bit.values?.[Number(word)];
    return {
      name: bit.name,
      value: word,
      width: bit.width,
      help: `${bit.help} (bit${bit.width > 1 ? `s ${bit.low + bit.width - 1}:${bit.low}` : ` ${bit.low}`})`,
      ...(decoded ? { decoded } : {}),
      ...(expression ? { expression: `${expression}.${bit.name}` } : { readOnly: true }),
    };
  });
}

/** Hovers, watches, the debug console with its commands, and completions. */
import type { DebugProtocol } from "@vscode/debugprotocol";
import type { EvaluateResult } from "../engine/debug/api";
import type { CancelToken, Handlers, SessionContext } from "./context";
import { codeAddress, type Disassembly } from "./disassembly";
import { formatValue, hex, printReference } from "./format";
import type { Memory } from "./memory";
import type { Stack } from "./stack";
import type { Variables } from "./variables";

interface Command {
  readonly usage: string;
  readonly help: string;
  run(argument: string, vcpu: number, token: CancelToken): Promise<string>;
}

const never: CancelToken = { check: () => {} };
const BYTES_A_LINE = 16;
const MAX_DUMP = 4096;

export class Evaluate {
  private readonly commands: Readonly<Record<string, Command>>;

  constructor(
    private readonly session: SessionContext,
    private readonly stack: Stack,
    private readonly variables: Variables,
    private readonly memory: Memory,
    private readonly disassembly: Disassembly,
  ) {
    this.commands = this.makeCommands();
  }

  readonly handlers: Handlers = {
    evaluate: (args: DebugProtocol.EvaluateArguments, token) => this.evaluate(args, token),
    completions: (args: DebugProtocol.CompletionsArguments) => this.completions(args),
  };

  private async evaluate(
    args: DebugProtocol.EvaluateArguments,
    token: CancelToken,
  ): Promise<DebugProtocol.EvaluateResponse["body"]> {
    const vcpu = this.stack.vcpu(args.frameId);
    const text = args.expression.trim();
    if (args.context === "repl") {
      const [word] = text.split(/\s+/, 1);
      if (Object.hasOwn(this.commands, word)) {
        const result = await this.commands[word].run(text.slice(word.length).trim(), vcpu, token);
        return { result, variablesReference: 0 };
      }
    }
    const readOnly = args.context !== "repl" && args.context !== "variables";
    const result = await this.session.engine.request("evaluate", { vcpu, expression: text, readOnly });
    if (!readOnly && /[^=!<>]=[^=]/.test(text)) this.session.invalidate(["variables", "stacks"]);
    return this.body(result, args);
  }

  private body(result: EvaluateResult, args: DebugProtocol.EvaluateArguments): DebugProtocol.EvaluateResponse["body"] {
    if (typeof result.value === "string") return { result: result.value, variablesReference: 0 };
    const { value, width, signed, decoded, memory, assignable, help } = result;
    const format = this.variables.formatOf(args.format);
    const negative = signed && value < 0n;
    const number =
      negative && !args.format?.hex
        ? String(value)
        : formatValue(value, signed && !negative ? bitLength(value) : width, format);
    if (args.context === "clipboard") return { result: number, variablesReference: 0 };
    const other = format === "hex" && (args.context === "repl" || args.context === "hover") ? ` (${value})` : "";
    const symbol = this.session.symbols.describe(value);
    const pointed = width === 64 && symbol ? ` <${symbol}>` : "";
    const { client } = this.session;
    const reference = memory ? printReference(memory) : codeAddress(BigInt.asUintN(64, value));
    return {
      result: `${number}${other}${pointed}${decoded ? ` ${decoded}` : ""}`,
      ...(client.variableTypes ? { type: help ?? `${width} bits` } : {}),
      variablesReference: 0,
      presentationHint: assignable ? {} : { attributes: ["readOnly"] },
      ...(client.memoryReferences ? { memoryReference: reference } : {}),
    };
  }

  private async completions(
    args: DebugProtocol.CompletionsArguments,
  ): Promise<DebugProtocol.CompletionsResponse["body"]> {
    const { columnsStartAt1, completionStarts } = this.session.client;
    const before = args.text.slice(0, Math.max(0, args.column - (columnsStartAt1 ? 1 : 0)));
    const word = /\$?[\w.]*$/.exec(before)?.[0] ?? "";
    const start = before.length - word.length;
    const vcpu = this.stack.vcpu(args.frameId);
    const { items } = await this.session.engine.request("completions", { vcpu, text: word.replace(/^\$/, "") });
    const place = {
      ...(completionStarts ? { start: start + (columnsStartAt1 ? 1 : 0) } : {}),
      length: word.length,
    };
    const commands =
      before.trim() === word && word !== "" ? Object.keys(this.commands).filter((c) => c.startsWith(word)) : [];
    return {
      targets: [
        ...commands.map((label) => ({ label, detail: this.commands[label].help, type: "method" as const, ...place })),
        ...items.map(({ label, help }) => ({ label, detail: help, type: "value" as const, ...place })),
      ],
    };
  }

  private makeCommands(): Record<string, Command> {
    const { session } = this;
    return {
      help: {
        usage: "help",
        help: "These commands.",
        run: async () => {
          const width = Math.max(...Object.values(this.commands).map((c) => c.usage.length));
          return [
            ...Object.values(this.commands).map((c) => `${c.usage.padEnd(width)}  ${c.help}`),
            "Anything else is an expression: rax + 8, vmcs.GUEST_RIP, u32[rsp], u8[gpa: 0x1000], rip = 0x7c00.",
          ].join("\n");
        },
      },
      exits: {
        usage: "exits",
        help: "VM exits so far, by reason.",
        run: async () => {
          const { exits, instructions } = await session.engine.request("stats", {});
          const rows = Object.entries(exits)
            .filter(([, count]) => count > 0)
            .sort((a, b) => b[1] - a[1]);
          const lines = rows.map(([name, count]) => `${String(count).padStart(12)}  ${name}`);
          return [...lines, `${String(instructions).padStart(12)}  instructions`].join("\n");
        },
      },
      regs: {
        usage: "regs [NAME]",
        help: "Registers whose names begin with NAME; the general ones without it.",
        run: async (argument, vcpu) => {
          const { fields } = await session.engine.request("readRegisters", { vcpu });
          const wanted = argument.toLowerCase();
          const chosen = fields.filter((f) => (wanted ? f.name.startsWith(wanted) : f.row.group === "general"));
          if (chosen.length === 0) throw new Error(`no register begins with "${argument}"`);
          return chosen
            .map(({ name, value, row }) => `${name.padEnd(12)} ${formatValue(value, row.width, session.numbers)}`)
            .join("\n");
        },
      },
      vmcs: {
        usage: "vmcs [TEXT]",
        help: "Fields of the current VMCS whose names contain TEXT.",
        run: async (argument, vcpu) => {
          const vmcs = await session.engine.request("readVmcs", { vcpu });
          if (!vmcs) throw new Error("this vCPU has no current VMCS");
          const wanted = argument.toUpperCase();
          const chosen = vmcs.fields.filter((f) => f.name.includes(wanted) && (wanted || f.value !== 0n));
          if (chosen.length === 0) throw new Error(`no VMCS field contains "${argument}"`);
          return chosen
            .map((f) => `${f.name.padEnd(32)} ${formatValue(f.value, f.width, session.numbers)} ${f.decoded}`.trimEnd())
            .join("\n");
        },
      },
      checks: {
        usage: "checks",
        help: "Why the last VM entry failed: every check that did not hold.",
        run: async () => {
          const { stop } = session;
          return typeof stop?.detail?.report === "string" && stop.detail.report
            ? stop.detail.report
            : "The machine is not stopped at a failed VM entry.";
        },
      },
      x: {
        usage: "x ADDRESS [COUNT]",
        help: "Memory as bytes; ADDRESS may begin with gpa: or hpa:.",
        run: async (argument, vcpu) => {
          const { address, count } = splitCount(argument, 64);
          const reference = await this.memory.resolve(address, vcpu);
          const bytes = await this.memory.read(reference, Math.min(count, MAX_DUMP), vcpu);
          if (bytes.length === 0) throw new Error(`no memory at ${printReference(reference)}`);
          return dump(reference.address, bytes);
        },
      },
      dis: {
        usage: "dis [ADDRESS] [COUNT]",
        help: "Disassembly, from the next instruction on without ADDRESS.",
        run: async (argument, vcpu, token) => {
          const context = await session.engine.request("codeContext", { vcpu });
          const { address, count } = splitCount(argument || "pc", 10);
          const place = await this.memory.resolve(address, vcpu);
          const rows = await this.disassembly.after(place, Math.min(count, 1000), context, token);
          return rows
            .map(
              (r) =>
                `${r.address === context.linear ? "=>" : "  "} ${codeAddress(r.address)}  ${this.disassembly.text(r)}`,
            )
            .join("\n");
        },
      },
      translate: {
        usage: "translate ADDRESS",
        help: "Guest-physical address of a linear one.",
        run: async (argument, vcpu) => {
          const { address } = await this.memory.resolve(argument, vcpu);
          const { physical } = await session.engine.request("translate", { vcpu, linear: address });
          return physical === null ? `${hex(address)} is not mapped` : `${hex(address)} -> gpa:${hex(physical)}`;
        },
      },
      symbols: {
        usage: "symbols TEXT",
        help: "Symbols whose names contain TEXT.",
        run: async (argument) => {
          const found = session.symbols.matching(argument, 100);
          if (found.length === 0) throw new Error(`no symbol contains "${argument}"`);
          return found.map((s) => `${codeAddress(s.address)}  ${s.name}`).join("\n");
        },
      },
      serial: {
        usage: "serial TEXT",
        help: "Types TEXT and Enter at the guest's serial port.",
        run: async (argument) => {
          await session.engine.request("serialInput", { bytes: new TextEncoder().encode(`${argument}\r`) });
          return "";
        },
      },
      hash: {
        usage: "hash",
        help: "Hash of the machine's whole state.",
        run: async () => (await session.engine.request("hash", {})).hash,
      },
    };
  }

  /** Runs a console command, for others than the console. */
  command(name: string, argument: string, vcpu: number): Promise<string> {
    return this.commands[name].run(argument, vcpu, never);
  }
}

/** Hexadecimal digits a literal result needs, in bits. */
function bitLength(value: bigint): number {
  return Math.max(1, value.toString(16).length) * 4;
}

/** "ADDRESS COUNT", where ADDRESS may hold spaces: a last word that is a plain number counts. */
function splitCount(argument: string, otherwise: number): { address: string; count: number } {
  const match = /^(.+?)\s+(0[xX][0-9a-fA-F]+|[0-9]+)$/.exec(argument);
  if (!match || /[-+*/%&|^<>:=]\s*$/.test(match[1])) return { address: argument, count: otherwise };
  return { address: match[1], count: Number(match[2]) };
}

function dump(address: bigint, bytes: Uint8Array): string {
  const lines: string[] = [];
  for (let i = 0; i < bytes.length; i += BYTES_A_LINE) {
    const line = [...bytes.subarray(i, i + BYTES_A_LINE)];
    const digits = line.map((b) => b.toString(16).padStart(2, "0")).join(" ");
    const text = line.map((b) => (b >= 32 && b < 127 ? String.fromCharCode(b) : ".")).join("");
    lines.push(`${codeAddress(address + BigInt(i))}  ${digits.padEnd(BYTES_A_LINE * 3 - 1)}  ${text}`);
  }
  return lines.join("\n");
}

/** ORC tables in each of their encodings, and stacks unwound by them (Documentation/arch/x86/orc-unwinder.rst). */
import { beforeEach, describe, expect, test } from "vitest";
import { FrameTables } from "../../../engine/debug/frames/cfi";
import { OrcRegister, OrcTable, type OrcType } from "../../../engine/debug/linux/orc";
import { SymbolIndex } from "../../../engine/debug/symbols";
import { unwind } from "../../../engine/debug/unwind";
import { FakeMachine, fakeConfig } from "../fake-machine";

const IPS = 0x6000;
const CODE = { from: 0x1000, to: 0x2000 };
const STACK = 0x9000n;

interface Row {
  readonly at: number;
  readonly sp?: number;
  readonly bp?: number;
  readonly spRegister?: number;
  readonly bpRegister?: number;
  readonly type?: OrcType;
}

/** Type bits as a version of Linux packs them. */
type Encoding = (type: OrcType) => number;
const OLD: Readonly<Record<OrcType, number>> = { call: 0, regs: 1, "regs-partial": 2, end: 0, undefined: 0 };
const ENCODINGS: Readonly<Record<string, Encoding>> = {
  "4.14 to 6.2": (type) => (OLD[type] << 8) | (type === "end" ? 1 << 10 : 0),
  "6.3": (type) => (OLD[type] << 8) | (type.startsWith("regs") ? 1 << 10 : 0) | (type === "end" ? 1 << 11 : 0),
  "since 6.4": (type) =>
    (["undefined", "end", "call", "regs", "regs-partial"].indexOf(type) << 8) | (type.startsWith("regs") ? 1 << 11 : 0),
};

let machine: FakeMachine;
const view = (): DataView => new DataView(machine.memory.buffer);
const word = (address: bigint, value: bigint): void => view().setBigUint64(Number(address), value, true);

beforeEach(() => {
  machine = new FakeMachine(fakeConfig([0x90], "none", 1), {
    trace: { armed: 0, hit: () => {} },
    serialOutput: () => {},
  });
});

/** Most entries are calls, as in a real kernel. */
const FILLERS: readonly Row[] = Array.from({ length: 60 }, (_, i) => ({ at: 0x1800 + i, sp: 8 }));

function table(rows: readonly Row[], encoding: Encoding): OrcTable {
  const all = [...rows, ...FILLERS];
  const entries = IPS + 4 * all.length;
  for (const [i, row] of all.entries()) {
    const { sp = 0, bp = 0, bpRegister = 0, type = "call" } = row;
    const spRegister = row.spRegister ?? (type === "end" || type === "undefined" ? 0 : OrcRegister.SP);
    view().setInt32(IPS + 4 * i, row.at - (IPS + 4 * i), true);
    view().setInt16(entries + 6 * i, sp, true);
    view().setInt16(entries + 6 * i + 2, bp, true);
    view().setUint16(entries + 6 * i + 4, spRegister | (bpRegister << 4) | encoding(type), true);
  }
  const at = (name: string, address: number): { name: string; address: bigint; size: bigint } => ({
    name,
    address: BigInt(address),
    size: 0n,
  });
  const found = OrcTable.find(
    machine,
    0,
    new SymbolIndex([
      at("__start_orc_unwind_ip", IPS),
      at("__stop_orc_unwind_ip", entries),
      at("__start_orc_unwind", entries),
      at("_stext", CODE.from),
      at("_etext", CODE.to),
    ]),
  );
  if (!found) throw new Error("no table");
  return found;
}

function stack(orc: OrcTable, rip: bigint, rsp: bigint): string[] {
  machine.vcpus[0].rip = rip;
  machine.vcpus[0].rsp = rsp;
  const frames = unwind(machine, 0, new SymbolIndex([]), { orc, frames: new FrameTables([]) }, 20);
  return frames.map((f) => `${f.interrupted ? "!" : ""}${f.guess ? "?" : ""}0x${f.linear.toString(16)}`);
}

describe("every encoding of the types", () => {
  for (const [versions, encoding] of Object.entries(ENCODINGS))
    test(`Linux ${versions}`, () => {
      const types: readonly OrcType[] = ["call", "regs", "regs-partial", "end", "undefined"];
      const orc = table(
        types.map((type, i) => ({ at: 0x1100 + 16 * i, sp: 16, type })),
        encoding,
      );
      expect(types.map((_, i) => orc.at(0, BigInt(0x1100 + 16 * i + 5))?.type)).toEqual(types);
      expect(orc.at(0, 0x10ffn)).toBeUndefined();
      expect(orc.at(0, 0x2000n)).toBeUndefined();
    });
});

const encoding = ENCODINGS["4.14 to 6.2"];

test("frames without a frame pointer: the caller's address lies below the previous stack pointer", () => {
  const orc = table(
    [
      { at: 0x1100, type: "end" },
      { at: 0x1200, sp: 8 },
      { at: 0x1204, sp: 0x30 },
      { at: 0x1300, sp: 8 },
      { at: 0x1301, sp: 16, bp: -16, bpRegister: OrcRegister.PREV_SP },
    ],
    encoding,
  );
  // Innermost: one push has been done; above it a frame of 0x30 bytes, and the end.
  word(STACK, 0x77n);
  word(STACK + 8n, 0x1210n);
  word(STACK + 16n + 0x28n, 0x1110n);
  expect(stack(orc, 0x1302n, STACK)).toEqual(["0x1302", "0x1210", "0x1110"]);
  // At the first instruction nothing has been pushed yet.
  word(STACK, 0x1210n);
  word(STACK + 8n + 0x28n, 0x1110n);
  expect(stack(orc, 0x1300n, STACK)).toEqual(["0x1300", "0x1210", "0x1110"]);
});

test("an address behind a call at a function's very end belongs to that function", () => {
  const orc = table(
    [
      { at: 0x1100, type: "end" },
      { at: 0x1200, sp: 0x18 },
      { at: 0x1220, sp: 0x100 },
      { at: 0x1300, sp: 8 },
    ],
    encoding,
  );
  word(STACK, 0x1220n);
  word(STACK + 8n + 0x10n, 0x1110n);
  expect(stack(orc, 0x1300n, STACK)).toEqual(["0x1300", "0x1220", "0x1110"]);
});

test("the frame pointer as base, and saved on the way", () => {
  const orc = table(
    [
      { at: 0x1100, type: "end" },
      { at: 0x1200, sp: 16, spRegister: OrcRegister.BP, bp: -16, bpRegister: OrcRegister.PREV_SP },
      { at: 0x1300, sp: 16, bp: -16, bpRegister: OrcRegister.PREV_SP },
    ],
    encoding,
  );
  const frame = STACK + 0x40n;
  word(STACK, frame);
  word(STACK + 8n, 0x1250n);
  word(frame, 0xdeadn);
  word(frame + 8n, 0x1110n);
  expect(stack(orc, 0x1310n, STACK)).toEqual(["0x1310", "0x1250", "0x1110"]);
});

test("another stack's top holds the stack pointer to go on with (SP_INDIRECT)", () => {
  const orc = table(
    [
      { at: 0x1100, type: "end" },
      { at: 0x1300, sp: 8, spRegister: OrcRegister.SP_INDIRECT },
    ],
    encoding,
  );
  word(STACK, 0xa000n);
  word(0xa000n, 0x1110n);
  expect(stack(orc, 0x1310n, STACK)).toEqual(["0x1310", "0x1110"]);
});

describe("through an interrupt", () => {
  const rows: readonly Row[] = [
    { at: 0x1100, type: "end" },
    { at: 0x1200, sp: 0x20, bp: -0x10, bpRegister: OrcRegister.PREV_SP },
    { at: 0x1400, type: "regs" },
    { at: 0x1500, type: "regs-partial" },
    { at: 0x1300, sp: 8 },
  ].sort((a, b) => a.at - b.at) as Row[];
  const regs = STACK + 0x10n;
  const before = 0xa000n;
  const pushed = (at: bigint, rip: bigint, cs: bigint): void => {
    word(at, rip);
    word(at + 8n, cs);
    word(at + 16n, 0x202n);
    word(at + 24n, before);
  };

  test("struct pt_regs holds the interrupted registers; its instruction itself is where the frame stands", () => {
    const orc = table(rows, encoding);
    word(STACK, 0x1410n);
    // The handler's frame: the return address at STACK, pt_regs right above it.
    pushed(STACK + 8n + 16n * 8n, 0x1200n, 0x10n);
    word(before + 0x18n, 0x1110n);
    expect(stack(orc, 0x1310n, STACK)).toEqual(["0x1310", "0x1410", "!0x1200", "0x1110"]);
  });

  test("of a partial one only the processor's own frame is there", () => {
    const orc = table(rows, encoding);
    pushed(regs, 0x1230n, 0x10n);
    word(before + 0x18n, 0x1110n);
    expect(stack(orc, 0x1508n, regs)).toEqual(["0x1508", "!0x1230", "0x1110"]);
  });

  test("a program that was interrupted is the next frame, outside the kernel's table", () => {
    const orc = table(rows, encoding);
    pushed(regs, 0x4000n, 0x33n);
    expect(stack(orc, 0x1508n, regs)).toEqual(["0x1508", "!0x4000"]);
  });
});

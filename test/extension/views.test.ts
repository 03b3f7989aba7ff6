import { describe, expect, test } from "vitest";
import type { CustomField } from "../../debug-adapter/custom-protocol";
import { fromBase64, toBase64 } from "../../extension/base64";
import { exitCounts, grouped } from "../../extension/exit-counts";
import { TerminalText } from "../../extension/terminal-text";
import { bitRange, fieldTooltip, spaced, vmcsTree } from "../../extension/vmcs-tree";

const field = (name: string, group: string, value: string, more: Partial<CustomField> = {}): CustomField => ({
  name,
  group,
  value,
  width: 64,
  decoded: "",
  help: "",
  section: "",
  bits: [],
  ...more,
});
const pe = { name: "PE", low: 0, width: 1, help: "Protection enable.", value: "0x1" };

describe("the VMCS view", () => {
  const fields = [
    field("vmcs.GUEST_CR0", "guest-state", "0x31", { bits: [pe] }),
    field("vmcs.GUEST_CR3", "guest-state", "0x1000"),
    field("vmcs.GUEST_ES_SELECTOR", "guest-state", "0x10"),
    field("vmcs.HOST_CR0", "host-state", "0x2000"),
    field("vmcs.EXIT_QUALIFICATION", "exit-information", "0x3f80000"),
  ];

  test("exit information comes first; groups say how much of them changed", () => {
    const before = new Map([
      ["vmcs.GUEST_CR3", "0xffe"],
      ["vmcs.HOST_CR0", "0x2000"],
    ]);
    const tree = vmcsTree(fields, before, false);
    expect(tree.map(({ name, changed }) => [name, changed])).toEqual([
      ["Exit information: Basic information", 0],
      ["Guest state: Control registers", 1],
      ["Guest state: Segments", 0],
      ["Host state: Control registers", 0],
    ]);
    const [cr0, cr3] = tree[1].fields;
    expect([cr0.before, cr3.before]).toEqual([undefined, "0xffe"]);
    expect(cr0.bits.map((b) => b.bit.name)).toEqual(["PE"]);
  });

  test("VM-exit information fields cannot be set, the others can (SDM 3C 25.11.2)", () => {
    const writable = vmcsTree(fields, new Map(), false).flatMap((g) => g.fields.map((f) => f.writable));
    expect(writable).toEqual([false, true, true, true, true]);
  });

  test("only changed fields, and groups with such", () => {
    const tree = vmcsTree(fields, new Map([["vmcs.GUEST_CR3", "0xffe"]]), true);
    expect(tree.map(({ name, fields: f }) => [name, f.map((n) => n.field.name)])).toEqual([
      ["Guest state: Control registers", ["vmcs.GUEST_CR3"]],
    ]);
  });

  test("the tooltip has the bit table and escapes what Markdown would take", () => {
    const [{ fields: nodes }] = vmcsTree(
      [field("vmcs.A_B", "g", "0x1", { bits: [pe], section: "3C 25.4.1" })],
      new Map(),
      false,
    );
    const text = fieldTooltip(nodes[0]);
    expect(text).toContain("**vmcs.A\\_B** = `0x1`");
    expect(text).toContain("| 0 | PE | `0x1` | Protection enable. |");
    expect(text).toContain("64 bits, SDM 3C 25.4.1");
  });

  test("bit ranges as the manuals write them, long values in groups of four digits", () => {
    expect(bitRange({ ...pe, low: 12, width: 40 })).toBe("51:12");
    expect(bitRange(pe)).toBe("0");
    expect(spaced("0xfee00000")).toBe("0xfee00000");
    expect(spaced("0x1fee00000")).toBe("0x0001'fee0'0000");
    expect(spaced("KVM_EXIT_IO")).toBe("KVM_EXIT_IO");
  });
});

describe("the VM exits view", () => {
  test("falling counts, growth since the stop before, no reason that never happened", () => {
    expect(exitCounts({ CPUID: 2, IO_INSTRUCTION: 6, HLT: 0 }, { IO_INSTRUCTION: 5 })).toEqual([
      { reason: "IO_INSTRUCTION", count: 6, more: 1, share: 0.75 },
      { reason: "CPUID", count: 2, more: 2, share: 0.25 },
    ]);
    expect(exitCounts({}, {})).toEqual([]);
  });

  test("numbers in groups of three digits", () => {
    expect([0, 999, 1000, 1234567].map(grouped)).toEqual(["0", "999", "1\u00a0000", "1\u00a0234\u00a0567"]);
  });
});

describe("the serial terminal", () => {
  test("a lone line feed starts at the left edge; CR LF stays as it is, also across pieces", () => {
    const text = new TerminalText();
    const take = (s: string): string => text.take(new TextEncoder().encode(s));
    expect(take("a\nb\r\nc\r")).toBe("a\r\nb\r\nc\r");
    expect(take("\nd")).toBe("\nd");
    expect(take("\n\n")).toBe("\r\n\r\n");
  });

  test("UTF-8 may arrive in pieces", () => {
    const text = new TerminalText();
    const bytes = new TextEncoder().encode("\u00e9\u2592");
    expect([...bytes].map((b) => text.take(Uint8Array.of(b))).join("")).toBe("\u00e9\u2592");
  });

  test("bytes survive base64", () => {
    const bytes = Uint8Array.from({ length: 256 }, (_, i) => i);
    expect(fromBase64(toBase64(bytes))).toEqual(bytes);
  });
});

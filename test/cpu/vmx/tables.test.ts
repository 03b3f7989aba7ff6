import { describe, expect, test } from "vitest";
import { VmxCapabilities } from "../../../engine/cpu/vmx/capabilities";
import {
  type ControlWord,
  CPU_BASED,
  PIN_BASED,
  SECONDARY_EXEC,
  VM_ENTRY,
  VM_EXIT,
} from "../../../engine/cpu/vmx/controls";
import {
  decodeQualification,
  EXIT_REASON_COUNT,
  EXIT_REASONS,
  ExitReason,
  exitReasonName,
} from "../../../engine/cpu/vmx/exit-reasons";
import { Field, VMCS_FIELDS, vmcsField, vmcsFieldByName } from "../../../engine/cpu/vmx/fields";
import { VM_INSTRUCTION_ERRORS, VmError } from "../../../engine/cpu/vmx/vm-instruction-errors";
import { VMCS_SIZE } from "../../../engine/cpu/vmx/vmcs";
import { testModel } from "./fake-cpu";

describe("VMCS fields (SDM 3D appendix B)", () => {
  test("every encoding and every name exists once, with its access-type bit and reserved bits clear", () => {
    expect(new Set(VMCS_FIELDS.map((f) => f.encoding)).size).toBe(VMCS_FIELDS.length);
    expect(new Set(VMCS_FIELDS.map((f) => f.name)).size).toBe(VMCS_FIELDS.length);
    for (const field of VMCS_FIELDS) expect(field.encoding & ~0x6ffe, field.name).toBe(0);
  });

  test("width, access and group follow from the encoding (3C 25.11.2)", () => {
    const of = (name: string) => vmcsFieldByName(name);
    expect(of("guest_rip")).toMatchObject({ encoding: 0x681e, width: "natural", access: "rw", group: "guest-state" });
    expect(of("VM_EXIT_REASON")).toMatchObject({ width: 32, access: "ro", group: "exit-information" });
    expect(of("EPT_POINTER")).toMatchObject({ width: 64, access: "rw", group: "execution-control" });
    expect(of("HOST_CS_SELECTOR")).toMatchObject({ width: 16, group: "host-state" });
    expect(of("VM_ENTRY_CONTROLS")).toMatchObject({ width: 32, group: "entry-control" });
    expect(of("VM_EXIT_MSR_LOAD_ADDR")).toMatchObject({ width: 64, group: "exit-control" });
  });

  test("slots do not overlap and fit a VMCS region", () => {
    const offsets = VMCS_FIELDS.map((f) => f.offset).sort((a, b) => a - b);
    for (let i = 1; i < offsets.length; i++) expect(offsets[i] - offsets[i - 1]).toBeGreaterThanOrEqual(8);
    expect(offsets[offsets.length - 1] + 8).toBeLessThanOrEqual(VMCS_SIZE);
  });

  test("the high half of a 64-bit field belongs to its row", () => {
    expect(vmcsField(Field.TSC_OFFSET + 1)?.name).toBe("TSC_OFFSET");
  });

  test("every row has help, a section and bits that lie inside its width", () => {
    for (const field of VMCS_FIELDS) {
      expect(field.help.length, field.name).toBeGreaterThan(3);
      expect(field.section).toMatch(/^3C \d+\.\d+/);
      const width = field.width === "natural" ? 64 : field.width;
      for (const bit of field.bits ?? [])
        expect(bit.low + bit.width, `${field.name}.${bit.name}`).toBeLessThanOrEqual(width);
    }
  });
});

describe("capability MSRs (SDM 3D appendix A)", () => {
  const capabilities = new VmxCapabilities(testModel);
  const msr = (index: number): bigint => {
    const value = capabilities.msr(index);
    if (value === undefined) throw new Error(`no MSR ${index.toString(16)}`);
    return value;
  };
  const words: readonly (readonly [string, ControlWord, number, number])[] = [
    ["pin-based", PIN_BASED, 0x481, 0x48d],
    ["processor-based", CPU_BASED, 0x482, 0x48e],
    ["exit", VM_EXIT, 0x483, 0x48f],
    ["entry", VM_ENTRY, 0x484, 0x490],
  ];

  for (const [name, word, plain, precise] of words) {
    test(`${name} controls: what must be 1 may be 1, default1 is 1 in the plain MSR, and unknown bits are fixed (A.2)`, () => {
      for (const index of [plain, precise]) {
        const must = Number(msr(index) & 0xffff_ffffn);
        const may = Number(msr(index) >> 32n);
        expect(must & ~may).toBe(0);
        for (let bit = 0; bit < 32; bit++) {
          const row = word.rows.find((r) => r.bit === bit);
          const isDefault1 = ((word.default1 >>> bit) & 1) === 1;
          if (!row && isDefault1) expect((must >>> bit) & 1, `bit ${bit}`).toBe(1);
          if (!row && !isDefault1) expect((may >>> bit) & 1, `bit ${bit}`).toBe(0);
        }
      }
      expect(Number(msr(plain) & 0xffff_ffffn)).toBe(word.default1 >>> 0);
      // The TRUE MSR differs from the plain one in nothing but allowed 0-settings of default1 bits (A.2).
      expect(msr(plain) >> 32n).toBe(msr(precise) >> 32n);
    });
  }

  test("secondary controls may all be 0 (A.3.3)", () => {
    expect(msr(0x48b) & 0xffff_ffffn).toBe(0n);
    expect(Number(msr(0x48b) >> 32n) & 2).toBe(2);
  });

  test("a control is allowed only when the model has the feature it is about (A.3.3)", () => {
    const may = Number(msr(0x48b) >> 32n);
    const bit = (name: string) => SECONDARY_EXEC.rows.find((r) => r.name === name)?.bit ?? -1;
    expect((may >> bit("ENABLE_RDTSCP")) & 1).toBe(1);
    expect((may >> bit("RDRAND_EXITING")) & 1).toBe(0);
  });

  test("IA32_VMX_BASIC: revision with bit 31 clear, 4-KByte regions, write-back, TRUE MSRs (A.1)", () => {
    const basic = msr(0x480);
    expect(basic & 0x8000_0000n).toBe(0n);
    expect((basic >> 32n) & 0x1fffn).toBe(4096n);
    expect((basic >> 50n) & 0xfn).toBe(6n);
    expect((basic >> 55n) & 1n).toBe(1n);
  });

  test("IA32_VMX_VMCS_ENUM holds the highest index of any field that exists (A.9)", () => {
    const highest = Math.max(
      ...VMCS_FIELDS.filter((f) => capabilities.hasField(f)).map((f) => (f.encoding >> 1) & 0x1ff),
    );
    expect(msr(0x48a)).toBe(BigInt(highest << 1));
  });

  test("fixed CR bits: every bit fixed to 1 may be 1 (A.7, A.8)", () => {
    expect(msr(0x486) & ~msr(0x487)).toBe(0n);
    expect(msr(0x488) & ~msr(0x489)).toBe(0n);
    expect(msr(0x488)).toBe(0x2000n);
  });

  test("IA32_VMX_VMFUNC allows EPTP switching and nothing else (A.11)", () => {
    expect(capabilities.msr(0x491)).toBe(1n);
  });
});

describe("exit reasons (SDM 3D appendix C)", () => {
  test("numbers are unique and below the count; names and help are there", () => {
    expect(new Set(EXIT_REASONS.map((r) => r.reason)).size).toBe(EXIT_REASONS.length);
    for (const row of EXIT_REASONS) {
      expect(row.reason).toBeLessThan(EXIT_REASON_COUNT);
      expect(row.help.length).toBeGreaterThan(3);
    }
    expect(exitReasonName(ExitReason.EPT_VIOLATION)).toBe("EPT_VIOLATION");
    expect(exitReasonName(0x8000_0021)).toBe("INVALID_STATE");
  });

  test("an I/O qualification names port, size in bytes and direction (3C table 28-5)", () => {
    const out = decodeQualification(ExitReason.IO_INSTRUCTION, 0x3f8_0000n);
    expect(out.text).toBe("out port 0x3f8 size 1");
    expect(out.parts).toMatchObject({ port: 0x3f8n, size: 1n, direction: "out", input: false, string: false });
    const ins = decodeQualification(ExitReason.IO_INSTRUCTION, 0x1f0_003bn);
    expect(ins.text).toBe("rep ins port 0x1f0 size 4");
    expect(ins.parts).toMatchObject({ input: true, string: true, rep: true });
  });

  test("a CR-access qualification names register and kind (3C table 28-3)", () => {
    expect(decodeQualification(ExitReason.CR_ACCESS, 0x303n).text).toBe("mov cr3, rbx");
    expect(decodeQualification(ExitReason.CR_ACCESS, 0x018n).text).toBe("mov rax, cr8");
    expect(decodeQualification(ExitReason.CR_ACCESS, 0x20n).parts.access).toBe("clts");
    expect(decodeQualification(ExitReason.CR_ACCESS, 0x10030n).text).toBe("lmsw 0x1");
  });

  test("an EPT-violation qualification names the access and what was allowed (3C table 28-7)", () => {
    const { text, parts } = decodeQualification(ExitReason.EPT_VIOLATION, 0x18an);
    expect(text).toBe("write, EPT allow r--");
    expect(parts).toMatchObject({ write: true, readable: true, writable: false, linearValid: true, translated: true });
    expect(decodeQualification(ExitReason.EPT_VIOLATION, 0x81n).text).toBe("read by the page walk, EPT allow ---");
  });

  test("an exception's qualification is the address for a page fault and DR6 bits for a debug exception", () => {
    expect(decodeQualification(0, 0x1234n, 0x8000_0b0e).parts).toMatchObject({ vector: 14n, faultAddress: 0x1234n });
    expect(decodeQualification(0, 0x4001n, 0x8000_0301).parts).toMatchObject({
      vector: 1n,
      bs: true,
      b0: true,
      b1: false,
    });
  });
});

test("VM-instruction errors have unique numbers (3C table 31-1)", () => {
  expect(new Set(VM_INSTRUCTION_ERRORS.map((e) => e.number)).size).toBe(VM_INSTRUCTION_ERRORS.length);
  expect(VmError.ENTRY_INVALID_HOST_STATE_FIELD).toBe(8);
});

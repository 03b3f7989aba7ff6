/** An instance and its two results in readable form. */
import { Decoder, DecoderOptions, Formatter, FormatterSyntax } from "iced-x86";
import { GPR_NAMES } from "../../../engine/cpu/state";
import { normalised } from "./batches";
import { COMPLETED, type Instance, type Result, startRip, type VectorState } from "./instance";

const hex = (value: bigint | number): string => `0x${value.toString(16)}`;

/** Most significant byte first, in words of 4 bytes. */
function bytesBackwards(bytes: Uint8Array): string {
  const text = Array.from(bytes, (b) => b.toString(16).padStart(2, "0"))
    .reverse()
    .join("");
  return text.replace(/(.{8})(?=.)/g, "$1_");
}

// biome-ignore format: a table
const FLAG_NAMES: readonly (readonly [number, string])[] = [
  [0x001, "CF"], [0x004, "PF"], [0x010, "AF"], [0x040, "ZF"], [0x080, "SF"], [0x400, "DF"], [0x800, "OF"],
];

function flagText(flags: number): string {
  return FLAG_NAMES.map(([bit, name]) => (flags & bit ? name : name.toLowerCase())).join(" ");
}

export function disassemble(instance: Instance): string {
  const decoder = new Decoder(instance.mode, instance.code.subarray(0, instance.length), DecoderOptions.None);
  decoder.ip = startRip(instance);
  const formatter = new Formatter(FormatterSyntax.Nasm);
  const lines: string[] = [];
  while (decoder.canDecode) {
    const decoded = decoder.decode();
    lines.push(formatter.format(decoded));
    decoded.free();
  }
  formatter.free();
  decoder.free();
  return lines.join("; ");
}

/** Every difference between two results, and what the instance started from. */
export function describeDifference(instance: Instance, expected: Result, actual: Result): string {
  const want = normalised(instance, expected);
  const got = normalised(instance, actual);
  const bytes = Array.from(instance.code.subarray(0, instance.length), (b) => b.toString(16).padStart(2, "0")).join(
    " ",
  );
  const lines = [`${instance.mode}-bit ${bytes}: ${disassemble(instance)}`];
  const outcome = (vector: number): string => (vector === COMPLETED ? "completed" : `exception ${vector}`);
  const differ = (name: string, a: string, b: string): void => {
    if (a !== b) lines.push(`  ${name}: processor ${a}, engine ${b}`);
  };
  differ("outcome", outcome(want.vector), outcome(got.vector));
  differ("error code", hex(want.error), hex(got.error));
  differ("cr2", hex(want.cr2), hex(got.cr2));
  differ("rip", hex(want.rip), hex(got.rip));
  ["cs", "ss", "ds", "es"].forEach((name, i) => {
    differ(name, hex(want.selectors[i]), hex(got.selectors[i]));
  });
  differ("flags", flagText(want.rflags), flagText(got.rflags));
  for (let i = 0; i < 16; i++) differ(GPR_NAMES[i], hex(want.gpr[i]), hex(got.gpr[i]));
  if (want.state && got.state) {
    const { state: a } = want;
    const { state: b } = got;
    for (let i = 0; i < 16; i++) {
      const lanes = (v: VectorState): string => bytesBackwards(v.ymm.subarray(i * 32, i * 32 + 32));
      differ(`ymm${i}`, lanes(a), lanes(b));
    }
    for (let i = 0; i < 8; i++) {
      const st = (v: VectorState): string => bytesBackwards(v.x87.subarray(i * 16, i * 16 + 10));
      differ(`st${i}`, st(a), st(b));
    }
    for (const name of ["fcw", "fsw", "ftw", "mxcsr"] as const) differ(name, hex(a[name]), hex(b[name]));
  }
  const words = new Set([...want.changes, ...got.changes].map((change) => change.word));
  for (const word of [...words].sort((a, b) => a - b)) {
    const value = (r: Result): string => {
      const change = r.changes.find((c) => c.word === word);
      return change ? hex(change.value) : "unchanged";
    };
    differ(`data window +${hex(word * 8)}`, value(want), value(got));
  }
  lines.push(`  before: rip ${hex(startRip(instance))} ${flagText(instance.rflags)}`);
  for (let i = 0; i < 16; i += 4) {
    lines.push(`    ${[0, 1, 2, 3].map((k) => `${GPR_NAMES[i + k]} ${hex(instance.gpr[i + k])}`).join("  ")}`);
  }
  if (instance.vector) {
    const { ymm, mxcsr, fsw, ftw } = instance.vector;
    lines.push(`    mxcsr ${hex(mxcsr)} fsw ${hex(fsw)} ftw ${hex(ftw)}`);
    for (const [i, st] of Array.from({ length: 8 }, (_, n) => n).entries()) {
      const bytes = instance.vector.x87.subarray(st * 16, st * 16 + 10);
      if (/mm\d/.test(lines[0]) && new RegExp(`\\bmm${i}\\b`).test(lines[0]))
        lines.push(`    st${i} ${bytesBackwards(bytes)}`);
    }
    for (let i = 0; i < 16; i++) {
      if (new RegExp(`[xy]mm${i}\\b`).test(lines[0]))
        lines.push(`    ymm${i} ${bytesBackwards(ymm.subarray(i * 32, i * 32 + 32))}`);
    }
  }
  if (instance.patchLength > 0) {
    const patch = Array.from(instance.patch.subarray(0, instance.patchLength), (b) => b.toString(16).padStart(2, "0"));
    lines.push(`    data window +${hex(instance.patchAt)}: ${patch.join(" ")}`);
  }
  return lines.join("\n");
}

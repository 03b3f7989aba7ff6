import { describe, expect, test } from "vitest";
import type { Cpu } from "../../../engine/cpu/cpu";
import { CpuEngine } from "../../../engine/cpu/engine";
import { Off } from "../../../engine/cpu/state";
import { CODE, DATA, EAGER, type LongMode, longMode, SMALL, SMALL_TABLE } from "../long-mode";

const RAX = 0;
const RCX = 1;
const RDI = 7;

const CR0 = { EM: 1n << 2n, TS: 1n << 3n } as const;
const CR4 = { OSFXSR: 1n << 9n, OSXMMEXCPT: 1n << 10n, OSXSAVE: 1n << 18n } as const;

const tiers = [
  ["tier 0", {}],
  ["tier 1", { tier: 1, tuning: EAGER }],
] as const;

/** Bits of control registers that make all vector instructions available. */
function enable(m: LongMode, without: { cr0?: bigint; cr4?: bigint; xcr0?: bigint } = {}): LongMode {
  const { state } = m.cpu;
  state.setU64(Off.CR0, 0x8001_0031n | (without.cr0 ?? 0n));
  state.setU64(Off.CR4, (0x20n | CR4.OSFXSR | CR4.OSXMMEXCPT | CR4.OSXSAVE) & ~(without.cr4 ?? 0n));
  state.setU64(Off.XCR0, 7n & ~(without.xcr0 ?? 0n));
  state.setU32(Off.MXCSR, 0x1f80);
  m.cpu.contextChanged();
  m.setGpr(RDI, BigInt(DATA));
  return m;
}

/** Half a vector register: XMM in 0, bytes 16 to 31 in 1. */
const quads = (cpu: Cpu, register: number, half = 0): [bigint, bigint] => {
  const at = Off.VECTOR + register * 64 + half * 16;
  return [cpu.state.u64(at), cpu.state.u64(at + 8)];
};

function setQuads(cpu: Cpu, register: number, ...values: readonly bigint[]): void {
  for (const [i, v] of values.entries()) cpu.state.setU64(Off.VECTOR + register * 64 + i * 8, v);
}

/** Runs code until it faults (there is no IDT: the processor shuts down) and tells the first exception's vector. */
function faultOf(m: LongMode, code: readonly number[]): number {
  m.start(code);
  const vectors: number[] = [];
  const unit = m.cpu;
  const { state } = unit;
  for (let i = 0; i < code.length && vectors.length === 0; i++) {
    const { rip } = state;
    state.setU32(Off.FAULT_VECTOR, 0xff);
    unit.run(1);
    if (state.u32(Off.FAULT_VECTOR) !== 0xff) vectors.push(firstFault(m, rip));
    if (state.activity !== 0) break;
  }
  return vectors[0] ?? -1;
}

/** The exception of the instruction at `rip`: delivering it fails, so the record's own vector is looked up again. */
function firstFault(m: LongMode, rip: bigint): number {
  const { cpu } = m;
  const raised: number[] = [];
  const original = cpu.state.setU32.bind(cpu.state);
  cpu.state.setU32 = (offset, value): void => {
    if (offset === Off.FAULT_VECTOR) raised.push(value);
    original(offset, value);
  };
  cpu.state.activity = 0;
  cpu.state.rip = rip;
  cpu.run(1);
  cpu.state.setU32 = original;
  return raised[0] ?? cpu.state.u32(Off.FAULT_VECTOR);
}

void CpuEngine;
void faultOf;
void RAX;
void RCX;
void SMALL;
void SMALL_TABLE;
void CODE;
void quads;
void setQuads;
void enable;
void tiers;
void describe;
void expect;
void test;

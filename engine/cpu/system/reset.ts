/** Power-up and INIT state (SDM 3A table 9-1). */
import type { Cpu } from "../cpu";
import { Activity, Gpr, Off, Rflags, Seg } from "../state";
import { Cr0, Dr6, Dr7 } from "./bits";
import { resetMsrs } from "./msrs";
import { seedRandom } from "./random";

/** First instruction: CS.base + RIP = 0xfffffff0. */
const RESET_CS_BASE = 0xffff_0000n;
const RESET_RIP = 0xfff0n;

const PRESENT_CODE = 0x9b;
const PRESENT_DATA = 0x93;
const PRESENT_LDT = 0x82;
const BUSY_TSS = 0x8b;

const PAT_RESET = 0x0007_0406_0007_0406n;
const MXCSR_RESET = 0x1f80;
/** x87 control word of power-up; FNINIT sets another. */
const FCW_RESET = 0x40;

/** IA32_APIC_BASE of a processor whose interrupt controller does not say. */
const APIC_BASE_ENABLED = 0xfee0_0800n;
const APIC_BASE_BSP = 0x100n;

/** Fast strings; no branch trace store, no PEBS. */
const MISC_ENABLE_RESET = 0x1801n;

/** Both kinds: what INIT resets too. */
function common(cpu: Cpu): void {
  const { state } = cpu;
  for (let i = 0; i < 16; i++) state.setGpr(i, 0n);
  const signature = cpu.model.leaves.find((l) => l.leaf === 1)?.eax ?? 0;
  state.setGpr(Gpr.RDX, BigInt(signature >>> 0));
  state.rflags = Rflags.FIXED;
  state.rip = RESET_RIP;
  state.setSegment(Seg.CS, 0xf000, RESET_CS_BASE, 0xffff, PRESENT_CODE);
  for (const seg of [Seg.SS, Seg.DS, Seg.ES, Seg.FS, Seg.GS]) state.setSegment(seg, 0, 0n, 0xffff, PRESENT_DATA);
  state.setSegment(Seg.LDTR, 0, 0n, 0xffff, PRESENT_LDT);
  state.setSegment(Seg.TR, 0, 0n, 0xffff, BUSY_TSS);
  state.setU64(Off.GDTR_BASE, 0n);
  state.setU32(Off.GDTR_LIMIT, 0xffff);
  state.setU64(Off.IDTR_BASE, 0n);
  state.setU32(Off.IDTR_LIMIT, 0xffff);
  state.setU64(Off.CR2, 0n);
  state.setU64(Off.CR3, 0n);
  state.setU64(Off.CR4, 0n);
  state.setU64(Off.EFER, 0n);
  for (let i = 0; i < 4; i++) state.setU64(Off.DR0 + i * 8, 0n);
  state.setU64(Off.DR6, BigInt(Dr6.FIXED));
  state.setU64(Off.DR7, BigInt(Dr7.FIXED));
  state.setU64(Off.PENDING_DEBUG, 0n);
  state.setU32(Off.INHIBIT, 0);
}

/** Brings a processor to its state behind a power-up or an INIT. The caller re-derives the context. */
export function resetProcessor(cpu: Cpu, kind: "power-up" | "init"): void {
  const { state } = cpu;
  // INIT leaves the cache controls of CR0 alone.
  const cache = kind === "init" ? state.lo(Off.CR0) & (Cr0.CD | Cr0.NW) : Cr0.CD | Cr0.NW;
  common(cpu);
  state.setU64(Off.CR0, BigInt((Cr0.ET | cache) >>> 0));
  if (kind === "power-up") powerUp(cpu);
  else cpu.interrupts.init?.();
  const apicBase = cpu.interrupts.readMsr(0x1b) ?? APIC_BASE_ENABLED | (cpu.id === 0 ? APIC_BASE_BSP : 0n);
  state.setU64(Off.APIC_BASE, apicBase);
  state.setU32(Off.PENDING, 0);
  // Application processors wait for their start-up IPI (SDM 3A 9.4.1).
  state.activity = apicBase & APIC_BASE_BSP ? Activity.ACTIVE : Activity.WAIT_FOR_SIPI;
  cpu.mmu.flushEverything();
}

function powerUp(cpu: Cpu): void {
  const { state } = cpu;
  const zero = [
    ...[Off.STAR, Off.LSTAR, Off.CSTAR, Off.FMASK, Off.KERNEL_GS_BASE, Off.TSC_AUX],
    ...[Off.SYSENTER_CS, Off.SYSENTER_ESP, Off.SYSENTER_EIP, Off.DEBUGCTL, Off.FEATURE_CONTROL, Off.TSC_ADJUST],
    ...[Off.SPEC_CTRL, Off.PERF_GLOBAL_CTRL, Off.MTRR_DEF_TYPE, Off.XSS, Off.PKRS, Off.PKRU],
  ];
  for (const offset of zero) state.setU64(offset, 0n);
  for (let i = 0; i < 11; i++) state.setU64(Off.MTRR_FIXED + i * 8, 0n);
  for (let i = 0; i < 16; i++) state.setU64(Off.MTRR_VARIABLE + i * 8, 0n);
  for (let i = 0; i < 7; i++) state.setU64(Off.CET + i * 8, 0n);
  resetMsrs(cpu);
  seedRandom(cpu);
  state.setU64(Off.MISC_ENABLE, MISC_ENABLE_RESET);
  state.setU64(Off.PAT, PAT_RESET);
  state.setU64(Off.XCR0, 1n);
  state.setU64(Off.TSC_BASE, BigInt.asUintN(64, -BigInt(cpu.clock.now)));
  state.setU32(Off.SMBASE, 0x3_0000);
  state.setU64(Off.VMCS_POINTER, 0xffff_ffff_ffff_ffffn);
  state.setU64(Off.VMXON_POINTER, 0xffff_ffff_ffff_ffffn);
  const { view, base } = state;
  view.setUint16(base + Off.FCW, FCW_RESET, true);
  view.setUint16(base + Off.FSW, 0, true);
  // Tag word 5555H: every register holds a zero.
  view.setUint16(base + Off.FTW, 0xff, true);
  view.setUint32(base + Off.MXCSR, MXCSR_RESET, true);
}

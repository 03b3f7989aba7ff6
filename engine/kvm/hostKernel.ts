/**
 * The little of the host kernel that KVM leans on: physical processors as Linux leaves them after boot, host interrupts
 * with their dispatch, and the MSRs the host kernel reads and writes with rdmsr and wrmsr.
 *
 * Host time is virtual time. A clock event that falls due while a guest runs reaches the processor as the local timer's
 * interrupt, so the guest exits (EXTERNAL_INTERRUPT) exactly at the event's instruction count, and the timer interrupt's
 * handler runs every expired timer (hrtimer_interrupt).
 */
import type { VirtualClock } from "../clock";
import type { Cpu, InterruptPort } from "../cpu/cpu";
import { Off, Seg } from "../cpu/state";

/** Vectors of the host's own interrupts (arch/x86/include/asm/irq_vectors.h). */
export const HostVector = {
  LOCAL_TIMER: 0xec,
  POSTED_INTR: 0xf2,
  CALL_FUNCTION_SINGLE: 0xfb,
  RESCHEDULE: 0xfd,
} as const;

/** Selectors of the host kernel (arch/x86/include/asm/segment.h). */
export const HostSelector = { KERNEL_CS: 0x10, KERNEL_DS: 0x18, TSS: 0x40 } as const;

/** What the host kernel's part of a local APIC holds, plain data. */
export interface HostInterruptsState {
  /** Vectors waiting, ascending. */
  requests: number[];
  /** Task-priority class; the host kernel leaves it 0. */
  cr8: number;
}

/** A physical processor's local APIC, as far as KVM's host uses it: vectors that become pending and are acknowledged. */
export class HostInterrupts implements InterruptPort {
  state: HostInterruptsState = { requests: [], cr8: 0 };

  /** Makes a host vector pending. The caller gives the processor attention. */
  raise(vector: number): void {
    const { requests } = this.state;
    if (requests.includes(vector)) return;
    requests.push(vector);
    requests.sort((a, b) => a - b);
  }

  pending(): number {
    const { requests } = this.state;
    return requests.length > 0 ? requests[requests.length - 1] : -1;
  }

  acknowledge(): number {
    return this.state.requests.pop() ?? -1;
  }

  readCr8(): number {
    return this.state.cr8;
  }

  writeCr8(value: number): void {
    this.state.cr8 = value & 0xf;
  }

  /** The host kernel of the model never touches its APIC through these. */
  readMsr(_index: number): bigint | undefined {
    return undefined;
  }

  writeMsr(_index: number, _value: bigint): boolean {
    return false;
  }
}

const CR0_PE_MP_ET_NE_WP_AM_PG = 0x80050033n;
const CR4_HOST = 0x6f0n; // PSE, PAE, MCE, PGE, OSFXSR, OSXMMEXCPT
const EFER_SCE_LME_LMA_NX = 0xd01n;
const FEATURE_CONTROL_LOCKED_VMX = 5n;
/** Write back, write through, UC-, UC; then the same with WP and WC (arch/x86/mm/pat). */
const PAT_LINUX = 0x0407050600070106n;
const CODE64 = 0xa09b;
const DATA = 0xc093;
const TSS_BUSY = 0x8b;

/** Where the host kernel's descriptor tables and percpu areas would be; only VM exits load these numbers. */
const GDT_BASE = 0xfffffe0000001000n;
const IDT_BASE = 0xfffffe0000000000n;
const TSS_BASE = 0xfffffe0000003000n;
const PERCPU_BASE = 0xffff888000000000n;

/** Host kernel's entry point for VM exits, in place of the address of vmx_vmexit. */
export const VMX_VMEXIT = 0xffffffff81c01000n;
/** Host linear address of the SYSENTER entry; nothing runs there. */
export const SYSENTER_ENTRY = 0xffffffff81c02000n;
/** Host linear addresses of a processor's tables, as VMCS host state has them. */
export const HOST_TABLES = { GDT_BASE, IDT_BASE, TSS_BASE, PERCPU_BASE } as const;

/** Leaves a processor as a booted 64-bit Linux kernel has it (ring 0, long mode, interrupts off), VMX allowed by firmware. */
export function bootHostProcessor(cpu: Cpu, pageTable: number): void {
  const s = cpu.state;
  s.setU64(Off.CR0, CR0_PE_MP_ET_NE_WP_AM_PG);
  s.setU64(Off.CR3, BigInt(pageTable));
  s.setU64(Off.CR4, CR4_HOST);
  s.setU64(Off.EFER, EFER_SCE_LME_LMA_NX);
  s.setU64(Off.FEATURE_CONTROL, FEATURE_CONTROL_LOCKED_VMX);
  s.setU64(Off.PAT, PAT_LINUX);
  s.setSegment(Seg.CS, HostSelector.KERNEL_CS, 0n, 0xffffffff, CODE64);
  s.setSegment(Seg.SS, HostSelector.KERNEL_DS, 0n, 0xffffffff, DATA);
  for (const seg of [Seg.DS, Seg.ES, Seg.FS, Seg.GS]) s.setSegment(seg, 0, 0n, 0, 1 << 16);
  s.setU64(Off.SEG + Seg.GS * 24, PERCPU_BASE + BigInt(cpu.id) * 0x40000n);
  s.setSegment(Seg.LDTR, 0, 0n, 0, 1 << 16);
  s.setSegment(Seg.TR, HostSelector.TSS, TSS_BASE + BigInt(cpu.id) * 0x4000n, 0x206f, TSS_BUSY);
  s.setU64(Off.GDTR_BASE, GDT_BASE);
  s.setU32(Off.GDTR_LIMIT, 0x7f);
  s.setU64(Off.IDTR_BASE, IDT_BASE);
  s.setU32(Off.IDTR_LIMIT, 0xfff);
  s.setU64(Off.SYSENTER_CS, BigInt(HostSelector.KERNEL_CS));
  s.setU64(Off.SYSENTER_EIP, SYSENTER_ENTRY);
  s.setU64(Off.SYSENTER_ESP, TSS_BASE);
  s.setU64(Off.RIP, VMX_VMEXIT);
  s.setU32(Off.CPL, 0);
  s.rflags = 2;
  s.activity = 0;
  s.setU32(Off.INHIBIT, 0);
  s.setU32(Off.PENDING, 0);
  cpu.contextChanged();
}

/**
 * The host's handler of `vector`. KVM calls it for the interrupt an EXTERNAL_INTERRUPT exit acknowledged, and wherever the
 * kernel would open interrupts (local_irq_enable). Reschedule and function-call interrupts have done their work by
 * arriving: the processor has left the guest.
 */
export function hostInterrupt(clock: VirtualClock, vector: number): void {
  if (vector === HostVector.LOCAL_TIMER) hrtimerInterrupt(clock);
}

/** hrtimer_interrupt: runs all timers that have expired. */
function hrtimerInterrupt(clock: VirtualClock): void {
  clock.runDue();
}

/** local_irq_enable: takes what is pending on this processor, the timer included. */
export function localIrqEnable(clock: VirtualClock, port: HostInterrupts): void {
  while (port.pending() >= 0) hostInterrupt(clock, port.acknowledge());
  if (clock.nextEventAt <= clock.now) hrtimerInterrupt(clock);
}

/** MSRs the host kernel reads and writes directly, by where the processor keeps them. */
// biome-ignore format: a table
const HOST_MSRS: ReadonlyMap<number, number> = new Map([
  [0xc0000080, Off.EFER], [0xc0000081, Off.STAR], [0xc0000082, Off.LSTAR], [0xc0000083, Off.CSTAR],
  [0xc0000084, Off.FMASK], [0xc0000102, Off.KERNEL_GS_BASE], [0xc0000103, Off.TSC_AUX], [0x3a, Off.FEATURE_CONTROL],
  [0x277, Off.PAT], [0x174, Off.SYSENTER_CS], [0x175, Off.SYSENTER_ESP], [0x176, Off.SYSENTER_EIP], [0xda0, Off.XSS],
]);

/** @throws RangeError for an MSR outside the table above */
function msrOffset(index: number): number {
  const offset = HOST_MSRS.get(index);
  if (offset === undefined) throw new RangeError(`host MSR ${index.toString(16)} is not one the host kernel uses`);
  return offset;
}

/** Reads an MSR of the physical processor. */
export const rdmsrl = (cpu: Cpu, index: number): bigint => cpu.state.u64(msrOffset(index));
/** Writes an MSR of the physical processor, without checks. */
export const wrmsrl = (cpu: Cpu, index: number, value: bigint): void => cpu.state.setU64(msrOffset(index), value);

/** RDTSC of a physical processor. */
export const rdtsc = (cpu: Cpu): bigint => BigInt(cpu.clock.now) + cpu.state.u64(Off.TSC_BASE);

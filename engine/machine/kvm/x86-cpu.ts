/**
 * A vCPU as QEMU sees it (X86CPU) and the x86 part of the KVM accelerator (target/i386/kvm/kvm.c): CPUID construction,
 * registers to the kernel, and exits only x86 has.
 */
import type { CpuModel } from "../../cpu/models/model";
import { GPR_NAMES } from "../../cpu/state";
import type { KvmVcpuFd } from "../../kvm/fds";
import {
  KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
  type KvmCpuidEntry2,
  KvmExit,
  KvmMpState,
  type KvmRegs,
  type KvmRun,
  type KvmSegment,
  type KvmSregs,
} from "../../kvm/uapi";
import { cpuidOf, type Topology } from "../cpuid";
import type { EntrySegment, EntryState } from "../entry-state";
import type { KVMState } from "./kvm-state";

export interface X86CpuState {
  /** kvm_init_vcpu has been done. */
  created: boolean;
  /** The registers here are newer than the kernel's and go in before the next KVM_RUN. */
  vcpuDirty: boolean;
  /** CPU_INTERRUPT-like request to leave kvm_cpu_exec. */
  exitRequest: boolean;
  /** KVM_RUN returns by exit reason. */
  userspaceExits: Record<number, number>;
}

export class X86Cpu {
  state: X86CpuState = { created: false, vcpuDirty: true, exitRequest: false, userspaceExits: {} };
  /** The mapped vCPU; there from kvm_init_vcpu on. */
  kvmFd!: KvmVcpuFd;
  /** What the boot processor starts with; application processors wait for INIT and SIPI. */
  entry: EntryState | null = null;

  constructor(
    readonly index: number,
    readonly model: CpuModel,
    readonly topology: Topology,
  ) {}

  get kvmRun(): KvmRun {
    return this.kvmFd.run;
  }
}

/** EXCP_*: why kvm_cpu_exec came back. */
export const Excp = { INTERRUPT: 0x10000, HLT: 0x10001, DEBUG: 0x10002, HALTED: 0x10003, YIELD: 0x10004 } as const;

/** Feature words: what userspace asks for is cut to what KVM supports (x86_cpu_filter_features). */
const FEATURE_WORDS: readonly { leaf: number; index: number; registers: readonly ("eax" | "ebx" | "ecx" | "edx")[] }[] =
  [
    { leaf: 1, index: 0, registers: ["ecx", "edx"] },
    { leaf: 6, index: 0, registers: ["eax"] },
    { leaf: 7, index: 0, registers: ["ebx", "ecx", "edx"] },
    { leaf: 0xd, index: 0, registers: ["eax", "edx"] },
    { leaf: 0xd, index: 1, registers: ["eax"] },
    { leaf: 0x80000001, index: 0, registers: ["ecx", "edx"] },
    { leaf: 0x80000008, index: 0, registers: ["ebx"] },
  ];

const HYPERVISOR = 0x80000000;
const KVM_SIGNATURE_LEAF = 0x40000000;
const KVM_FEATURES_LEAF = 0x40000001;
/**
 * Paravirtual features of QEMU's named processor models (kvm_default_props): clocks 0 and 3, no I/O delay 1, asynchronous
 * page faults 4, steal time 5, EOI 6, stable clock 24.
 */
const KVM_DEFAULT_FEATURES = (1 << 0) | (1 << 1) | (1 << 3) | (1 << 4) | (1 << 5) | (1 << 6) | (1 << 24);
/** "KVMKVMKVM\0\0\0" */
const KVM_SIGNATURE = { ebx: 0x4b4d564b, ecx: 0x564b4d56, edx: 0x4d } as const;

/** kvm_arch_init_vcpu: builds the CPUID table and hands it to the kernel. */
export function kvmArchInitVcpu(s: KVMState, cpu: X86Cpu): void {
  cpu.kvmFd.KVM_SET_CPUID2(kvmX86BuildCpuid(s, cpu));
}

/** kvm_x86_build_cpuid */
function kvmX86BuildCpuid(s: KVMState, cpu: X86Cpu): KvmCpuidEntry2[] {
  const supported = s.fd.KVM_GET_SUPPORTED_CPUID();
  const find = (leaf: number, index: number): KvmCpuidEntry2 | undefined =>
    supported.find((e) => e.function === leaf && e.index === index);
  const entries: KvmCpuidEntry2[] = [
    { function: KVM_SIGNATURE_LEAF, index: 0, flags: 0, eax: KVM_FEATURES_LEAF, ...KVM_SIGNATURE },
    {
      function: KVM_FEATURES_LEAF,
      index: 0,
      flags: 0,
      eax: ((find(KVM_FEATURES_LEAF, 0)?.eax ?? 0) & KVM_DEFAULT_FEATURES) >>> 0,
      ebx: 0,
      ecx: 0,
      edx: 0,
    },
  ];
  for (const leaf of cpuidOf(cpu.model, cpu.topology)) {
    const index = leaf.subleaf ?? 0;
    const entry: KvmCpuidEntry2 = {
      function: leaf.leaf,
      index,
      flags: leaf.subleaf === undefined ? 0 : KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
      eax: leaf.eax >>> 0,
      ebx: leaf.ebx >>> 0,
      ecx: leaf.ecx >>> 0,
      edx: leaf.edx >>> 0,
    };
    for (const word of FEATURE_WORDS) {
      if (word.leaf !== entry.function || word.index !== index) continue;
      const host = find(word.leaf, word.index);
      for (const register of word.registers) entry[register] = (entry[register] & (host?.[register] ?? 0)) >>> 0;
    }
    // x2APIC and the TSC deadline timer are the kernel's, whatever the processor has; software shall see a hypervisor.
    if (entry.function === 1) entry.ecx = (entry.ecx | HYPERVISOR) >>> 0;
    entries.push(entry);
  }
  return entries.sort((a, b) => a.function - b.function || a.index - b.index);
}

const MSR_IA32_MISC_ENABLE = 0x1a0;
/** Fast strings. */
const MSR_IA32_MISC_ENABLE_DEFAULT = 1n;

/** kvm_arch_put_registers: the start state of the boot processor, the waiting state of the others. */
export function kvmArchPutRegisters(cpu: X86Cpu): void {
  const { entry, kvmFd } = cpu;
  if (entry) {
    kvmFd.KVM_SET_REGS(kvmGetPutRegs(entry));
    kvmFd.KVM_SET_SREGS(kvmPutSregs(entry, kvmFd.KVM_GET_SREGS()));
  }
  kvmFd.KVM_SET_MSRS([{ index: MSR_IA32_MISC_ENABLE, data: MSR_IA32_MISC_ENABLE_DEFAULT }]);
  kvmFd.KVM_SET_MP_STATE(cpu.index === 0 ? KvmMpState.RUNNABLE : KvmMpState.UNINITIALIZED);
}

/** kvm_getput_regs */
function kvmGetPutRegs(e: EntryState): KvmRegs {
  const regs = Object.fromEntries(GPR_NAMES.map((name, i) => [name, e.gpr[i] ?? 0n]));
  return { ...regs, rip: e.rip, rflags: BigInt(e.rflags) } as unknown as KvmRegs;
}

/** set_seg: access rights apart. */
function setSeg(s: EntrySegment): KvmSegment {
  const a = s.attributes;
  return {
    base: BigInt(s.base),
    limit: s.limit,
    selector: s.selector,
    type: a & 0xf,
    s: (a >> 4) & 1,
    dpl: (a >> 5) & 3,
    present: (a >> 7) & 1,
    avl: (a >> 12) & 1,
    l: (a >> 13) & 1,
    db: (a >> 14) & 1,
    g: (a >> 15) & 1,
    unusable: (a >> 16) & 1,
  };
}

/** kvm_put_sregs */
function kvmPutSregs(e: EntryState, now: KvmSregs): KvmSregs {
  const data = setSeg(e.data);
  return {
    ...now,
    cs: setSeg(e.cs),
    ds: data,
    es: data,
    fs: data,
    gs: data,
    ss: data,
    tr: setSeg(e.tr),
    gdt: { base: BigInt(e.gdt.base), limit: e.gdt.limit },
    idt: { base: BigInt(e.idt.base), limit: e.idt.limit },
    cr0: e.cr0,
    cr3: e.cr3,
    cr4: e.cr4,
    efer: e.efer,
  };
}

/** What a handler of an exit answers: go on, come back with an EXCP_*, or stop with an error. */
export type ExitResult = { readonly ret: 0 | (typeof Excp)[keyof typeof Excp] } | { readonly error: string };

/** kvm_arch_handle_exit: exits only x86 has. */
export function kvmArchHandleExit(cpu: X86Cpu): ExitResult {
  const { exit } = cpu.kvmRun;
  switch (exit.exit_reason) {
    case KvmExit.HLT:
      // Only without a local APIC in the kernel.
      return { ret: Excp.HLT };
    case KvmExit.SET_TPR:
      return { ret: 0 };
    case KvmExit.FAIL_ENTRY: {
      const { hardware_entry_failure_reason: code, cpu: on } = exit.fail_entry;
      return { error: `KVM: entry failed, hardware error 0x${code.toString(16)} on processor ${on}` };
    }
    case KvmExit.EXCEPTION:
      return { error: `KVM: exception ${exit.ex.exception} exit (error code 0x${exit.ex.error_code.toString(16)})` };
    case KvmExit.DEBUG:
      return { ret: Excp.DEBUG };
    case KvmExit.IOAPIC_EOI:
      return { ret: 0 };
    default:
      return { error: `KVM: unknown exit reason ${exit.exit_reason}` };
  }
}

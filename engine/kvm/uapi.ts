/**
 * What userspace and KVM agree on (include/uapi/linux/kvm.h, arch/x86/include/uapi/asm/kvm.h): numbers and structures, with
 * the field names of Documentation/virt/kvm/api.rst. 64-bit fields are bigint, narrower ones and addresses number.
 */

export { KvmCap } from "./uapiCaps";

/** What KVM_GET_API_VERSION answers. */
export const KVM_API_VERSION = 12;
/** Bytes KVM_GET_VCPU_MMAP_SIZE answers: kvm_run page, pio page, coalesced MMIO ring page. */
export const KVM_VCPU_MMAP_SIZE = 3 * 4096;
/** Pages of that mapping. */
export const KVM_PIO_PAGE_OFFSET = 1;

// biome-ignore-start format: tables
/** kvm_run.exit_reason. */
export const KvmExit = {
  UNKNOWN: 0,
  EXCEPTION: 1,
  IO: 2,
  HYPERCALL: 3,
  DEBUG: 4,
  HLT: 5,
  MMIO: 6,
  IRQ_WINDOW_OPEN: 7,
  SHUTDOWN: 8,
  FAIL_ENTRY: 9,
  INTR: 10,
  SET_TPR: 11,
  TPR_ACCESS: 12,
  NMI: 16,
  INTERNAL_ERROR: 17,
  SYSTEM_EVENT: 24,
  IOAPIC_EOI: 26,
  X86_RDMSR: 29,
  X86_WRMSR: 30,
  DIRTY_RING_FULL: 31,
  X86_BUS_LOCK: 33,
  NOTIFY: 37,
  MEMORY_FAULT: 39,
} as const;
export type KvmExit = (typeof KvmExit)[keyof typeof KvmExit];

/** KVM_EXIT_INTERNAL_ERROR's suberror. */
export const KvmInternalError = { EMULATION: 1, SIMUL_EX: 2, DELIVERY_EV: 3, UNEXPECTED_EXIT_REASON: 4 } as const;
export const KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES = 1;

/** Directions of KVM_EXIT_IO. */
export const KVM_EXIT_IO_IN = 0;
export const KVM_EXIT_IO_OUT = 1;

/** KVM_MEM_*: flags of a memory region. */
export const KvmMemFlag = { LOG_DIRTY_PAGES: 1, READONLY: 2 } as const;

/** KVM_MP_STATE_* */
export const KvmMpState = { RUNNABLE: 0, UNINITIALIZED: 1, INIT_RECEIVED: 2, HALTED: 3, SIPI_RECEIVED: 4 } as const;
export type KvmMpState = (typeof KvmMpState)[keyof typeof KvmMpState];

/** KVM_IRQCHIP_*: chips of KVM_GET_IRQCHIP and of routes. */
export const KvmIrqchip = { PIC_MASTER: 0, PIC_SLAVE: 1, IOAPIC: 2 } as const;
export const KVM_NR_IRQCHIPS = 3;
export const KVM_IOAPIC_NUM_PINS = 24;

/** KVM_IRQ_ROUTING_*: what a route leads to. */
export const KvmIrqRouting = { IRQCHIP: 1, MSI: 2 } as const;
/** Routes KVM_SET_GSI_ROUTING takes at most. */
export const KVM_MAX_IRQ_ROUTES = 4096;
export const KVM_USERSPACE_IRQ_SOURCE_ID = 0;

/** KVM_GUESTDBG_*: control of struct kvm_guest_debug. */
export const KvmGuestdbg = {
  ENABLE: 1,
  SINGLESTEP: 2,
  USE_SW_BP: 0x10000,
  USE_HW_BP: 0x20000,
  INJECT_DB: 0x40000,
  INJECT_BP: 0x80000,
  BLOCKIRQ: 0x100000,
} as const;

/** KVM_X86_DISABLE_EXITS_*: argument of KVM_CAP_X86_DISABLE_EXITS. */
export const KVM_X86_DISABLE_EXITS = { MWAIT: 1, HLT: 2, PAUSE: 4, CSTATE: 8 } as const;

/** KVM_VCPUEVENT_VALID_*: which parts of struct kvm_vcpu_events count. */
export const KvmVcpuEvent = {
  VALID_NMI_PENDING: 1,
  VALID_SIPI_VECTOR: 2,
  VALID_SHADOW: 4,
  VALID_SMM: 8,
  VALID_PAYLOAD: 16,
  VALID_TRIPLE_FAULT: 32,
} as const;
/** KVM_GET_CLOCK's flags: the clock is the same on all vCPUs. */
export const KVM_CLOCK_TSC_STABLE = 2;
/** The structure's realtime and host_tsc are filled in. */
export const KVM_CLOCK_REALTIME = 4;
export const KVM_CLOCK_HOST_TSC = 8;
export const KVM_CLOCK_VALID_FLAGS = KVM_CLOCK_TSC_STABLE | KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC;
/** KVM_MSR_EXIT_REASON_*: which failed MSR accesses of the guest go to userspace. */
export const KvmMsrExitReason = { INVAL: 1, UNKNOWN: 2, FILTER: 4 } as const;
/** KVM_MSR_FILTER_*: flags of a range, and of the whole filter. */
export const KvmMsrFilterFlag = { READ: 1, WRITE: 2, DEFAULT_DENY: 1 } as const;
/** Ranges of an MSR filter at most. */
export const KVM_MSR_FILTER_MAX_RANGES = 16;
/** Bytes of one range's bitmap at most. */
export const KVM_MSR_FILTER_MAX_BITMAP_SIZE = 0x600;
/** KVM_X86_QUIRK_*: behaviour that is kept for old userspace unless it is disabled. */
export const KvmX86Quirk = {
  LINT0_REENABLED: 1,
  CD_NW_CLEARED: 2,
  LAPIC_MMIO_HOLE: 4,
  OUT_7E_INC_RIP: 8,
  MISC_ENABLE_NO_MWAIT: 16,
  FIX_HYPERCALL_INSN: 32,
  MWAIT_NEVER_UD_FAULTS: 64,
} as const;
export const KVM_X86_VALID_QUIRKS = 0x7fn;
/** KVM_IRQFD_FLAG_* */
export const KvmIrqfdFlag = { DEASSIGN: 1, RESAMPLE: 2 } as const;
/** KVM_IOEVENTFD_FLAG_* */
export const KvmIoeventfdFlag = { DATAMATCH: 1, PIO: 2, DEASSIGN: 4, VIRTIO_CCW_NOTIFY: 8 } as const;
/** KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE and KVM_DIRTY_LOG_INITIALLY_SET. */
export const KvmDirtyLogManual = { PROTECT_ENABLE: 1, INITIALLY_SET: 2 } as const;
/** Flags of struct kvm_dirty_gfn (u32 flags, u32 slot, u64 offset). */
export const KvmDirtyGfn = { DIRTY: 1, RESET: 2 } as const;
/** Page of the vCPU mapping at which the dirty ring begins. */
export const KVM_DIRTY_LOG_PAGE_OFFSET = 64;
/** Page of the mapping that holds the coalesced MMIO ring. */
export const KVM_COALESCED_MMIO_PAGE_OFFSET = 2;
/** Hypercalls KVM_CAP_EXIT_HYPERCALL can send to userspace: KVM_HC_MAP_GPA_RANGE. */
export const KVM_EXIT_HYPERCALL_VALID_MASK = 1n << 12n;
/** KVM_SREGS2_FLAGS_PDPTRS_VALID. */
export const KVM_SREGS2_FLAGS_PDPTRS_VALID = 1;
/** MAX_IO_MSRS: KVM_GET_MSRS and KVM_SET_MSRS take fewer. */
export const MAX_IO_MSRS = 256;
/** KVM_MAX_XCRS. */
export const KVM_MAX_XCRS = 16;
export const KVM_X86_SHADOW_INT_MOV_SS = 1;
export const KVM_X86_SHADOW_INT_STI = 2;

/** Register sets in kvm_run (KVM_CAP_SYNC_REGS). */
export const KVM_SYNC_X86 = { REGS: 1, SREGS: 2, EVENTS: 4 } as const;
export const KVM_SYNC_X86_VALID_FIELDS = 7;

export const KVM_CPUID_FLAG_SIGNIFCANT_INDEX = 1;
// biome-ignore-end format: tables

/** struct kvm_regs */
export interface KvmRegs {
  rax: bigint;
  rbx: bigint;
  rcx: bigint;
  rdx: bigint;
  rsi: bigint;
  rdi: bigint;
  rsp: bigint;
  rbp: bigint;
  r8: bigint;
  r9: bigint;
  r10: bigint;
  r11: bigint;
  r12: bigint;
  r13: bigint;
  r14: bigint;
  r15: bigint;
  rip: bigint;
  rflags: bigint;
}

/** struct kvm_segment */
export interface KvmSegment {
  base: bigint;
  /** Bytes, granularity applied. */
  limit: number;
  selector: number;
  type: number;
  present: number;
  dpl: number;
  db: number;
  s: number;
  l: number;
  g: number;
  avl: number;
  unusable: number;
}

/** struct kvm_dtable */
export interface KvmDtable {
  base: bigint;
  limit: number;
}

/** struct kvm_sregs */
export interface KvmSregs {
  cs: KvmSegment;
  ds: KvmSegment;
  es: KvmSegment;
  fs: KvmSegment;
  gs: KvmSegment;
  ss: KvmSegment;
  tr: KvmSegment;
  ldt: KvmSegment;
  gdt: KvmDtable;
  idt: KvmDtable;
  cr0: bigint;
  cr2: bigint;
  cr3: bigint;
  cr4: bigint;
  cr8: bigint;
  efer: bigint;
  apic_base: bigint;
  /** 256 bits; at most one may be set: the vector of an injected external interrupt. */
  interrupt_bitmap: [bigint, bigint, bigint, bigint];
}

/** struct kvm_sregs2: KVM_GET_SREGS2 has PAE's page-directory pointers in place of the interrupt bitmap. */
export interface KvmSregs2 extends Omit<KvmSregs, "interrupt_bitmap"> {
  /** KVM_SREGS2_FLAGS_PDPTRS_VALID. */
  flags: bigint;
  pdptrs: [bigint, bigint, bigint, bigint];
}

/** FXSAVE state by parts: x87 registers in stack order, 16 bytes each, and XMM registers. */
export interface KvmFpu {
  fpr: Uint8Array;
  fcw: number;
  fsw: number;
  /** Abridged, as FXSAVE has it. */
  ftwx: number;
  last_opcode: number;
  last_ip: bigint;
  last_dp: bigint;
  xmm: Uint8Array;
  mxcsr: number;
}

/** struct kvm_msr_entry */
export interface KvmMsrEntry {
  index: number;
  data: bigint;
}

/** struct kvm_cpuid_entry2 */
export interface KvmCpuidEntry2 {
  function: number;
  index: number;
  flags: number;
  eax: number;
  ebx: number;
  ecx: number;
  edx: number;
}

/** struct kvm_vcpu_events */
export interface KvmVcpuEvents {
  exception: { injected: number; nr: number; has_error_code: number; pending: number; error_code: number };
  interrupt: { injected: number; nr: number; soft: number; shadow: number };
  nmi: { injected: number; pending: number; masked: number };
  sipi_vector: number;
  flags: number;
  /** System-management mode, of which there is none: all 0. */
  smi?: { smm: number; pending: number; smm_inside_nmi: number; latched_init: number };
  triple_fault: { pending: number };
  /** With KVM_CAP_EXCEPTION_PAYLOAD: CR2 of #PF or DR6 of #DB that has not been delivered yet. */
  exception_has_payload?: number;
  exception_payload?: bigint;
}

/** struct kvm_debugregs */
export interface KvmDebugregs {
  db: [bigint, bigint, bigint, bigint];
  dr6: bigint;
  dr7: bigint;
  flags: bigint;
}

/** struct kvm_xcrs */
export interface KvmXcrs {
  flags: number;
  xcrs: { xcr: number; value: bigint }[];
}

/** struct kvm_guest_debug */
export interface KvmGuestDebug {
  control: number;
  /** DR0..DR7 with KVM_GUESTDBG_USE_HW_BP. */
  debugreg: bigint[];
}

/** struct kvm_translation */
export interface KvmTranslation {
  linear_address: bigint;
  physical_address: bigint;
  valid: number;
  writeable: number;
  usermode: number;
}

/** struct kvm_userspace_memory_region */
export interface KvmUserspaceMemoryRegion {
  /** Bits 15:0 slot id, bits 31:16 address space. */
  slot: number;
  flags: number;
  guest_phys_addr: number;
  memory_size: number;
  userspace_addr: number;
}

/** struct kvm_irq_routing_entry */
export type KvmIrqRoutingEntry =
  | { gsi: number; type: typeof KvmIrqRouting.IRQCHIP; irqchip: number; pin: number }
  | { gsi: number; type: typeof KvmIrqRouting.MSI; address_lo: number; address_hi: number; data: number };

/** struct kvm_msr_filter_range: MSRs base .. base + nmsrs - 1; a clear bit of the bitmap denies the access. */
export interface KvmMsrFilterRange {
  /** KvmMsrFilterFlag.READ and WRITE. */
  flags: number;
  nmsrs: number;
  base: number;
  bitmap: Uint8Array;
}

/** struct kvm_msr_filter */
export interface KvmMsrFilter {
  /** 0 (KVM_MSR_FILTER_DEFAULT_ALLOW) or KvmMsrFilterFlag.DEFAULT_DENY. */
  flags: number;
  ranges: readonly KvmMsrFilterRange[];
}

/** struct kvm_clear_dirty_log. */
export interface KvmClearDirtyLog {
  slot: number;
  /** Pages; a multiple of 64, except at the end of the slot. */
  num_pages: number;
  /** A multiple of 64. */
  first_page: number;
  /** One bit a page, set for those to be cleared. */
  dirty_bitmap: Uint32Array;
}

/** struct kvm_coalesced_mmio_zone. */
export interface KvmCoalescedMmioZone {
  addr: number;
  size: number;
  /** 1 for ports, 0 for memory. */
  pio: number;
}

/** struct kvm_coalesced_mmio: one write that waits in the ring. */
export interface KvmCoalescedMmio {
  phys_addr: number;
  len: number;
  pio: number;
  data: Uint8Array;
}

/** struct kvm_coalesced_mmio_ring: KVM moves `last`, userspace `first`. */
export interface KvmCoalescedMmioRing {
  first: number;
  last: number;
  coalesced_mmio: KvmCoalescedMmio[];
}

/** struct kvm_clock_data. */
export interface KvmClockData {
  /** Nanoseconds of the guest's kvmclock. */
  clock: bigint;
  /** KVM_CLOCK_* bits. */
  flags: number;
  /** Host's wall-clock time (ns) with KVM_CLOCK_REALTIME. */
  realtime?: bigint;
  host_tsc?: bigint;
}

/** struct kvm_x86_mce. */
export interface KvmX86Mce {
  status: bigint;
  addr: bigint;
  misc: bigint;
  mcg_status: bigint;
  bank: number;
}

/** struct kvm_device_attr with its value in place of an address. */
export interface KvmDeviceAttr {
  flags: number;
  group: number;
  attr: bigint;
}

/** struct kvm_msi */
export interface KvmMsi {
  address_lo: number;
  address_hi: number;
  data: number;
  flags: number;
}

/** The union of kvm_run: what KVM_RUN returned for. */
export type KvmRunExit =
  | { readonly exit_reason: typeof KvmExit.UNKNOWN; hw: { hardware_exit_reason: bigint } }
  | {
      readonly exit_reason: typeof KvmExit.FAIL_ENTRY;
      fail_entry: { hardware_entry_failure_reason: bigint; cpu: number };
    }
  | { readonly exit_reason: typeof KvmExit.EXCEPTION; ex: { exception: number; error_code: number } }
  | {
      readonly exit_reason: typeof KvmExit.IO;
      io: {
        direction: typeof KVM_EXIT_IO_IN | typeof KVM_EXIT_IO_OUT;
        /** Bytes of one item. */
        size: number;
        port: number;
        /** Items. */
        count: number;
        /** Where in the mapping `data` lies: the pio page. */
        data_offset: bigint;
        /** size * count bytes: written by KVM for OUT, by userspace for IN. */
        data: Uint8Array;
      };
    }
  | {
      readonly exit_reason: typeof KvmExit.DEBUG;
      debug: { exception: number; pc: bigint; dr6: bigint; dr7: bigint };
    }
  | {
      readonly exit_reason: typeof KvmExit.MMIO;
      mmio: {
        phys_addr: number /** Eight bytes; the first `len` count. */;
        data: Uint8Array;
        len: number;
        is_write: number;
      };
    }
  | {
      readonly exit_reason: typeof KvmExit.HYPERCALL;
      hypercall: { nr: bigint; args: bigint[]; ret: bigint; flags: bigint };
    }
  | {
      readonly exit_reason: typeof KvmExit.TPR_ACCESS;
      tpr_access: { rip: bigint; is_write: number };
    }
  | {
      readonly exit_reason: typeof KvmExit.INTERNAL_ERROR;
      internal: { suberror: number; ndata: number; data: bigint[] };
    }
  | { readonly exit_reason: typeof KvmExit.SYSTEM_EVENT; system_event: { type: number; ndata: number; data: bigint[] } }
  | { readonly exit_reason: typeof KvmExit.IOAPIC_EOI; eoi: { vector: number } }
  | {
      readonly exit_reason: typeof KvmExit.X86_RDMSR | typeof KvmExit.X86_WRMSR;
      msr: {
        /** In: userspace answers with #GP. */
        error: number;
        reason: number;
        index: number;
        /** Written by userspace for X86_RDMSR. */
        data: bigint;
      };
    }
  | {
      readonly exit_reason:
        | typeof KvmExit.HLT
        | typeof KvmExit.DIRTY_RING_FULL
        | typeof KvmExit.IRQ_WINDOW_OPEN
        | typeof KvmExit.SHUTDOWN;
    }
  | { readonly exit_reason: typeof KvmExit.INTR | typeof KvmExit.SET_TPR | typeof KvmExit.NMI };

/** struct kvm_run, the page userspace maps. */
export interface KvmRun {
  /** In: userspace wants to inject an interrupt (irqchip in userspace). */
  request_interrupt_window: number;
  /** In: return at once with -EINTR. */
  immediate_exit: number;
  ready_for_interrupt_injection: number;
  if_flag: number;
  flags: number;
  cr8: bigint;
  apic_base: bigint;
  /** The union, discriminated by exit_reason. */
  exit: KvmRunExit;
  kvm_valid_regs: bigint;
  kvm_dirty_regs: bigint;
  s: { regs: KvmRegs | null; sregs: KvmSregs | null; events: KvmVcpuEvents | null };
}

/** struct kvm_run of a new vCPU. */
export const newKvmRun = (): KvmRun => ({
  request_interrupt_window: 0,
  immediate_exit: 0,
  ready_for_interrupt_injection: 0,
  if_flag: 0,
  flags: 0,
  cr8: 0n,
  apic_base: 0n,
  exit: { exit_reason: KvmExit.UNKNOWN, hw: { hardware_exit_reason: 0n } },
  kvm_valid_regs: 0n,
  kvm_dirty_regs: 0n,
  s: { regs: null, sregs: null, events: null },
});

const exitNames = new Map<number, string>(Object.entries(KvmExit).map(([name, n]) => [n, `KVM_EXIT_${name}`]));
/** Name of an exit reason, KVM_EXIT_ included. */
export const kvmExitName = (reason: number): string => exitNames.get(reason) ?? `KVM_EXIT ${reason}`;

/** A field of struct kvm_run, for displays. */
export interface KvmRunField {
  readonly name: string;
  /** Byte offset in struct kvm_run. */
  readonly offset: number;
  readonly size: 1 | 2 | 4 | 8;
  /** Exit reason whose part of the union it belongs to; absent for the common fields. */
  readonly exit?: KvmExit;
  readonly help: string;
}

/** Binary layout of struct kvm_run on x86-64: common fields, then the union at offset 32. */
// biome-ignore format: a table
const KVM_RUN_FIELDS: readonly KvmRunField[] = [
  { name: "request_interrupt_window", offset: 0, size: 1, help: "In: exit as soon as an interrupt can be injected." },
  { name: "immediate_exit", offset: 1, size: 1, help: "In: KVM_RUN returns -EINTR at once." },
  { name: "exit_reason", offset: 8, size: 4, help: "Why KVM_RUN returned." },
  { name: "ready_for_interrupt_injection", offset: 12, size: 1, help: "KVM_INTERRUPT would be accepted." },
  { name: "if_flag", offset: 13, size: 1, help: "RFLAGS.IF of the guest." },
  { name: "flags", offset: 14, size: 2, help: "KVM_RUN_X86_* flags." },
  { name: "cr8", offset: 16, size: 8, help: "Task-priority class." },
  { name: "apic_base", offset: 24, size: 8, help: "IA32_APIC_BASE." },
  { name: "hw.hardware_exit_reason", offset: 32, size: 8, exit: KvmExit.UNKNOWN, help: "The processor's exit reason." },
  { name: "fail_entry.hardware_entry_failure_reason", offset: 32, size: 8, exit: KvmExit.FAIL_ENTRY, help: "Exit reason with bit 31, or VM-instruction error." },
  { name: "fail_entry.cpu", offset: 40, size: 4, exit: KvmExit.FAIL_ENTRY, help: "Physical processor of the failed entry." },
  { name: "ex.exception", offset: 32, size: 4, exit: KvmExit.EXCEPTION, help: "Vector." },
  { name: "ex.error_code", offset: 36, size: 4, exit: KvmExit.EXCEPTION, help: "Error code." },
  { name: "io.direction", offset: 32, size: 1, exit: KvmExit.IO, help: "0 in, 1 out." },
  { name: "io.size", offset: 33, size: 1, exit: KvmExit.IO, help: "Bytes of an item." },
  { name: "io.port", offset: 34, size: 2, exit: KvmExit.IO, help: "Port." },
  { name: "io.count", offset: 36, size: 4, exit: KvmExit.IO, help: "Items." },
  { name: "io.data_offset", offset: 40, size: 8, exit: KvmExit.IO, help: "Data's offset from the start of kvm_run." },
  { name: "debug.exception", offset: 32, size: 4, exit: KvmExit.DEBUG, help: "Vector: 1 or 3." },
  { name: "debug.pc", offset: 40, size: 8, exit: KvmExit.DEBUG, help: "Linear address of the instruction." },
  { name: "debug.dr6", offset: 48, size: 8, exit: KvmExit.DEBUG, help: "DR6." },
  { name: "debug.dr7", offset: 56, size: 8, exit: KvmExit.DEBUG, help: "DR7." },
  { name: "mmio.phys_addr", offset: 32, size: 8, exit: KvmExit.MMIO, help: "Guest-physical address." },
  { name: "mmio.data", offset: 40, size: 8, exit: KvmExit.MMIO, help: "Data, little-endian." },
  { name: "mmio.len", offset: 48, size: 4, exit: KvmExit.MMIO, help: "Bytes." },
  { name: "mmio.is_write", offset: 52, size: 1, exit: KvmExit.MMIO, help: "1 for a write." },
  { name: "hypercall.nr", offset: 32, size: 8, exit: KvmExit.HYPERCALL, help: "Hypercall number." },
  ...[0, 1, 2, 3, 4, 5].map((i) => ({ name: `hypercall.args[${i}]`, offset: 40 + i * 8, size: 8 as const, exit: KvmExit.HYPERCALL, help: "Argument." })),
  { name: "hypercall.ret", offset: 88, size: 8, exit: KvmExit.HYPERCALL, help: "In: result for the guest." },
  { name: "hypercall.flags", offset: 96, size: 8, exit: KvmExit.HYPERCALL, help: "Bit 0: the guest was in 64-bit mode." },
  ...([KvmExit.X86_RDMSR, KvmExit.X86_WRMSR] as const).flatMap((exit) => [
    { name: "msr.error", offset: 32, size: 1 as const, exit, help: "In: nonzero raises #GP in the guest." },
    { name: "msr.reason", offset: 40, size: 4 as const, exit, help: "KVM_MSR_EXIT_REASON_*." },
    { name: "msr.index", offset: 44, size: 4 as const, exit, help: "MSR." },
    { name: "msr.data", offset: 48, size: 8 as const, exit, help: "Value." },
  ]),
  { name: "tpr_access.rip", offset: 32, size: 8, exit: KvmExit.TPR_ACCESS, help: "RIP." },
  { name: "tpr_access.is_write", offset: 40, size: 4, exit: KvmExit.TPR_ACCESS, help: "1 for a write." },
  { name: "internal.suberror", offset: 32, size: 4, exit: KvmExit.INTERNAL_ERROR, help: "KVM_INTERNAL_ERROR_*." },
  { name: "internal.ndata", offset: 36, size: 4, exit: KvmExit.INTERNAL_ERROR, help: "Valid words of data." },
  ...Array.from({ length: 16 }, (_, i) => ({ name: `internal.data[${i}]`, offset: 40 + i * 8, size: 8 as const, exit: KvmExit.INTERNAL_ERROR, help: "Data word." })),
  { name: "system_event.type", offset: 32, size: 4, exit: KvmExit.SYSTEM_EVENT, help: "Kind of event." },
  { name: "eoi.vector", offset: 32, size: 1, exit: KvmExit.IOAPIC_EOI, help: "Vector of the EOI." },
  { name: "kvm_valid_regs", offset: 288, size: 8, help: "In: register sets to copy out to `s`." },
  { name: "kvm_dirty_regs", offset: 296, size: 8, help: "In: register sets of `s` to load." },
];

/** One member of a kvm_run by a name of KVM_RUN_FIELDS. */
function member(run: KvmRun, name: string): bigint {
  let value: unknown = name === "exit_reason" ? run.exit.exit_reason : undefined;
  if (value === undefined) {
    const path = name.match(/[a-z_0-9]+/g) ?? [];
    value = path.length === 1 ? run : run.exit;
    for (const key of path) value = (value as Record<string, unknown>)?.[key];
  }
  if (value instanceof Uint8Array) return new DataView(value.buffer, value.byteOffset, 8).getBigUint64(0, true);
  return typeof value === "bigint" ? value : BigInt(typeof value === "number" ? value : 0);
}

/** The fields that mean something now: the common ones and those of the current exit reason's part of the union. */
export function kvmRunFields(run: KvmRun): Record<string, bigint | number | string> {
  const out: Record<string, bigint | number | string> = { exit: kvmExitName(run.exit.exit_reason) };
  const data = run.exit.exit_reason === KvmExit.INTERNAL_ERROR ? run.exit.internal.ndata : 0;
  for (const field of KVM_RUN_FIELDS) {
    if (field.exit !== undefined && field.exit !== run.exit.exit_reason) continue;
    const word = /^internal\.data\[(\d+)\]$/.exec(field.name);
    if (word && Number(word[1]) >= data) continue;
    const value = member(run, field.name);
    out[field.name] = field.size === 8 ? value : Number(value);
  }
  return out;
}

/** The page as bytes, at the offsets of the C structure. */
export function encodeKvmRun(run: KvmRun): Uint8Array {
  const page = new Uint8Array(4096);
  const view = new DataView(page.buffer);
  for (const field of KVM_RUN_FIELDS) {
    if (field.exit !== undefined && field.exit !== run.exit.exit_reason) continue;
    const value = member(run, field.name);
    if (field.size === 8) view.setBigUint64(field.offset, BigInt.asUintN(64, value), true);
    else if (field.size === 4) view.setUint32(field.offset, Number(value), true);
    else if (field.size === 2) view.setUint16(field.offset, Number(value), true);
    else view.setUint8(field.offset, Number(value));
  }
  return page;
}

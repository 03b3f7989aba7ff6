/**
 * Capabilities (Documentation/virt/kvm/api.rst 4.4, chapters 6 to 8): what KVM_CHECK_EXTENSION answers, and what
 * KVM_ENABLE_CAP switches on for a VM or a vCPU.
 */
import { kvmUpdatePvRuntime } from "./cpuid";
import { kvmEnableManualDirtyLogProtect } from "./dirtyLog";
import { KVM_DIRTY_RING_MAX_BYTES, kvmEnableDirtyLogRing } from "./dirtyRing";
import { KvmError } from "./errno";
import { irqchipInKernel } from "./irq";
import { KVM_MAX_MCE_BANKS } from "./mce";
import type { KvmModuleBase } from "./moduleBase";
import { KVM_MAX_VCPU_IDS, KVM_MAX_VCPUS, KVM_USER_MEM_SLOTS, type Kvm, type KvmVcpu } from "./types";
import {
  KVM_CLOCK_VALID_FLAGS,
  KVM_COALESCED_MMIO_PAGE_OFFSET,
  KVM_EXIT_HYPERCALL_VALID_MASK,
  KVM_MAX_IRQ_ROUTES,
  KVM_SYNC_X86_VALID_FIELDS,
  KVM_X86_DISABLE_EXITS,
  KVM_X86_VALID_QUIRKS,
  KvmCap,
  KvmDirtyLogManual,
  KvmGuestdbg,
  KvmMsrExitReason,
} from "./uapi";
import { kvmXsaveSize } from "./xsave";

/** Capabilities that are 1. */
const PRESENT: ReadonlySet<number> = new Set([
  KvmCap.IRQCHIP, KvmCap.HLT, KvmCap.MMU_SHADOW_CACHE_CONTROL, KvmCap.USER_MEMORY, KvmCap.SET_TSS_ADDR,
  KvmCap.EXT_CPUID, KvmCap.EXT_EMUL_CPUID, KvmCap.CLOCKSOURCE, KvmCap.PIT, KvmCap.NOP_IO_DELAY, KvmCap.MP_STATE,
  KvmCap.SYNC_MMU, KvmCap.DESTROY_MEMORY_REGION_WORKS, KvmCap.USER_NMI, KvmCap.SET_GUEST_DEBUG, KvmCap.IRQ_INJECT_STATUS,
  KvmCap.JOIN_MEMORY_REGIONS_WORKS, KvmCap.IRQFD, KvmCap.IRQFD_RESAMPLE, KvmCap.PIT2, KvmCap.SET_BOOT_CPU_ID,
  KvmCap.PIT_STATE2, KvmCap.IOEVENTFD, KvmCap.IOEVENTFD_NO_LENGTH, KvmCap.IOEVENTFD_ANY_LENGTH,
  KvmCap.SET_IDENTITY_MAP_ADDR, KvmCap.INTERNAL_ERROR_DATA, KvmCap.VCPU_EVENTS, KvmCap.DEBUGREGS,
  KvmCap.X86_ROBUST_SINGLESTEP, KvmCap.ENABLE_CAP, KvmCap.ENABLE_CAP_VM, KvmCap.XSAVE, KvmCap.ASYNC_PF,
  KvmCap.ASYNC_PF_INT, KvmCap.GET_TSC_KHZ, KvmCap.TSC_DEADLINE_TIMER, KvmCap.KVMCLOCK_CTRL, KvmCap.SIGNAL_MSI,
  KvmCap.READONLY_MEM, KvmCap.DEVICE_CTRL, KvmCap.IOAPIC_POLARITY_IGNORED, KvmCap.CHECK_EXTENSION_VM,
  KvmCap.DISABLE_QUIRKS, KvmCap.SPLIT_IRQCHIP, KvmCap.VCPU_ATTRIBUTES, KvmCap.IMMEDIATE_EXIT, KvmCap.GET_MSR_FEATURES,
  KvmCap.MSR_PLATFORM_INFO, KvmCap.COALESCED_PIO, KvmCap.EXCEPTION_PAYLOAD, KvmCap.HALT_POLL, KvmCap.LAST_CPU,
  KvmCap.X86_USER_SPACE_MSR, KvmCap.X86_MSR_FILTER, KvmCap.ENFORCE_PV_FEATURE_CPUID, KvmCap.SREGS2,
  KvmCap.BINARY_STATS_FD, KvmCap.EXIT_ON_EMULATION_FAILURE, KvmCap.SYS_ATTRIBUTES, KvmCap.SYSTEM_EVENT_DATA,
  KvmCap.X86_TRIPLE_FAULT_EVENT, KvmCap.VM_DISABLE_NX_HUGE_PAGES, KvmCap.USER_MEMORY2, KvmCap.INTR_SHADOW,
]); // biome-ignore format: a list

/** KVM_GUESTDBG_VALID_MASK */
const GUESTDBG_VALID_MASK = Object.values(KvmGuestdbg).reduce<number>((all, bit) => all | bit, 0);
const X2APIC_API_VALID_FLAGS = 3n;
const DISABLE_EXITS_VALID = BigInt(
  KVM_X86_DISABLE_EXITS.HLT | KVM_X86_DISABLE_EXITS.PAUSE | KVM_X86_DISABLE_EXITS.MWAIT,
);
/** KVM_VM_TYPE: only KVM_X86_DEFAULT_VM. */
const VM_TYPES = 1;

/** kvm_vm_ioctl_check_extension: 0 for what there is not. */
export function kvmVmIoctlCheckExtension(module: KvmModuleBase, capability: number): number {
  switch (capability) {
    case KvmCap.NR_VCPUS:
      return Math.min(module.host.processors.length, KVM_MAX_VCPUS);
    case KvmCap.MAX_VCPUS:
      return KVM_MAX_VCPUS;
    case KvmCap.MAX_VCPU_ID:
      return KVM_MAX_VCPU_IDS;
    case KvmCap.NR_MEMSLOTS:
      return KVM_USER_MEM_SLOTS;
    case KvmCap.COALESCED_MMIO:
      return KVM_COALESCED_MMIO_PAGE_OFFSET;
    case KvmCap.MCE:
      return KVM_MAX_MCE_BANKS;
    case KvmCap.ADJUST_CLOCK:
      return KVM_CLOCK_VALID_FLAGS;
    case KvmCap.SET_GUEST_DEBUG2:
      return GUESTDBG_VALID_MASK;
    case KvmCap.IRQ_ROUTING:
      return KVM_MAX_IRQ_ROUTES;
    case KvmCap.SYNC_REGS:
      return KVM_SYNC_X86_VALID_FIELDS;
    case KvmCap.X86_DISABLE_EXITS:
      return Number(DISABLE_EXITS_VALID);
    case KvmCap.X2APIC_API:
      return Number(X2APIC_API_VALID_FLAGS);
    case KvmCap.MULTI_ADDRESS_SPACE:
    case KvmCap.VM_TYPES:
      return VM_TYPES;
    case KvmCap.XCRS:
      return module.host.processors[0].model.leaves.some((l) => l.leaf === 1 && (l.ecx >>> 26) & 1) ? 1 : 0;
    case KvmCap.XSAVE2:
      return kvmXsaveSize(module);
    case KvmCap.TSC_CONTROL:
    case KvmCap.VM_TSC_CONTROL:
      return module.features.tscScaling ? 1 : 0;
    case KvmCap.MANUAL_DIRTY_LOG_PROTECT2:
      return KvmDirtyLogManual.PROTECT_ENABLE | KvmDirtyLogManual.INITIALLY_SET;
    case KvmCap.DIRTY_LOG_RING:
    case KvmCap.DIRTY_LOG_RING_ACQ_REL:
      return KVM_DIRTY_RING_MAX_BYTES;
    case KvmCap.EXIT_HYPERCALL:
      return Number(KVM_EXIT_HYPERCALL_VALID_MASK);
    case KvmCap.DISABLE_QUIRKS2:
      return Number(KVM_X86_VALID_QUIRKS);
    default:
      return PRESENT.has(capability) ? 1 : 0;
  }
}

/** KVM_ENABLE_CAP on a VM. @throws KvmError EINVAL for a capability that cannot be enabled or wrong arguments, EEXIST, E2BIG */
export function kvmVmIoctlEnableCap(kvm: Kvm, capability: number, args: readonly bigint[], flags: number): void {
  const { arch, state } = kvm;
  const argument = args[0] ?? 0n;
  const fail = (why: string, errno: "EINVAL" | "EEXIST" = "EINVAL"): never => {
    throw new KvmError(errno, "KVM_ENABLE_CAP", why);
  };
  const within = (valid: bigint): void => {
    if (argument & ~valid) fail(`argument 0x${argument.toString(16)} has bits that do not exist`);
  };
  const beforeVcpus = (): void => {
    if (state.createdVcpus > 0) fail("it must come before the first vCPU");
  };
  if (flags !== 0) fail("flags must be 0");
  switch (capability) {
    case KvmCap.MANUAL_DIRTY_LOG_PROTECT2:
      if (!kvmEnableManualDirtyLogProtect(kvm, argument)) fail("these options do not go together");
      return;
    case KvmCap.HALT_POLL:
      within(0xffffffffn);
      state.maxHaltPollNs = Number(argument);
      return;
    case KvmCap.DIRTY_LOG_RING:
    case KvmCap.DIRTY_LOG_RING_ACQ_REL:
      kvmEnableDirtyLogRing(kvm, argument);
      return;
    case KvmCap.DISABLE_QUIRKS2:
      within(KVM_X86_VALID_QUIRKS);
      arch.disabledQuirks = argument;
      return;
    case KvmCap.DISABLE_QUIRKS:
      arch.disabledQuirks = argument;
      return;
    case KvmCap.SPLIT_IRQCHIP:
      if (argument > BigInt(KVM_MAX_IRQ_ROUTES)) fail("too many pins");
      if (irqchipInKernel(kvm)) fail("there is an irqchip already", "EEXIST");
      beforeVcpus();
      arch.irqRoutes = [];
      arch.irqchipMode = "split";
      arch.nrReservedIoapicPins = Number(argument);
      return;
    case KvmCap.X2APIC_API:
      within(X2APIC_API_VALID_FLAGS);
      if (argument & 1n) arch.x2apicFormat = true;
      if (argument & 2n) arch.x2apicBroadcastQuirkDisabled = true;
      return;
    case KvmCap.X86_DISABLE_EXITS:
      within(DISABLE_EXITS_VALID);
      beforeVcpus();
      arch.disabledExits |= Number(argument);
      return;
    case KvmCap.MSR_PLATFORM_INFO:
      arch.guestCanReadMsrPlatformInfo = argument !== 0n;
      return;
    case KvmCap.EXCEPTION_PAYLOAD:
      arch.exceptionPayloadEnabled = argument !== 0n;
      return;
    case KvmCap.X86_TRIPLE_FAULT_EVENT:
      arch.tripleFaultEvent = argument !== 0n;
      return;
    case KvmCap.X86_USER_SPACE_MSR:
      within(BigInt(KvmMsrExitReason.INVAL | KvmMsrExitReason.UNKNOWN | KvmMsrExitReason.FILTER));
      arch.userSpaceMsrMask = Number(argument);
      return;
    case KvmCap.EXIT_HYPERCALL:
      within(KVM_EXIT_HYPERCALL_VALID_MASK);
      arch.hypercallExitEnabled = argument;
      return;
    case KvmCap.EXIT_ON_EMULATION_FAILURE:
      within(1n);
      arch.exitOnEmulationError = argument !== 0n;
      return;
    case KvmCap.VM_DISABLE_NX_HUGE_PAGES:
      within(0n);
      beforeVcpus();
      arch.disableNxHugePages = true;
      return;
    case KvmCap.MAX_VCPU_ID:
      if (argument === 0n || argument > BigInt(KVM_MAX_VCPU_IDS)) fail("there cannot be such a vCPU id");
      if (arch.maxVcpuIds !== 0 && BigInt(arch.maxVcpuIds) !== argument) fail("the limit is set already");
      arch.maxVcpuIds = Number(argument);
      return;
    default:
      fail(`capability ${capability} cannot be enabled for a VM`);
  }
}

/** KVM_ENABLE_CAP on a vCPU. @throws KvmError EINVAL */
export function kvmVcpuIoctlEnableCap(vcpu: KvmVcpu, capability: number, args: readonly bigint[], flags: number): void {
  if (flags !== 0) throw new KvmError("EINVAL", "KVM_ENABLE_CAP", "flags must be 0");
  if (capability !== KvmCap.ENFORCE_PV_FEATURE_CPUID) {
    throw new KvmError("EINVAL", "KVM_ENABLE_CAP", `capability ${capability} cannot be enabled for a vCPU`);
  }
  vcpu.arch.pvEnforce = (args[0] ?? 0n) !== 0n;
  if (vcpu.arch.pvEnforce) kvmUpdatePvRuntime(vcpu);
}

/**
 * Module parameters of kvm and kvm_intel (modinfo kvm, modinfo kvm_intel) as one table. `honoured` tells whether the model
 * acts on other values than the default; where it does not, `why` says why, and setting one is an error, never silence.
 */

/** Type of a parameter as the kernel declares it. */
export type ParamType = "bool" | "uint" | "int";

/** One module parameter. */
export interface ParamRow {
  readonly name: string;
  readonly module: "kvm" | "kvm_intel";
  readonly type: ParamType;
  readonly default: boolean | number;
  readonly help: string;
  /** Values other than `default` take effect. */
  readonly honoured: boolean;
  /** Why they do not. */
  readonly why: string;
}

const row = <const Name extends string, const Type extends ParamType>(
  name: Name,
  module: "kvm" | "kvm_intel",
  type: Type,
  value: Type extends "bool" ? boolean : number,
  honoured: true | string,
  help: string,
) => ({
  name,
  module,
  type,
  default: value as boolean | number,
  honoured: honoured === true,
  why: honoured === true ? "" : honoured,
  help,
});

// biome-ignore format: one row a line
const TABLE = [
  row("ignore_msrs", "kvm", "bool", false, true, "Unknown MSRs read as 0 and ignore writes instead of raising #GP."),
  row("report_ignored_msrs", "kvm", "bool", true, true, "Count and report accesses that ignore_msrs let pass."),
  row("halt_poll_ns", "kvm", "uint", 200_000, true, "Longest time a halted vCPU is polled before it is put to sleep (ns)."),
  row("halt_poll_ns_grow", "kvm", "uint", 2, true, "Factor by which a vCPU's polling window grows."),
  row("halt_poll_ns_grow_start", "kvm", "uint", 10_000, true, "First window when it grows from 0 (ns)."),
  row("halt_poll_ns_shrink", "kvm", "uint", 0, true, "Divisor by which the window shrinks; 0 makes it 0 at once."),
  row("kvmclock_periodic_sync", "kvm", "bool", true, true, "Master clock is re-synchronised every 300 s."),
  row("tsc_tolerance_ppm", "kvm", "uint", 250, true, "TSC frequencies this near to the host's need no scaling (ppm)."),
  row("lapic_timer_advance_ns", "kvm", "int", -1, true, "How much too early the TSC-deadline timer fires (ns); -1 adapts, and finds that virtual time needs none."),
  row("vector_hashing", "kvm", "bool", true, true, "Lowest-priority interrupts go to a vCPU chosen by the vector instead of by priority."),
  row("enable_vmware_backdoor", "kvm", "bool", false, true, "VMware's backdoor I/O ports."),
  row("enable_pmu", "kvm", "bool", true, true, "A virtual performance-monitoring unit where the processor has one; this one has none, so guests have none either way."),
  row("force_emulation_prefix", "kvm", "int", 0, true, "UD2 'k' 'v' 'm' forces emulation of the instruction behind it; bit 1 clears RFLAGS.RF as well."),
  row("pi_inject_timer", "kvm", "bool", false, "every processor of the emulated host runs guests, none is left to post from", "Timer interrupts are posted from another CPU."),
  row("eager_page_split", "kvm", "bool", true, true, "Huge pages are split when dirty logging starts."),
  row("min_timer_period_us", "kvm", "uint", 200, true, "Shortest period of a periodic APIC timer (us)."),
  row("tdp_mmu", "kvm", "bool", true, "the shadow MMU serves guests without EPT (ept=0); it does not build second-level tables", "Two-dimensional paging by the TDP MMU."),
  row("nx_huge_pages", "kvm", "bool", false, true, "Huge pages are not executable (ITLB multihit); this processor is not affected, so the automatic choice is off."),
  row("mmio_caching", "kvm", "bool", true, true, "MMIO is recognised by misconfigured EPT entries."),
  row("ept", "kvm_intel", "bool", true, true, "Two-dimensional paging by EPT (without: shadow paging)."),
  row("eptad", "kvm_intel", "bool", true, true, "Accessed and dirty flags in EPT entries."),
  row("vpid", "kvm_intel", "bool", true, true, "Cached translations are tagged with a VPID."),
  row("unrestricted_guest", "kvm_intel", "bool", true, true, "Real mode runs natively (without: emulated)."),
  row("flexpriority", "kvm_intel", "bool", true, true, "TPR shadow and APIC-access page."),
  row("vnmi", "kvm_intel", "bool", true, true, "NMI blocking is tracked by the processor."),
  row("enable_apicv", "kvm_intel", "bool", true, true, "APIC-register virtualization, virtual-interrupt delivery and posted interrupts."),
  row("enable_ipiv", "kvm_intel", "bool", false, "the processor has no IPI virtualization", "IPI virtualization (this processor has none)."),
  row("preemption_timer", "kvm_intel", "bool", true, true, "The guest's TSC-deadline and APIC timer runs on the VMX-preemption timer."),
  row("pml", "kvm_intel", "bool", true, true, "Dirty logging by page-modification logging."),
  row("nested", "kvm_intel", "bool", false, "VMX is not offered to guests of the KVM model; a hypervisor of yours runs with accel none", "VMX inside the guest."),
  row("ple_gap", "kvm_intel", "uint", 128, true, "Most TSC ticks between two PAUSEs of a loop; 0 turns PAUSE-loop exiting off."),
  row("ple_window", "kvm_intel", "uint", 4096, true, "TSC ticks a PAUSE loop may take."),
  row("ple_window_grow", "kvm_intel", "uint", 2, true, "Factor (or addend) by which ple_window grows after an exit."),
  row("ple_window_shrink", "kvm_intel", "uint", 0, true, "Divisor (or subtrahend) by which it shrinks; 0 resets it."),
  row("ple_window_max", "kvm_intel", "uint", 4_294_967_295, true, "Largest ple_window."),
  row("dump_invalid_vmcs", "kvm_intel", "bool", false, true, "The VMCS of a failed entry is written to the kernel log."),
  row("enable_shadow_vmcs", "kvm_intel", "bool", false, "it is for nested virtualization", "VMREAD and VMWRITE of a nested hypervisor without exits."),
  row("nested_early_check", "kvm_intel", "bool", false, "it is for nested virtualization", "Entry checks of a nested guest are done by the processor."),
  row("allow_smaller_maxphyaddr", "kvm_intel", "bool", false, "it needs page faults to be intercepted under EPT", "Guests may have fewer physical-address bits than the host."),
  row("sgx", "kvm_intel", "bool", false, "the processor has no SGX", "SGX for guests."),
  row("pt_mode", "kvm_intel", "int", 0, "the processor has no Intel PT", "Intel PT mode; 0 is system-wide."),
  row("emulate_invalid_guest_state", "kvm_intel", "bool", true, true, "Guest state VMX cannot hold is emulated (unrestricted_guest=0); without, the entry fails."),
  row("fasteoi", "kvm_intel", "bool", true, true, "EOI writes to the APIC-access page are served without the emulator."),
  row("error_on_inconsistent_vmcs_config", "kvm_intel", "bool", true, true, "Refuse processors whose capability MSRs disagree."),
] as const;

/** Every module parameter of kvm and kvm_intel. */
export const KVM_PARAMS: readonly ParamRow[] = TABLE;
/** Values of all parameters by name. */
export type KvmParams = {
  readonly [Row in (typeof TABLE)[number] as Row["name"]]: Row["type"] extends "bool" ? boolean : number;
};

/**
 * Default values overlaid with `given`.
 * @throws RangeError naming the parameter when it is unknown, of the wrong type, or not honoured
 */
export function resolveParams(given: Readonly<Record<string, boolean | number>> = {}): KvmParams {
  const params: Record<string, boolean | number> = {};
  for (const p of KVM_PARAMS) params[p.name] = p.default;
  for (const [name, value] of Object.entries(given)) {
    const p = KVM_PARAMS.find((r) => r.name === name);
    if (!p) {
      throw new RangeError(
        `KVM parameter ${name} does not exist; known are ${KVM_PARAMS.map((r) => r.name).join(", ")}`,
      );
    }
    const fits =
      p.type === "bool"
        ? typeof value === "boolean"
        : typeof value === "number" && Number.isInteger(value) && (p.type === "int" || value >= 0);
    if (!fits) throw new RangeError(`KVM parameter ${name}=${value}: a ${p.type} is expected`);
    if (value !== p.default && !p.honoured) {
      throw new RangeError(`KVM parameter ${name}=${value}: only ${p.default} is supported by this model (${p.why})`);
    }
    params[name] = value;
  }
  return params as KvmParams;
}

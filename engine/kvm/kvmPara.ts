/** What KVM and its guests agree on (arch/x86/include/uapi/asm/kvm_para.h). */

/** KVM_FEATURE_* bits of CPUID 40000001h EAX. */
// biome-ignore format: a bit table
export const KvmFeature = {
  CLOCKSOURCE: 0, NOP_IO_DELAY: 1, CLOCKSOURCE2: 3, ASYNC_PF: 4, STEAL_TIME: 5, PV_EOI: 6, PV_UNHALT: 7, PV_TLB_FLUSH: 9,
  ASYNC_PF_VMEXIT: 10, PV_SEND_IPI: 11, POLL_CONTROL: 12, PV_SCHED_YIELD: 13, ASYNC_PF_INT: 14, MSI_EXT_DEST_ID: 15,
  HC_MAP_GPA_RANGE: 16, MIGRATION_CONTROL: 17, CLOCKSOURCE_STABLE_BIT: 24,
} as const;

/** EMULTYPE_*: why and how an instruction is emulated (arch/x86/include/asm/kvm_host.h). */
// biome-ignore format: a bit table
export const EmulType = {
  NO_DECODE: 1 << 0, TRAP_UD: 1 << 1, SKIP: 1 << 2, ALLOW_RETRY_PF: 1 << 3, TRAP_UD_FORCED: 1 << 4,
  VMWARE_GP: 1 << 5, PF: 1 << 6, COMPLETE_USER_EXIT: 1 << 7,
} as const;

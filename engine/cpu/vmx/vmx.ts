/**
 * The VMX unit of one processor, as its users see it: the emulated VMX instructions (cpu/vmx/instructions.ts) and the KVM
 * model (kvm/vmx) both come through here, so that the rules exist once. SDM 3C chapters 24 to 31.
 */

/**
 * Outcome of a VMX operation (SDM 3C 31.2): VM_SUCCEED, VM_FAIL_INVALID (no current VMCS), or a VM-instruction error
 * number from 1 on (VMfailValid; also written to the VM_INSTRUCTION_ERROR field).
 */
export type VmxResult = number;
export const VM_SUCCEED = 0;
export const VM_FAIL_INVALID = -1;

/** One VM-entry check that failed: a row of the check tables with its text filled in. */
export interface FailedCheck {
  readonly id: string;
  /** "control" and "host" lead to VMfailValid 7 and 8; "guest" and "msr-load" to exit reasons 33 and 34. */
  readonly group: "control" | "host" | "guest" | "msr-load";
  readonly section: string;
  /** Field, its value, what was allowed. */
  readonly message: string;
}

export interface Vmx {
  /** Physical address of the current VMCS, or -1. */
  readonly currentVmcs: number;
  /** In VMX operation (after VMXON), root or non-root. */
  readonly on: boolean;
  /** @throws CpuFault where VMXON itself raises #UD or #GP */
  vmxon(pa: number): VmxResult;
  vmxoff(): VmxResult;
  vmclear(pa: number): VmxResult;
  vmptrld(pa: number): VmxResult;
  /** @returns the value, or a VmxResult other than VM_SUCCEED */
  vmread(encoding: number): bigint | VmxResult;
  vmwrite(encoding: number, value: bigint): VmxResult;
  /**
   * VMLAUNCH (`resume` false) or VMRESUME. On VM_SUCCEED the processor is in the guest, or, when guest-state checks or
   * MSR loading failed, back in the host with the exit reason's bit 31 set; `cpu.guest` tells which.
   */
  enter(resume: boolean): VmxResult;
  /** @param type 1 single-context, 2 all-context */
  invept(type: number, eptp: bigint): VmxResult;
  /** @param type 0 individual address, 1 single-context, 2 all-context, 3 single-context retaining globals */
  invvpid(type: number, vpid: number, linear: bigint): VmxResult;
  /** Reads a field of the VMCS at `pa`, current or not, without permission checks: for the debugger and tests. */
  peek(pa: number, encoding: number): bigint;
  poke(pa: number, encoding: number, value: bigint): void;
  /** All checks that the current VMCS would fail, not only the first. Changes nothing. */
  checkEntry(): readonly FailedCheck[];
  /** What checkEntry said at the last failed entry. */
  readonly lastFailure: readonly FailedCheck[];
  /** VM exits taken, by basic exit reason. */
  readonly exitCounts: Float64Array;
}

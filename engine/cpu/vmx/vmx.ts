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

/** An event to be injected, or being delivered; `type` as in VM-entry interruption information (SDM 3C table 25-17). */
export interface VmxEvent {
  readonly vector: number;
  readonly type: number;
  readonly error?: number;
  /** Bytes of the instruction behind a software interrupt or exception. */
  readonly instructionLength: number;
}

/** State of the unit beyond the processor's block (VMX_MODE, VMCS_POINTER, VMXON_POINTER) and the VMCS itself. */
export interface VmxState {
  /** Groups of VMCS fields (entry-checks/check.ts) written since the last successful entry of the current VMCS. */
  written: number;
  /** Event the last VM entry injects; delivered at the first instruction boundary. */
  injection: VmxEvent | null;
  /** Event being delivered through the guest's IDT. */
  vectoring: VmxEvent | null;
  /** Nanoseconds of virtual time at which the VMX-preemption timer expires; -1 when it is off. */
  preemptionAt: number;
  /** Monitor trap flag: 0 off, 1 armed (exit behind the next instruction), 2 pending. */
  mtf: 0 | 1 | 2;
  /** Count of retired instructions when it was armed; -1 until the first boundary in the guest. */
  mtfFrom: number;
  /** The TPR shadow fell below the threshold: exit at the next boundary. */
  tprBelow: boolean;
  /** Offset of a write to the APIC-access page whose emulation is due at the next boundary; -1 for none. */
  apicWrite: number;
  /** A pending virtual interrupt has been recognised. */
  virtualInterrupt: boolean;
  /** Blocking by NMI as it was in the host, while the guest's bit is that of virtual NMIs. */
  hostNmiBlocked: boolean;
  /** The IRET that runs now has ended blocking by NMI. */
  nmiUnblocked: boolean;
  /** Virtual time (ns) of the first and the last PAUSE of the current loop, for PAUSE-loop exiting. */
  pauseFirst: number;
  pauseLast: number;
  exitCounts: Float64Array;
  lastFailure: readonly FailedCheck[];
}

export interface Vmx {
  /** Physical address of the current VMCS, or -1. */
  readonly currentVmcs: number;
  /** The current VMCS has been launched: VMRESUME is due, not VMLAUNCH. False without a current VMCS. */
  readonly launched: boolean;
  /** In VMX operation (after VMXON), root or non-root. */
  readonly on: boolean;
  /**
   * @param region physical address of the VMXON region, or what reads it once nothing else is in the way
   * @throws CpuFault where VMXON itself raises #UD or #GP
   */
  vmxon(region: number | (() => number)): VmxResult;
  vmxoff(): VmxResult;
  vmclear(pa: number): VmxResult;
  vmptrld(pa: number): VmxResult;
  /** @returns the value, or a VmxResult other than VM_SUCCEED */
  vmread(encoding: number): bigint | VmxResult;
  vmwrite(encoding: number, value: bigint): VmxResult;
  /** VMREAD without bigints: the value is in `valueLo` and `valueHi` (signed halves) on VM_SUCCEED. */
  readHalves(encoding: number): VmxResult;
  readonly valueLo: number;
  readonly valueHi: number;
  /** VMWRITE without bigints. */
  writeHalves(encoding: number, lo: number, hi: number): VmxResult;
  /** VMREAD and VMWRITE in a guest with VMCS shadowing: the VMCS the link pointer names. */
  shadowRead(encoding: number): bigint | VmxResult;
  shadowWrite(encoding: number, value: bigint): VmxResult;
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
  /** Value of a capability MSR (0x480 to 0x491); 0n where `hasCapability` says there is none. */
  capability(index: number): bigint;
  /** Whether the processor has this capability MSR; RDMSR of another raises #GP(0). */
  hasCapability(index: number): boolean;
  /**
   * Whether CR0 or CR4 may have this value: true outside VMX operation; inside, the fixed bits must be respected (SDM 3C
   * 24.8). MOV CR, LMSW, CLTS and task switches ask it and raise #GP(0).
   */
  crAllowed(cr: 0 | 4, value: bigint): boolean;
  /** Result of an instruction that fails with this error number: VMfailValid with a current VMCS, else VMfailInvalid. */
  failure(error: number): VmxResult;
  /** Power-up and INIT reset leave VMX operation. */
  reset(): void;
  /** Everything of the unit that is not in the processor's block: plain data for snapshots. Setting it takes it over. */
  state: VmxState;
}

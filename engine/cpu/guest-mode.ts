/**
 * What the processor asks while it runs a guest (VMX non-root operation, or an SVM guest). cpu/vmx and cpu/svm implement
 * it; the system instructions, event delivery and the run loop call it at the points where the manuals put the checks
 * (SDM 3C 26.1: which exits come before and which after the instruction's own faults).
 *
 * Every `intercept...` either returns (go on as outside a guest) or takes the VM exit and throws vmExitTaken. RIP is at
 * the instruction, nothing of it has happened.
 */
import type { Instruction } from "./isa/instruction";

/** Instructions that a control (or always) makes exit, with no operands to look at beyond the instruction itself. */
export type SimpleIntercept =
  | "cpuid" | "getsec" | "hlt" | "invd" | "wbinvd" | "wbnoinvd" | "xsetbv" | "rdpmc" | "rdtsc" | "rdtscp" | "rdpid" | "rsm"
  | "pause" | "mwait" | "monitor" | "vmcall" | "vmclear" | "vmlaunch" | "vmptrld" | "vmptrst" | "vmread" | "vmresume"
  | "vmwrite" | "vmxoff" | "vmxon" | "invept" | "invvpid" | "invpcid" | "vmfunc" | "rdrand" | "rdseed" | "encls"
  | "enclv" | "pconfig" | "tpause" | "umwait" | "xsaves" | "xrstors" | "loadiwkey" | "sgdt" | "sidt" | "lgdt" | "lidt"
  | "sldt" | "str" | "lldt" | "ltr" | "vmrun" | "vmload" | "vmsave" | "stgi" | "clgi" | "skinit" | "invlpga" | "vmmcall"
  | "pushf" | "popf" | "iret" | "int" | "icebp"; // biome-ignore format: a list

export type CrAccess = "mov-to" | "mov-from" | "clts" | "lmsw" | "smsw";

export interface GuestMode {
  readonly kind: "vmx" | "svm";

  /**
   * Takes the VM exit of an instruction that exits before any fault of its own, without throwing: the run loop may ask
   * this before it calls the instruction's handler, to whom everything else is left. RIP is at the instruction.
   * @param mnemonic as in isa/opcodes.ts
   * @returns true when the exit was taken; the processor is in the host then
   */
  takeEarlyExit?(mnemonic: string, instruction: Instruction): boolean;
  /** @param linear effective linear address of the memory operand, where the instruction has one */
  interceptInstruction(what: SimpleIntercept, instruction: Instruction, linear?: bigint): void;
  /**
   * MOV CR, CLTS, LMSW, SMSW.
   * @param value what would be written ("mov-to"), the 16-bit source ("lmsw"); 0n otherwise
   * @returns the value the instruction really writes or reads: guest/host masks and read shadows applied (SDM 3C 26.3).
   *   For "clts" and "lmsw" that is the whole new CR0.
   */
  interceptCr(cr: number, access: CrAccess, value: bigint, instruction: Instruction, linear?: bigint): bigint;
  interceptDr(dr: number, write: boolean, instruction: Instruction): void;
  /** @param linear memory operand of INS/OUTS */
  interceptIo(port: number, size: number, input: boolean, instruction: Instruction, linear?: bigint): void;
  interceptMsr(index: number, write: boolean, instruction: Instruction): void;
  interceptInvlpg(linear: bigint, instruction: Instruction): void;
  /**
   * @param source what started it, numbered as in the exit qualification (SDM 3C table 28-2): 0 CALL, 1 IRET, 2 JMP, 3 gate
   * @param instructionLength bytes of the instruction that started it; 0 for events that are not instructions
   */
  interceptTaskSwitch(selector: number, source: number, instructionLength?: number): void;
  /**
   * An exception is about to be delivered (already after contributory checks, before double-fault promotion).
   * @param error error code where the vector has one
   * @param extra CR2 or DR6 bits; not yet in the registers
   * @param software raised by INT1, INT3 or INTO
   * @param instructionLength bytes of that instruction
   */
  interceptException(
    vector: number,
    error: number | undefined,
    extra: bigint,
    software: boolean,
    instructionLength?: number,
  ): void;
  interceptTripleFault(): void;
  /** An external interrupt is pending and would be recognised. Returns true when it must be delivered by the IDT now. */
  interceptExternalInterrupt(): boolean;
  interceptNmi(): void;
  interceptInit(): void;
  interceptSipi(vector: number): void;
  interceptSmi(): void;
  /** Called at every boundary where events are looked at, before interrupts: interrupt window, NMI window, MTF, TPR. */
  boundary(): void;
  /** Whether `boundary` would find nothing to do just now; false where it is not known. */
  quiet?(): boolean;
  /** Whether pending interrupts are recognised whatever RFLAGS.IF says (external-interrupt exiting; SVM V_INTR_MASKING). */
  readonly ignoresIf: boolean;
  /** The next instruction is to be run by single iterations where it is a repeated one (monitor trap flag). */
  readonly stepsIterations?: boolean;
  /** One iteration of it has been made, which was not the last. */
  iterated?(): void;
  /** Instructions until the VMX-preemption timer expires; Infinity without. `preemptionTimerExpired` then exits. */
  instructionsToPreemption(): number;
  preemptionTimerExpired(): void;

  /** An event is being delivered: what IDT-vectoring information must say if delivery itself exits. Cleared with null. */
  setVectoring(event: { vector: number; type: number; error?: number; instructionLength: number } | null): void;
  /** Added to the processor's TSC for RDTSC, RDTSCP and IA32_TIME_STAMP_COUNTER (offset and multiplier applied). */
  adjustTsc(tsc: bigint): bigint;
  /** CR8 accesses with TPR shadow: value, or undefined when the real TPR is meant. */
  readTprShadow(): number | undefined;
  /** @returns false when the real TPR is meant */
  writeTprShadow(value: number): boolean;
  /** Reads of CR0/CR4 by guest code through MOV, SMSW: see interceptCr. Tag for TLB entries: VPID or ASID (0 = root). */
  readonly addressSpaceTag: number;
  /** An access to the APIC-access page (SDM 3C 30.4). @returns true when the guest mode served it (value in state VALUE). */
  apicAccess(pa: number, offset: number, size: number, write: boolean, linear: bigint): boolean;
  /** An instruction fetch from the APIC-access page: always a VM exit. */
  apicFetch?(linear: bigint): never;
  /** RDMSR that does not exit, where the register is virtualized (SDM 3C 30.5); undefined: the real one is meant. */
  virtualizeRdmsr?(index: number): bigint | undefined;
  /** WRMSR likewise. @returns false when the real one is meant. @throws CpuFault */
  virtualizeWrmsr?(index: number, value: bigint): boolean;
  /** VMFUNC; throws #UD or takes its exit where it does not succeed. */
  vmfunc?(instruction: Instruction): void;
  /** Whether VMREAD or VMWRITE of this field accesses the shadow VMCS instead of exiting (VMCS shadowing). */
  shadowsVmcs?(encoding: bigint, write: boolean): boolean;
  /** Physical page of the APIC-access page, or -1. */
  readonly apicAccessPage: number;
}

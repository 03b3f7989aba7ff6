/**
 * What the parts of the processor know of each other: one logical processor (`Cpu`), its units, and the outside it is
 * wired to (`Bus`, `InterruptPort`). processor.ts implements Cpu; system instructions, page walks, VMX and SVM are
 * functions and units over this interface.
 *
 * Conventions: linear addresses and 64-bit values are unsigned bigint, physical addresses are numbers (52 bits fit).
 */
import type { VirtualClock } from "../clock";
import type { PhysicalMemory } from "../memory/physical";
import type { Tracer } from "../trace";
import type { GuestMode } from "./guest-mode";
import type { Instruction } from "./isa/instruction";
import type { CpuModel } from "./models/model";
import type { CpuState } from "./state";
import type { Vmx } from "./vmx/vmx";

/** Exception vectors (SDM 3A table 6-1). */
export const Vector = {
  DE: 0, DB: 1, NMI: 2, BP: 3, OF: 4, BR: 5, UD: 6, NM: 7, DF: 8, TS: 10, NP: 11, SS: 12, GP: 13, PF: 14, MF: 16,
  AC: 17, MC: 18, XM: 19, VE: 20, CP: 21, HV: 28, VC: 29, SX: 30,
} as const; // biome-ignore format: a table

/**
 * An exception of the emulated program. Thrown by TypeScript that executes system instructions or touches memory on the
 * program's behalf, caught by the run loop, which delivers it with RIP at the instruction. Not an Error: no JavaScript
 * stack is captured, because these are ordinary events.
 */
export class CpuFault {
  /**
   * @param vector exception vector
   * @param error error code, or undefined for vectors that push none
   * @param extra CR2 for #PF, DR6 bits for #DB
   */
  constructor(
    readonly vector: number,
    readonly error?: number,
    readonly extra: bigint = 0n,
  ) {}
}

/**
 * A VM exit taken in the middle of executing an instruction or delivering an event. The unit that throws it has already
 * saved the guest and loaded the host (VMX) or written the VMCB (SVM); the run loop only has to go on from there.
 */
export class VmExitTaken {}
export const vmExitTaken = new VmExitTaken();

/** What a handler of a system instruction answers. */
export const Next = {
  /** Go on behind the instruction: the run loop advances RIP by its length. */
  SEQUENTIAL: 0,
  /** The handler set RIP itself. */
  JUMP: 1,
  /** As SEQUENTIAL, but look at pending events and context first (STI, MOV SS, CR writes, HLT ...). */
  ATTENTION: 2,
  /** As JUMP, with attention. */
  JUMP_ATTENTION: 3,
} as const;
export type Next = (typeof Next)[keyof typeof Next];

/** Executes one system instruction. Throws CpuFault or VmExitTaken; changes nothing before that (restartable). */
export type SystemHandler = (cpu: Cpu, instruction: Instruction) => Next;

/** Kind of a memory access; WRITE also for read-modify-write. */
export const Access = { READ: 0, WRITE: 1, EXECUTE: 2 } as const;
export type Access = (typeof Access)[keyof typeof Access];

/** Paging and the TLB (cpu/memory). */
export interface Mmu {
  /** Works out TLB_CONTEXT and the paging mode after a change of CR0, CR3, CR4, EFER, CPL, AC, VPID or EPTP. */
  updateContext(): void;
  /**
   * The slow path of wasm: the access of `size` bytes at linear address EA missed the TLB.
   * @returns host offset of the first byte when plain memory answers and no page boundary is crossed (the TLB is filled
   *   as far as allowed); -1 with STATUS = FAULT and FAULT_* filled in; or -1 with STATUS = SLOW when the access needs
   *   the slow road (MMIO, page crossing, watchpoint)
   */
  fill(access: Access, size: number): number;
  /** Physical address of `linear` for the current privilege (or supervisor, if given). @throws CpuFault, VmExitTaken */
  translate(linear: bigint, access: Access, supervisor?: boolean): number;
  /** Whether the page that `translate` answered with last is global. */
  readonly translatedGlobal: boolean;
  /** The same without side effects, for debuggers: no A/D bits, no fault; -1 where nothing is mapped. */
  probe(linear: bigint): number;
  /** Reads 1, 2, 4 or 8 bytes at a linear address; page crossings and MMIO allowed. @throws CpuFault, VmExitTaken */
  read(linear: bigint, size: number, supervisor?: boolean): bigint;
  write(linear: bigint, size: number, value: bigint, supervisor?: boolean): void;
  /**
   * Host offset of `size` bytes in one page that the TLB has as plain memory, readable or writable, for long copies; -1 where
   * they have to go piece by piece.
   */
  plain(linear: bigint, size: number, write: boolean): number;
  /** Checks that a write of `size` bytes would be allowed, for instructions that must fault before they change anything. */
  checkWrite(linear: bigint, size: number, supervisor?: boolean): void;
  /**
   * Loads the PDPTE registers of PAE paging from the table at `cr3` (SDM 3A 4.4.1).
   * @returns false, with nothing changed, when a present entry has reserved bits set
   */
  loadPdptes(cr3: bigint): boolean;
  /** Drops the translations of one PCID of the current address space tag (MOV to CR3; 0 without PCIDs). */
  invalidatePcid(pcid: number): void;
  /** MOV to CR3 with CR4.PGE has been made: translations of global pages under the old TLB_CONTEXT go on under the new one. */
  carryGlobals(from: number): void;
  /** INVLPG: drops one page of the current context (and its global entries). */
  invalidatePage(linear: bigint): void;
  /** Drops every non-global entry (`globals` false) or every entry of the current address space tag. */
  invalidateAll(globals: boolean): void;
  /** INVPCID, INVVPID, INVEPT and their like; undefined = any. */
  invalidateTagged(what: { pcid?: number; vpid?: number; eptp?: bigint; linear?: bigint; keepGlobals?: boolean }): void;
  /** Drops the write tags of every page on the physical page, so that the next store is seen (code, dirty logging). */
  protectPhysicalPage(pa: number): void;
  /** Physical memory map, ROM or watchpoints changed: forget everything of every context. */
  flushEverything(): void;
}

/** What the guest's own paging allows at a linear address, for the reports of the second stage. */
export const LinearRight = { USER: 1, WRITABLE: 2, NO_EXECUTE: 4 } as const;

/** Second-stage translation (EPT, nested paging) that the page walk asks for every guest-physical address. */
export interface SecondStage {
  /** Tag of the translations made through this structure (EPTP or nCR3). */
  readonly tag: bigint;
  /**
   * Translates a guest-physical address to a physical one.
   * @param access what is done there
   * @param linear guest-linear address that led here, or undefined for an access by the page walk's root (PDPTE load)
   * @param walk true when the guest's own paging structures are being read (or their A/D bits written)
   * @returns physical address; -1 when debugging (`probe`) and nothing is mapped
   * @throws VmExitTaken on an EPT violation, misconfiguration or nested page fault
   */
  translate(gpa: number, access: Access, linear: bigint | undefined, walk: boolean): number;
  probe(gpa: number): number;
  /** LinearRight bits of the linear address whose translation is asked for next (with `walk` false). */
  linearRights: number;
  /** What the last translate allowed, so that the TLB entry is no wider: bit 0 read, bit 1 write, bit 2 execute. */
  readonly permissions: number;
  /** Largest page of the last translate, in bytes. */
  readonly pageSize: number;
}

/** Decoded code (cpu/code): told about everything that makes records stale. */
export interface CodeCache {
  /** Works out CODE_CONTEXT after a change of mode, CS or TLB_CONTEXT. */
  updateContext(): void;
  /** As Mmu.carryGlobals, for CODE_CONTEXT. */
  carryGlobals(from: number): void;
  /** A linear page's translation changed (same moments as Mmu.invalidate*). */
  invalidateLinear(linear: bigint | undefined): void;
  /** Bytes of a physical page changed, by a store, DMA or the debugger. Cheap when no code was decoded from it. */
  invalidatePhysical(pa: number, length: number): void;
  /** Whether code has been decoded from this physical page (its TLB write tags stay clear then). */
  hasCode(pa: number): boolean;
  /** Whether any of `length` bytes from `pa` on (within one page) belong to decoded instructions. */
  touches(pa: number, length: number): boolean;
  flushEverything(): void;
}

/** The outside of one processor: ports, memory-mapped devices, the machine's time. */
export interface Bus {
  /** @param size 1, 2 or 4 bytes; unclaimed ports read as all ones */
  portIn(port: number, size: number): number;
  portOut(port: number, size: number, value: number): void;
  /** Reads 1, 2, 4 or 8 bytes where physical memory has neither RAM nor ROM. Unclaimed addresses read as all ones. */
  mmioRead(pa: number, size: number): bigint;
  mmioWrite(pa: number, size: number, value: bigint): void;
  /** FERR# while CR0.NE is clear: an x87 exception is pending, or no longer (SDM 1 8.7.1). PC boards raise interrupt 13. */
  floatError?(asserted: boolean): void;
}

/** The processor's side of its local APIC (or, without one, of the PIC). */
export interface InterruptPort {
  /** Vector that would be delivered now, -1 for none. Has no effect. */
  pending(): number;
  /** INTA: takes the vector that `pending` announced. */
  acknowledge(): number;
  /** Task-priority class as CR8 (SDM 3A 10.8.6.1), 0..15. */
  readCr8(): number;
  writeCr8(value: number): void;
  /** IA32_APIC_BASE and x2APIC MSRs (0x1b, 0x800..0x8ff). @returns undefined, or false, where #GP(0) is due */
  readMsr(index: number): bigint | undefined;
  writeMsr(index: number, value: bigint): boolean;
  /** The processor takes an INIT: the local APIC gets the state of SDM 3A 10.4.7.3. */
  init?(): void;
}

/** Code the run loop stops at, before the instruction. */
export interface CodeBreakpoint {
  readonly id: number;
  /** Linear address; with `physical` a physical one, at whatever linear address the code runs. */
  readonly linear: bigint;
  /** End (exclusive) of a stretch in which every instruction stops; without it only the one at `linear` does. */
  readonly end?: bigint;
  readonly physical?: boolean;
}

export interface Watchpoint {
  readonly id: number;
  readonly space: "linear" | "physical";
  readonly address: bigint;
  /** Bytes. */
  readonly length: number;
  readonly access: "read" | "write" | "readWrite";
}

/** Why `Cpu.run` came back. */
export const RunExit = {
  /** The asked-for number of instructions has retired (or the clock's next event is due). */
  SLICE: 0,
  /** HLT, MWAIT or wait-for-SIPI, and nothing pending that ends it. */
  HALTED: 1,
  /** Shutdown: triple fault outside a guest. */
  SHUTDOWN: 2,
  /** A VM exit whose host is a model (see Cpu.hostIsModel): the exit information is in the VMCS or VMCB. */
  VM_EXIT: 3,
} as const;
export type RunExit = (typeof RunExit)[keyof typeof RunExit];

export interface Cpu {
  readonly id: number;
  readonly state: CpuState;
  readonly model: CpuModel;
  readonly memory: PhysicalMemory;
  readonly bus: Bus;
  readonly interrupts: InterruptPort;
  readonly clock: VirtualClock;
  readonly trace: Tracer;
  readonly mmu: Mmu;
  readonly code: CodeCache;
  readonly vmx: Vmx;
  /** VMX non-root operation or an SVM guest is running: who intercepts. Null otherwise. */
  guest: GuestMode | null;
  /** EPT or nested paging of the running guest; null without. */
  secondStage: SecondStage | null;
  /**
   * The hypervisor is a model in TypeScript, not emulated code: after a VM exit `run` returns VM_EXIT instead of going on
   * at the host's RIP.
   */
  hostIsModel: boolean;

  /** Runs until something in RunExit happens; at most `instructions` retire. The vCPU must be the active one. */
  run(instructions: number): RunExit;
  /** Re-derives everything cached from CR0, CR4, EFER, CS, SS, RFLAGS.VM, AC, CPL; call after changing any of them. */
  contextChanged(): void;
  /** Makes the run loop look at pending events at the next instruction boundary. Safe from bus callbacks. */
  attention(): void;
  /** Pulls the NMI, INIT or SIPI line; `vector` for SIPI. */
  signal(event: "nmi" | "init" | "sipi" | "smi", vector?: number): void;
  /** Power-up or INIT reset (SDM 3A 9.1.1, table 9-1). */
  reset(kind: "power-up" | "init"): void;
  /** Debugger stops; replacing the lists takes effect at the next instruction. */
  setBreakpoints(list: readonly CodeBreakpoint[]): void;
  setWatchpoints(list: readonly Watchpoint[]): void;
  /**
   * A watchpoint of the debugger or a data breakpoint of DR0..DR3 lies on this linear or physical page: no TLB tag then,
   * and `Mmu.fill` answers SLOW; the processor looks at every access of the slow road itself.
   */
  watchesPage(linear: bigint, pa: number): boolean;
  /** The debugger asked for a TraceKind.Instruction stop after `count` more instructions of this vCPU (0 = none). */
  stopAfter(count: number): void;
  /** Instructions this vCPU has retired. */
  readonly retired: number;
}

/**
 * The state of one logical processor, as it lies in the engine's memory.
 *
 * Offsets are bytes from the start of the CPU block; generated wasm uses them as constant addresses, TypeScript uses
 * CpuState. Everything architectural is here, so that a snapshot of the block is a snapshot of the processor.
 */
import { cpuBank } from "../memory/layout";

/** General registers in encoding order (SDM 2A 2.1.5, table 2-2, extended by REX.R/X/B). */
// biome-ignore format: eight a row, as in the manual
export const GPR_NAMES = [
  "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
  "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
] as const;

export const Gpr = { RAX: 0, RCX: 1, RDX: 2, RBX: 3, RSP: 4, RBP: 5, RSI: 6, RDI: 7 } as const;

/** Segment registers in encoding order (SDM 2A table 2-2 and 3.1.1.1 Sreg), then the two system ones. */
export const Seg = { ES: 0, CS: 1, SS: 2, DS: 3, FS: 4, GS: 5, LDTR: 6, TR: 7 } as const;
export type Seg = (typeof Seg)[keyof typeof Seg];
export const SEG_NAMES = ["es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr"] as const;

/**
 * Offsets of one segment register's parts from its own start (SEG_SIZE bytes each).
 * `attributes` has the layout of VMX access rights (SDM 3C table 25-2): type 3:0, S 4, DPL 6:5, P 7, AVL 12, L 13,
 * D/B 14, G 15, unusable 16. `limit` is always in bytes (G already applied).
 */
export const SegPart = { BASE: 0, LIMIT: 8, ATTRIBUTES: 12, SELECTOR: 16 } as const;
export const SEG_SIZE = 24;

// biome-ignore format: a bit table
export const SegAttr = {
  TYPE: 0xf, ACCESSED: 1, WRITABLE: 2, READABLE: 2, EXPAND_DOWN: 4, CONFORMING: 4, CODE: 8,
  S: 1 << 4, DPL_SHIFT: 5, DPL: 3 << 5, P: 1 << 7, AVL: 1 << 12, L: 1 << 13, DB: 1 << 14, G: 1 << 15, UNUSABLE: 1 << 16,
} as const;

/**
 * Arithmetic flags are lazy. They are a function of two 64-bit values:
 *   FLAG_RESULT  the last result, sign-extended from its operand size
 *   FLAG_AUX     bit 63 = CF; bit 62 = CF xor OF; bit 3 = AF; bit 0 inverts SF; bits 15:8 are xored into the result's
 *                low byte before its parity is taken
 * so  CF = aux<63>, OF = aux<63> ^ aux<62>, AF = aux<3>, ZF = result == 0, SF = result<63> ^ aux<0>,
 *     PF = even parity of (result<7:0> ^ aux<15:8>).
 * An addition a+b=r has carry-out vector c = (a&b)|((a|b)&~r) (a subtraction the borrow vector): aux takes its two top
 * bits of the operand size to 63:62 and its bit 3 to 3.
 */
// biome-ignore format: an address map
export const Off = {
  GPR: 0x000,
  /** Always zero: the base or index an address does not have. */
  ZERO: 0x080,
  /** Instruction pointer: of the next instruction between instructions, of the current one inside one. */
  RIP: 0x088,
  FLAG_RESULT: 0x090,
  FLAG_AUX: 0x098,
  /** u32: RFLAGS without the six arithmetic flags (their bits are 0 here); bit 1 is always 1. */
  FLAGS_REST: 0x0a0,
  /** u32: instructions that may still retire in this slice. */
  BUDGET: 0x0a4,
  /** u32: why the tier came back (ExitStatus). */
  STATUS: 0x0a8,
  /** u32: Cpl (0..3). */
  CPL: 0x0ac,
  /** u32: CodeMode. */
  CODE_MODE: 0x0b0,
  /** i64: bits 11:0 = context tag of data accesses at the current privilege, ORed into TLB tags. */
  TLB_CONTEXT: 0x0b8,
  /** i64: the same for code (also distinguishes CODE_MODE and CS.base). */
  CODE_CONTEXT: 0x0c0,
  /** i64: linear address of the access a slow path is asked for. */
  EA: 0x0c8,
  /** 32 bytes: value of a slow load, or value a slow store wants stored. */
  VALUE: 0x0d0,
  /** u32: Inhibit bits: events blocked until the next instruction boundary. */
  INHIBIT: 0x0f0,
  /** u32: Activity. */
  ACTIVITY: 0x0f4,
  /** u32: pending events (Pending bits). */
  PENDING: 0x0f8,
  /** u32: SimdAccess: which exception vector instructions raise just now. Follows from CR0, CR4 and XCR0. */
  SIMD_ACCESS: 0x0fc,

  /** Eight segment registers of SEG_SIZE bytes, in the order of Seg. */
  SEG: 0x100,
  GDTR_BASE: 0x1c0, GDTR_LIMIT: 0x1c8, IDTR_BASE: 0x1d0, IDTR_LIMIT: 0x1d8,

  CR0: 0x200, CR2: 0x208, CR3: 0x210, CR4: 0x218, XCR0: 0x220, EFER: 0x228,
  /** DR0..DR3, then DR6 and DR7. */
  DR0: 0x230, DR6: 0x250, DR7: 0x258,
  /** Four PDPTE registers of PAE paging (SDM 3A 4.4.1). */
  PDPTE: 0x260,

  STAR: 0x280, LSTAR: 0x288, CSTAR: 0x290, FMASK: 0x298, KERNEL_GS_BASE: 0x2a0, TSC_AUX: 0x2a8,
  SYSENTER_CS: 0x2b0, SYSENTER_ESP: 0x2b8, SYSENTER_EIP: 0x2c0, PAT: 0x2c8, APIC_BASE: 0x2d0, MISC_ENABLE: 0x2d8,
  DEBUGCTL: 0x2e0, FEATURE_CONTROL: 0x2e8, TSC_ADJUST: 0x2f0, SPEC_CTRL: 0x2f8,
  /** i64: added to the clock to give this processor's TSC (WRMSR TSC and TSC_ADJUST change it). */
  TSC_BASE: 0x300,
  PERF_GLOBAL_CTRL: 0x308, MTRR_DEF_TYPE: 0x310, XSS: 0x318,
  /** 11 fixed-range MTRRs, then 8 variable pairs base, mask. */
  MTRR_FIXED: 0x320, MTRR_VARIABLE: 0x378,
  SMBASE: 0x3f8,
  /** CET: IA32_U_CET, S_CET, PL0..3_SSP, INTERRUPT_SSP_TABLE; PKRS. */
  CET: 0x400, PKRS: 0x438, PKRU: 0x440,

  /** The exception being raised or delivered: u32 vector (or -1), u32 error code, u32 has-error, i64 extra (CR2/DR6). */
  FAULT_VECTOR: 0x460, FAULT_ERROR: 0x464, FAULT_HAS_ERROR: 0x468, FAULT_EXTRA: 0x470,
  /** i64: DR6 bits of debug exceptions waiting for the instruction boundary. */
  PENDING_DEBUG: 0x478,

  /** VMX: u32 VmxMode, i64 current VMCS pointer (or -1), i64 VMXON pointer. Owned by cpu/vmx. */
  VMX_MODE: 0x480, VMCS_POINTER: 0x488, VMXON_POINTER: 0x490,
  /** SVM: u32 in guest mode, u32 GIF, i64 VM_HSAVE_PA, i64 VM_CR, i64 current VMCB. Owned by cpu/svm. */
  SVM_GUEST: 0x4a0, SVM_GIF: 0x4a4, SVM_HSAVE: 0x4a8, SVM_VM_CR: 0x4b0, SVM_VMCB: 0x4b8,
  /** i64: generator of RDRAND and RDSEED (system/random.ts). */
  RANDOM: 0x4c0,

  /** x87: u16 control, status, tag (abridged, as FXSAVE), opcode; u64 instruction and data pointers; TOP is in status. */
  FCW: 0x500, FSW: 0x502, FTW: 0x504, FOP: 0x506, FIP: 0x508, FDP: 0x510, FCS: 0x518, FDS: 0x51a,
  MXCSR: 0x51c,
  /** Eight x87 registers R0..R7 (physical, not ST-relative) of 16 bytes, 80 used. */
  X87: 0x520,
  /** 32 vector registers of 64 bytes: XMM in the low 16, YMM in the low 32. */
  VECTOR: 0x600,
  /** Eight opmask registers k0..k7. */
  OPMASK: 0xe00,
  /** IA32_MCG_STATUS, IA32_MCG_CTL, 16 x IA32_MCi_CTL; then the words of SCRATCH_MSRS (system/msrs.ts). */
  MCG_STATUS: 0xe40, MCG_CTL: 0xe48, MC_CTL: 0xe50, SCRATCH_MSRS: 0xf00,

  /** Free for the tiers (spill, string-instruction scratch); not part of a snapshot's meaning. */
  TIER_SCRATCH: 0x1000,
  /**
   * Part of TIER_SCRATCH: operands of vector instructions that TypeScript computes, three of 32 bytes, and the result, 32
   * bytes and a u32.
   */
  VECTOR_SOURCE: 0x1100, VECTOR_RESULT: 0x1160, VECTOR_FLAGS: 0x1180,
} as const;

/**
 * Bytes of SIMD_ACCESS: vector of the exception that an instruction of the kind raises (6 or 7), or 0. MMX instructions
 * raise #MF besides, where an x87 exception is pending.
 */
export const SimdAccess = { SSE: 0, VEX: 1, MMX: 2 } as const;
export type SimdAccess = (typeof SimdAccess)[keyof typeof SimdAccess];

// biome-ignore format: a bit table
export const Rflags = {
  CF: 1 << 0, FIXED: 1 << 1, PF: 1 << 2, AF: 1 << 4, ZF: 1 << 6, SF: 1 << 7, TF: 1 << 8, IF: 1 << 9, DF: 1 << 10,
  OF: 1 << 11, IOPL: 3 << 12, IOPL_SHIFT: 12, NT: 1 << 14, RF: 1 << 16, VM: 1 << 17, AC: 1 << 18, VIF: 1 << 19,
  VIP: 1 << 20, ID: 1 << 21,
  /** The six lazy ones. */
  ARITHMETIC: 0x8d5,
} as const;

/** How code is decoded and how addresses form: real-address mode, virtual-8086, 16- and 32-bit protected, 64-bit. */
export const CodeMode = {
  REAL: 0,
  VM86: 1,
  PROTECTED16: 2,
  PROTECTED32: 3,
  COMPAT16: 4,
  COMPAT32: 5,
  LONG64: 6,
} as const;
export type CodeMode = (typeof CodeMode)[keyof typeof CodeMode];

/** Values as in the VMCS activity-state field (SDM 3C 25.4.2); SHUTDOWN also after a triple fault in root operation. */
export const Activity = { ACTIVE: 0, HLT: 1, SHUTDOWN: 2, WAIT_FOR_SIPI: 3, MWAIT: 4 } as const;
export type Activity = (typeof Activity)[keyof typeof Activity];

/** Bits as in the VMCS interruptibility-state field (SDM 3C table 25-3). */
export const Inhibit = { STI: 1 << 0, MOV_SS: 1 << 1, SMI: 1 << 2, NMI: 1 << 3 } as const;

/** Events waiting for an instruction boundary, apart from external interrupts (the interrupt controller knows those). */
// biome-ignore format: a bit table
export const Pending = {
  NMI: 1 << 0, INIT: 1 << 1, SIPI: 1 << 2, SMI: 1 << 3, DEBUG: 1 << 4, MTF: 1 << 5,
  /** Bits 15:8 hold the SIPI vector. */
  SIPI_VECTOR_SHIFT: 8,
} as const;

/** Why wasm came back to TypeScript (Off.STATUS). */
export const ExitStatus = {
  /** The budget is used up (or was taken away to get attention); RIP is at a boundary. */
  BUDGET: 0,
  /** No record for RIP: decode and link. */
  MISS: 1,
  /** An exception is in FAULT_*; RIP is at the faulting instruction. */
  FAULT: 2,
  /** The instruction at RIP needs the slow road (MMIO, page-crossing, watched page); nothing of it has happened. */
  SLOW: 3,
  /** The last instruction changed the context (mode, paging, breakpoints) or wants the run loop's attention. */
  ATTENTION: 4,
  /** A breakpoint stands at RIP. */
  BREAK: 5,
  /** A long REP instruction comes up for air: its registers are updated, it has not retired; run it again. */
  AGAIN: 6,
} as const;
export type ExitStatus = (typeof ExitStatus)[keyof typeof ExitStatus];

const parity = new Uint8Array(256);
for (let i = 0; i < 256; i++) {
  let ones = 0;
  for (let b = i; b; b >>= 1) ones += b & 1;
  parity[i] = ones % 2 === 0 ? 1 : 0;
}

/**
 * Typed access to one vCPU's block. `base` is 0 while the vCPU is the running one, its bank otherwise; callers never
 * need to know. 64-bit values are bigint (unsigned); `lo`/`hi` give the halves where speed matters.
 */
export class CpuState {
  /** Host offset of the block: 0 for the running vCPU. */
  base: number;
  readonly i32: Int32Array;
  readonly u8: Uint8Array;
  readonly view: DataView;

  constructor(
    readonly id: number,
    readonly memory: WebAssembly.Memory,
  ) {
    this.base = cpuBank(id);
    this.i32 = new Int32Array(memory.buffer);
    this.u8 = new Uint8Array(memory.buffer);
    this.view = new DataView(memory.buffer);
  }

  u64(offset: number): bigint {
    return this.view.getBigUint64(this.base + offset, true);
  }
  setU64(offset: number, value: bigint): void {
    this.view.setBigUint64(this.base + offset, value, true);
  }
  /** Low 32 bits of the i64 at `offset`, signed. */
  lo(offset: number): number {
    return this.i32[(this.base + offset) >> 2];
  }
  /** High 32 bits of the i64 at `offset`, signed. */
  hi(offset: number): number {
    return this.i32[(this.base + offset + 4) >> 2];
  }
  setLo(offset: number, value: number): void {
    this.i32[(this.base + offset) >> 2] = value;
  }
  setHi(offset: number, value: number): void {
    this.i32[(this.base + offset + 4) >> 2] = value;
  }
  u32(offset: number): number {
    return this.i32[(this.base + offset) >> 2] >>> 0;
  }
  setU32(offset: number, value: number): void {
    this.i32[(this.base + offset) >> 2] = value;
  }

  gpr(index: number): bigint {
    return this.u64(Off.GPR + index * 8);
  }
  setGpr(index: number, value: bigint): void {
    this.setU64(Off.GPR + index * 8, value);
  }
  /** Low 32 bits of a general register, unsigned. */
  gpr32(index: number): number {
    return this.i32[(this.base + Off.GPR + index * 8) >> 2] >>> 0;
  }
  /** Writes 32 bits and zeroes the upper half, as 64-bit mode does. */
  setGpr32(index: number, value: number): void {
    const at = (this.base + Off.GPR + index * 8) >> 2;
    this.i32[at] = value;
    this.i32[at + 1] = 0;
  }

  get rip(): bigint {
    return this.u64(Off.RIP);
  }
  set rip(value: bigint) {
    this.setU64(Off.RIP, value);
  }

  /** The whole of RFLAGS, lazy flags worked out (32 bits; the upper half is always 0). */
  get rflags(): number {
    const result = this.lo(Off.FLAG_RESULT);
    const resultHi = this.hi(Off.FLAG_RESULT);
    const aux = this.lo(Off.FLAG_AUX);
    const auxHi = this.hi(Off.FLAG_AUX);
    let f = this.u32(Off.FLAGS_REST) | Rflags.FIXED;
    if (auxHi < 0) f |= Rflags.CF;
    if ((auxHi ^ (auxHi << 1)) < 0) f |= Rflags.OF;
    if (aux & 8) f |= Rflags.AF;
    if ((result | resultHi) === 0) f |= Rflags.ZF;
    if (((resultHi >>> 31) ^ aux) & 1) f |= Rflags.SF;
    if (parity[(result ^ (aux >> 8)) & 0xff]) f |= Rflags.PF;
    return f;
  }
  /** Sets all of RFLAGS; reserved bits are the caller's business. Does not by itself change any context. */
  set rflags(value: number) {
    this.setU32(Off.FLAGS_REST, (value & ~Rflags.ARITHMETIC) | Rflags.FIXED);
    const zf = (value & Rflags.ZF) !== 0;
    const sf = (value & Rflags.SF) !== 0;
    const pf = (value & Rflags.PF) !== 0;
    const cf = (value & Rflags.CF) !== 0;
    const of = (value & Rflags.OF) !== 0;
    // A result that shows ZF; SF and PF then come from the correcting bits of aux. Its parity is even for 0, odd for 1.
    const result = zf ? 0 : 1;
    const even = zf;
    this.setLo(Off.FLAG_RESULT, result);
    this.setHi(Off.FLAG_RESULT, 0);
    let aux = 0;
    if (value & Rflags.AF) aux |= 8;
    if (sf) aux |= 1;
    if (pf !== even) aux |= 1 << 8;
    this.setLo(Off.FLAG_AUX, aux);
    this.setHi(Off.FLAG_AUX, (cf ? 1 << 31 : 0) | (cf !== of ? 1 << 30 : 0));
  }

  /** Offset of segment register `seg` in the block. */
  static segOffset(seg: number): number {
    return Off.SEG + seg * SEG_SIZE;
  }
  segBase(seg: number): bigint {
    return this.u64(Off.SEG + seg * SEG_SIZE + SegPart.BASE);
  }
  segLimit(seg: number): number {
    return this.u32(Off.SEG + seg * SEG_SIZE + SegPart.LIMIT);
  }
  segAttributes(seg: number): number {
    return this.u32(Off.SEG + seg * SEG_SIZE + SegPart.ATTRIBUTES);
  }
  segSelector(seg: number): number {
    return this.u32(Off.SEG + seg * SEG_SIZE + SegPart.SELECTOR);
  }
  setSegment(seg: number, selector: number, base: bigint, limit: number, attributes: number): void {
    const at = Off.SEG + seg * SEG_SIZE;
    this.setU64(at + SegPart.BASE, base);
    this.setU32(at + SegPart.LIMIT, limit);
    this.setU32(at + SegPart.ATTRIBUTES, attributes);
    this.setU32(at + SegPart.SELECTOR, selector);
  }

  get cpl(): number {
    return this.u32(Off.CPL);
  }
  get codeMode(): CodeMode {
    return this.u32(Off.CODE_MODE) as CodeMode;
  }
  get activity(): Activity {
    return this.u32(Off.ACTIVITY) as Activity;
  }
  set activity(value: Activity) {
    this.setU32(Off.ACTIVITY, value);
  }
}

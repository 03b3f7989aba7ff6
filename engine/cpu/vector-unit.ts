/**
 * What generated code leaves to TypeScript of vector instructions: floating-point operations that need care, and functions
 * that are no business of WebAssembly's (AES, strings ...). Operands and results lie in the CPU block at VECTOR_SOURCE and
 * VECTOR_RESULT.
 */
import { type Cpu, CpuFault, Vector } from "./cpu";
import { VectorFloat, type VectorOp } from "./float/vector";
import { VECTOR_FUNCTIONS } from "./isa/semantics/vector/functions";
import { FlagCompare, formatOf, operationOf, SOURCE_STEP } from "./isa/semantics/vector/slow-float";
import { Off } from "./state";

const CR4_OSXMMEXCPT = 1 << 10;
const FLAGS = 0x3f;
const MASKS_SHIFT = 7;
const EFLAGS_SHIFT = 8;

export class VectorUnit {
  private readonly floats: VectorFloat;

  constructor(private readonly cpu: Cpu) {
    this.floats = new VectorFloat(cpu.memory.memory.buffer);
  }

  /** Runs function `number` of VECTOR_FUNCTIONS. @returns what it says of flags or an index */
  compute(number: number, length: number, immediate: number): number {
    return VECTOR_FUNCTIONS[number].run(this.cpu.state.view, length, immediate);
  }

  /**
   * A floating-point operation on `lanes` elements (slow-float.ts).
   * @throws CpuFault #XM, or #UD without CR4.OSXMMEXCPT, for an exception that MXCSR does not mask (SDM 3A 6.15)
   */
  float(number: number, lanes: number, immediate: number): void {
    const { state } = this.cpu;
    const mxcsr = state.u32(Off.MXCSR);
    const a = Off.VECTOR_SOURCE;
    const b = a + SOURCE_STEP;
    const c = b + SOURCE_STEP;
    const op = operationOf(number);
    const format = formatOf(number);
    let flags: number;
    if (op >= FlagCompare.UCOMI) {
      const answer = this.floats.compareScalar(op === FlagCompare.COMI, format, mxcsr, a, b);
      state.setU32(Off.VECTOR_FLAGS, answer >> EFLAGS_SHIFT);
      flags = answer & FLAGS;
    } else flags = this.floats.run(op as VectorOp, format, lanes, mxcsr, immediate, a, b, c, Off.VECTOR_RESULT);
    if (flags === 0) return;
    state.setU32(Off.MXCSR, mxcsr | flags);
    if ((flags & ~(mxcsr >> MASKS_SHIFT)) === 0) return;
    throw new CpuFault(state.lo(Off.CR4) & CR4_OSXMMEXCPT ? Vector.XM : Vector.UD);
  }
}

/**
 * RDRAND and RDSEED (SDM 2B). The numbers come from a generator whose state is part of the processor's, so that a run
 * repeats itself and a snapshot goes on where it was: splitmix64, started by the processor's number at power-up. They are
 * not secret from anybody who knows this.
 */
import { type Cpu, Next, type SystemHandler } from "../cpu";
import { Off, Rflags } from "../state";
import { MASK64, writeOperand } from "./operands";

const STEP = 0x9e37_79b9_7f4a_7c15n;

function mix(value: bigint): bigint {
  let z = value;
  z = ((z ^ (z >> 30n)) * 0xbf58_476d_1ce4_e5b9n) & MASK64;
  z = ((z ^ (z >> 27n)) * 0x94d0_49bb_1331_11ebn) & MASK64;
  return z ^ (z >> 31n);
}

/** Power-up. */
export function seedRandom(cpu: Cpu): void {
  cpu.state.setU64(Off.RANDOM, mix(BigInt(cpu.id + 1) * STEP));
}

/** The next 64 random bits. */
function nextRandom(cpu: Cpu): bigint {
  const state = (cpu.state.u64(Off.RANDOM) + STEP) & MASK64;
  cpu.state.setU64(Off.RANDOM, state);
  return mix(state);
}

/** There is always a number: CF is set, the other arithmetic flags are clear. */
const random =
  (name: "rdrand" | "rdseed"): SystemHandler =>
  (cpu, instruction) => {
    cpu.guest?.interceptInstruction(name, instruction);
    const { size } = instruction.operands[0];
    writeOperand(cpu, instruction, 0, BigInt.asUintN(size * 8, nextRandom(cpu)));
    cpu.state.rflags = (cpu.state.rflags & ~Rflags.ARITHMETIC) | Rflags.CF;
    return Next.SEQUENTIAL;
  };

export const randomHandlers: Readonly<Record<string, SystemHandler>> = {
  RDRAND: random("rdrand"),
  RDSEED: random("rdseed"),
};

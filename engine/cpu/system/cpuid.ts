/** CPUID: the model's leaves, with the bits that follow the processor's state (SDM 2A CPUID). */
import { type Cpu, Next, type SystemHandler } from "../cpu";
import { type CpuidLeaf, type CpuModel, XSAVE_COMPONENTS, XSAVE_HEADER_END } from "../models/model";
import { Gpr, Off } from "../state";
import { Cr4 } from "./bits";

const OSXSAVE = 1 << 27;
const APIC = 1 << 9;
const OSPKE = 1 << 4;
const APIC_ENABLED = 1 << 11;

export interface CpuidResult {
  readonly eax: number;
  readonly ebx: number;
  readonly ecx: number;
  readonly edx: number;
}

const NOTHING: CpuidResult = { eax: 0, ebx: 0, ecx: 0, edx: 0 };

/** Bytes of XSAVE's area for the components in `xcr0`; there are no gaps, so that the compacted format is as long. */
function xsaveSize(xcr0: number): number {
  const enabled = XSAVE_COMPONENTS.filter((c) => xcr0 & (1 << c.index));
  return enabled.reduce((end, c) => Math.max(end, c.offset + c.size), XSAVE_HEADER_END);
}

/** The row of a leaf; the one whose subleaf is asked for, or that has none. */
function row(model: CpuModel, leaf: number, subleaf: number): CpuidLeaf | undefined {
  return model.leaves.find((l) => l.leaf === leaf && (l.subleaf === undefined || l.subleaf === subleaf));
}

/** What CPUID answers, registers unsigned. */
export function cpuid(cpu: Cpu, leaf: number, subleaf: number): CpuidResult {
  const { model, state } = cpu;
  let number = leaf >>> 0;
  const range = number >= 0x8000_0000 ? 0x8000_0000 : 0;
  const highest = row(model, range, 0)?.eax ?? 0;
  if (number > highest) {
    // Intel answers with the highest basic leaf, AMD with zeros.
    if (model.vendor === "AuthenticAMD") return NOTHING;
    number = row(model, 0, 0)?.eax ?? 0;
  }
  const found = row(model, number, subleaf >>> 0);
  if (!found) {
    // Beyond the last level, leaf 0BH still shows the level number and the APIC id.
    const topology = number === 0xb ? row(model, 0xb, 0) : undefined;
    return topology ? { ...NOTHING, ecx: subleaf & 0xff, edx: topology.edx } : NOTHING;
  }
  let { eax, ebx, ecx, edx } = found;
  const cr4 = state.lo(Off.CR4);
  if (number === 1) {
    if (cr4 & Cr4.OSXSAVE) ecx |= OSXSAVE;
    if (!(state.lo(Off.APIC_BASE) & APIC_ENABLED)) edx &= ~APIC;
  } else if (number === 7 && subleaf === 0 && cr4 & Cr4.PKE) ecx |= OSPKE;
  else if (number === 0xd && subleaf <= 1 && ebx !== 0) ebx = xsaveSize(state.lo(Off.XCR0));
  return { eax: eax >>> 0, ebx: ebx >>> 0, ecx: ecx >>> 0, edx: edx >>> 0 };
}

const handleCpuid: SystemHandler = (cpu, instruction) => {
  const { state } = cpu;
  cpu.guest?.interceptInstruction("cpuid", instruction);
  const { eax, ebx, ecx, edx } = cpuid(cpu, state.gpr32(Gpr.RAX), state.gpr32(Gpr.RCX));
  state.setGpr32(Gpr.RAX, eax);
  state.setGpr32(Gpr.RBX, ebx);
  state.setGpr32(Gpr.RCX, ecx);
  state.setGpr32(Gpr.RDX, edx);
  return Next.SEQUENTIAL;
};

export const cpuidHandlers: Readonly<Record<string, SystemHandler>> = { CPUID: handleCpuid };

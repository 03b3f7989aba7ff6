/**
 * CPUID of one vCPU: the model's leaves with what depends on the machine, i.e. APIC ids and the number of processors in the
 * package (SDM 2A CPUID, leaves 1, 4 and 0BH). QEMU does the same in cpu_x86_cpuid.
 */
import type { CpuidLeaf, CpuModel } from "../cpu/models/model";

export interface Topology {
  readonly apicId: number;
  /** Processors of the machine: one package, one thread a core. */
  readonly smp: number;
}

const HTT = 1 << 28;

/** Bits an APIC id needs for the processors of the package. */
const idBits = (smp: number): number => 32 - Math.clz32(smp - 1);

export function cpuidOf(model: CpuModel, t: Topology): readonly CpuidLeaf[] {
  const leaves = model.leaves.filter((l) => l.leaf !== 0xb).map((l) => adjust(model, l, t));
  if (model.leaves.some((l) => l.leaf === 0xb)) leaves.push(...topologyLeaves(t));
  return leaves.sort((a, b) => (a.leaf >>> 0) - (b.leaf >>> 0) || (a.subleaf ?? 0) - (b.subleaf ?? 0));
}

/** The model as processor `t.apicId` of a machine shows it. */
export const modelOf = (model: CpuModel, t: Topology): CpuModel => ({ ...model, leaves: cpuidOf(model, t) });

function adjust(model: CpuModel, l: CpuidLeaf, { apicId, smp }: Topology): CpuidLeaf {
  switch (l.leaf) {
    case 1: {
      const ebx = ((l.ebx & 0xffff) | (smp << 16) | (apicId << 24)) >>> 0;
      return { ...l, ebx, edx: (smp > 1 ? l.edx | HTT : l.edx & ~HTT) >>> 0 };
    }
    case 4:
      // Bits 31:26: addressable core ids less one; only leaves that describe a cache.
      if ((l.eax & 0x1f) === 0) return l;
      return { ...l, eax: ((l.eax & 0x03ffffff) | (((1 << idBits(smp)) - 1) << 26)) >>> 0 };
    case 0x8000_0001:
      // CmpLegacy: several processors in the package are cores (APM 3, E.4.2).
      return model.vendor === "AuthenticAMD" && smp > 1 ? { ...l, ecx: (l.ecx | 2) >>> 0 } : l;
    case 0x8000_0008:
      // Size of the core id, and cores less one.
      if (model.vendor !== "AuthenticAMD") return l;
      return { ...l, ecx: ((idBits(smp) << 12) | (smp - 1)) >>> 0 };
    case 0x8000_001d:
      // Bits 25:14: processors that share the cache less one; the third level is everybody's.
      return (l.eax & 0xe0) === 0x60 ? { ...l, eax: (l.eax | ((smp - 1) << 14)) >>> 0 } : l;
    case 0x8000_001e:
      // Extended APIC id; core id, one thread a core; one node.
      return { ...l, eax: apicId, ebx: apicId, ecx: 0 };
    default:
      return l;
  }
}

function topologyLeaves({ apicId, smp }: Topology): CpuidLeaf[] {
  return [
    { leaf: 0xb, subleaf: 0, eax: 0, ebx: 1, ecx: 0x100, edx: apicId },
    { leaf: 0xb, subleaf: 1, eax: idBits(smp), ebx: smp, ecx: 0x201, edx: apicId },
    { leaf: 0xb, subleaf: 2, eax: 0, ebx: 0, ecx: 2, edx: apicId },
  ];
}

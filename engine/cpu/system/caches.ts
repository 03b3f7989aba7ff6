/** TLB and cache invalidation: INVLPG, INVPCID, INVD, WBINVD (SDM 2A, SDM 3A 4.10.4). There are no caches to write back. */
import { CpuFault, Next, type SystemHandler, Vector } from "../cpu";
import type { SimpleIntercept } from "../guest-mode";
import { CodeMode, Off } from "../state";
import { effectiveAddress, isCanonical, readOperand, requireCpl0, uncheckedAddress } from "./operands";

const CR4_PCIDE = 1 << 17;

const invlpg: SystemHandler = (cpu, instruction) => {
  requireCpl0(cpu);
  const linear = uncheckedAddress(cpu, instruction);
  cpu.guest?.interceptInvlpg(linear, instruction);
  // A non-canonical address has no translation: the instruction does nothing (SDM 2A INVLPG).
  if (cpu.state.codeMode !== CodeMode.LONG64 || isCanonical(cpu, linear)) cpu.mmu.invalidatePage(linear);
  return Next.ATTENTION;
};

const invpcid: SystemHandler = (cpu, instruction) => {
  // In a guest it may not exist at all (SDM 3C 26.3): that is asked first.
  cpu.guest?.interceptInstruction("invpcid", instruction, uncheckedAddress(cpu, instruction));
  requireCpl0(cpu);
  const type = readOperand(cpu, instruction, 0);
  const at = effectiveAddress(cpu, instruction, 16);
  const first = cpu.mmu.read(at, 8);
  const linear = cpu.mmu.read(at + 8n, 8);
  const pcid = Number(first & 0xfffn);
  if (type > 3n || first >> 12n !== 0n) throw new CpuFault(Vector.GP, 0);
  if (type < 2n && pcid !== 0 && !(cpu.state.lo(Off.CR4) & CR4_PCIDE)) throw new CpuFault(Vector.GP, 0);
  if (type === 0n) {
    if (!isCanonical(cpu, linear)) throw new CpuFault(Vector.GP, 0);
    cpu.mmu.invalidateTagged({ pcid, linear, keepGlobals: true });
  } else if (type === 1n) cpu.mmu.invalidateTagged({ pcid, keepGlobals: true });
  else cpu.mmu.invalidateTagged({ keepGlobals: type === 3n });
  return Next.ATTENTION;
};

const cache =
  (name: SimpleIntercept): SystemHandler =>
  (cpu, instruction) => {
    requireCpl0(cpu);
    cpu.guest?.interceptInstruction(name, instruction);
    return Next.SEQUENTIAL;
  };

export const cacheHandlers: Readonly<Record<string, SystemHandler>> = {
  INVLPG: invlpg,
  INVPCID: invpcid,
  INVD: cache("invd"),
  WBINVD: cache("wbinvd"),
  WBNOINVD: cache("wbnoinvd"),
};

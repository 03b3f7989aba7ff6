/** Model-specific registers as firmware leaves them on every processor, for machines that start without firmware. */
import type { CpuModel } from "../cpu/models/model";
import { GiB } from "../memory/layout";
import { LOW_MEMORY_END } from "./memory-map";

/** Memory types (SDM 3A table 11-2) for the eight ranges of a fixed MTRR. */
const eight = (type: number): bigint => BigInt(type) * 0x0101_0101_0101_0101n;
const UNCACHEABLE = 0;
const WRITE_PROTECTED = 5;
const WRITE_BACK = 6;
/** IA32_MTRR_DEF_TYPE: MTRRs and fixed ranges on. */
const ENABLED = 0xc00;
const VALID = 0x800n;

/** 0 to 0x9ffff RAM, then the display's window, then ROMs and what is shadowed there (SDM 3A table 11-9). */
const FIXED: readonly (readonly [msr: number, type: number])[] = [
  [0x250, WRITE_BACK],
  [0x258, WRITE_BACK],
  [0x259, UNCACHEABLE],
  ...[0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f].map((msr) => [msr, WRITE_PROTECTED] as const),
];

/** MTRRs: memory is write-back, devices between the end of low memory and 4 GiB are uncacheable. */
export function firmwareMsrs(model: CpuModel): readonly (readonly [msr: number, value: bigint])[] {
  if (!model.features.has("mtrr")) return [];
  const mask = 2n ** BigInt(model.physicalBits) - BigInt(4 * GiB - LOW_MEMORY_END);
  return [
    ...FIXED.map(([msr, type]) => [msr, eight(type)] as const),
    [0x200, BigInt(LOW_MEMORY_END) | BigInt(UNCACHEABLE)],
    [0x201, mask | VALID],
    [0x2ff, BigInt(ENABLED | WRITE_BACK)],
  ];
}

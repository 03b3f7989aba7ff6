/**
 * The memory controller of the 440FX (82441FX data sheet 3.2.19): which of RAM, firmware ROM and the PCI bus the processor
 * sees in the first mebibyte and below 4 GiB. What devices have mapped is painted over it.
 */
import { GiB, KiB, MiB } from "../../memory/layout";
import { DISPLAY_BASE, DISPLAY_SIZE, LOW_MEMORY_END, type RamRange } from "../memory-map";
import type { FirmwareLayout } from "./layout";

/** First PAM register of the host bridge; there are seven. */
export const PAM0 = 0x59;
const PAM_COUNT = 7;
/** The end of the firmware is seen here too. */
const ISA_BIOS_SIZE = 128 * KiB;

const Pam = { READ: 1, WRITE: 2 } as const;

/** Ranges of one address space, the later ones over the earlier. */
class Painting {
  private ranges: RamRange[] = [];

  cut(base: number, size: number): void {
    const end = base + size;
    const next: RamRange[] = [];
    for (const r of this.ranges) {
      const rEnd = r.base + r.size;
      if (rEnd <= base || r.base >= end) {
        next.push(r);
        continue;
      }
      if (r.base < base) next.push({ ...r, size: base - r.base });
      if (rEnd > end) next.push({ ...r, base: end, size: rEnd - end, offset: r.offset + (end - r.base) });
    }
    this.ranges = next;
  }

  paint(range: RamRange): void {
    if (range.size <= 0) return;
    this.cut(range.base, range.size);
    this.ranges.push(range);
  }

  /** In order of address; neighbours that are one piece of memory become one range. */
  get result(): RamRange[] {
    const sorted = this.ranges.sort((a, b) => a.base - b.base);
    const out: RamRange[] = [];
    for (const r of sorted) {
      const last = out.at(-1);
      const joins =
        last && last.base + last.size === r.base && last.offset + last.size === r.offset && last.kind === r.kind;
      if (joins) out[out.length - 1] = { ...last, size: last.size + r.size };
      else out.push(r);
    }
    return out;
  }
}

/** The areas the PAM registers govern: 16 KiB a nibble, the last 64 KiB one nibble. */
function pamAreas(pam: ArrayLike<number>): { base: number; size: number; mode: number }[] {
  const areas = [];
  for (let i = 1; i < PAM_COUNT; i++) {
    const base = 0xc0000 + (i - 1) * 32 * KiB;
    areas.push({ base, size: 16 * KiB, mode: pam[i] & 3 });
    areas.push({ base: base + 16 * KiB, size: 16 * KiB, mode: (pam[i] >> 4) & 3 });
  }
  areas.push({ base: 0xf0000, size: 64 * KiB, mode: (pam[0] >> 4) & 3 });
  return areas;
}

/** What the map depends on at a moment. */
export interface MapInputs {
  /** The seven PAM registers. */
  readonly pam: ArrayLike<number>;
  /** Whether the flash chips read as memory now: a chip in another mode answers itself. */
  readonly codeReadable: boolean;
  readonly variablesReadable: boolean;
  /** What devices show: display windows, BARs with memory behind them. */
  readonly devices: readonly RamRange[];
}

/**
 * The guest-physical map. An area that is read from ROM and written to RAM (PAM mode "write only") drops writes here, as
 * it does in QEMU.
 */
export function firmwareMap(memory: number, layout: FirmwareLayout, inputs: MapInputs): RamRange[] {
  const painting = new Painting();
  const low = Math.min(memory, LOW_MEMORY_END);
  painting.paint({ name: "ram", base: 0, size: low, offset: 0 });
  if (memory > low) painting.paint({ name: "ram above 4 GiB", base: 4 * GiB, size: memory - low, offset: low });
  painting.cut(DISPLAY_BASE, DISPLAY_SIZE);

  const { code, variables } = layout;
  const isaSize = Math.min(ISA_BIOS_SIZE, code.size);
  const isaBase = MiB - isaSize;
  for (const { base, size, mode } of pamAreas(inputs.pam)) {
    if (mode === (Pam.READ | Pam.WRITE)) continue;
    painting.cut(base, size);
    if (mode === Pam.READ) painting.paint({ name: "shadow RAM", base, size, offset: base, kind: "rom" });
    else if (base >= isaBase) {
      const offset = code.offset + code.size - isaSize + (base - isaBase);
      painting.paint({ name: "firmware below 1 MiB", base, size, offset, kind: "rom" });
    }
  }
  const codeBase = flashBase(layout).code;
  if (inputs.codeReadable) painting.paint({ name: "firmware", base: codeBase, ...code, kind: "rom" });
  if (variables && inputs.variablesReadable) {
    painting.paint({ name: "firmware variables", base: codeBase - variables.size, ...variables, kind: "rom" });
  }
  for (const range of inputs.devices) painting.paint(range);
  return painting.result;
}

/** Guest-physical addresses of the flash chips. */
export function flashBase(layout: FirmwareLayout): { readonly code: number; readonly variables: number } {
  const code = 4 * GiB - layout.code.size;
  return { code, variables: code - (layout.variables?.size ?? 0) };
}

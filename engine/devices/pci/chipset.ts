/**
 * The chips every PC of this board has on its PCI bus: 82441FX host bridge, 82371SB (PIIX3) ISA bridge with the PIRQ
 * router, 82371AB (PIIX4) power management.
 */
import type { Registers } from "../chip";
import { PciCommand } from "./config-space";
import { PciFunction, type PciRange } from "./function";

const INTEL = 0x8086;
/** QEMU's subsystem: the board. */
const SUBSYSTEM = { subsystemVendor: 0x1af4, subsystem: 0x1100 } as const;

/** Offsets in the host bridge's configuration space (82441FX data sheet 3.2). */
export const I440fx = { PAM0: 0x59, PAM6: 0x5f, SMRAM: 0x72 } as const;

/** @param onConfigWrite e.g. for the memory attribute registers */
export function hostBridge(onConfigWrite?: (offset: number, size: number) => void): PciFunction {
  return new PciFunction({
    name: "host bridge",
    vendor: INTEL,
    device: 0x1237,
    revision: 2,
    classCode: 0x060000,
    ...SUBSYSTEM,
    values: [
      [0x04, 2, PciCommand.MEMORY | PciCommand.MASTER],
      [I440fx.SMRAM, 1, 0x02],
    ],
    writable: [
      [0x50, 0x51],
      [I440fx.PAM0, I440fx.PAM6],
      [I440fx.SMRAM, I440fx.SMRAM],
    ],
    onConfigWrite,
  });
}

/** PIRQA# to PIRQD# route control (PIIX3 data sheet 3.1.8). */
const PIRQ_ROUTE = 0x60;
const PIRQ_DISABLED = 0x80;
const PIRQS = 4;

/** The ISA bridge and the interrupt router in it. */
export class Piix3 {
  readonly function: PciFunction;
  private pirqs = 0;

  /** @param setIrqs which ISA IRQs (bit n: IRQ n) the PCI interrupts drive now */
  constructor(private readonly setIrqs: (irqs: number) => void) {
    this.function = new PciFunction({
      name: "ISA bridge",
      vendor: INTEL,
      device: 0x7000,
      classCode: 0x060100,
      multifunction: true,
      ...SUBSYSTEM,
      values: [
        [0x04, 2, PciCommand.IO | PciCommand.MEMORY | PciCommand.MASTER],
        [0x06, 2, 0x0200],
        [0x4c, 1, 0x4d],
        [0x4e, 1, 0x03],
        [PIRQ_ROUTE, 4, 0x80808080],
        [0x69, 1, 0x02],
        [0x76, 4, 0x0c0c],
      ],
      writable: [
        [0x4c, 0x4f],
        [PIRQ_ROUTE, PIRQ_ROUTE + PIRQS - 1],
        [0x69, 0x6b],
        [0x76, 0x77],
        [0x80, 0x82],
        [0xa0, 0xae],
      ],
      onConfigWrite: (offset, size) => {
        if (offset < PIRQ_ROUTE + PIRQS && offset + size > PIRQ_ROUTE) this.update();
      },
    });
  }

  /** Levels of PIRQA# to PIRQD#. */
  setPirqs(levels: number): void {
    this.pirqs = levels;
    this.update();
  }

  /** ISA IRQ a PIRQ input goes to, -1 when it is switched off. */
  route(pirq: number): number {
    const value = this.function.peek(PIRQ_ROUTE + pirq, 1);
    return value & PIRQ_DISABLED ? -1 : value & 0xf;
  }

  /** As firmware does. */
  setRoute(pirq: number, irq: number): void {
    this.function.writeConfig(PIRQ_ROUTE + pirq, 1, irq);
  }

  private update(): void {
    let irqs = 0;
    for (let pirq = 0; pirq < PIRQS; pirq++) {
      const irq = this.route(pirq);
      if (irq >= 0 && this.pirqs & (1 << pirq)) irqs |= 1 << irq;
    }
    this.setIrqs(irqs);
  }
}

/** PIIX4 power management function: base of the PM registers, and whether they answer (data sheet 7.1, 7.2). */
const PM_BASE = 0x40;
const PM_ENABLE = 0x80;
/** Device activity B: bit 25 enables SMIs by writes to the APM control port. */
const DEVICE_ACTIVITY_B = 0x58;
const PM_PORTS = 64;

/** @param registers of the power management block, 64 ports from the base the guest chose (0x600 at first) */
export function powerManagement(registers: Registers, base: number): PciFunction {
  const pm: PciFunction = new PciFunction({
    name: "ACPI PM",
    vendor: INTEL,
    device: 0x7113,
    revision: 3,
    classCode: 0x068000,
    multifunction: true,
    interruptPin: 1,
    ...SUBSYSTEM,
    values: [
      [0x06, 2, 0x0280],
      [0x3c, 1, 9],
      [PM_BASE, 4, base | 1],
      // System management mode counts as set up: there is none.
      [DEVICE_ACTIVITY_B + 3, 1, 0x02],
      [PM_ENABLE, 1, 1],
    ],
    writable: [
      [PM_BASE, PM_BASE, 0xc0],
      [PM_BASE + 1, PM_BASE + 1],
      [DEVICE_ACTIVITY_B, DEVICE_ACTIVITY_B + 3],
      [PM_ENABLE, PM_ENABLE],
      [0x90, 0x93],
      [0xd2, 0xd2],
    ],
    extraRanges: (): readonly PciRange[] => {
      const at = pm.peek(PM_BASE, 2) & 0xffc0;
      if (!(pm.peek(PM_ENABLE, 1) & 1) || at === 0) return [];
      return [{ space: "io", name: "ACPI PM", base: at, size: PM_PORTS, registers }];
    },
  });
  return pm;
}

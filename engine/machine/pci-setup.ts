/**
 * What firmware does on the PCI bus before it starts an operating system: hands out addresses, routes the interrupts,
 * switches the devices on. Only machines that start without firmware need it.
 */
import { PciBus } from "../devices/pci/bus";
import type { Piix3 } from "../devices/pci/chipset";
import { PciCommand, PciReg } from "../devices/pci/config-space";

/** ISA IRQs of PIRQA# to PIRQD#, as SeaBIOS chooses them; the ACPI tables say the same. */
export const PIRQ_IRQS = [10, 10, 11, 11] as const;
/** Interrupts the PCI devices use: level-triggered at both kinds of controller. */
export const PCI_IRQS: readonly number[] = [...new Set(PIRQ_IRQS)];

/** Where BARs are placed from, as long as there is room. */
const FIRST_PORT = 0xc000;
const LAST_PORT = 0xffff;
const PCI_MEMORY_BASE = 0xfe000000;
/** Behind it are the I/O APIC, local APICs and flash. */
const PCI_MEMORY_END = 0xfec00000;

/** Addresses of one space, handed out upwards. */
class Allocator {
  constructor(
    private readonly what: string,
    private next: number,
    private readonly end: number,
  ) {}

  take(size: number): number {
    const base = Math.ceil(this.next / size) * size;
    if (base + size > this.end) throw new RangeError(`no ${this.what} left for PCI devices`);
    this.next = base + size;
    return base;
  }
}

/** @throws RangeError when the devices ask for more addresses than there are */
export function setUpPci(bus: PciBus, bridge: Piix3): void {
  PIRQ_IRQS.forEach((irq, pirq) => {
    bridge.setRoute(pirq, irq);
  });
  const ports = new Allocator("I/O ports", FIRST_PORT, LAST_PORT + 1);
  const memory = new Allocator("memory addresses", PCI_MEMORY_BASE, PCI_MEMORY_END);
  for (const { device, function: f } of bus.functions) {
    // Large ones first: little is lost between them.
    const bars = [...f.barList].sort((a, b) => b.bar.size - a.bar.size);
    let enable = 0;
    for (const { register, bar } of bars) {
      f.setBar(register, (bar.space === "io" ? ports : memory).take(bar.size));
      enable |= bar.space === "io" ? PciCommand.IO : PciCommand.MEMORY;
    }
    if (enable !== 0) f.writeConfig(PciReg.COMMAND, 2, f.command | enable);
    if (f.interruptPin > 0 && f.peek(PciReg.INTERRUPT_LINE, 1) === 0) {
      f.writeConfig(PciReg.INTERRUPT_LINE, 1, PIRQ_IRQS[PciBus.pirqOf(device, f.interruptPin)]);
    }
  }
}

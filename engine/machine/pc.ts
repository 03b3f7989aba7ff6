/**
 * The board: a small PC with serial ports, clock, keyboard controller, power management, PCI host and display registers.
 * The same board is used with and without KVM; what differs is where the interrupt controllers and the timer are (chips of
 * the machine, or the kernel's), so those are wired from outside by GSI number.
 */
import type { VirtualClock } from "../clock";
import { ACPI_PM_BASE, AcpiPm, ResetControl, SystemPortA } from "../devices/acpi-pm";
import type { Line, Stateful } from "../devices/chip";
import { CoprocessorError } from "../devices/coprocessor-error";
import { DebugConsole, DebugExit } from "../devices/debug-exit";
import { FwCfg, FwCfgKey, littleEndian } from "../devices/fw-cfg";
import { I8042 } from "../devices/i8042";
import { MmioBus } from "../devices/mmio-bus";
import { PciBus } from "../devices/pci/bus";
import { hostBridge, Piix3, powerManagement } from "../devices/pci/chipset";
import { PortBus } from "../devices/port-bus";
import { RtcCmos } from "../devices/rtc-cmos";
import { Serial8250 } from "../devices/serial-8250";
import { Vga } from "../devices/vga";
import { acpiTables, SCI_IRQ } from "./acpi-tables";
import type { MachineConfig } from "./config";
import { FirmwareBoard } from "./firmware/firmware-board";
import type { FirmwareLayout } from "./firmware/layout";
import type { Ending } from "./machine";
import { ACPI_TABLES_BASE, DISPLAY_BASE, EBDA_BASE, e820, type GuestMemory } from "./memory-map";
import { PCI_IRQS, setUpPci } from "./pci-setup";
import { SMBIOS_BASE, smbiosTables } from "./smbios";
import { VirtioDevices } from "./virtio";

/** 2000-01-01 00:00:00 UTC: what the real-time clock says when a machine starts. */
export const RTC_START = 946_684_800;

export interface BoardOutside {
  readonly clock: VirtualClock;
  readonly memory: GuestMemory;
  readonly config: MachineConfig;
  /** What the machine has besides RAM when it starts with firmware. */
  readonly firmware?: FirmwareLayout | null;
  /** Interrupt line `gsi` (ISA IRQs 0..15) of the machine's interrupt controllers. */
  setGsi(gsi: number, level: boolean): void;
  /** A message signalled interrupt: `data` written to `address`. */
  sendMessage(address: number, addressHigh: number, data: number): void;
  end(ending: Ending): void;
  /** A byte sent by serial port `index`, or by the debug console (-1). */
  output(index: number, byte: number): void;
}

const ELCR = 0x4d0;

interface LinesState {
  /** What the board's own chips drive, GSI 0 in bit 0. */
  levels: number;
  /** What PCI interrupts drive. Both may hold one line. */
  pci: number;
}

const COM_PORTS = [
  { port: 0x3f8, irq: 4 },
  { port: 0x2f8, irq: 3 },
] as const;

export class PcBoard {
  readonly ports = new PortBus();
  readonly mmio = new MmioBus();
  /** Everything with state, by the name it has in snapshots. */
  readonly chips: Record<string, Stateful<unknown>> = {};
  readonly serial: readonly Serial8250[];
  readonly keyboard: I8042;
  readonly coprocessorError: CoprocessorError;
  private readonly rtc: RtcCmos;
  /** Only in machines that start with firmware. */
  readonly firmware: FirmwareBoard | null;
  private readonly lines: Stateful<LinesState> = { state: { levels: 0, pci: 0 } };
  readonly pci: PciBus;
  readonly isaBridge: Piix3;
  readonly virtio: VirtioDevices;
  /** Guest-physical address of the ACPI RSDP. */
  readonly rsdp = ACPI_TABLES_BASE;

  constructor(private readonly outside: BoardOutside) {
    const { clock, memory, config } = outside;
    const { ports, mmio } = this;
    this.chips.lines = this.lines;
    const reset = (): void => outside.end({ kind: "reset" });

    this.serial = COM_PORTS.map(({ port, irq }, i) => {
      const name = `serial${i}`;
      const uart = new Serial8250(clock, name, this.line(irq), (byte) => outside.output(i, byte), true);
      ports.claim(`COM${i + 1}`, port, 8, uart);
      this.chips[name] = uart;
      return uart;
    });

    const rtc = new RtcCmos(clock, "rtc", this.line(8), RTC_START);
    fillCmos(rtc, memory, config.smp);
    ports.claim("RTC", 0x70, 2, rtc);
    this.rtc = rtc;
    this.chips.rtc = rtc;

    this.keyboard = new I8042(this.line(1), this.line(12), reset);
    ports.claim("keyboard controller data", 0x60, 1, this.keyboard.dataPort);
    ports.claim("keyboard controller command", 0x64, 1, this.keyboard.commandPort);
    this.chips.i8042 = this.keyboard;

    const portA = new SystemPortA(reset);
    ports.claim("system control port A", 0x92, 1, portA);
    this.chips.portA = portA;

    this.coprocessorError = new CoprocessorError(this.line(13));
    ports.claim("coprocessor error", 0xf0, 1, this.coprocessorError);
    this.chips.coprocessorError = this.coprocessorError;

    const pm = new AcpiPm(clock, "acpi-pm", this.line(SCI_IRQ), () => outside.end({ kind: "power-off" }));
    this.chips.acpiPm = pm;

    this.isaBridge = new Piix3((irqs) => this.setPciIrqs(irqs));
    const pci = new PciBus({
      pirq: (levels) => this.isaBridge.setPirqs(levels),
      message: (address, high, data) => outside.sendMessage(address, high, data),
    });
    this.pci = pci;
    const host = hostBridge(() => this.firmware?.updateMap());
    pci.add(0, 0, host);
    pci.add(1, 0, this.isaBridge.function);
    pci.add(1, 3, powerManagement(pm, ACPI_PM_BASE));
    ports.attachMovable((port) => {
      const found = pci.at("io", port);
      return found && { name: found.name, first: found.base, count: found.size, width: 4, registers: found.registers };
    });
    mmio.attachMovable((pa) => pci.at("memory", pa));
    const resetControl = new ResetControl(reset);
    // A 4-byte access at 0xcf8 is CONFIG_ADDRESS; a byte at 0xcf9 is the reset control register.
    ports.claim(
      "PCI configuration address",
      0xcf8,
      4,
      {
        read: (offset, size) => (offset === 1 && size === 1 ? resetControl.read() : pci.addressPort.read(offset, size)),
        write: (offset, size, value) => {
          if (offset === 1 && size === 1) resetControl.write(0, 1, value);
          else pci.addressPort.write(offset, size, value);
        },
      },
      4,
    );
    ports.claim("PCI configuration data", 0xcfc, 4, pci.dataPorts, 4);
    this.chips.pci = pci;
    this.chips.resetControl = resetControl;

    this.virtio = new VirtioDevices({
      ...{ config, clock, dma: memory, pci },
      output: (index, byte) => outside.output(index, byte),
    });
    Object.assign(this.chips, this.virtio.chips);

    const layout = outside.firmware;
    this.firmware = layout
      ? new FirmwareBoard({
          ...{ clock, config, memory, layout, ports, mmio, pci },
          hostBridge: host,
          line: (irq) => this.line(irq),
        })
      : null;
    const vga = this.firmware?.vga ?? new Vga(clock);
    ports.claim("VGA", Vga.FIRST_PORT, Vga.PORTS, vga);
    this.chips.vga = vga;

    const fwCfg = new FwCfg(memory);
    fillFwCfg(fwCfg, config);
    if (this.firmware) {
      this.firmware.fill(fwCfg, rtc);
      Object.assign(this.chips, this.firmware.chips);
    } else addE820(fwCfg, config);
    ports.claim("fw_cfg", 0x510, 2, fwCfg.ports, 2);
    ports.claim("fw_cfg DMA", 0x514, 8, fwCfg.dmaPorts, 4);
    this.chips.fwCfg = fwCfg;

    const debugConsole = new DebugConsole((byte) => outside.output(-1, byte));
    ports.claim("debug console", 0xe9, 1, debugConsole);
    ports.claim("firmware debug console", 0x402, 1, debugConsole);
    ports.claim("debug exit", 0xf4, 4, new DebugExit((code) => outside.end({ kind: "debug-exit", code })), 4);
    // Writes to the POST code port are how software waits a microsecond.
    ports.claim("POST code", 0x80, 1, { read: () => 0xff, write: () => {} });
  }

  /**
   * What firmware does before it starts an image: PCI addresses and interrupts, ACPI and SMBIOS tables, the BIOS data area.
   */
  setUpAsFirmware(): void {
    const { memory, config } = this.outside;
    setUpPci(this.pci, this.isaBridge);
    for (const irq of PCI_IRQS) this.setLevelTriggered(irq);
    memory.write(this.rsdp, acpiTables(this.rsdp, config.smp, memory.lowEnd).bytes);
    memory.write(SMBIOS_BASE, smbiosTables(memory.size, config.smp));
    writeBiosData(memory);
  }

  /** Edge/level control register of the PICs (PIIX3 data sheet 3.5.3.7). */
  private setLevelTriggered(irq: number): void {
    const port = ELCR + (irq >> 3);
    this.ports.write(port, 1, this.ports.read(port, 1) | (1 << (irq & 7)));
  }

  /** Some device waits for the outside by interrupt: a quiet machine is not a dead one. */
  get awaitsInput(): boolean {
    return this.serial[0].awaitsInput || this.virtio.console?.awaitsInput === true;
  }

  /**
   * What outlives a reset of the machine: the battery's clock and memory, contents of disks, what waits to be read.
   * @returns puts it back, after the board has been restored to its start
   */
  nonvolatile(): () => void {
    const { rtc, serial, virtio, firmware } = this;
    const { memory, seconds } = rtc.now();
    const typed = serial.map((port) => port.state.backlog);
    const parts = [virtio.nonvolatile(), firmware?.nonvolatile()];
    return () => {
      rtc.state.memory.set(memory);
      rtc.state.seconds = seconds;
      rtc.reset();
      serial.forEach((port, i) => {
        port.state.backlog = typed[i];
      });
      for (const part of parts) part?.();
    };
  }

  /** What is typed goes to the virtio console if there is one, else to the first serial port. */
  receive(bytes: Uint8Array): void {
    (this.virtio.console ?? this.serial[0]).receive(bytes);
  }

  /** An interrupt line of the board. */
  private line(gsi: number): Line {
    const mask = 1 << gsi;
    return {
      set: (level) => {
        const { levels, pci } = this.lines.state;
        this.drive(level ? levels | mask : levels & ~mask, pci);
      },
    };
  }

  private setPciIrqs(irqs: number): void {
    this.drive(this.lines.state.levels, irqs);
  }

  /** Only changes go out. */
  private drive(levels: number, pci: number): void {
    const lines = this.lines.state;
    const before = lines.levels | lines.pci;
    lines.levels = levels;
    lines.pci = pci;
    const changed = before ^ (levels | pci);
    for (let gsi = 0; changed >>> gsi !== 0; gsi++) {
      if (changed & (1 << gsi)) this.outside.setGsi(gsi, ((levels | pci) & (1 << gsi)) !== 0);
    }
  }
}

/** CMOS cells by which PC firmware tells memory sizes, equipment and processors. */
function fillCmos(rtc: RtcCmos, memory: GuestMemory, smp: number): void {
  const word = (at: number, value: number): void => {
    rtc.setCmos(at, value & 0xff);
    rtc.setCmos(at + 1, value >> 8);
  };
  const extendedKiB = Math.min(0xffff, (memory.lowEnd - 0x100000) / 1024);
  const above16 = Math.min(0xffff, Math.max(0, (memory.lowEnd - 0x1000000) / 65536));
  const highChunks = (memory.size - memory.lowEnd) / 65536;
  word(0x15, 640);
  word(0x17, extendedKiB);
  word(0x30, extendedKiB);
  word(0x34, above16);
  rtc.setCmos(0x5b, highChunks & 0xff);
  rtc.setCmos(0x5c, (highChunks >> 8) & 0xff);
  rtc.setCmos(0x5d, (highChunks >> 16) & 0xff);
  rtc.setCmos(0x5f, smp - 1);
  // Equipment: x87, 80x25 colour display; no floppy.
  rtc.setCmos(0x14, 0x26);
}

function fillFwCfg(fw: FwCfg, config: MachineConfig): void {
  fw.addItem(FwCfgKey.RAM_SIZE, littleEndian(config.memory, 8));
  fw.addItem(FwCfgKey.NB_CPUS, littleEndian(config.smp, 2));
  fw.addItem(FwCfgKey.MAX_CPUS, littleEndian(config.smp, 2));
  fw.addItem(FwCfgKey.NOGRAPHIC, littleEndian(1, 2));
  fw.addItem(FwCfgKey.BOOT_MENU, littleEndian(0, 2));
  const commandLine = new TextEncoder().encode(`${config.append}\0`);
  fw.addItem(FwCfgKey.CMDLINE_SIZE, littleEndian(commandLine.length, 4));
  fw.addItem(FwCfgKey.CMDLINE_DATA, commandLine);
}

/** The map for software that starts without firmware. */
function addE820(fw: FwCfg, config: MachineConfig): void {
  const map = e820(config.memory);
  const table = new Uint8Array(20 * map.length);
  map.forEach((e, i) => {
    table.set(littleEndian(e.base, 8), i * 20);
    table.set(littleEndian(e.size, 8), i * 20 + 8);
    table.set(littleEndian(e.type, 4), i * 20 + 16);
  });
  fw.addFile("etc/e820", table);
}

/** The parts of the BIOS data area that software without a BIOS still looks at. */
function writeBiosData(memory: GuestMemory): void {
  const put = (address: number, value: number, size: 2 | 4): void => {
    memory.write(address, littleEndian(value, size));
  };
  for (const [i, { port }] of COM_PORTS.entries()) put(0x400 + 2 * i, port, 2);
  put(0x40e, EBDA_BASE >> 4, 2);
  put(0x410, 0x26, 2);
  put(0x413, EBDA_BASE / 1024, 2);
  // Display: mode 3, 80 columns, page size, CRT controller, 25 rows.
  put(0x449, 3 | (80 << 8), 4);
  put(0x44c, 4096, 2);
  put(0x463, 0x3d4, 2);
  put(0x484, 24, 2);
  // Size of the extended BIOS data area in KiB.
  put(EBDA_BASE, (DISPLAY_BASE - EBDA_BASE) / 1024, 2);
}

/** One processor's way to the board's ports and memory-mapped registers, its own local APIC first. */
import type { Bus } from "../cpu/cpu";
import type { LocalApic } from "../devices/local-apic";
import { TraceKind, type Tracer } from "../trace";
import type { PcBoard } from "./pc";

const PAGE_MASK = 0xfff;

export class DeviceBus implements Bus {
  private board: PcBoard | null = null;

  /** @param apic null when the local APIC is not the board's business (it is the kernel's under KVM) */
  constructor(
    private readonly trace: Tracer,
    private readonly vcpu: number,
    private readonly apic: LocalApic | null,
  ) {}

  attach(board: PcBoard): void {
    this.board = board;
  }

  portIn(port: number, size: number): number {
    const { board } = this;
    if (!board) return 0xffffffff;
    if (this.trace.armed & TraceKind.Device) this.tell("port", port, size, false, 0n);
    return board.ports.read(port, size);
  }

  portOut(port: number, size: number, value: number): void {
    const { board } = this;
    if (!board) return;
    if (this.trace.armed & TraceKind.Device) this.tell("port", port, size, true, BigInt(value >>> 0));
    board.ports.write(port, size, value);
  }

  mmioRead(pa: number, size: number): bigint {
    const { apic, board } = this;
    if (this.trace.armed & TraceKind.Device) this.tell("address", pa, size, false, 0n);
    if (apic && pa - (pa & PAGE_MASK) === apic.page) {
      if (size === 8) return this.mmioRead(pa, 4) | (this.mmioRead(pa + 4, 4) << 32n);
      const value = apic.read(pa & PAGE_MASK, size as 1 | 2 | 4) >>> 0;
      return BigInt.asUintN(size * 8, BigInt(value));
    }
    return board ? board.mmio.read(pa, size) : BigInt.asUintN(size * 8, -1n);
  }

  mmioWrite(pa: number, size: number, value: bigint): void {
    const { apic, board } = this;
    if (this.trace.armed & TraceKind.Device) this.tell("address", pa, size, true, value);
    if (apic && pa - (pa & PAGE_MASK) === apic.page) {
      apic.write(pa & PAGE_MASK, size as 1 | 2 | 4, Number(BigInt.asUintN(32, value)));
      return;
    }
    board?.mmio.write(pa, size, value);
  }

  floatError(asserted: boolean): void {
    this.board?.coprocessorError.setError(asserted);
  }

  /** The trace point before a device is read or written. */
  private tell(where: "port" | "address", at: number, size: number, write: boolean, value: bigint): void {
    const { board } = this;
    let device = "nothing";
    if (where === "port") device = board?.ports.at(at)?.name ?? device;
    else if (this.apic && at - (at & PAGE_MASK) === this.apic.page) device = "local APIC";
    else device = board?.mmio.at(at)?.name ?? device;
    this.trace.hit({
      kind: TraceKind.Device,
      vcpu: this.vcpu,
      text: `${device} ${write ? "write" : "read"} ${where} 0x${at.toString(16)} size ${size}`,
      detail: {
        device,
        bus: where === "port" ? "pio" : "mmio",
        [where]: BigInt(at),
        size: BigInt(size),
        write,
        ...(write ? { value } : {}),
      },
    });
  }
}

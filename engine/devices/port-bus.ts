/**
 * The I/O port space: 65536 byte-wide ports, each claimed by at most one chip.
 *
 * An access wider than the chip's registers, or one that reaches into another chip's range, is split into bytes as an ISA
 * bridge does. Unclaimed ports read as all ones and swallow writes.
 */
import type { Registers } from "./chip";

/** I/O ports `first` to `first` + `count` - 1. */
export interface PortClaim {
  readonly name: string;
  readonly first: number;
  readonly count: number;
  /** Widest access the chip takes in one piece, in bytes. */
  readonly width: 1 | 2 | 4;
  readonly registers: Registers;
}

const PORTS = 65536;

/** Finds the chip at an I/O port. */
export class PortBus {
  private readonly owners = new Uint8Array(PORTS);
  private readonly claims: PortClaim[] = [];
  private movable: (port: number) => PortClaim | undefined = () => undefined;

  /** Asks `find` for ports nobody has claimed: devices whose place software chooses. */
  attachMovable(find: (port: number) => PortClaim | undefined): void {
    this.movable = find;
  }

  /** @throws RangeError when a port is claimed already */
  claim(name: string, first: number, count: number, registers: Registers, width: 1 | 2 | 4 = 1): void {
    for (let port = first; port < first + count; port++) {
      const owner = this.owners[port];
      if (owner !== 0) {
        throw new RangeError(`port 0x${port.toString(16)} of ${name} is claimed by ${this.claims[owner - 1].name}`);
      }
    }
    if (first < 0 || first + count > PORTS) throw new RangeError(`ports of ${name} reach beyond 0xffff`);
    this.claims.push({ name, first, count, width, registers });
    this.owners.fill(this.claims.length, first, first + count);
  }

  /** Who answers at `port`, or undefined. */
  at(port: number): PortClaim | undefined {
    const owner = this.owners[port & 0xffff];
    return owner === 0 ? this.movable(port & 0xffff) : this.claims[owner - 1];
  }

  get all(): readonly PortClaim[] {
    return this.claims;
  }

  read(port: number, size: number): number {
    const claim = this.at(port);
    if (claim && size <= claim.width && port + size <= claim.first + claim.count) {
      const value = claim.registers.read(port - claim.first, size as 1 | 2 | 4);
      return size === 4 ? value >>> 0 : value & (size === 1 ? 0xff : 0xffff);
    }
    if (size === 1) return 0xff;
    if (size === 4 && claim && claim.width === 2) {
      return ((this.read(port + 2, 2) << 16) | this.read(port, 2)) >>> 0;
    }
    let value = 0;
    for (let i = 0; i < size; i++) value |= this.read((port + i) & 0xffff, 1) << (8 * i);
    return value >>> 0;
  }

  write(port: number, size: number, value: number): void {
    const claim = this.at(port);
    if (claim && size <= claim.width && port + size <= claim.first + claim.count) {
      const masked = size === 4 ? value >>> 0 : value & (size === 1 ? 0xff : 0xffff);
      claim.registers.write(port - claim.first, size as 1 | 2 | 4, masked);
      return;
    }
    if (size === 1) return;
    if (size === 4 && claim && claim.width === 2) {
      this.write(port, 2, value & 0xffff);
      this.write(port + 2, 2, value >>> 16);
      return;
    }
    for (let i = 0; i < size; i++) this.write((port + i) & 0xffff, 1, (value >>> (8 * i)) & 0xff);
  }
}

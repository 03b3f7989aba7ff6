/**
 * Memory-mapped registers: ranges of physical addresses claimed by chips. Accesses of 8 bytes are made as two of 4, odd
 * ones that leave a range byte by byte. Unclaimed addresses read as all ones and swallow writes.
 */
import type { Registers } from "./chip";

/** Registers at physical addresses [base, base + size). */
export interface MmioClaim {
  readonly name: string;
  readonly base: number;
  readonly size: number;
  readonly registers: Registers;
}

/** Finds the chip at a physical address. */
export class MmioBus {
  private readonly claims: MmioClaim[] = [];
  private movable: (pa: number) => MmioClaim | undefined = () => undefined;

  /** Asks `find` for addresses nobody has claimed: devices whose place software chooses. */
  attachMovable(find: (pa: number) => MmioClaim | undefined): void {
    this.movable = find;
  }

  /** @throws RangeError when the range overlaps another */
  claim(name: string, base: number, size: number, registers: Registers): void {
    const clash = this.claims.find((c) => base < c.base + c.size && c.base < base + size);
    if (clash) throw new RangeError(`memory-mapped registers of ${name} overlap those of ${clash.name}`);
    this.claims.push({ name, base, size, registers });
  }

  at(pa: number): MmioClaim | undefined {
    for (const c of this.claims) if (pa >= c.base && pa < c.base + c.size) return c;
    return this.movable(pa);
  }

  get all(): readonly MmioClaim[] {
    return this.claims;
  }

  /** @param size 1, 2, 4 or 8 */
  read(pa: number, size: number): bigint {
    const claim = this.at(pa);
    if (claim && size <= 4 && pa + size <= claim.base + claim.size) {
      const value = claim.registers.read(pa - claim.base, size as 1 | 2 | 4) >>> 0;
      return BigInt(size === 4 ? value : value & (size === 1 ? 0xff : 0xffff));
    }
    if (size === 1) return 0xffn;
    const half = size / 2;
    return this.read(pa, half) | (this.read(pa + half, half) << BigInt(half * 8));
  }

  write(pa: number, size: number, value: bigint): void {
    const claim = this.at(pa);
    if (claim && size <= 4 && pa + size <= claim.base + claim.size) {
      claim.registers.write(pa - claim.base, size as 1 | 2 | 4, Number(BigInt.asUintN(size * 8, value)));
      return;
    }
    if (size === 1) return;
    const half = size / 2;
    this.write(pa, half, BigInt.asUintN(half * 8, value));
    this.write(pa + half, half, BigInt.asUintN(half * 8, value >> BigInt(half * 8)));
  }
}

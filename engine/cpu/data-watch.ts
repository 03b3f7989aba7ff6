/**
 * Addresses that are watched: the debugger's watchpoints and the program's own DR0 to DR3 (SDM 3A 17.2). Pages that hold
 * one have no TLB tag, so that every access to them takes the slow road and is looked at here.
 */
import type { Mmu, Watchpoint } from "./cpu";
import { type CpuState, Off } from "./state";

export interface WatchHit {
  readonly id: number;
  readonly address: bigint;
  readonly size: number;
  readonly write: boolean;
}

/** One of DR0 to DR3 that DR7 has switched on. */
interface DebugRegister {
  readonly index: number;
  readonly address: bigint;
  readonly length: number;
  /** DR7.R/W: 0 execution, 1 data writes, 2 I/O, 3 data reads or writes. */
  readonly kind: number;
}

/** DR7.LEN: 00 one byte, 01 two, 10 eight, 11 four. */
export const DR7_LENGTHS = [1, 2, 8, 4] as const;
const PAGE = ~0xfffn;

export class DataWatch {
  private watchpoints: readonly Watchpoint[] = [];
  private registers: readonly DebugRegister[] = [];
  private seen = "";
  /** Addresses of DR0 to DR3 that break on execution. */
  executeAddresses: readonly bigint[] = [];
  hits: WatchHit[] = [];
  /** DR6 bits of data breakpoints that accesses since `clear` have met. */
  debugBits = 0;

  constructor(private readonly state: CpuState) {}

  setWatchpoints(list: readonly Watchpoint[]): void {
    this.watchpoints = list;
  }

  /** Takes over DR0 to DR3 and DR7. @returns true when the watched data addresses changed */
  updateDebugRegisters(): boolean {
    const { state } = this;
    const dr7 = state.lo(Off.DR7);
    if ((dr7 & 0xff) === 0 && this.registers.length === 0) return false;
    const list: DebugRegister[] = [];
    if (dr7 & 0xff) {
      for (let index = 0; index < 4; index++) {
        if (!((dr7 >> (index * 2)) & 3)) continue;
        const bits = (dr7 >> (16 + index * 4)) & 15;
        const length = DR7_LENGTHS[bits >> 2];
        // Addresses are aligned to their length (SDM 3A 17.2.5).
        const address = state.u64(Off.DR0 + index * 8) & ~BigInt(length - 1);
        list.push({ index, address, length, kind: bits & 3 });
      }
    }
    const name = list.map((r) => `${r.kind} ${r.length} ${r.address}`).join();
    if (name === this.seen) return false;
    const data = (r: DebugRegister): boolean => (r.kind & 1) !== 0;
    const changed = this.registers.some(data) || list.some(data);
    this.seen = name;
    this.registers = list;
    this.executeAddresses = list.filter((r) => r.kind === 0).map((r) => r.address);
    return changed;
  }

  /** DR6 bits of the execution breakpoints at a linear address. */
  executeHits(linear: bigint): number {
    let bits = 0;
    for (const r of this.registers) if (r.kind === 0 && r.address === linear) bits |= 1 << r.index;
    return bits;
  }

  watchesPage(linear: bigint, pa: number): boolean {
    if (this.watchpoints.length === 0 && this.registers.length === 0) return false;
    const page = linear & PAGE;
    const frame = BigInt(pa) & PAGE;
    for (const w of this.watchpoints) {
      const at = w.space === "linear" ? page : frame;
      if (w.address < at + 4096n && at < w.address + BigInt(w.length)) return true;
    }
    return this.registers.some((r) => (r.kind & 1) !== 0 && (r.address & PAGE) === page);
  }

  clear(): void {
    this.hits = [];
    this.debugBits = 0;
  }

  /** An access has been made. */
  note(linear: bigint, size: number, write: boolean, mmu: Mmu): void {
    const end = linear + BigInt(size);
    for (const r of this.registers) {
      const kind = write ? r.kind === 1 || r.kind === 3 : r.kind === 3;
      if (kind && r.address < end && linear < r.address + BigInt(r.length)) this.debugBits |= 1 << r.index;
    }
    for (const w of this.watchpoints) {
      if (w.access === (write ? "read" : "write")) continue;
      let at = linear;
      if (w.space === "physical") {
        const pa = mmu.probe(linear);
        if (pa < 0) continue;
        at = BigInt(pa);
      }
      if (w.address < at + BigInt(size) && at < w.address + BigInt(w.length)) {
        this.hits.push({ id: w.id, address: at, size, write });
      }
    }
  }
}

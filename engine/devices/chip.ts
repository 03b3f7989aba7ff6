/**
 * What a chip is, to the boards that carry it: a thing with ports or memory-mapped registers, output lines, and one plain
 * object of state. Chips know nobody above them.
 */

/** Port or register access of 1, 2 or 4 bytes. `offset` counts from the start of the chip's range. */
export interface Registers {
  read(offset: number, size: 1 | 2 | 4): number;
  write(offset: number, size: 1 | 2 | 4, value: number): void;
}

/** An output pin. Boards wire it to an interrupt controller's input. */
export interface Line {
  set(level: boolean): void;
}

/** State is everything: structured-clonable, so that a snapshot of a machine is a copy of its chips' states. */
export interface Stateful<S> {
  state: S;
}

/** A chip's door to guest-physical memory (DMA). */
export interface Dma {
  /** Shorter than `length` where the memory ends. */
  read(address: number, length: number): Uint8Array;
  write(address: number, bytes: Uint8Array): void;
}

/** Ports with which test guests talk to the outside: QEMU's isa-debug-exit and the Bochs/QEMU debug consoles. */
import type { Registers } from "./chip";

/** isa-debug-exit at 0xf4: a write ends the machine with that code; reads give zero. */
export class DebugExit implements Registers {
  constructor(private readonly exit: (code: number) => void) {}

  read(): number {
    return 0;
  }
  write(_offset: number, _size: 1 | 2 | 4, value: number): void {
    this.exit(value >>> 0);
  }
}

/** Debug console: bytes written come out; reading gives 0xe9, by which software finds it. */
export class DebugConsole implements Registers {
  constructor(private readonly output: (byte: number) => void) {}

  read(): number {
    return 0xe9;
  }
  write(_offset: number, _size: 1 | 2 | 4, value: number): void {
    this.output(value & 0xff);
  }
}

/**
 * The PC's way of reporting x87 exceptions to processors with CR0.NE clear: FERR# raises interrupt 13, a write to port F0H takes
 * it back and asserts IGNNE#, until FERR# goes away (SDM 1 8.7.1, appendix D.2; ICH data sheets, COPROC_ERR).
 */
import type { Line, Registers, Stateful } from "./chip";

/** State of the FERR# latch. */
export interface CoprocessorErrorState {
  /** IGNNE# is asserted: the processor goes on in spite of its exception. */
  ignore: boolean;
}

/** FERR# to IRQ 13, and port 0xf0, which clears it and asserts IGNNE#. */
export class CoprocessorError implements Stateful<CoprocessorErrorState>, Registers {
  state: CoprocessorErrorState = { ignore: false };

  constructor(private readonly interrupt: Line) {}

  /** The processor's FERR# pin. */
  setError(asserted: boolean): void {
    if (!asserted) {
      this.state.ignore = false;
      this.interrupt.set(false);
    } else if (!this.state.ignore) this.interrupt.set(true);
  }

  read(): number {
    return 0xff;
  }
  write(): void {
    this.state.ignore = true;
    this.interrupt.set(false);
  }
}

/**
 * Event file descriptors (fs/eventfd.c; eventfd(2)) of the emulated host: a 64-bit counter that userspace and the kernel add
 * to, and parties that want to be told. KVM's irqfds listen to one, its ioeventfds add to one.
 */
import { KvmError } from "./errno";

const MAX_COUNT = (1n << 64n) - 2n;

/** The counter, plain data. */
export interface EventFdState {
  count: bigint;
  /** EFD_SEMAPHORE: a read takes one. */
  semaphore: boolean;
  closed: boolean;
}

/** Told after the counter grew ("in"), and when the descriptor is closed ("hangup"). */
export type EventFdListener = (event: "in" | "hangup") => void;

/** An eventfd: a counter that signals add to, and those who listen. */
export class EventFd {
  state: EventFdState;
  private readonly listeners: EventFdListener[] = [];

  /** @param initial the counter */
  constructor(initial = 0n, semaphore = false) {
    this.state = { count: initial, semaphore, closed: false };
  }

  /** write(2): adds to the counter. @throws KvmError EBADF, EINVAL for 2^64 - 1, EAGAIN where it would overflow */
  write(value: bigint): void {
    const { state } = this;
    if (state.closed) throw new KvmError("EBADF", "write", "the eventfd is closed");
    if (value < 0n || value > MAX_COUNT) throw new KvmError("EINVAL", "write", "an eventfd takes up to 2^64 - 2");
    if (state.count + value > MAX_COUNT) throw new KvmError("EAGAIN", "write", "the counter would overflow");
    state.count += value;
    this.tell("in");
  }

  /** eventfd_signal: one more; a full counter stays full. */
  signal(): void {
    if (this.state.closed) return;
    if (this.state.count <= MAX_COUNT) this.state.count++;
    this.tell("in");
  }

  /** read(2) without blocking. @throws KvmError EBADF, EAGAIN at 0 */
  read(): bigint {
    const { state } = this;
    if (state.closed) throw new KvmError("EBADF", "read", "the eventfd is closed");
    if (state.count === 0n) throw new KvmError("EAGAIN", "read", "the counter is 0");
    const value = state.semaphore ? 1n : state.count;
    state.count -= value;
    return value;
  }

  close(): void {
    if (this.state.closed) return;
    this.state.closed = true;
    this.tell("hangup");
    this.listeners.length = 0;
  }

  listen(listener: EventFdListener): void {
    this.listeners.push(listener);
  }

  unlisten(listener: EventFdListener): void {
    const at = this.listeners.indexOf(listener);
    if (at >= 0) this.listeners.splice(at, 1);
  }

  private tell(event: "in" | "hangup"): void {
    for (const listener of [...this.listeners]) listener(event);
  }
}

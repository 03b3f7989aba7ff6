/** A virtio console with one port (Virtio 1.2 section 5.3): hvc0 to Linux. */
import type { VirtualClock } from "../../clock";
import type { Dma, Stateful } from "../chip";
import { VirtioDevice, VirtioType } from "./device";
import { gather, lengthOf, scatter, type Virtqueue } from "./queue";

const EMERGENCY_WRITE = 1n << 2n;
const EMERGENCY_AT = 8;
const CONFIG_SIZE = 12;
const QUEUE_SIZE = 64;
const RECEIVE = 0;
/**
 * Nanoseconds from the driver's first buffers to the first input. A driver offers buffers before it is ready for what comes
 * in them: Linux's throws away what arrives while it starts.
 */
const SETTLING = 100_000_000;

/** Input that waits, and how far the driver is. */
export interface VirtioConsoleState {
  /** Typed bytes the driver has given no buffer for yet. */
  input: number[];
  /** The driver has offered its first buffers, and has had time to get ready since then. */
  settling: boolean;
  ready: boolean;
}

/** A virtio console with one port (Virtio 1.2, 5.3). */
export class VirtioConsole extends VirtioDevice {
  readonly type = VirtioType.CONSOLE;
  readonly offered = EMERGENCY_WRITE;
  override readonly own: Stateful<VirtioConsoleState> = { state: { input: [], settling: false, ready: false } };

  /**
   * @param owner name of this device in the clock's event queue
   * @param output takes each byte sent
   */
  constructor(
    dma: Dma,
    private readonly clock: VirtualClock,
    private readonly owner: string,
    private readonly output: (byte: number) => void,
  ) {
    super(dma, [QUEUE_SIZE, QUEUE_SIZE]);
    clock.register(owner, this);
  }

  onClockEvent(): void {
    this.own.state.ready = true;
    this.notify(RECEIVE);
  }

  protected override onReset(): void {
    this.own.state.settling = false;
    this.own.state.ready = false;
    this.clock.cancel(this.owner, "ready");
  }

  configuration(): Uint8Array {
    const bytes = new Uint8Array(CONFIG_SIZE);
    new DataView(bytes.buffer).setUint32(4, 1, true);
    return bytes;
  }

  /** A character sent without any queue (5.3.6.2.1). */
  override writeConfiguration(offset: number, _size: number, value: number): void {
    if (offset === EMERGENCY_AT) this.output(value & 0xff);
  }

  /** Bytes from the person at the terminal. */
  receive(bytes: Uint8Array): void {
    for (const byte of bytes) this.own.state.input.push(byte);
    this.notify(RECEIVE);
  }

  /** A driver waits for input: a machine that is otherwise quiet is not dead. */
  get awaitsInput(): boolean {
    return this.queues[RECEIVE].isReady;
  }

  protected serve(index: number, queue: Virtqueue): void {
    if (index === RECEIVE) {
      this.fill(queue);
      return;
    }
    for (let chain = this.next(queue); chain; chain = this.next(queue)) {
      for (const byte of gather(this.dma, chain.readable)) this.output(byte);
      queue.give(chain, 0);
    }
  }

  private fill(queue: Virtqueue): void {
    const { input, ready, settling } = this.own.state;
    if (!ready) {
      if (settling) return;
      this.own.state.settling = true;
      this.clock.schedule(this.owner, "ready", this.clock.now + SETTLING);
      return;
    }
    while (input.length > 0) {
      const chain = this.next(queue);
      if (!chain) return;
      const bytes = Uint8Array.from(input.splice(0, lengthOf(chain.writable)));
      queue.give(chain, scatter(this.dma, chain.writable, bytes));
    }
  }
}

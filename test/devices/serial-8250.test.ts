import { beforeEach, describe, expect, test } from "vitest";
import type { VirtualClock } from "../../engine/clock";
import { Serial8250 } from "../../engine/devices/serial-8250";
import { newClock, Probe, pass } from "./helpers";

let clock: VirtualClock;
let irq: Probe;
let sent: number[];
let uart: Serial8250;

beforeEach(() => {
  clock = newClock();
  irq = new Probe();
  sent = [];
  uart = new Serial8250(clock, "serial0", irq, (byte) => sent.push(byte));
});

const out = (register: number, value: number): void => uart.write(register, 1, value);
const type = (text: string): void => uart.receive(new TextEncoder().encode(text));
/** 115200 baud, 8N1, FIFOs on with trigger 8. */
function setUp(fcr = 0x81): void {
  out(3, 0x83);
  out(0, 1);
  out(1, 0);
  out(3, 0x03);
  out(2, fcr);
  out(4, 0x0b);
}

describe("16550A", () => {
  test("DLAB shows the divisor latch instead of data and interrupt enable", () => {
    out(3, 0x80);
    out(0, 0x34);
    out(1, 0x12);
    expect([uart.read(0), uart.read(1)]).toEqual([0x34, 0x12]);
    out(3, 0x03);
    expect(uart.read(1)).toBe(0);
  });

  test("a byte written leaves at once and the transmitter is ready again", () => {
    setUp();
    out(0, 0x41);
    expect(sent).toEqual([0x41]);
    expect(uart.read(5) & 0x60).toBe(0x60);
  });

  test("line status shows data ready until the FIFO is empty", () => {
    setUp();
    type("ab");
    expect(uart.read(5) & 1).toBe(1);
    expect([uart.read(0), uart.read(0)]).toEqual([0x61, 0x62]);
    expect(uart.read(5) & 1).toBe(0);
  });

  test("a patient sender waits until the receive interrupt is on, and repeats what a FIFO reset destroys", () => {
    uart = new Serial8250(clock, "serial1", irq, () => {}, true);
    type("abc");
    expect([uart.read(5) & 1, uart.read(0)]).toEqual([0, 0]);
    out(1, 1);
    expect(uart.read(5) & 1).toBe(1);
    out(2, 1);
    expect([uart.read(0), uart.read(0), uart.read(0)]).toEqual([0x61, 0x62, 0x63]);
  });

  test("a patient sender takes repeated looks at the line status for listening", () => {
    uart = new Serial8250(clock, "serial1", irq, () => {}, true);
    type("a");
    let looks = 1;
    while (!(uart.read(5) & 1) && looks < 100) looks++;
    expect(looks).toBeGreaterThan(8);
    expect(uart.read(0)).toBe(0x61);
  });

  test("overrun in loopback: without FIFO the new byte replaces the old one, with it the new one is lost", () => {
    setUp(0);
    out(4, 0x10);
    for (const byte of [1, 2]) out(0, byte);
    expect([uart.read(5) & 3, uart.read(0), uart.read(5) & 3]).toEqual([3, 2, 0]);
    out(2, 0x81);
    for (let byte = 0; byte < 17; byte++) out(0, byte);
    expect(uart.read(5) & 3).toBe(3);
    const read: number[] = [];
    while (uart.read(5) & 1) read.push(uart.read(0));
    expect(read).toEqual(Array.from({ length: 16 }, (_, byte) => byte));
  });

  test("input beyond 16 bytes waits outside; nothing is lost and no overrun is shown", () => {
    setUp();
    const text = "the quick brown fox jumps over the lazy dog";
    type(text);
    let read = "";
    while (uart.read(5) & 1) read += String.fromCharCode(uart.read(0));
    expect(read).toBe(text);
    expect(uart.read(5) & 2).toBe(0);
  });

  test("FIFO mode interrupts at the trigger level with identification 4, and FIFO bits in 7:6", () => {
    setUp();
    out(1, 1);
    type("1234567");
    expect(irq.level).toBe(false);
    type("8");
    expect(irq.level).toBe(true);
    expect(uart.read(2)).toBe(0xc4);
    uart.read(0);
    expect(irq.level).toBe(false);
  });

  test("bytes below the trigger level interrupt with identification 0xc after four character times", () => {
    setUp();
    out(1, 1);
    type("x");
    pass(clock, 300_000);
    expect(irq.level).toBe(false);
    pass(clock, 60_000);
    expect(irq.level).toBe(true);
    expect(uart.read(2)).toBe(0xcc);
    uart.read(0);
    expect(irq.level).toBe(false);
    expect(uart.read(2)).toBe(0xc1);
  });

  test("without FIFOs one byte interrupts at once", () => {
    setUp(0);
    out(1, 1);
    type("xy");
    expect(uart.read(2)).toBe(0x04);
    uart.read(0);
    expect(irq.level).toBe(true);
    uart.read(0);
    expect(irq.level).toBe(false);
  });

  test("the line falls between two bytes, so that an edge-triggered controller sees both", () => {
    setUp(0);
    out(1, 1);
    type("xyz");
    for (let i = 0; i < 3; i++) uart.read(0);
    expect(irq.rises).toBe(3);
  });

  test("enabling the transmitter interrupt raises it; reading the identification clears it", () => {
    setUp();
    out(1, 2);
    expect(irq.level).toBe(true);
    expect(uart.read(2)).toBe(0xc2);
    expect(irq.level).toBe(false);
    out(0, 0x41);
    expect(irq.level).toBe(true);
  });

  test("OUT2 gates the interrupt line", () => {
    setUp();
    out(1, 2);
    out(4, 0x03);
    expect(irq.level).toBe(false);
    out(4, 0x0b);
    expect(irq.level).toBe(true);
  });

  test("loopback: data comes back, nothing leaves, and outputs appear as inputs with their deltas", () => {
    setUp();
    uart.read(6);
    out(4, 0x10);
    uart.read(6);
    out(4, 0x1a);
    expect(uart.read(6)).toBe(0x90 | 0x09);
    out(0, 0x5a);
    expect(sent).toEqual([]);
    expect(uart.read(0)).toBe(0x5a);
  });

  test("an overrun in loopback is a line-status error, cleared by reading", () => {
    setUp(0);
    out(4, 0x10);
    out(0, 1);
    out(0, 2);
    expect(uart.read(5) & 2).toBe(2);
    expect(uart.read(5) & 2).toBe(0);
  });

  test("FIFO control: changing the enable bit or bit 1 empties the receiver", () => {
    setUp();
    type("abc");
    out(2, 0x83);
    expect(uart.read(5) & 1).toBe(0);
    type("d");
    out(2, 0);
    expect(uart.read(5) & 1).toBe(0);
  });

  test("the scratch register keeps its value", () => {
    out(7, 0xa5);
    expect(uart.read(7)).toBe(0xa5);
  });
});

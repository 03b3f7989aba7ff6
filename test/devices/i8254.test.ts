import { beforeEach, describe, expect, test } from "vitest";
import type { VirtualClock } from "../../engine/clock";
import { Frequency } from "../../engine/devices/frequency";
import { I8254, PIT_HZ } from "../../engine/devices/i8254";
import { newClock, Probe, pass, passTo } from "./helpers";

let clock: VirtualClock;
let out: Probe;
let pit: I8254;
const crystal = new Frequency(PIT_HZ);

beforeEach(() => {
  clock = newClock();
  out = new Probe(clock);
  pit = new I8254(clock, "pit", out);
});

const control = (value: number): void => pit.ports.write(3, 1, value);
function count(channel: number, value: number): void {
  pit.ports.write(channel, 1, value & 0xff);
  pit.ports.write(channel, 1, value >> 8);
}
function read(channel: number): number {
  const low = pit.ports.read(channel, 1);
  return low | (pit.ports.read(channel, 1) << 8);
}
/** To the beginning of `ticks` counter clocks from now. */
const ticks = (n: number): void => passTo(clock, crystal.time(crystal.ticks(clock.now) + n));

describe("frequency", () => {
  test("time is the first nanosecond at which that many ticks are complete", () => {
    for (const n of [1, 2, 1193181, 1193182, 1193183, 123_456_789]) {
      expect(crystal.ticks(crystal.time(n))).toBe(n);
      expect(crystal.ticks(crystal.time(n) - 1)).toBe(n - 1);
    }
  });
});

describe("8254 modes", () => {
  test("mode 0: OUT falls at the control word and rises N + 1 clocks after the count", () => {
    control(0x30);
    expect(out.level).toBe(false);
    count(0, 100);
    ticks(100);
    expect(out.level).toBe(false);
    ticks(1);
    expect(out.level).toBe(true);
    expect(out.rises).toBe(1);
  });

  test("mode 0: GATE low holds the count", () => {
    control(0xb0);
    pit.setGate(2, true);
    count(2, 100);
    ticks(11);
    pit.setGate(2, false);
    const held = pit.count(2);
    ticks(50);
    expect(pit.count(2)).toBe(held);
    pit.setGate(2, true);
    ticks(10);
    expect(pit.count(2)).toBe(held - 10);
  });

  test("mode 1: the trigger starts a pulse of N clocks, a second one lengthens it", () => {
    control(0xb2);
    count(2, 20);
    expect(pit.out(2)).toBe(true);
    pit.setGate(2, true);
    ticks(1);
    expect(pit.out(2)).toBe(false);
    ticks(10);
    pit.setGate(2, false);
    pit.setGate(2, true);
    ticks(20);
    expect(pit.out(2)).toBe(false);
    ticks(1);
    expect(pit.out(2)).toBe(true);
  });

  test("mode 2: OUT is low for one clock in N, forever", () => {
    control(0x34);
    count(0, 1000);
    pass(clock, crystal.time(10_001));
    expect(out.rises).toBe(1 + 10);
    const falls = out.changes.filter((c) => !c.level).map((c) => crystal.ticks(c.at));
    for (let i = 1; i < falls.length; i++) expect(falls[i] - falls[i - 1]).toBe(1000);
    const pulse = out.changes.slice(-2);
    expect(crystal.ticks(pulse[1].at) - crystal.ticks(pulse[0].at)).toBe(1);
  });

  test("mode 2: a new count takes over at the end of the period", () => {
    control(0x34);
    count(0, 1000);
    ticks(500);
    count(0, 300);
    expect(pit.count(0)).toBeGreaterThan(400);
    out.changes.length = 0;
    ticks(1200);
    const rises = out.changes.filter((c) => c.level).map((c) => crystal.ticks(c.at));
    expect(rises).toEqual([1001, 1301, 1601]);
  });

  test("mode 3: an even count is a square wave, an odd one is one clock longer high", () => {
    control(0x36);
    count(0, 101);
    pass(clock, crystal.time(1000));
    const at = out.changes.map((c) => ({ tick: crystal.ticks(c.at), level: c.level })).slice(1);
    expect(at[0].level).toBe(false);
    expect(at[1].tick - at[0].tick).toBe(50);
    expect(at[2].tick - at[1].tick).toBe(51);
  });

  test("mode 3: the count goes down by two", () => {
    control(0xb6);
    pit.setGate(2, true);
    count(2, 1000);
    ticks(1);
    const first = pit.count(2);
    ticks(5);
    expect(first - pit.count(2)).toBe(10);
  });

  test("mode 4: one low clock N + 1 clocks after the count", () => {
    control(0x38);
    count(0, 50);
    expect(out.level).toBe(true);
    ticks(51);
    expect(out.level).toBe(false);
    ticks(1);
    expect(out.level).toBe(true);
    ticks(200_000);
    expect(out.changes).toHaveLength(3);
  });

  test("mode 5: the strobe comes N + 1 clocks after the trigger", () => {
    control(0xba);
    count(2, 5);
    pit.setGate(2, true);
    ticks(6);
    expect(pit.out(2)).toBe(false);
    ticks(1);
    expect(pit.out(2)).toBe(true);
  });

  test("a count of 0 means 65536", () => {
    control(0x30);
    count(0, 0);
    ticks(65536);
    expect(out.level).toBe(false);
    ticks(1);
    expect(out.level).toBe(true);
  });

  test("BCD counts are decimal", () => {
    control(0x31);
    count(0, 0x1000);
    ticks(2);
    expect(pit.count(0)).toBe(0x0999);
    ticks(999);
    expect(out.level).toBe(true);
  });
});

describe("8254 access", () => {
  test("the counter latch holds until it has been read", () => {
    control(0x34);
    count(0, 10_000);
    ticks(101);
    control(0x00);
    ticks(50);
    expect(read(0)).toBe(9900);
    expect(read(0)).toBe(9850);
  });

  test("a second latch command before the read is ignored", () => {
    control(0x34);
    count(0, 10_000);
    ticks(101);
    control(0x00);
    ticks(10);
    control(0x00);
    expect(read(0)).toBe(9900);
  });

  test("read-back latches status: OUT, null count, access and mode", () => {
    control(0x34);
    control(0xe2);
    expect(pit.ports.read(0, 1)).toBe(0x80 | 0x40 | 0x34);
    count(0, 100);
    control(0xe2);
    expect(pit.ports.read(0, 1)).toBe(0x80 | 0x34);
  });

  test("read-back of status and count gives status first", () => {
    control(0x34);
    count(0, 500);
    ticks(1);
    control(0xc2);
    expect(pit.ports.read(0, 1)).toBe(0xb4);
    expect(read(0)).toBe(500);
  });

  test("port 0x61: bit 0 is counter 2's gate, bit 5 its output, bit 4 toggles with refresh", () => {
    pit.speakerPort.write(0, 1, 0);
    control(0xb0);
    count(2, 1000);
    pit.speakerPort.write(0, 1, 1);
    expect(pit.speakerPort.read(0, 1) & 0x21).toBe(0x01);
    ticks(1001);
    expect(pit.speakerPort.read(0, 1) & 0x21).toBe(0x21);
    const before = pit.speakerPort.read(0, 1) & 0x10;
    pass(clock, 15_085);
    expect(pit.speakerPort.read(0, 1) & 0x10).not.toBe(before);
  });

  test("a snapshot of state and clock goes on exactly where it was", () => {
    control(0x34);
    count(0, 1193);
    pass(clock, 1_234_567);
    const saved = structuredClone({ pit: pit.state, clock: clock.state });
    const go = (): { rises: number; count: number } => {
      const before = out.rises;
      pass(clock, 5_000_000);
      return { rises: out.rises - before, count: pit.count(0) };
    };
    const first = go();
    expect(first.rises).toBe(5);
    pit.state = saved.pit;
    clock.state = saved.clock;
    expect(go()).toEqual(first);
  });
});

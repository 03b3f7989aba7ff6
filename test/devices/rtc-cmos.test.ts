import { beforeEach, describe, expect, test } from "vitest";
import type { VirtualClock } from "../../engine/clock";
import { toCivil, toSeconds } from "../../engine/devices/civil-time";
import { RtcCmos } from "../../engine/devices/rtc-cmos";
import { newClock, Probe, pass } from "./helpers";

const SECOND = 1_000_000_000;
let clock: VirtualClock;
let irq: Probe;
let rtc: RtcCmos;

beforeEach(() => {
  clock = newClock();
  irq = new Probe();
  rtc = new RtcCmos(clock, "rtc", irq, toSeconds({ year: 1999, month: 12, day: 31, hour: 23, minute: 59, second: 58 }));
});

function get(index: number): number {
  rtc.write(0, 1, index);
  return rtc.read(1);
}
function set(index: number, value: number): void {
  rtc.write(0, 1, index);
  rtc.write(1, 1, value);
}

describe("calendar", () => {
  test("agrees with the platform's over four centuries", () => {
    for (let day = -200_000; day < 200_000; day += 997) {
      const seconds = day * 86400 + 12345;
      const d = new Date(seconds * 1000);
      const t = toCivil(seconds);
      expect([t.year, t.month, t.day, t.hour, t.minute, t.second, t.weekday]).toEqual([
        d.getUTCFullYear(),
        d.getUTCMonth() + 1,
        d.getUTCDate(),
        d.getUTCHours(),
        d.getUTCMinutes(),
        d.getUTCSeconds(),
        d.getUTCDay() + 1,
      ]);
      expect(toSeconds(t)).toBe(seconds);
    }
  });
});

describe("MC146818", () => {
  test("counts seconds of virtual time in BCD and carries into the century", () => {
    expect([get(0x32), get(9), get(8), get(7), get(4), get(2), get(0)]).toEqual([
      0x19, 0x99, 0x12, 0x31, 0x23, 0x59, 0x58,
    ]);
    pass(clock, 2 * SECOND);
    expect([get(0x32), get(9), get(8), get(7), get(4), get(2), get(0)]).toEqual([0x20, 0, 1, 1, 0, 0, 0]);
    expect(get(6)).toBe(7);
  });

  test("register B selects binary and 12-hour representation", () => {
    set(0xb, 0x06);
    expect(get(0)).toBe(58);
    expect(get(4)).toBe(23);
    set(0xb, 0x00);
    expect(get(4)).toBe(0x91);
    pass(clock, 2 * SECOND);
    expect(get(4)).toBe(0x12);
  });

  test("SET stops the clock; the time written goes on when it is cleared", () => {
    set(0xb, 0x82);
    set(0, 0x30);
    set(2, 0x15);
    set(4, 0x08);
    pass(clock, 10 * SECOND);
    expect(get(0)).toBe(0x30);
    set(0xb, 0x02);
    pass(clock, 5 * SECOND);
    expect([get(4), get(2), get(0)]).toEqual([0x08, 0x15, 0x35]);
  });

  test("update in progress is shown for the last 244 us of each second", () => {
    pass(clock, SECOND - 245_000);
    expect(get(0xa) & 0x80).toBe(0);
    pass(clock, 2_000);
    expect(get(0xa) & 0x80).toBe(0x80);
    pass(clock, 243_000);
    expect(get(0xa) & 0x80).toBe(0);
  });

  test("the update-ended interrupt comes once a second and is cleared by reading C", () => {
    set(0xb, 0x12);
    pass(clock, SECOND - 1);
    expect(irq.level).toBe(false);
    pass(clock, 1);
    expect(irq.level).toBe(true);
    expect(get(0xc) & 0xb0).toBe(0x90);
    expect(irq.level).toBe(false);
    pass(clock, 3 * SECOND);
    expect(irq.rises).toBe(2);
  });

  test("the periodic interrupt has the rate of register A", () => {
    set(0xa, 0x26);
    set(0xb, 0x42);
    let n = 0;
    for (let t = 0; t < SECOND; t += 100_000) {
      pass(clock, 100_000);
      if (irq.level) {
        expect(get(0xc) & 0x40).toBe(0x40);
        n++;
      }
    }
    expect(n).toBe(1024);
  });

  test("the flags are set for pollers too, without interrupts", () => {
    get(0xc);
    pass(clock, SECOND);
    expect(get(0xc) & 0x70).toBe(0x50);
    expect(irq.level).toBe(false);
  });

  test("the alarm interrupts at its time; 0xc0 in a cell matches anything", () => {
    set(1, 0x01);
    set(3, 0x00);
    set(5, 0xff);
    set(0xb, 0x22);
    pass(clock, 3 * SECOND - 1);
    expect(irq.level).toBe(false);
    pass(clock, 1);
    expect(irq.level).toBe(true);
    expect(get(0xc) & 0xa0).toBe(0xa0);
  });

  test("CMOS memory keeps what is written; C and D are read-only", () => {
    set(0x40, 0x5a);
    expect(get(0x40)).toBe(0x5a);
    set(0xd, 0);
    expect(get(0xd)).toBe(0x80);
  });
});

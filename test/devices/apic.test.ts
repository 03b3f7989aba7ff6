import { beforeEach, describe, expect, test } from "vitest";
import type { VirtualClock } from "../../engine/clock";
import { SystemApicBus } from "../../engine/devices/apic-bus";
import { IoApic } from "../../engine/devices/io-apic";
import { ApicReg, LocalApic } from "../../engine/devices/local-apic";
import { newClock, pass } from "./helpers";

let clock: VirtualClock;
let bus: SystemApicBus;
let signals: string[];
let apics: LocalApic[];

function apic(id: number, suppressesEoi = true): LocalApic {
  const a = new LocalApic({
    id,
    suppressesEoi,
    bsp: id === 0,
    x2apic: true,
    tscDeadline: true,
    physicalBits: 40,
    clock,
    owner: `apic${id}`,
    bus,
    core: {
      attention: () => {},
      signal: (event, vector) => signals.push(`${id}:${event}${vector === undefined ? "" : ` ${vector}`}`),
      timeOfTsc: (tsc) => Number(tsc),
    },
  });
  bus.attachLocal(a);
  a.write(ApicReg.SVR, 4, 0x1ff);
  return a;
}

beforeEach(() => {
  clock = newClock();
  bus = new SystemApicBus();
  signals = [];
  apics = [apic(0), apic(1), apic(2)];
});

const icr = (a: LocalApic, destination: number, low: number): void => {
  a.write(ApicReg.ICR_HIGH, 4, destination << 24);
  a.write(ApicReg.ICR_LOW, 4, low);
};
const word = (a: LocalApic, register: number, vector: number): boolean =>
  (a.read(register + (vector >> 5) * 16, 4) & (1 << (vector & 31))) !== 0;

describe("local APIC", () => {
  test("ID, version and the reset values of DFR, SVR and LVT (SDM 3A 10.4.7.1)", () => {
    const a = apics[1];
    a.reset();
    expect(a.read(ApicReg.ID, 4)).toBe(0x01000000);
    expect(a.read(ApicReg.VERSION, 4) & 0xff).toBe(0x14);
    expect(a.read(ApicReg.DFR, 4) >>> 0).toBe(0xffffffff);
    expect(a.read(ApicReg.SVR, 4)).toBe(0xff);
    expect(a.read(ApicReg.LVT_TIMER, 4)).toBe(0x10000);
  });

  test("version and SVR tell whether EOI broadcasts can be suppressed (SDM 3A 10.4.8, 10.9)", () => {
    const registers = [true, false].map((suppressesEoi, i) => {
      const a = apic(3 + i, suppressesEoi);
      a.write(ApicReg.SVR, 4, 0xffffffff);
      return [a.read(ApicReg.VERSION, 4), a.read(ApicReg.SVR, 4)];
    });
    expect(registers).toEqual([
      [0x01050014, 0x13ff],
      [0x00050014, 0x03ff],
    ]);
  });

  test("a fixed interrupt sets IRR, the acknowledge moves it to ISR, EOI clears it (SDM 3A 10.8)", () => {
    const [a] = apics;
    a.accept(0, 0x55, false, true);
    expect(word(a, ApicReg.IRR, 0x55)).toBe(true);
    expect(a.pending()).toBe(0x55);
    expect(a.acknowledge()).toBe(0x55);
    expect(word(a, ApicReg.ISR, 0x55)).toBe(true);
    expect(a.pending()).toBe(-1);
    a.write(ApicReg.EOI, 4, 0);
    expect(word(a, ApicReg.ISR, 0x55)).toBe(false);
  });

  test("only a vector of a higher priority class than TPR and ISR is delivered (SDM 3A 10.8.3.1)", () => {
    const [a] = apics;
    a.write(ApicReg.TPR, 4, 0x50);
    a.accept(0, 0x5f, false, true);
    expect(a.pending()).toBe(-1);
    a.accept(0, 0x60, false, true);
    expect(a.acknowledge()).toBe(0x60);
    expect(a.read(ApicReg.PPR, 4)).toBe(0x60);
    a.accept(0, 0x6f, false, true);
    expect(a.pending()).toBe(-1);
    a.accept(0, 0x70, false, true);
    expect(a.pending()).toBe(0x70);
  });

  test("CR8 is TPR bits 7:4 (SDM 3A 10.8.6.1)", () => {
    const [a] = apics;
    a.writeCr8(9);
    expect(a.read(ApicReg.TPR, 4)).toBe(0x90);
    a.write(ApicReg.TPR, 4, 0xcf);
    expect(a.readCr8()).toBe(0xc);
  });

  test("a software-disabled APIC takes no fixed interrupts and masks its LVT (SDM 3A 10.4.7.2)", () => {
    const [a] = apics;
    a.write(ApicReg.LVT_TIMER, 4, 0x40);
    a.write(ApicReg.SVR, 4, 0xff);
    a.accept(0, 0x55, false, true);
    expect(a.pending()).toBe(-1);
    expect(a.read(ApicReg.LVT_TIMER, 4) & 0x10000).toBe(0x10000);
    a.write(ApicReg.LVT_TIMER, 4, 0x40);
    expect(a.read(ApicReg.LVT_TIMER, 4) & 0x10000).toBe(0x10000);
  });

  test("vectors below 16 are illegal to send and to receive (SDM 3A 10.5.3)", () => {
    const [a, b] = apics;
    icr(a, 1, 0x000f);
    a.write(ApicReg.ESR, 4, 0);
    expect(a.read(ApicReg.ESR, 4)).toBe(1 << 5);
    b.accept(0, 3, false, true);
    b.write(ApicReg.ESR, 4, 0);
    expect(b.read(ApicReg.ESR, 4)).toBe(1 << 6);
    expect(b.pending()).toBe(-1);
  });

  test("an acknowledge with nothing pending gives the spurious vector and no ISR bit (SDM 3A 10.9)", () => {
    const [a] = apics;
    expect(a.acknowledge()).toBe(0xff);
    expect(a.highest(ApicReg.ISR)).toBe(-1);
  });
});

describe("interprocessor interrupts (SDM 3A 10.6)", () => {
  test("physical destination, and 0xff for everybody", () => {
    icr(apics[0], 2, 0x4041);
    expect(apics.map((a) => a.pending())).toEqual([-1, -1, 0x41]);
    icr(apics[0], 0xff, 0x4042);
    expect(apics.map((a) => a.pending())).toEqual([0x42, 0x42, 0x42]);
  });

  test("shorthands: self, all, all but self", () => {
    icr(apics[1], 0, 0x44041);
    expect(apics.map((a) => a.pending())).toEqual([-1, 0x41, -1]);
    icr(apics[1], 0, 0xc4042);
    expect(apics.map((a) => a.pending())).toEqual([0x42, 0x41, 0x42]);
    icr(apics[1], 0, 0x84043);
    expect(apics.map((a) => a.pending())).toEqual([0x43, 0x43, 0x43]);
  });

  test("logical destination, flat model: any common bit", () => {
    for (const [i, a] of apics.entries()) a.write(ApicReg.LDR, 4, 1 << (24 + i));
    icr(apics[0], 0x06, 0x4841);
    expect(apics.map((a) => a.pending())).toEqual([-1, 0x41, 0x41]);
  });

  test("logical destination, cluster model: same cluster and a common bit", () => {
    for (const a of apics) a.write(ApicReg.DFR, 4, 0x0fffffff);
    apics[0].write(ApicReg.LDR, 4, 0x11000000);
    apics[1].write(ApicReg.LDR, 4, 0x12000000);
    apics[2].write(ApicReg.LDR, 4, 0x22000000);
    icr(apics[0], 0x12, 0x4841);
    expect(apics.map((a) => a.pending())).toEqual([-1, 0x41, -1]);
  });

  test("lowest priority goes to the processor with the lowest PPR, equals take turns", () => {
    apics[0].write(ApicReg.TPR, 4, 0x80);
    icr(apics[0], 0xff, 0x4141);
    icr(apics[0], 0xff, 0x4142);
    expect(apics.map((a) => a.pending())).toEqual([-1, 0x41, 0x42]);
  });

  test("INIT, start-up with its vector, NMI and SMI reach the processor; INIT de-assert does not", () => {
    icr(apics[0], 1, 0xc500);
    icr(apics[0], 1, 0x8500);
    icr(apics[0], 1, 0x4608);
    icr(apics[0], 1, 0x4400);
    icr(apics[0], 1, 0x4200);
    expect(signals).toEqual(["1:init", "1:sipi 8", "1:nmi", "1:smi"]);
  });
});

describe("local APIC timer (SDM 3A 10.5.4)", () => {
  test("one-shot: counts the bus clock over the divider, interrupts once at zero", () => {
    const [a] = apics;
    a.write(ApicReg.DIVIDE, 4, 0x3);
    a.write(ApicReg.LVT_TIMER, 4, 0x40);
    a.write(ApicReg.INITIAL_COUNT, 4, 1000);
    pass(clock, 15_999);
    expect(a.read(ApicReg.CURRENT_COUNT, 4)).toBe(1);
    expect(a.pending()).toBe(-1);
    pass(clock, 1);
    expect(a.read(ApicReg.CURRENT_COUNT, 4)).toBe(0);
    expect(a.acknowledge()).toBe(0x40);
    a.write(ApicReg.EOI, 4, 0);
    pass(clock, 100_000);
    expect(a.pending()).toBe(-1);
  });

  test.each([
    [0b0000, 2],
    [0b0001, 4],
    [0b0010, 8],
    [0b0011, 16],
    [0b1000, 32],
    [0b1001, 64],
    [0b1010, 128],
    [0b1011, 1],
  ])("divide configuration %i divides by %i", (value, divisor) => {
    const [a] = apics;
    a.write(ApicReg.DIVIDE, 4, value);
    a.write(ApicReg.INITIAL_COUNT, 4, 0xffffffff);
    pass(clock, 100 * divisor);
    expect(a.read(ApicReg.CURRENT_COUNT, 4) >>> 0).toBe(0xffffffff - 100);
  });

  test("periodic: interrupts at every multiple of the period without drift", () => {
    const [a] = apics;
    a.write(ApicReg.DIVIDE, 4, 0xb);
    a.write(ApicReg.LVT_TIMER, 4, 0x20040);
    a.write(ApicReg.INITIAL_COUNT, 4, 999);
    let n = 0;
    for (let t = 0; t < 99_900; t += 37) {
      pass(clock, 37);
      if (a.pending() === 0x40) {
        n++;
        a.acknowledge();
        a.write(ApicReg.EOI, 4, 0);
      }
    }
    expect(n).toBe(100);
  });

  test("initial count 0 stops the timer", () => {
    const [a] = apics;
    a.write(ApicReg.LVT_TIMER, 4, 0x40);
    a.write(ApicReg.INITIAL_COUNT, 4, 1000);
    a.write(ApicReg.INITIAL_COUNT, 4, 0);
    pass(clock, 1_000_000);
    expect(a.pending()).toBe(-1);
  });

  test("TSC-deadline: interrupts when the TSC reaches the MSR, which then reads zero (SDM 3A 10.5.4.1)", () => {
    const [a] = apics;
    a.write(ApicReg.LVT_TIMER, 4, 0x40040);
    expect(a.writeMsr(0x6e0, 5_000n)).toBe(true);
    pass(clock, 4_999);
    expect(a.pending()).toBe(-1);
    expect(a.readMsr(0x6e0)).toBe(5_000n);
    pass(clock, 1);
    expect(a.pending()).toBe(0x40);
    expect(a.readMsr(0x6e0)).toBe(0n);
  });

  test("writing 0 to the deadline disarms it; in other modes the MSR is inert", () => {
    const [a] = apics;
    a.write(ApicReg.LVT_TIMER, 4, 0x40040);
    a.writeMsr(0x6e0, 5_000n);
    a.writeMsr(0x6e0, 0n);
    pass(clock, 10_000);
    expect(a.pending()).toBe(-1);
    a.write(ApicReg.LVT_TIMER, 4, 0x40);
    a.writeMsr(0x6e0, 20_000n);
    expect(a.readMsr(0x6e0)).toBe(0n);
  });

  test("a masked timer runs without interrupting", () => {
    const [a] = apics;
    a.write(ApicReg.LVT_TIMER, 4, 0x10040);
    a.write(ApicReg.DIVIDE, 4, 0xb);
    a.write(ApicReg.INITIAL_COUNT, 4, 1000);
    pass(clock, 600);
    expect(a.read(ApicReg.CURRENT_COUNT, 4)).toBe(400);
    pass(clock, 600);
    expect(a.pending()).toBe(-1);
  });
});

describe("x2APIC (SDM 3A 10.12)", () => {
  const enable = (a: LocalApic): void => {
    a.writeMsr(0x1b, (a.readMsr(0x1b) as bigint) | 0x400n);
  };

  test("registers are MSRs only in x2APIC mode", () => {
    const [a] = apics;
    expect(a.readMsr(0x802)).toBeUndefined();
    enable(a);
    expect(a.readMsr(0x802)).toBe(0n);
    expect(a.page).toBe(-1);
  });

  test("the logical id is (id / 16) << 16 | 1 << (id mod 16)", () => {
    const a = apics[2];
    enable(a);
    expect(a.readMsr(0x80d)).toBe(4n);
  });

  test("reserved registers, read-only ones and reserved bits give #GP", () => {
    const [a] = apics;
    enable(a);
    expect(a.readMsr(0x80e)).toBeUndefined();
    expect(a.readMsr(0x831)).toBeUndefined();
    expect(a.writeMsr(0x802, 1n)).toBe(false);
    expect(a.writeMsr(0x808, 0x100n)).toBe(false);
    expect(a.writeMsr(0x80b, 1n)).toBe(false);
    expect(a.writeMsr(0x80b, 0n)).toBe(true);
  });

  test("the 64-bit ICR carries the destination; SELF IPI interrupts the sender", () => {
    for (const a of apics) enable(a);
    expect(apics[0].writeMsr(0x830, (2n << 32n) | 0x41n)).toBe(true);
    expect(apics.map((a) => a.pending())).toEqual([-1, -1, 0x41]);
    expect(apics[1].writeMsr(0x83f, 0x77n)).toBe(true);
    expect(apics[1].pending()).toBe(0x77);
  });

  test("illegal changes of IA32_APIC_BASE give #GP (SDM 3A 10.12.5)", () => {
    const [a] = apics;
    expect(a.writeMsr(0x1b, 0xfee00000n | 0x400n)).toBe(false);
    expect(a.writeMsr(0x1b, 0xfee00000n | 0x200n)).toBe(false);
    expect(a.writeMsr(0x1b, 1n << 40n)).toBe(false);
    enable(a);
    expect(a.writeMsr(0x1b, 0xfee00800n)).toBe(false);
    expect(a.writeMsr(0x1b, 0xfee00000n)).toBe(true);
    expect(a.writeMsr(0x1b, 0xfee00c00n)).toBe(false);
  });
});

describe("I/O APIC", () => {
  let io: IoApic;
  const select = (index: number, value?: number): number => {
    io.write(0, 4, index);
    if (value !== undefined) io.write(0x10, 4, value);
    return io.read(0x10, 4);
  };
  const entry = (pin: number, low: number, destination = 0): void => {
    select(0x11 + pin * 2, destination << 24);
    select(0x10 + pin * 2, low);
  };
  beforeEach(() => {
    io = new IoApic(bus, 0x20);
    bus.attachIo(io);
  });

  test("24 entries, all masked after reset", () => {
    expect(select(1)).toBe(0x00170020);
    expect(select(0x10)).toBe(0x10000);
  });

  test("an edge sends its message once", () => {
    entry(4, 0x44, 1);
    io.setLine(4, true);
    expect(apics[1].pending()).toBe(0x44);
    apics[1].acknowledge();
    apics[1].write(ApicReg.EOI, 4, 0);
    io.setLine(4, true);
    expect(apics[1].pending()).toBe(-1);
  });

  test("an edge at a masked pin is lost", () => {
    io.setLine(4, true);
    io.setLine(4, false);
    entry(4, 0x44);
    expect(apics[0].pending()).toBe(-1);
  });

  test("level: remote IRR is set until EOI; then it interrupts again while asserted", () => {
    entry(9, 0x8059);
    io.setLine(9, true);
    expect(select(0x10 + 18) & (1 << 14)).not.toBe(0);
    expect(apics[0].acknowledge()).toBe(0x59);
    expect(apics[0].pending()).toBe(-1);
    apics[0].write(ApicReg.EOI, 4, 0);
    expect(apics[0].acknowledge()).toBe(0x59);
    io.setLine(9, false);
    apics[0].write(ApicReg.EOI, 4, 0);
    expect(apics[0].pending()).toBe(-1);
    expect(select(0x10 + 18) & (1 << 14)).toBe(0);
  });

  test("a suppressed EOI broadcast is made good by the EOI register (SDM 3A 10.8.5)", () => {
    apics[0].write(ApicReg.SVR, 4, 0x11ff);
    entry(9, 0x8059);
    io.setLine(9, true);
    apics[0].acknowledge();
    apics[0].write(ApicReg.EOI, 4, 0);
    expect(select(0x10 + 18) & (1 << 14)).not.toBe(0);
    io.setLine(9, false);
    io.write(0x40, 4, 0x59);
    expect(select(0x10 + 18) & (1 << 14)).toBe(0);
  });

  test("level asserted while masked is delivered on unmasking", () => {
    entry(9, 0x18059);
    io.setLine(9, true);
    expect(apics[0].pending()).toBe(-1);
    entry(9, 0x8059);
    expect(apics[0].pending()).toBe(0x59);
  });

  test("delivery status and remote IRR cannot be written", () => {
    entry(7, 0xd047 | 0x10000);
    expect(select(0x10 + 14)).toBe(0x18047);
  });
});

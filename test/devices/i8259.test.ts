import { beforeEach, describe, expect, test } from "vitest";
import { I8259 } from "../../engine/devices/i8259";
import { Probe } from "./helpers";

let intr: Probe;
let pic: I8259;

function initialise(icw4 = 0x01): void {
  for (const [ports, base, icw3] of [
    [pic.masterPorts, 0x20, 0x04],
    [pic.slavePorts, 0x28, 0x02],
  ] as const) {
    ports.write(0, 1, 0x11);
    ports.write(1, 1, base);
    ports.write(1, 1, icw3);
    ports.write(1, 1, icw4);
  }
}
const eoi = (): void => pic.masterPorts.write(0, 1, 0x20);
const eoiSlave = (): void => pic.slavePorts.write(0, 1, 0x20);
const edge = (irq: number): void => {
  pic.setLine(irq, true);
  pic.setLine(irq, false);
};

beforeEach(() => {
  intr = new Probe();
  pic = new I8259(intr);
  initialise();
});

describe("8259A", () => {
  test("ICW2 gives the vector of input 0; an edge is remembered after the line falls", () => {
    edge(3);
    expect(intr.level).toBe(true);
    expect(pic.peek()).toBe(0x23);
    expect(pic.acknowledge()).toBe(0x23);
    expect(intr.level).toBe(false);
  });

  test("a request of lower or equal priority waits until the one in service is ended", () => {
    edge(1);
    pic.acknowledge();
    edge(4);
    edge(1);
    expect(intr.level).toBe(false);
    eoi();
    expect(pic.acknowledge()).toBe(0x21);
    eoi();
    expect(pic.acknowledge()).toBe(0x24);
  });

  test("a request of higher priority interrupts the one in service", () => {
    edge(5);
    pic.acknowledge();
    edge(2 - 1);
    expect(intr.level).toBe(true);
    expect(pic.acknowledge()).toBe(0x21);
  });

  test("the slave's requests come through input 2 with the slave's vector and need both EOIs", () => {
    edge(8);
    expect(pic.acknowledge()).toBe(0x28);
    edge(9);
    expect(intr.level).toBe(false);
    eoi();
    expect(intr.level).toBe(false);
    eoiSlave();
    expect(intr.level).toBe(true);
    expect(pic.acknowledge()).toBe(0x29);
  });

  test("an edge-triggered input interrupts once however long its line stays high", () => {
    pic.setLine(4, true);
    expect(pic.acknowledge()).toBe(0x24);
    eoi();
    expect(intr.level).toBe(false);
    pic.setLine(4, false);
    pic.setLine(4, true);
    expect(intr.level).toBe(true);
  });

  test("a level-triggered input (ELCR) interrupts again after EOI while its line is high", () => {
    pic.elcrPorts.write(0, 1, 0x20);
    pic.setLine(5, true);
    pic.acknowledge();
    eoi();
    expect(intr.level).toBe(true);
    pic.setLine(5, false);
    expect(intr.level).toBe(false);
  });

  test("ELCR bits of inputs 0, 1, 2, 8 and 13 stay clear", () => {
    pic.elcrPorts.write(0, 1, 0xff);
    pic.elcrPorts.write(1, 1, 0xff);
    expect(pic.elcrPorts.read(0, 1)).toBe(0xf8);
    expect(pic.elcrPorts.read(1, 1)).toBe(0xde);
  });

  test("a level request that goes away before the acknowledge gives the spurious vector 7 and sets no in-service bit", () => {
    pic.elcrPorts.write(0, 1, 0x20);
    pic.setLine(5, true);
    pic.setLine(5, false);
    expect(pic.acknowledge()).toBe(0x27);
    pic.masterPorts.write(0, 1, 0x0b);
    expect(pic.masterPorts.read(0, 1)).toBe(0);
  });

  test("OCW1 masks an input; the request stays and interrupts when unmasked", () => {
    pic.masterPorts.write(1, 1, 0x10);
    expect(pic.masterPorts.read(1, 1)).toBe(0x10);
    edge(4);
    expect(intr.level).toBe(false);
    pic.masterPorts.write(1, 1, 0);
    expect(intr.level).toBe(true);
  });

  test("OCW3 selects IRR or ISR for reads of the even port", () => {
    edge(6);
    expect(pic.masterPorts.read(0, 1)).toBe(0x40);
    pic.acknowledge();
    pic.masterPorts.write(0, 1, 0x0b);
    expect(pic.masterPorts.read(0, 1)).toBe(0x40);
    pic.masterPorts.write(0, 1, 0x0a);
    expect(pic.masterPorts.read(0, 1)).toBe(0);
  });

  test("automatic EOI leaves nothing in service", () => {
    initialise(0x03);
    edge(1);
    pic.acknowledge();
    edge(5);
    expect(intr.level).toBe(true);
  });

  test("rotate on specific EOI makes that input the lowest", () => {
    edge(3);
    pic.acknowledge();
    pic.masterPorts.write(0, 1, 0xe3);
    edge(3);
    edge(4);
    expect(pic.acknowledge()).toBe(0x24);
  });

  test("specific EOI ends the named input only", () => {
    edge(5);
    pic.acknowledge();
    edge(1);
    pic.acknowledge();
    pic.masterPorts.write(0, 1, 0x65);
    pic.masterPorts.write(0, 1, 0x0b);
    expect(pic.masterPorts.read(0, 1)).toBe(0x02);
  });

  test("special mask mode lets lower inputs through while a masked one is in service", () => {
    edge(1);
    pic.acknowledge();
    pic.masterPorts.write(1, 1, 0x02);
    edge(5);
    expect(intr.level).toBe(false);
    pic.masterPorts.write(0, 1, 0x68);
    expect(intr.level).toBe(true);
  });

  test("a poll read is the acknowledge: bit 7 and the input's number", () => {
    edge(4);
    pic.masterPorts.write(0, 1, 0x0c);
    expect(pic.masterPorts.read(0, 1)).toBe(0x84);
    pic.masterPorts.write(0, 1, 0x0c);
    expect(pic.masterPorts.read(0, 1)).toBe(0);
  });

  test("special fully nested mode: the slave interrupts again above its input in service", () => {
    initialise(0x01);
    pic.masterPorts.write(0, 1, 0x11);
    pic.masterPorts.write(1, 1, 0x20);
    pic.masterPorts.write(1, 1, 0x04);
    pic.masterPorts.write(1, 1, 0x11);
    edge(12);
    pic.acknowledge();
    edge(8);
    expect(intr.level).toBe(true);
    expect(pic.acknowledge()).toBe(0x28);
  });

  test("ICW1 clears the mask and what was in service", () => {
    edge(1);
    pic.acknowledge();
    pic.masterPorts.write(1, 1, 0xff);
    pic.masterPorts.write(0, 1, 0x11);
    pic.masterPorts.write(1, 1, 0x40);
    pic.masterPorts.write(1, 1, 0x04);
    pic.masterPorts.write(1, 1, 0x01);
    expect(pic.masterPorts.read(1, 1)).toBe(0);
    edge(1);
    expect(pic.acknowledge()).toBe(0x41);
  });

  test("the state object is the whole chip", () => {
    edge(9);
    const copy = structuredClone(pic.state);
    pic.acknowledge();
    pic.state = copy;
    expect(pic.acknowledge()).toBe(0x29);
  });
});

import { beforeEach, describe, expect, test } from "vitest";
import { Access } from "../../../engine/cpu/cpu";
import { Ept, EptEntry } from "../../../engine/cpu/vmx/ept";
import { PhysicalMemory } from "../../../engine/memory/physical";

const { READ, WRITE, EXECUTE, PAGE, ACCESSED, DIRTY } = EptEntry;
const ALL = READ | WRITE | EXECUTE;
const WB = 6 << 3;
const PML4 = 0x1000;
const PDPT = 0x2000;
const PD = 0x3000;
const PT = 0x4000;
const GPA = 0x40_3456;
const LINEAR = 0xffff_8000_0000_3456n;

class Exit {
  constructor(
    readonly kind: "violation" | "misconfiguration",
    readonly gpa: number,
    readonly linear: bigint | undefined,
    readonly qualification: number,
  ) {}
}

let memory: PhysicalMemory;
let ept: Ept;

const entry = (table: number, index: number): number => memory.hostOffset(table) + index * 8;
const put = (table: number, index: number, value: bigint | number): void =>
  memory.view.setBigUint64(entry(table, index), BigInt(value), true);
const get = (table: number, index: number): number => Number(memory.view.getBigUint64(entry(table, index), true));

function exitOf(action: () => unknown): Exit {
  try {
    action();
  } catch (exit) {
    if (exit instanceof Exit) return exit;
    throw exit;
  }
  throw new Error("no exit");
}

beforeEach(() => {
  memory = new PhysicalMemory(0x10000);
  memory.add("ram", "ram", 0, 0x10000);
  ept = new Ept(memory, 40, {
    violation: (gpa, linear, qualification) => {
      throw new Exit("violation", gpa, linear, qualification);
    },
    misconfiguration: (gpa, linear) => {
      throw new Exit("misconfiguration", gpa, linear, 0);
    },
    logDirty: () => {},
    physicalAccess: () => {},
  });
  ept.setPointer(PML4 | 0x1e, 0);
  put(PML4, 0, PDPT | ALL);
  put(PDPT, 0, PD | ALL);
  put(PD, 2, PT | ALL);
  put(PT, 3, 0x9000 | ALL | WB);
});

describe("EPT translation (SDM 3C 29.3.2)", () => {
  test("a 4-KByte page translates through four levels", () => {
    expect(ept.translate(GPA, Access.READ, LINEAR, false)).toBe(0x9456);
    expect(ept.pageSize).toBe(4096);
    expect(ept.permissions).toBe(ALL);
  });

  test("a 2-MByte page ends the walk in the page directory", () => {
    put(PD, 2, 0x60_0000 | ALL | WB | PAGE);
    expect(ept.translate(GPA, Access.READ, LINEAR, false)).toBe(0x60_3456);
    expect(ept.pageSize).toBe(0x20_0000);
  });

  test("a 1-GByte page ends the walk in the page-directory-pointer table, also above 4 GBytes", () => {
    put(PDPT, 0, 0x12_4000_0000n | BigInt(ALL | WB | PAGE));
    expect(ept.translate(GPA, Access.READ, LINEAR, false)).toBe(0x12_4040_3456);
    expect(ept.pageSize).toBe(0x4000_0000);
  });

  test("guest-physical addresses beyond 48 bits violate", () => {
    expect(exitOf(() => ept.translate(2 ** 48, Access.READ, LINEAR, false)).kind).toBe("violation");
  });

  test("a probe has no exits and sets no flags", () => {
    ept.setPointer(PML4 | 0x5e, 0);
    expect(ept.probe(GPA)).toBe(0x9456);
    expect(ept.probe(GPA + 0x1000)).toBe(-1);
    expect(get(PT, 3) & ACCESSED).toBe(0);
  });
});

describe("EPT violations (SDM 3C 29.3.3.2, table 28-7)", () => {
  const accesses = [
    { name: "read", access: Access.READ, needs: READ, bit: 1 },
    { name: "write", access: Access.WRITE, needs: WRITE, bit: 2 },
    { name: "fetch", access: Access.EXECUTE, needs: EXECUTE, bit: 4 },
  ];
  for (const rights of [READ, READ | WRITE, READ | EXECUTE, EXECUTE, ALL]) {
    for (const { name, access, needs, bit } of accesses) {
      const allowed = (rights & needs) !== 0;
      test(`a ${name} with rights ${rights.toString(2).padStart(3, "0")} is ${allowed ? "allowed" : "a violation"}`, () => {
        put(PT, 3, 0x9000 | rights | WB);
        const translate = () => ept.translate(GPA, access, LINEAR, false);
        if (allowed) expect(translate()).toBe(0x9456);
        else {
          const exit = exitOf(translate);
          expect(exit).toMatchObject({ kind: "violation", gpa: GPA, linear: LINEAR });
          expect(exit.qualification).toBe(bit | (rights << 3) | 0x180);
        }
      });
    }
  }

  test("rights are those of all levels together", () => {
    put(PML4, 0, PDPT | READ);
    expect(ept.translate(GPA, Access.READ, LINEAR, false)).toBe(0x9456);
    expect(ept.permissions).toBe(READ);
    expect(exitOf(() => ept.translate(GPA, Access.WRITE, LINEAR, false)).qualification).toBe(2 | (READ << 3) | 0x180);
  });

  test("a missing entry allows nothing, at every level", () => {
    for (const [table, index] of [
      [PT, 3],
      [PD, 2],
      [PDPT, 0],
      [PML4, 0],
    ]) {
      put(table, index, 0x9000 & ~7);
      expect(exitOf(() => ept.translate(GPA, Access.READ, LINEAR, false)).qualification).toBe(0x181);
    }
  });

  test("an access of the page walk says so; one without a linear address says that", () => {
    put(PT, 3, 0);
    expect(exitOf(() => ept.translate(GPA, Access.READ, LINEAR, true)).qualification).toBe(0x81);
    expect(exitOf(() => ept.translate(GPA, Access.READ, undefined, true)).qualification).toBe(1);
  });

  test("with accessed and dirty flags a page-walk access is a write as well (3C 29.3.5)", () => {
    ept.setPointer(PML4 | 0x5e, 0);
    put(PT, 3, 0x9000 | READ | WB);
    expect(exitOf(() => ept.translate(GPA, Access.READ, LINEAR, true)).qualification).toBe(3 | (READ << 3) | 0x80);
    expect(ept.translate(GPA, Access.READ, LINEAR, false)).toBe(0x9456);
  });
});

describe("EPT misconfigurations (SDM 3C 29.3.3.1)", () => {
  const bad: readonly (readonly [string, () => void])[] = [
    ["write without read", () => put(PT, 3, 0x9000 | WRITE | WB)],
    ["write without read in a table entry", () => put(PD, 2, PT | WRITE)],
    ["memory type 2", () => put(PT, 3, 0x9000 | ALL | (2 << 3))],
    ["memory type 3", () => put(PT, 3, 0x9000 | ALL | (3 << 3))],
    ["memory type 7", () => put(PT, 3, 0x9000 | ALL | (7 << 3))],
    ["page size in a PML4 entry", () => put(PML4, 0, PDPT | ALL | PAGE)],
    ["reserved bits in a table entry", () => put(PD, 2, PT | ALL | 0x10)],
    ["an unaligned 2-MByte page", () => put(PD, 2, 0x60_1000 | ALL | WB | PAGE)],
    ["an unaligned 1-GByte page", () => put(PDPT, 0, 0x20_0000 | ALL | WB | PAGE)],
    ["an address beyond MAXPHYADDR", () => put(PT, 3, (1n << 40n) | BigInt(0x9000 | ALL | WB))],
    ["a table where no memory is", () => put(PD, 2, 0x7000_0000 | ALL)],
  ];
  for (const [name, spoil] of bad) {
    test(`${name} is a misconfiguration, whatever the access`, () => {
      spoil();
      for (const access of [Access.READ, Access.WRITE, Access.EXECUTE]) {
        expect(exitOf(() => ept.translate(GPA, access, LINEAR, false))).toMatchObject({
          kind: "misconfiguration",
          gpa: GPA,
        });
      }
    });
  }

  test("it is found before a violation of an upper level", () => {
    put(PML4, 0, PDPT | READ);
    put(PT, 3, 0x9000 | ALL | (7 << 3));
    expect(exitOf(() => ept.translate(GPA, Access.WRITE, LINEAR, false)).kind).toBe("misconfiguration");
  });
});

describe("accessed and dirty flags of EPT entries (SDM 3C 29.3.5)", () => {
  beforeEach(() => ept.setPointer(PML4 | 0x5e, 0));

  test("a read sets accessed everywhere and keeps the page from being written unseen", () => {
    ept.translate(GPA, Access.READ, LINEAR, false);
    for (const [table, index] of [
      [PML4, 0],
      [PDPT, 0],
      [PD, 2],
      [PT, 3],
    ]) {
      expect(get(table, index) & (ACCESSED | DIRTY)).toBe(ACCESSED);
    }
    expect(ept.permissions).toBe(READ | EXECUTE);
  });

  test("a write sets dirty in the last entry only", () => {
    ept.translate(GPA, Access.WRITE, LINEAR, false);
    expect(get(PT, 3) & DIRTY).toBe(DIRTY);
    expect(get(PD, 2) & DIRTY).toBe(0);
    expect(ept.permissions).toBe(ALL);
  });

  test("without EPTP bit 6 nothing is written", () => {
    ept.setPointer(PML4 | 0x1e, 0);
    ept.translate(GPA, Access.WRITE, LINEAR, false);
    expect(get(PT, 3) & (ACCESSED | DIRTY)).toBe(0);
  });
});

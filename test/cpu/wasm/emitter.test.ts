import { describe, expect, test } from "vitest";
import { ByteWriter } from "../../../engine/cpu/wasm/bytes";
import { FunctionBuilder, type FunctionType } from "../../../engine/cpu/wasm/function";
import { ModuleBuilder } from "../../../engine/cpu/wasm/module";
import { Op, WasmType } from "../../../engine/cpu/wasm/opcodes";

const { I32, I64 } = WasmType;

function instantiate(type: FunctionType, write: (f: FunctionBuilder) => void, imports: Record<string, unknown> = {}) {
  const module = new ModuleBuilder();
  for (const name of Object.keys(imports)) module.importFunction(name, { parameters: [I32], results: [I32] });
  const f = new FunctionBuilder(type);
  write(f);
  module.export("f", module.addFunction(f));
  const memory = new WebAssembly.Memory({ initial: 1, maximum: 1 });
  const table = new WebAssembly.Table({ element: "anyfunc", initial: 4 });
  const env = { memory, table, ...imports } as WebAssembly.ModuleImports;
  const instance = new WebAssembly.Instance(new WebAssembly.Module(module.toBytes()), { env });
  return { call: instance.exports.f as (...args: unknown[]) => unknown, memory };
}

describe("integers are LEB128 (core specification 5.2.2)", () => {
  const bytesOf = (write: (w: ByteWriter) => void): number[] => {
    const w = new ByteWriter();
    write(w);
    return [...w.toBytes()];
  };

  test.each([
    [0, [0]],
    [127, [0x7f]],
    [128, [0x80, 1]],
    [624485, [0xe5, 0x8e, 0x26]],
    [0xffffffff, [0xff, 0xff, 0xff, 0xff, 0x0f]],
  ])("unsigned %i", (value, bytes) => {
    expect(bytesOf((w) => w.unsigned(value))).toEqual(bytes);
  });

  test.each([
    [0, [0]],
    [63, [0x3f]],
    [64, [0xc0, 0]],
    [-1, [0x7f]],
    [-64, [0x40]],
    [-65, [0xbf, 0x7f]],
    [-123456, [0xc0, 0xbb, 0x78]],
    [-0x80000000, [0x80, 0x80, 0x80, 0x80, 0x78]],
  ])("signed %i, in 32 and in 64 bits", (value, bytes) => {
    expect(bytesOf((w) => w.signed(value))).toEqual(bytes);
    expect(bytesOf((w) => w.signed64(BigInt(value)))).toEqual(bytes);
  });

  test("signed 64-bit values beyond 32 bits", () => {
    expect(bytesOf((w) => w.signed64(-(1n << 63n)))).toEqual([...Array<number>(9).fill(0x80), 0x7f]);
    expect(bytesOf((w) => w.signed64((1n << 63n) - 1n))).toEqual([...Array<number>(9).fill(0xff), 0]);
  });
});

test("constants of every width arrive as written", () => {
  for (const value of [0n, -1n, 63n, 64n, -65n, 1n << 31n, -(1n << 31n), 1n << 62n, -(1n << 63n), 0x123456789abcdefn]) {
    const { call } = instantiate({ parameters: [], results: [I64] }, (f) => f.i64(value));
    expect(call()).toBe(value);
  }
});

test("a loop with its labels: sum of 1 to n", () => {
  const { call } = instantiate({ parameters: [I32], results: [I32] }, (f) => {
    const [n] = f.parameters;
    const sum = f.local(I32);
    const done = f.block();
    const again = f.loop();
    f.get(n);
    f.op(Op.I32_EQZ);
    f.brIf(done);
    f.get(sum);
    f.get(n);
    f.op(Op.I32_ADD);
    f.set(sum);
    f.get(n);
    f.i32(1);
    f.op(Op.I32_SUB);
    f.set(n);
    f.br(again);
    f.end();
    f.end();
    f.get(sum);
  });
  expect(call(100)).toBe(5050);
  expect(call(0)).toBe(0);
});

test("br_table chooses the label, and the last one beyond the table", () => {
  const { call } = instantiate({ parameters: [I32], results: [I32] }, (f) => {
    const outer = f.block();
    const middle = f.block();
    const inner = f.block();
    f.get(f.parameters[0]);
    f.brTable([inner, middle], outer);
    f.end();
    f.i32(10);
    f.return();
    f.end();
    f.i32(20);
    f.return();
    f.end();
    f.i32(30);
  });
  expect([0, 1, 2, 99].map((i) => call(i))).toEqual([10, 20, 30, 30]);
});

test("temporaries are used again after they are released, and never while they are held", () => {
  const f = new FunctionBuilder({ parameters: [I32], results: [] });
  const a = f.temporary(I32);
  const b = f.temporary(I32);
  const wide = f.temporary(I64);
  expect(new Set([0, a.index, b.index, wide.index]).size).toBe(4);
  f.releaseTemporaries();
  expect([a.index, b.index]).toContain(f.temporary(I32).index);
  expect(f.temporary(I64).index).toBe(wide.index);
});

test("code for the start of a function runs first, however late it is written", () => {
  const { call } = instantiate({ parameters: [], results: [I32] }, (f) => {
    const x = f.local(I32);
    f.get(x);
    f.block();
    f.atStart(() => {
      f.i32(7);
      f.set(x);
    });
    f.end();
  });
  expect(call()).toBe(7);
});

test("imports, memory accesses at offsets, memory.copy and memory.fill", () => {
  const { call, memory } = instantiate(
    { parameters: [I32], results: [I32] },
    (f) => {
      f.i32(16);
      f.i64(0x1122334455667788n);
      f.memory(Op.I64_STORE, 4);
      f.i32(40);
      f.i32(20);
      f.i32(8);
      f.memoryCopy();
      f.i32(48);
      f.i32(0xab);
      f.i32(3);
      f.memoryFill();
      f.get(f.parameters[0]);
      f.call(0);
    },
    { twice: (n: number) => 2 * n },
  );
  expect(call(21)).toBe(42);
  const view = new DataView(memory.buffer);
  expect(view.getBigUint64(40, true)).toBe(0x1122334455667788n);
  expect(view.getUint32(48, true)).toBe(0xababab);
});

test("blocks left open and branches to ended blocks are refused", () => {
  const f = new FunctionBuilder({ parameters: [], results: [] });
  const label = f.block();
  expect(() => f.writeBody(new ByteWriter())).toThrow(/not ended/);
  f.end();
  expect(() => f.br(label)).toThrow(/has ended/);
  expect(() => f.end()).toThrow(/without a block/);
});

/** x87 and vector registers in words. */
import { expect, test } from "vitest";
import { extendedText, laneTexts } from "../../debug-adapter/float-format";

const extended = (sign: bigint, exponent: bigint, significand: bigint): bigint =>
  (sign << 79n) | (exponent << 64n) | significand;
const ONE = 1n << 63n;

test("double-extended values are decimal numbers; what is none has its name (SDM 1 4.2.2, table 4-3)", () => {
  const cases: readonly (readonly [bigint, string])[] = [
    [extended(0n, 0x3fffn, ONE), "1"],
    [extended(1n, 0x4000n, ONE | (1n << 62n)), "-3"],
    [extended(0n, 0x4000n, 0xc90f_daa2_2168_c235n), "3.141592653589793"],
    [extended(0n, 0n, 0n), "0"],
    [extended(1n, 0n, 0n), "-0"],
    [extended(0n, 0x7fffn, ONE), "Infinity"],
    [extended(1n, 0x7fffn, ONE), "-Infinity"],
    [extended(0n, 0x7fffn, ONE | (1n << 62n)), "QNaN"],
    [extended(0n, 0x7fffn, ONE | 1n), "SNaN"],
    [extended(0n, 0x7fffn, 1n), "unsupported"],
    [extended(0n, 0x3fffn, 1n), "unsupported"],
    [extended(0n, 0x7ffen, (1n << 64n) - 1n), "1.189731495e+4932"],
    [extended(0n, 0n, 1n), "3.645199532e-4951"],
  ];
  for (const [bits, text] of cases) expect(extendedText(bits), bits.toString(16)).toBe(text);
});

test("a vector register's lanes, the lowest first", () => {
  const texts = Object.fromEntries(
    laneTexts(0xffff_ffff_0000_0001_c000_0000_3f80_0000n, 128).map(({ name, text }) => [name, text]),
  );
  expect(texts.f32).toBe("1, -2, 1.401298464324817e-45, NaN");
  expect(texts.i32).toBe("1065353216, -1073741824, 1, -1");
  expect(texts.u64).toBe("0xc00000003f800000, 0xffffffff00000001");
  expect(texts.u8.startsWith("0x00, 0x00, 0x80, 0x3f")).toBe(true);
});

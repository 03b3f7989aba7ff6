/** Moves of vectors (SDM 1 5.4.1, 5.5.1.1, 5.6.1.1, 14.3). */
import { Simd } from "../../../wasm/opcodes";
import type { Context } from "../context";
import type { Size } from "../expressions";
import type { Family } from "../registry";
import { Form } from "../shape";
import {
  BY_IMMEDIATE,
  half,
  halves,
  immediateOf,
  isMmx,
  setHalves,
  sources,
  unary,
  vector,
  writeInteger,
} from "./operands";

function move(c: Context): void {
  setHalves(c, 0, halves(c, 1));
  c.copyNumber(0, 1);
}

/** MOVD and MOVQ between any two places: what is above the 4 or 8 bytes becomes zero. */
function moveLow(c: Context): void {
  const { size } = c.shape.operands[0];
  const from = c.form(1);
  if (c.form(0) === Form.REGISTER) {
    writeInteger(c, 0, c.lane(size as Size, 0, half(c, 1)));
    return;
  }
  if (from === Form.REGISTER) setHalves(c, 0, [c.letVector(c.lowLane(c.read(1)))]);
  else if (from === Form.MEMORY) setHalves(c, 0, [half(c, 1)]);
  else setHalves(c, 0, [c.letVector(c.lowHalf(half(c, 1)))]);
}

/** MOVSS and MOVSD: from memory they clear the rest of the register, between registers they keep that of the first source. */
function moveScalar(c: Context): void {
  const { size } = c.shape.operands[0];
  if (c.shape.operands.some((o) => o.form === Form.MEMORY)) {
    setHalves(c, 0, [half(c, 1)]);
    return;
  }
  const [a, b] = sources(c);
  setHalves(c, 0, [c.letVector(c.merge(size, b[0], a[0]))]);
}

/** Moves of one half of the register, which keep the other half of the first source. `upper`: the upper one. */
const moveHalf =
  (upper: boolean) =>
  (c: Context): void => {
    if (c.form(0) === Form.MEMORY) {
      const value = half(c, 1);
      setHalves(c, 0, [upper ? c.shuffleLanes(8, value, value, [1, 0]) : value]);
      return;
    }
    const [a, b] = sources(c);
    setHalves(c, 0, [c.letVector(c.shuffleLanes(8, a[0], b[0], upper ? [0, 2] : [2, 1]))]);
  };

const moveLanes =
  (lanes: readonly number[], size: Size) =>
  (c: Context): void => {
    const [a, b] = sources(c);
    setHalves(c, 0, [c.letVector(c.shuffleLanes(size, a[0], b[0], lanes))]);
  };

const duplicate = (size: Size, lanes: readonly number[]) =>
  vector((c) => unary(c, (a) => c.shuffleLanes(size, a, a, lanes)));

/** Sign bits of the lanes, from bit 0 on. */
const moveMask = (op: Simd, lanes: number) =>
  vector((c) => {
    const masks = halves(c, 1).map((v) => c.simdToInteger(op, v));
    let all = masks[0];
    if (masks.length > 1) all = c.or(all, c.shlBy(masks[1], lanes));
    else if (isMmx(c)) all = c.and(all, c.constant(4, 0xff));
    writeInteger(c, 0, all);
  });

/** MASKMOVDQU, MASKMOVQ: bytes whose mask has its top bit set go to DS:rDI. All of the destination must be writable. */
function maskMove(c: Context): void {
  const bytes = c.size(0) === 8 ? 8 : 16;
  const mask = c.letVector(c.simd(Simd.I8X16_SHR_S, half(c, 2), c.constant(4, 7)));
  const value = half(c, 1);
  const memory = c.operand(0, "modify");
  const before = c.letVector(memory.loadVector(bytes));
  memory.storeVector(c.letVector(c.simd(Simd.V128_BITSELECT, value, before, mask)), bytes);
}

/** Registers there are: eight outside 64-bit mode. */
const registers = (c: Context): number[] => Array.from({ length: c.shape.long ? 16 : 8 }, (_, i) => i);

function zeroUpper(c: Context): void {
  for (const register of registers(c)) c.setXmm(register, 1, c.zeroVector());
}

function zeroAll(c: Context): void {
  for (const register of registers(c)) {
    c.setXmm(register, 0, c.zeroVector());
    c.setXmm(register, 1, c.zeroVector());
  }
}

const insert = (size: Size) =>
  vector((c) => {
    const last = c.shape.operands.length - 2;
    const value = c.low(c.read(last), size);
    const before = half(c, last - 1);
    const lanes = isMmx(c) ? 4 : 16 / size;
    setHalves(c, 0, [c.letVector(c.withLane(immediateOf(c) & (lanes - 1), value, before))]);
  }, BY_IMMEDIATE);

const extract = (size: Size) =>
  vector((c) => {
    const lanes = isMmx(c) ? 4 : 16 / size;
    writeInteger(c, 0, c.lane(size, immediateOf(c) & (lanes - 1), half(c, 1)));
  }, BY_IMMEDIATE);

/** INSERTPS: a lane of a register, or memory, goes to a lane; then lanes are cleared by a mask. */
function insertPs(c: Context): void {
  const imm = immediateOf(c);
  const [a, b] = sources(c);
  const fromMemory = c.shape.operands.some((o) => o.form === Form.MEMORY);
  const from = fromMemory ? 0 : imm >> 6;
  const to = (imm >> 4) & 3;
  const inserted = c.letVector(
    c.shuffleLanes(
      4,
      a[0],
      b[0],
      [0, 1, 2, 3].map((lane) => (lane === to ? 4 + from : lane)),
    ),
  );
  const lanes = [0, 1, 2, 3].map((lane) => (imm & (1 << lane) ? 4 : lane));
  setHalves(c, 0, [c.letVector(c.shuffleLanes(4, inserted, c.zeroVector(), lanes))]);
}

const scalar = vector(moveScalar);
const plain = vector(move);
const low = vector(moveLow);

export const vectorMoves: Family = {
  MOVUPS: plain,
  MOVUPD: plain,
  MOVAPS: plain,
  MOVAPD: plain,
  MOVDQA: plain,
  MOVDQU: plain,
  LDDQU: plain,
  MOVNTPS: plain,
  MOVNTPD: plain,
  MOVNTDQ: plain,
  MOVNTDQA: plain,
  MOVNTQ: plain,
  MOVSS: scalar,
  MOVSD: scalar,
  MOVD: low,
  MOVQ: low,
  MOVQ2DQ: low,
  MOVDQ2Q: low,
  MOVLPS: vector(moveHalf(false)),
  MOVLPD: vector(moveHalf(false)),
  MOVHPS: vector(moveHalf(true)),
  MOVHPD: vector(moveHalf(true)),
  MOVHLPS: vector(moveLanes([3, 1], 8)),
  MOVLHPS: vector(moveLanes([0, 2], 8)),
  MOVSLDUP: duplicate(4, [0, 0, 2, 2]),
  MOVSHDUP: duplicate(4, [1, 1, 3, 3]),
  MOVDDUP: duplicate(8, [0, 0]),
  MOVMSKPS: moveMask(Simd.I32X4_BITMASK, 4),
  MOVMSKPD: moveMask(Simd.I64X2_BITMASK, 2),
  PMOVMSKB: moveMask(Simd.I8X16_BITMASK, 16),
  MASKMOVDQU: vector(maskMove, { memoryAddressSize: true, leftToTier0: true }),
  MASKMOVQ: vector(maskMove, { memoryAddressSize: true, leftToTier0: true }),
  VZEROUPPER: vector(zeroUpper, { modeMatters: "always" }),
  VZEROALL: vector(zeroAll, { modeMatters: "always" }),
  PINSRB: insert(1),
  PINSRW: insert(2),
  PINSRD: insert(4),
  PINSRQ: insert(8),
  PEXTRB: extract(1),
  PEXTRW: extract(2),
  PEXTRD: extract(4),
  PEXTRQ: extract(8),
  EXTRACTPS: extract(4),
  INSERTPS: vector(insertPs, BY_IMMEDIATE),
};

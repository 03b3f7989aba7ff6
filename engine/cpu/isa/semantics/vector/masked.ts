/** Moves of chosen elements and gathers (SDM 1 14.1, 14.5; SDM 2C VMASKMOV, VPMASKMOV, VGATHER, VPGATHER). */
import { Simd } from "../../../wasm/opcodes";
import type { Context, Reference } from "../context";
import type { Size, Value } from "../expressions";
import type { Family, Semantics } from "../registry";
import { Form } from "../shape";
import type { Vector } from "../vector-expressions";
import { halves, setHalves, vector } from "./operands";

type ElementSize = 4 | 8;

/** Memory operand's address moved by `by` bytes. */
function element(c: Context, offset: Value, by: number, size: ElementSize, access: "read" | "write"): Reference {
  const at = c.wrapOffset(c.add(offset, c.constant(8, by)));
  return c.reference(c.linear("operand", c.let(at), size, access), size, access, "operand");
}

/** Whether the mask chooses element `lane` of a half. */
const chosen = (c: Context, size: ElementSize, mask: Vector, lane: number): Value =>
  c.isNegative(c.lane(size, lane, mask));

/** VMASKMOV and VPMASKMOV: elements that are not chosen are neither read (they become 0) nor written, and cannot fault. */
function maskedMove(size: ElementSize): Semantics {
  return vector(
    (c) => {
      const store = c.form(0) === Form.MEMORY;
      const masks = halves(c, 1);
      const offset = c.let(c.offset());
      const lanes = 16 / size;
      if (!store) {
        const results = masks.map((mask, h) => {
          const result = c.mutableVector(c.zeroVector());
          for (let lane = 0; lane < lanes; lane++) {
            c.if(chosen(c, size, mask, lane), () => {
              const memory = element(c, offset, h * 16 + lane * size, size, "read");
              c.assignVector(result, c.withLane(lane, c.let(memory.load(size)), result));
            });
          }
          return result;
        });
        setHalves(c, 0, results);
        return;
      }
      // All chosen places are checked before the first is written.
      const values = halves(c, 2);
      for (const pass of ["check", "store"] as const) {
        for (const [h, mask] of masks.entries()) {
          for (let lane = 0; lane < lanes; lane++) {
            c.if(chosen(c, size, mask, lane), () => {
              const memory = element(c, offset, h * 16 + lane * size, size, "write");
              if (pass === "store") memory.store(c.let(c.lane(size, lane, values[h])));
            });
          }
        }
      }
    },
    { leftToTier0: true, memoryAddressSize: true },
  );
}

/**
 * Gathers: an element is loaded where the mask chooses it, and its mask cleared. An element that faults leaves what came
 * before it done, so that the instruction goes on from there when it is run again.
 */
function gather(indexSize: ElementSize, size: ElementSize): Semantics {
  return vector(
    (c) => {
      const vectorBytes = c.shape.vex;
      // As many elements as the longer of indices and data has room for.
      const count = vectorBytes / Math.max(indexSize, size);
      const dataHalves = (count * size) / 16 > 1 ? 2 : 1;
      const indexHalves = (count * indexSize) / 16 > 1 ? 2 : 1;
      const indices = ([0, 1] as const).slice(0, indexHalves).map((h) => c.letVector(c.vsibIndices(h)));
      const sign = size === 4 ? Simd.I32X4_SHR_S : Simd.I64X2_SHR_S;
      // The mask becomes all ones or zeros for each element, whatever happens then.
      const masks = ([0, 1] as const).slice(0, dataHalves).map((h) => {
        const mask = c.mutableVector(c.simd(sign, c.vectorOperand(2, h), c.constant(4, size * 8 - 1)));
        return mask;
      });
      const data = ([0, 1] as const).slice(0, dataHalves).map((h) => c.mutableVector(c.vectorOperand(0, h)));
      const perHalf = 16 / size;
      for (let n = 0; n < count; n++) {
        const h = Math.floor(n / perHalf) as 0 | 1;
        const lane = n % perHalf;
        c.if(chosen(c, size, masks[h], lane), () => {
          const perIndexHalf = 16 / indexSize;
          const index = c.lane(indexSize as Size, n % perIndexHalf, indices[Math.floor(n / perIndexHalf)]);
          const offset = c.let(c.vsibOffset(c.let(c.signExtend(index, 8))));
          const linear = c.linear("operand", offset, size, "read");
          const value = c.let(c.reference(linear, size, "read", "operand").load(size));
          c.assignVector(data[h], c.withLane(lane, value, data[h]));
          c.assignVector(masks[h], c.withLane(lane, c.constant(size, 0), masks[h]));
          c.setVectorOperand(0, h, data[h]);
          c.setVectorOperand(2, h, masks[h]);
        });
      }
      // Where nothing was left to do the mask is cleared all the same, and with it what is above the elements.
      const finish = (index: number, values: readonly Vector[]): void => {
        const low = count * size < 16 ? c.lowHalf(values[0]) : values[0];
        c.setVectorOperand(index, 0, c.letVector(low));
        c.setVectorOperand(index, 1, values[1] ?? c.zeroVector());
      };
      finish(0, data);
      finish(
        2,
        masks.map(() => c.zeroVector()),
      );
    },
    { leftToTier0: true, memoryAddressSize: true },
  );
}

export const maskedMoves: Family = {
  VMASKMOVPS: maskedMove(4),
  VMASKMOVPD: maskedMove(8),
  VPMASKMOVD: maskedMove(4),
  VPMASKMOVQ: maskedMove(8),
  VPGATHERDD: gather(4, 4),
  VPGATHERDQ: gather(4, 8),
  VPGATHERQD: gather(8, 4),
  VPGATHERQQ: gather(8, 8),
  VGATHERDPS: gather(4, 4),
  VGATHERDPD: gather(4, 8),
  VGATHERQPS: gather(8, 4),
  VGATHERQPD: gather(8, 8),
};

/** Vector instructions whose results TypeScript computes (functions/): SDM 1 5.10, 5.11, 5.12, 5.19. */
import { Rflags } from "../../../state";
import type { Context } from "../context";
import type { Size, Value } from "../expressions";
import type { Family, Semantics } from "../registry";
import type { ShapeNeeds } from "../shape";
import type { Vector } from "../vector-expressions";
import { functionNumber } from "./functions";
import { BY_IMMEDIATE, half, halves, immediateOf, maskedSources, setHalves, sources, vector } from "./operands";
import { results, storeSources } from "./slow-float";

/** Calls a function for its vector. */
function compute(c: Context, name: string, operands: readonly (readonly Vector[])[], immediate: number): void {
  const count = operands[0].length;
  storeSources(c, operands);
  c.let(c.compute(functionNumber(name), count * 16, immediate));
  setHalves(
    c,
    0,
    results(c, count).map((v) => c.letVector(v)),
  );
}

const binary = (name: string, needs: ShapeNeeds = {}): Semantics =>
  vector((c) => compute(c, name, sources(c), needs.immediateValue ? immediateOf(c) : 0), needs);

const unary = (name: string, needs: ShapeNeeds = {}): Semantics =>
  vector((c) => {
    const source = halves(c, 1);
    compute(c, name, [source, source], needs.immediateValue ? immediateOf(c) : 0);
  }, needs);

/** With XMM0 as third source. */
const withThird = (name: string): Semantics => vector((c) => compute(c, name, maskedSources(c), 0));

/** A length in eAX or eDX (rAX or rDX with REX.W), sign-extended. */
const length = (c: Context, register: number): Value =>
  c.signExtend(c.gpr(register, (c.shape.operandSize === 8 ? 8 : 4) as Size), 8);

/** PCMPxSTRx: index to ECX or mask to XMM0; CF, ZF, SF, OF by the comparison, AF and PF cleared. */
function strings(name: string): Semantics {
  const explicit = name.includes("EST");
  const toIndex = name.endsWith("I");
  return vector(
    (c) => {
      const operands = [[half(c, 0)], [half(c, 1)]];
      if (explicit) operands.push([c.letVector(c.withLane(1, length(c, 2), c.lowLane(length(c, 0))))]);
      storeSources(c, operands);
      const answer = c.let(c.compute(functionNumber(name), 16, immediateOf(c)));
      if (toIndex) c.setGpr(1, c.let(c.shrBy(answer, 16)));
      else {
        c.setXmm(0, 0, results(c, 1)[0]);
        if (c.shape.vex) c.setXmm(0, 1, c.zeroVector());
      }
      const overflow = c.let(c.and(c.shrBy(answer, 31 - Math.clz32(Rflags.OF)), c.constant(4, 1)));
      c.setFlagBits(c.and(answer, c.constant(4, Rflags.CF | Rflags.ZF | Rflags.SF)), overflow);
    },
    { ...BY_IMMEDIATE, operandSize: explicit },
  );
}

export const computedVectors: Family = {
  AESENC: binary("AESENC"),
  AESENCLAST: binary("AESENCLAST"),
  AESDEC: binary("AESDEC"),
  AESDECLAST: binary("AESDECLAST"),
  AESIMC: unary("AESIMC"),
  AESKEYGENASSIST: unary("AESKEYGENASSIST", BY_IMMEDIATE),
  PCLMULQDQ: binary("PCLMULQDQ", BY_IMMEDIATE),
  SHA1RNDS4: binary("SHA1RNDS4", BY_IMMEDIATE),
  SHA1NEXTE: binary("SHA1NEXTE"),
  SHA1MSG1: binary("SHA1MSG1"),
  SHA1MSG2: binary("SHA1MSG2"),
  SHA256RNDS2: withThird("SHA256RNDS2"),
  SHA256MSG1: binary("SHA256MSG1"),
  SHA256MSG2: binary("SHA256MSG2"),
  MPSADBW: binary("MPSADBW", BY_IMMEDIATE),
  PHMINPOSUW: unary("PHMINPOSUW"),
  PCMPESTRI: strings("PCMPESTRI"),
  PCMPESTRM: strings("PCMPESTRM"),
  PCMPISTRI: strings("PCMPISTRI"),
  PCMPISTRM: strings("PCMPISTRM"),
};

/**
 * The instruction decoder (SDM 2A chapter 2): bytes to Instruction by the opcode table.
 *
 * Nothing is allocated per call; between the phases of one call the position and the collected prefixes stand in module
 * variables.
 */
import { Seg } from "../state";
import {
  type Decode,
  DecodeError,
  type Instruction,
  NO_REG,
  type Operand,
  OperandKind,
  Rep,
  RIP_BASE,
} from "./instruction";
import { OPCODES, OpcodeMap, type OperandCode, type OperandType } from "./opcodes";
import {
  Column,
  direct,
  MODES,
  VARIANT_SIZE,
  VEX_VARIANT_SIZE,
  VEX_WITHOUT_MODRM,
  variants,
  vexDirect,
  vexVariants,
  withModrm,
} from "./row-selection";

/** Longest instruction, bytes (SDM 2A 2.3.11). */
export const MAX_INSTRUCTION_LENGTH = 15;

/** Opcode 90 with REX.B is an exchange with R8, not a NOP (SDM 2B, NOP). */
const XCHG_90 = OPCODES.findIndex((row) => row.mnemonic === "XCHG" && row.opcode === 0x90 && row.span === 8);

// biome-ignore format: operand codes as small numbers, for the switch of the hot path
const CODE_NUMBER: Readonly<Record<OperandCode, number>> = {
  A: 1, C: 2, D: 3, E: 4, G: 5, I: 6, J: 7, M: 8, O: 9, R: 10, S: 11, X: 12, Y: 13, Z: 14,
  AL: 15, AH: 16, AX: 15, CL: 17, DX: 18, rAX: 15, rDX: 18, eAX: 15,
  ES: 20, CS: 21, SS: 22, DS: 23, FS: 24, GS: 25, "1": 26,
  V: 27, W: 28, U: 29, H: 30, L: 31, P: 32, Q: 33, N: 34, B: 35, XMM0: 36, DIq: 37, DIdq: 37,
};
// biome-ignore format: operand types likewise
const TYPE_NUMBER: Readonly<Record<OperandType, number>> = {
  "": 0, b: 1, w: 2, d: 3, q: 4, dq: 5, v: 6, z: 7, y: 8, p: 9, s: 10, a: 11, ub: 12, uw: 13, vw: 14,
  qq: 15, x: 16, x2: 17, x4: 18, x8: 19, yb: 20, yw: 21, yd: 22, t: 23,
};
const T = TYPE_NUMBER;
const K = CODE_NUMBER;

const MAX_OPERANDS = 4;
/** Per row: number of operands, then per operand its code and its type. */
const operandCount = new Uint8Array(OPCODES.length);
const operandCode = new Uint8Array(OPCODES.length * MAX_OPERANDS);
const operandType = new Uint8Array(OPCODES.length * MAX_OPERANDS);
/** Per row: bit 0 LOCK allowed, bit 1 d64, bit 2 f64, bit 3 VSIB, bit 4 VEX.vvvv is an operand, bit 5 VEX.L is ignored. */
const rowFlags = new Uint8Array(OPCODES.length);
const LOCKABLE = 1;
const D64 = 2;
const F64 = 4;
const VSIB = 8;
const VVVV = 16;
const LIG = 32;
for (const row of OPCODES) {
  operandCount[row.index] = row.operands.length;
  row.operands.forEach((operand, i) => {
    operandCode[row.index * MAX_OPERANDS + i] = CODE_NUMBER[operand.code];
    operandType[row.index * MAX_OPERANDS + i] = TYPE_NUMBER[operand.type];
  });
  let flags = (row.lock ? LOCKABLE : 0) | (row.size64 === "d64" ? D64 : 0) | (row.size64 === "f64" ? F64 : 0);
  if (row.vsib) flags |= VSIB;
  if (row.operands.some((o) => o.code === "H" || o.code === "B")) flags |= VVVV;
  if (row.l === "any" && !row.operands.some((o) => o.type.startsWith("x"))) flags |= LIG;
  rowFlags[row.index] = flags;
}

/** Vector length of the instruction being decoded, bytes. */
let vectorLength = 16;

/** Bytes of an operand type at an operand size; 0 where the mnemonic defines it. */
function sizeOf(type: number, operandSize: number, long: boolean, register: boolean): number {
  switch (type) {
    case T.b:
    case T.ub:
      return 1;
    case T.w:
    case T.uw:
      return 2;
    case T.d:
      return 4;
    case T.q:
      return 8;
    case T.t:
      return 10;
    case T.dq:
      return 16;
    case T.v:
      return operandSize;
    case T.z:
      return operandSize === 2 ? 2 : 4;
    case T.y:
      return operandSize === 8 ? 8 : 4;
    case T.p:
      return operandSize + 2;
    case T.s:
      return long ? 10 : 6;
    case T.a:
      return operandSize * 2;
    case T.vw:
      return register ? operandSize : 2;
    case T.qq:
      return 32;
    case T.x:
      return vectorLength;
    case T.x2:
      return vectorLength >> 1;
    case T.x4:
      return vectorLength >> 2;
    case T.x8:
      return vectorLength >> 3;
    case T.yb:
      return register ? (operandSize === 8 ? 8 : 4) : 1;
    case T.yw:
      return register ? (operandSize === 8 ? 8 : 4) : 2;
    case T.yd:
      return register && operandSize === 8 ? 8 : 4;
    default:
      return 0;
  }
}

/** Base and index by ModRM.rm of 16-bit addressing (SDM 2A table 2-1). */
const BASE16 = [3, 3, 5, 5, NO_REG, NO_REG, 5, 3] as const;
const INDEX16 = [6, 7, 6, 7, 6, 7, NO_REG, NO_REG] as const;

let source: Uint8Array = new Uint8Array(0);
let position = 0;
/** First byte that may not be read: the caller's end, or 15 bytes from the start if that is nearer. */
let limit = 0;

function i8(): number {
  return (source[position++] << 24) >> 24;
}
function u16(): number {
  const value = source[position] | (source[position + 1] << 8);
  position += 2;
  return value;
}
function i32(): number {
  const at = position;
  position += 4;
  return source[at] | (source[at + 1] << 8) | (source[at + 2] << 16) | (source[at + 3] << 24);
}

/** Reads SIB and displacement. Returns whether all their bytes were there. */
function readAddress(modrm: number, rex: number, override: number, vsib: boolean, into: Instruction): boolean {
  const mod = modrm >> 6;
  const rm = modrm & 7;
  let base: number;
  let index: number = NO_REG;
  let scale = 0;
  let displacementSize = mod === 1 ? 1 : 0;
  if (into.addressSize === 2) {
    base = BASE16[rm];
    index = INDEX16[rm];
    // SI and DI alone are base registers as far as anyone who reads the instruction cares.
    if (base === NO_REG) {
      base = index;
      index = NO_REG;
    }
    if (mod === 2) displacementSize = 2;
    else if (mod === 0 && rm === 6) {
      base = NO_REG;
      displacementSize = 2;
    }
  } else {
    let low = rm;
    base = rm | ((rex & 1) << 3);
    if (mod === 2) displacementSize = 4;
    if (rm === 4) {
      if (position >= limit) return false;
      const sib = source[position++];
      scale = sib >> 6;
      index = ((sib >> 3) & 7) | ((rex & 2) << 2);
      if (index === 4 && !vsib) {
        index = NO_REG;
        scale = 0;
      }
      low = sib & 7;
      base = low | ((rex & 1) << 3);
    }
    if (mod === 0 && low === 5) {
      displacementSize = 4;
      base = rm === 5 && longMode ? RIP_BASE : NO_REG;
    }
  }
  if (position + displacementSize > limit) return false;
  let displacement = 0;
  if (displacementSize === 1) displacement = i8();
  else if (displacementSize === 2) displacement = (u16() << 16) >> 16;
  else if (displacementSize === 4) displacement = i32();
  into.base = base;
  into.index = index;
  into.scale = scale;
  into.displacement = displacement;
  into.displacementHigh = displacement >> 31;
  into.segment = override >= 0 ? override : base === 4 || base === 5 ? Seg.SS : Seg.DS;
  return true;
}

let longMode = false;

/** Reads an immediate of an operand type into `immediate`. Returns whether its bytes were there. */
function readImmediate(type: number, operandSize: number, into: Instruction): boolean {
  const size =
    type === T.b || type === T.ub ? 1 : type === T.uw ? 2 : type === T.z ? Math.min(operandSize, 4) : operandSize;
  if (position + size > limit) return false;
  let low: number;
  if (size === 1) low = type === T.ub ? source[position++] : i8();
  else if (size === 2) low = type === T.uw ? u16() : (u16() << 16) >> 16;
  else low = i32();
  into.immediate = low;
  into.immediateHigh = size === 8 ? i32() : low >> 31;
  return true;
}

function setRegister(operand: Operand, kind: OperandKind, reg: number, size: number): void {
  operand.kind = kind;
  operand.reg = reg;
  operand.size = size;
}

/** A general register as ModRM or the opcode names it: without REX, byte registers 4..7 are AH, CH, DH, BH. */
function setGeneral(operand: Operand, reg: number, size: number, rex: number): void {
  operand.kind = OperandKind.GPR;
  operand.size = size;
  if (size === 1 && rex === 0 && reg >= 4) {
    operand.reg = reg - 4;
    operand.high = true;
  } else operand.reg = reg;
}

/** Column of VEX.pp: none, 66, F3, F2 (SDM 2A 2.3.6.2). */
const VEX_PP = [Column.NONE, Column.P66, Column.PF3, Column.PF2] as const;

/** Why the bytes did not suffice: the instruction is too long, or the caller has to fetch more. */
function shortage(at: number): number {
  return limit === at + MAX_INSTRUCTION_LENGTH ? DecodeError.TOO_LONG : DecodeError.MORE;
}

export const decode: Decode = (bytes, at, end, width, into) => {
  source = bytes;
  position = at;
  limit = Math.min(end, at + MAX_INSTRUCTION_LENGTH);
  longMode = width === 64;
  vectorLength = 16;

  // Prefixes, in any order and number; a REX counts only directly before the opcode.
  let operandPrefix = false;
  let addressPrefix = false;
  let lock = false;
  let rep: Rep = Rep.NONE;
  let override = -1;
  let rex = 0;
  let byte: number;
  prefixes: for (;;) {
    if (position >= limit) return shortage(at);
    byte = source[position++];
    switch (byte) {
      case 0x66:
        operandPrefix = true;
        break;
      case 0x67:
        addressPrefix = true;
        break;
      case 0xf0:
        lock = true;
        break;
      case 0xf2:
        rep = Rep.REPNE;
        break;
      case 0xf3:
        rep = Rep.REPE;
        break;
      case 0x26:
      case 0x2e:
      case 0x36:
      case 0x3e:
        // In 64-bit mode these four mean nothing, not even that an earlier FS or GS is forgotten (SDM 2A 2.1.1).
        if (!longMode) override = (byte >> 3) & 3;
        break;
      case 0x64:
        override = Seg.FS;
        break;
      case 0x65:
        override = Seg.GS;
        break;
      default:
        if (!longMode || (byte & 0xf0) !== 0x40) break prefixes;
        rex = byte;
        continue;
    }
    rex = 0;
  }

  let key: number = byte;
  let vex = 0;
  let vvvv = 0;
  if ((byte & 0xfe) === 0xc4) {
    // C4 and C5 are LES and LDS where the next byte, taken as ModRM, names memory; in 64-bit mode there are none.
    if (position >= limit) return shortage(at);
    vex = longMode || source[position] >= 0xc0 ? byte : 0;
  }
  if (vex !== 0) {
    // Not together with these (SDM 2A 2.3.2 to 2.3.4).
    if (operandPrefix || lock || rep !== Rep.NONE || rex !== 0) return DecodeError.UD;
    let bits = source[position++];
    // R, X and B stand inverted, as vvvv does. Outside 64-bit mode there are eight registers.
    rex = ~bits & 0x80 ? 4 : 0;
    key = OpcodeMap.TWO << 8;
    if (byte === 0xc4) {
      rex |= (~bits & 0x60) >> 5;
      key = (bits & 0x1f) << 8;
      if (key === 0 || key > OpcodeMap.THREE_3A << 8) return DecodeError.UD;
      if (position >= limit) return shortage(at);
      bits = source[position++];
      rex |= (bits & 0x80) >> 4;
    }
    if (!longMode) rex &= 8;
    vvvv = (~bits >> 3) & 15;
    vectorLength = bits & 4 ? 32 : 16;
    if (position >= limit) return shortage(at);
    byte = source[position++];
    key = ((key | byte) << 2) | VEX_PP[bits & 3];
  } else if (byte === 0x0f) {
    if (position >= limit) return shortage(at);
    byte = source[position++];
    key = (OpcodeMap.TWO << 8) | byte;
    if (byte === 0x38 || byte === 0x3a) {
      if (position >= limit) return shortage(at);
      key = (byte === 0x38 ? OpcodeMap.THREE_38 : OpcodeMap.THREE_3A) << 8;
      byte = source[position++];
      key |= byte;
    }
  }

  let row = vex !== 0 ? vexDirect[key] : direct[key];
  let modrm = -1;
  if (vex !== 0 ? row <= -2 && key >> 2 !== VEX_WITHOUT_MODRM : withModrm[key] !== 0) {
    if (position >= limit) return shortage(at);
    modrm = source[position++];
  }
  if (vex !== 0) {
    if (row <= -2) {
      const selector = modrm < 0 ? 0 : ((modrm >> 3) & 7) | (modrm >= 0xc0 ? 8 : 0);
      const variant = (longMode ? 64 : 0) | ((rex & 8) << 2) | (vectorLength & 32 ? 16 : 0) | selector;
      row = vexVariants[(-2 - row) * VEX_VARIANT_SIZE + variant];
    }
  } else if (row <= -2) {
    const column =
      rep === Rep.REPE ? Column.PF3 : rep === Rep.REPNE ? Column.PF2 : operandPrefix ? Column.P66 : Column.NONE;
    const mode = !longMode ? 0 : rex & 8 ? 2 : 1;
    row = variants[(-2 - row) * VARIANT_SIZE + (column * MODES + mode) * 256 + Math.max(modrm, 0)];
    if (key === 0x90 && rex & 1) row = XCHG_90;
  }
  if (row < 0) return DecodeError.UD;

  const flags = rowFlags[row];
  let operandSize: number;
  if (vex !== 0) {
    if (!(flags & VVVV)) {
      if (vvvv !== 0) return DecodeError.UD;
    } else if (!longMode) vvvv &= 7;
    if (flags & LIG) vectorLength = 16;
    operandSize = longMode && rex & 8 ? 8 : 4;
  } else if (longMode) {
    operandSize = rex & 8 || flags & F64 ? 8 : operandPrefix ? 2 : flags & D64 ? 8 : 4;
  } else operandSize = (width === 16) === operandPrefix ? 4 : 2;

  into.opcode = row;
  into.operandSize = operandSize;
  into.addressSize = longMode ? (addressPrefix ? 4 : 8) : (width === 16) === addressPrefix ? 4 : 2;
  into.base = NO_REG;
  into.index = NO_REG;
  into.scale = 0;
  into.displacement = 0;
  into.displacementHigh = 0;
  into.segment = override >= 0 ? override : Seg.DS;
  into.segmentOverride = override >= 0;
  into.immediate = 0;
  into.immediateHigh = 0;
  into.immediate2 = 0;
  into.lock = lock;
  into.rep = rep;
  into.condition = byte & 15;
  into.rex = rex;
  into.modrm = modrm;
  into.vex = vex === 0 ? 0 : vectorLength;
  into.vsib = false;

  let addressRead = false;
  let immediateRead = false;
  const count = operandCount[row];
  for (let i = 0; i < MAX_OPERANDS; i++) {
    const operand = into.operands[i];
    operand.reg = 0;
    operand.high = false;
    if (i >= count) {
      operand.kind = OperandKind.NONE;
      operand.size = 0;
      continue;
    }
    const type = operandType[row * MAX_OPERANDS + i];
    const code = operandCode[row * MAX_OPERANDS + i];
    switch (code) {
      case K.E:
      case K.M:
        if (modrm < 0xc0) {
          if (!addressRead && !readAddress(modrm, rex, override, (flags & VSIB) !== 0, into)) return shortage(at);
          addressRead = true;
          operand.kind = OperandKind.MEMORY;
          operand.size = sizeOf(type, operandSize, longMode, false);
        } else setGeneral(operand, (modrm & 7) | ((rex & 1) << 3), sizeOf(type, operandSize, longMode, true), rex);
        break;
      case K.V:
        setRegister(operand, OperandKind.VECTOR, ((modrm >> 3) & 7) | ((rex & 4) << 1), sizeOf(type, 0, false, true));
        break;
      case K.W:
        if (modrm < 0xc0) {
          if (!addressRead && !readAddress(modrm, rex, override, false, into)) return shortage(at);
          addressRead = true;
          operand.kind = OperandKind.MEMORY;
          operand.size = sizeOf(type, 0, false, false);
        } else setRegister(operand, OperandKind.VECTOR, (modrm & 7) | ((rex & 1) << 3), sizeOf(type, 0, false, true));
        break;
      case K.U:
        setRegister(operand, OperandKind.VECTOR, (modrm & 7) | ((rex & 1) << 3), sizeOf(type, 0, false, true));
        break;
      case K.H:
        setRegister(operand, OperandKind.VECTOR, vvvv, sizeOf(type, 0, false, true));
        break;
      case K.L:
        if (position >= limit) return shortage(at);
        setRegister(
          operand,
          OperandKind.VECTOR,
          (source[position++] >> 4) & (longMode ? 15 : 7),
          sizeOf(type, 0, false, true),
        );
        break;
      case K.P:
        setRegister(operand, OperandKind.MMX, (modrm >> 3) & 7, sizeOf(type, 0, false, true));
        break;
      case K.Q:
        if (modrm < 0xc0) {
          if (!addressRead && !readAddress(modrm, rex, override, false, into)) return shortage(at);
          addressRead = true;
          operand.kind = OperandKind.MEMORY;
          operand.size = sizeOf(type, 0, false, false);
        } else setRegister(operand, OperandKind.MMX, modrm & 7, sizeOf(type, 0, false, true));
        break;
      case K.N:
        setRegister(operand, OperandKind.MMX, modrm & 7, sizeOf(type, 0, false, true));
        break;
      case K.B:
        setRegister(operand, OperandKind.GPR, vvvv, sizeOf(type, operandSize, longMode, true));
        break;
      case K.DIq:
        operand.kind = OperandKind.MEMORY;
        operand.size = sizeOf(type, 0, false, false);
        into.base = 7;
        break;
      case K.XMM0:
        setRegister(operand, OperandKind.VECTOR, 0, vectorLength);
        break;
      case K.G:
        setGeneral(operand, ((modrm >> 3) & 7) | ((rex & 4) << 1), sizeOf(type, operandSize, longMode, true), rex);
        break;
      case K.R:
        setGeneral(operand, (modrm & 7) | ((rex & 1) << 3), sizeOf(type, operandSize, longMode, true), rex);
        break;
      case K.Z:
        setGeneral(operand, (byte & 7) | ((rex & 1) << 3), sizeOf(type, operandSize, longMode, true), rex);
        break;
      case K.I:
        operand.kind = OperandKind.IMMEDIATE;
        operand.size = sizeOf(type, operandSize, longMode, false);
        if (immediateRead) {
          // ENTER's second immediate is its only use: one byte.
          if (position >= limit) return shortage(at);
          into.immediate2 = source[position++];
        } else {
          // The address stands before the immediate, whichever operand comes first.
          if (!readImmediate(type, operandSize, into)) return shortage(at);
          immediateRead = true;
        }
        break;
      case K.J:
        operand.kind = OperandKind.RELATIVE;
        operand.size = sizeOf(type, operandSize, longMode, false);
        if (!readImmediate(type, operandSize, into)) return shortage(at);
        break;
      case K.A:
        operand.kind = OperandKind.FAR;
        operand.size = operandSize + 2;
        if (position + operandSize + 2 > limit) return shortage(at);
        into.immediate = operandSize === 2 ? u16() : i32();
        into.immediateHigh = into.immediate >> 31;
        into.immediate2 = u16();
        break;
      case K.O:
        operand.kind = OperandKind.MEMORY;
        operand.size = sizeOf(type, operandSize, longMode, false);
        if (position + into.addressSize > limit) return shortage(at);
        into.displacement = into.addressSize === 2 ? u16() : i32();
        into.displacementHigh = into.addressSize === 8 ? i32() : into.displacement >> 31;
        break;
      case K.X:
        operand.kind = OperandKind.MEMORY;
        operand.size = sizeOf(type, operandSize, longMode, false);
        into.base = 6;
        into.segment = override >= 0 ? override : Seg.DS;
        break;
      case K.Y:
        operand.kind = OperandKind.MEMORY;
        operand.size = sizeOf(type, operandSize, longMode, false);
        // With an X operand beside it, base and segment describe that one.
        if (into.base !== 6) {
          into.base = 7;
          into.segment = Seg.ES;
        }
        break;
      case K.S: {
        const reg = (modrm >> 3) & 7;
        // There are no segment registers 6 and 7, and CS cannot be loaded (SDM 2B, MOV).
        if (reg > 5 || (reg === Seg.CS && i === 0)) return DecodeError.UD;
        setRegister(operand, OperandKind.SEGMENT, reg, 2);
        break;
      }
      case K.C: {
        const reg = ((modrm >> 3) & 7) | ((rex & 4) << 1);
        if (reg !== 0 && reg !== 2 && reg !== 3 && reg !== 4 && reg !== 8) return DecodeError.UD;
        setRegister(operand, OperandKind.CONTROL, reg, operandSize === 8 ? 8 : 4);
        break;
      }
      case K.D: {
        const reg = ((modrm >> 3) & 7) | ((rex & 4) << 1);
        if (reg > 7) return DecodeError.UD;
        setRegister(operand, OperandKind.DEBUG, reg, operandSize === 8 ? 8 : 4);
        break;
      }
      case K.AL:
        setRegister(operand, OperandKind.GPR, 0, sizeOf(type, operandSize, longMode, true));
        break;
      case K.AH:
        setRegister(operand, OperandKind.GPR, 0, 1);
        operand.high = true;
        break;
      case K.CL:
        setRegister(operand, OperandKind.GPR, 1, 1);
        break;
      case K.DX:
        setRegister(operand, OperandKind.GPR, 2, sizeOf(type, operandSize, longMode, true));
        break;
      case K["1"]:
        operand.kind = OperandKind.IMMEDIATE;
        operand.size = 1;
        into.immediate = 1;
        break;
      default:
        setRegister(operand, OperandKind.SEGMENT, code - K.ES, operandSize);
        break;
    }
  }

  if (flags & VSIB) {
    // Destination, index and mask must differ, and there must be an index: a SIB byte (SDM 2A 2.3.12).
    const destination = into.operands[0].reg;
    if ((modrm & 7) !== 4 || into.addressSize === 2) return DecodeError.UD;
    if (destination === into.index || destination === vvvv || into.index === vvvv) return DecodeError.UD;
    into.vsib = true;
  }
  if (lock && !(flags & LOCKABLE && into.operands[0].kind === OperandKind.MEMORY)) return DecodeError.UD;
  into.length = position - at;
  return into.length;
};

/** iced-x86 as a second opinion on the decoder: both read the same bytes, `compare` says where they differ. */
import {
  ConditionCode,
  CpuidFeature,
  Decoder,
  DecoderOptions,
  EncodingKind,
  Instruction as IcedInstruction,
  Mnemonic as IcedMnemonic,
  MemorySizeExt,
  OpKind,
  Register,
} from "iced-x86";
import { decode } from "../../../engine/cpu/isa/decoder";
import { type Instruction, NO_REG, newInstruction, OperandKind, RIP_BASE } from "../../../engine/cpu/isa/instruction";
import { type Mnemonic, OPCODES, type OpcodeRow } from "../../../engine/cpu/isa/opcodes";
import type { Feature } from "../../../engine/cpu/models/model";
import { Seg } from "../../../engine/cpu/state";

export type Width = 16 | 32 | 64;

/** Bytes from one instruction's start to the next in a batch: 15, and one that neither decoder may look at. */
export const STRIDE = 16;

/** Mnemonics of iced that stand for one of ours at several sizes or forms. */
// biome-ignore format: a table
const SAME: Readonly<Record<string, Mnemonic>> = {
  CWDE: "CBW", CDQE: "CBW", CDQ: "CWD", CQO: "CWD", JECXZ: "JCXZ", JRCXZ: "JCXZ", RETF: "RET_FAR", XLATB: "XLAT",
  PUSHFD: "PUSHF", PUSHFQ: "PUSHF", POPFD: "POPF", POPFQ: "POPF", PUSHAD: "PUSHA", POPAD: "POPA", IRETD: "IRET",
  IRETQ: "IRET", SYSRETQ: "SYSRET", SYSEXITQ: "SYSEXIT", SAL: "SHL", RESERVEDNOP: "NOP", FXSAVE64: "FXSAVE",
  FXRSTOR64: "FXRSTOR", XSAVE64: "XSAVE", XRSTOR64: "XRSTOR", XSAVEOPT64: "XSAVEOPT", XSAVEC64: "XSAVEC",
  XSAVES64: "XSAVES", XRSTORS64: "XRSTORS", WAIT: "FWAIT", CLDEMOTE: "NOP", PCMPESTRM64: "PCMPESTRM", PCMPESTRI64: "PCMPESTRI",
  VPCMPESTRM64: "PCMPESTRM", VPCMPESTRI64: "PCMPESTRI",
  RDSSPD: "NOP", RDSSPQ: "NOP",
};

const KNOWN: ReadonlySet<string> = new Set(OPCODES.map((row) => row.mnemonic));

const STRING_NAME = /^(MOVS|CMPS|STOS|LODS|SCAS|INS|OUTS)[BWDQ]$/;

const mnemonicNames = new Map<number, string>();
for (const [name, value] of Object.entries(IcedMnemonic)) {
  if (typeof value === "number") mnemonicNames.set(value, name.toUpperCase());
}

/** Our mnemonic for what iced decoded. */
export function mnemonicOf(iced: IcedInstruction): string {
  let name = mnemonicNames.get(iced.mnemonic) ?? "?";
  // The table names the VEX form of an instruction as the form without.
  if (iced.encoding === EncodingKind.VEX && KNOWN.has(name.slice(1)) && !KNOWN.has(name)) name = name.slice(1);
  if (iced.isJccShortOrNear) return "JCC";
  if (name.startsWith("CMOV")) return "CMOVCC";
  if (name.startsWith("SET") && iced.conditionCode !== ConditionCode.None) return "SETCC";
  if (iced.isStringInstruction) return STRING_NAME.exec(name)?.[1] ?? name;
  if (iced.isCallFar || iced.isCallFarIndirect) return "CALL_FAR";
  if (iced.isJmpFar || iced.isJmpFarIndirect) return "JMP_FAR";
  if (name === "MOV" || name === "POP") {
    const first = iced.op0Kind === OpKind.Register ? iced.op0Register : Register.None;
    const second = iced.opCount > 1 && iced.op1Kind === OpKind.Register ? iced.op1Register : Register.None;
    if (isSegment(first)) return `${name}_SREG`;
    if (isControl(first) || isControl(second)) return "MOV_CR";
    if (isDebug(first) || isDebug(second)) return "MOV_DR";
  }
  if (name === "FSTCW" || name === "FSTSW" || name === "FCLEX" || name === "FINIT") return name.replace("F", "FN");
  if (/^F(?!XSAVE|XRSTOR)/.test(name) && !SAME[name] && !OPCODES.some((row) => row.mnemonic === name)) return "X87";
  return SAME[name] ?? name;
}

const isSegment = (r: number): boolean => r >= Register.ES && r <= Register.GS;
const isControl = (r: number): boolean => r >= Register.CR0 && r <= Register.CR15;
const isDebug = (r: number): boolean => r >= Register.DR0 && r <= Register.DR15;

/** 16-bit operands of these are written r32 or r64 too, the upper bits being ignored: only the number counts. */
// biome-ignore format: a list
const WORD_SOURCE: ReadonlySet<Mnemonic> = new Set<Mnemonic>([
  "LLDT", "LTR", "VERR", "VERW", "LMSW", "LAR", "LSL", "ARPL", "MOV_SREG",
]);

/** Iced's number of a general register. */
function generalRegister(reg: number, high: boolean, size: number): number {
  if (size === 1) return high ? Register.AH + reg : reg < 4 ? Register.AL + reg : Register.SPL + reg - 4;
  if (size === 2) return Register.AX + reg;
  return size === 4 ? Register.EAX + reg : Register.RAX + reg;
}

/** Mnemonics whose first operand the table names and iced, as the manual's syntax, leaves unsaid. */
// biome-ignore format: a list
const UNSAID: ReadonlySet<Mnemonic> = new Set<Mnemonic>([
  "CBW", "CWD", "DAA", "DAS", "AAA", "AAS", "AAM", "AAD", "LAHF", "SAHF", "SALC", "XLAT",
]);

/** Sizes that iced leaves open or states differently; our table's are checked by semantics. */
const SIZE_FREE: ReadonlySet<string> = new Set(["X87", "FXSAVE", "FXRSTOR", "NOP", "LEA", "INVLPG", "BOUND"]);

const mask = (size: number): bigint => (1n << BigInt(size * 8)) - 1n;

function compareOperands(ours: Instruction, iced: IcedInstruction, ip: bigint, width: Width): string | undefined {
  const row = OPCODES[ours.opcode];
  // Hints are one row; so is what is undefined in D8 to DF. Register operands of x87 instructions are not in the table.
  if (row.mnemonic === "NOP" || row.mnemonic === "X87") return undefined;
  const operands = ours.operands.filter((o) => o.kind !== OperandKind.NONE);
  if (row.map === 0 && (row.opcode & 0xf8) === 0xd8 && operands.length === 0) return undefined;
  if (UNSAID.has(row.mnemonic)) operands.splice(0, row.mnemonic === "CWD" ? 2 : 1);
  if (row.mnemonic === "XLAT") return sameSegment(ours, iced, width) ? undefined : "XLAT segment";
  // Implicit in iced, as in the manual's syntax.
  if (row.operands.at(-1)?.code === "XMM0") operands.pop();
  if (operands.length !== iced.opCount) return `operand count ${operands.length} / ${iced.opCount}`;
  for (let i = 0; i < operands.length; i++) {
    const operand = operands[i];
    const kind = iced.opKind(i);
    const at = `operand ${i}`;
    switch (operand.kind) {
      case OperandKind.GPR: {
        if (kind !== OpKind.Register) return `${at}: register / kind ${kind}`;
        const expected = generalRegister(operand.reg, operand.high, operand.size);
        const got = iced.opRegister(i);
        const wide = [4, 8].map((size) => generalRegister(operand.reg, false, size));
        if (WORD_SOURCE.has(row.mnemonic) && operand.size === 2 && wide.includes(got)) break;
        if (expected !== got) return `${at}: ${Register[expected]} / ${Register[got]}`;
        break;
      }
      case OperandKind.VECTOR: {
        if (kind !== OpKind.Register) return `${at}: register / kind ${kind}`;
        const expected = (operand.size === 32 ? Register.YMM0 : Register.XMM0) + operand.reg;
        if (expected !== iced.opRegister(i)) return `${at}: ${Register[expected]} / ${Register[iced.opRegister(i)]}`;
        break;
      }
      case OperandKind.MMX:
        if (kind !== OpKind.Register || iced.opRegister(i) !== Register.MM0 + operand.reg) return `${at}: MMX`;
        break;
      case OperandKind.SEGMENT:
        if (kind !== OpKind.Register || iced.opRegister(i) !== Register.ES + operand.reg) return `${at}: segment`;
        break;
      case OperandKind.CONTROL:
        if (kind !== OpKind.Register || iced.opRegister(i) !== Register.CR0 + operand.reg) return `${at}: control`;
        break;
      case OperandKind.DEBUG:
        if (kind !== OpKind.Register || iced.opRegister(i) !== Register.DR0 + operand.reg) return `${at}: debug`;
        break;
      case OperandKind.IMMEDIATE: {
        if (kind < OpKind.Immediate8 || kind > OpKind.Immediate32to64) return `${at}: immediate / kind ${kind}`;
        const value =
          kind === OpKind.Immediate8_2nd
            ? BigInt(ours.immediate2)
            : (BigInt(ours.immediateHigh) << 32n) | BigInt(ours.immediate >>> 0);
        if ((value & mask(operand.size)) !== (iced.immediate(i) & mask(operand.size))) {
          return `${at}: immediate ${value.toString(16)} / ${iced.immediate(i).toString(16)}`;
        }
        break;
      }
      case OperandKind.RELATIVE: {
        if (kind > OpKind.NearBranch64 || kind < OpKind.NearBranch16) return `${at}: branch / kind ${kind}`;
        const target = (ip + BigInt(ours.length) + BigInt(ours.immediate)) & mask(ours.operandSize);
        if (target !== iced.nearBranchTarget) return `${at}: target ${target.toString(16)}`;
        break;
      }
      case OperandKind.FAR: {
        if (kind !== OpKind.FarBranch16 && kind !== OpKind.FarBranch32) return `${at}: far / kind ${kind}`;
        const offset = kind === OpKind.FarBranch16 ? iced.farBranch16 : iced.farBranch32;
        if (offset !== ours.immediate >>> 0 || iced.farBranchSelector !== ours.immediate2) return `${at}: far pointer`;
        break;
      }
      case OperandKind.MEMORY: {
        const difference = compareMemory(ours, iced, kind, ip, width);
        if (difference) return `${at}: ${difference}`;
        const size = MemorySizeExt.size(iced.memorySize);
        if (
          !SIZE_FREE.has(row.mnemonic) &&
          !row.mnemonic.startsWith("X") &&
          operand.size !== size &&
          operand.size !== 0
        ) {
          return `${at}: ${operand.size} / ${size} bytes`;
        }
        break;
      }
      default:
        return `${at}: unexpected kind ${operand.kind}`;
    }
  }
  return undefined;
}

/** Whether both mean the same segment. In 64-bit mode only FS and GS are told apart: the others have base 0. */
function sameSegment(ours: Instruction, iced: IcedInstruction, width: Width): boolean {
  const theirs = iced.memorySegment - Register.ES;
  return ours.segment === theirs || (width === 64 && ours.segment < Seg.FS && theirs < Seg.FS);
}

function compareMemory(
  ours: Instruction,
  iced: IcedInstruction,
  kind: OpKind,
  ip: bigint,
  width: Width,
): string | undefined {
  if (kind >= OpKind.MemoryESDI && kind <= OpKind.MemoryESRDI) return undefined;
  if (
    ours.base === 7 &&
    (kind === OpKind.MemorySegDI || kind === OpKind.MemorySegEDI || kind === OpKind.MemorySegRDI)
  ) {
    return sameSegment(ours, iced, width) ? undefined : "segment of DI";
  }
  if (kind >= OpKind.MemorySegSI && kind <= OpKind.MemorySegRDI) {
    const sizes = [2, 4, 8, 2, 4, 8];
    if (ours.addressSize !== sizes[kind - OpKind.MemorySegSI]) return "address size";
    return ours.base === 6 && sameSegment(ours, iced, width) ? undefined : "string source";
  }
  if (kind !== OpKind.Memory) return `memory / kind ${kind}`;
  if (!sameSegment(ours, iced, width)) return `segment ${ours.segment} / ${Register[iced.memorySegment]}`;
  const addressMask = mask(ours.addressSize);
  let displacement = (BigInt(ours.displacementHigh) << 32n) | BigInt(ours.displacement >>> 0);
  const icedBase = iced.memoryBase;
  if (ours.base === RIP_BASE) {
    if (icedBase !== (ours.addressSize === 8 ? Register.RIP : Register.EIP)) return "RIP-relative";
    displacement += ip + BigInt(ours.length);
  } else {
    const expected = ours.base === NO_REG ? Register.None : generalRegister(ours.base, false, ours.addressSize);
    if (expected !== icedBase) return `base ${Register[expected]} / ${Register[icedBase]}`;
  }
  let index = ours.index === NO_REG ? Register.None : generalRegister(ours.index, false, ours.addressSize);
  if (ours.vsib) {
    const wide = iced.memoryIndex >= Register.YMM0;
    index = (wide ? Register.YMM0 : Register.XMM0) + ours.index;
  }
  if (index !== iced.memoryIndex) return `index ${Register[index]} / ${Register[iced.memoryIndex]}`;
  if (ours.index !== NO_REG && 1 << ours.scale !== iced.memoryIndexScale) return "scale";
  if ((displacement & addressMask) !== (iced.memoryDisplacement & addressMask)) {
    return `displacement ${(displacement & addressMask).toString(16)} / ${iced.memoryDisplacement.toString(16)}`;
  }
  return undefined;
}

/** Families whose features iced names as the table does. */
// biome-ignore format: a list
const SAME_FEATURES: ReadonlySet<string> = new Set<Feature>([
  "mmx", "sse", "sse2", "sse3", "ssse3", "sse4.1", "sse4.2", "aes", "pclmulqdq", "sha", "avx", "avx2", "fma", "f16c", "bmi1",
  "bmi2", "lzcnt", "popcnt", "movbe", "adx", "rdrand", "rdseed", "fsgsbase", "rdpid", "clflushopt", "clwb", "xsavec", "xsaveopt",
]);

/** What a row needs, in iced's names; nothing where a name differs. */
function needed(row: OpcodeRow): string {
  // SDM 2B says MMX, but PADDQ on MMX registers came with SSE2 (SDM 1 5.6.3; APM 5).
  if (row.mnemonic === "PADDQ") return "";
  if (!row.features.every((feature) => SAME_FEATURES.has(feature))) return "";
  return row.features
    .map((feature) => feature.toUpperCase().replace(".", "_"))
    .sort()
    .join(" ");
}

/** Everything both decoders say about a batch of instructions, one every STRIDE bytes. */
export class Comparison {
  private readonly ours = newInstruction();
  private readonly iced = new IcedInstruction();

  /**
   * @param excuse whether a difference is a known, justified one
   * @returns one line per unexcused difference
   */
  run(
    bytes: Uint8Array,
    width: Width,
    excuse: (ours: Instruction | undefined, iced: IcedInstruction, bytes: Uint8Array) => boolean,
  ): string[] {
    const differences: string[] = [];
    const decoder = new Decoder(width, bytes, DecoderOptions.None);
    const { ours, iced } = this;
    for (let at = 0; at + STRIDE <= bytes.length; at += STRIDE) {
      const length = decode(bytes, at, at + STRIDE - 1, width, ours);
      const ip = BigInt(at);
      decoder.position = at;
      decoder.ip = ip;
      decoder.decodeOut(iced);
      const valid = length > 0;
      let difference: string | undefined;
      if (valid === iced.isInvalid)
        difference = `ours ${valid ? "valid" : length}, iced ${iced.isInvalid ? "invalid" : "valid"}`;
      else if (valid) difference = this.differs(ours, iced, length, ip, width);
      if (difference === undefined) continue;
      const these = bytes.subarray(at, at + STRIDE - 1);
      if (excuse(valid ? ours : undefined, iced, these)) continue;
      const hex = Array.from(these, (b) => b.toString(16).padStart(2, "0")).join(" ");
      const name = valid ? OPCODES[ours.opcode].mnemonic : "-";
      differences.push(`${width}: ${hex}: ${difference} (${name} / ${iced.toString()})`);
    }
    decoder.free();
    return differences;
  }

  private differs(
    ours: Instruction,
    iced: IcedInstruction,
    length: number,
    ip: bigint,
    width: Width,
  ): string | undefined {
    if (length !== iced.length) return `length ${length} / ${iced.length}`;
    const row = OPCODES[ours.opcode];
    const name = mnemonicOf(iced);
    // Which of the hints it is changes nothing that a program can see.
    if (row.mnemonic === "NOP" && name.startsWith("PREFETCH")) return undefined;
    if (row.mnemonic !== name) return `mnemonic ${row.mnemonic} / ${name}`;
    const features = needed(row);
    const theirs = featuresOf(iced).sort().join(" ");
    if (features !== "" && features !== theirs) return `features ${features} / ${theirs}`;
    if (row.span === 16 && ours.condition !== iced.conditionCode - 1) return "condition";
    if (ours.lock !== iced.hasLockPrefix) return "lock";
    if (row.repeat !== "none" && (ours.rep === 0xf3) !== (iced.hasRepPrefix || iced.hasRepePrefix)) return "repe";
    if (row.repeat !== "none" && (ours.rep === 0xf2) !== iced.hasRepnePrefix) return "repne";
    return compareOperands(ours, iced, ip, width);
  }
}

/** Names of the CPUID features an instruction of iced needs. */
export function featuresOf(iced: IcedInstruction): string[] {
  return Array.from(iced.cpuidFeatures(), (f) => CpuidFeature[f]);
}

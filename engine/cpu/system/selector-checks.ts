/** LAR, LSL, VERR, VERW, ARPL: asking what a selector would allow (SDM 3A 5.10). */
import { type Cpu, Next, type SystemHandler } from "../cpu";
import { Rflags, SegAttr } from "../state";
import { isLongMode, readOperand, writeOperand } from "./operands";
import { type Descriptor, findDescriptor, SystemType } from "./segmentation";

function setZf(cpu: Cpu, on: boolean): void {
  const flags = cpu.state.rflags;
  cpu.state.rflags = on ? flags | Rflags.ZF : flags & ~Rflags.ZF;
}

/** The descriptor, unless the selector is null, beyond its table, or more privileged than CPL and RPL allow. */
function visible(cpu: Cpu, selector: number): Descriptor | undefined {
  if ((selector & 0xfffc) === 0) return undefined;
  const descriptor = findDescriptor(cpu, selector);
  if (!descriptor) return undefined;
  const { attributes } = descriptor;
  const conforming = SegAttr.S | SegAttr.CODE | SegAttr.CONFORMING;
  if ((attributes & conforming) === conforming) return descriptor;
  return Math.max(cpu.state.cpl, selector & 3) <= descriptor.dpl ? descriptor : undefined;
}

const LIMIT_TYPES: readonly number[] = [
  SystemType.TSS16_AVAILABLE,
  SystemType.LDT,
  SystemType.TSS16_BUSY,
  SystemType.TSS_AVAILABLE,
  SystemType.TSS_BUSY,
];
const LONG_LIMIT_TYPES: readonly number[] = [SystemType.LDT, SystemType.TSS_AVAILABLE, SystemType.TSS_BUSY];

/** Types LAR knows beyond those that have a limit (SDM 2A table 3-55). */
const LAR_GATES: readonly number[] = [SystemType.CALL_GATE16, SystemType.TASK_GATE, SystemType.CALL_GATE];

function validType(cpu: Cpu, attributes: number, gates: boolean): boolean {
  if (attributes & SegAttr.S) return true;
  const type = attributes & SegAttr.TYPE;
  if (isLongMode(cpu)) return LONG_LIMIT_TYPES.includes(type) || (gates && type === SystemType.CALL_GATE);
  return LIMIT_TYPES.includes(type) || (gates && LAR_GATES.includes(type));
}

const lar: SystemHandler = (cpu, instruction) => {
  const selector = Number(readOperand(cpu, instruction, 1)) & 0xffff;
  const descriptor = visible(cpu, selector);
  const ok = descriptor !== undefined && validType(cpu, descriptor.attributes, true);
  if (ok) writeOperand(cpu, instruction, 0, BigInt((descriptor.hi & 0x00f0ff00) >>> 0));
  setZf(cpu, ok);
  return Next.SEQUENTIAL;
};

const lsl: SystemHandler = (cpu, instruction) => {
  const selector = Number(readOperand(cpu, instruction, 1)) & 0xffff;
  const descriptor = visible(cpu, selector);
  const ok = descriptor !== undefined && validType(cpu, descriptor.attributes, false);
  if (ok) writeOperand(cpu, instruction, 0, BigInt(descriptor.limit));
  setZf(cpu, ok);
  return Next.SEQUENTIAL;
};

const verify =
  (write: boolean): SystemHandler =>
  (cpu, instruction) => {
    const selector = Number(readOperand(cpu, instruction, 0)) & 0xffff;
    const attributes = visible(cpu, selector)?.attributes ?? 0;
    const code = (attributes & SegAttr.CODE) !== 0;
    // One bit of the type means readable for code and writable for data.
    const permitted = (attributes & SegAttr.READABLE) !== 0;
    setZf(cpu, (attributes & SegAttr.S) !== 0 && (write ? !code && permitted : !code || permitted));
    return Next.SEQUENTIAL;
  };

const arpl: SystemHandler = (cpu, instruction) => {
  const destination = Number(readOperand(cpu, instruction, 0));
  const rpl = Number(readOperand(cpu, instruction, 1)) & 3;
  const raise = (destination & 3) < rpl;
  if (raise) writeOperand(cpu, instruction, 0, BigInt((destination & ~3) | rpl));
  setZf(cpu, raise);
  return Next.SEQUENTIAL;
};

export const selectorCheckHandlers: Readonly<Record<string, SystemHandler>> = {
  LAR: lar,
  LSL: lsl,
  VERR: verify(false),
  VERW: verify(true),
  ARPL: arpl,
};

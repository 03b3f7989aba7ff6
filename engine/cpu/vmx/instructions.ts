/**
 * The VMX instructions (SDM 3C 31.3): operands, privilege and mode checks, exits in a guest, results in RFLAGS. What they
 * do is the unit's business (unit.ts).
 */
import { type Cpu, CpuFault, Next, type SystemHandler, Vector } from "../cpu";
import type { SimpleIntercept } from "../guest-mode";
import { type Instruction, OperandKind } from "../isa/instruction";
import { CodeMode, Off, Rflags } from "../state";
import { effectiveAddress } from "../system/operands";
import { VmError } from "./vm-instruction-errors";
import { VM_FAIL_INVALID, VM_SUCCEED, type VmxResult } from "./vmx";

const CR4_VMXE = 1 << 13;

/** VMsucceed, VMfailInvalid, VMfailValid (SDM 3C 31.2). */
function setResult(cpu: Cpu, result: VmxResult): Next {
  const flags = cpu.state.u32(Off.FLAGS_REST) & ~Rflags.ARITHMETIC;
  cpu.state.rflags = result === VM_SUCCEED ? flags : result === VM_FAIL_INVALID ? flags | Rflags.CF : flags | Rflags.ZF;
  return Next.SEQUENTIAL;
}

/** #UD in real-address, virtual-8086 and compatibility mode. */
function checkMode(cpu: Cpu): void {
  const mode = cpu.state.codeMode;
  if (mode === CodeMode.REAL || mode === CodeMode.VM86 || mode === CodeMode.COMPAT16 || mode === CodeMode.COMPAT32) {
    throw new CpuFault(Vector.UD);
  }
}

function checkPrivilege(cpu: Cpu): void {
  if (cpu.state.cpl !== 0) throw new CpuFault(Vector.GP, 0);
}

/** #UD outside VMX operation and in modes that have none of its instructions. */
function checkVmx(cpu: Cpu): void {
  if (!cpu.vmx.on) throw new CpuFault(Vector.UD);
  checkMode(cpu);
}

/** An instruction of VMX operation: #UD outside, a VM exit in a guest, #GP(0) above CPL 0. */
function inRoot(name: SimpleIntercept, run: (cpu: Cpu, instruction: Instruction) => Next): SystemHandler {
  return (cpu, instruction) => {
    checkVmx(cpu);
    cpu.guest?.interceptInstruction(name, instruction);
    checkPrivilege(cpu);
    return run(cpu, instruction);
  };
}

/** The 64-bit pointer in memory that is the operand. */
const readPointer = (cpu: Cpu, instruction: Instruction): number =>
  Number(cpu.mmu.read(effectiveAddress(cpu, instruction, 8), 8));

const is64 = (cpu: Cpu): boolean => cpu.state.codeMode === CodeMode.LONG64;

/** A register operand of VMREAD, VMWRITE, INVEPT, INVVPID: 64 bits in 64-bit mode, else 32. */
const readRegister = (cpu: Cpu, reg: number): bigint => (is64(cpu) ? cpu.state.gpr(reg) : BigInt(cpu.state.gpr32(reg)));

/** Encoding of a field; values beyond 31 bits name none. */
function fieldOperand(cpu: Cpu, reg: number): number {
  const { state } = cpu;
  const at = Off.GPR + reg * 8;
  return is64(cpu) && state.hi(at) !== 0 ? -1 : state.lo(at);
}

const enter =
  (resume: boolean) =>
  (cpu: Cpu): Next => {
    const result = cpu.vmx.enter(resume);
    return result === VM_SUCCEED ? Next.JUMP_ATTENTION : setResult(cpu, result);
  };

/** Whether the instruction reads or writes the shadow VMCS (VMCS shadowing); without that it exits in a guest. */
function accessesShadow(cpu: Cpu, instruction: Instruction, write: boolean): boolean {
  const { guest } = cpu;
  if (!guest) return false;
  const field = instruction.operands[write ? 0 : 1].reg;
  if (!guest.shadowsVmcs?.(readRegister(cpu, field), write)) {
    guest.interceptInstruction(write ? "vmwrite" : "vmread", instruction);
  }
  return true;
}

function vmread(cpu: Cpu, instruction: Instruction): Next {
  checkVmx(cpu);
  const shadow = accessesShadow(cpu, instruction, false);
  checkPrivilege(cpu);
  const destination = instruction.operands[0];
  const source = instruction.operands[1];
  const field = fieldOperand(cpu, source.reg);
  if (!shadow && destination.kind !== OperandKind.MEMORY) {
    const result = cpu.vmx.readHalves(field);
    if (result === VM_SUCCEED) {
      const at = Off.GPR + destination.reg * 8;
      cpu.state.setLo(at, cpu.vmx.valueLo);
      cpu.state.setHi(at, is64(cpu) ? cpu.vmx.valueHi : 0);
    }
    return setResult(cpu, result);
  }
  const value = shadow ? cpu.vmx.shadowRead(field) : cpu.vmx.vmread(field);
  if (typeof value === "number") return setResult(cpu, value);
  const size = is64(cpu) ? 8 : 4;
  if (destination.kind === OperandKind.MEMORY) {
    cpu.mmu.write(effectiveAddress(cpu, instruction, size), size, BigInt.asUintN(size * 8, value));
  } else if (size === 8) cpu.state.setGpr(destination.reg, value);
  else cpu.state.setGpr32(destination.reg, Number(value & 0xffff_ffffn));
  return setResult(cpu, VM_SUCCEED);
}

function vmwrite(cpu: Cpu, instruction: Instruction): Next {
  checkVmx(cpu);
  const shadow = accessesShadow(cpu, instruction, true);
  checkPrivilege(cpu);
  if (!shadow && cpu.vmx.currentVmcs < 0) return setResult(cpu, VM_FAIL_INVALID);
  const field = instruction.operands[0];
  const source = instruction.operands[1];
  if (!shadow && source.kind !== OperandKind.MEMORY) {
    const at = Off.GPR + source.reg * 8;
    const { state } = cpu;
    return setResult(
      cpu,
      cpu.vmx.writeHalves(fieldOperand(cpu, field.reg), state.lo(at), is64(cpu) ? state.hi(at) : 0),
    );
  }
  const size = is64(cpu) ? 8 : 4;
  const value =
    source.kind === OperandKind.MEMORY
      ? cpu.mmu.read(effectiveAddress(cpu, instruction, size), size)
      : readRegister(cpu, source.reg);
  const encoding = fieldOperand(cpu, field.reg);
  return setResult(cpu, shadow ? cpu.vmx.shadowWrite(encoding, value) : cpu.vmx.vmwrite(encoding, value));
}

function invept(cpu: Cpu, instruction: Instruction): Next {
  const type = readRegister(cpu, instruction.operands[0].reg);
  if (type !== 1n && type !== 2n) return setResult(cpu, cpu.vmx.failure(VmError.INVALID_OPERAND_TO_INVEPT_INVVPID));
  const linear = effectiveAddress(cpu, instruction, 16);
  const eptp = cpu.mmu.read(linear, 8);
  const reserved = cpu.mmu.read(linear + 8n, 8);
  // A reserved half that is not 0 is as invalid as a type this processor does not have.
  return setResult(cpu, cpu.vmx.invept(reserved === 0n ? Number(type) : -1, eptp));
}

function invvpid(cpu: Cpu, instruction: Instruction): Next {
  const type = readRegister(cpu, instruction.operands[0].reg);
  if (type > 3n) return setResult(cpu, cpu.vmx.failure(VmError.INVALID_OPERAND_TO_INVEPT_INVVPID));
  const at = effectiveAddress(cpu, instruction, 16);
  const low = cpu.mmu.read(at, 8);
  const linear = cpu.mmu.read(at + 8n, 8);
  return setResult(cpu, cpu.vmx.invvpid(low >> 16n === 0n ? Number(type) : -1, Number(low & 0xffffn), linear));
}

function vmxon(cpu: Cpu, instruction: Instruction): Next {
  if ((cpu.state.lo(Off.CR4) & CR4_VMXE) === 0) throw new CpuFault(Vector.UD);
  checkMode(cpu);
  cpu.guest?.interceptInstruction("vmxon", instruction);
  checkPrivilege(cpu);
  return setResult(
    cpu,
    cpu.vmx.vmxon(() => readPointer(cpu, instruction)),
  );
}

/** VMCALL outside a guest: VMfail, for there is no SMM monitor to call (SDM 3C 31.3 VMCALL). */
function vmcall(cpu: Cpu, instruction: Instruction): Next {
  if (!cpu.vmx.on) throw new CpuFault(Vector.UD);
  cpu.guest?.interceptInstruction("vmcall", instruction);
  checkMode(cpu);
  checkPrivilege(cpu);
  return setResult(cpu, cpu.vmx.failure(VmError.VMCALL_IN_ROOT));
}

/** VMFUNC exists in guests only, and there only with its control. */
function vmfunc(cpu: Cpu, instruction: Instruction): Next {
  if (!cpu.guest?.vmfunc) throw new CpuFault(Vector.UD);
  cpu.guest.vmfunc(instruction);
  return Next.ATTENTION;
}

export const vmxHandlers: Readonly<Record<string, SystemHandler>> = {
  VMXON: vmxon,
  VMXOFF: inRoot("vmxoff", (cpu) => setResult(cpu, cpu.vmx.vmxoff())),
  VMCLEAR: inRoot("vmclear", (cpu, i) => setResult(cpu, cpu.vmx.vmclear(readPointer(cpu, i)))),
  VMPTRLD: inRoot("vmptrld", (cpu, i) => setResult(cpu, cpu.vmx.vmptrld(readPointer(cpu, i)))),
  VMPTRST: inRoot("vmptrst", (cpu, i) => {
    cpu.mmu.write(effectiveAddress(cpu, i, 8), 8, cpu.state.u64(Off.VMCS_POINTER));
    return setResult(cpu, VM_SUCCEED);
  }),
  VMREAD: vmread,
  VMWRITE: vmwrite,
  VMLAUNCH: inRoot("vmlaunch", enter(false)),
  VMRESUME: inRoot("vmresume", enter(true)),
  INVEPT: inRoot("invept", invept),
  INVVPID: inRoot("invvpid", invvpid),
  VMCALL: vmcall,
  VMFUNC: vmfunc,
};

/** The registers of one processor by name, straight from its block of state. */
import type { Cpu } from "./cpu";
import { type FloatState, readFloatRegister, writeFloatRegister } from "./float-registers";
import { checkRegisterWrite, type RegisterCheckContext } from "./register-checks";
import { REGISTER_ROWS, type RegisterFile, registerRow, STORED_MSRS } from "./registers";
import { CpuState, GPR_NAMES, Off, SEG_NAMES, SegPart } from "./state";

/** Where a register lies: `mask` is what counts of the 64 bits at `offset`; 4-byte fields have size 4. */
interface Place {
  readonly offset: number;
  readonly size: 4 | 8;
}

const PLACES = new Map<string, Place>();
const place = (name: string, offset: number, size: 4 | 8 = 8): void => {
  PLACES.set(name, { offset, size });
};
for (const [i, name] of GPR_NAMES.entries()) place(name, Off.GPR + i * 8);
place("rip", Off.RIP);
for (const [i, name] of SEG_NAMES.entries()) {
  const at = CpuState.segOffset(i);
  place(name, at + SegPart.SELECTOR, 4);
  place(`${name}.base`, at + SegPart.BASE);
  place(`${name}.limit`, at + SegPart.LIMIT, 4);
  place(`${name}.attributes`, at + SegPart.ATTRIBUTES, 4);
}
place("gdtr.base", Off.GDTR_BASE);
place("gdtr.limit", Off.GDTR_LIMIT, 4);
place("idtr.base", Off.IDTR_BASE);
place("idtr.limit", Off.IDTR_LIMIT, 4);
place("cpl", Off.CPL, 4);
place("cr0", Off.CR0);
place("cr2", Off.CR2);
place("cr3", Off.CR3);
place("cr4", Off.CR4);
place("xcr0", Off.XCR0);
for (const n of [0, 1, 2, 3]) place(`dr${n}`, Off.DR0 + n * 8);
place("dr6", Off.DR6);
place("dr7", Off.DR7);
for (const m of STORED_MSRS) place(m.name, m.offset);

/** CR4 bits a processor model has, and what XCR0 may hold: from the rules of MOV CR4 and XSETBV. */
export type AllowedBits = Pick<RegisterCheckContext, "cr4Allowed" | "xcr0Allowed">;

/**
 * The processor's registers by row name. A write re-derives what hangs on the register (mode, paging, TLB context).
 * @param allowed bits the processor model has in CR4 and XCR0
 */
export function cpuRegisterFile(cpu: Cpu, allowed: AllowedBits): RegisterFile {
  const floatState = (): FloatState => ({ bytes: cpu.state.u8, at: cpu.state.base + Off.FCW });
  const read = (name: string): bigint => {
    if (name === "rflags") return BigInt(cpu.state.rflags >>> 0);
    if (name === "cr8") return BigInt(cpu.interrupts.readCr8());
    const float = readFloatRegister(floatState(), name);
    if (float !== undefined) return float;
    const at = PLACES.get(name);
    if (!at) throw new RangeError(`there is no register ${name}`);
    return at.size === 8 ? cpu.state.u64(at.offset) : BigInt(cpu.state.u32(at.offset));
  };
  return {
    rows: REGISTER_ROWS,
    read,
    write(name, value) {
      checkRegisterWrite(name, value, {
        codeMode: cpu.state.codeMode,
        physicalBits: cpu.model.physicalBits,
        linearBits: cpu.model.linearBits,
        ...allowed,
        read,
      });
      if (writeFloatRegister(floatState(), name, value)) return;
      if (name === "rflags") cpu.state.rflags = Number(value);
      else if (name === "cr8") cpu.interrupts.writeCr8(Number(value));
      else if (name === "ia32_apic_base") {
        if (!cpu.interrupts.writeMsr(0x1b, value))
          throw new RangeError(`${name} cannot be set to 0x${value.toString(16)}`);
      } else {
        const at = PLACES.get(name) as Place;
        if (at.size === 8) cpu.state.setU64(at.offset, value);
        else cpu.state.setU32(at.offset, Number(value));
      }
      const group = registerRow(name)?.group;
      if (group !== "general" || name === "rflags") {
        if (name === "cr0" || name === "cr3" || name === "cr4" || name === "ia32_efer" || name === "ia32_pat") {
          cpu.mmu.invalidateAll(true);
        }
        cpu.contextChanged();
      }
    },
  };
}

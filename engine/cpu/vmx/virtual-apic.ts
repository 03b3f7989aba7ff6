/** The virtual-APIC page: TPR shadow, TPR threshold and the APIC-access page (SDM 3C 30.1, 30.4). */
import { Off } from "../state";
import { CpuBased } from "./controls";
import { SavedRf } from "./exit";
import { ExitReason } from "./exit-reasons";
import { Field } from "./fields";
import type { VmxUnit } from "./unit";
import { word } from "./vmcs";

const CPU = word(Field.CPU_BASED_VM_EXEC_CONTROL);
const VIRTUAL_APIC = word(Field.VIRTUAL_APIC_PAGE_ADDR);
const TPR_THRESHOLD = word(Field.TPR_THRESHOLD);
/** Offset of the task-priority register in the APIC page. */
const TPR_OFFSET = 0x80;

/** Kinds of access in the exit qualification (SDM 3C table 28-6). */
const Kind = { READ: 0, WRITE: 1, EVENT_DELIVERY: 3 } as const;

export class VirtualApic {
  constructor(private readonly unit: VmxUnit) {}

  private get shadowed(): boolean {
    return (this.unit.vmcs.lo(CPU) & CpuBased.TPR_SHADOW) !== 0;
  }

  /** Host offset of the virtual task-priority register, -1 when no memory is there. */
  private at(): number {
    return this.unit.cpu.memory.hostOffset(this.unit.vmcs.address(VIRTUAL_APIC) + TPR_OFFSET);
  }

  /** Task-priority class, undefined without TPR shadow. */
  readTpr(): number | undefined {
    if (!this.shadowed) return undefined;
    const at = this.at();
    return at < 0 ? 0xf : this.unit.cpu.memory.u8[at] >> 4;
  }

  /** @returns false without TPR shadow */
  writeTpr(value: number): boolean {
    if (!this.shadowed) return false;
    this.store((value & 0xf) << 4);
    return true;
  }

  /** TPR virtualization: a TPR that is now below the threshold exits behind the instruction. */
  private store(value: number): void {
    const at = this.at();
    if (at >= 0) this.unit.cpu.memory.view.setUint32(at, value & 0xff, true);
    if (this.belowThreshold()) {
      this.unit.state.tprBelow = true;
      this.unit.cpu.attention();
    }
  }

  belowThreshold(): boolean {
    const threshold = this.unit.vmcs.lo(TPR_THRESHOLD) & 0xf;
    return threshold !== 0 && this.shadowed && (this.readTpr() ?? 0) < threshold;
  }

  /** An access to the APIC-access page: the task priority is virtualized with TPR shadow, all else exits. */
  access(offset: number, size: number, write: boolean, linear: bigint): boolean {
    const { cpu, state: data, exits } = this.unit;
    if (this.shadowed && offset === TPR_OFFSET && size <= 4 && data.vectoring === null) {
      if (write) {
        this.store(cpu.state.lo(Off.VALUE) & 0xff);
        return true;
      }
      const at = this.at();
      cpu.state.setU64(Off.VALUE, at < 0 ? 0xffn : BigInt(cpu.memory.u8[at]));
      return true;
    }
    const kind = data.vectoring !== null ? Kind.EVENT_DELIVERY : write ? Kind.WRITE : Kind.READ;
    exits.qualificationLo = (offset & 0xfff) | (kind << 12);
    exits.setLinear(linear);
    exits.rf = data.vectoring === null ? SavedRf.SET : SavedRf.KEEP;
    return exits.exit(ExitReason.APIC_ACCESS);
  }
}

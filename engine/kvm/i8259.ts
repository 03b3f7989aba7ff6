/** The two 8259A in the kernel (arch/x86/kvm/i8259.c) over devices/i8259. */
import type { Registers } from "../devices/chip";
import { I8259, type PicState } from "../devices/i8259";
import { KvmBus, type KvmIoDevice, kvmIoBusRegisterDev } from "./ioBus";
import { kvmNotifyAckedIrq } from "./irqComm";
import { kvmVcpuKick } from "./kvmMain";
import { KvmReq, kvmMakeRequest } from "./requests";
import type { Kvm, KvmVcpu } from "./types";
import { KvmIrqchip } from "./uapi";

/** picdev_read and picdev_write: byte accesses only; others are ignored. */
class PicDevice implements KvmIoDevice {
  constructor(
    readonly name: string,
    private readonly base: number,
    private readonly ports: Registers,
  ) {}

  read(_vcpu: KvmVcpu | null, addr: number, data: Uint8Array): boolean {
    if (data.length !== 1) data.fill(0);
    else data[0] = this.ports.read(addr - this.base, 1);
    return true;
  }

  write(_vcpu: KvmVcpu | null, addr: number, data: Uint8Array): boolean {
    if (data.length === 1) this.ports.write(addr - this.base, 1, data[0]);
    return true;
  }
}

/** The pair of in-kernel interrupt controllers: the chip of engine/devices with KVM's wiring. */
export class KvmPic {
  readonly chip: I8259;

  constructor(private readonly kvm: Kvm) {
    this.chip = new I8259({ set: (level) => picIrqRequest(kvm, level) }, (irq) =>
      kvmNotifyAckedIrq(kvm, irq < 8 ? KvmIrqchip.PIC_MASTER : KvmIrqchip.PIC_SLAVE, irq & 7),
    );
    const devices: readonly [string, number, Registers][] = [
      ["pic-master", 0x20, this.chip.masterPorts],
      ["pic-slave", 0xa0, this.chip.slavePorts],
      ["pic-elcr", 0x4d0, this.chip.elcrPorts],
    ];
    for (const [name, base, ports] of devices) {
      kvmIoBusRegisterDev(kvm, KvmBus.PIO, base, 2, new PicDevice(name, base, ports));
    }
  }

  get state(): PicState {
    return this.chip.state;
  }
  set state(state: PicState) {
    this.chip.state = state;
  }

  /** kvm_pic_update_irq after KVM_SET_IRQCHIP: an interrupt of the new state is asked for. */
  setState(state: PicState): void {
    this.state = state;
    // Any input driven as it is already makes the chip look at its registers again.
    this.chip.setLine(0, (state.master.lines & 1) !== 0);
    if (this.chip.output) picIrqRequest(this.kvm, true);
  }

  get output(): boolean {
    return this.chip.output;
  }

  /** kvm_pic_set_irq. @returns 1; the chip does not tell coalesced interrupts apart */
  setIrq(irq: number, level: boolean): number {
    this.chip.setLine(irq, level);
    return 1;
  }

  /** kvm_pic_read_irq */
  readIrq(): number {
    return this.chip.acknowledge();
  }
}

/** pic_irq_request and pic_unlock: the vCPU whose LINT0 listens to the PIC wakes up. */
function picIrqRequest(kvm: Kvm, level: boolean): void {
  if (!level) return;
  for (const vcpu of kvm.vcpus) {
    if (!vcpu.apic?.acceptsPicIntr()) continue;
    kvmMakeRequest(KvmReq.EVENT, vcpu);
    kvmVcpuKick(vcpu);
    return;
  }
}

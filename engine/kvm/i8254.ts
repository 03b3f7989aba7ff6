/** The 8254 in the kernel (arch/x86/kvm/i8254.c) over devices/i8254: GSI 0 follows counter 0's OUT. */
import type { Registers } from "../devices/chip";
import { I8254, type PitState } from "../devices/i8254";
import { KvmBus, type KvmIoDevice, kvmIoBusRegisterDev } from "./ioBus";
import { kvmSetIrq } from "./irqComm";
import { kvmApicNmiWdDeliver } from "./lapic";
import type { Kvm, KvmVcpu } from "./types";

/** kvm_request_irq_source_id's answer for the first caller after userspace and resampling. */
const PIT_IRQ_SOURCE_ID = 2;
/** Flag of KVM_CREATE_PIT2: the speaker port is emulated. */
export const KVM_PIT_SPEAKER_DUMMY = 1;

class PitDevice implements KvmIoDevice {
  constructor(
    readonly name: string,
    private readonly base: number,
    private readonly ports: Registers,
  ) {}

  read(_vcpu: KvmVcpu | null, addr: number, data: Uint8Array): boolean {
    data.fill(0);
    data[0] = this.ports.read(addr - this.base, 1);
    return true;
  }

  write(_vcpu: KvmVcpu | null, addr: number, data: Uint8Array): boolean {
    this.ports.write(addr - this.base, 1, data[0]);
    return true;
  }
}

/** The in-kernel timer: the chip of engine/devices with KVM's wiring. */
export class KvmPit {
  readonly chip: I8254;

  /** @param flags KVM_PIT_SPEAKER_DUMMY: port 0x61 is served here too */
  constructor(
    kvm: Kvm,
    readonly flags: number,
  ) {
    this.chip = new I8254(kvm.module.host.clock, `kvm${kvm.id}.pit`, {
      set: (level) => {
        kvmSetIrq(kvm, PIT_IRQ_SOURCE_ID, 0, level);
        if (level) for (const vcpu of kvm.vcpus) kvmApicNmiWdDeliver(vcpu);
      },
    });
    kvmIoBusRegisterDev(kvm, KvmBus.PIO, 0x40, 4, new PitDevice("pit", 0x40, this.chip.ports));
    if (flags & KVM_PIT_SPEAKER_DUMMY) {
      kvmIoBusRegisterDev(kvm, KvmBus.PIO, 0x61, 1, new PitDevice("pit-speaker", 0x61, this.chip.speakerPort));
    }
  }

  /** kvm_pit_load_count after KVM_SET_PIT2: counter 0's next edge follows from the new state. */
  setState(state: PitState): void {
    this.chip.state = state;
    this.chip.onClockEvent("out0", 0);
  }

  get state(): PitState {
    return this.chip.state;
  }
  set state(state: PitState) {
    this.chip.state = state;
  }
}

/** VMCALL by the guest: KVM's hypercalls (Documentation/virt/kvm/x86/hypercalls.rst). */
import { is64BitMode, kvmRegisterReadRaw, kvmRegisterWriteRaw } from "./kvmCacheRegs";
import { kvmVcpuWakeUp } from "./kvmMain";
import { type KvmVcpu, VcpuReg } from "./types";
import { kvmSkipEmulatedInstruction } from "./x86Events";

const KVM_HC = { VAPIC_POLL_IRQ: 1, KICK_CPU: 5, SCHED_YIELD: 11 } as const;
const KVM_ENOSYS = 1000n;
const KVM_EPERM = 1n;

/** kvm_emulate_hypercall: number in RAX, arguments in RBX, RCX, RDX, RSI; the result goes to RAX. */
export function kvmEmulateHypercall(vcpu: KvmVcpu): number {
  const long = is64BitMode(vcpu);
  const read = (reg: number) => {
    const value = kvmRegisterReadRaw(vcpu, reg);
    return long ? value : value & 0xffffffffn;
  };
  const nr = Number(read(VcpuReg.RAX));
  let result = -KVM_ENOSYS;
  if (vcpu.module.ops.getCpl(vcpu) !== 0) {
    result = -KVM_EPERM;
  } else {
    switch (nr) {
      case KVM_HC.VAPIC_POLL_IRQ:
        result = 0n;
        break;
      case KVM_HC.KICK_CPU: {
        const apicId = Number(read(VcpuReg.RCX));
        const target = vcpu.kvm.vcpus.find((v) => v.apic?.chip.id === apicId);
        if (target) {
          target.arch.pvUnhalted = true;
          kvmVcpuWakeUp(target);
        }
        result = 0n;
        break;
      }
      case KVM_HC.SCHED_YIELD:
        vcpu.state.thread.needResched = true;
        result = 0n;
        break;
    }
  }
  kvmRegisterWriteRaw(vcpu, VcpuReg.RAX, BigInt.asUintN(long ? 64 : 32, result));
  vcpu.stat.hypercalls++;
  return kvmSkipEmulatedInstruction(vcpu);
}

/** VMCALL by the guest: KVM's hypercalls (Documentation/virt/kvm/x86/hypercalls.rst). */
import { DeliveryMode } from "../devices/apic-bus";
import { guestPvHas } from "./cpuid";
import { is64BitMode, kvmRegisterReadRaw, kvmRegisterWriteRaw } from "./kvmCacheRegs";
import { kvmVcpuKick } from "./kvmMain";
import { KvmFeature } from "./kvmPara";
import { kvmPvClockPairing } from "./pvclock";
import { KvmReq, kvmMakeRequest } from "./requests";
import { type KvmVcpu, VcpuReg } from "./types";
import { KvmExit } from "./uapi";
import { kvmSkipEmulatedInstruction } from "./x86Events";
import { kvmArchVcpuRunnable } from "./x86Halt";

const KVM_HC = {
  VAPIC_POLL_IRQ: 1,
  KICK_CPU: 5,
  CLOCK_PAIRING: 9,
  SEND_IPI: 10,
  SCHED_YIELD: 11,
  MAP_GPA_RANGE: 12,
} as const;
const KVM_ENOSYS = 1000n;
const KVM_EPERM = 1n;
const KVM_EINVAL = 22n;
const PAGE_MASK = 0xfffn;
const APIC_ICR_LOGICAL = 0x800n;
const APIC_ICR_SHORTHAND = 0xc0000n;
const APIC_ICR_LEVEL = 0x8000n;
const APIC_ICR_ASSERT = 0x4000n;
/** Cannot be a result: the hypercall goes to userspace. */
const TO_USERSPACE = null;

/** kvm_emulate_hypercall: number in RAX, arguments in RBX, RCX, RDX, RSI; the result goes to RAX. */
export function kvmEmulateHypercall(vcpu: KvmVcpu): number {
  const long = is64BitMode(vcpu);
  const read = (reg: number) => {
    const value = kvmRegisterReadRaw(vcpu, reg);
    return long ? value : value & 0xffffffffn;
  };
  const nr = Number(BigInt.asUintN(53, read(VcpuReg.RAX)));
  const args = [read(VcpuReg.RBX), read(VcpuReg.RCX), read(VcpuReg.RDX), read(VcpuReg.RSI)];
  const result = vcpu.module.ops.getCpl(vcpu) !== 0 ? -KVM_EPERM : hypercall(vcpu, nr, args, long);
  if (result === TO_USERSPACE) return 0;
  return finishHypercall(vcpu, result, long);
}

function finishHypercall(vcpu: KvmVcpu, result: bigint, long: boolean): number {
  kvmRegisterWriteRaw(vcpu, VcpuReg.RAX, BigInt.asUintN(long ? 64 : 32, result));
  vcpu.stat.hypercalls++;
  return kvmSkipEmulatedInstruction(vcpu);
}

/** __kvm_emulate_hypercall: what the guest's CPUID does not offer is -KVM_ENOSYS. */
function hypercall(vcpu: KvmVcpu, nr: number, args: readonly bigint[], long: boolean): bigint | null {
  const [a0, a1, a2, a3] = args;
  switch (nr) {
    case KVM_HC.VAPIC_POLL_IRQ:
      return 0n;
    case KVM_HC.KICK_CPU:
      if (!guestPvHas(vcpu, KvmFeature.PV_UNHALT)) return -KVM_ENOSYS;
      kvmPvKickCpuOp(vcpu, Number(a1));
      kvmSchedYield(vcpu, Number(a1));
      return 0n;
    case KVM_HC.CLOCK_PAIRING:
      return kvmPvClockPairing(vcpu, a0, a1);
    case KVM_HC.SEND_IPI:
      if (!guestPvHas(vcpu, KvmFeature.PV_SEND_IPI)) return -KVM_ENOSYS;
      return kvmPvSendIpi(vcpu, a0, a1, a2, a3, long);
    case KVM_HC.SCHED_YIELD:
      if (!guestPvHas(vcpu, KvmFeature.PV_SCHED_YIELD)) return -KVM_ENOSYS;
      kvmSchedYield(vcpu, Number(a0));
      return 0n;
    case KVM_HC.MAP_GPA_RANGE:
      return mapGpaRange(vcpu, a0, a1, a2, long);
    default:
      return -KVM_ENOSYS;
  }
}

const vcpuByApicId = (vcpu: KvmVcpu, apicId: number): KvmVcpu | undefined =>
  vcpu.kvm.vcpus.find((v) => v.apic?.chip.id === apicId);

/** kvm_pv_kick_cpu_op: a halted vCPU goes on (APIC_DM_REMRD). */
function kvmPvKickCpuOp(vcpu: KvmVcpu, apicId: number): void {
  const target = vcpuByApicId(vcpu, apicId);
  if (!target) return;
  target.arch.pvUnhalted = true;
  kvmMakeRequest(KvmReq.EVENT, target);
  kvmVcpuKick(target);
}

/** kvm_sched_yield: the vCPU with this APIC id gets the processor if it could run. */
function kvmSchedYield(vcpu: KvmVcpu, apicId: number): void {
  vcpu.stat.directed_yield_attempted++;
  const target = vcpuByApicId(vcpu, apicId);
  if (!target || target === vcpu || !kvmArchVcpuRunnable(target)) return;
  vcpu.state.thread.needResched = true;
  vcpu.stat.directed_yield_successful++;
}

/** kvm_pv_send_ipi: to the vCPUs whose APIC ids are `min` plus the set bits. @returns how many it reached, or -KVM_EINVAL */
function kvmPvSendIpi(vcpu: KvmVcpu, low: bigint, high: bigint, min: bigint, icr: bigint, long: boolean): bigint {
  if (icr & (APIC_ICR_LOGICAL | APIC_ICR_SHORTHAND)) return -KVM_EINVAL;
  const cluster = long ? 64n : 32n;
  const bitmap = low | (high << cluster);
  let count = 0n;
  for (let bit = 0; bit < Number(cluster) * 2; bit++) {
    if (!((bitmap >> BigInt(bit)) & 1n)) continue;
    const target = vcpuByApicId(vcpu, Number(min) + bit);
    if (!target?.apic) continue;
    const mode = Number((icr >> 8n) & 7n);
    target.apic.chip.accept(
      mode,
      Number(icr & 0xffn),
      (icr & APIC_ICR_LEVEL) !== 0n,
      (icr & APIC_ICR_ASSERT) !== 0n || mode !== DeliveryMode.INIT,
    );
    count++;
  }
  return count;
}

/** KVM_HC_MAP_GPA_RANGE: userspace's business, if it wants it (KVM_CAP_EXIT_HYPERCALL). */
function mapGpaRange(vcpu: KvmVcpu, gpa: bigint, npages: bigint, attrs: bigint, long: boolean): bigint | null {
  if (!(vcpu.kvm.arch.hypercallExitEnabled & (1n << BigInt(KVM_HC.MAP_GPA_RANGE)))) return -KVM_ENOSYS;
  const wraps = BigInt.asUintN(64, (gpa >> 12n) + npages) <= gpa >> 12n;
  if (gpa & PAGE_MASK || npages === 0n || wraps) return -KVM_EINVAL;
  vcpu.run.exit = {
    exit_reason: KvmExit.HYPERCALL,
    hypercall: {
      nr: BigInt(KVM_HC.MAP_GPA_RANGE),
      args: [gpa, npages, attrs, 0n, 0n, 0n],
      ret: 0n,
      flags: long ? 1n : 0n,
    },
  };
  vcpu.arch.completeUserspaceIo = "completeHypercallExit";
  return TO_USERSPACE;
}

/** complete_hypercall_exit */
export function completeHypercallExit(vcpu: KvmVcpu): number {
  const { exit } = vcpu.run;
  const result = exit.exit_reason === KvmExit.HYPERCALL ? exit.hypercall.ret : 0n;
  return finishHypercall(vcpu, result, is64BitMode(vcpu));
}

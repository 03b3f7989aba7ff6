/** Guest debug registers and KVM_SET_GUEST_DEBUG (arch/x86/kvm/x86.c): whose breakpoints are in the processor. */

import { KvmError } from "./errno";
import { kvmGetLinearRip, kvmGetRflags } from "./kvmCacheRegs";
import { KvmReq, kvmMakeRequest } from "./requests";
import type { KvmVcpu } from "./types";
import { type KvmGuestDebug, KvmGuestdbg } from "./uapi";
import { ExcVector, kvmQueueException } from "./x86Events";

/** switch_db_regs: breakpoints are enabled; guest-owned registers are in the processor without exits; reload from KVM's. */
export const KvmDebugreg = { BP_ENABLED: 1, WONT_EXIT: 2, RELOAD: 4 } as const;

const DR7_BP_EN_MASK = 0xffn;
const DR7_FIXED_1 = 0x400n;
const DR6_FIXED_1 = 0xfffe0ff0n;
const TF = 0x100n;

/** kvm_update_dr7: DR7 that takes effect, userspace's while it debugs with hardware breakpoints. */
export function kvmUpdateDr7(vcpu: KvmVcpu): void {
  const { arch } = vcpu;
  const dr7 = arch.guestDebug & KvmGuestdbg.USE_HW_BP ? arch.guestDebugDr7 : arch.dr7;
  vcpu.module.ops.setDr7(vcpu, dr7);
  arch.switchDbRegs &= ~KvmDebugreg.BP_ENABLED;
  if (dr7 & DR7_BP_EN_MASK) arch.switchDbRegs |= KvmDebugreg.BP_ENABLED;
}

/** kvm_update_dr0123 */
export function kvmUpdateDr0123(vcpu: KvmVcpu): void {
  const { arch } = vcpu;
  if (!(arch.guestDebug & KvmGuestdbg.USE_HW_BP)) arch.effDb = [...arch.db];
}

/** kvm_set_dr. @returns true where #GP(0) is due */
export function kvmSetDr(vcpu: KvmVcpu, dr: number, value: bigint): boolean {
  const { arch } = vcpu;
  switch (dr) {
    case 0:
    case 1:
    case 2:
    case 3:
      arch.db[dr] = value;
      if (!(arch.guestDebug & KvmGuestdbg.USE_HW_BP)) arch.effDb[dr] = value;
      return false;
    case 4:
    case 6:
      if (value >> 32n) return true;
      arch.dr6 = (value & 0xe00fn) | DR6_FIXED_1 | 0x10000n;
      return false;
    default:
      if (value >> 32n) return true;
      arch.dr7 = (value & 0xffff2bffn) | DR7_FIXED_1;
      kvmUpdateDr7(vcpu);
      return false;
  }
}

/** kvm_get_dr */
export function kvmGetDr(vcpu: KvmVcpu, dr: number): bigint {
  if (dr < 4) return vcpu.arch.db[dr];
  return dr === 4 || dr === 6 ? vcpu.arch.dr6 : vcpu.arch.dr7;
}

/** kvm_arch_vcpu_ioctl_set_guest_debug; unknown control bits do nothing. @throws KvmError EBUSY */
export function kvmArchVcpuIoctlSetGuestDebug(vcpu: KvmVcpu, dbg: KvmGuestDebug): void {
  const { arch } = vcpu;
  const { ops } = vcpu.module;
  if (dbg.control & (KvmGuestdbg.INJECT_DB | KvmGuestdbg.INJECT_BP)) {
    if (arch.exception.pending) throw new KvmError("EBUSY", "KVM_SET_GUEST_DEBUG", "an exception is pending already");
    kvmQueueException(vcpu, dbg.control & KvmGuestdbg.INJECT_DB ? ExcVector.DB : ExcVector.BP);
  }
  // Read while the TF of a debugger that steps already is still left out: it must not become the guest's.
  const rflags = kvmGetRflagsForUser(vcpu);
  const blocked = arch.guestDebug & KvmGuestdbg.BLOCKIRQ;
  arch.guestDebug = dbg.control & KvmGuestdbg.ENABLE ? dbg.control : 0;
  // Blocked interrupts inhibit APICv (APICV_INHIBIT_REASON_BLOCKIRQ).
  if ((arch.guestDebug & KvmGuestdbg.BLOCKIRQ) !== blocked) kvmMakeRequest(KvmReq.APICV_UPDATE, vcpu);
  if (arch.guestDebug & KvmGuestdbg.USE_HW_BP) {
    for (let i = 0; i < 4; i++) arch.effDb[i] = dbg.debugreg[i] ?? 0n;
    arch.guestDebugDr7 = dbg.debugreg[7] ?? DR7_FIXED_1;
  } else {
    arch.effDb = [...arch.db];
  }
  kvmUpdateDr7(vcpu);
  if (arch.guestDebug & KvmGuestdbg.SINGLESTEP) arch.singlestepRip = kvmGetLinearRip(vcpu);
  kvmSetRflags(vcpu, rflags);
  ops.updateExceptionBitmap(vcpu);
}

/** kvm_set_rflags: with single-stepping by userspace TF is set at the address it started from. */
export function kvmSetRflags(vcpu: KvmVcpu, rflags: bigint): void {
  const stepping =
    (vcpu.arch.guestDebug & KvmGuestdbg.SINGLESTEP) !== 0 && kvmGetLinearRip(vcpu) === vcpu.arch.singlestepRip;
  vcpu.module.ops.setRflags(vcpu, stepping ? rflags | TF : rflags);
}

/** kvm_get_rflags as userspace sees it: without the debugger's TF. */
export function kvmGetRflagsForUser(vcpu: KvmVcpu): bigint {
  const rflags = kvmGetRflags(vcpu);
  return vcpu.arch.guestDebug & KvmGuestdbg.SINGLESTEP ? rflags & ~TF : rflags;
}

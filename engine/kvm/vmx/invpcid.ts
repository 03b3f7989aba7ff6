/** INVPCID exits, which shadow paging needs (arch/x86/kvm/vmx/vmx.c handle_invpcid; SDM 2A INVPCID). */
import { Seg } from "../../cpu/state";
import { Field } from "../../cpu/vmx/fields";
import { guestCpuidHas } from "../cpuid";
import { Cr4, is64BitMode, kvmReadCr3, kvmReadCr4, kvmRegisterRead } from "../kvmCacheRegs";
import { kvmVcpuReadGuest } from "../memslots";
import { Pferr } from "../mmu/fault";
import { kvmMmuInvlpg } from "../mmu/mmu";
import { gvaToGpa } from "../mmu/pagingTmpl";
import { KvmReq, kvmMakeRequest } from "../requests";
import type { KvmVcpu } from "../types";
import {
  ExcVector,
  kvmInjectGp,
  kvmInjectPageFault,
  kvmQueueException,
  kvmSkipEmulatedInstruction,
} from "../x86Events";
import { vmxGetExitQual } from "./run";
import { vmcsRead32 } from "./vmcs";

const InvpcidType = { INDIVIDUAL: 0, SINGLE: 1, ALL_WITH_GLOBAL: 2, ALL: 3 } as const;
const DESCRIPTOR_BYTES = 16;
const MASK32 = 0xffff_ffffn;

/** get_vmx_mem_address: linear address of the memory operand, from instruction information (SDM 3C table 28-9). */
function memoryOperand(vcpu: KvmVcpu, displacement: bigint, info: number): bigint {
  let offset = displacement;
  if (!(info & (1 << 27))) offset += kvmRegisterRead(vcpu, (info >>> 23) & 15);
  if (!(info & (1 << 22))) offset += kvmRegisterRead(vcpu, (info >>> 18) & 15) << BigInt(info & 3);
  const addressSize = (info >>> 7) & 7;
  if (addressSize === 1) offset &= MASK32;
  else if (addressSize === 0) offset &= 0xffffn;
  const segment = (info >>> 15) & 7;
  if (is64BitMode(vcpu)) {
    const based = segment === Seg.FS || segment === Seg.GS;
    return BigInt.asUintN(64, offset + (based ? vcpu.module.ops.getSegmentBase(vcpu, segment) : 0n));
  }
  return (offset + vcpu.module.ops.getSegmentBase(vcpu, segment)) & MASK32;
}

/** handle_invpcid */
export function handleInvpcid(vcpu: KvmVcpu): number {
  if (!guestCpuidHas(vcpu, 7, 0, "ebx", 10)) {
    kvmQueueException(vcpu, ExcVector.UD);
    return 1;
  }
  const info = vmcsRead32(vcpu, Field.VMX_INSTRUCTION_INFO);
  const type = kvmRegisterRead(vcpu, (info >>> 28) & 15);
  const linear = memoryOperand(vcpu, BigInt.asIntN(64, vmxGetExitQual(vcpu)), info);
  const descriptor = new Uint8Array(DESCRIPTOR_BYTES);
  for (let done = 0; done < DESCRIPTOR_BYTES; ) {
    const at = linear + BigInt(done);
    const t = gvaToGpa(vcpu, at, 0, true);
    if (!t.ok) {
      kvmInjectPageFault(vcpu, at, t.errorCode & ~Pferr.WRITE);
      return 1;
    }
    const bytes = Math.min(DESCRIPTOR_BYTES - done, 4096 - Number(at & 0xfffn));
    kvmVcpuReadGuest(vcpu, t.gpa, descriptor.subarray(done, done + bytes));
    done += bytes;
  }
  return kvmHandleInvpcid(vcpu, type, new DataView(descriptor.buffer));
}

/** kvm_handle_invpcid */
function kvmHandleInvpcid(vcpu: KvmVcpu, type: bigint, descriptor: DataView): number {
  const low = descriptor.getBigUint64(0, true);
  const pcid = low & 0xfffn;
  const pcide = (kvmReadCr4(vcpu) & Cr4.PCIDE) !== 0n;
  if (type > 3n || low >> 12n !== 0n) return fault(vcpu);
  switch (Number(type)) {
    case InvpcidType.INDIVIDUAL: {
      const gva = descriptor.getBigUint64(8, true);
      if ((!pcide && pcid !== 0n) || BigInt.asUintN(64, BigInt.asIntN(48, gva)) !== gva) return fault(vcpu);
      if (!pcide || pcid === (kvmReadCr3(vcpu) & 0xfffn)) kvmMmuInvlpg(vcpu, gva);
      else kvmMakeRequest(KvmReq.TLB_FLUSH_GUEST, vcpu);
      break;
    }
    case InvpcidType.SINGLE:
      if (!pcide && pcid !== 0n) return fault(vcpu);
      kvmMakeRequest(KvmReq.TLB_FLUSH_GUEST, vcpu);
      break;
    default:
      kvmMakeRequest(KvmReq.TLB_FLUSH_GUEST, vcpu);
  }
  return kvmSkipEmulatedInstruction(vcpu);
}

function fault(vcpu: KvmVcpu): number {
  kvmInjectGp(vcpu, 0);
  return 1;
}

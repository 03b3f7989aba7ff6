/**
 * The FPU and vector state of a vCPU as userspace reads and writes it (arch/x86/kvm/x86.c, arch/x86/kernel/fpu/xstate.c):
 * KVM_GET_FPU and KVM_SET_FPU by parts, KVM_GET_XSAVE and its kin as an XSAVE area in the standard format (SDM 1 13.4).
 */
import { KvmError } from "./errno";
import type { KvmModuleBase } from "./moduleBase";
import type { KvmVcpu } from "./types";
import type { KvmFpu } from "./uapi";

/** Offsets from the start of the saved FPU area (Off.FCW). */
export const FPU_AREA = {
  FCW: 0,
  FSW: 2,
  FTW: 4,
  FOP: 6,
  FIP: 8,
  FDP: 0x10,
  MXCSR: 0x1c,
  X87: 0x20,
  VECTOR: 0x100,
} as const;

/** sizeof(struct kvm_xsave): what KVM_GET_XSAVE always gives. */
export const KVM_XSAVE_SIZE = 4096;
const MXCSR_FEATURE_MASK = 0xffff;
const XSAVE_HEADER = 512;
const XSAVE_HEADER_SIZE = 64;
const AVX_OFFSET = 576;
const Xfeature = { FP: 1n, SSE: 2n, AVX: 4n } as const;

const viewOf = (area: Uint8Array): DataView => new DataView(area.buffer, area.byteOffset, area.byteLength);

/** KVM_GET_FPU */
export function kvmArchVcpuIoctlGetFpu(vcpu: KvmVcpu): KvmFpu {
  const area = vcpu.arch.guestFpu;
  const view = viewOf(area);
  const fsw = view.getUint16(FPU_AREA.FSW, true);
  const top = (fsw >> 11) & 7;
  const fpr = new Uint8Array(128);
  const xmm = new Uint8Array(256);
  for (let i = 0; i < 8; i++) {
    const at = FPU_AREA.X87 + ((top + i) & 7) * 16;
    fpr.set(area.subarray(at, at + 10), i * 16);
  }
  for (let i = 0; i < 16; i++) {
    xmm.set(area.subarray(FPU_AREA.VECTOR + i * 64, FPU_AREA.VECTOR + i * 64 + 16), i * 16);
  }
  return {
    fpr,
    xmm,
    fcw: view.getUint16(FPU_AREA.FCW, true),
    fsw,
    ftwx: view.getUint16(FPU_AREA.FTW, true) & 0xff,
    last_opcode: view.getUint16(FPU_AREA.FOP, true),
    last_ip: view.getBigUint64(FPU_AREA.FIP, true),
    last_dp: view.getBigUint64(FPU_AREA.FDP, true),
    mxcsr: view.getUint32(FPU_AREA.MXCSR, true),
  };
}

/** KVM_SET_FPU */
export function kvmArchVcpuIoctlSetFpu(vcpu: KvmVcpu, fpu: KvmFpu): void {
  const area = vcpu.arch.guestFpu;
  const view = viewOf(area);
  const top = (fpu.fsw >> 11) & 7;
  view.setUint16(FPU_AREA.FCW, fpu.fcw, true);
  view.setUint16(FPU_AREA.FSW, fpu.fsw, true);
  view.setUint16(FPU_AREA.FTW, fpu.ftwx, true);
  view.setUint16(FPU_AREA.FOP, fpu.last_opcode, true);
  view.setBigUint64(FPU_AREA.FIP, fpu.last_ip, true);
  view.setBigUint64(FPU_AREA.FDP, fpu.last_dp, true);
  view.setUint32(FPU_AREA.MXCSR, fpu.mxcsr & MXCSR_FEATURE_MASK, true);
  for (let i = 0; i < 8; i++) {
    area.set(fpu.fpr.subarray(i * 16, i * 16 + 10), FPU_AREA.X87 + ((top + i) & 7) * 16);
  }
  for (let i = 0; i < 16; i++) area.set(fpu.xmm.subarray(i * 16, i * 16 + 16), FPU_AREA.VECTOR + i * 64);
}

/** kvm_caps.supported_xcr0: the components KVM offers in CPUID leaf 0Dh; x87 and SSE without XSAVE. */
export function supportedXcr0(module: KvmModuleBase): bigint {
  const leaf = module.host.processors[0].model.leaves.find((l) => l.leaf === 0xd && (l.subleaf ?? 0) === 0);
  const all = Xfeature.FP | Xfeature.SSE | Xfeature.AVX;
  return leaf ? BigInt(leaf.eax >>> 0) & all : Xfeature.FP | Xfeature.SSE;
}

/** KVM_CAP_XSAVE2: bytes of KVM_GET_XSAVE2's area. Nothing the model has reaches beyond struct kvm_xsave. */
export const kvmXsaveSize = (_module: KvmModuleBase): number => KVM_XSAVE_SIZE;

/** fpu_copy_guest_fpstate_to_uabi. @param size bytes of userspace's buffer */
export function kvmVcpuIoctlX86GetXsave(vcpu: KvmVcpu, size: number): Uint8Array {
  const out = new Uint8Array(size);
  const view = viewOf(out);
  const fpu = kvmArchVcpuIoctlGetFpu(vcpu);
  view.setUint16(0, fpu.fcw, true);
  view.setUint16(2, fpu.fsw, true);
  out[4] = fpu.ftwx;
  view.setUint16(6, fpu.last_opcode, true);
  view.setBigUint64(8, fpu.last_ip, true);
  view.setBigUint64(16, fpu.last_dp, true);
  view.setUint32(24, fpu.mxcsr, true);
  view.setUint32(28, MXCSR_FEATURE_MASK, true);
  out.set(fpu.fpr, 32);
  out.set(fpu.xmm, 160);
  const features = supportedXcr0(vcpu.module);
  view.setBigUint64(XSAVE_HEADER, features, true);
  if (features & Xfeature.AVX) {
    const area = vcpu.arch.guestFpu;
    for (let i = 0; i < 16; i++) {
      const upper = FPU_AREA.VECTOR + i * 64 + 16;
      out.set(area.subarray(upper, upper + 16), AVX_OFFSET + i * 16);
    }
  }
  return out;
}

/** fpu_copy_uabi_to_guest_fpstate: components whose bit is clear in the header get their initial state. @throws KvmError EINVAL */
export function kvmVcpuIoctlX86SetXsave(vcpu: KvmVcpu, image: Uint8Array): void {
  const fail = (errno: "EINVAL" | "EFAULT", why: string): never => {
    throw new KvmError(errno, "KVM_SET_XSAVE", why);
  };
  if (image.length < AVX_OFFSET) fail("EFAULT", "the area is too short");
  const view = viewOf(image);
  const features = view.getBigUint64(XSAVE_HEADER, true);
  if (features & ~supportedXcr0(vcpu.module))
    fail("EINVAL", `XSTATE_BV 0x${features.toString(16)} has unsupported components`);
  for (let at = XSAVE_HEADER + 8; at < XSAVE_HEADER + XSAVE_HEADER_SIZE; at += 8) {
    if (view.getBigUint64(at, true) !== 0n) fail("EINVAL", "the area is not in the standard format");
  }
  const mxcsr = view.getUint32(24, true);
  if (features & (Xfeature.SSE | Xfeature.AVX) && mxcsr & ~MXCSR_FEATURE_MASK)
    fail("EINVAL", "MXCSR has reserved bits");
  const hasX87 = (features & Xfeature.FP) !== 0n;
  const hasSse = (features & Xfeature.SSE) !== 0n;
  kvmArchVcpuIoctlSetFpu(vcpu, {
    fpr: hasX87 ? image.subarray(32, 160) : new Uint8Array(128),
    fcw: hasX87 ? view.getUint16(0, true) : 0x37f,
    fsw: hasX87 ? view.getUint16(2, true) : 0,
    ftwx: hasX87 ? image[4] : 0,
    last_opcode: hasX87 ? view.getUint16(6, true) : 0,
    last_ip: hasX87 ? view.getBigUint64(8, true) : 0n,
    last_dp: hasX87 ? view.getBigUint64(16, true) : 0n,
    xmm: hasSse ? image.subarray(160, 416) : new Uint8Array(256),
    mxcsr: features & (Xfeature.SSE | Xfeature.AVX) ? mxcsr : 0x1f80,
  });
  const area = vcpu.arch.guestFpu;
  for (let i = 0; i < 16; i++) {
    const upper = FPU_AREA.VECTOR + i * 64 + 16;
    if (features & Xfeature.AVX) area.set(image.subarray(AVX_OFFSET + i * 16, AVX_OFFSET + i * 16 + 16), upper);
    else area.fill(0, upper, upper + 16);
  }
}

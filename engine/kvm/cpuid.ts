/**
 * CPUID of guests (arch/x86/kvm/cpuid.c): what KVM can offer (KVM_GET_SUPPORTED_CPUID), the table userspace set
 * (KVM_SET_CPUID2), and the bits that follow the guest's own state.
 */
import { KvmError } from "./errno";
import { Cr4, EferBit, kvmReadCr4, kvmRegRead32, kvmRegWrite32 } from "./kvmCacheRegs";
import { KvmFeature } from "./kvmPara";
import { kvmGetApicBase } from "./lapic";
import type { KvmModuleBase } from "./moduleBase";
import { type KvmVcpu, VcpuReg } from "./types";
import { KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_X86_DISABLE_EXITS, type KvmCpuidEntry2, KvmX86Quirk } from "./uapi";
import { kvmSkipEmulatedInstruction } from "./x86Events";

/** Entries KVM_SET_CPUID2 takes at most. */
export const KVM_MAX_CPUID_ENTRIES = 256;
const KVM_CPUID_SIGNATURE = 0x40000000;
const KVM_CPUID_FEATURES = 0x40000001;

/** A register CPUID answers in. */
export type CpuidReg = "eax" | "ebx" | "ecx" | "edx";

/** Leaves whose answer depends on ECX. */
const INDEXED_LEAVES: ReadonlySet<number> = new Set([
  4, 7, 0xb, 0xd, 0xf, 0x10, 0x12, 0x14, 0x17, 0x18, 0x1d, 0x1e, 0x1f, 0x8000001d,
]);

/** Bits a word of features may keep: the host's bits cut to what KVM knows how to give a guest. */
// biome-ignore format: a table
const KVM_CPU_CAPS: readonly { leaf: number; index: number; reg: CpuidReg; mask: number; emulated: number }[] = [
  // SSE3 PCLMUL SSSE3 FMA CX16 PCID SSE4.1 SSE4.2 MOVBE POPCNT AES XSAVE AVX F16C RDRAND; x2APIC and TSC deadline are emulated
  { leaf: 1, index: 0, reg: "ecx", mask: 0x76fa3203 & ~0x80000000, emulated: (1 << 21) | (1 << 24) },
  // everything to SSE2, ACPI and thermal left out
  { leaf: 1, index: 0, reg: "edx", mask: 0x078bfbff, emulated: 0 },
  // FSGSBASE BMI1 AVX2 SMEP BMI2 ERMS INVPCID RDSEED ADX SMAP CLFLUSHOPT CLWB SHA; TSC_ADJUST is emulated
  { leaf: 7, index: 0, reg: "ebx", mask: 0x219c07a9 & ~0x2, emulated: 0x2 },
  // UMIP PKU RDPID
  { leaf: 7, index: 0, reg: "ecx", mask: 0x0040000c & ~0x8, emulated: 0 },
  // SPEC_CTRL STIBP ARCH_CAPABILITIES SSBD
  { leaf: 7, index: 0, reg: "edx", mask: 0xac000000, emulated: 0 },
  // XSAVEOPT XSAVEC XGETBV1 XSAVES
  { leaf: 0xd, index: 1, reg: "eax", mask: 0xf, emulated: 0 },
  { leaf: 0xd, index: 1, reg: "ecx", mask: 0, emulated: 0 },
  { leaf: 0xd, index: 1, reg: "edx", mask: 0, emulated: 0 },
  // LAHF ABM PREFETCHW
  { leaf: 0x80000001, index: 0, reg: "ecx", mask: 0x00000121, emulated: 0 },
  // SYSCALL NX PDPE1GB RDTSCP LM, and the copies of leaf 1 on AMD
  { leaf: 0x80000001, index: 0, reg: "edx", mask: 0x2c100800, emulated: 0 },
];

/** Paravirtual features KVM offers; userspace chooses from them. */
const KVM_FEATURES_EAX = [
  KvmFeature.CLOCKSOURCE,
  KvmFeature.NOP_IO_DELAY,
  KvmFeature.CLOCKSOURCE2,
  KvmFeature.ASYNC_PF,
  KvmFeature.STEAL_TIME,
  KvmFeature.PV_EOI,
  KvmFeature.PV_UNHALT,
  KvmFeature.PV_TLB_FLUSH,
  KvmFeature.ASYNC_PF_VMEXIT,
  KvmFeature.PV_SEND_IPI,
  KvmFeature.POLL_CONTROL,
  KvmFeature.PV_SCHED_YIELD,
  KvmFeature.ASYNC_PF_INT,
  KvmFeature.CLOCKSOURCE_STABLE_BIT,
].reduce<number>((word, bit) => (word | (1 << bit)) >>> 0, 0);

/** KVM_GET_SUPPORTED_CPUID */
export function kvmDevIoctlGetCpuid(module: KvmModuleBase): KvmCpuidEntry2[] {
  const { model } = module.host.processors[0];
  const entries: KvmCpuidEntry2[] = [];
  for (const leaf of model.leaves) {
    if (leaf.leaf >= KVM_CPUID_SIGNATURE && leaf.leaf < 0x80000000) continue;
    const index = leaf.subleaf ?? 0;
    const entry: KvmCpuidEntry2 = {
      function: leaf.leaf,
      index,
      flags: INDEXED_LEAVES.has(leaf.leaf) ? KVM_CPUID_FLAG_SIGNIFCANT_INDEX : 0,
      eax: leaf.eax >>> 0,
      ebx: leaf.ebx >>> 0,
      ecx: leaf.ecx >>> 0,
      edx: leaf.edx >>> 0,
    };
    for (const caps of KVM_CPU_CAPS) {
      if (caps.leaf !== leaf.leaf || caps.index !== index) continue;
      entry[caps.reg] = ((entry[caps.reg] & caps.mask) | caps.emulated) >>> 0;
    }
    switch (leaf.leaf) {
      case 1:
        entry.ecx = (entry.ecx | (1 << 31)) >>> 0; // a hypervisor is present
        entry.ebx &= 0x0000ff00; // the APIC id and number of processors are userspace's to fill in
        entry.ecx &= ~(1 << 27); // OSXSAVE follows CR4
        entry.ecx >>>= 0;
        break;
      case 5:
      case 6:
        // MONITOR/MWAIT and thermal management are not offered; ARAT is (bit 2).
        entry.eax = leaf.leaf === 6 ? 4 : 0;
        entry.ebx = 0;
        entry.ecx = 0;
        entry.edx = 0;
        break;
      case 0xa:
        entry.eax = 0;
        entry.ebx = 0;
        entry.ecx = 0;
        entry.edx = 0;
        break;
    }
    entries.push(entry);
  }
  const signature = (text: string): number =>
    (text.charCodeAt(0) | (text.charCodeAt(1) << 8) | (text.charCodeAt(2) << 16) | (text.charCodeAt(3) << 24)) >>> 0;
  entries.push(
    {
      function: KVM_CPUID_SIGNATURE,
      index: 0,
      flags: 0,
      eax: KVM_CPUID_FEATURES,
      ebx: signature("KVMK"),
      ecx: signature("VMKV"),
      edx: signature("M\0\0\0"),
    },
    { function: KVM_CPUID_FEATURES, index: 0, flags: 0, eax: KVM_FEATURES_EAX, ebx: 0, ecx: 0, edx: 0 },
  );
  return entries;
}

/** KVM_GET_EMULATED_CPUID: MOVBE and RDPID are in the instruction emulator. */
export function kvmDevIoctlGetEmulatedCpuid(): KvmCpuidEntry2[] {
  const none = { index: 0, flags: 0, eax: 0, ebx: 0, ecx: 0, edx: 0 };
  return [
    { ...none, function: 0, eax: 7 },
    { ...none, function: 1, ecx: 1 << 22 },
    { ...none, function: 7, flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX, ecx: 1 << 22 },
  ];
}

/** kvm_find_cpuid_entry_index */
export const kvmFindCpuidEntry = (vcpu: KvmVcpu, leaf: number, index: number): KvmCpuidEntry2 | undefined =>
  cpuidEntry2Find(vcpu.arch.cpuidEntries, leaf, index);

/** cpuid_entry2_find */
function cpuidEntry2Find(entries: readonly KvmCpuidEntry2[], leaf: number, index: number): KvmCpuidEntry2 | undefined {
  for (const e of entries) {
    if (e.function !== leaf) continue;
    if (!(e.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX) || e.index === index) return e;
  }
  return undefined;
}

/** guest_cpuid_has, by word and bit. */
export function guestCpuidHas(vcpu: KvmVcpu, leaf: number, index: number, reg: CpuidReg, bit: number): boolean {
  const entry = kvmFindCpuidEntry(vcpu, leaf, index);
  return entry !== undefined && ((entry[reg] >>> bit) & 1) !== 0;
}

/** guest_pv_has: every feature, unless userspace wants the guest held to its CPUID (KVM_CAP_ENFORCE_PV_FEATURE_CPUID). */
export const guestPvHas = (vcpu: KvmVcpu, feature: number): boolean =>
  !vcpu.arch.pvEnforce || ((vcpu.arch.pvFeatures >>> feature) & 1) !== 0;

/** kvm_update_pv_runtime */
export function kvmUpdatePvRuntime(vcpu: KvmVcpu): void {
  const entry = kvmFindCpuidEntry(vcpu, KVM_CPUID_FEATURES, 0);
  vcpu.arch.pvFeatures = entry ? entry.eax >>> 0 : 0;
}

/** KVM_SET_CPUID2. @throws KvmError E2BIG, EINVAL, and EINVAL once the vCPU has run with another table */
export function kvmVcpuIoctlSetCpuid2(vcpu: KvmVcpu, entries: readonly KvmCpuidEntry2[]): void {
  if (entries.length > KVM_MAX_CPUID_ENTRIES) {
    throw new KvmError("E2BIG", "KVM_SET_CPUID2", `at most ${KVM_MAX_CPUID_ENTRIES} entries`);
  }
  const table = entries.map((e) => ({ ...e }));
  if (vcpu.arch.lastVmentryCpu !== -1) {
    // kvm_cpuid_check_equal, after the new table's runtime bits have been brought up to date.
    updateCpuidRuntime(vcpu, table);
    const current = vcpu.arch.cpuidEntries;
    const fields = ["function", "index", "flags", "eax", "ebx", "ecx", "edx"] as const;
    const same =
      table.length === current.length &&
      table.every((e, i) => fields.every((field) => e[field] >>> 0 === current[i][field] >>> 0));
    if (!same) throw new KvmError("EINVAL", "KVM_SET_CPUID2", "the vCPU has run; its CPUID may not change any more");
    return;
  }
  const addressSizes = entries.find((e) => e.function === 0x80000008);
  const linear = addressSizes ? (addressSizes.eax >> 8) & 0xff : 0;
  if (linear !== 0 && linear !== 48 && linear !== 57) {
    throw new KvmError("EINVAL", "KVM_SET_CPUID2", `${linear} linear-address bits: 48 and 57 exist`);
  }
  vcpu.arch.cpuidEntries = table;
  kvmUpdateCpuidRuntime(vcpu);
  kvmVcpuAfterSetCpuid(vcpu);
}

/** kvm_update_cpuid_runtime: OSXSAVE follows CR4, APIC follows IA32_APIC_BASE, MONITOR follows IA32_MISC_ENABLE. */
export function kvmUpdateCpuidRuntime(vcpu: KvmVcpu): void {
  updateCpuidRuntime(vcpu, vcpu.arch.cpuidEntries);
}

/** __kvm_update_cpuid_runtime */
function updateCpuidRuntime(vcpu: KvmVcpu, entries: readonly KvmCpuidEntry2[]): void {
  const setBit = (e: KvmCpuidEntry2, reg: CpuidReg, bit: number, on: boolean) => {
    e[reg] = (on ? e[reg] | (1 << bit) : e[reg] & ~(1 << bit)) >>> 0;
  };
  const one = cpuidEntry2Find(entries, 1, 0);
  if (one) {
    if ((one.ecx >>> 26) & 1) setBit(one, "ecx", 27, (kvmReadCr4(vcpu) & Cr4.OSXSAVE) !== 0n);
    setBit(one, "edx", 9, (kvmGetApicBase(vcpu) & (1n << 11n)) !== 0n);
    if (vcpu.kvm.arch.disabledQuirks & BigInt(KvmX86Quirk.MISC_ENABLE_NO_MWAIT)) {
      setBit(one, "ecx", 3, (vcpu.arch.ia32MiscEnable & (1n << 18n)) !== 0n);
    }
  }
  // A guest that halts without exits cannot be woken by a kick.
  const pv = cpuidEntry2Find(entries, KVM_CPUID_FEATURES, 0);
  if (pv && vcpu.kvm.arch.disabledExits & KVM_X86_DISABLE_EXITS.HLT) setBit(pv, "eax", KvmFeature.PV_UNHALT, false);
  const seven = cpuidEntry2Find(entries, 7, 0);
  if (seven && (seven.ecx >>> 3) & 1) setBit(seven, "ecx", 4, (kvmReadCr4(vcpu) & Cr4.PKE) !== 0n);
}

/** kvm_vcpu_after_set_cpuid: what hangs on the table. */
function kvmVcpuAfterSetCpuid(vcpu: KvmVcpu): void {
  const { arch } = vcpu;
  const extended = kvmFindCpuidEntry(vcpu, 0x80000000, 0);
  const sizes = extended && extended.eax >= 0x80000008 ? kvmFindCpuidEntry(vcpu, 0x80000008, 0) : undefined;
  arch.maxphyaddr = sizes ? sizes.eax & 0xff : 36;
  arch.cr4GuestRsvdBits = cr4GuestRsvdBits(vcpu);
  kvmUpdatePvRuntime(vcpu);
  vcpu.module.ops.vcpuAfterSetCpuid(vcpu);
}

/**
 * CR4 bits the guest may not set: KVM cannot give it what they switch (cr4_reserved_bits), or its CPUID does not have it.
 * A vCPU whose CPUID userspace has not set yet is only held to the former.
 */
export function cr4GuestRsvdBits(vcpu: KvmVcpu): bigint {
  const reserved = cr4ReservedBits(kvmDevIoctlGetCpuid(vcpu.module));
  const { cpuidEntries } = vcpu.arch;
  return cpuidEntries.length === 0 ? reserved : reserved | cr4ReservedBits(cpuidEntries);
}

/** __cr4_reserved_bits: what a CPUID table leaves of CR4. */
function cr4ReservedBits(entries: readonly KvmCpuidEntry2[]): bigint {
  const has = (leaf: number, reg: CpuidReg, bit: number): boolean =>
    (((cpuidEntry2Find(entries, leaf, 0)?.[reg] ?? 0) >>> bit) & 1) !== 0;
  let reserved =
    ~(
      Cr4.VME |
      Cr4.PVI |
      Cr4.TSD |
      Cr4.DE |
      Cr4.PSE |
      Cr4.PAE |
      Cr4.MCE |
      Cr4.PGE |
      Cr4.PCE |
      Cr4.OSFXSR |
      Cr4.OSXMMEXCPT
    ) &
    ((1n << 64n) - 1n);
  if (has(1, "ecx", 26)) reserved &= ~Cr4.OSXSAVE;
  if (has(1, "ecx", 17)) reserved &= ~Cr4.PCIDE;
  if (has(7, "ebx", 0)) reserved &= ~Cr4.FSGSBASE;
  if (has(7, "ebx", 7)) reserved &= ~Cr4.SMEP;
  if (has(7, "ebx", 20)) reserved &= ~Cr4.SMAP;
  if (has(7, "ecx", 2)) reserved &= ~Cr4.UMIP;
  if (has(7, "ecx", 3)) reserved &= ~Cr4.PKE;
  if (has(7, "ecx", 16)) reserved &= ~Cr4.LA57;
  return reserved;
}

/** kvm_cpuid: the answer for EAX, ECX, with Intel's rule for leaves out of range: those of the highest basic one. */
export function kvmCpuid(
  vcpu: KvmVcpu,
  leaf: number,
  index: number,
): { eax: number; ebx: number; ecx: number; edx: number } {
  let entry = kvmFindCpuidEntry(vcpu, leaf, index);
  if (!entry) {
    const base = leaf >= 0x80000000 ? 0x80000000 : leaf >= 0x40000000 && leaf < 0x50000000 ? 0x40000000 : 0;
    const limits = kvmFindCpuidEntry(vcpu, base, 0);
    const outOfRange = base !== 0x40000000 && (!limits || leaf > limits.eax);
    const basic = kvmFindCpuidEntry(vcpu, 0, 0);
    if (outOfRange && basic) entry = kvmFindCpuidEntry(vcpu, basic.eax, index);
  }
  if (entry) {
    const { eax, edx } = entry;
    let { ebx, ecx } = entry;
    // XSAVE area of the features that are enabled now.
    if (leaf === 0xd && index === 0) ebx = xsaveSize(vcpu.arch.xcr0);
    if (leaf === 0xd && index === 1 && entry.eax & (XSAVEC | XSAVES)) ebx = xsaveSize(vcpu.arch.xcr0 | vcpu.arch.xss);
    ecx >>>= 0;
    return { eax, ebx, ecx, edx };
  }
  // A missing subleaf of the topology leaves still tells level number and APIC id.
  if (leaf === 0xb || leaf === 0x1f) {
    const first = kvmFindCpuidEntry(vcpu, leaf, 1);
    if (first) return { eax: 0, ebx: 0, ecx: index & 0xff, edx: first.edx };
  }
  return { eax: 0, ebx: 0, ecx: 0, edx: 0 };
}

/** Bits of leaf 0Dh, subleaf 1, EAX. */
const XSAVEC = 2;
const XSAVES = 8;

/** xstate_required_size for x87, SSE and AVX. */
const xsaveSize = (xcr0: bigint): number => (xcr0 & 4n ? 832 : 576);

/** kvm_emulate_cpuid: the handler of EXIT_REASON_CPUID. */
export function kvmEmulateCpuid(vcpu: KvmVcpu): number {
  const leaf = kvmRegRead32(vcpu, VcpuReg.RAX);
  const index = kvmRegRead32(vcpu, VcpuReg.RCX);
  const { eax, ebx, ecx, edx } = kvmCpuid(vcpu, leaf, index);
  kvmRegWrite32(vcpu, VcpuReg.RAX, eax);
  kvmRegWrite32(vcpu, VcpuReg.RBX, ebx);
  kvmRegWrite32(vcpu, VcpuReg.RCX, ecx);
  kvmRegWrite32(vcpu, VcpuReg.RDX, edx);
  return kvmSkipEmulatedInstruction(vcpu);
}

/** EFER bits the guest may set. */
export function guestEferBits(vcpu: KvmVcpu): bigint {
  let bits = 0n;
  if (guestCpuidHas(vcpu, 0x80000001, 0, "edx", 11)) bits |= EferBit.SCE;
  if (guestCpuidHas(vcpu, 0x80000001, 0, "edx", 29)) bits |= EferBit.LME | EferBit.LMA;
  if (guestCpuidHas(vcpu, 0x80000001, 0, "edx", 20)) bits |= EferBit.NX;
  return bits;
}

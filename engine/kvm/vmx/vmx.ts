/**
 * The Intel module's handling of a vCPU (arch/x86/kvm/vmx/vmx.c): its VMCS, the guest registers kept there, loading on a
 * physical processor, and host state. Running is in run.ts, exits are in exits.ts.
 */
import { Off, Seg } from "../../cpu/state";
import { CpuBased, PinBased, SecondaryExec, VmEntryControl, VmExitControl } from "../../cpu/vmx/controls";
import { Field } from "../../cpu/vmx/fields";
import { guestCpuidHas, kvmUpdateCpuidRuntime } from "../cpuid";
import { KvmBug } from "../errno";
import { HOST_TABLES, HostSelector, rdmsrl, SYSENTER_ENTRY, VMX_VMEXIT, wrmsrl } from "../hostKernel";
import {
  Cr0,
  Cr4,
  EferBit,
  isPaePaging,
  isPaging,
  kvmReadCr0,
  kvmReadCr3,
  kvmReadCr4,
  kvmRegisterIsDirty,
  kvmRegisterMarkAvailable,
  kvmRegisterMarkDirty,
} from "../kvmCacheRegs";
import { kvmSetApicBase } from "../lapic";
import { gfnToMemslot, kvmSetMemoryRegion, slotToHpa } from "../memslots";
import type { KvmModuleBase } from "../moduleBase";
import { Msr } from "../msrs";
import { DEFAULT_TSC_SCALING_RATIO } from "../pvclock";
import { KvmReq, kvmMakeRequest } from "../requests";
import { APIC_ACCESS_PAGE_PRIVATE_MEMSLOT, type Kvm, type KvmVcpu, PAGE_SIZE, VcpuReg } from "../types";
import { KVM_X86_DISABLE_EXITS } from "../uapi";
import { ExcVector } from "../x86Events";
import { vmxSetVirtualApicMode } from "./apicv";
import { kvmVcpuApicvActive } from "./apicvState";
import { EptCap } from "./capabilities";
import { initMsrBitmap } from "./msrBitmap";
import { initPml } from "./pml";
import {
  enterPmode,
  enterRmode,
  initRmodeIdentityMap,
  initRmodeTss,
  rmodeReadRflags,
  rmodeWriteRflags,
  updateEmulationRequired,
} from "./rmode";
import { segSetup, vmxSetGdt, vmxSetIdt } from "./segments";
import {
  controlsClearBit,
  controlsSet,
  controlsSetBit,
  loadedCpu,
  vmcsRead,
  vmcsRead32,
  vmcsWrite,
  vmcsWrite32,
} from "./vmcs";

const APIC_DEFAULT_PHYS_BASE = 0xfee00000;
const CR0_ALWAYS_OFF = Cr0.NW | Cr0.CD;
/** CR0 bits the guest may own with EPT: TS and WP. */
const KVM_POSSIBLE_CR0_GUEST_BITS = Cr0.TS | Cr0.WP;
const KVM_POSSIBLE_CR4_GUEST_BITS =
  Cr4.PVI | Cr4.DE | Cr4.PCE | Cr4.OSFXSR | Cr4.OSXMMEXCPT | Cr4.PGE | Cr4.TSD | Cr4.FSGSBASE;
const U64 = (1n << 64n) - 1n;

/** Bits of GUEST_INTERRUPTIBILITY_INFO. */
export const GuestIntrState = { STI: 1, MOV_SS: 2, SMI: 4, NMI: 8 } as const;

// --- module ---------------------------------------------------------------------------------------------------------

/** vmx_hardware_enable: CR4.VMXE and VMXON. */
export function vmxHardwareEnable(module: KvmModuleBase, cpuId: number): void {
  const cpu = module.host.processors[cpuId];
  const perCpu = module.state.perCpu[cpuId];
  cpu.state.setU64(Off.CR4, cpu.state.u64(Off.CR4) | Cr4.VMXE);
  cpu.contextChanged();
  const result = cpu.vmx.vmxon(perCpu.vmxArea);
  if (result !== 0) throw new KvmBug(`VMXON on processor ${cpuId} failed: ${result}`);
  perCpu.vmxEnabled = true;
  if (module.features.ept) cpu.vmx.invept(2, 0n);
}

/** vmx_hardware_disable */
export function vmxHardwareDisable(module: KvmModuleBase, cpuId: number): void {
  const cpu = module.host.processors[cpuId];
  const perCpu = module.state.perCpu[cpuId];
  if (!perCpu.vmxEnabled) return;
  cpu.vmx.vmxoff();
  cpu.state.setU64(Off.CR4, cpu.state.u64(Off.CR4) & ~Cr4.VMXE);
  cpu.contextChanged();
  perCpu.vmxEnabled = false;
  perCpu.currentVmcs = -1;
}

// --- VPIDs ----------------------------------------------------------------------------------------------------------

function allocateVpid(module: KvmModuleBase): number {
  if (!module.features.vpid) return 0;
  const { vpids } = module.state;
  let vpid = vpids.indexOf(false);
  if (vpid < 0) vpid = vpids.length;
  if (vpid > 0xffff) return 0;
  vpids[vpid] = true;
  return vpid;
}

function freeVpid(module: KvmModuleBase, vpid: number): void {
  if (vpid !== 0) module.state.vpids[vpid] = false;
}

// --- creation -------------------------------------------------------------------------------------------------------

/** alloc_vmcs_cpu: a VMCS region with its revision. */
function allocateVmcs(module: KvmModuleBase): number {
  const pa = module.host.allocatePages(1);
  const { memory } = module.host;
  memory.view.setUint32(memory.hostOffset(pa), module.config.revisionId, true);
  return pa;
}

/** vmx_vcpu_create. The VMCS is filled in by the reset that follows. */
export function vmxVcpuCreate(vcpu: KvmVcpu): void {
  const { module, vmx } = vcpu;
  vmx.vpid = allocateVpid(module);
  vmx.vmcs = allocateVmcs(module);
  vmx.msrBitmap = module.host.allocatePages(1);
  vmx.virtualApicPage = module.host.allocatePages(1);
  if (module.features.apicv) vmx.apicv.descriptor = module.host.allocatePages(1);
  initMsrBitmap(vcpu);
  if (cpuNeedVirtualizeApicAccesses(vcpu)) kvmAllocApicAccessPage(vcpu.kvm);
  if (module.features.ept && !module.features.unrestrictedGuest) initRmodeIdentityMap(vcpu.kvm);
}

/** vmx_vcpu_free */
export function vmxVcpuFree(vcpu: KvmVcpu): void {
  const { module, vmx } = vcpu;
  loadedVmcsClear(vcpu);
  freeVpid(module, vmx.vpid);
  for (const page of [vmx.vmcs, vmx.msrBitmap, vmx.virtualApicPage, vmx.apicv.descriptor, vmx.pmlPage])
    if (page >= 0) module.host.freePages(page, 1);
}

const cpuNeedTprShadow = (vcpu: KvmVcpu): boolean =>
  (vcpu.module.config.cpuBasedExecCtrl & CpuBased.TPR_SHADOW) !== 0 && vcpu.apic !== null;
const cpuNeedVirtualizeApicAccesses = (vcpu: KvmVcpu): boolean =>
  vcpu.module.features.flexpriority && vcpu.apic !== null;

/** kvm_alloc_apic_access_page: one page for all vCPUs; accesses to it exit. */
function kvmAllocApicAccessPage(kvm: Kvm): void {
  if (kvm.arch.apicAccessMemslotEnabled) return;
  kvm.arch.apicAccessPage = kvm.module.host.allocatePages(1);
  kvmSetMemoryRegion(
    kvm,
    {
      slot: APIC_ACCESS_PAGE_PRIVATE_MEMSLOT,
      flags: 0,
      guest_phys_addr: APIC_DEFAULT_PHYS_BASE,
      memory_size: PAGE_SIZE,
      userspace_addr: 0,
    },
    kvm.arch.apicAccessPage,
  );
  kvm.arch.apicAccessMemslotEnabled = true;
}

/** vmx_set_tss_addr: where the TSS of real-mode code lies; unrestricted guest needs none. */
export function vmxSetTssAddr(kvm: Kvm, addr: number): void {
  if (!kvm.module.features.unrestrictedGuest) initRmodeTss(kvm, addr);
  kvm.arch.tssAddr = addr;
}

/** vmx_set_identity_map_addr: where the first vCPU puts the map for guests without paging. */
export function vmxSetIdentityMapAddr(kvm: Kvm, addr: number): void {
  kvm.arch.identityMapAddr = addr;
}

// --- controls -------------------------------------------------------------------------------------------------------

function vmxExecControl(vcpu: KvmVcpu): number {
  const { config, features } = vcpu.module;
  const disabled = vcpu.kvm.arch.disabledExits;
  let exec = config.cpuBasedExecCtrl;
  exec &= ~(
    CpuBased.RDTSC_EXITING |
    CpuBased.USE_IO_BITMAPS |
    CpuBased.MONITOR_TRAP_FLAG |
    CpuBased.PAUSE_EXITING |
    CpuBased.INTR_WINDOW_EXITING |
    CpuBased.NMI_WINDOW_EXITING
  );
  if (!cpuNeedTprShadow(vcpu)) {
    exec &= ~CpuBased.TPR_SHADOW;
    exec |= CpuBased.CR8_LOAD_EXITING | CpuBased.CR8_STORE_EXITING;
  }
  if (features.ept) exec &= ~(CpuBased.CR3_LOAD_EXITING | CpuBased.CR3_STORE_EXITING | CpuBased.INVLPG_EXITING);
  if (disabled & KVM_X86_DISABLE_EXITS.MWAIT) exec &= ~(CpuBased.MWAIT_EXITING | CpuBased.MONITOR_EXITING);
  if (disabled & KVM_X86_DISABLE_EXITS.HLT) exec &= ~CpuBased.HLT_EXITING;
  return exec >>> 0;
}

function vmxSecondaryExecControl(vcpu: KvmVcpu): number {
  const { config, features } = vcpu.module;
  let exec = config.cpuBased2ndExecCtrl;
  const has = (leaf: number, reg: "ebx" | "ecx" | "edx", bit: number) => guestCpuidHas(vcpu, leaf, 0, reg, bit);
  if (!cpuNeedVirtualizeApicAccesses(vcpu)) exec &= ~SecondaryExec.VIRTUALIZE_APIC_ACCESSES;
  if (vcpu.vmx.vpid === 0) exec &= ~SecondaryExec.ENABLE_VPID;
  if (!features.ept) exec &= ~SecondaryExec.ENABLE_EPT;
  if (!features.unrestrictedGuest) exec &= ~SecondaryExec.UNRESTRICTED_GUEST;
  if (vcpu.kvm.arch.disabledExits & KVM_X86_DISABLE_EXITS.PAUSE || features.pleGap === 0) {
    exec &= ~SecondaryExec.PAUSE_LOOP_EXITING;
  }
  exec &= ~(
    SecondaryExec.APIC_REGISTER_VIRT |
    SecondaryExec.VIRTUAL_INTR_DELIVERY |
    SecondaryExec.VIRTUALIZE_X2APIC_MODE |
    SecondaryExec.DESC |
    SecondaryExec.SHADOW_VMCS |
    SecondaryExec.ENABLE_PML
  );
  if (!guestCpuidHas(vcpu, 0xd, 1, "eax", 3)) exec &= ~SecondaryExec.ENABLE_XSAVES;
  // The multiplier costs every RDTSC; it is on for vCPUs whose rate is not the host's.
  if (!features.tscScaling || vcpu.arch.tscScalingRatio === DEFAULT_TSC_SCALING_RATIO)
    exec &= ~SecondaryExec.TSC_SCALING;
  // Instructions the guest's CPUID does not have must fault, or exit so that KVM can fault them.
  if (!has(0x80000001, "edx", 27) && !has(7, "ecx", 22)) exec &= ~SecondaryExec.ENABLE_RDTSCP;
  if (!has(7, "ebx", 10)) exec &= ~SecondaryExec.ENABLE_INVPCID;
  if (has(1, "ecx", 30)) exec &= ~SecondaryExec.RDRAND_EXITING;
  if (has(7, "ebx", 18)) exec &= ~SecondaryExec.RDSEED_EXITING;
  return exec >>> 0;
}

/** vmx_set_constant_host_state: what never changes while the VMCS lives, apart from the processor it is on. */
function vmxSetConstantHostState(vcpu: KvmVcpu): void {
  const cpu = loadedCpu(vcpu);
  vmcsWrite(vcpu, Field.HOST_CR0, cpu.state.u64(Off.CR0) & ~Cr0.TS);
  vmcsWrite(vcpu, Field.HOST_CR3, cpu.state.u64(Off.CR3));
  vmcsWrite(vcpu, Field.HOST_CR4, cpu.state.u64(Off.CR4));
  vmcsWrite32(vcpu, Field.HOST_CS_SELECTOR, HostSelector.KERNEL_CS);
  vmcsWrite32(vcpu, Field.HOST_DS_SELECTOR, 0);
  vmcsWrite32(vcpu, Field.HOST_ES_SELECTOR, 0);
  vmcsWrite32(vcpu, Field.HOST_SS_SELECTOR, HostSelector.KERNEL_DS);
  vmcsWrite32(vcpu, Field.HOST_TR_SELECTOR, HostSelector.TSS);
  vmcsWrite(vcpu, Field.HOST_IDTR_BASE, HOST_TABLES.IDT_BASE);
  vmcsWrite(vcpu, Field.HOST_RIP, VMX_VMEXIT);
  vmcsWrite32(vcpu, Field.HOST_IA32_SYSENTER_CS, HostSelector.KERNEL_CS);
  vmcsWrite(vcpu, Field.HOST_IA32_SYSENTER_EIP, SYSENTER_ENTRY);
  const { vmexitCtrl } = vcpu.module.config;
  if (vmexitCtrl & VmExitControl.LOAD_IA32_PAT) vmcsWrite(vcpu, Field.HOST_IA32_PAT, rdmsrl(cpu, Msr.PAT));
  if (vmexitCtrl & VmExitControl.LOAD_IA32_EFER) vmcsWrite(vcpu, Field.HOST_IA32_EFER, rdmsrl(cpu, Msr.EFER));
}

/** init_vmcs */
function initVmcs(vcpu: KvmVcpu): void {
  const { module, vmx, arch } = vcpu;
  const { config, features } = module;
  if (features.msrBitmap) vmcsWrite(vcpu, Field.MSR_BITMAP, BigInt(vmx.msrBitmap));
  vmcsWrite(vcpu, Field.VMCS_LINK_POINTER, U64);
  let pin = config.pinBasedExecCtrl & ~(PinBased.POSTED_INTR | PinBased.VMX_PREEMPTION_TIMER);
  if (!features.vnmi) pin &= ~PinBased.VIRTUAL_NMIS;
  controlsSet(vcpu, "pin", pin);
  controlsSet(vcpu, "exec", vmxExecControl(vcpu));
  if (config.cpuBasedExecCtrl & CpuBased.ACTIVATE_SECONDARY_CONTROLS) {
    controlsSet(vcpu, "secondaryExec", vmxSecondaryExecControl(vcpu));
  }
  if (features.pleGap !== 0) {
    vmcsWrite32(vcpu, Field.PLE_GAP, features.pleGap);
    vmx.pleWindow = module.params.ple_window;
    vmx.pleWindowDirty = true;
  }
  vmcsWrite32(vcpu, Field.PAGE_FAULT_ERROR_CODE_MASK, 0);
  vmcsWrite32(vcpu, Field.PAGE_FAULT_ERROR_CODE_MATCH, 0);
  vmcsWrite32(vcpu, Field.CR3_TARGET_COUNT, 0);
  vmcsWrite32(vcpu, Field.HOST_FS_SELECTOR, 0);
  vmcsWrite32(vcpu, Field.HOST_GS_SELECTOR, 0);
  vmxSetConstantHostState(vcpu);
  vmcsWrite(vcpu, Field.HOST_FS_BASE, 0n);
  vmcsWrite(vcpu, Field.HOST_GS_BASE, 0n);
  vmcsWrite32(vcpu, Field.VM_EXIT_MSR_STORE_COUNT, 0);
  vmcsWrite32(vcpu, Field.VM_EXIT_MSR_LOAD_COUNT, 0);
  vmcsWrite32(vcpu, Field.VM_ENTRY_MSR_LOAD_COUNT, 0);
  if (features.loadPat) vmcsWrite(vcpu, Field.GUEST_IA32_PAT, arch.pat);
  controlsSet(vcpu, "vmExit", config.vmexitCtrl & ~VmExitControl.LOAD_IA32_EFER);
  controlsSet(vcpu, "vmEntry", config.vmentryCtrl & ~(VmEntryControl.LOAD_IA32_EFER | VmEntryControl.IA32E_MODE));
  // With shadow paging CR0.WP shapes the tables, so KVM must see it.
  arch.cr0GuestOwnedBits = features.ept ? KVM_POSSIBLE_CR0_GUEST_BITS : KVM_POSSIBLE_CR0_GUEST_BITS & ~Cr0.WP;
  vmcsWrite(vcpu, Field.CR0_GUEST_HOST_MASK, ~arch.cr0GuestOwnedBits & U64);
  setCr4GuestHostMask(vcpu);
  if (vmx.vpid !== 0) vmcsWrite32(vcpu, Field.VIRTUAL_PROCESSOR_ID, vmx.vpid);
  if (config.cpuBasedExecCtrl & CpuBased.TPR_SHADOW) {
    vmcsWrite(vcpu, Field.VIRTUAL_APIC_PAGE_ADDR, cpuNeedTprShadow(vcpu) ? BigInt(vmx.virtualApicPage) : 0n);
    vmcsWrite32(vcpu, Field.TPR_THRESHOLD, 0);
  }
  vmcsWrite(vcpu, Field.TSC_OFFSET, arch.tscOffset);
  if (features.tscScaling) vmcsWrite(vcpu, Field.TSC_MULTIPLIER, arch.tscScalingRatio);
  initPml(vcpu);
}

/** set_cr4_guest_host_mask */
function setCr4GuestHostMask(vcpu: KvmVcpu): void {
  vcpu.arch.cr4GuestOwnedBits = KVM_POSSIBLE_CR4_GUEST_BITS & ~vcpu.arch.cr4GuestRsvdBits;
  if (!vcpu.module.features.ept) vcpu.arch.cr4GuestOwnedBits &= ~Cr4.PGE;
  vmcsWrite(vcpu, Field.CR4_GUEST_HOST_MASK, ~vcpu.arch.cr4GuestOwnedBits & U64);
}

/** vmx_vcpu_reset: what is in the VMCS, at power-up and INIT (SDM 3A table 9-1). */
export function vmxVcpuReset(vcpu: KvmVcpu, initEvent: boolean): void {
  const { vmx } = vcpu;
  // The CR0 of the reset enters real mode afresh.
  vmx.rmode.vm86Active = false;
  if (!initEvent) {
    initVmcs(vcpu);
    vmx.msrIa32FeatureControl = 0n;
  }
  kvmSetApicBaseOnReset(vcpu);
  vmcsWrite32(vcpu, Field.GUEST_ACTIVITY_STATE, 0);
  vmcsWrite32(vcpu, Field.GUEST_INTERRUPTIBILITY_INFO, 0);
  vmcsWrite(vcpu, Field.GUEST_PENDING_DBG_EXCEPTIONS, 0n);
  for (const seg of [Seg.CS, Seg.DS, Seg.ES, Seg.FS, Seg.GS, Seg.SS]) segSetup(vcpu, seg);
  vmcsWrite32(vcpu, Field.GUEST_CS_SELECTOR, 0xf000);
  vmcsWrite(vcpu, Field.GUEST_CS_BASE, 0xffff0000n);
  vmcsWrite32(vcpu, Field.GUEST_TR_SELECTOR, 0);
  vmcsWrite(vcpu, Field.GUEST_TR_BASE, 0n);
  vmcsWrite32(vcpu, Field.GUEST_TR_LIMIT, 0xffff);
  vmcsWrite32(vcpu, Field.GUEST_TR_AR_BYTES, 0x8b);
  vmcsWrite32(vcpu, Field.GUEST_LDTR_SELECTOR, 0);
  vmcsWrite(vcpu, Field.GUEST_LDTR_BASE, 0n);
  vmcsWrite32(vcpu, Field.GUEST_LDTR_LIMIT, 0xffff);
  vmcsWrite32(vcpu, Field.GUEST_LDTR_AR_BYTES, 0x82);
  vmxSetGdt(vcpu, { base: 0n, limit: 0xffff });
  vmxSetIdt(vcpu, { base: 0n, limit: 0xffff });
  vmcsWrite32(vcpu, Field.VM_ENTRY_INTR_INFO_FIELD, 0);
  if (!initEvent) {
    vmcsWrite32(vcpu, Field.GUEST_SYSENTER_CS, 0);
    vmcsWrite(vcpu, Field.GUEST_SYSENTER_ESP, 0n);
    vmcsWrite(vcpu, Field.GUEST_SYSENTER_EIP, 0n);
    vmcsWrite(vcpu, Field.GUEST_IA32_DEBUGCTL, 0n);
  }
  vmxUpdateExceptionBitmap(vcpu);
  kvmMakeRequest(KvmReq.APIC_PAGE_RELOAD, vcpu);
  vmxSetVirtualApicMode(vcpu);
  vmx.emulationRequired = false;
}

/** The APIC base of a reset vCPU; a LAPIC in the kernel has reset its own. */
function kvmSetApicBaseOnReset(vcpu: KvmVcpu): void {
  if (vcpu.apic) return;
  const bsp = vcpu.state.vcpuId === vcpu.kvm.arch.bspVcpuId ? 0x100n : 0n;
  kvmSetApicBase(vcpu, BigInt(APIC_DEFAULT_PHYS_BASE) | 0x800n | bsp, true);
}

// --- loading --------------------------------------------------------------------------------------------------------

/** loaded_vmcs_clear: VMCLEAR on the processor the VMCS is active on. */
function loadedVmcsClear(vcpu: KvmVcpu): void {
  const { module, vmx } = vcpu;
  if (vmx.loadedCpu < 0) return;
  const cpu = module.host.processors[vmx.loadedCpu];
  const perCpu = module.state.perCpu[vmx.loadedCpu];
  cpu.vmx.vmclear(vmx.vmcs);
  if (perCpu.currentVmcs === vmx.vmcs) perCpu.currentVmcs = -1;
  vmx.loadedCpu = -1;
  vmx.launched = false;
}

/** vmx_vcpu_load: makes the VMCS current on physical processor `cpuId`, after clearing it on another one. */
export function vmxVcpuLoad(vcpu: KvmVcpu, cpuId: number): void {
  const { module, vmx } = vcpu;
  const alreadyLoaded = vmx.loadedCpu === cpuId;
  const cpu = module.host.processors[cpuId];
  const perCpu = module.state.perCpu[cpuId];
  if (!alreadyLoaded) {
    if (vmx.loadedCpu >= 0) loadedVmcsClear(vcpu);
    else cpu.vmx.vmclear(vmx.vmcs);
  }
  if (perCpu.currentVmcs !== vmx.vmcs) {
    perCpu.currentVmcs = vmx.vmcs;
    const result = cpu.vmx.vmptrld(vmx.vmcs);
    if (result !== 0) throw new KvmBug(`VMPTRLD on processor ${cpuId} failed: ${result}`);
  }
  if (!alreadyLoaded) {
    // The new processor may have stale translations of this vCPU from before.
    kvmMakeRequest(KvmReq.TLB_FLUSH, vcpu);
    vmcsWrite(vcpu, Field.HOST_TR_BASE, HOST_TABLES.TSS_BASE + BigInt(cpuId) * 0x4000n);
    vmcsWrite(vcpu, Field.HOST_GDTR_BASE, HOST_TABLES.GDT_BASE);
    vmcsWrite(vcpu, Field.HOST_IA32_SYSENTER_ESP, HOST_TABLES.TSS_BASE + BigInt(cpuId) * 0x4000n);
    vmx.loadedCpu = cpuId;
  }
}

/** vmx_vcpu_put */
export function vmxVcpuPut(vcpu: KvmVcpu): void {
  vmxPrepareSwitchToHost(vcpu);
}

/** vmx_prepare_switch_to_guest: MSRs that stay in the processor until it goes back to userspace or another task. */
export function vmxPrepareSwitchToGuest(vcpu: KvmVcpu): void {
  const { vmx } = vcpu;
  const cpu = loadedCpu(vcpu);
  if (!vmx.guestUretMsrsLoaded) {
    vmx.guestUretMsrsLoaded = true;
    wrmsrl(cpu, Msr.STAR, vmx.uretMsrs.star);
    wrmsrl(cpu, Msr.LSTAR, vmx.uretMsrs.lstar);
    wrmsrl(cpu, Msr.CSTAR, vmx.uretMsrs.cstar);
    wrmsrl(cpu, Msr.SYSCALL_MASK, vmx.uretMsrs.syscallMask);
    wrmsrl(cpu, Msr.TSC_AUX, vmx.uretMsrs.tscAux);
  }
  if (vmx.guestStateLoaded) return;
  wrmsrl(cpu, Msr.KERNEL_GS_BASE, vmx.msrGuestKernelGsBase);
  vmcsWrite(vcpu, Field.HOST_GS_BASE, HOST_TABLES.PERCPU_BASE + BigInt(cpu.id) * 0x40000n);
  vmx.guestStateLoaded = true;
}

function vmxPrepareSwitchToHost(vcpu: KvmVcpu): void {
  const { vmx } = vcpu;
  if (!vmx.guestStateLoaded) return;
  vcpu.stat.host_state_reload++;
  vmx.msrGuestKernelGsBase = rdmsrl(loadedCpu(vcpu), Msr.KERNEL_GS_BASE);
  vmx.guestStateLoaded = false;
  vmx.guestUretMsrsLoaded = false;
}

// --- control registers ----------------------------------------------------------------------------------------------

/** vmx_cache_reg: reads a register that lies in the VMCS. */
export function vmxCacheReg(vcpu: KvmVcpu, reg: number): void {
  const { arch } = vcpu;
  kvmRegisterMarkAvailable(vcpu, reg);
  switch (reg) {
    case VcpuReg.RSP:
      arch.regs[VcpuReg.RSP] = vmcsRead(vcpu, Field.GUEST_RSP);
      break;
    case VcpuReg.RIP:
      arch.regs[VcpuReg.RIP] = vmcsRead(vcpu, Field.GUEST_RIP);
      break;
    case VcpuReg.PDPTR:
      if (isPaePaging(vcpu) && vcpu.module.features.ept) {
        arch.pdptrs[0] = vmcsRead(vcpu, Field.GUEST_PDPTR0);
        arch.pdptrs[1] = vmcsRead(vcpu, Field.GUEST_PDPTR1);
        arch.pdptrs[2] = vmcsRead(vcpu, Field.GUEST_PDPTR2);
        arch.pdptrs[3] = vmcsRead(vcpu, Field.GUEST_PDPTR3);
      }
      break;
    case VcpuReg.CR0: {
      const owned = arch.cr0GuestOwnedBits;
      arch.cr0 = (arch.cr0 & ~owned) | (vmcsRead(vcpu, Field.GUEST_CR0) & owned);
      break;
    }
    case VcpuReg.CR3:
      // Where MOV to CR3 exits, GUEST_CR3 is KVM's own.
      if (!(vcpu.vmx.controls.exec & CpuBased.CR3_STORE_EXITING)) arch.cr3 = vmcsRead(vcpu, Field.GUEST_CR3);
      break;
    case VcpuReg.CR4: {
      const owned = arch.cr4GuestOwnedBits;
      arch.cr4 = (arch.cr4 & ~owned) | (vmcsRead(vcpu, Field.GUEST_CR4) & owned);
      break;
    }
  }
}

/** vmx_get_rflags: as the guest sees them, also while it runs in virtual-8086 mode for real mode. */
export function vmxGetRflags(vcpu: KvmVcpu): bigint {
  if (!(vcpu.arch.regsAvail & (1 << VcpuReg.RFLAGS))) {
    kvmRegisterMarkAvailable(vcpu, VcpuReg.RFLAGS);
    const rflags = vmcsRead(vcpu, Field.GUEST_RFLAGS);
    vcpu.vmx.rflags = vcpu.vmx.rmode.vm86Active ? rmodeReadRflags(vcpu, rflags) : rflags;
  }
  return vcpu.vmx.rflags;
}

/** vmx_set_rflags */
export function vmxSetRflags(vcpu: KvmVcpu, rflags: bigint): void {
  kvmRegisterMarkAvailable(vcpu, VcpuReg.RFLAGS);
  vcpu.vmx.rflags = rflags;
  vmcsWrite(vcpu, Field.GUEST_RFLAGS, vcpu.vmx.rmode.vm86Active ? rmodeWriteRflags(vcpu, rflags) : rflags);
  if (!vcpu.module.features.unrestrictedGuest) updateEmulationRequired(vcpu);
}

const TYPE_BUSY_64_TSS = 11;

function enterLmode(vcpu: KvmVcpu): void {
  const ar = vmcsRead32(vcpu, Field.GUEST_TR_AR_BYTES);
  // VM entry wants a busy 64-bit TSS in IA-32e mode; a TSS loaded before stays what it was to the guest.
  if ((ar & 15) !== TYPE_BUSY_64_TSS) vmcsWrite32(vcpu, Field.GUEST_TR_AR_BYTES, (ar & ~15) | TYPE_BUSY_64_TSS);
  vmxSetEfer(vcpu, vcpu.arch.efer | EferBit.LMA);
}

function exitLmode(vcpu: KvmVcpu): void {
  vmxSetEfer(vcpu, vcpu.arch.efer & ~EferBit.LMA);
}

/**
 * vmx_set_cr0: with unrestricted guest the processor runs with the guest's CR0, NE set and cache disable ignored; without,
 * it always pages in protected mode, and real mode is virtual-8086 mode.
 */
export function vmxSetCr0(vcpu: KvmVcpu, cr0: bigint): void {
  const { arch } = vcpu;
  const wasPaging = (kvmReadCr0(vcpu) & Cr0.PG) !== 0n;
  const paging = (cr0 & Cr0.PG) !== 0n;
  const { ept, unrestrictedGuest } = vcpu.module.features;
  let hardware = (cr0 & ~CR0_ALWAYS_OFF) | Cr0.NE;
  if (!unrestrictedGuest) {
    hardware |= Cr0.PG | Cr0.PE;
    if (!ept) hardware |= Cr0.WP;
    const { rmode } = vcpu.vmx;
    if (rmode.vm86Active && cr0 & Cr0.PE) enterPmode(vcpu);
    if (!rmode.vm86Active && !(cr0 & Cr0.PE)) enterRmode(vcpu);
  }
  vmcsWrite(vcpu, Field.CR0_READ_SHADOW, cr0);
  vmcsWrite(vcpu, Field.GUEST_CR0, hardware);
  arch.cr0 = cr0;
  kvmRegisterMarkAvailable(vcpu, VcpuReg.CR0);
  if (arch.efer & EferBit.LME) {
    if (!wasPaging && paging) enterLmode(vcpu);
    else if (wasPaging && !paging) exitLmode(vcpu);
  }
  if (unrestrictedGuest) return;
  if (ept) {
    // Without paging CR3 is the identity map's; the guest's own is kept for later.
    const exits = CpuBased.CR3_LOAD_EXITING | CpuBased.CR3_STORE_EXITING;
    if (paging) controlsClearBit(vcpu, "exec", exits);
    else {
      kvmReadCr3(vcpu);
      controlsSetBit(vcpu, "exec", exits);
    }
    if (paging && !wasPaging) kvmRegisterMarkDirty(vcpu, VcpuReg.CR3);
  }
  if (wasPaging !== paging) vmxSetCr4(vcpu, kvmReadCr4(vcpu));
  updateEmulationRequired(vcpu);
}

/** vmx_is_valid_cr4: VMXE is the guest's only with nested virtualization. */
export const vmxIsValidCr4 = (_vcpu: KvmVcpu, cr4: bigint): boolean => (cr4 & Cr4.VMXE) === 0n;

/** What CR4 must be besides while the processor pages and the guest may not (vmx_set_cr4). */
function hardwareCr4(vcpu: KvmVcpu, cr4: bigint): bigint {
  const { ept, unrestrictedGuest } = vcpu.module.features;
  if (unrestrictedGuest) return cr4;
  const paging = isPaging(vcpu);
  let hardware = cr4;
  if (vcpu.vmx.rmode.vm86Active) hardware |= Cr4.VME;
  if (!ept) hardware |= Cr4.PAE;
  // The identity map has 4-MByte pages.
  else if (!paging) hardware = (hardware & ~Cr4.PAE) | Cr4.PSE;
  if (!paging) hardware &= ~(Cr4.SMEP | Cr4.SMAP | Cr4.PKE);
  return hardware;
}

/** vmx_set_cr4 */
export function vmxSetCr4(vcpu: KvmVcpu, cr4: bigint): void {
  const { arch } = vcpu;
  const old = kvmReadCr4(vcpu);
  const hostMce = loadedCpu(vcpu).state.u64(Off.CR4) & Cr4.MCE;
  arch.cr4 = cr4;
  kvmRegisterMarkAvailable(vcpu, VcpuReg.CR4);
  vmcsWrite(vcpu, Field.CR4_READ_SHADOW, cr4);
  vmcsWrite(vcpu, Field.GUEST_CR4, hardwareCr4(vcpu, hostMce | (cr4 & ~Cr4.MCE) | Cr4.VMXE));
  if ((cr4 ^ old) & (Cr4.OSXSAVE | Cr4.PKE)) kvmUpdateCpuidRuntime(vcpu);
}

/** vmx_set_efer */
export function vmxSetEfer(vcpu: KvmVcpu, efer: bigint): void {
  vcpu.arch.efer = efer;
  if (efer & EferBit.LMA) controlsSetBit(vcpu, "vmEntry", VmEntryControl.IA32E_MODE);
  else controlsClearBit(vcpu, "vmEntry", VmEntryControl.IA32E_MODE);
  updateTransitionEfer(vcpu);
}

/** update_transition_efer: entry and exit switch EFER when the guest's is not the host's. */
function updateTransitionEfer(vcpu: KvmVcpu): void {
  const hostEfer = rdmsrl(vcpu.module.host.processors[0], Msr.EFER);
  let guest = vcpu.arch.efer;
  if (!(guest & EferBit.LMA)) guest &= ~EferBit.LME;
  // Shadow tables have execute-disable bits whatever the guest's have.
  if (!vcpu.module.features.ept) guest |= EferBit.NX;
  if (!vcpu.module.features.loadEfer) throw new KvmBug("processors without the load-EFER controls are not modelled");
  if (guest !== hostEfer) {
    vmcsWrite(vcpu, Field.GUEST_IA32_EFER, guest);
    vmcsWrite(vcpu, Field.HOST_IA32_EFER, hostEfer);
    controlsSetBit(vcpu, "vmEntry", VmEntryControl.LOAD_IA32_EFER);
    controlsSetBit(vcpu, "vmExit", VmExitControl.LOAD_IA32_EFER);
  } else {
    controlsClearBit(vcpu, "vmEntry", VmEntryControl.LOAD_IA32_EFER);
    controlsClearBit(vcpu, "vmExit", VmExitControl.LOAD_IA32_EFER);
  }
}

// --- second-level tables and TLB ---------------------------------------------------------------------------------------

/** construct_eptp: write-back, walk length, accessed and dirty flags. */
function constructEptp(module: KvmModuleBase, root: number, level: number): bigint {
  const walk = BigInt(level - 1) << 3n;
  const ad = module.features.eptAdBits ? 1n << 6n : 0n;
  return BigInt(root) | 6n | walk | ad;
}

/** vmx_load_mmu_pgd */
export function vmxLoadMmuPgd(vcpu: KvmVcpu, root: number, level: number): void {
  const { ept, unrestrictedGuest } = vcpu.module.features;
  if (!ept) {
    const pcid = kvmReadCr4(vcpu) & Cr4.PCIDE ? kvmReadCr3(vcpu) & 0xfffn : 0n;
    vmcsWrite(vcpu, Field.GUEST_CR3, BigInt(root) | pcid);
    return;
  }
  vmcsWrite(vcpu, Field.EPT_POINTER, constructEptp(vcpu.module, root, level));
  if (kvmRegisterIsDirty(vcpu, VcpuReg.PDPTR) && isPaePaging(vcpu)) {
    const { pdptrs } = vcpu.arch;
    vmcsWrite(vcpu, Field.GUEST_PDPTR0, pdptrs[0]);
    vmcsWrite(vcpu, Field.GUEST_PDPTR1, pdptrs[1]);
    vmcsWrite(vcpu, Field.GUEST_PDPTR2, pdptrs[2]);
    vmcsWrite(vcpu, Field.GUEST_PDPTR3, pdptrs[3]);
  }
  if (!unrestrictedGuest && !isPaging(vcpu)) {
    vmcsWrite(vcpu, Field.GUEST_CR3, BigInt(vcpu.kvm.arch.identityMapAddr));
  } else if (kvmRegisterIsDirty(vcpu, VcpuReg.CR3)) vmcsWrite(vcpu, Field.GUEST_CR3, vcpu.arch.cr3);
}

/** vmx_flush_tlb_all: everything of this VM on this processor. */
export function vmxFlushTlbAll(vcpu: KvmVcpu): void {
  if (vcpu.module.features.ept) loadedCpu(vcpu).vmx.invept(2, 0n);
  else vmxFlushTlbGuest(vcpu);
}

/** vmx_flush_tlb_current: translations made through the current root. */
export function vmxFlushTlbCurrent(vcpu: KvmVcpu): void {
  const root = vcpu.arch.mmuRoot;
  if (root < 0) return;
  if (!vcpu.module.features.ept) {
    vmxFlushTlbGuest(vcpu);
    return;
  }
  const { vmx } = loadedCpu(vcpu);
  if (vcpu.module.config.eptVpidCap & EptCap.INVEPT_CONTEXT) vmx.invept(1, constructEptp(vcpu.module, root, 4));
  else vmx.invept(2, 0n);
}

/** vmx_flush_tlb_gva */
export function vmxFlushTlbGva(vcpu: KvmVcpu, gva: bigint): void {
  const { vpid } = vcpu.vmx;
  if (vpid !== 0) loadedCpu(vcpu).vmx.invvpid(0, vpid, gva);
}

/** vmx_flush_tlb_guest: linear translations of the guest; without VPID every entry flushes them. */
export function vmxFlushTlbGuest(vcpu: KvmVcpu): void {
  const { vpid } = vcpu.vmx;
  if (vpid === 0) return;
  const { vmx } = loadedCpu(vcpu);
  if (vcpu.module.config.eptVpidCap & EptCap.INVVPID_SINGLE) vmx.invvpid(1, vpid, 0n);
  else vmx.invvpid(2, 0, 0n);
}

// --- exceptions, debug registers, APIC ---------------------------------------------------------------------------------

/** vmx_update_exception_bitmap: with EPT page faults are the guest's own business; real-mode code exits for everything. */
export function vmxUpdateExceptionBitmap(vcpu: KvmVcpu): void {
  let bitmap = (1 << ExcVector.UD) | (1 << ExcVector.MC) | (1 << ExcVector.DB) | (1 << ExcVector.AC);
  if (vcpu.module.params.enable_vmware_backdoor) bitmap |= 1 << ExcVector.GP;
  const softwareBreakpoints = 0x10001;
  if ((vcpu.arch.guestDebug & softwareBreakpoints) === softwareBreakpoints) bitmap |= 1 << ExcVector.BP;
  if (!vcpu.module.features.ept) bitmap |= 1 << ExcVector.PF;
  if (vcpu.vmx.rmode.vm86Active) bitmap = -1;
  vmcsWrite32(vcpu, Field.EXCEPTION_BITMAP, bitmap);
}

/** vmx_sync_dirty_debug_regs: the guest owned its debug registers; from now on accesses exit again. */
export function vmxSyncDirtyDebugRegs(vcpu: KvmVcpu): void {
  const { state } = loadedCpu(vcpu);
  const { arch } = vcpu;
  for (let i = 0; i < 4; i++) arch.db[i] = state.u64(Off.DR0 + i * 8);
  arch.dr6 = state.u64(Off.DR6);
  arch.dr7 = vmcsRead(vcpu, Field.GUEST_DR7);
  arch.switchDbRegs &= ~2;
  controlsSetBit(vcpu, "exec", CpuBased.MOV_DR_EXITING);
  state.setU64(Off.DR6, 0xffff0ff0n);
}

/** vmx_set_dr7 */
export const vmxSetDr7 = (vcpu: KvmVcpu, value: bigint): void => vmcsWrite(vcpu, Field.GUEST_DR7, value);

/** vmx_set_apic_access_page_addr */
export function vmxSetApicAccessPageAddr(vcpu: KvmVcpu): void {
  if (!(vcpu.vmx.controls.secondaryExec & SecondaryExec.VIRTUALIZE_APIC_ACCESSES)) return;
  const gfn = APIC_DEFAULT_PHYS_BASE / PAGE_SIZE;
  const slot = gfnToMemslot(vcpu.kvm, gfn);
  if (!slot || slot.id !== APIC_ACCESS_PAGE_PRIVATE_MEMSLOT) return;
  const hpa = slotToHpa(vcpu.kvm, slot, gfn);
  if (hpa >= 0) vmcsWrite(vcpu, Field.APIC_ACCESS_ADDR, BigInt(hpa));
}

/** vmx_update_cr8_intercept: exit when the guest lowers its TPR below the class of the highest request. */
export function vmxUpdateCr8Intercept(vcpu: KvmVcpu, tpr: number, irr: number): void {
  if (!cpuNeedTprShadow(vcpu) || kvmVcpuApicvActive(vcpu)) return;
  vmcsWrite32(vcpu, Field.TPR_THRESHOLD, irr < 0 || tpr < irr ? 0 : irr);
}

/** vmx_vcpu_after_set_cpuid */
export function vmxVcpuAfterSetCpuid(vcpu: KvmVcpu): void {
  if (vcpu.module.config.cpuBasedExecCtrl & CpuBased.ACTIVATE_SECONDARY_CONTROLS) {
    controlsSet(vcpu, "secondaryExec", vmxSecondaryExecControl(vcpu));
    vmxSetVirtualApicMode(vcpu);
  }
  setCr4GuestHostMask(vcpu);
  vmxUpdateExceptionBitmap(vcpu);
}

/** vmx_write_tsc_multiplier */
export function vmxWriteTscMultiplier(vcpu: KvmVcpu): void {
  if (!vcpu.module.features.tscScaling || vcpu.vmx.loadedCpu < 0) return;
  const { tscScalingRatio } = vcpu.arch;
  vmcsWrite(vcpu, Field.TSC_MULTIPLIER, tscScalingRatio);
  if (tscScalingRatio === DEFAULT_TSC_SCALING_RATIO) controlsClearBit(vcpu, "secondaryExec", SecondaryExec.TSC_SCALING);
  else controlsSetBit(vcpu, "secondaryExec", SecondaryExec.TSC_SCALING);
}

/** vmx_write_tsc_offset */
export const vmxWriteTscOffset = (vcpu: KvmVcpu): void => vmcsWrite(vcpu, Field.TSC_OFFSET, vcpu.arch.tscOffset);

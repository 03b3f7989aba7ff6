/**
 * APICv and posted interrupts (arch/x86/kvm/vmx/vmx.c, posted_intr.c): while the guest runs, the processor serves its local
 * APIC from the virtual-APIC page, and interrupts that arrive meanwhile are posted. Outside the guest the chip's registers
 * are the truth; entry and exit move them.
 */
import { CpuBased, PinBased, SecondaryExec } from "../../cpu/vmx/controls";
import { Field } from "../../cpu/vmx/fields";
import { ApicReg } from "../../devices/local-apic";
import { HostVector } from "../hostKernel";
import { kvmApicBus } from "../irqComm";
import { apicX2apicMode, kvmGetApicBase } from "../lapic";
import { KvmReq, kvmMakeRequest } from "../requests";
import { type KvmVcpu, VcpuMode } from "../types";
import { KvmGuestdbg } from "../uapi";
import { kvmVcpuApicvActive } from "./apicvState";
import { MsrType, setInterceptForMsr } from "./msrBitmap";
import { vmxGetExitQual } from "./run";
import { controlsSet, vmcsWrite, vmcsWrite32 } from "./vmcs";

const APIC_ENABLED = 0x800n;
const X2APIC_MSR = 0x800;
const WORDS = 8;
const IRR = ApicReg.IRR >> 4;
const ISR = ApicReg.ISR >> 4;
const TMR = ApicReg.TMR >> 4;

/** Posted-interrupt descriptor (SDM 3C table 30-1): requests, then ON, notification vector and destination. */
const PI_CONTROL = 32;
const PI_ON = 1;

const EOI_EXIT_BITMAPS = [
  Field.EOI_EXIT_BITMAP0,
  Field.EOI_EXIT_BITMAP1,
  Field.EOI_EXIT_BITMAP2,
  Field.EOI_EXIT_BITMAP3,
];

/** Registers RDMSR may read (kvm_lapic_readable_reg_mask), by offset >> 4; the current count moves and so exits. */
const READABLE = [
  0x2, 0x3, 0x8, 0xa, 0xd, 0xf, 0x28, 0x30, 0x32, 0x33, 0x34, 0x35, 0x36, 0x37, 0x38, 0x3e,
  ...Array.from({ length: 24 }, (_, i) => 0x10 + i),
]; // biome-ignore format: a list

/** vmx->apicv and vmx->pi_desc */
export interface ApicvState {
  /** Page that holds the posted-interrupt descriptor, -1 without APICv. */
  descriptor: number;
  /** What the EOI-exit bitmaps hold. */
  eoiExit: Uint32Array;
}
/** State of a vCPU before any interrupt was posted. */
export const newApicvState = (): ApicvState => ({ descriptor: -1, eoiExit: new Uint32Array(WORDS) });

/**
 * kvm_vcpu_apicv_activated: not while userspace blocks interrupts, nor while the local APIC is disabled by software, when it
 * drops what the processor would deliver.
 */
const apicvWanted = (vcpu: KvmVcpu): boolean =>
  vcpu.module.features.apicv && vcpu.apic?.chip.enabled === true && !(vcpu.arch.guestDebug & KvmGuestdbg.BLOCKIRQ);

/** The local APIC's registers have changed: APICv may have to go on or off. */
export function vmxCheckApicv(vcpu: KvmVcpu): void {
  if (!vcpu.module.features.apicv || apicvWanted(vcpu) === kvmVcpuApicvActive(vcpu)) return;
  kvmMakeRequest(KvmReq.APICV_UPDATE, vcpu);
}

/**
 * vmx_set_virtual_apic_mode and vmx_refresh_apicv_exec_ctrl: what of the local APIC the processor virtualizes, by the mode it
 * is in. Userspace that blocks interrupts inhibits APICv.
 */
export function vmxSetVirtualApicMode(vcpu: KvmVcpu): void {
  const { module, vmx } = vcpu;
  const { config, features } = module;
  if (!vcpu.apic || !(config.cpuBasedExecCtrl & CpuBased.TPR_SHADOW)) return;
  let exec =
    vmx.controls.secondaryExec &
    ~(
      SecondaryExec.VIRTUALIZE_APIC_ACCESSES |
      SecondaryExec.VIRTUALIZE_X2APIC_MODE |
      SecondaryExec.APIC_REGISTER_VIRT |
      SecondaryExec.VIRTUAL_INTR_DELIVERY
    );
  const active = apicvWanted(vcpu);
  if (active) exec |= SecondaryExec.APIC_REGISTER_VIRT | SecondaryExec.VIRTUAL_INTR_DELIVERY;
  const enabled = (kvmGetApicBase(vcpu) & APIC_ENABLED) !== 0n;
  if (enabled && apicX2apicMode(vcpu)) {
    exec |= config.cpuBased2ndExecCtrl & SecondaryExec.VIRTUALIZE_X2APIC_MODE;
  } else if (enabled && features.flexpriority) {
    exec |= SecondaryExec.VIRTUALIZE_APIC_ACCESSES;
    kvmMakeRequest(KvmReq.APIC_PAGE_RELOAD, vcpu);
    kvmMakeRequest(KvmReq.TLB_FLUSH_CURRENT, vcpu);
  }
  controlsSet(vcpu, "secondaryExec", exec);
  const pin = vmx.controls.pin & ~PinBased.POSTED_INTR;
  controlsSet(vcpu, "pin", active ? pin | PinBased.POSTED_INTR : pin);
  if (active) {
    vmcsWrite32(vcpu, Field.POSTED_INTR_NV, HostVector.POSTED_INTR);
    vmcsWrite(vcpu, Field.POSTED_INTR_DESC_ADDR, BigInt(vmx.apicv.descriptor));
    vmcsWrite32(vcpu, Field.TPR_THRESHOLD, 0);
  }
  updateX2apicBitmap(vcpu, active, (exec & SecondaryExec.VIRTUALIZE_X2APIC_MODE) !== 0);
  kvmMakeRequest(KvmReq.EVENT, vcpu);
}

/** vmx_update_msr_bitmap_x2apic */
function updateX2apicBitmap(vcpu: KvmVcpu, active: boolean, x2apic: boolean): void {
  for (const register of READABLE) {
    const intercept = !(x2apic && (active || register << 4 === ApicReg.TPR));
    setInterceptForMsr(vcpu, X2APIC_MSR + register, MsrType.R, intercept);
  }
  const write = (offset: number, open: boolean) =>
    setInterceptForMsr(vcpu, X2APIC_MSR + (offset >> 4), MsrType.W, !open);
  write(ApicReg.TPR, x2apic);
  write(ApicReg.EOI, x2apic && active);
  write(ApicReg.SELF_IPI, x2apic && active);
}

const pageWords = (vcpu: KvmVcpu): number => vcpu.module.host.memory.hostOffset(vcpu.vmx.virtualApicPage) >> 2;
const descriptorWords = (vcpu: KvmVcpu): number => vcpu.module.host.memory.hostOffset(vcpu.vmx.apicv.descriptor) >> 2;

const highest = (registers: Uint32Array, first: number): number => {
  for (let i = WORDS - 1; i >= 0; i--) {
    const word = registers[first + i];
    if (word !== 0) return i * 32 + 31 - Math.clz32(word);
  }
  return 0;
};

/**
 * The registers go into the virtual-APIC page, the highest request and the vector in service into the guest interrupt
 * status. From here on the chip's IRR collects what arrives while the guest runs.
 */
export function apicvEnter(vcpu: KvmVcpu): void {
  const { apic, module, vmx } = vcpu;
  if (!apic) return;
  const { u32 } = module.host.memory;
  const { registers } = apic.state;
  const page = pageWords(vcpu);
  for (let i = 0; i < 64; i++) u32[page + i * 4] = registers[i];
  // RDMSR of the ICR reads 64 bits.
  u32[page + (ApicReg.ICR_LOW >> 2) + 1] = apic.chip.x2apicMode ? registers[ApicReg.ICR_HIGH >> 4] : 0;
  vmcsWrite32(vcpu, Field.GUEST_INTR_STATUS, highest(registers, IRR) | (highest(registers, ISR) << 8));
  for (let i = 0; i < WORDS; i++) registers[IRR + i] = 0;
  loadEoiExitmap(vcpu, registers, vmx.apicv.eoiExit);
}

/** vmx_load_eoi_exitmap: EOIs the I/O APIC, or somebody who listens for acknowledgements, must hear of. */
function loadEoiExitmap(vcpu: KvmVcpu, registers: Uint32Array, eoiExit: Uint32Array): void {
  const listening = listenedVectors(vcpu);
  for (let i = 0; i < WORDS; i += 2) {
    const low = (registers[TMR + i] | listening[i]) >>> 0;
    const high = (registers[TMR + i + 1] | listening[i + 1]) >>> 0;
    if (low === eoiExit[i] && high === eoiExit[i + 1]) continue;
    eoiExit[i] = low;
    eoiExit[i + 1] = high;
    vmcsWrite(vcpu, EOI_EXIT_BITMAPS[i >> 1], (BigInt(high) << 32n) | BigInt(low));
  }
}

const NOBODY = new Uint32Array(WORDS);

/** kvm_ioapic_scan_entry: with acknowledgement notifiers, the vectors of all pins. */
function listenedVectors(vcpu: KvmVcpu): Uint32Array {
  const { kvm } = vcpu;
  if (!kvm.vioapic || kvm.irqAckNotifiers.length === 0) return NOBODY;
  const vectors = new Uint32Array(WORDS);
  for (const low of kvm.vioapic.state.low) vectors[(low & 0xff) >> 5] |= 1 << (low & 31);
  return vectors;
}

/** The processor's view becomes the chip's again, and what was posted and not taken joins the requests. */
export function apicvExit(vcpu: KvmVcpu): void {
  const { apic, module } = vcpu;
  if (!apic) return;
  const { u32 } = module.host.memory;
  const { registers } = apic.state;
  const page = pageWords(vcpu);
  const descriptor = descriptorWords(vcpu);
  for (let i = 0; i < WORDS; i++) {
    registers[IRR + i] |= u32[page + (IRR + i) * 4] | u32[descriptor + i];
    registers[ISR + i] = u32[page + (ISR + i) * 4];
    u32[descriptor + i] = 0;
  }
  u32[descriptor + (PI_CONTROL >> 2)] &= ~PI_ON;
  registers[ApicReg.TPR >> 4] = u32[page + (ApicReg.TPR >> 2)] & 0xff;
  if (!apic.chip.x2apicMode) registers[ApicReg.ICR_HIGH >> 4] = u32[page + (ApicReg.ICR_HIGH >> 2)];
}

/**
 * vmx_deliver_posted_interrupt: the chip has accepted interrupts while the vCPU is in the guest.
 * @returns false when the vCPU has to leave the guest for them
 */
export function vmxDeliverPostedInterrupt(vcpu: KvmVcpu): boolean {
  if (vcpu.state.mode !== VcpuMode.IN_GUEST_MODE || !vcpu.apic || !kvmVcpuApicvActive(vcpu)) return false;
  const { module, vmx } = vcpu;
  const { u32 } = module.host.memory;
  const { registers } = vcpu.apic.state;
  // The end of a level-triggered interrupt must exit, and the bitmaps can be changed outside the guest only.
  for (let i = 0; i < WORDS; i++) if (registers[IRR + i] & registers[TMR + i] & ~vmx.apicv.eoiExit[i]) return false;
  const descriptor = descriptorWords(vcpu);
  let posted = 0;
  for (let i = 0; i < WORDS; i++) {
    posted |= registers[IRR + i];
    u32[descriptor + i] |= registers[IRR + i];
    registers[IRR + i] = 0;
  }
  if (posted === 0) return false;
  const control = descriptor + (PI_CONTROL >> 2);
  if (u32[control] & PI_ON) return true;
  u32[control] |= PI_ON;
  const { cpu } = vcpu.state;
  module.host.interrupts[cpu].raise(HostVector.POSTED_INTR);
  module.host.processors[cpu].attention();
  return true;
}

/** handle_apic_eoi_induced (kvm_apic_set_eoi_accelerated) */
export function handleApicEoiInduced(vcpu: KvmVcpu): number {
  const vector = Number(vmxGetExitQual(vcpu) & 0xffn);
  kvmApicBus(vcpu.kvm).broadcastEoi(vector);
  kvmMakeRequest(KvmReq.EVENT, vcpu);
  return 1;
}

/** handle_apic_write (kvm_apic_write_nodecode): the value is in the page already. */
export function handleApicWrite(vcpu: KvmVcpu): number {
  const offset = Number(vmxGetExitQual(vcpu) & 0xff0n);
  const value = vcpu.module.host.memory.u32[pageWords(vcpu) + (offset >> 2)];
  vcpu.apic?.chip.write(offset, 4, value);
  return 1;
}

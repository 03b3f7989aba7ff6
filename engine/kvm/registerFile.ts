/**
 * A vCPU's registers and VMCS for debuggers, valid at every moment: while the processor is in the guest they are in the
 * processor, right after an exit partly in the VMCS, and while KVM handles the exit in vcpu->arch with what KVM changed but
 * has not written back yet. Nothing here loads the vCPU or changes which VMCS is current.
 */
import type { Cpu } from "../cpu/cpu";
import { type FloatState, readFloatRegister, writeFloatRegister } from "../cpu/float-registers";
import { checkRegisterWrite } from "../cpu/register-checks";
import { cpuRegisterFile } from "../cpu/register-file";
import { REGISTER_ROWS, type RegisterFile } from "../cpu/registers";
import { CodeMode, GPR_NAMES, Off, SEG_NAMES } from "../cpu/state";
import { CpuBased, VmEntryControl, VmExitControl } from "../cpu/vmx/controls";
import { Field } from "../cpu/vmx/fields";
import { ApicReg } from "../devices/local-apic";
import { rdmsrl } from "./hostKernel";
import { Cr0, Cr4, EferBit, kvmRegisterIsDirty, kvmRegisterMarkDirty } from "./kvmCacheRegs";
import { kvmGetApicBase } from "./lapic";
import { type GuestPaging, walkAddr } from "./mmu/pagingTmpl";
import { Msr } from "./msrs";
import { KvmReq, kvmMakeRequest } from "./requests";
import { type KvmVcpu, VcpuMode, VcpuReg } from "./types";
import { SEGMENT_FIELDS } from "./vmx/segments";

const U64 = (1n << 64n) - 1n;
const RSP = VcpuReg.RSP;

/** Where the vCPU's registers are. */
function whereabouts(vcpu: KvmVcpu): { cpu: Cpu; inGuest: boolean; unsaved: boolean } {
  const { module, state, vmx } = vcpu;
  const id = state.cpu >= 0 ? state.cpu : state.thread.cpu;
  const cpu = module.host.processors[id];
  const mine = module.state.perCpu[id].currentVmcs === vmx.vmcs;
  const entered = mine && state.mode !== VcpuMode.OUTSIDE_GUEST_MODE;
  const inGuest = entered && cpu.guest !== null;
  return { cpu, inGuest, unsaved: entered && !inGuest };
}

const SEGMENT_PARTS: Readonly<Record<string, "base" | "limit" | "ar">> = {
  base: "base",
  limit: "limit",
  attributes: "ar",
};
const VMCS_REGISTERS: Readonly<Record<string, Field>> = {
  rflags: Field.GUEST_RFLAGS,
  dr7: Field.GUEST_DR7,
  "gdtr.base": Field.GUEST_GDTR_BASE,
  "gdtr.limit": Field.GUEST_GDTR_LIMIT,
  "idtr.base": Field.GUEST_IDTR_BASE,
  "idtr.limit": Field.GUEST_IDTR_LIMIT,
  ia32_fs_base: Field.GUEST_FS_BASE,
  ia32_gs_base: Field.GUEST_GS_BASE,
  ia32_sysenter_cs: Field.GUEST_SYSENTER_CS,
  ia32_sysenter_esp: Field.GUEST_SYSENTER_ESP,
  ia32_sysenter_eip: Field.GUEST_SYSENTER_EIP,
  ia32_debugctl: Field.GUEST_IA32_DEBUGCTL,
};
for (const [i, name] of SEG_NAMES.entries()) {
  const fields = VMCS_REGISTERS as Record<string, Field>;
  fields[name] = SEGMENT_FIELDS[i].selector;
  for (const [part, key] of Object.entries(SEGMENT_PARTS)) fields[`${name}.${part}`] = SEGMENT_FIELDS[i][key];
}

const URET: Readonly<Record<string, keyof KvmVcpu["vmx"]["uretMsrs"]>> = {
  ia32_star: "star",
  ia32_lstar: "lstar",
  ia32_cstar: "cstar",
  ia32_fmask: "syscallMask",
  ia32_tsc_aux: "tscAux",
};
const URET_OFFSETS: Readonly<Record<string, number>> = {
  ia32_star: Off.STAR,
  ia32_lstar: Off.LSTAR,
  ia32_cstar: Off.CSTAR,
  ia32_fmask: Off.FMASK,
  ia32_tsc_aux: Off.TSC_AUX,
};

class VcpuRegisters implements RegisterFile {
  readonly rows = REGISTER_ROWS;

  constructor(private readonly vcpu: KvmVcpu) {}

  private peek(field: Field): bigint {
    return this.vcpu.module.host.processors[0].vmx.peek(this.vcpu.vmx.vmcs, field);
  }

  /** Writes a field of the vCPU's VMCS, which may not be current anywhere. */
  private poke(field: Field, value: bigint): void {
    const { cpu } = whereabouts(this.vcpu);
    cpu.vmx.poke(this.vcpu.vmx.vmcs, field, value);
  }

  read(name: string): bigint {
    const { vcpu } = this;
    const { arch, vmx } = vcpu;
    const { cpu, inGuest, unsaved } = whereabouts(vcpu);
    const gpr = (GPR_NAMES as readonly string[]).indexOf(name);
    if (gpr >= 0 && gpr !== RSP) return inGuest || unsaved ? cpu.state.gpr(gpr) : arch.regs[gpr];
    switch (name) {
      case "rsp":
        if (inGuest) return cpu.state.gpr(RSP);
        return kvmRegisterIsDirty(vcpu, RSP) && !unsaved ? arch.regs[RSP] : this.peek(Field.GUEST_RSP);
      case "rip":
        if (inGuest) return cpu.state.rip;
        return kvmRegisterIsDirty(vcpu, VcpuReg.RIP) && !unsaved ? arch.regs[VcpuReg.RIP] : this.peek(Field.GUEST_RIP);
      case "cr0": {
        const real = inGuest ? cpu.state.u64(Off.CR0) : this.peek(Field.GUEST_CR0);
        return (arch.cr0 & ~arch.cr0GuestOwnedBits) | (real & arch.cr0GuestOwnedBits);
      }
      case "cr4": {
        const real = inGuest ? cpu.state.u64(Off.CR4) : this.peek(Field.GUEST_CR4);
        return (arch.cr4 & ~arch.cr4GuestOwnedBits) | (real & arch.cr4GuestOwnedBits);
      }
      case "cr2":
        return inGuest || unsaved ? cpu.state.u64(Off.CR2) : arch.cr2;
      case "cr3":
        if (inGuest) return cpu.state.u64(Off.CR3);
        return kvmRegisterIsDirty(vcpu, VcpuReg.CR3) && !unsaved ? arch.cr3 : this.peek(Field.GUEST_CR3);
      case "cr8":
        return BigInt(this.taskPriority(inGuest || unsaved) >> 4);
      case "xcr0":
        return arch.xcr0;
      case "cpl":
        return inGuest ? BigInt(cpu.state.cpl) : (this.peek(Field.GUEST_SS_AR_BYTES) >> 5n) & 3n;
      case "dr0":
      case "dr1":
      case "dr2":
      case "dr3":
        return arch.db[Number(name[2])];
      case "dr6":
        return arch.dr6;
      case "ia32_efer":
        return arch.efer;
      case "ia32_kernel_gs_base":
        return vmx.guestStateLoaded ? rdmsrl(cpu, Msr.KERNEL_GS_BASE) : vmx.msrGuestKernelGsBase;
      case "ia32_pat":
        return arch.pat;
      case "ia32_apic_base":
        return kvmGetApicBase(vcpu);
      case "ia32_misc_enable":
        return arch.ia32MiscEnable;
      case "ia32_feature_control":
        return vmx.msrIa32FeatureControl;
      case "ia32_tsc_adjust":
        return arch.ia32TscAdjust;
      case "ia32_xss":
        return arch.xss;
    }
    const float = readFloatRegister(this.floatState(cpu), name);
    if (float !== undefined) return float;
    const uret = URET[name];
    if (uret !== undefined) return vmx.uretMsrs[uret];
    if (inGuest) return cpuRegisterFile(cpu, { cr4Allowed: 0n, xcr0Allowed: 0n }).read(name);
    const field = VMCS_REGISTERS[name];
    if (field === undefined) throw new RangeError(`there is no register ${name}`);
    return this.peek(field);
  }

  /** x87 and vector registers: in the processor from kvm_load_guest_fpu to kvm_put_guest_fpu. */
  private floatState({ state }: Cpu): FloatState {
    const { guestFpu, guestFpuLoaded } = this.vcpu.arch;
    return guestFpuLoaded ? { bytes: state.u8, at: state.base + Off.FCW } : { bytes: guestFpu, at: 0 };
  }

  /** TPR: in the virtual-APIC page while the guest runs with the TPR shadow. */
  private taskPriority(entered: boolean): number {
    const { vcpu } = this;
    if (!vcpu.apic) return Number(vcpu.arch.cr8) << 4;
    if (!entered || !(vcpu.vmx.controls.exec & CpuBased.TPR_SHADOW)) return vcpu.apic.tpr;
    const { memory } = vcpu.module.host;
    return memory.u8[memory.hostOffset(vcpu.vmx.virtualApicPage) + ApicReg.TPR];
  }

  private get codeMode(): CodeMode {
    const long = (this.vcpu.arch.efer & EferBit.LMA) !== 0n;
    const cs = this.read("cs.attributes");
    if (long) return cs & 0x2000n ? CodeMode.LONG64 : CodeMode.COMPAT32;
    if (!(this.read("cr0") & Cr0.PE)) return CodeMode.REAL;
    return cs & 0x4000n ? CodeMode.PROTECTED32 : CodeMode.PROTECTED16;
  }

  /** @throws RangeError with the rule the value breaks */
  write(name: string, value: bigint): void {
    const { vcpu } = this;
    const { arch, vmx } = vcpu;
    const { model } = vcpu.module.host.processors[0];
    checkRegisterWrite(name, value, {
      codeMode: this.codeMode,
      physicalBits: arch.maxphyaddr,
      linearBits: model.linearBits,
      cr4Allowed: ~arch.cr4GuestRsvdBits & U64,
      xcr0Allowed: 7n,
      read: (n) => this.read(n),
    });
    const { cpu, inGuest, unsaved } = whereabouts(vcpu);
    const gpr = (GPR_NAMES as readonly string[]).indexOf(name);
    const register = name === "rip" ? VcpuReg.RIP : gpr;
    if (register >= 0) {
      if (inGuest) {
        if (name === "rip") cpu.state.rip = value;
        else cpu.state.setGpr(gpr, value);
        cpu.attention();
      } else if (unsaved && register !== RSP && register !== VcpuReg.RIP) {
        cpu.state.setGpr(gpr, value);
      } else {
        arch.regs[register] = value;
        if (unsaved) this.poke(name === "rip" ? Field.GUEST_RIP : Field.GUEST_RSP, value);
        else kvmRegisterMarkDirty(vcpu, register);
      }
      return;
    }
    switch (name) {
      case "cr0":
        arch.cr0 = value;
        this.writeProcessor(Off.CR0, Field.GUEST_CR0, (value & ~(Cr0.NW | Cr0.CD)) | Cr0.NE);
        this.poke(Field.CR0_READ_SHADOW, value);
        return;
      case "cr4":
        arch.cr4 = value;
        this.writeProcessor(Off.CR4, Field.GUEST_CR4, value | Cr4.VMXE);
        this.poke(Field.CR4_READ_SHADOW, value);
        return;
      case "cr3":
        arch.cr3 = value;
        this.writeProcessor(Off.CR3, Field.GUEST_CR3, value);
        kvmMakeRequest(KvmReq.TLB_FLUSH_GUEST, vcpu);
        return;
      case "cr2":
        arch.cr2 = value;
        if (inGuest || unsaved) cpu.state.setU64(Off.CR2, value);
        return;
      case "cr8":
        if (vcpu.apic) vcpu.apic.chip.writeCr8(Number(value));
        else arch.cr8 = value;
        return;
      case "ia32_efer":
        this.writeEfer(value);
        return;
      case "ia32_apic_base":
        if (!vcpu.apic) arch.apicBase = value;
        else if (!vcpu.apic.chip.writeMsr(0x1b, value)) throw new RangeError(`${name}: this mode change is not legal`);
        return;
      case "xcr0":
        arch.xcr0 = value;
        if (inGuest) cpu.state.setU64(Off.XCR0, value);
        return;
      case "dr0":
      case "dr1":
      case "dr2":
      case "dr3": {
        const n = Number(name[2]);
        arch.db[n] = value;
        arch.effDb[n] = value;
        if (inGuest) cpu.state.setU64(Off.DR0 + n * 8, value);
        return;
      }
      case "dr6":
        arch.dr6 = value;
        return;
      case "dr7":
        arch.dr7 = value;
        this.writeProcessor(Off.DR7, Field.GUEST_DR7, value);
        return;
      case "ia32_pat":
        arch.pat = value;
        this.writeProcessor(Off.PAT, Field.GUEST_IA32_PAT, value);
        return;
      case "ia32_kernel_gs_base":
        vmx.msrGuestKernelGsBase = value;
        if (vmx.guestStateLoaded) cpu.state.setU64(Off.KERNEL_GS_BASE, value);
        return;
      case "ia32_misc_enable":
        arch.ia32MiscEnable = value;
        return;
      case "ia32_feature_control":
        vmx.msrIa32FeatureControl = value;
        return;
      case "ia32_tsc_adjust":
        arch.ia32TscAdjust = value;
        return;
      case "ia32_xss":
        arch.xss = value;
        return;
    }
    if (writeFloatRegister(this.floatState(cpu), name, value)) return;
    const uret = URET[name];
    if (uret !== undefined) {
      vmx.uretMsrs[uret] = value;
      if (vmx.guestUretMsrsLoaded) cpu.state.setU64(URET_OFFSETS[name], value);
      return;
    }
    const field = VMCS_REGISTERS[name];
    if (field === undefined) throw new RangeError(`there is no register ${name}`);
    if (inGuest) cpuRegisterFile(cpu, { cr4Allowed: 0n, xcr0Allowed: 0n }).write(name, value);
    else this.poke(field, value);
    vmx.csAr = -1;
    if (name === "rflags") arch.regsAvail &= ~(1 << VcpuReg.RFLAGS);
  }

  /** A register that is in the processor while the guest runs, in the VMCS otherwise. */
  private writeProcessor(offset: number, field: Field, value: bigint): void {
    const { cpu, inGuest } = whereabouts(this.vcpu);
    if (inGuest) {
      cpu.state.setU64(offset, value);
      cpu.mmu.invalidateAll(true);
      cpu.contextChanged();
    }
    this.poke(field, value);
  }

  /** EFER with the entry and exit controls that go with it (vmx_set_efer). */
  private writeEfer(value: bigint): void {
    const { vcpu } = this;
    const { controls } = vcpu.vmx;
    vcpu.arch.efer = value;
    controls.vmEntry |= VmEntryControl.LOAD_IA32_EFER;
    controls.vmEntry =
      (value & EferBit.LMA
        ? controls.vmEntry | VmEntryControl.IA32E_MODE
        : controls.vmEntry & ~VmEntryControl.IA32E_MODE) >>> 0;
    controls.vmExit = (controls.vmExit | VmExitControl.LOAD_IA32_EFER) >>> 0;
    this.poke(Field.VM_ENTRY_CONTROLS, BigInt(controls.vmEntry));
    this.poke(Field.VM_EXIT_CONTROLS, BigInt(controls.vmExit));
    const effective = value & EferBit.LMA ? value : value & ~EferBit.LME;
    this.writeProcessor(Off.EFER, Field.GUEST_IA32_EFER, effective);
  }
}

/** The guest's registers by row name. */
export const kvmRegisterFile = (vcpu: KvmVcpu): RegisterFile => new VcpuRegisters(vcpu);

/** The VMCS of a vCPU, as machine/ shows it (VcpuView.vmcs). */
export interface KvmVmcsView {
  readonly pointer: number;
  read(encoding: number): bigint;
  write(encoding: number, value: bigint): void;
}

/** Reads and writes fields whether or not the VMCS is current. What KVM keeps copies of follows. */
export function kvmVmcsView(vcpu: KvmVcpu): KvmVmcsView {
  const { vmx } = vcpu;
  const unit = () => whereabouts(vcpu).cpu.vmx;
  return {
    pointer: vmx.vmcs,
    read: (encoding) => unit().peek(vmx.vmcs, encoding),
    write: (encoding, value) => {
      unit().poke(vmx.vmcs, encoding, value);
      forgetCopies(vcpu, encoding, value);
    },
  };
}

/** A field was written behind KVM's back: cached registers and control shadows take the new value. */
function forgetCopies(vcpu: KvmVcpu, encoding: number, value: bigint): void {
  const { arch, vmx } = vcpu;
  const { controls } = vmx;
  const number = Number(value & 0xffffffffn);
  switch (encoding) {
    case Field.GUEST_RIP:
      arch.regs[VcpuReg.RIP] = value;
      break;
    case Field.GUEST_RSP:
      arch.regs[RSP] = value;
      break;
    case Field.GUEST_RFLAGS:
      vmx.rflags = value;
      break;
    case Field.GUEST_CR3:
      arch.cr3 = value;
      break;
    case Field.GUEST_CS_AR_BYTES:
      vmx.csAr = -1;
      break;
    case Field.VM_ENTRY_CONTROLS:
      controls.vmEntry = number;
      break;
    case Field.VM_EXIT_CONTROLS:
      controls.vmExit = number;
      break;
    case Field.PIN_BASED_VM_EXEC_CONTROL:
      controls.pin = number;
      break;
    case Field.CPU_BASED_VM_EXEC_CONTROL:
      controls.exec = number;
      break;
    case Field.SECONDARY_VM_EXEC_CONTROL:
      controls.secondaryExec = number;
      break;
    case Field.EXIT_QUALIFICATION:
      vmx.exitQualification = value;
      break;
    case Field.VM_EXIT_INTR_INFO:
      vmx.exitIntrInfo = number;
      break;
    case Field.VM_EXIT_REASON:
      vmx.exitReason = number;
      break;
    case Field.IDT_VECTORING_INFO_FIELD:
      vmx.idtVectoringInfo = number;
      break;
  }
}

/** Guest-physical address of a linear one, -1 where nothing is mapped. Works at every trace point. */
export function kvmProbe(vcpu: KvmVcpu, linear: bigint): number {
  const { cpu, inGuest } = whereabouts(vcpu);
  const registers = new VcpuRegisters(vcpu);
  const fields = [Field.GUEST_PDPTR0, Field.GUEST_PDPTR1, Field.GUEST_PDPTR2, Field.GUEST_PDPTR3] as const;
  const paging: GuestPaging = {
    cr0: registers.read("cr0"),
    cr3: registers.read("cr3"),
    cr4: registers.read("cr4"),
    efer: vcpu.arch.efer,
    pdpte: (index) => {
      if (inGuest) return cpu.state.u64(Off.PDPTE + index * 8);
      return kvmRegisterIsDirty(vcpu, VcpuReg.PDPTR)
        ? vcpu.arch.pdptrs[index]
        : cpu.vmx.peek(vcpu.vmx.vmcs, fields[index]);
    },
    alignmentCheck: true,
  };
  const t = walkAddr(vcpu, paging, linear, -1, false);
  return t.ok ? t.gpa : -1;
}

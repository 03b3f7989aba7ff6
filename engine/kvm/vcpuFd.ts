/** A virtual CPU: its ioctls by name (Documentation/virt/kvm/api.rst). KVM_RUN's failures are part of its outcome. */
import type { RegisterFile } from "../cpu/registers";
import { KvmStatsFd } from "./binaryStats";
import { kvmVcpuIoctlSetCpuid2 } from "./cpuid";
import { checkMsrCount } from "./devFd";
import { Errno, KvmError } from "./errno";
import { kvmVcpuIoctlEnableCap } from "./extensions";
import { irqchipInKernel, picInKernel } from "./irq";
import { kvmVcpuKick, vcpuLoad, vcpuPut } from "./kvmMain";
import { kvmApicAcceptEvents, kvmApicGetState, kvmApicSetState } from "./lapic";
import { kvmVcpuIoctlX86SetMce, kvmVcpuIoctlX86SetupMce } from "./mce";
import { gvaToGpa } from "./mmu/pagingTmpl";
import { kvmGetMsr, kvmSetMsr } from "./msrs";
import { kvmSetTscKhz, kvmSetTscOffset, tscKhzOf } from "./pvclock";
import { type KvmVmcsView, kvmProbe, kvmRegisterFile, kvmVmcsView } from "./registerFile";
import { KvmReq, kvmMakeRequest } from "./requests";
import type { KvmVcpu } from "./types";
import * as uapi from "./uapi";
import { kvmArchVcpuIoctlRun } from "./x86";
import { kvmArchVcpuIoctlSetGuestDebug } from "./x86Debug";
import { kvmInjectNmi, kvmQueueInterrupt } from "./x86Events";
import { KVM_RUN_YIELD } from "./x86Ops";
import * as regs from "./x86Regs";
import * as xsave from "./xsave";

/** How KVM_RUN ended. */
export type KvmRunOutcome =
  /** Back in userspace: kvm_run says why. */
  | { readonly kind: "exit" }
  /** -1 with errno (a positive number of errno.ts). EINTR with exit reason KVM_EXIT_INTR is a signal. */
  | { readonly kind: "error"; readonly errno: number }
  /**
   * Still inside KVM_RUN; call it again. "slice": the instructions given are used up. "resched": the thread gave up its
   * processor. "blocked": the vCPU sleeps until an interrupt, INIT or SIPI comes.
   */
  | { readonly kind: "yield"; readonly reason: "slice" | "resched" | "blocked" };

const EXIT: KvmRunOutcome = { kind: "exit" };
const SLICE: KvmRunOutcome = { kind: "yield", reason: "slice" };
const RESCHED: KvmRunOutcome = { kind: "yield", reason: "resched" };
const BLOCKED: KvmRunOutcome = { kind: "yield", reason: "blocked" };

/** A virtual CPU. */
export class KvmVcpuFd {
  constructor(readonly vcpu: KvmVcpu) {}

  /** close() of the VM takes its vCPUs along. */
  private get closed(): boolean {
    return !this.vcpu.kvm.vcpus.includes(this.vcpu);
  }

  /** The mapped kvm_run. */
  get run(): uapi.KvmRun {
    return this.vcpu.state.run;
  }

  /** vcpu_load and vcpu_put around an ioctl. @throws KvmError EBUSY while the vCPU is inside KVM_RUN (Linux would wait) */
  private loaded<T>(ioctl: string, body: (vcpu: KvmVcpu) => T): T {
    const { vcpu } = this;
    if (this.closed) throw new KvmError("EBADF", ioctl, "the VM is closed");
    if (vcpu.kvm.state.vmDead) throw new KvmError("EIO", ioctl, "the VM is dead");
    if (vcpu.state.suspended !== null) throw new KvmError("EBUSY", ioctl, "the vCPU's thread is inside KVM_RUN");
    vcpuLoad(vcpu);
    try {
      return body(vcpu);
    } finally {
      vcpuPut(vcpu);
    }
  }

  /**
   * Runs the vCPU until userspace is needed, a signal comes, or the thread yields.
   * @param instructions time slice: most instructions that may retire in this call
   */
  KVM_RUN(instructions: number): KvmRunOutcome {
    const { vcpu } = this;
    if (this.closed) return { kind: "error", errno: Errno.EBADF };
    if (vcpu.kvm.state.vmDead) return { kind: "error", errno: Errno.EIO };
    vcpu.deadline = vcpu.module.host.clock.instructions + instructions;
    vcpu.guestHalted = false;
    const r = kvmArchVcpuIoctlRun(vcpu);
    if (r === KVM_RUN_YIELD) {
      if (vcpu.state.suspended === "resched") return RESCHED;
      return vcpu.state.suspended === "guest" && !vcpu.guestHalted ? SLICE : BLOCKED;
    }
    if (r < 0) return { kind: "error", errno: -r };
    return EXIT;
  }

  /** A signal for the vCPU's thread: KVM_RUN returns -EINTR unless the signal is blocked. @param signo 1 to 64 */
  signal(signo = SIGUSR1): void {
    const { thread } = this.vcpu.state;
    thread.signals |= 1n << BigInt(signo - 1);
    updateSignalPending(this.vcpu);
    if (thread.signalPending) kvmVcpuKick(this.vcpu);
  }

  /** The signals have been handled. */
  clearSignal(): void {
    this.vcpu.state.thread.signals = 0n;
    updateSignalPending(this.vcpu);
  }

  /** Signals blocked while the thread is in KVM_RUN; bit n is signal n + 1. null: those it blocks anyway. */
  KVM_SET_SIGNAL_MASK(sigset: bigint | null): void {
    this.vcpu.arch.sigset = sigset;
    updateSignalPending(this.vcpu);
  }

  KVM_GET_REGS(): uapi.KvmRegs {
    return this.loaded("KVM_GET_REGS", regs.kvmArchVcpuIoctlGetRegs);
  }
  KVM_SET_REGS(r: uapi.KvmRegs): void {
    this.loaded("KVM_SET_REGS", (v) => regs.kvmArchVcpuIoctlSetRegs(v, r));
  }
  KVM_GET_SREGS(): uapi.KvmSregs {
    return this.loaded("KVM_GET_SREGS", regs.kvmArchVcpuIoctlGetSregs);
  }
  /** @throws KvmError EINVAL */
  KVM_SET_SREGS(s: uapi.KvmSregs): void {
    this.loaded("KVM_SET_SREGS", (v) => regs.kvmArchVcpuIoctlSetSregs(v, s));
  }
  KVM_GET_SREGS2(): uapi.KvmSregs2 {
    return this.loaded("KVM_GET_SREGS2", regs.kvmArchVcpuIoctlGetSregs2);
  }
  /** @throws KvmError EINVAL */
  KVM_SET_SREGS2(s: uapi.KvmSregs2): void {
    this.loaded("KVM_SET_SREGS2", (v) => regs.kvmArchVcpuIoctlSetSregs2(v, s));
  }
  KVM_GET_FPU(): uapi.KvmFpu {
    return this.loaded("KVM_GET_FPU", xsave.kvmArchVcpuIoctlGetFpu);
  }
  KVM_SET_FPU(fpu: uapi.KvmFpu): void {
    this.loaded("KVM_SET_FPU", (v) => xsave.kvmArchVcpuIoctlSetFpu(v, fpu));
  }

  /** @returns entries up to the first MSR that cannot be read. @throws KvmError E2BIG */
  KVM_GET_MSRS(indices: readonly number[]): uapi.KvmMsrEntry[] {
    checkMsrCount("KVM_GET_MSRS", indices.length);
    return this.loaded("KVM_GET_MSRS", (v) => {
      const out: uapi.KvmMsrEntry[] = [];
      for (const index of indices) {
        const data = kvmGetMsr(v, index, true);
        if (data === null || data === undefined) break;
        out.push({ index, data });
      }
      return out;
    });
  }

  /** @returns how many entries were set before one failed. @throws KvmError E2BIG */
  KVM_SET_MSRS(entries: readonly uapi.KvmMsrEntry[]): number {
    checkMsrCount("KVM_SET_MSRS", entries.length);
    return this.loaded("KVM_SET_MSRS", (v) => {
      let done = 0;
      for (const { index, data } of entries) {
        if (kvmSetMsr(v, index, data, true) !== 0) break;
        done++;
      }
      return done;
    });
  }

  /** @throws KvmError E2BIG, EINVAL */
  KVM_SET_CPUID2(entries: readonly uapi.KvmCpuidEntry2[]): void {
    this.loaded("KVM_SET_CPUID2", (v) => kvmVcpuIoctlSetCpuid2(v, entries));
  }
  /** @param nent room for entries. @throws KvmError E2BIG */
  KVM_GET_CPUID2(nent = Number.POSITIVE_INFINITY): uapi.KvmCpuidEntry2[] {
    if (nent < this.vcpu.arch.cpuidEntries.length)
      throw new KvmError("E2BIG", "KVM_GET_CPUID2", "there are more entries");
    return this.vcpu.arch.cpuidEntries.map((e) => ({ ...e }));
  }

  /** The first KiB of the register page. @throws KvmError EINVAL */
  KVM_GET_LAPIC(): Uint8Array {
    return this.loaded("KVM_GET_LAPIC", (v) => {
      if (!v.apic) throw new KvmError("EINVAL", "KVM_GET_LAPIC", "there is no local APIC in the kernel");
      return kvmApicGetState(v);
    });
  }
  /** @throws KvmError EINVAL */
  KVM_SET_LAPIC(page: Uint8Array): void {
    this.loaded("KVM_SET_LAPIC", (v) => {
      if (!v.apic) throw new KvmError("EINVAL", "KVM_SET_LAPIC", "there is no local APIC in the kernel");
      if (page.length < 0x400) throw new KvmError("EFAULT", "KVM_SET_LAPIC", "the page has 1024 bytes");
      if (!kvmApicSetState(v, page)) {
        throw new KvmError("EINVAL", "KVM_SET_LAPIC", "the x2APIC id is not the vCPU's");
      }
    });
  }

  KVM_GET_VCPU_EVENTS(): uapi.KvmVcpuEvents {
    return this.loaded("KVM_GET_VCPU_EVENTS", regs.kvmVcpuIoctlX86GetVcpuEvents);
  }
  /** @throws KvmError EINVAL */
  KVM_SET_VCPU_EVENTS(events: uapi.KvmVcpuEvents): void {
    this.loaded("KVM_SET_VCPU_EVENTS", (v) => regs.kvmVcpuIoctlX86SetVcpuEvents(v, events));
  }
  KVM_GET_DEBUGREGS(): uapi.KvmDebugregs {
    return this.loaded("KVM_GET_DEBUGREGS", regs.kvmVcpuIoctlX86GetDebugregs);
  }
  /** @throws KvmError EINVAL */
  KVM_SET_DEBUGREGS(d: uapi.KvmDebugregs): void {
    this.loaded("KVM_SET_DEBUGREGS", (v) => regs.kvmVcpuIoctlX86SetDebugregs(v, d));
  }
  KVM_GET_XCRS(): uapi.KvmXcrs {
    return regs.kvmVcpuIoctlX86GetXcrs(this.vcpu);
  }
  /** @throws KvmError EINVAL */
  KVM_SET_XCRS(x: uapi.KvmXcrs): void {
    this.loaded("KVM_SET_XCRS", (v) => regs.kvmVcpuIoctlX86SetXcrs(v, x));
  }

  /** A pending INIT or SIPI takes effect first, unless the vCPU is inside KVM_RUN. */
  KVM_GET_MP_STATE(): uapi.KvmMpState {
    const { vcpu } = this;
    if (vcpu.state.suspended === null) this.loaded("KVM_GET_MP_STATE", kvmApicAcceptEvents);
    const { mpState, pvUnhalted } = vcpu.arch;
    return mpState === uapi.KvmMpState.HALTED && pvUnhalted ? uapi.KvmMpState.RUNNABLE : mpState;
  }
  /** @throws KvmError EINVAL */
  KVM_SET_MP_STATE(state: uapi.KvmMpState): void {
    if (!Object.values(uapi.KvmMpState).includes(state))
      throw new KvmError("EINVAL", "KVM_SET_MP_STATE", "no such state");
    if (!this.vcpu.apic && state !== uapi.KvmMpState.RUNNABLE) {
      throw new KvmError("EINVAL", "KVM_SET_MP_STATE", "without an irqchip in the kernel a vCPU is always runnable");
    }
    if (state === uapi.KvmMpState.SIPI_RECEIVED) {
      this.vcpu.arch.mpState = uapi.KvmMpState.INIT_RECEIVED;
      this.vcpu.arch.apicPendingEvents |= 2;
    } else {
      this.vcpu.arch.mpState = state;
    }
    kvmMakeRequest(KvmReq.EVENT, this.vcpu);
  }

  /** Machine-check banks, all enabled. @throws KvmError EINVAL */
  KVM_X86_SETUP_MCE(mcgCap: bigint): void {
    this.loaded("KVM_X86_SETUP_MCE", (v) => kvmVcpuIoctlX86SetupMce(v, mcgCap));
  }
  /** @throws KvmError EINVAL */
  KVM_X86_SET_MCE(mce: uapi.KvmX86Mce): void {
    this.loaded("KVM_X86_SET_MCE", (v) => kvmVcpuIoctlX86SetMce(v, mce));
  }

  /** The FPU and vector state as an XSAVE area in the standard format, 4096 bytes. */
  KVM_GET_XSAVE(): Uint8Array {
    return this.loaded("KVM_GET_XSAVE", (v) => xsave.kvmVcpuIoctlX86GetXsave(v, xsave.KVM_XSAVE_SIZE));
  }
  /** The same with as many bytes as KVM_CAP_XSAVE2 says. */
  KVM_GET_XSAVE2(): Uint8Array {
    return this.loaded("KVM_GET_XSAVE2", (v) => xsave.kvmVcpuIoctlX86GetXsave(v, xsave.kvmXsaveSize(v.module)));
  }
  /** @throws KvmError EINVAL, EFAULT */
  KVM_SET_XSAVE(image: Uint8Array): void {
    this.loaded("KVM_SET_XSAVE", (v) => xsave.kvmVcpuIoctlX86SetXsave(v, image));
  }

  /** @throws KvmError EINVAL */
  KVM_ENABLE_CAP(capability: number, args: readonly bigint[] = [], flags = 0): void {
    this.loaded("KVM_ENABLE_CAP", (v) => kvmVcpuIoctlEnableCap(v, capability, args, flags));
  }

  /** The vCPU's statistics as a file. */
  KVM_GET_STATS_FD(): KvmStatsFd {
    const { vcpu } = this;
    return new KvmStatsFd(`kvm-${vcpu.kvm.id}/vcpu-${vcpu.state.vcpuId}`, () => vcpu.stat);
  }

  /** Accesses of the guest to its TPR leave KVM_RUN, where the processor does not virtualize them. @throws KvmError EINVAL */
  KVM_TPR_ACCESS_REPORTING(control: { readonly enabled: number; readonly flags: number }): void {
    if (control.flags !== 0) throw new KvmError("EINVAL", "KVM_TPR_ACCESS_REPORTING", "flags must be 0");
    this.vcpu.arch.tprAccessReporting = control.enabled !== 0;
  }

  /** System-management mode is not there. @throws KvmError ENOTTY */
  KVM_SMI(): never {
    throw new KvmError("ENOTTY", "KVM_SMI", "there is no system-management mode (KVM_CAP_X86_SMM is 0)");
  }

  /** @throws KvmError ENXIO */
  KVM_HAS_DEVICE_ATTR(attr: uapi.KvmDeviceAttr): void {
    checkTscAttr(attr, "KVM_HAS_DEVICE_ATTR");
  }
  /** KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET: what is added to the host's TSC. @throws KvmError ENXIO */
  KVM_GET_DEVICE_ATTR(attr: uapi.KvmDeviceAttr): bigint {
    checkTscAttr(attr, "KVM_GET_DEVICE_ATTR");
    return this.vcpu.arch.tscOffset;
  }
  /** @throws KvmError ENXIO */
  KVM_SET_DEVICE_ATTR(attr: uapi.KvmDeviceAttr, value: bigint): void {
    checkTscAttr(attr, "KVM_SET_DEVICE_ATTR");
    this.loaded("KVM_SET_DEVICE_ATTR", (v) => kvmSetTscOffset(v, value));
  }

  /** The vCPU's dirty ring, as mapped at KVM_DIRTY_LOG_PAGE_OFFSET; null without KVM_CAP_DIRTY_LOG_RING. */
  get dirtyRing(): Uint8Array | null {
    return this.vcpu.state.dirtyRing?.dirtyGfns ?? null;
  }

  /** @throws KvmError EBUSY */
  KVM_SET_GUEST_DEBUG(dbg: uapi.KvmGuestDebug): void {
    this.loaded("KVM_SET_GUEST_DEBUG", (v) => kvmArchVcpuIoctlSetGuestDebug(v, dbg));
  }

  /** Translates a linear address by the guest's present paging. */
  KVM_TRANSLATE(linear: bigint): uapi.KvmTranslation {
    return this.loaded("KVM_TRANSLATE", (v) => {
      const t = gvaToGpa(v, linear, 0, false);
      return {
        linear_address: linear,
        physical_address: t.ok ? BigInt(t.gpa) : 0xffffffffffffffffn,
        valid: t.ok ? 1 : 0,
        writeable: 1,
        usermode: 0,
      };
    });
  }

  /**
   * External interrupt from userspace's irqchip; with a local APIC in the kernel (split irqchip) it is the PIC's.
   * @throws KvmError EINVAL, ENXIO, EEXIST
   */
  KVM_INTERRUPT(irq: number): void {
    const { vcpu } = this;
    if (irq < 0 || irq >= 256) throw new KvmError("EINVAL", "KVM_INTERRUPT", "vectors are 0 to 255");
    if (!irqchipInKernel(vcpu.kvm)) {
      kvmQueueInterrupt(vcpu, irq, false);
    } else {
      if (picInKernel(vcpu.kvm)) throw new KvmError("ENXIO", "KVM_INTERRUPT", "the irqchip is in the kernel");
      if (vcpu.arch.pendingExternalVector !== -1) {
        throw new KvmError("EEXIST", "KVM_INTERRUPT", "the interrupt before has not been taken yet");
      }
      vcpu.arch.pendingExternalVector = irq;
    }
    kvmMakeRequest(KvmReq.EVENT, vcpu);
  }

  KVM_NMI(): void {
    kvmInjectNmi(this.vcpu);
  }

  /** Rate of the vCPU's TSC. @param khz 0 is the host's. @throws KvmError EINVAL */
  KVM_SET_TSC_KHZ(khz: number): void {
    this.loaded("KVM_SET_TSC_KHZ", (v) => {
      if (!kvmSetTscKhz(v, tscKhzOf(v.module, khz))) {
        throw new KvmError("EINVAL", "KVM_SET_TSC_KHZ", "the processor cannot scale its TSC");
      }
    });
  }
  KVM_GET_TSC_KHZ(): number {
    return this.vcpu.arch.virtualTscKhz;
  }

  /** The host tells the guest it was stopped (kvmclock). @throws KvmError EINVAL when the guest has no kvmclock */
  KVM_KVMCLOCK_CTRL(): void {
    if (!(this.vcpu.arch.pvTime & 1n)) throw new KvmError("EINVAL", "KVM_KVMCLOCK_CTRL", "the guest uses no kvmclock");
    this.vcpu.arch.pvclockSetGuestStoppedRequest = true;
    kvmMakeRequest(KvmReq.CLOCK_UPDATE, this.vcpu);
  }

  get stats(): KvmVcpu["state"]["stat"] {
    return this.vcpu.state.stat;
  }
  /** VM exits by basic exit reason. */
  get exitsByReason(): Readonly<Record<number, number>> {
    return this.vcpu.state.exitsByReason;
  }
  /** Returns to userspace by kvm_run exit reason. */
  get userspaceExits(): Readonly<Record<number, number>> {
    return this.vcpu.state.userspaceExits;
  }

  /** Registers of the guest, valid at every trace point and between KVM_RUN calls. */
  get registers(): RegisterFile {
    return kvmRegisterFile(this.vcpu);
  }
  /** Physical address of the vCPU's VMCS. */
  get vmcs(): number {
    return this.vcpu.vmx.vmcs;
  }
  /** The VMCS's fields, likewise valid at every moment; writes reach what KVM keeps copies of. */
  get vmcsView(): KvmVmcsView {
    return kvmVmcsView(this.vcpu);
  }
  /** Guest-physical address of a linear one by the guest's present paging, -1 where nothing is mapped. No side effects. */
  probe(linear: bigint): number {
    return kvmProbe(this.vcpu, linear);
  }
  /** Fields of kvm_run that mean something now. */
  get kvmRunFields(): Record<string, bigint | number | string> {
    return uapi.kvmRunFields(this.run);
  }
  /** An interrupt or NMI could still end the vCPU's sleep: it does not sleep with interrupts closed for good. */
  get wakeable(): boolean {
    const { vcpu } = this;
    if (vcpu.arch.mpState !== uapi.KvmMpState.HALTED) return vcpu.arch.mpState === uapi.KvmMpState.RUNNABLE;
    if (vcpu.kvm.vioapic?.chip.carriesNmi || vcpu.kvm.vcpus.some((v) => v.apic?.chip.carriesNmi)) return true;
    return (this.registers.read("rflags") & 0x200n) !== 0n;
  }
  /** Halted, or waiting for INIT and SIPI. */
  get halted(): boolean {
    return this.vcpu.arch.mpState !== uapi.KvmMpState.RUNNABLE || this.vcpu.guestHalted;
  }
}

const SIGUSR1 = 10;

/** recalc_sigpending: while KVM_RUN is under way, its own mask counts. */
function updateSignalPending(vcpu: KvmVcpu): void {
  const { thread } = vcpu.state;
  thread.signalPending = (thread.signals & ~(vcpu.arch.sigset ?? 0n)) !== 0n;
}

/** kvm_arch_tsc_has_attr */
function checkTscAttr(attr: uapi.KvmDeviceAttr, ioctl: string): void {
  if (attr.group !== 0 || attr.attr !== 0n) throw new KvmError("ENXIO", ioctl, "there is no such attribute");
}

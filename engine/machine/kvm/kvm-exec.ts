/**
 * The vCPU thread of QEMU's KVM accelerator: kvm_vcpu_thread_fn, kvm_cpu_exec and its exit switch (accel/kvm).
 *
 * Threads are turns of a round robin here. A KVM_RUN that a real thread would still be inside (its time slice is over, or
 * it sleeps in the kernel) comes back as a yield, and the next turn goes on with the same KVM_RUN.
 */

import type { VirtualClock } from "../../clock";
import type { Bus } from "../../cpu/cpu";
import { errnoName } from "../../kvm/errno";
import { KVM_EXIT_IO_IN, KvmExit, kvmExitName } from "../../kvm/uapi";
import type { Ending } from "../machine";
import type { KVMState } from "./kvm-state";
import { Excp, type ExitResult, kvmArchHandleExit, kvmArchInitVcpu, kvmArchPutRegisters, type X86Cpu } from "./x86-cpu";

/** What of the machine a vCPU thread touches. */
export interface ThreadOutside {
  readonly kvm: KVMState;
  readonly clock: VirtualClock;
  /** The board's ports and registers, seen from a vCPU. */
  bus(cpu: X86Cpu): Bus;
  end(ending: Ending): void;
  readonly ended: boolean;
  tripleFaultCause(cpu: X86Cpu): string;
}

/** How a turn of a vCPU thread ended. */
export type Turn = "ran" | "blocked";

/** kvm_vcpu_thread_fn: one turn of its loop. */
export function kvmVcpuThreadFn(outside: ThreadOutside, cpu: X86Cpu, instructions: number): Turn {
  if (!cpu.state.created) kvmInitVcpu(outside.kvm, cpu);
  return kvmCpuExec(outside, cpu, instructions);
}

/** kvm_init_vcpu: creates the vCPU in the kernel and maps its kvm_run. */
export function kvmInitVcpu(s: KVMState, cpu: X86Cpu): void {
  cpu.kvmFd = s.vmfd.KVM_CREATE_VCPU(cpu.topology.apicId);
  kvmArchInitVcpu(s, cpu);
  cpu.state.created = true;
}

/** kvm_cpu_exec: runs the vCPU, serving its exits, until its turn is over or something QEMU cannot serve happens. */
export function kvmCpuExec(outside: ThreadOutside, cpu: X86Cpu, instructions: number): Turn {
  const { clock } = outside;
  const end = clock.instructions + instructions;
  let done: ExitResult;
  do {
    const left = end - clock.instructions;
    if (left <= 0 || outside.ended) return "ran";
    const result = cpu.kvmFd.KVM_RUN(left);
    if (result.kind === "yield") return result.reason === "blocked" ? "blocked" : "ran";
    if (result.kind === "error") {
      const name = errnoName(result.errno);
      if (name !== "EINTR" && name !== "EAGAIN") {
        outside.end({ kind: "internal-error", vcpu: cpu.index, cause: `KVM_RUN failed: ${name}` });
      }
      return "ran";
    }
    countExit(cpu);
    done = kvmHandleRunExit(outside, cpu);
    if ("error" in done) {
      outside.end({ kind: "internal-error", vcpu: cpu.index, cause: done.error });
      return "ran";
    }
  } while (done.ret === 0 && !outside.ended);
  if (outside.ended) kvmCpuKickSelf(cpu);
  return "ran";
}

/**
 * kvm_cpu_kick_self: KVM completes the instruction of an I/O exit when it is entered again, so QEMU enters once more and
 * has it come out at once.
 */
function kvmCpuKickSelf(cpu: X86Cpu): void {
  cpu.kvmRun.immediate_exit = 1;
  cpu.kvmFd.KVM_RUN(1);
  cpu.kvmRun.immediate_exit = 0;
}

/** kvm_cpu_synchronize_post_init: the vCPU's first registers go to the kernel. */
export function kvmCpuSynchronizePostInit(cpu: X86Cpu): void {
  kvmArchPutRegisters(cpu);
  cpu.state.vcpuDirty = false;
}

function countExit(cpu: X86Cpu): void {
  const reason = cpu.kvmRun.exit.exit_reason;
  cpu.state.userspaceExits[reason] = (cpu.state.userspaceExits[reason] ?? 0) + 1;
}

/** The exit switch of kvm_cpu_exec. */
function kvmHandleRunExit(outside: ThreadOutside, cpu: X86Cpu): ExitResult {
  const { exit } = cpu.kvmRun;
  switch (exit.exit_reason) {
    case KvmExit.IO:
      kvmHandleIo(outside.bus(cpu), exit.io);
      return { ret: 0 };
    case KvmExit.MMIO:
      addressSpaceRw(outside.bus(cpu), exit.mmio);
      return { ret: 0 };
    case KvmExit.IRQ_WINDOW_OPEN:
      return { ret: Excp.INTERRUPT };
    case KvmExit.INTR:
      return { ret: Excp.INTERRUPT };
    case KvmExit.SHUTDOWN:
      return qemuSystemResetRequest(outside, cpu);
    case KvmExit.UNKNOWN:
      return { error: `KVM: unknown exit, hardware reason 0x${exit.hw.hardware_exit_reason.toString(16)}` };
    case KvmExit.INTERNAL_ERROR:
      return kvmHandleInternalError(exit.internal);
    case KvmExit.SYSTEM_EVENT:
      return kvmSystemEvent(outside, exit.system_event.type);
    default:
      return kvmArchHandleExit(cpu);
  }
}

/** kvm_handle_io: `count` items of `size` bytes, one after the other. */
function kvmHandleIo(
  bus: Bus,
  io: { direction: number; size: number; port: number; count: number; data: Uint8Array },
): void {
  const { data, size } = io;
  for (let at = 0; at < io.count * size; at += size) {
    if (io.direction === KVM_EXIT_IO_IN) {
      const value = bus.portIn(io.port, size);
      for (let i = 0; i < size; i++) data[at + i] = value >>> (8 * i);
    } else {
      let value = 0;
      for (let i = size - 1; i >= 0; i--) value = (value << 8) | data[at + i];
      bus.portOut(io.port, size, value >>> 0);
    }
  }
}

/** address_space_rw on the board's memory-mapped registers, by accesses a bus can make. */
function addressSpaceRw(bus: Bus, mmio: { phys_addr: number; data: Uint8Array; len: number; is_write: number }): void {
  const { data, len } = mmio;
  let done = 0;
  while (done < len) {
    const at = mmio.phys_addr + done;
    let size = 8;
    while (size > len - done || at % size !== 0) size /= 2;
    if (mmio.is_write) {
      let value = 0n;
      for (let i = size - 1; i >= 0; i--) value = (value << 8n) | BigInt(data[done + i]);
      bus.mmioWrite(at, size, value);
    } else {
      const value = bus.mmioRead(at, size);
      for (let i = 0; i < size; i++) data[done + i] = Number((value >> BigInt(8 * i)) & 0xffn);
    }
    done += size;
  }
}

/** qemu_system_reset_request for a triple fault; nothing reboots here, the machine ends and says why. */
function qemuSystemResetRequest(outside: ThreadOutside, cpu: X86Cpu): ExitResult {
  const cause = outside.tripleFaultCause(cpu) || "KVM reported a shutdown";
  outside.end({ kind: "triple-fault", vcpu: cpu.index, cause });
  return { ret: Excp.INTERRUPT };
}

const SUBERRORS: Readonly<Record<number, string>> = {
  1: "emulation failure",
  2: "simultaneous exceptions",
  3: "a VM exit during event delivery",
  4: "an exit KVM does not know",
};

/** kvm_handle_internal_error */
function kvmHandleInternalError(internal: { suberror: number; ndata: number; data: bigint[] }): ExitResult {
  const data = internal.data.slice(0, internal.ndata).map((word) => `0x${word.toString(16)}`);
  const what = SUBERRORS[internal.suberror] ?? `suberror ${internal.suberror}`;
  return {
    error: `${kvmExitName(KvmExit.INTERNAL_ERROR)}: ${what}${data.length > 0 ? ` (data ${data.join(" ")})` : ""}`,
  };
}

const SystemEvent = { SHUTDOWN: 1, RESET: 2, CRASH: 3 } as const;

/** KVM_EXIT_SYSTEM_EVENT: the guest asked the kernel for the end. */
function kvmSystemEvent(outside: ThreadOutside, type: number): ExitResult {
  switch (type) {
    case SystemEvent.SHUTDOWN:
      outside.end({ kind: "power-off" });
      return { ret: Excp.INTERRUPT };
    case SystemEvent.RESET:
      outside.end({ kind: "reset" });
      return { ret: Excp.INTERRUPT };
    case SystemEvent.CRASH:
      return { error: "the guest told KVM that it crashed" };
    default:
      return { error: `KVM: unknown system event ${type}` };
  }
}

/** File descriptors of the model: /dev/kvm, virtual machines, vCPUs, and the small files beside them. */
export { KvmStatsFd } from "./binaryStats";
export { KvmDevFd, openDevKvm } from "./devFd";
export { EventFd } from "./eventfdCtx";
export { type KvmRunOutcome, KvmVcpuFd } from "./vcpuFd";
export { type KvmIrqchipState, KvmVmFd } from "./vmFd";

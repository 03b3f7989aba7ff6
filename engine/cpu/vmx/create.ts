/** The VMX unit of a processor, wired to its event delivery and its MSRs. */
import type { Cpu } from "../cpu";
import { deliverInjected } from "../system/events";
import { readMsr, writeMsr } from "../system/msrs";
import { VmxUnit } from "./unit";

/** `cpu` needs its state, model, memory and clock already. */
export function createVmx(cpu: Cpu): VmxUnit {
  return new VmxUnit(cpu, {
    deliver: (event) => deliverInjected(cpu, event),
    readMsr: (index) => readMsr(cpu, index),
    writeMsr: (index, value) => writeMsr(cpu, index, value),
  });
}

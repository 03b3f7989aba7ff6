/**
 * What the processor does in memory when a guest touches a page: the page-modification log (SDM 3C 29.3.6) and the
 * virtualization-exception information area (SDM 3C 26.5.7).
 */
import { CpuFault, Vector } from "../cpu";
import { Off } from "../state";
import { SecondaryExec } from "./controls";
import { ExitReason } from "./exit-reasons";
import { Field } from "./fields";
import type { VmxUnit } from "./unit";
import { secondaryControls, word } from "./vmcs";

const PML_ADDRESS = word(Field.PML_ADDRESS);
const PML_INDEX = word(Field.GUEST_PML_INDEX);
const INFORMATION = word(Field.VIRT_EXCEPTION_INFO);
const EPTP_INDEX = word(Field.EPTP_INDEX);

/** Entries of the page-modification log. */
const PML_ENTRIES = 512;
const CR0_PE = 1;

/** Writes a guest-physical page to the log. @returns false when the index says that the log is full */
export function logModification(unit: VmxUnit, gpa: number): boolean {
  const { vmcs, cpu } = unit;
  const index = vmcs.lo(PML_INDEX) & 0xffff;
  if (index >= PML_ENTRIES) return false;
  const at = cpu.memory.hostOffset(vmcs.address(PML_ADDRESS) + index * 8);
  if (at >= 0) cpu.memory.view.setBigUint64(at, BigInt(gpa - (gpa % 4096)), true);
  vmcs.set32(PML_INDEX, (index - 1) & 0xffff);
  return true;
}

/**
 * Raises #VE instead of an EPT violation's exit where the controls and the information area allow it.
 * @param qualification what the exit would report
 * @throws CpuFault the virtualization exception
 */
export function raiseVirtualizationException(
  unit: VmxUnit,
  gpa: number,
  linear: bigint | undefined,
  qualification: number,
): void {
  const { vmcs, cpu, state } = unit;
  if (!(secondaryControls(vmcs) & SecondaryExec.EPT_VIOLATION_VE)) return;
  if (!(cpu.state.lo(Off.CR0) & CR0_PE) || state.vectoring !== null) return;
  const at = cpu.memory.hostOffset(vmcs.address(INFORMATION));
  const { view } = cpu.memory;
  if (at < 0 || view.getUint32(at + 4, true) !== 0) return;
  view.setUint32(at, ExitReason.EPT_VIOLATION, true);
  view.setUint32(at + 4, 0xffff_ffff, true);
  view.setBigUint64(at + 8, BigInt(qualification >>> 0), true);
  view.setBigUint64(at + 16, linear ?? 0n, true);
  view.setBigUint64(at + 24, BigInt(gpa), true);
  view.setUint16(at + 32, vmcs.lo(EPTP_INDEX) & 0xffff, true);
  throw new CpuFault(Vector.VE);
}

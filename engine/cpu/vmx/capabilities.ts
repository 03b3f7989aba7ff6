/**
 * What this processor's VMX can do: the capability MSRs 0x480 to 0x491 (SDM 3D appendix A), derived from the control
 * table and the processor model.
 */
import type { CpuModel } from "../models/model";
import { cr4Allowed } from "../system/control-registers";
import {
  type ControlWord,
  CPU_BASED,
  PIN_BASED,
  SECONDARY_EXEC,
  SecondaryExec,
  supportedMask,
  VM_ENTRY,
  VM_EXIT,
} from "./controls";
import { type Field, VMCS_FIELDS, type VmcsField } from "./fields";
import { VMCS_REVISION, VMCS_SIZE } from "./vmcs";

/** Settings a word of controls may have: a bit must be 1 where `must` has it, may be 1 where `may` has it. */
export interface AllowedSettings {
  /** Allowed 0-settings: bits that may not be 0. Unsigned. */
  readonly must: number;
  /** Allowed 1-settings: bits that may be 1. Unsigned. */
  readonly may: number;
}

/** log2 of the TSC ticks between two counts of the VMX-preemption timer (IA32_VMX_MISC 4:0). */
export const PREEMPTION_TIMER_SHIFT = 5;
/** Most CR3-target values (IA32_VMX_MISC 24:16). */
export const CR3_TARGETS = 4;
/** Recommended most entries of an MSR list; more are accepted (IA32_VMX_MISC 27:25). */
const MSR_LIST_SIZE_CODE = 0n;

/** Bit of the VM-function controls, and number of the function. */
export const EPTP_SWITCHING = 1 << 0;
/** EPT pointers of an EPTP list. */
export const EPTP_LIST_ENTRIES = 512;

/** IA32_VMX_EPT_VPID_CAP (SDM 3D A.10). */
const EPT_VPID_CAP = [
  0, // execute-only translations
  6, // page-walk length 4
  8, // EPT structures may be uncacheable
  14, // EPT structures may be write-back
  16, // 2-MByte pages
  17, // 1-GByte pages
  20, // INVEPT
  21, // accessed and dirty flags
  25, // single-context INVEPT
  26, // all-context INVEPT
  32, // INVVPID
  40, // individual-address INVVPID
  41, // single-context INVVPID
  42, // all-context INVVPID
  43, // single-context-retaining-globals INVVPID
].reduce((mask, bit) => mask | (1n << BigInt(bit)), 0n);

/** Fields of features no control row here supports. VMREAD and VMWRITE answer error 12 for them. */
const ABSENT_FIELDS: readonly (keyof typeof Field)[] = [
  "HLAT_PREFIX_SIZE", "LAST_PID_POINTER_INDEX", "GUEST_UINV", "ENCLS_EXITING_BITMAP", "SPPTP", "TERTIARY_VM_EXEC_CONTROL", "ENCLV_EXITING_BITMAP",
  "LOW_PASID_DIR_ADDR", "HIGH_PASID_DIR_ADDR", "SHARED_EPT_POINTER", "PCONFIG_EXITING_BITMAP", "HLATP",
  "PID_POINTER_TABLE", "SECONDARY_VM_EXIT_CONTROLS", "SPEC_CTRL_MASK", "SPEC_CTRL_SHADOW", "INJECTED_EVENT_DATA",
  "ORIGINAL_EVENT_DATA", "GUEST_IA32_PERF_GLOBAL_CTRL", "GUEST_BNDCFGS", "GUEST_IA32_RTIT_CTL", "GUEST_IA32_LBR_CTL",
  "GUEST_IA32_PKRS", "GUEST_IA32_FRED_CONFIG", "GUEST_IA32_FRED_RSP1", "GUEST_IA32_FRED_RSP2", "GUEST_IA32_FRED_RSP3",
  "GUEST_IA32_FRED_STKLVLS", "GUEST_IA32_FRED_SSP1", "GUEST_IA32_FRED_SSP2", "GUEST_IA32_FRED_SSP3",
  "HOST_IA32_PERF_GLOBAL_CTRL", "HOST_IA32_PKRS", "HOST_IA32_FRED_CONFIG", "HOST_IA32_FRED_RSP1", "HOST_IA32_FRED_RSP2",
  "HOST_IA32_FRED_RSP3", "HOST_IA32_FRED_STKLVLS", "HOST_IA32_FRED_SSP1", "HOST_IA32_FRED_SSP2", "HOST_IA32_FRED_SSP3",
  "NOTIFY_WINDOW", "GUEST_S_CET", "GUEST_SSP", "GUEST_INTR_SSP_TABLE", "HOST_S_CET", "HOST_SSP", "HOST_INTR_SSP_TABLE",
]; // biome-ignore format: a list

export class VmxCapabilities {
  readonly pinBased: AllowedSettings;
  readonly cpuBased: AllowedSettings;
  readonly secondary: AllowedSettings;
  readonly exit: AllowedSettings;
  readonly entry: AllowedSettings;
  /** VM functions that may be enabled, low half: EPTP switching (SDM 3C 25.6.14). */
  readonly functions = EPTP_SWITCHING;

  /** Bits of CR0 and CR4 that must be 1 in VMX operation, and those that may be (SDM 3D A.7, A.8). Low halves. */
  readonly cr0Fixed0 = 0x8000_0021;
  readonly cr0Fixed1 = 0xffff_ffff;
  readonly cr4Fixed0 = 0x2000;
  readonly cr4Fixed1: number;

  readonly physicalBits: number;
  readonly linearBits: number;
  /** IA32_EFER bits that exist. */
  readonly efer: number;

  private readonly absent = new Set<string>(ABSENT_FIELDS);
  private readonly msrs = new Map<number, bigint>();

  constructor(model: CpuModel) {
    const settings = (controls: ControlWord): AllowedSettings => ({
      must: (controls.default1 & ~controls.mayBeZero) >>> 0,
      may: (controls.default1 | supportedMask(controls, model)) >>> 0,
    });
    this.pinBased = settings(PIN_BASED);
    this.cpuBased = settings(CPU_BASED);
    this.secondary = settings(SECONDARY_EXEC);
    this.exit = settings(VM_EXIT);
    this.entry = settings(VM_ENTRY);
    if (!(this.secondary.may & SecondaryExec.ENABLE_XSAVES)) this.absent.add("XSS_EXIT_BITMAP");
    this.physicalBits = model.physicalBits;
    this.linearBits = model.linearBits;
    this.cr4Fixed1 = cr4Allowed(model);
    this.efer =
      (model.features.has("syscall") ? 1 : 0) |
      (model.features.has("lm") ? 0x500 : 0) |
      (model.features.has("nx") ? 0x800 : 0);

    const pack = (s: AllowedSettings, must = s.must): bigint => BigInt(must) | (BigInt(s.may) << 32n);
    const plain = (s: AllowedSettings, controls: ControlWord) => pack(s, (s.must | controls.default1) >>> 0);
    const highest = VMCS_FIELDS.filter((f) => this.hasField(f)).reduce(
      (m, f) => Math.max(m, (f.encoding >> 1) & 0x1ff),
      0,
    );
    // IA32_VMX_BASIC: region size, write-back, INS/OUTS information, TRUE capability MSRs.
    this.msrs.set(0x480, BigInt(VMCS_REVISION) | (BigInt(VMCS_SIZE) << 32n) | (6n << 50n) | (1n << 54n) | (1n << 55n));
    this.msrs.set(0x481, plain(this.pinBased, PIN_BASED));
    this.msrs.set(0x482, plain(this.cpuBased, CPU_BASED));
    this.msrs.set(0x483, plain(this.exit, VM_EXIT));
    this.msrs.set(0x484, plain(this.entry, VM_ENTRY));
    // IA32_VMX_MISC: timer rate, EFER.LMA saved in IA32E_MODE, HLT and wait-for-SIPI, CR3 targets, VMWRITE to
    // any field, injection of length 0.
    this.msrs.set(
      0x485,
      BigInt(PREEMPTION_TIMER_SHIFT) |
        (1n << 5n) |
        (1n << 6n) |
        (1n << 8n) |
        (BigInt(CR3_TARGETS) << 16n) |
        (MSR_LIST_SIZE_CODE << 25n) |
        (1n << 29n) |
        (1n << 30n),
    );
    this.msrs.set(0x486, BigInt(this.cr0Fixed0));
    this.msrs.set(0x487, BigInt(this.cr0Fixed1));
    this.msrs.set(0x488, BigInt(this.cr4Fixed0));
    this.msrs.set(0x489, BigInt(this.cr4Fixed1));
    this.msrs.set(0x48a, BigInt(highest << 1));
    this.msrs.set(0x48b, pack(this.secondary));
    this.msrs.set(0x48c, EPT_VPID_CAP);
    this.msrs.set(0x48d, pack(this.pinBased));
    this.msrs.set(0x48e, pack(this.cpuBased));
    this.msrs.set(0x48f, pack(this.exit));
    this.msrs.set(0x490, pack(this.entry));
    this.msrs.set(0x491, BigInt(this.functions));
  }

  /** Value of a capability MSR; undefined where the processor has none (reserved numbers): #GP(0). */
  msr(index: number): bigint | undefined {
    return this.msrs.get(index);
  }

  /** Whether VMREAD and VMWRITE know the field. */
  hasField(row: VmcsField): boolean {
    return !this.absent.has(row.name);
  }

  /** CR0 may have this low half in VMX operation; `unrestricted` frees PE and PG (SDM 3C 24.8, 27.3.1.1). */
  cr0Allowed(lo: number, hi: number, unrestricted: boolean): boolean {
    const must = unrestricted ? this.cr0Fixed0 & ~0x8000_0001 : this.cr0Fixed0;
    return (lo & must) === (must | 0) && (lo & ~this.cr0Fixed1) === 0 && hi === 0;
  }

  cr4Allowed(lo: number, hi: number): boolean {
    return (lo & this.cr4Fixed0) === this.cr4Fixed0 && (lo & ~this.cr4Fixed1) === 0 && hi === 0;
  }

  /** The physical address in lo/hi has no bits beyond MAXPHYADDR. */
  physicalOk(hi: number): boolean {
    const bits = this.physicalBits - 32;
    return bits >= 32 || (bits > 0 ? hi >>> bits === 0 : hi === 0);
  }
}

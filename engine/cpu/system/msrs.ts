/**
 * Model-specific registers as a table (SDM 4, table 2-2; SDM 3A 11.11 for MTRRs). A row says where the value lies and what
 * a write is checked for; what is not in the table does not exist and raises #GP(0).
 */
import { TraceKind } from "../../trace";
import { type Cpu, Next, type SystemHandler } from "../cpu";
import type { Feature } from "../models/model";
import { STORED_MSRS } from "../registers";
import { Gpr, Off } from "../state";
import { writeEfer } from "./control-registers";
import { gp0, isCanonical, MASK32, MASK64, requireCpl0 } from "./operands";
import { rawTsc, readTsc } from "./time";

export interface MsrRow {
  readonly index: number;
  readonly name: string;
  readonly section: string;
  readonly help: string;
  /** Without it the register does not exist. */
  readonly feature?: Feature;
  readonly vendor?: "GenuineIntel" | "AuthenticAMD";
  read(cpu: Cpu): bigint;
  /** Absent: read-only, writes raise #GP(0). @throws CpuFault #GP(0) */
  write?(cpu: Cpu, value: bigint): void;
}

type RowParts = Partial<Pick<MsrRow, "feature" | "vendor" | "section">>;

const constant = (index: number, name: string, value: bigint, help: string, parts: RowParts = {}): MsrRow => ({
  index,
  name,
  section: "4 table 2-2",
  help,
  ...parts,
  read: () => value,
});

/** Reads as a constant; writes are accepted and change nothing. */
const ignored = (index: number, name: string, value: bigint, help: string, parts: RowParts = {}): MsrRow => ({
  ...constant(index, name, value, help, parts),
  write: () => {},
});

const at = (
  index: number,
  name: string,
  offset: number,
  section: string,
  help: string,
  allowed: (value: bigint, cpu: Cpu) => boolean,
  parts: RowParts = {},
): MsrRow => ({
  index,
  name,
  section,
  help,
  ...parts,
  read: (cpu) => cpu.state.u64(offset),
  write: (cpu, value) => {
    if (!allowed(value, cpu)) throw gp0();
    cpu.state.setU64(offset, value);
  },
});

/** Memory types: 0 UC, 1 WC, 4 WT, 5 WP, 6 WB; 7 UC- in the PAT only. */
const memoryType = (type: bigint, pat: boolean): boolean =>
  type === 0n || type === 1n || (type >= 4n && type <= 6n) || (pat && type === 7n);

function eightTypes(value: bigint, pat: boolean): boolean {
  for (let i = 0n; i < 8n; i++) if (!memoryType((value >> (i * 8n)) & 0xffn, pat)) return false;
  return true;
}

const addressBits = (cpu: Cpu): bigint => (1n << BigInt(cpu.model.physicalBits)) - 1n;

/** Variable-range MTRR pairs (IA32_MTRRCAP 7:0). */
const VARIABLE_MTRRS = 8;
/** VCNT 8, FIX, WC. */
const MTRRCAP = BigInt(VARIABLE_MTRRS) | (1n << 8n) | (1n << 10n);
const FIXED_MTRRS = [0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f];

function mtrrRows(): MsrRow[] {
  const rows: MsrRow[] = [
    constant(0xfe, "ia32_mtrrcap", MTRRCAP, "Number and kinds of MTRRs.", { feature: "mtrr" }),
    at(
      0x2ff,
      "ia32_mtrr_def_type",
      Off.MTRR_DEF_TYPE,
      "3A 11.11.2.1",
      "Default memory type, and the enables of MTRRs.",
      (v) => (v & ~0xcffn) === 0n && memoryType(v & 0xffn, false),
      { feature: "mtrr" },
    ),
  ];
  for (const [i, index] of FIXED_MTRRS.entries()) {
    rows.push(
      at(
        index,
        `ia32_mtrr_fix_${index.toString(16)}`,
        Off.MTRR_FIXED + i * 8,
        "3A 11.11.2.2",
        "Memory types of eight ranges below 1 MByte.",
        (v) => eightTypes(v, false),
        { feature: "mtrr" },
      ),
    );
  }
  for (let i = 0; i < VARIABLE_MTRRS; i++) {
    const offset = Off.MTRR_VARIABLE + i * 16;
    rows.push(
      at(
        0x200 + i * 2,
        `ia32_mtrr_physbase${i}`,
        offset,
        "3A 11.11.2.3",
        "Base and memory type of a range.",
        (v, cpu) => (v & ~(addressBits(cpu) & ~0xf00n)) === 0n && memoryType(v & 0xffn, false),
        { feature: "mtrr" },
      ),
      at(
        0x201 + i * 2,
        `ia32_mtrr_physmask${i}`,
        offset + 8,
        "3A 11.11.2.3",
        "Mask and valid bit of a range.",
        (v, cpu) => (v & ~(addressBits(cpu) & ~0x7ffn)) === 0n,
        { feature: "mtrr" },
      ),
    );
  }
  return rows;
}

/** Machine-check banks (IA32_MCG_CAP 7:0). Nothing ever fails here, so that status registers stay 0. */
const MCA_BANKS = 10;
/** IA32_MCG_CAP: IA32_MCG_CTL exists (8), software error recovery (24), which Intel processors have. */
const MCG_CTL_P = 1n << 8n;
const MCG_SER_P = 1n << 24n;
/** RIPV, EIPV, MCIP. */
const MCG_STATUS_BITS = 7n;

function machineCheckRows(): MsrRow[] {
  const parts: RowParts = { feature: "mca" };
  const cleared = (index: number, name: string, help: string): MsrRow => ({
    ...constant(index, name, 0n, help, parts),
    write: (_cpu, value) => {
      if (value !== 0n) throw gp0();
    },
  });
  const rows: MsrRow[] = [
    {
      ...constant(0x179, "ia32_mcg_cap", 0n, "Number of machine-check banks, and what they can do.", parts),
      read: (cpu) => BigInt(MCA_BANKS) | MCG_CTL_P | (cpu.model.vendor === "GenuineIntel" ? MCG_SER_P : 0n),
    },
    at(
      0x17a,
      "ia32_mcg_status",
      Off.MCG_STATUS,
      "3B 16.3.1.2",
      "State of the last machine check.",
      (v) => (v & ~MCG_STATUS_BITS) === 0n,
      parts,
    ),
    at(0x17b, "ia32_mcg_ctl", Off.MCG_CTL, "3B 16.3.1.3", "Which machine checks are reported.", () => true, parts),
  ];
  for (let bank = 0; bank < MCA_BANKS; bank++) {
    const index = 0x400 + bank * 4;
    rows.push(
      at(
        index,
        `ia32_mc${bank}_ctl`,
        Off.MC_CTL + bank * 8,
        "3B 16.3.2.1",
        "Which errors of the bank are reported.",
        () => true,
        parts,
      ),
      cleared(index + 1, `ia32_mc${bank}_status`, "Last error of the bank."),
      cleared(index + 2, `ia32_mc${bank}_addr`, "Its address."),
      cleared(index + 3, `ia32_mc${bank}_misc`, "More about it."),
    );
  }
  return rows;
}

const FEATURE_LOCK = 1n;
const FEATURE_VMX = 4n;
/** Fast strings 0, thermal control 3, EIST 16, limit CPUID 22, no XD 34: the bits software may change. */
const MISC_ENABLE_WRITABLE = 0x1n | (1n << 3n) | (1n << 16n) | (1n << 18n) | (1n << 22n);

/**
 * Configuration registers of AMD processors that system software reads and sets and that have no effect here: index, name,
 * value at power-up, help.
 */
const SCRATCH_MSRS: readonly (readonly [index: number, name: string, value: bigint, help: string])[] = [
  // The TSC counts at the frequency of performance state 0 (24).
  [0xc001_0015, "hwcr", 1n << 24n, "Hardware configuration."],
  [0xc001_0010, "syscfg", 0n, "System configuration."],
  [0xc001_001a, "top_mem", 0n, "End of memory below 4 GBytes."],
  [0xc001_001d, "top_mem2", 0n, "End of memory above 4 GBytes."],
  [0xc001_001f, "nb_cfg1", 0n, "Northbridge configuration."],
  [0xc001_0055, "int_pending", 0n, "Interrupt-pending message."],
  [0xc001_0058, "mmio_cfg_base", 0n, "Place of PCI configuration space in memory."],
  [0xc001_0112, "smm_addr", 0n, "Base of the TSEG."],
  [0xc001_0113, "smm_mask", 0n, "Mask of the TSEG."],
  [0xc001_1020, "ls_cfg", 0n, "Load-store configuration."],
  [0xc001_1022, "dc_cfg", 0n, "Data-cache configuration."],
  [0xc001_1023, "tw_cfg", 0n, "Table-walker configuration."],
  // LFENCE waits for the instructions before it (1).
  [0xc001_1029, "de_cfg", 2n, "Decoder configuration."],
  [0xc001_102a, "bu_cfg2", 0n, "Bus-unit configuration."],
];

/** IA32_SPEC_CTRL: IBRS, STIBP, SSBD. */
const SPEC_CTRL_BITS = 7n;
/** IA32_PRED_CMD: IBPB. */
const PRED_CMD_BITS = 1n;
/**
 * IA32_ARCH_CAPABILITIES: nothing is speculated on, so that this processor has none of the weaknesses: RDCL (0), enhanced
 * IBRS (1), L1D flush on entry not needed (3), SSB (4), MDS (5), page-size-change machine check (6), TAA (8), SBDR, FBSDP
 * and PSDP (13 to 15), BHI (20), post-barrier RSB (24), GDS (26), RFDS (27), ITS (62).
 */
export const ARCH_CAPABILITIES = [0, 1, 3, 4, 5, 6, 8, 13, 14, 15, 20, 24, 26, 27, 62].reduce(
  (v, bit) => v | (1n << BigInt(bit)),
  0n,
);

/** Barriers of speculation (SDM 4 table 2-2; AMD's are the same registers). They have no effect here. */
function speculationRows(): MsrRow[] {
  return [
    at(
      0x48,
      "ia32_spec_ctrl",
      Off.SPEC_CTRL,
      "4 table 2-2",
      "Speculation control: IBRS, STIBP, SSBD.",
      (v) => (v & ~SPEC_CTRL_BITS) === 0n,
      { feature: "spec-ctrl" },
    ),
    {
      ...constant(0x49, "ia32_pred_cmd", 0n, "Indirect-branch predictor barrier; write-only.", {
        feature: "spec-ctrl",
      }),
      read: () => {
        throw gp0();
      },
      write: (_cpu, value) => {
        if (value & ~PRED_CMD_BITS) throw gp0();
      },
    },
    constant(0x10a, "ia32_arch_capabilities", ARCH_CAPABILITIES, "Weaknesses this processor does not have.", {
      feature: "arch-capabilities",
    }),
  ];
}

/** Registers whose rules are more than a place in the processor's block. */
const SPECIAL: readonly MsrRow[] = [
  {
    index: 0x10,
    name: "ia32_time_stamp_counter",
    section: "3B 18.17",
    help: "Time-stamp counter.",
    feature: "tsc",
    read: readTsc,
    write: (cpu, value) => setTsc(cpu, value),
  },
  {
    index: 0x3b,
    name: "ia32_tsc_adjust",
    section: "3B 18.17.3",
    help: "What software added to the TSC.",
    feature: "tsc-adjust",
    read: (cpu) => cpu.state.u64(Off.TSC_ADJUST),
    write: (cpu, value) => {
      const { state } = cpu;
      const delta = value - state.u64(Off.TSC_ADJUST);
      state.setU64(Off.TSC_ADJUST, value);
      state.setU64(Off.TSC_BASE, BigInt.asUintN(64, state.u64(Off.TSC_BASE) + delta));
    },
  },
  {
    index: 0x3a,
    name: "ia32_feature_control",
    section: "4 table 2-2",
    help: "Lock (0), VMX outside SMX (2).",
    feature: "vmx",
    read: (cpu) => cpu.state.u64(Off.FEATURE_CONTROL),
    write: (cpu, value) => {
      const locked = (cpu.state.u64(Off.FEATURE_CONTROL) & FEATURE_LOCK) !== 0n;
      if (locked || value & ~(FEATURE_LOCK | FEATURE_VMX)) throw gp0();
      cpu.state.setU64(Off.FEATURE_CONTROL, value);
    },
  },
  {
    index: 0xc000_0080,
    name: "ia32_efer",
    section: "3A 2.2.1",
    help: "Extended features: long mode, SYSCALL, NX.",
    read: (cpu) => cpu.state.u64(Off.EFER),
    write: writeEfer,
  },
  at(
    0x277,
    "ia32_pat",
    Off.PAT,
    "3A 11.12.4",
    "Memory types of the eight page-attribute combinations.",
    (v) => eightTypes(v, true),
    {
      feature: "pat",
    },
  ),
  at(0x1d9, "ia32_debugctl", Off.DEBUGCTL, "3B 17.4.1", "Branch trace and debug control.", (v) => (v & ~0x3n) === 0n),
  at(0x174, "ia32_sysenter_cs", Off.SYSENTER_CS, "3A 5.8.7", "CS of SYSENTER.", (v) => v <= MASK32, { feature: "sep" }),
  at(0xc000_0084, "ia32_fmask", Off.FMASK, "3A 5.8.8", "RFLAGS bits that SYSCALL clears.", (v) => v <= MASK32, {
    feature: "syscall",
  }),
  at(0xc000_0103, "ia32_tsc_aux", Off.TSC_AUX, "2B RDTSCP", "What RDTSCP and RDPID give in ECX.", (v) => v <= MASK32, {
    feature: "rdtscp",
  }),
  at(0xda0, "ia32_xss", Off.XSS, "1 13.3", "Supervisor states of XSAVES: this processor has none.", (v) => v === 0n, {
    feature: "xsaves",
  }),
  {
    index: 0x1a0,
    name: "ia32_misc_enable",
    section: "4 table 2-2",
    help: "Processor features that can be switched.",
    vendor: "GenuineIntel",
    read: (cpu) => cpu.state.u64(Off.MISC_ENABLE),
    write: (cpu, value) => {
      const before = cpu.state.u64(Off.MISC_ENABLE);
      cpu.state.setU64(Off.MISC_ENABLE, (before & ~MISC_ENABLE_WRITABLE) | (value & MISC_ENABLE_WRITABLE));
    },
  },
  constant(0x17, "ia32_platform_id", 0n, "Platform.", { vendor: "GenuineIntel" }),
  // Bits 15:8: maximum non-turbo ratio in units of 100 MHz, 1 GHz.
  constant(0xce, "msr_platform_info", 10n << 8n, "Nominal frequency.", { vendor: "GenuineIntel" }),
  // Update revision F0H in the upper half, late enough for every known erratum.
  {
    ...ignored(0x8b, "ia32_bios_sign_id", 0n, "Microcode revision."),
    read: (cpu) => (cpu.model.vendor === "GenuineIntel" ? 0xf0n << 32n : 0x0a00_11d1n),
  },
  ignored(0x79, "ia32_bios_updt_trig", 0n, "Microcode update.", { vendor: "GenuineIntel" }),
  // 1 GHz at ratio 10.
  constant(0x198, "ia32_perf_status", 10n << 8n, "Present performance state.", { vendor: "GenuineIntel" }),
  ignored(0x199, "ia32_perf_ctl", 10n << 8n, "Wanted performance state.", { vendor: "GenuineIntel" }),
  ignored(0x19a, "ia32_clock_modulation", 0n, "Clock modulation.", { vendor: "GenuineIntel" }),
  ignored(0x19b, "ia32_therm_interrupt", 0n, "Thermal interrupts.", { vendor: "GenuineIntel" }),
  constant(0x19c, "ia32_therm_status", 0n, "Thermal status.", { vendor: "GenuineIntel" }),
  constant(0x2a, "msr_ebl_cr_poweron", 0n, "Power-on configuration.", { vendor: "GenuineIntel" }),
  constant(0xcd, "msr_fsb_freq", 0n, "Bus frequency code.", { vendor: "GenuineIntel" }),
  ignored(0x1c9, "msr_lastbranch_tos", 0n, "Top of the last-branch stack.", { vendor: "GenuineIntel" }),
  ignored(0x34, "msr_smi_count", 0n, "SMIs since reset.", { vendor: "GenuineIntel" }),
  ...speculationRows(),
  // SVM disabled (4), and locked so (3).
  constant(0xc001_0114, "vm_cr", 0x18n, "SVM is disabled.", { vendor: "AuthenticAMD", section: "APM 2 15.30.1" }),
  ignored(0xc001_0020, "patch_loader", 0n, "Microcode update.", { vendor: "AuthenticAMD" }),
  constant(0xc001_0061, "pstate_current_limit", 0n, "Performance states: there is one.", { vendor: "AuthenticAMD" }),
  ignored(0xc001_0062, "pstate_control", 0n, "Wanted performance state.", { vendor: "AuthenticAMD" }),
  constant(0xc001_0063, "pstate_status", 0n, "Present performance state.", { vendor: "AuthenticAMD" }),
  // Enabled (63), 1000 MHz: 25 MHz x 40, divided by 8 eighths.
  constant(0xc001_0064, "pstate_0", (1n << 63n) | (8n << 8n) | 40n, "Performance state 0.", { vendor: "AuthenticAMD" }),
  ...SCRATCH_MSRS.map(([index, name, , help], i) =>
    at(index, name, Off.SCRATCH_MSRS + i * 8, "APM 2 appendix A", help, () => true, { vendor: "AuthenticAMD" }),
  ),
];

/** Sets the registers above that do not start as 0. */
export function resetMsrs(cpu: Cpu): void {
  const { state } = cpu;
  state.setU64(Off.MCG_STATUS, 0n);
  state.setU64(Off.MCG_CTL, MASK64);
  for (let bank = 0; bank < MCA_BANKS; bank++) state.setU64(Off.MC_CTL + bank * 8, 0n);
  SCRATCH_MSRS.forEach(([, , value], i) => {
    state.setU64(Off.SCRATCH_MSRS + i * 8, value);
  });
}

/** Features that the plain rows of registers.ts depend on. */
const STORED_FEATURE: Readonly<Record<string, Feature>> = {
  ia32_star: "syscall",
  ia32_lstar: "syscall",
  ia32_cstar: "syscall",
  ia32_fs_base: "lm",
  ia32_gs_base: "lm",
  ia32_kernel_gs_base: "lm",
  ia32_sysenter_esp: "sep",
  ia32_sysenter_eip: "sep",
};

function storedRows(): MsrRow[] {
  return STORED_MSRS.filter((m) => m.index !== 0x1b && !SPECIAL.some((s) => s.index === m.index)).map((m) => ({
    index: m.index,
    name: m.name,
    section: m.section,
    help: m.help,
    feature: STORED_FEATURE[m.name],
    read: (cpu) => cpu.state.u64(m.offset),
    write: (cpu, value) => {
      if (m.canonical && !isCanonical(cpu, value)) throw gp0();
      cpu.state.setU64(m.offset, value);
    },
  }));
}

/** Every MSR of the processor but those of the local APIC (InterruptPort) and of VMX (Vmx.capability). */
export const MSRS: readonly MsrRow[] = [...SPECIAL, ...storedRows(), ...mtrrRows(), ...machineCheckRows()].sort(
  (a, b) => a.index - b.index,
);

const BY_INDEX = new Map(MSRS.map((row) => [row.index, row]));

/** The row of an MSR that this processor has. */
function msrRow(cpu: Cpu, index: number): MsrRow | undefined {
  const row = BY_INDEX.get(index);
  if (!row) return undefined;
  if (row.feature && !cpu.model.features.has(row.feature)) return undefined;
  return row.vendor && row.vendor !== cpu.model.vendor ? undefined : row;
}

const APIC_BASE = 0x1b;
const TSC_DEADLINE = 0x6e0;
const isApicMsr = (index: number): boolean =>
  index === APIC_BASE || index === TSC_DEADLINE || (index >= 0x800 && index < 0x900);

/** WRMSR to the TSC moves IA32_TSC_ADJUST by as much (SDM 3B 18.17.3). */
function setTsc(cpu: Cpu, value: bigint): void {
  const { state } = cpu;
  const delta = value - rawTsc(cpu);
  state.setU64(Off.TSC_BASE, BigInt.asUintN(64, state.u64(Off.TSC_BASE) + delta));
  state.setU64(Off.TSC_ADJUST, BigInt.asUintN(64, state.u64(Off.TSC_ADJUST) + delta));
}

/** The register's value, without interception. @throws CpuFault #GP(0) where there is no such register */
export function readMsr(cpu: Cpu, index: number): bigint {
  if (isApicMsr(index)) {
    const value = cpu.interrupts.readMsr(index);
    if (value === undefined) throw gp0();
    return value;
  }
  if (cpu.vmx.hasCapability(index)) return cpu.vmx.capability(index);
  const row = msrRow(cpu, index);
  if (!row) throw gp0();
  return row.read(cpu);
}

/** Writes the register, without interception. @throws CpuFault #GP(0) for unknown and read-only registers, wrong values */
export function writeMsr(cpu: Cpu, index: number, value: bigint): void {
  if (isApicMsr(index)) {
    if (!cpu.interrupts.writeMsr(index, value)) throw gp0();
    if (index === APIC_BASE) {
      cpu.state.setU64(Off.APIC_BASE, value);
      // The register page may have moved on or off memory that the TLB knows.
      cpu.mmu.flushEverything();
    }
    return;
  }
  const row = msrRow(cpu, index);
  if (!row?.write) throw gp0();
  row.write(cpu, value);
}

function trace(cpu: Cpu, index: number, write: boolean, value: bigint): void {
  if (!(cpu.trace.armed & TraceKind.Msr)) return;
  const name = BY_INDEX.get(index)?.name ?? `MSR 0x${index.toString(16)}`;
  cpu.trace.hit({
    kind: TraceKind.Msr,
    vcpu: cpu.id,
    text: `${write ? "wrmsr" : "rdmsr"} ${name} 0x${value.toString(16)}`,
    detail: { index: BigInt(index), write, value },
  });
}

const rdmsr: SystemHandler = (cpu, instruction) => {
  requireCpl0(cpu);
  const { state } = cpu;
  const index = state.gpr32(Gpr.RCX);
  cpu.guest?.interceptMsr(index, false, instruction);
  const value = cpu.guest?.virtualizeRdmsr?.(index) ?? readMsr(cpu, index);
  trace(cpu, index, false, value);
  state.setGpr(Gpr.RAX, value & MASK32);
  state.setGpr(Gpr.RDX, value >> 32n);
  return Next.SEQUENTIAL;
};

const wrmsr: SystemHandler = (cpu, instruction) => {
  requireCpl0(cpu);
  const { state } = cpu;
  const index = state.gpr32(Gpr.RCX);
  cpu.guest?.interceptMsr(index, true, instruction);
  const value = (BigInt(state.gpr32(Gpr.RDX)) << 32n) | BigInt(state.gpr32(Gpr.RAX));
  trace(cpu, index, true, value);
  if (!cpu.guest?.virtualizeWrmsr?.(index, value)) writeMsr(cpu, index, value);
  return Next.ATTENTION;
};

export const msrHandlers: Readonly<Record<string, SystemHandler>> = { RDMSR: rdmsr, WRMSR: wrmsr };

/** Registers as a table: what debuggers list, name, format and set. */

export type RegisterGroup = "general" | "segment" | "control" | "debug" | "msr" | "fpu" | "vector";

/** A named field of bits inside a register or VMCS field. */
export interface BitField {
  readonly name: string;
  /** Lowest bit. */
  readonly low: number;
  /** Number of bits; 1 for a flag. */
  readonly width: number;
  readonly help: string;
  /** Names of values, where values have names. */
  readonly values?: Readonly<Record<number, string>>;
}

export interface RegisterRow {
  /** Lower case, as users type it: "rax", "cs.base", "cr0", "ia32_efer". */
  readonly name: string;
  readonly group: RegisterGroup;
  /** Bits. */
  readonly width: number;
  readonly section: string;
  readonly help: string;
  readonly bits?: readonly BitField[];
}

/** Reads and writes by row name. Setting checks what the architecture would check and throws RangeError with the rule. */
export interface RegisterFile {
  readonly rows: readonly RegisterRow[];
  read(name: string): bigint;
  write(name: string, value: bigint): void;
}

/** What the VMCS view shows, without the editor: groups, fields, decoded bits, and which values changed since the last stop. */
import type { CustomBitField, CustomField } from "../debug-adapter/custom-protocol";
import { vmcsFieldByName } from "../engine/cpu/vmx/fields";

/** The manual's groups (SDM 3C 25.3) in the order of interest at an exit. */
const GROUPS = [
  "exit-information",
  "guest-state",
  "execution-control",
  "entry-control",
  "exit-control",
  "host-state",
] as const;
const TITLES: Readonly<Record<(typeof GROUPS)[number], string>> = {
  "exit-information": "Exit information",
  "guest-state": "Guest state",
  "execution-control": "Execution controls",
  "entry-control": "Entry controls",
  "exit-control": "Exit controls",
  "host-state": "Host state",
};

export interface GroupNode {
  readonly kind: "group";
  readonly name: string;
  readonly fields: readonly FieldNode[];
  /** Number of fields whose value changed. */
  readonly changed: number;
}

export interface FieldNode {
  readonly kind: "field";
  readonly field: CustomField;
  readonly writable: boolean;
  /** The value it had at the stop before, when that was another one. */
  readonly before?: string;
  readonly bits: readonly BitNode[];
}

export interface BitNode {
  readonly kind: "bit";
  readonly field: CustomField;
  readonly bit: CustomBitField;
}

export type VmcsNode = GroupNode | FieldNode | BitNode;

/** Where a field is listed: its group and its place inside it, and whether it may be set. */
function placeOf(field: CustomField): { rank: number; group: string; writable: boolean } {
  const row = vmcsFieldByName(field.name.replace(/^vmcs\./, ""));
  if (!row) return { rank: GROUPS.length, group: field.group, writable: true };
  const title = TITLES[row.group];
  const group = row.subgroup === title ? title : `${title}: ${row.subgroup}`;
  return { rank: GROUPS.indexOf(row.group), group, writable: row.access === "rw" };
}

/**
 * @param before values by field name at the stop before
 * @param onlyChanged leaves out fields that have their old value, and groups without any other
 */
export function vmcsTree(
  fields: readonly CustomField[],
  before: ReadonlyMap<string, string>,
  onlyChanged: boolean,
): GroupNode[] {
  const groups = new Map<string, { rank: number; fields: FieldNode[] }>();
  for (const field of fields) {
    const { rank, group, writable } = placeOf(field);
    const old = before.get(field.name);
    const changed = old !== undefined && old !== field.value;
    const entry = groups.get(group) ?? { rank, fields: [] };
    groups.set(group, entry);
    if (onlyChanged && !changed) continue;
    const bits = field.bits.map((bit) => ({ kind: "bit" as const, field, bit }));
    entry.fields.push({ kind: "field", field, writable, bits, ...(changed ? { before: old } : {}) });
  }
  const all = [...groups]
    .sort(([, a], [, b]) => a.rank - b.rank)
    .map(([name, entry]) => ({
      kind: "group" as const,
      name,
      fields: entry.fields,
      changed: entry.fields.filter((f) => f.before !== undefined).length,
    }));
  return onlyChanged ? all.filter((group) => group.fields.length > 0) : all;
}

/** "31:0" or "14". */
export function bitRange(bit: CustomBitField): string {
  return bit.width === 1 ? `${bit.low}` : `${bit.low + bit.width - 1}:${bit.low}`;
}

/** Text of a value, for people: hexadecimal with a separator every four digits when it is long. */
export function spaced(value: string): string {
  const match = /^0x([0-9a-f]{9,})$/i.exec(value);
  if (!match) return value;
  const digits = match[1].padStart(Math.ceil(match[1].length / 4) * 4, "0");
  return `0x${digits.replace(/(.{4})(?=.)/g, "$1'")}`;
}

/** The bit table of a field, in Markdown, for its tooltip. */
export function fieldTooltip(node: FieldNode): string {
  const { field, before } = node;
  const plain = (text: string): string => text.replace(/[\\`*_{}[\]()#+\-!|<>]/g, "\\$&");
  const lines = [`**${plain(field.name)}** = \`${spaced(String(field.value))}\``];
  if (before !== undefined) lines.push(`was \`${spaced(before)}\``);
  if (field.help) lines.push(plain(field.help));
  if (field.bits.length > 0) {
    const rows = field.bits.map(
      (b) =>
        `| ${bitRange(b)} | ${plain(b.name)} | \`${b.value}\`${b.text ? ` ${plain(b.text)}` : ""} | ${plain(b.help)} |`,
    );
    lines.push(["| Bits | Name | Value | |", "|---:|---|---|---|", ...rows].join("\n"));
  }
  const width = field.width > 0 ? `${field.width} bits` : "";
  const where = [width, field.section ? `SDM ${field.section}` : ""].filter((s) => s !== "").join(", ");
  if (where) lines.push(plain(where));
  return lines.join("\n\n");
}

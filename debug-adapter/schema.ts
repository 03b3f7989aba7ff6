/**
 * A small part of JSON schema, enough for launch attributes and protocol messages, with messages a person can act on.
 * The launch schema is the very object VS Code reads from package.json (`configurationAttributes`).
 */

export type SchemaType = "string" | "integer" | "number" | "boolean" | "object" | "array";

export interface Schema {
  readonly type?: SchemaType | readonly SchemaType[];
  readonly enum?: readonly (string | number | boolean)[];
  readonly enumDescriptions?: readonly string[];
  readonly minimum?: number;
  readonly maximum?: number;
  readonly minLength?: number;
  readonly pattern?: string;
  /** What a value should be like, when the pattern does not match. */
  readonly patternErrorMessage?: string;
  readonly items?: Schema;
  readonly properties?: Readonly<Record<string, Schema>>;
  readonly required?: readonly string[];
  readonly additionalProperties?: boolean | Schema;
  readonly default?: unknown;
  readonly description?: string;
  readonly markdownDescription?: string;
}

function typeOf(value: unknown): SchemaType | "null" | "undefined" {
  if (value === null) return "null";
  if (Array.isArray(value)) return "array";
  const type = typeof value;
  if (type === "number") return Number.isInteger(value) ? "integer" : "number";
  if (type === "string" || type === "boolean" || type === "object" || type === "undefined") return type;
  return "object";
}

const ARTICLES: Readonly<Record<SchemaType, string>> = {
  string: "a string",
  integer: "a whole number",
  number: "a number",
  boolean: "true or false",
  object: "an object",
  array: "a list",
};

const shown = (value: unknown): string => {
  const text = JSON.stringify(value) ?? String(value);
  return text.length > 60 ? text.slice(0, 57) + "..." : text;
};
const either = (words: readonly string[]): string =>
  words.length < 2 ? (words[0] ?? "") : `${words.slice(0, -1).join(", ")} or ${words[words.length - 1]}`;

/**
 * @param name how messages call the value, e.g. `launch attribute "memory"`
 * @returns what is wrong, one sentence each
 */
export function check(value: unknown, schema: Schema, name: string): string[] {
  const actual = typeOf(value);
  const types = schema.type === undefined ? [] : typeof schema.type === "string" ? [schema.type] : schema.type;
  const typed = types.length === 0 || types.some((t) => t === actual || (t === "number" && actual === "integer"));
  if (!typed) return [`${name} must be ${either(types.map((t) => ARTICLES[t]))}, not ${shown(value)}`];
  if (schema.enum && !schema.enum.includes(value as string))
    return [`${name} must be ${either(schema.enum.map(shown))}, not ${shown(value)}`];
  if (typeof value === "number") return checkNumber(value, schema, name);
  if (typeof value === "string") return checkString(value, schema, name);
  const { items } = schema;
  if (Array.isArray(value) && items) return value.flatMap((item, i) => check(item, items, `${name}[${i}]`));
  if (actual === "object") return checkObject(value as Record<string, unknown>, schema, name);
  return [];
}

function checkNumber(value: number, schema: Schema, name: string): string[] {
  const { minimum, maximum } = schema;
  if (minimum !== undefined && value < minimum) return [`${name} must be at least ${minimum}, not ${value}`];
  if (maximum !== undefined && value > maximum) return [`${name} must be at most ${maximum}, not ${value}`];
  return [];
}

function checkString(value: string, schema: Schema, name: string): string[] {
  if (schema.minLength !== undefined && value.length < schema.minLength) return [`${name} must not be empty`];
  if (schema.pattern !== undefined && !new RegExp(schema.pattern).test(value))
    return [`${name} must be ${schema.patternErrorMessage ?? `like ${schema.pattern}`}, not ${shown(value)}`];
  return [];
}

function checkObject(value: Record<string, unknown>, schema: Schema, name: string): string[] {
  const problems: string[] = [];
  for (const key of schema.required ?? []) if (value[key] === undefined) problems.push(`${name} needs "${key}"`);
  for (const [key, part] of Object.entries(value)) {
    if (part === undefined) continue;
    const known = schema.properties && Object.hasOwn(schema.properties, key) ? schema.properties[key] : undefined;
    if (known) problems.push(...check(part, known, inside(name, key)));
    else if (schema.additionalProperties === false) problems.push(`${name} has no "${key}"`);
    else if (typeof schema.additionalProperties === "object")
      problems.push(...check(part, schema.additionalProperties, inside(name, key)));
  }
  return problems;
}

/** `launch attribute "kvm"` and `ept` give `launch attribute "kvm.ept"`. */
const inside = (name: string, key: string): string =>
  name.endsWith('"') ? `${name.slice(0, -1)}.${key}"` : `${name} "${key}"`;

/** The nearest of `names` to a mistyped one, if any is near. */
export function nearest(name: string, names: readonly string[]): string | undefined {
  const lower = name.toLowerCase();
  const letters = (text: string): string => [...text.toLowerCase()].sort().join("");
  return names.find((n) => {
    const other = n.toLowerCase();
    if (other === lower || letters(other) === letters(lower)) return true;
    if (Math.abs(other.length - lower.length) > 1) return false;
    const [short, long] = other.length <= lower.length ? [other, lower] : [lower, other];
    if (short.length === long.length) return [...short].filter((c, i) => c !== long[i]).length <= 1;
    for (let i = 0; i < long.length; i++) if (long.slice(0, i) + long.slice(i + 1) === short) return true;
    return false;
  });
}

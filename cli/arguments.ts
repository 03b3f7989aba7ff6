/** Reads the arguments of `hyperstep run`. */
import { parseArgs } from "node:util";
import { KVM_PARAMS } from "../engine/kvm/params";
import { type Accel, VIRTIO_KINDS, type VirtioKind } from "../engine/machine/config";
import { type DiskArgument, diskArgument } from "./disks";
import { UsageError } from "./usage";

export interface RunArguments {
  readonly image: string;
  readonly accel: Accel;
  readonly memory: number;
  readonly smp: number;
  readonly append: string;
  readonly initrd?: string;
  /** File and the argument string that follows it. */
  readonly modules: readonly { readonly file: string; readonly argument: string }[];
  readonly disks?: readonly DiskArgument[];
  readonly virtio?: readonly VirtioKind[];
  readonly loadAddress?: number;
  readonly firmware?: string;
  readonly firmwareVariables?: string;
  readonly videoBios?: string;
  /** IDE drives of machines with firmware, in order. */
  readonly drives?: readonly { readonly file: string; readonly kind: "disk" | "cdrom" }[];
  readonly cpu?: string;
  readonly kvm: Readonly<Record<string, boolean | number>>;
  readonly tier: 0 | 1;
  readonly maxInstructions: number;
  /** Seconds; Infinity without --timeout. */
  readonly timeout: number;
  readonly traceExits: boolean;
  /** A reset by the guest ends the run. */
  readonly noReboot?: boolean;
  /** No status line on a terminal. */
  readonly noStatus?: boolean;
  readonly stats?: string;
}

const OPTIONS = {
  accel: { type: "string" },
  memory: { type: "string", short: "m" },
  smp: { type: "string" },
  append: { type: "string" },
  initrd: { type: "string" },
  module: { type: "string", multiple: true },
  disk: { type: "string", multiple: true },
  virtio: { type: "string" },
  "load-address": { type: "string" },
  firmware: { type: "string" },
  "firmware-vars": { type: "string" },
  "video-bios": { type: "string" },
  "ide-disk": { type: "string", multiple: true },
  cdrom: { type: "string", multiple: true },
  cpu: { type: "string" },
  kvm: { type: "string", multiple: true },
  tier: { type: "string" },
  "max-instructions": { type: "string" },
  timeout: { type: "string" },
  trace: { type: "string" },
  stats: { type: "string" },
  "no-reboot": { type: "boolean" },
  "no-status": { type: "boolean" },
} as const;

const DEFAULT_MEMORY = 256 * 1024 * 1024;

/** @throws UsageError */
export function parseRunArguments(args: readonly string[]): RunArguments {
  const { values, positionals } = read(args);
  const [image = values.firmware] = positionals;
  if (image === undefined) throw new UsageError("run needs an image");
  if (positionals.length > 1) {
    throw new UsageError(`run takes one image, got ${positionals.length}: ${positionals.join(", ")}`);
  }
  const { trace, tier = "0" } = values;
  if (trace !== undefined && trace !== "exits") {
    throw new UsageError(`--trace ${trace}: the one thing to trace is "exits"`);
  }
  if (tier !== "0" && tier !== "1") throw new UsageError(`--tier ${tier}: use 0 or 1`);
  return {
    image,
    accel: accel(values.accel),
    memory: values.memory === undefined ? DEFAULT_MEMORY : size("memory", values.memory),
    smp: values.smp === undefined ? 1 : count("smp", values.smp),
    append: values.append ?? "",
    initrd: values.initrd,
    modules: (values.module ?? []).map(module),
    disks: values.disk?.map(diskArgument),
    virtio: values.virtio?.split(",").map(virtioKind),
    loadAddress: values["load-address"] === undefined ? undefined : number("load-address", values["load-address"]),
    firmware: values.firmware,
    firmwareVariables: values["firmware-vars"],
    videoBios: values["video-bios"],
    drives: drives(values),
    cpu: values.cpu,
    kvm: Object.fromEntries((values.kvm ?? []).map(parameter)),
    tier: tier === "1" ? 1 : 0,
    maxInstructions:
      values["max-instructions"] === undefined
        ? Number.POSITIVE_INFINITY
        : count("max-instructions", values["max-instructions"]),
    timeout: values.timeout === undefined ? Number.POSITIVE_INFINITY : seconds(values.timeout),
    traceExits: trace === "exits",
    noReboot: values["no-reboot"],
    noStatus: values["no-status"],
    stats: values.stats,
  };
}

function read(args: readonly string[]) {
  try {
    return parseArgs({ args: [...args], options: OPTIONS, allowPositionals: true, strict: true });
  } catch (error) {
    // The library's own sentence, without its advice about "--".
    const text = error instanceof Error ? error.message : String(error);
    throw new UsageError(text.split(/\.?\n|\. /)[0].replace(/\.$/, ""));
  }
}

function virtioKind(value: string): VirtioKind {
  const kind = VIRTIO_KINDS.find((name) => name === value);
  if (!kind) throw new UsageError(`--virtio ${value}: use ${VIRTIO_KINDS.join(", ")}`);
  return kind;
}

/** Undefined when there are none. */
function drives(values: { "ide-disk"?: string[]; cdrom?: string[] }): RunArguments["drives"] {
  const list = [
    ...(values["ide-disk"] ?? []).map((file) => ({ file, kind: "disk" as const })),
    ...(values.cdrom ?? []).map((file) => ({ file, kind: "cdrom" as const })),
  ];
  return list.length > 0 ? list : undefined;
}

function accel(value = "none"): Accel {
  if (value === "none" || value === "vmx") return value;
  if (value === "svm") throw new UsageError("--accel svm is not there yet; use vmx or none");
  throw new UsageError(`--accel ${value}: use none or vmx`);
}

/** Decimal or 0x number. */
function number(option: string, value: string): number {
  if (!/^(0[xX][0-9a-fA-F]+|\d+)$/.test(value)) {
    throw new UsageError(`--${option} ${value}: not a number; use e.g. 4096 or 0x1000`);
  }
  const n = Number(value);
  if (!Number.isSafeInteger(n)) throw new UsageError(`--${option} ${value}: too large`);
  return n;
}

function count(option: string, value: string): number {
  const n = number(option, value.replaceAll("_", ""));
  if (n < 1) throw new UsageError(`--${option} ${value}: at least 1`);
  return n;
}

const UNITS: Readonly<Record<string, number>> = { "": 1024 ** 2, K: 1024, M: 1024 ** 2, G: 1024 ** 3 };

/** A size with unit; without one it is in MiB, as QEMU's -m. */
function size(option: string, value: string): number {
  const match = /^(\d+)([KMG]?)i?B?$/i.exec(value);
  if (!match) throw new UsageError(`--${option} ${value}: not a size; use e.g. 256M or 1G`);
  const bytes = Number(match[1]) * UNITS[match[2].toUpperCase()];
  if (!Number.isSafeInteger(bytes)) throw new UsageError(`--${option} ${value}: too large`);
  return bytes;
}

function seconds(value: string): number {
  const n = Number(value);
  if (!/^\d+(\.\d+)?$/.test(value) || n <= 0)
    throw new UsageError(`--timeout ${value}: not a number of seconds above 0`);
  return n;
}

function module(value: string): { file: string; argument: string } {
  const space = value.indexOf(" ");
  return space < 0
    ? { file: value, argument: value }
    : { file: value.slice(0, space), argument: value.slice(space + 1) };
}

const WORDS: Readonly<Record<string, boolean>> = { y: true, n: false, Y: true, N: false, 1: true, 0: false };

/** NAME=VALUE in the forms the kernel takes for the parameter's type. */
function parameter(value: string): [string, boolean | number] {
  const at = value.indexOf("=");
  if (at <= 0) throw new UsageError(`--kvm ${value}: use NAME=VALUE, e.g. eptad=0`);
  const [name, text] = [value.slice(0, at), value.slice(at + 1)];
  const row = KVM_PARAMS.find((p) => p.name === name);
  if (!row) {
    throw new UsageError(
      `--kvm ${name}: there is no such parameter; there are ${KVM_PARAMS.map((p) => p.name).join(", ")}`,
    );
  }
  if (row.type !== "bool") return [name, number("kvm", text)];
  const flag = WORDS[text];
  if (flag === undefined) throw new UsageError(`--kvm ${value}: use 0 or 1`);
  return [name, flag];
}

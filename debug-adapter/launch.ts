/** Launch configurations: checked against the schema, files read. */
import type { LaunchDisk, LaunchRequest } from "../engine/debug/api";
import type { Accel, VirtioKind } from "../engine/machine/config";
import type { NumberFormat } from "./custom-protocol";
import { parseSize } from "./format";
import type { AdapterHost } from "./host";
import { type LaunchAttribute, launchSchema } from "./launch-schema";
import { check, nearest } from "./schema";

export interface SymbolFile {
  readonly path: string;
  /** Added to every address; not given, a kernel's file moves with the kernel. */
  readonly slide?: bigint;
}

/** A configuration that has been found right. */
export interface LaunchConfiguration {
  readonly program: string;
  readonly accel: Accel;
  readonly memory: number;
  readonly smp: number;
  readonly cpu: string;
  readonly append: string;
  readonly initrd?: string;
  readonly firmware?: string;
  readonly firmwareVariables?: string;
  readonly videoBios?: string;
  readonly loadAddress?: number;
  readonly tier: 0 | 1;
  readonly stopOnEntry: boolean;
  readonly noDebug: boolean;
  readonly symbols: readonly SymbolFile[];
  readonly kvm: Readonly<Record<string, boolean | number>>;
  readonly disks: readonly string[];
  readonly virtio: readonly VirtioKind[];
  readonly reboot: boolean;
  readonly serial: "terminal" | "console" | "both";
  readonly numbers: NumberFormat;
}

/** Attributes every configuration may have; the editor adds them. */
const COMMON = ["type", "request", "name", "noDebug", "preLaunchTask", "postDebugTask", "internalConsoleOptions"];
const COMMON_MORE = ["presentation", "debugServer", "serverReadyAction", "suppressMultipleSessionWarning", "restart"];
const DEFAULT_MEMORY = 256 * 1024 * 1024;
/** The engine chooses its default processor. */
const DEFAULT_CPU = "";

const isCommon = (key: string): boolean =>
  key.startsWith("__") || key.startsWith("$") || COMMON.includes(key) || COMMON_MORE.includes(key);

export interface Validated {
  readonly configuration: LaunchConfiguration;
  /** What is odd, but no reason to refuse. */
  readonly warnings: readonly string[];
}

type Raw = { [K in LaunchAttribute]?: unknown } & { noDebug?: unknown };

/** @throws Error naming every attribute that is wrong, and what it should be */
export function validateLaunch(raw: Readonly<Record<string, unknown>>): Validated {
  const problems = check(raw, launchSchema, "the launch configuration").map((problem) =>
    problem.replace(/^the launch configuration "/, 'launch attribute "'),
  );
  const known = Object.keys(launchSchema.properties);
  const warnings: string[] = [];
  for (const key of Object.keys(raw)) {
    if (known.includes(key) || isCommon(key)) continue;
    const meant = nearest(key, known);
    if (meant) problems.push(`launch attribute "${key}" is unknown; did you mean "${meant}"?`);
    else warnings.push(`Launch attribute "${key}" is unknown and has no effect.`);
  }
  if (problems.length > 0) throw new Error(problems.join("; "));
  const args = raw as Raw;
  const memory = args.memory === undefined ? DEFAULT_MEMORY : (parseSize(args.memory as string | number) ?? 0);
  if (memory % 4096 !== 0 || memory < 1024 * 1024)
    throw new Error(
      `launch attribute "memory" must be at least 1M and a multiple of 4096 bytes, not ${JSON.stringify(args.memory)}`,
    );
  return {
    warnings,
    configuration: {
      program: args.program as string,
      accel: (args.accel as Accel | undefined) ?? "vmx",
      memory,
      smp: (args.smp as number | undefined) ?? 1,
      cpu: (args.cpu as string | undefined) ?? DEFAULT_CPU,
      append: (args.append as string | undefined) ?? "",
      initrd: args.initrd as string | undefined,
      firmware: args.firmware as string | undefined,
      firmwareVariables: args.firmwareVariables as string | undefined,
      videoBios: args.videoBios as string | undefined,
      loadAddress: args.loadAddress === undefined ? undefined : Number(args.loadAddress),
      tier: (args.tier as 0 | 1 | undefined) ?? 0,
      stopOnEntry: (args.stopOnEntry as boolean | undefined) ?? false,
      noDebug: args.noDebug === true,
      symbols: symbolFiles(args.symbols),
      disks: ([] as string[]).concat((args.disks as string | string[] | undefined) ?? []),
      virtio: (args.virtio as VirtioKind[] | undefined) ?? [],
      reboot: args.reboot === true,
      kvm: (args.kvm as Record<string, boolean | number> | undefined) ?? {},
      serial: (args.serial as LaunchConfiguration["serial"] | undefined) ?? "terminal",
      numbers: (args.numbers as NumberFormat | undefined) ?? "hex",
    },
  };
}

function symbolFiles(value: unknown): SymbolFile[] {
  if (value === undefined) return [];
  if (Array.isArray(value)) return value.flatMap(symbolFiles);
  if (typeof value === "string") return [{ path: value }];
  const { path, slide } = value as { path?: unknown; slide?: unknown };
  if (typeof path !== "string" || path === "")
    throw new Error('launch attribute "symbols" needs a "path" in every entry');
  return [{ path, ...(slide === undefined ? {} : { slide: parseSlide(slide) }) }];
}

function parseSlide(value: unknown): bigint {
  const text = String(value);
  if (!/^-?(0[xX][0-9a-fA-F]+|[0-9]+)$/.test(text))
    throw new Error(
      `launch attribute "symbols": slide must be a number such as "0x1000", not ${JSON.stringify(value)}`,
    );
  return text.startsWith("-") ? -BigInt(text.slice(1)) : BigInt(text);
}

/** Attributes that name one file each, whose contents the machine is given. */
const NAMED_IMAGES = ["initrd", "firmware", "firmwareVariables", "videoBios"] as const;
type NamedImage = (typeof NAMED_IMAGES)[number];

/** Reads the image and what goes with it. @throws Error naming the file and the attribute that asked for it */
export async function readImages(configuration: LaunchConfiguration, host: AdapterHost): Promise<LaunchRequest> {
  const { accel, memory, smp, cpu, append, loadAddress, tier, kvm, program } = configuration;
  const named: { [K in NamedImage]?: { name: string; bytes: Uint8Array } } = {};
  for (const attribute of NAMED_IMAGES) {
    const file = configuration[attribute];
    if (file !== undefined) named[attribute] = { name: file, bytes: await readFor(attribute, file, host) };
  }
  const bytes = await readFor("program", program, host);
  return {
    accel,
    memory,
    smp,
    cpu,
    append,
    tier,
    kvm,
    image: { name: program, bytes },
    ...named,
    ...(loadAddress === undefined ? {} : { loadAddress }),
    ...(configuration.disks.length === 0 ? {} : { diskFiles: await readDisks(configuration.disks, host) }),
    ...(configuration.virtio.length === 0 ? {} : { virtio: configuration.virtio }),
    ...(configuration.reboot ? { reboot: true } : {}),
  };
}

/** Big images are not copied where the engine's worker can read them itself. */
function readDisks(disks: readonly string[], host: AdapterHost): Promise<LaunchDisk[]> {
  return Promise.all(
    disks.map(async (path): Promise<LaunchDisk> => {
      if (!host.engineOpensFiles) return { name: path, bytes: await readFor("disks", path, host) };
      if (await host.exists(path)) return { name: path, path };
      throw new Error(`launch attribute "disks": there is no file ${path}`);
    }),
  );
}

async function readFor(attribute: LaunchAttribute, path: string, host: AdapterHost): Promise<Uint8Array> {
  try {
    return await host.readFile(path);
  } catch (error) {
    throw new Error(`launch attribute "${attribute}": ${error instanceof Error ? error.message : String(error)}`);
  }
}

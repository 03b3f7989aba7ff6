/** `hyperstep run`: one machine, its serial port on the terminal, its ending as exit status. */
import { readFileSync, statSync, writeFileSync } from "node:fs";
import { basename } from "node:path";
import { NANOSECONDS_PER_INSTRUCTION } from "../engine/clock";
import { DEFAULT_MODEL } from "../engine/cpu/models/models";
import type { MachineConfig } from "../engine/machine/config";
import { createMachine } from "../engine/machine/create";
import type { Ending, Machine, MachineStats } from "../engine/machine/machine";
import { VIRTIO_CONSOLE_OUTPUT } from "../engine/machine/virtio";
import { TraceKind, type TracePoint } from "../engine/trace";
import { parseRunArguments, type RunArguments } from "./arguments";
import { DiskFile } from "./disks";
import { StatusLine } from "./status-line";
import { Keyboard } from "./terminal";
import { EXIT_STATUS, reasonOf, UsageError } from "./usage";

/** Instructions between two looks at the keyboard and the clock on the wall. */
const SLICE = 2_000_000;
/** A machine is idle when less than one part of so many of its time went into instructions. */
const IDLE_SHARE = 4;
const LARGEST_FILE = 2 ** 31 - 1;

interface Outcome {
  readonly status: number;
  /** A line for standard error, where the status alone does not tell. */
  readonly note?: string;
}

/** @returns the exit status. @throws UsageError, MachineError */
export async function run(args: readonly string[]): Promise<number> {
  const options = parseRunArguments(args);
  const status = new StatusLine(!options.noStatus);
  status.show(`loading ${basename(options.image)}`);
  const disks = (options.disks ?? []).map((disk) => new DiskFile(disk));
  const config = { ...configuration(options), disks: disks.map((disk) => disk.config) };
  const serial = new SerialOutput(() => status.hide());
  const machine = createMachine(config, {
    trace: options.traceExits ? exitTracer : { armed: 0, hit: () => {} },
    serialOutput: (index, bytes) => {
      if (index === 0 || index === VIRTIO_CONSOLE_OUTPUT) serial.write(bytes);
    },
    debugOutput: (bytes) => {
      status.hide();
      process.stderr.write(bytes);
    },
  });
  const keyboard = new Keyboard();
  const started = { cpu: process.cpuUsage(), wall: performance.now() };
  let outcome: Outcome;
  try {
    outcome = await drive(machine, keyboard, options, (now) => status.tick(now, machine.stats(), serial.atLineStart));
  } finally {
    keyboard.close();
    status.close();
    machine.diskChanges().forEach((changes, i) => {
      disks[i].close(changes);
    });
  }
  const used = process.cpuUsage(started.cpu);
  if (options.stats !== undefined) {
    const { instructions, exits, userspaceExits } = machine.stats();
    const figures = {
      instructions,
      cpuSeconds: (used.user + used.system) / 1e6,
      wallSeconds: (performance.now() - started.wall) / 1e3,
      exits,
      userspaceExits,
      status: outcome.status,
    };
    save(options.stats, `${JSON.stringify(figures, null, 2)}\n`);
  }
  await serial.drain();
  if (outcome.note) process.stderr.write(`${serial.atLineStart ? "" : "\n"}hyperstep: ${outcome.note}\n`);
  return outcome.status;
}

const exitTracer = {
  armed: TraceKind.VmExit | TraceKind.VmEntryFailed,
  hit: (point: TracePoint): void => {
    process.stderr.write(`vcpu ${point.vcpu}: ${point.text}\n`);
  },
};

class SerialOutput {
  atLineStart = true;

  /** @param before called before anything is written */
  constructor(private readonly before: () => void) {}

  write(bytes: Uint8Array): void {
    this.before();
    this.atLineStart = bytes[bytes.length - 1] === 0x0a;
    process.stdout.write(bytes);
  }

  /** Resolves when everything has left, or nobody reads any more. */
  drain(): Promise<void> {
    return new Promise((resolve) => process.stdout.write("", () => resolve()));
  }
}

/** @param tick called now and then with the time on the wall */
async function drive(
  machine: Machine,
  keyboard: Keyboard,
  options: RunArguments,
  tick: (now: number) => void,
): Promise<Outcome> {
  const deadline = performance.now() + options.timeout * 1000;
  for (;;) {
    for (let bytes = keyboard.take(); bytes; bytes = keyboard.take()) machine.serialInput(bytes);
    const left = options.maxInstructions - machine.stats().instructions;
    if (left <= 0) return { status: 0, note: `stopped after ${machine.stats().instructions} instructions` };
    const before = { stats: machine.stats(), wall: performance.now() };
    machine.run(Math.min(SLICE, left));
    if (machine.ending) return conclude(machine.ending);
    if (keyboard.quit) return { status: EXIT_STATUS.INTERRUPTED, note: "ended from the keyboard" };
    const now = performance.now();
    tick(now);
    if (now >= deadline) return { status: EXIT_STATUS.TIME_OUT, note: `time-out after ${options.timeout} seconds` };
    if (machine.waitingForInput) {
      if (keyboard.ended) return conclude({ kind: "dead-halt" });
      await keyboard.wait(deadline - now);
    } else if (keyboard.isTerminal && isIdle(before.stats, machine.stats())) {
      // A person is there: a guest that sleeps does so at the pace of the clock on the wall.
      const virtual = (machine.stats().nanoseconds - before.stats.nanoseconds) / 1e6;
      await keyboard.wait(Math.min(virtual - (now - before.wall), deadline - now));
    } else {
      await new Promise((resolve) => setImmediate(resolve));
    }
  }
}

/** Nearly all of the time was skipped because everything was halted. */
function isIdle(before: MachineStats, after: MachineStats): boolean {
  const busy = (after.instructions - before.instructions) * NANOSECONDS_PER_INSTRUCTION;
  return busy * IDLE_SHARE < after.nanoseconds - before.nanoseconds;
}

function conclude(ending: Ending): Outcome {
  switch (ending.kind) {
    case "debug-exit":
      return { status: ((ending.code << 1) | 1) & 0xff };
    case "power-off":
      return { status: EXIT_STATUS.POWER_OFF };
    case "reset":
      return { status: EXIT_STATUS.POWER_OFF, note: "the guest reset the machine" };
    case "dead-halt":
      return {
        status: EXIT_STATUS.DEAD_HALT,
        note: "all processors are halted and nothing can wake them",
      };
    case "triple-fault":
      return { status: EXIT_STATUS.TRIPLE_FAULT, note: `triple fault on vCPU ${ending.vcpu}: ${ending.cause}` };
    case "internal-error":
      return { status: EXIT_STATUS.INTERNAL_ERROR, note: `vCPU ${ending.vcpu}: ${ending.cause}` };
  }
}

function configuration(options: RunArguments): MachineConfig {
  const { accel, memory, smp, append, loadAddress, tier, kvm } = options;
  const optional = (what: string, file: string | undefined) => (file === undefined ? undefined : load(what, file));
  return {
    accel,
    memory,
    smp,
    append,
    loadAddress,
    tier,
    kvm,
    cpu: options.cpu ?? DEFAULT_MODEL,
    image: load("image", options.image),
    firmware: optional("firmware", options.firmware),
    firmwareVariables: optional("firmware-vars", options.firmwareVariables),
    videoBios: optional("video-bios", options.videoBios),
    drives: options.drives?.map(({ file, kind }) => ({ ...load(kind === "disk" ? "ide-disk" : kind, file), kind })),
    initrd: optional("initrd", options.initrd),
    virtio: options.virtio,
    reboot: !options.noReboot,
    modules: options.modules.map(({ file, argument }) => ({ ...load("module", file), argument })),
  };
}

function load(what: string, file: string): { name: string; bytes: Uint8Array } {
  try {
    const { size } = statSync(file);
    if (size > LARGEST_FILE) throw new Error(`it has ${size} bytes, more than any guest memory`);
    return { name: basename(file), bytes: readFileSync(file) };
  } catch (error) {
    throw new UsageError(`${what} ${file}: ${reasonOf(error)}`);
  }
}

function save(file: string, text: string): void {
  try {
    writeFileSync(file, text);
  } catch (error) {
    throw new UsageError(`--stats ${file}: cannot be written: ${reasonOf(error)}`);
  }
}

/**
 * What a machine with firmware has besides RAM, and where its memory lies behind the guest's RAM on the host: the flash
 * chips with firmware and its variables, the display adapter's memory.
 */
import { KiB, MiB } from "../../memory/layout";
import { type MachineConfig, MachineError } from "../config";
import { isFirmware } from "../loaders/detect";

/** Memory by offset from the start of guest RAM as the host has it. */
export interface Area {
  readonly offset: number;
  readonly size: number;
}

/** Places of the memories that firmware needs, behind the guest's RAM. */
export interface FirmwareLayout {
  /** The firmware itself; it ends at 4 GiB. */
  readonly code: Area;
  /** Its variables, in the flash chip below. */
  readonly variables: Area | null;
  readonly videoMemory: Area;
  /** Text memory as the processor sees it at 0xb8000 while the adapter is in a text mode. */
  readonly textMemory: Area;
  /** Bytes in all, behind RAM. */
  readonly size: number;
}

const VIDEO_MEMORY_SIZE = 16 * MiB;
const TEXT_MEMORY_SIZE = 32 * KiB;
const PAGE = 4096;
/** The firmware's flash chips must leave the APICs' addresses alone. */
const MOST_FLASH = 16 * MiB;
const LEAST_FIRMWARE = 64 * KiB;

type Image = MachineConfig["image"];

/** The image that starts at the reset vector: the one configured as firmware, else the image itself if it is one. */
export function firmwareOf(config: MachineConfig): Image | null {
  if (config.firmware) return config.firmware;
  return config.loadAddress === undefined && isFirmware(config.image.bytes) ? config.image : null;
}

const roundUp = (n: number, unit: number): number => Math.ceil(n / unit) * unit;

/**
 * @returns null for a machine without firmware
 * @throws MachineError for images that do not fit
 */
export function firmwareLayout(config: MachineConfig): FirmwareLayout | null {
  const code = firmwareOf(config);
  if (!code) return null;
  const { firmwareVariables: variables } = config;
  if (code.bytes.length % PAGE !== 0 || code.bytes.length < LEAST_FIRMWARE) {
    throw new MachineError(
      `${code.name}: firmware of ${code.bytes.length} bytes is not a whole number of 4 KiB pages, at least 64 KiB; name a ROM image`,
    );
  }
  if (variables && (variables.bytes.length % PAGE !== 0 || variables.bytes.length === 0)) {
    throw new MachineError(`${variables.name}: ${variables.bytes.length} bytes are not a whole number of 4 KiB pages`);
  }
  const flash = code.bytes.length + (variables?.bytes.length ?? 0);
  if (flash > MOST_FLASH) {
    throw new MachineError(
      `${code.name}: firmware and variables are ${flash} bytes, more than the ${MOST_FLASH} below 4 GiB`,
    );
  }
  let next = roundUp(config.memory, MiB);
  const first = next;
  const take = (size: number): Area => {
    const area = { offset: next, size };
    next += roundUp(size, PAGE);
    return area;
  };
  // Large pages of the second stage want the display memory aligned.
  const videoMemory = take(VIDEO_MEMORY_SIZE);
  const textMemory = take(TEXT_MEMORY_SIZE);
  return {
    videoMemory,
    textMemory,
    code: take(code.bytes.length),
    variables: variables ? take(variables.bytes.length) : null,
    size: next - first + (first - config.memory),
  };
}

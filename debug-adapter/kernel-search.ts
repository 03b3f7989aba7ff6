/**
 * The search for a Linux kernel's symbols in the guest, as the client sees it: progress while the kernel unpacks itself, a
 * line about what was found, and breakpoints by name that come to stand.
 */
import type { FoundKernel, Refusal } from "../engine/debug/api";
import type { Breakpoints } from "./breakpoints";
import type { SessionContext } from "./context";
import { hex } from "./format";
import { Progress } from "./progress";
import type { ElfSymbol } from "./symbols/elf";
import type { KernelFile } from "./symbols/symbol-files";
import type { SymbolTable } from "./symbols/symbol-table";

const MILLION = 1_000_000;
const KINDS: Readonly<Record<string, ElfSymbol["kind"]>> = { f: "function", o: "object", c: "constant", l: "label" };

export interface KernelSearchSession extends SessionContext {
  readonly symbols: SymbolTable;
  /** Symbols are those of the files again. */
  forgetKernel(): void;
}

export class KernelSearch {
  private searching = false;
  /** The image is a kernel: not finding one is worth a word. */
  private expected = false;
  /** The image may load a kernel. */
  private loads = false;
  private readonly progress: Progress;

  constructor(
    private readonly session: KernelSearchSession,
    private readonly breakpoints: Breakpoints,
  ) {
    this.progress = new Progress(session, "Booting Linux", () => void this.giveUp());
  }

  /** Whether a kernel is on its way, so that names nobody knows yet will come to be known. */
  get active(): boolean {
    return this.searching && (this.expected || this.loads);
  }

  /**
   * A machine has been launched.
   * @param wanted the engine looks for a kernel
   * @param expected the image is a Linux kernel
   * @param loads the image may load one
   */
  begin(wanted: boolean, expected: boolean, loads: boolean): void {
    this.progress.end();
    this.loads = loads;
    this.searching = wanted;
    this.expected = expected;
  }

  /** The machine runs. */
  running(): void {
    if (this.searching && this.expected) this.progress.start("unpacking the kernel, then its symbols are read");
  }

  /** The machine stands, or is gone. */
  stopped(): void {
    this.progress.end();
  }

  /** Still on its way. */
  news(instructions: number): void {
    this.progress.update(
      `waiting for the kernel's symbols, ${Math.round(instructions / MILLION)} million instructions`,
    );
  }

  cancel(progressId: string): void {
    this.progress.cancel(progressId);
  }

  /** The user does not want to wait: breakpoints by name wait no longer. */
  private async giveUp(): Promise<void> {
    this.searching = false;
    const { missing } = await this.session.engine.request("searchKernel", { on: false });
    this.breakpoints.placed([], missing);
  }

  found(kernel: FoundKernel, files: readonly KernelFile[]): void {
    this.searching = false;
    this.progress.end(kernel.banner || "Linux");
    // After a reset the kernel comes to lie elsewhere: what was known of the old one is wrong.
    this.session.forgetKernel();
    const { symbols } = this.session;
    for (const { path, symbols: linked } of files) {
      const text = linked.find((s) => s.name === "_text")?.address;
      symbols.add(path, linked, text === undefined ? 0n : kernel.text - text);
    }
    const names = kernel.names === "" ? [] : kernel.names.split("\n");
    symbols.addAll(
      names.map((name, i) => ({
        name,
        address: kernel.addresses[i],
        size: kernel.sizes[i],
        kind: KINDS[kernel.kinds[i]] ?? "object",
        file: "kallsyms",
      })),
    );
    const moved = kernel.slide === 0n ? "not moved by KASLR" : `moved by KASLR by ${hex(kernel.slide)}`;
    this.session.output(
      `${kernel.banner || "A Linux kernel"}\n` +
        `${names.length > 0 ? `${names.length} symbols from its kallsyms table` : "It has no kallsyms table; the given files are used"}, ` +
        `_text at ${hex(kernel.text)} (gpa:${hex(kernel.physical)}), ${moved}.`,
    );
    this.breakpoints.placed(kernel.placed, kernel.missing);
    this.session.invalidate(["stacks"]);
  }

  failed(why: string, missing: readonly Refusal[]): void {
    const was = this.searching && (this.expected || missing.length > 0);
    this.searching = false;
    this.progress.end();
    if (was)
      this.session.output(
        `No symbols of a Linux kernel: ${why}. Give the kernel's System.map or its vmlinux as "symbols" in the launch configuration.`,
        "important",
      );
    this.breakpoints.placed([], missing);
  }
}

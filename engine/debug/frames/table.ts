/** Call frame information as a file holds it: one section of an ELF file (.eh_frame or .debug_frame). */
export interface FrameTable {
  readonly kind: "eh" | "debug";
  readonly bytes: Uint8Array;
  /** Linear address of the section, slide applied; what pc-relative pointers in it are relative to. */
  readonly address: bigint;
  /** What is to be added to absolute addresses in it. */
  readonly slide: bigint;
  /** Bytes of an address. */
  readonly pointer: 4 | 8;
}

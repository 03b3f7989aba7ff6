/** EMULTYPE_*: why and how an instruction is emulated (arch/x86/include/asm/kvm_host.h). */
// biome-ignore format: a bit table
export const EmulType = {
  NO_DECODE: 1 << 0, TRAP_UD: 1 << 1, SKIP: 1 << 2, ALLOW_RETRY_PF: 1 << 3, TRAP_UD_FORCED: 1 << 4,
  VMWARE_GP: 1 << 5, PF: 1 << 6, COMPLETE_USER_EXIT: 1 << 7,
} as const;

/** An exception of the emulated instruction (ctxt->exception). */
export class EmulFault {
  constructor(
    readonly vector: number,
    readonly errorCode?: number,
    readonly address = 0n,
  ) {}
}

/** Userspace must serve a read first (X86EMUL_IO_NEEDED). */
export const ioNeeded = Symbol("X86EMUL_IO_NEEDED");
/** The instruction, or this case of it, is not emulated (X86EMUL_UNHANDLEABLE). */
export const unhandleable = Symbol("X86EMUL_UNHANDLEABLE");

/**
 * How an emulation step ended: the instruction is done; one iteration is done and the next can follow at once ("restart");
 * the guest is to be entered at the same RIP ("again"); userspace must serve a read; the instruction is not emulated.
 */
export type EmulateResult = "done" | "restart" | "again" | "io-needed" | "failed";

/** All bits of `size` bytes. */
export const maskOf = (size: number): bigint => (1n << BigInt(size * 8)) - 1n;
/** Sign bit of `size` bytes. */
export const signOf = (size: number): bigint => 1n << BigInt(size * 8 - 1);
/** The lower `size` bytes as a two's complement number. */
export const signed = (value: bigint, size: number): bigint => BigInt.asIntN(size * 8, value);

/** The lower `size` bytes of a number, least significant first. */
export const bytesOf = (value: bigint, size: number): Uint8Array => {
  const bytes = new Uint8Array(size);
  let v = value;
  for (let i = 0; i < size; i++) {
    bytes[i] = Number(v & 0xffn);
    v >>= 8n;
  }
  return bytes;
};

/** Little-endian bytes as an unsigned number. */
export const numberOf = (bytes: Uint8Array): bigint => {
  let value = 0n;
  for (let i = bytes.length - 1; i >= 0; i--) value = (value << 8n) | BigInt(bytes[i]);
  return value;
};

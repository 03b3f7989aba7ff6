/**
 * Statistics file descriptors (virt/kvm/binary_stats.c; Documentation/virt/kvm/api.rst 4.133): a header, the name of the
 * object, descriptors, and the values, all in one file that userspace reads at offsets.
 */
import { KvmError } from "./errno";

/** Bytes of a name, terminating zero included. */
const KVM_STATS_NAME_SIZE = 48;
const HEADER_BYTES = 24;
/** struct kvm_stats_desc: u32 flags, s16 exponent, u16 size, u32 offset, u32 bucket_size, then the name. */
const DESC_BYTES = 16 + KVM_STATS_NAME_SIZE;

// biome-ignore-start format: bit fields
const Type = { CUMULATIVE: 0, INSTANT: 1, PEAK: 2, LINEAR_HIST: 3, LOG_HIST: 4 } as const;
const Unit = { NONE: 0 << 4, BYTES: 1 << 4, SECONDS: 2 << 4, CYCLES: 3 << 4, BOOLEAN: 4 << 4 } as const;
const Base = { POW10: 0 << 8, POW2: 1 << 8 } as const;

/** How a statistic is described; names that are not here count events since the object was made. */
const KINDS: Readonly<Record<string, { flags: number; exponent?: number }>> = {
  halt_poll_success_ns: { flags: Type.CUMULATIVE | Unit.SECONDS | Base.POW10, exponent: -9 },
  halt_poll_fail_ns: { flags: Type.CUMULATIVE | Unit.SECONDS | Base.POW10, exponent: -9 },
  halt_wait_ns: { flags: Type.CUMULATIVE | Unit.SECONDS | Base.POW10, exponent: -9 },
  blocking: { flags: Type.INSTANT | Unit.BOOLEAN },
  guest_mode: { flags: Type.INSTANT | Unit.BOOLEAN },
  mmu_unsync: { flags: Type.INSTANT | Unit.NONE },
  pages_4k: { flags: Type.INSTANT | Unit.NONE },
  pages_2m: { flags: Type.INSTANT | Unit.NONE },
  pages_1g: { flags: Type.INSTANT | Unit.NONE },
  nx_lpage_splits: { flags: Type.INSTANT | Unit.NONE },
  max_mmu_page_hash_collisions: { flags: Type.PEAK | Unit.NONE },
  max_mmu_rmap_size: { flags: Type.PEAK | Unit.NONE },
};
// biome-ignore-end format: bit fields

/** A statistics file. Its layout is fixed when it is opened; reads give the values of that moment. */
export class KvmStatsFd {
  private closed = false;
  private readonly names: readonly string[];
  private readonly head: Uint8Array;
  /** Byte at which the values begin. */
  readonly dataOffset: number;

  /** @param id "kvm-<pid>" of a VM, "kvm-<pid>/vcpu-<id>" of a vCPU. @param source the counters */
  constructor(
    id: string,
    private readonly source: () => Readonly<Record<string, number>>,
  ) {
    this.names = Object.keys(source());
    const idOffset = HEADER_BYTES;
    const descOffset = idOffset + KVM_STATS_NAME_SIZE;
    this.dataOffset = descOffset + this.names.length * DESC_BYTES;
    this.head = new Uint8Array(this.dataOffset);
    const view = new DataView(this.head.buffer);
    const text = (at: number, name: string) => {
      for (let i = 0; i < Math.min(name.length, KVM_STATS_NAME_SIZE - 1); i++) this.head[at + i] = name.charCodeAt(i);
    };
    // flags, name_size, num_desc, id_offset, desc_offset, data_offset
    for (const [i, value] of [
      0,
      KVM_STATS_NAME_SIZE,
      this.names.length,
      idOffset,
      descOffset,
      this.dataOffset,
    ].entries()) {
      view.setUint32(i * 4, value, true);
    }
    text(idOffset, id);
    for (const [i, name] of this.names.entries()) {
      const at = descOffset + i * DESC_BYTES;
      const kind = KINDS[name] ?? { flags: Type.CUMULATIVE | Unit.NONE | Base.POW10 };
      view.setUint32(at, kind.flags, true);
      view.setInt16(at + 4, kind.exponent ?? 0, true);
      view.setUint16(at + 6, 1, true);
      view.setUint32(at + 8, i * 8, true);
      view.setUint32(at + 12, 0, true);
      text(at + 16, name);
    }
  }

  /** pread(2): kvm_stats_read. @returns up to `length` bytes; fewer at the end. @throws KvmError EBADF */
  read(offset: number, length: number): Uint8Array {
    if (this.closed) throw new KvmError("EBADF", "read", "the statistics file is closed");
    const file = new Uint8Array(this.dataOffset + this.names.length * 8);
    file.set(this.head);
    const view = new DataView(file.buffer);
    const values = this.source();
    for (const [i, name] of this.names.entries())
      view.setBigUint64(this.dataOffset + i * 8, BigInt(values[name]), true);
    return file.slice(offset, offset + length);
  }

  close(): void {
    this.closed = true;
  }
}

/**
 * Where everything guest-visible and hot lives inside the engine's one WebAssembly.Memory.
 *
 * Generated wasm addresses the running vCPU at constant offsets from 0, so the CPU block of the running vCPU is always
 * at 0 and the others wait in banks (`cpuBank`). Offsets are bytes; a "host offset" anywhere in the engine is an offset
 * into this memory.
 */

export const KiB = 1024;
export const MiB = 1024 * KiB;
export const GiB = 1024 * MiB;

/** Size of one vCPU's block of state; see cpu/state.ts for what is in it. */
export const CPU_BLOCK_SIZE = 0x2000;

/** Most vCPUs one engine memory can hold. */
export const MAX_VCPUS = 16;

/** Where the block of vCPU `id` waits while another one runs. */
export const cpuBank = (id: number): number => 0x10000 + id * CPU_BLOCK_SIZE;

/** Contexts of the data TLB: who owns which 12-bit tag (cpu/memory/contexts.ts). In memory, so that a snapshot has them. */
export const TLB_CONTEXTS_BASE = 0x30000;
export const TLB_CONTEXTS_SIZE = 0x10000;

/**
 * Data TLB: direct-mapped, TLB_ENTRIES entries of 32 bytes.
 *   +0  i64 read tag   (linear page address | context tag in bits 11:0; -1 = invalid)
 *   +8  i64 write tag  (same; -1 when the page may not be written without the slow path)
 *   +16 i32 addend     (host offset = low 32 bits of the linear address + addend, modulo 2^32)
 *   +20 i32 physical page number, low 32 bits (bookkeeping for invalidation; no wasm reads it)
 *   +24 i32 log2 of the page size, +28 i32 1 for a global page (the same)
 * Index = (linear address >> 12) & (TLB_ENTRIES - 1), so that INVLPG has one slot to look at.
 */
export const TLB_BASE = 0x40000;
export const TLB_ENTRIES = 4096;
export const TLB_ENTRY_SIZE = 32;

/**
 * Code TLB: direct-mapped, ITLB_ENTRIES entries of 16 bytes.
 *   +0 i64 tag (linear page address | code context in bits 11:0; -1 = invalid)
 *   +8 i32 host offset of the page's record table (4096 x u32, see cpu/code/)
 *   +12 i32 1 for a global page (bookkeeping; no wasm reads it)
 */
export const ITLB_BASE = 0x80000;
export const ITLB_ENTRIES = 4096;
export const ITLB_ENTRY_SIZE = 16;

/** Everything from here up to the code arena is scratch of the code cache and of both tiers. */
export const SCRATCH_BASE = 0x90000;

/** Decoded code: record tables and records. */
export const CODE_ARENA_BASE = 0x100000;
export const CODE_ARENA_SIZE = 47 * MiB;

/** First byte that physical memory (RAM and ROM of the emulated machine) may use. */
export const PHYSICAL_BASE = CODE_ARENA_BASE + CODE_ARENA_SIZE;

/** Largest sum of RAM and ROM the 4 GiB of a wasm memory leaves room for. */
export const MAX_PHYSICAL = 4 * GiB - 64 * KiB - PHYSICAL_BASE;

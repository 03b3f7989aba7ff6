// biome-ignore-all format: bytes beside their assembly
import { expect, test } from "vitest";
import { openKvm } from "../../engine/kvm/api";
import { kvmTdpMmuGetWalk } from "../../engine/kvm/mmu/tdpMmu";
import { KvmCap, KvmExit, KvmMemFlag } from "../../engine/kvm/uapi";
import { CODE, RAM_HVA, RAM_SIZE, TestHost, TestVm, type VmOptions } from "./bench";
import { errno } from "./errno";

/** mov byte [eax], 1; add eax, 0x1000; loop; hlt */
const TOUCH = [0xc6, 0x00, 0x01, 0x05, 0x00, 0x10, 0x00, 0x00, 0xe2, 0xf6, 0xf4];

function touching(options: VmOptions & { flags?: number; before?: (vm: TestVm) => void } = {}) {
  const vm = new TestVm(TOUCH, options);
  vm.protectedMode();
  options.before?.(vm);
  const log = (flags: number) => vm.vm.KVM_SET_USER_MEMORY_REGION({ slot: 0, flags, guest_phys_addr: 0, memory_size: RAM_SIZE, userspace_addr: RAM_HVA });
  if (options.flags !== 0) log(KvmMemFlag.LOG_DIRTY_PAGES);
  const touch = (first: number, pages: number) => {
    vm.setRegs({ rip: BigInt(CODE), rax: BigInt(first * 4096), rcx: BigInt(pages) });
    return vm.run().exit_reason;
  };
  const pages = (bitmap: Uint32Array) => {
    const list: number[] = [];
    for (let i = 0; i < bitmap.length * 32; i++) if ((bitmap[i >> 5] >>> (i & 31)) & 1) list.push(i);
    return list;
  };
  return { vm, touch, log, dirty: () => pages(vm.vm.KVM_GET_DIRTY_LOG(0)), pages };
}

test("KVM_GET_DIRTY_LOG gives pages written since the last call and logs them afresh (api.rst 4.8)", () => {
  const t = touching();
  t.touch(0x300, 3);
  expect(t.dirty()).toEqual([0x300, 0x301, 0x302]);
  expect(t.dirty()).toEqual([]);
  t.touch(0x301, 1);
  expect(t.dirty()).toEqual([0x301]);
  expect(errno(() => t.vm.vm.KVM_GET_DIRTY_LOG(1))).toBe("ENOENT");
  expect(errno(() => t.vm.vm.KVM_GET_DIRTY_LOG(0x10000))).toBe("EINVAL");
  t.log(0);
  expect(errno(() => t.vm.vm.KVM_GET_DIRTY_LOG(0))).toBe("ENOENT");
});

test("with manual protection bits stay until KVM_CLEAR_DIRTY_LOG, which checks its range (api.rst 4.117, 7.18)", () => {
  const t = touching({ before: (vm) => vm.vm.KVM_ENABLE_CAP(KvmCap.MANUAL_DIRTY_LOG_PROTECT2, [1n]) });
  t.touch(0x340, 2);
  expect(t.dirty()).toEqual([0x340, 0x341]);
  expect(t.dirty()).toEqual([0x340, 0x341]);
  const npages = RAM_SIZE / 4096;
  const clear = (first_page: number, num_pages: number, bits: number[], slot = 0) => {
    const dirty_bitmap = new Uint32Array(Math.ceil(num_pages / 32));
    for (const bit of bits) dirty_bitmap[bit >> 5] |= 1 << (bit & 31);
    return errno(() => t.vm.vm.KVM_CLEAR_DIRTY_LOG({ slot, first_page, num_pages, dirty_bitmap }));
  };
  expect(clear(32, 64, [])).toBe("EINVAL"); // not a multiple of 64
  expect(clear(0, 65, [])).toBe("EINVAL");
  expect(clear(0, npages + 64, [])).toBe("EINVAL");
  expect(clear(npages + 64, 0, [])).toBe("EINVAL");
  expect(clear(0, 64, [], 3)).toBe("ENOENT");
  expect(clear(0x340, 64, [0])).toBe("ok");
  expect(t.dirty()).toEqual([0x341]);
  t.touch(0x340, 1);
  expect(t.dirty()).toEqual([0x340, 0x341]);
  expect(clear(0, npages, [0x340, 0x341])).toBe("ok");
  expect(t.dirty()).toEqual([]);
});

test("KVM_DIRTY_LOG_INITIALLY_SET needs manual protection; all pages begin as dirty (api.rst 7.18)", () => {
  const { vm } = new TestVm([]);
  const enable = (options: bigint) => errno(() => vm.KVM_ENABLE_CAP(KvmCap.MANUAL_DIRTY_LOG_PROTECT2, [options]));
  expect(vm.KVM_CHECK_EXTENSION(KvmCap.MANUAL_DIRTY_LOG_PROTECT2)).toBe(3);
  expect([enable(2n), enable(4n), enable(5n), enable(3n)]).toEqual(["EINVAL", "EINVAL", "EINVAL", "ok"]);
  const t = touching({ before: (v) => v.vm.KVM_ENABLE_CAP(KvmCap.MANUAL_DIRTY_LOG_PROTECT2, [3n]) });
  expect(t.dirty().length).toBe(RAM_SIZE / 4096);
  const all = new Uint32Array(RAM_SIZE / 4096 / 32).fill(0xffffffff);
  t.vm.vm.KVM_CLEAR_DIRTY_LOG({ slot: 0, first_page: 0, num_pages: RAM_SIZE / 4096, dirty_bitmap: all });
  t.touch(0x350, 1);
  expect(t.dirty()).toEqual([0x350]);
});

test("huge pages are split when logging starts, or with eager_page_split=0 by the first write (kvm_mmu_slot_apply_flags)", () => {
  const levelOf = (eager: boolean) => {
    const t = touching({ params: { eager_page_split: eager }, flags: 0 });
    t.touch(0x400, 1);
    const level = () => kvmTdpMmuGetWalk(t.vm.vm.kvm, t.vm.vcpu.vcpu.arch.mmuRoot, 0x400).at(-1)?.level;
    const before = level();
    t.log(KvmMemFlag.LOG_DIRTY_PAGES);
    const logged = level();
    t.touch(0x400, 1);
    expect(t.dirty()).toEqual([0x400]);
    return [before, logged, level()];
  };
  expect(levelOf(true)).toEqual([2, 1, 1]);
  expect(levelOf(false)).toEqual([2, 2, 1]);
});

test("nx_huge_pages: code runs from small pages only, data keeps its huge ones (ITLB multihit)", () => {
  const t = touching({ params: { nx_huge_pages: true }, flags: 0 });
  t.touch(0x400, 1);
  const level = (gfn: number) => kvmTdpMmuGetWalk(t.vm.vm.kvm, t.vm.vcpu.vcpu.arch.mmuRoot, gfn).at(-1)?.level;
  expect([level(1), level(0x400)]).toEqual([1, 2]);
  const spte = kvmTdpMmuGetWalk(t.vm.vm.kvm, t.vm.vcpu.vcpu.arch.mmuRoot, 0x400).at(-1)?.spte ?? 0n;
  expect(spte & 4n).toBe(0n);
  expect(t.vm.vm.stats.nx_lpage_splits).toBeGreaterThan(0);
});

test("KVM_CAP_DIRTY_LOG_RING: a power of two between a page and the limit, once, before the first vCPU (api.rst 8.29)", () => {
  const open = () => openKvm(new TestHost(), { pml: false }).KVM_CREATE_VM();
  const vm = open();
  expect(vm.KVM_CHECK_EXTENSION(KvmCap.DIRTY_LOG_RING)).toBe(65536 * 16);
  const enable = (size: bigint) => errno(() => vm.KVM_ENABLE_CAP(KvmCap.DIRTY_LOG_RING, [size]));
  expect([enable(0n), enable(5000n), enable(2048n), enable(1n << 21n)]).toEqual(["EINVAL", "EINVAL", "EINVAL", "E2BIG"]);
  expect(errno(() => vm.KVM_RESET_DIRTY_RINGS())).toBe("EINVAL");
  expect([enable(4096n), enable(4096n)]).toEqual(["ok", "EINVAL"]);
  expect(errno(() => vm.KVM_GET_DIRTY_LOG(0))).toBe("ENXIO");
  const late = open();
  late.KVM_CREATE_VCPU(0);
  expect(errno(() => late.KVM_ENABLE_CAP(KvmCap.DIRTY_LOG_RING, [4096n]))).toBe("EINVAL");
});

test("a vCPU's dirty ring names slot and page, stops KVM_RUN when it is nearly full, and is emptied by its marks (api.rst 8.29)", () => {
  const host = new TestHost();
  const kvm = openKvm(host, { pml: false });
  const fd = kvm.KVM_CREATE_VM();
  fd.KVM_ENABLE_CAP(KvmCap.DIRTY_LOG_RING, [4096n]); // 256 entries
  fd.KVM_SET_USER_MEMORY_REGION({ slot: 3, flags: KvmMemFlag.LOG_DIRTY_PAGES, guest_phys_addr: 0, memory_size: RAM_SIZE, userspace_addr: RAM_HVA });
  const vcpu = fd.KVM_CREATE_VCPU(0);
  vcpu.KVM_SET_CPUID2(kvm.KVM_GET_SUPPORTED_CPUID());
  host.poke(CODE, TOUCH);
  const sregs = vcpu.KVM_GET_SREGS();
  const flat = { base: 0n, limit: 0xffffffff, present: 1, dpl: 0, s: 1, l: 0, g: 1, avl: 0, unusable: 0, db: 1, selector: 8, type: 3 };
  vcpu.KVM_SET_SREGS({ ...sregs, cr0: 0x11n, cs: { ...flat, type: 11 }, ds: flat, es: flat, ss: flat, fs: flat, gs: flat });
  vcpu.KVM_SET_REGS({ ...vcpu.KVM_GET_REGS(), rip: BigInt(CODE), rax: 0x300000n, rcx: 300n, rflags: 2n });
  expect(vcpu.KVM_RUN(1_000_000).kind).toBe("exit");
  expect(vcpu.run.exit.exit_reason).toBe(KvmExit.DIRTY_RING_FULL);
  const ring = vcpu.dirtyRing as Uint8Array;
  const view = new DataView(ring.buffer);
  const entry = (i: number) => [view.getUint32(i * 16, true), view.getUint32(i * 16 + 4, true), Number(view.getBigUint64(i * 16 + 8, true))];
  expect([entry(0), entry(191), entry(192)]).toEqual([[1, 3, 0x300], [1, 3, 0x300 + 191], [0, 0, 0]]);
  // Nothing taken: the ring is still full.
  expect(fd.KVM_RESET_DIRTY_RINGS()).toBe(0);
  vcpu.KVM_RUN(1_000_000);
  expect(vcpu.run.exit.exit_reason).toBe(KvmExit.DIRTY_RING_FULL);
  for (let i = 0; i < 192; i++) view.setUint32(i * 16, 3, true);
  expect(fd.KVM_RESET_DIRTY_RINGS()).toBe(192);
  expect(entry(0)[0]).toBe(0);
  vcpu.KVM_RUN(1_000_000);
  expect(vcpu.run.exit.exit_reason).toBe(KvmExit.HLT);
  // The page whose write filled the ring was reset before the write was done, so it is there twice.
  expect([entry(192), entry(255)]).toEqual([[1, 3, 0x300 + 191], [1, 3, 0x300 + 254]]);
  // Pages that were reset are logged again.
  vcpu.KVM_SET_REGS({ ...vcpu.KVM_GET_REGS(), rip: BigInt(CODE), rax: 0x300000n, rcx: 1n });
  vcpu.KVM_RUN(1_000_000);
  expect(entry(301 - 256)).toEqual([1, 3, 0x300]);
});

test("32,764 memory slots are made within moments, and each is found (kvm_set_memslot)", () => {
  const vm = openKvm(new TestHost()).KVM_CREATE_VM();
  const start = performance.now();
  for (let slot = 0; slot < 32764; slot++) {
    vm.KVM_SET_USER_MEMORY_REGION({ slot, flags: 0, guest_phys_addr: slot * 8192, memory_size: 4096, userspace_addr: RAM_HVA });
  }
  expect(performance.now() - start).toBeLessThan(10_000);
  expect(errno(() => vm.KVM_SET_USER_MEMORY_REGION({ slot: 5, flags: 0, guest_phys_addr: 12 * 4096, memory_size: 4096, userspace_addr: RAM_HVA }))).toBe("EEXIST");
  vm.KVM_SET_USER_MEMORY_REGION({ slot: 6, flags: 0, guest_phys_addr: 0, memory_size: 0, userspace_addr: 0 });
  expect(errno(() => vm.KVM_SET_USER_MEMORY_REGION({ slot: 5, flags: 0, guest_phys_addr: 12 * 4096, memory_size: 4096, userspace_addr: RAM_HVA }))).toBe("ok");
});

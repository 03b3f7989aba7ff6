import { expect, test } from "vitest";
import { ExitReason } from "../../engine/cpu/vmx/exit-reasons";
import { KvmExit } from "../../engine/kvm/uapi";
import { CODE, TestVm } from "./bench";

test("a real-mode guest runs under unrestricted guest, its OUT leaves KVM_RUN as KVM_EXIT_IO and HLT as KVM_EXIT_HLT (api.rst)", () => {
  const vm = new TestVm([
    0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0x00, 0xd8, // add al, bl
    0x04, 0x30, // add al, '0'
    0xee, // out dx, al
    0xf4, // hlt
  ]); // biome-ignore format: bytes beside their assembly
  vm.setRegs({ rip: BigInt(CODE), rax: 2n, rbx: 2n });
  const exit = vm.run();
  expect(exit.exit_reason).toBe(KvmExit.IO);
  if (exit.exit_reason !== KvmExit.IO) return;
  expect({ ...exit.io, data: [...exit.io.data] }).toEqual({
    direction: 1,
    size: 1,
    port: 0x3f8,
    count: 1,
    data_offset: 4096n,
    data: ["4".charCodeAt(0)],
  });
  expect(vm.run().exit_reason).toBe(KvmExit.HLT);
  expect(vm.vcpu.KVM_GET_REGS().rip).toBe(BigInt(CODE + 9));
  expect(vm.vcpu.exitsByReason[ExitReason.IO_INSTRUCTION]).toBe(1);
});

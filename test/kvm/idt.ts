// biome-ignore-all format: bytes beside their assembly
/** Interrupts for guests in 32-bit protected mode. */
import { CODE, type TestVm } from "./bench";

/** 32-bit interrupt gate to 8:handler. */
export const gate = (handler: number): number[] => [handler & 0xff, (handler >> 8) & 0xff, 8, 0, 0, 0x8e, (handler >> 16) & 0xff, handler >>> 24];
export const IDT = 0x4000;
export const GDT = 0x4800;

/** Protected mode with a GDT and an IDT whose vectors go to the given handlers. */
export function withIdt(vm: TestVm, handlers: Readonly<Record<number, { at: number; code: number[] }>>): void {
  vm.protectedMode();
  vm.host.poke64(GDT + 8, 0x00cf9b000000ffffn);
  vm.host.poke64(GDT + 16, 0x00cf93000000ffffn);
  for (const [vector, { at, code }] of Object.entries(handlers)) {
    vm.host.poke(IDT + Number(vector) * 8, gate(at));
    vm.host.poke(at, code);
  }
  const sregs = vm.vcpu.KVM_GET_SREGS();
  vm.vcpu.KVM_SET_SREGS({ ...sregs, gdt: { base: BigInt(GDT), limit: 0x17 }, idt: { base: BigInt(IDT), limit: 0x7ff } });
  vm.setRegs({ rip: BigInt(CODE), rsp: 0x8000n });
}

/** MOV of an immediate to a register of the local APIC. */
export const lapicWrite = (offset: number, value: number): number[] => [
  0xc7, 0x05, offset & 0xff, offset >> 8, 0xe0, 0xfe, // mov dword [0xfee00000 + offset], value
  value & 0xff, (value >> 8) & 0xff, (value >> 16) & 0xff, value >>> 24,
];
export const EOI = lapicWrite(0xb0, 0);

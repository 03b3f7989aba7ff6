/* A guest with a million CPUID exits: every one is taken, answered and resumed. */
#include "vmx.h"

#define EXITS 1000000

/* The guest: CPUID in a loop, then VMCALL. It has pages of its own, as guests do. */
__attribute__((naked, noreturn, section(".guest"))) void guest(void) {
  __asm__ volatile("mov %0, %%r12d\n"
                   "1: xor %%eax, %%eax\n"
                   "cpuid\n"
                   "dec %%r12d\n"
                   "jnz 1b\n"
                   "vmcall\n"
                   "2: jmp 2b\n"
                   :
                   : "i"(EXITS));
}

void hypervisor_main(void) {
  struct registers r = {0};
  u64 exits = 0;
  start_vmx();
  new_vm((u64)guest);
  for (int launched = 0;; launched = 1) {
    int failed = vm_enter(&r, launched);
    if (failed) {
      print("VM-instruction error ");
      print_decimal(vmread(VM_INSTRUCTION_ERROR));
      fail("");
    }
    u32 reason = vmread(VM_EXIT_REASON);
    if (reason == EXIT_VMCALL) break;
    if (reason != EXIT_CPUID) {
      print("unexpected exit reason ");
      print_hex(reason);
      fail("");
    }
    exits++;
    u32 eax = r.rax, ebx, ecx = r.rcx, edx;
    __asm__ volatile("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
    r.rax = eax;
    r.rbx = ebx;
    r.rcx = ecx;
    r.rdx = edx;
    vmwrite(GUEST_RIP, vmread(GUEST_RIP) + vmread(VM_EXIT_INSTRUCTION_LEN));
  }
  print("CPUID exits: ");
  print_decimal(exits);
  print("\n");
  finish(exits == EXITS ? 0 : 7);
}

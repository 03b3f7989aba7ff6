/* One guest after another, each for one kind of VM exit: reason and qualification are compared with the manual's. */
#include "vmx.h"

typedef void code(void);
extern code do_vmcall, do_cpuid, do_hlt, do_pause, do_rdtsc, do_rdpmc, do_wbinvd, do_invlpg, do_sgdt, do_sldt, do_vmread,
    do_vmxoff, do_mov_dr, do_in, do_out, do_rep_outs, do_rdmsr, do_wrmsr, do_mov_to_cr0, do_mov_to_cr3,
    do_mov_from_cr3, do_read_cr0, do_mov_to_cr8, do_ud2, do_int3, do_load, do_store, do_call, do_add, do_spin, do_sti,
    do_rdtsc_vmcall, do_load_twice, do_rdmsr_vmcall, do_load32, guest_handler, protected_mode_code;
extern u8 real_mode_code[], real_mode_end[];

/* Guest-physical 2-MByte page that EPT do not map, and one they map wrongly. */
#define HOLE 0x6000000ul
#define WRONG 0x6200000ul
#define READ_ONLY 0x6400000ul
#define MOVED 0x6600000ul
#define LOW_CODE 0x8000ul
#define TSC_AUX 0xc0000103

static struct registers r;
static int passed, failed;

static void on(u32 field, u64 bits) { vmwrite(field, vmread(field) | bits); }

static void start(code *entry) {
  r = (struct registers){0};
  new_vm((u64)entry);
}

static int right(const char *what, u64 value, u64 expected) {
  if (value == expected) return 1;
  print("  ");
  print(what);
  print(" is ");
  print_hex(value);
  print(", should be ");
  print_hex(expected);
  print("\n");
  return 0;
}

static void count(const char *name, int ok) {
  print(ok ? "ok   " : "FAIL ");
  print(name);
  print("\n");
  if (ok) passed++;
  else failed++;
}

/* Enters and compares reason and qualification. */
static int exits(u32 reason, u64 qualification) {
  int error = vm_enter(&r, 0);
  if (error) return right("VM-instruction error", vmread(VM_INSTRUCTION_ERROR), 0);
  int ok = right("exit reason", vmread(VM_EXIT_REASON), reason);
  return right("qualification", vmread(EXIT_QUALIFICATION), qualification) && ok;
}

/* An exit of the snippet's first instruction. */
static int first_exits(code *entry, u32 reason, u64 qualification, u32 length) {
  int ok = exits(reason, qualification);
  ok = right("RIP", vmread(GUEST_RIP), (u64)entry) && ok;
  return right("instruction length", vmread(VM_EXIT_INSTRUCTION_LEN), length) && ok;
}

static void simple(const char *name, code *entry, u32 field, u32 control, u32 reason, u32 length) {
  start(entry);
  if (control) on(field, control);
  count(name, first_exits(entry, reason, 0, length));
}

static void instructions(void) {
  simple("VMCALL", do_vmcall, 0, 0, EXIT_VMCALL, 3);
  simple("CPUID", do_cpuid, 0, 0, EXIT_CPUID, 2);
  simple("HLT", do_hlt, 0, 0, EXIT_HLT, 1);
  simple("PAUSE", do_pause, CPU_BASED_VM_EXEC_CONTROL, CPU_PAUSE, EXIT_PAUSE, 2);
  simple("RDTSC", do_rdtsc, CPU_BASED_VM_EXEC_CONTROL, CPU_RDTSC, EXIT_RDTSC, 2);
  simple("RDPMC", do_rdpmc, CPU_BASED_VM_EXEC_CONTROL, CPU_RDPMC, EXIT_RDPMC, 2);
  simple("WBINVD", do_wbinvd, SECONDARY_VM_EXEC_CONTROL, SECONDARY_WBINVD, EXIT_WBINVD, 2);
  simple("VMREAD", do_vmread, 0, 0, EXIT_VMREAD, 3);
  simple("VMXOFF", do_vmxoff, 0, 0, EXIT_VMXOFF, 3);

  start(do_invlpg);
  on(CPU_BASED_VM_EXEC_CONTROL, CPU_INVLPG);
  r.rbx = 0x123456;
  count("INVLPG", first_exits(do_invlpg, EXIT_INVLPG, 0x123456, 3));

  start(do_sgdt);
  on(SECONDARY_VM_EXEC_CONTROL, SECONDARY_DESC);
  int ok = first_exits(do_sgdt, EXIT_GDTR_IDTR, 0x10, 4);
  /* [rbx + 0x10]: 64-bit address, operand size bit, DS, no index, base 3, identity 0. */
  count("SGDT", right("information", vmread(VMX_INSTRUCTION_INFO) & ~0x800ul, 0x1c18100 & ~0x800ul) && ok);

  start(do_sldt);
  on(SECONDARY_VM_EXEC_CONTROL, SECONDARY_DESC);
  ok = first_exits(do_sldt, EXIT_LDTR_TR, 0, 3);
  count("SLDT", right("information", vmread(VMX_INSTRUCTION_INFO) & 0x30000478, 1 << 10 | 1 << 3) && ok);

  start(do_mov_dr);
  on(CPU_BASED_VM_EXEC_CONTROL, CPU_MOV_DR);
  count("MOV from DR7", first_exits(do_mov_dr, EXIT_DR_ACCESS, 7 | 1 << 4 | 2 << 8, 3));
}

static void ports(void) {
  start(do_in);
  io_bitmap_a[0x80 / 8] = 1;
  count("IN of an immediate port", first_exits(do_in, EXIT_IO, 0x80 << 16 | 1 << 6 | 1 << 3, 2));

  start(do_out);
  io_bitmap_b[(0x9003 - 0x8000) / 8] = 1 << 3;
  r.rdx = 0x9000;
  count("OUT of 4 bytes, the last one in the bitmap", first_exits(do_out, EXIT_IO, 0x9000ul << 16 | 3, 1));

  start(do_rep_outs);
  io_bitmap_a[0x2f8 / 8] = 1;
  r.rdx = 0x2f8;
  r.rcx = 5;
  r.rsi = (u64)guest_stack;
  int ok = first_exits(do_rep_outs, EXIT_IO, 0x2f8 << 16 | 1 << 5 | 1 << 4, 2);
  count("REP OUTS", right("linear address", vmread(GUEST_LINEAR_ADDRESS), (u64)guest_stack) && ok);
}

static void msrs(void) {
  start(do_rdmsr);
  msr_bitmap[1024 + 0x80 / 8] = 1;
  r.rcx = 0xc0000080;
  count("RDMSR", first_exits(do_rdmsr, EXIT_MSR_READ, 0, 2));
  start(do_wrmsr);
  msr_bitmap[2048 + 0x174 / 8] = 1 << (0x174 & 7);
  r.rcx = 0x174;
  count("WRMSR", first_exits(do_wrmsr, EXIT_MSR_WRITE, 0, 2));
}

static void control_registers(void) {
  start(do_mov_to_cr0);
  vmwrite(CR0_GUEST_HOST_MASK, 1 << 3);
  vmwrite(CR0_READ_SHADOW, vmread(GUEST_CR0));
  r.rdx = vmread(GUEST_CR0) | 1 << 3;
  count("MOV to CR0 of a host-owned bit", first_exits(do_mov_to_cr0, EXIT_CR_ACCESS, 2 << 8, 3));

  start(do_read_cr0);
  vmwrite(CR0_GUEST_HOST_MASK, 1 << 3);
  vmwrite(CR0_READ_SHADOW, 1 << 3);
  u64 cr0 = vmread(GUEST_CR0);
  int ok = exits(EXIT_VMCALL, 0);
  count("CR0 shows the read shadow", right("CR0", r.rax, cr0 | 1 << 3) && ok);

  start(do_mov_to_cr3);
  on(CPU_BASED_VM_EXEC_CONTROL, CPU_CR3_LOAD);
  r.rbx = (u64)pml4;
  count("MOV to CR3", first_exits(do_mov_to_cr3, EXIT_CR_ACCESS, 3 | 3 << 8, 3));
  start(do_mov_from_cr3);
  on(CPU_BASED_VM_EXEC_CONTROL, CPU_CR3_STORE);
  count("MOV from CR3", first_exits(do_mov_from_cr3, EXIT_CR_ACCESS, 3 | 1 << 4 | 6 << 8, 3));

  start(do_mov_to_cr8);
  on(CPU_BASED_VM_EXEC_CONTROL, CPU_TPR_SHADOW);
  virtual_apic[0x80] = 0x50;
  vmwrite(TPR_THRESHOLD, 4);
  ok = exits(EXIT_TPR_BELOW_THRESHOLD, 0);
  ok = right("virtual TPR", virtual_apic[0x80], 0x20) && ok;
  count("TPR below threshold, behind MOV to CR8", right("RIP", vmread(GUEST_RIP), (u64)do_mov_to_cr8 + 9) && ok);
}

static int exception(u32 info, u64 qualification) {
  int ok = exits(EXIT_EXCEPTION_NMI, qualification);
  return right("interruption information", vmread(VM_EXIT_INTR_INFO), info) && ok;
}

static void exceptions(void) {
  start(do_ud2);
  vmwrite(EXCEPTION_BITMAP, 1 << 6);
  count("#UD", exception(0x80000306, 0));

  start(do_int3);
  vmwrite(EXCEPTION_BITMAP, 1 << 3);
  int ok = exception(0x80000603, 0);
  count("INT3", right("instruction length", vmread(VM_EXIT_INSTRUCTION_LEN), 1) && ok);

  start(do_load);
  vmwrite(EXCEPTION_BITMAP, 1 << 14);
  r.rbx = 0x40000000;
  ok = exception(0x80000b0e, 0x40000000);
  count("#PF", right("error code", vmread(VM_EXIT_INTR_ERROR_CODE), 0) && ok);

  start(do_ud2);
  count("triple fault", exits(EXIT_TRIPLE_FAULT, 0));

  start(do_ud2);
  vmwrite(EXCEPTION_BITMAP, 1 << 8);
  ok = exits(EXIT_EXCEPTION_NMI, 0);
  ok = right("interruption information", vmread(VM_EXIT_INTR_INFO), 0x80000b08) && ok;
  count("#DF, without vectoring information", right("vectoring", vmread(IDT_VECTORING_INFO_FIELD), 0) && ok);

  start(do_ud2);
  vmwrite(EXCEPTION_BITMAP, 1 << 13);
  ok = exits(EXIT_EXCEPTION_NMI, 0);
  ok = right("interruption information", vmread(VM_EXIT_INTR_INFO), 0x80000b0d) && ok;
  ok = right("error code", vmread(VM_EXIT_INTR_ERROR_CODE), 6 * 8 + 3) && ok;
  count("#GP during delivery of #UD", right("vectoring", vmread(IDT_VECTORING_INFO_FIELD), 0x80000306) && ok);
}

static void second_stage(void) {
  start(do_load);
  ept_directory[HOLE >> 21] = 0;
  r.rbx = HOLE + 0x1238;
  int ok = first_exits(do_load, EXIT_EPT_VIOLATION, 0x181, vmread(VM_EXIT_INSTRUCTION_LEN));
  ok = right("guest-physical address", vmread(GUEST_PHYSICAL_ADDRESS), HOLE + 0x1238) && ok;
  count("EPT violation of a load", right("linear address", vmread(GUEST_LINEAR_ADDRESS), HOLE + 0x1238) && ok);

  start(do_store);
  ept_directory[READ_ONLY >> 21] &= ~6ul;
  r.rbx = READ_ONLY;
  count("EPT violation of a store to a read-only page", exits(EXIT_EPT_VIOLATION, 0x18a));

  start(do_call);
  ept_directory[READ_ONLY >> 21] &= ~4ul;
  r.rbx = READ_ONLY + 0x40;
  count("EPT violation of a fetch", exits(EXIT_EPT_VIOLATION, 0x19c));

  start(do_load);
  ept_directory[WRONG >> 21] = WRONG | 1 << 7 | 6 << 3 | 2;
  r.rbx = WRONG + 8;
  ok = exits(EXIT_EPT_MISCONFIG, 0);
  count("EPT misconfiguration", right("guest-physical address", vmread(GUEST_PHYSICAL_ADDRESS), WRONG + 8) && ok);
}

static void translations(void) {
  start(do_load);
  vmwrite(SECONDARY_VM_EXEC_CONTROL, 0);
  *(u64 *)MOVED = 0x1111;
  r.rbx = MOVED;
  int ok = exits(EXIT_VMCALL, 0);
  count("a guest without EPT and VPID", right("RAX", r.rax, 0x1111) && ok);

  start(do_store);
  vmwrite(EPT_POINTER, vmread(EPT_POINTER) | 1 << 6);
  r.rbx = MOVED;
  r.rax = 0x2222;
  ok = exits(EXIT_VMCALL, 0);
  ok = right("value", *(u64 *)MOVED, 0x2222) && ok;
  count("EPT dirty flag", right("flags", ept_directory[MOVED >> 21] >> 8 & 3, 3) && ok);

  start(do_load);
  vmwrite(EPT_POINTER, vmread(EPT_POINTER) | 1 << 6);
  r.rbx = MOVED;
  ok = exits(EXIT_VMCALL, 0);
  count("EPT accessed flag", right("flags", ept_directory[MOVED >> 21] >> 8 & 3, 1) && ok);

  start(do_load_twice);
  *(u64 *)HOLE = 0x3333;
  *(u64 *)MOVED = 0x4444;
  r.rbx = HOLE;
  ok = exits(EXIT_VMCALL, 0);
  ok = right("first load", r.rax, 0x3333) && ok;
  ept_directory[HOLE >> 21] = MOVED | 1 << 7 | 6 << 3 | 7;
  invept(vmread(EPT_POINTER));
  vmwrite(GUEST_RIP, vmread(GUEST_RIP) + 3);
  ok = right("entry", vm_enter(&r, 1), 0) && ok;
  count("INVEPT after a change of the EPT", right("second load", r.rax, 0x4444) && ok);

  start(do_load32);
  on(SECONDARY_VM_EXEC_CONTROL, SECONDARY_APIC_ACCESSES);
  vmwrite(APIC_ACCESS_ADDR, MOVED);
  r.rbx = MOVED + 0xb0;
  count("APIC-access page", exits(EXIT_APIC_ACCESS, 0xb0));

  start(do_load32);
  on(SECONDARY_VM_EXEC_CONTROL, SECONDARY_APIC_ACCESSES);
  on(CPU_BASED_VM_EXEC_CONTROL, CPU_TPR_SHADOW);
  vmwrite(APIC_ACCESS_ADDR, MOVED);
  virtual_apic[0x80] = 0x70;
  r.rbx = MOVED + 0x80;
  ok = exits(EXIT_VMCALL, 0);
  count("task priority on the APIC-access page", right("TPR", r.rax, 0x70) && ok);
}

/* An entry of an MSR list (SDM 3C table 25-15). */
struct msr_entry { u32 index, zero; u64 value; } __attribute__((aligned(16)));
static struct msr_entry entry_list[1], store_list[1], exit_list[1];

static void msr_lists(void) {
  start(do_rdmsr_vmcall);
  entry_list[0].index = store_list[0].index = exit_list[0].index = TSC_AUX;
  entry_list[0].value = 0x55;
  exit_list[0].value = 0x66;
  vmwrite(VM_ENTRY_MSR_LOAD_ADDR, (u64)entry_list);
  vmwrite(VM_EXIT_MSR_STORE_ADDR, (u64)store_list);
  vmwrite(VM_EXIT_MSR_LOAD_ADDR, (u64)exit_list);
  vmwrite(VM_ENTRY_MSR_LOAD_COUNT, 1);
  vmwrite(VM_EXIT_MSR_STORE_COUNT, 1);
  vmwrite(VM_EXIT_MSR_LOAD_COUNT, 1);
  r.rcx = TSC_AUX;
  int ok = exits(EXIT_VMCALL, 0);
  ok = right("loaded on entry", r.rax, 0x55) && ok;
  ok = right("stored on exit", store_list[0].value, 0x55) && ok;
  count("MSR lists", right("loaded on exit", rdmsr(TSC_AUX), 0x66) && ok);

  start(do_vmcall);
  entry_list[0].index = 0xc0000100;
  vmwrite(VM_ENTRY_MSR_LOAD_ADDR, (u64)entry_list);
  vmwrite(VM_ENTRY_MSR_LOAD_COUNT, 1);
  count("MSR list with FS base fails the entry", exits(ENTRY_FAILURE | 34, 1));
}

static void timing(void) {
  start(do_spin);
  on(PIN_BASED_VM_EXEC_CONTROL, PIN_PREEMPTION_TIMER);
  vmwrite(VMX_PREEMPTION_TIMER_VALUE, 1000);
  int ok = exits(EXIT_PREEMPTION_TIMER, 0);
  count("VMX-preemption timer", right("some turns of the loop", r.rax > 100, 1) && ok);

  start(do_add);
  on(CPU_BASED_VM_EXEC_CONTROL, CPU_MTF);
  ok = exits(EXIT_MTF, 0);
  count("monitor trap flag", right("RIP", vmread(GUEST_RIP), (u64)do_add + 4) && right("RAX", r.rax, 1) && ok);

  start(do_rdtsc_vmcall);
  on(CPU_BASED_VM_EXEC_CONTROL, CPU_TSC_OFFSETTING);
  vmwrite(TSC_OFFSET, 0x7000000000000000ul);
  ok = exits(EXIT_VMCALL, 0);
  count("TSC offset", right("top of the TSC", r.rdx >> 28, 7) && ok);

  start(do_sti);
  on(CPU_BASED_VM_EXEC_CONTROL, CPU_INTR_WINDOW);
  ok = exits(EXIT_INTERRUPT_WINDOW, 0);
  count("interrupt window, behind the shadow of STI", right("RIP", vmread(GUEST_RIP), (u64)do_sti + 2) && ok);
}

/* A 64-bit interrupt gate (SDM 3A figure 6-8). */
static struct { u16 low, selector, type, middle; u32 high, zero; } guest_idt[256];

static void injection(void) {
  u64 handler = (u64)guest_handler;
  for (int i = 0; i < 256; i++) {
    guest_idt[i].low = handler;
    guest_idt[i].selector = 8;
    guest_idt[i].type = 0x8e00;
    guest_idt[i].middle = handler >> 16;
  }
  start(do_spin);
  vmwrite(GUEST_IDTR_BASE, (u64)guest_idt);
  vmwrite(GUEST_IDTR_LIMIT, sizeof guest_idt - 1);
  vmwrite(VM_ENTRY_INTR_INFO_FIELD, 0x80000b0d);
  vmwrite(VM_ENTRY_EXCEPTION_ERROR_CODE, 0x4444);
  int ok = exits(EXIT_VMCALL, 0);
  ok = right("error code", r.rax, 0x4444) && right("pushed RIP", r.rcx, (u64)do_spin) && ok;
  count("injected #GP", right("injection field", vmread(VM_ENTRY_INTR_INFO_FIELD), 0x00000b0d) && ok);

  start(do_spin);
  vmwrite(GUEST_IDTR_BASE, (u64)guest_idt);
  vmwrite(GUEST_IDTR_LIMIT, sizeof guest_idt - 1);
  vmwrite(VM_ENTRY_INTR_INFO_FIELD, 0x80000480);
  vmwrite(VM_ENTRY_INSTRUCTION_LEN, 2);
  ok = exits(EXIT_VMCALL, 0);
  count("injected INT 0x80", right("pushed RIP", r.rax, (u64)do_spin + 2) && ok);

  start(do_spin);
  vmwrite(EXCEPTION_BITMAP, 1 << 13);
  vmwrite(VM_ENTRY_INTR_INFO_FIELD, 0x80000480);
  vmwrite(VM_ENTRY_INSTRUCTION_LEN, 2);
  ok = exits(EXIT_EXCEPTION_NMI, 0);
  ok = right("error code", vmread(VM_EXIT_INTR_ERROR_CODE), 0x80 * 8 + 2) && ok;
  ok = right("instruction length", vmread(VM_EXIT_INSTRUCTION_LEN), 2) && ok;
  count("#GP during delivery of an injected INT", right("vectoring", vmread(IDT_VECTORING_INFO_FIELD), 0x80000480) && ok);
}

static void real_mode(void) {
  u8 *low = (u8 *)LOW_CODE;
  for (u8 *from = real_mode_code; from < real_mode_end; from++) *low++ = *from;
  *(u16 *)(LOW_CODE + 0x20) = 0xbeef;
  start((code *)0);
  on(SECONDARY_VM_EXEC_CONTROL, SECONDARY_UNRESTRICTED);
  vmwrite(VM_ENTRY_CONTROLS, vmread(VM_ENTRY_CONTROLS) & ~(u64)ENTRY_IA32E);
  vmwrite(GUEST_IA32_EFER, 0);
  vmwrite(GUEST_CR0, 0x30);
  vmwrite(GUEST_CR4, 0x2000);
  for (u32 i = 0; i < 6; i++) {
    vmwrite(GUEST_ES_SELECTOR + 2 * i, i == 1 ? LOW_CODE >> 4 : 0);
    vmwrite(GUEST_ES_BASE + 2 * i, i == 1 ? LOW_CODE : 0);
    vmwrite(GUEST_ES_LIMIT + 2 * i, 0xffff);
    vmwrite(GUEST_ES_AR_BYTES + 2 * i, i == 1 ? 0x9b : 0x93);
  }
  int ok = exits(EXIT_CPUID, 0);
  ok = right("AX", r.rax & 0xffff, LOW_CODE >> 4) && right("BX", r.rbx & 0xffff, 0xbeef) && ok;
  count("unrestricted guest in real-address mode", right("RIP", vmread(GUEST_RIP), real_mode_end - real_mode_code - 2) && ok);
}

static void protected_mode(void) {
  start(protected_mode_code);
  on(SECONDARY_VM_EXEC_CONTROL, SECONDARY_UNRESTRICTED);
  vmwrite(VM_ENTRY_CONTROLS, vmread(VM_ENTRY_CONTROLS) & ~(u64)ENTRY_IA32E);
  vmwrite(GUEST_IA32_EFER, 0);
  vmwrite(GUEST_CR0, 0x31);
  vmwrite(GUEST_CR4, 0x2000);
  vmwrite(GUEST_CS_AR_BYTES, 0xc09b);
  int ok = exits(EXIT_CPUID, 0);
  ok = right("EBX", r.rbx, *(u32 *)protected_mode_code) && right("EDX", r.rdx, 0x12345678) && ok;
  count("unrestricted guest in protected mode without paging", ok);
}

void hypervisor_main(void) {
  start_vmx();
  instructions();
  ports();
  msrs();
  control_registers();
  exceptions();
  second_stage();
  translations();
  msr_lists();
  timing();
  injection();
  real_mode();
  protected_mode();
  print_decimal(passed);
  print(" passed, ");
  print_decimal(failed);
  print(" failed\n");
  finish(failed ? 7 : 0);
}

/* Setting up VMX and a guest (SDM 3C 24.7, 25, 31.5), and a serial line to tell of it. */
#include "vmx.h"

#define COM1 0x3f8
#define DEBUG_EXIT 0xf4
#define FEATURE_CONTROL 0x3a
#define EFER 0xc0000080

#define PAGE_ALIGNED __attribute__((aligned(4096)))

static u8 vmxon_region[4096] PAGE_ALIGNED;
static u8 vmcs_region[4096] PAGE_ALIGNED;
static u64 ept_pml4[512] PAGE_ALIGNED;
static u64 ept_pdpt[512] PAGE_ALIGNED;
u64 ept_directory[512] PAGE_ALIGNED;
u8 io_bitmap_a[4096] PAGE_ALIGNED;
u8 io_bitmap_b[4096] PAGE_ALIGNED;
u8 msr_bitmap[4096] PAGE_ALIGNED;
u8 virtual_apic[4096] PAGE_ALIGNED;
u8 guest_stack[8192] PAGE_ALIGNED;

void print(const char *text) {
  for (; *text; text++) {
    while (!(in8(COM1 + 5) & 0x20)) {
    }
    out8(COM1, *text);
  }
}

void print_decimal(u64 value) {
  char digits[21];
  int at = 20;
  digits[at] = 0;
  do {
    digits[--at] = '0' + value % 10;
    value /= 10;
  } while (value);
  print(digits + at);
}

void print_hex(u64 value) {
  char digits[19];
  int at = 18;
  digits[at] = 0;
  do {
    digits[--at] = "0123456789abcdef"[value & 15];
    value >>= 4;
  } while (value);
  digits[--at] = 'x';
  digits[--at] = '0';
  print(digits + at);
}

void finish(int code) {
  out8(DEBUG_EXIT, code);
  for (;;) __asm__ volatile("hlt");
}

void fail(const char *text) {
  print(text);
  print("\n");
  finish(7);
}

static u64 read_cr0(void) {
  u64 value;
  __asm__ volatile("mov %%cr0, %0" : "=r"(value));
  return value;
}

static u64 read_cr4(void) {
  u64 value;
  __asm__ volatile("mov %%cr4, %0" : "=r"(value));
  return value;
}

static void write_cr4(u64 value) { __asm__ volatile("mov %0, %%cr4" : : "r"(value)); }

/* Executes a VMX instruction on a pointer; true when it succeeded. */
#define ON_POINTER(instruction, pointer)                                                                               \
  ({                                                                                                                   \
    u64 operand = (u64)(pointer);                                                                                      \
    u8 failed;                                                                                                         \
    __asm__ volatile(instruction " %1; setbe %0" : "=q"(failed) : "m"(operand) : "cc", "memory");                      \
    !failed;                                                                                                           \
  })

void start_vmx(void) {
  u32 eax = 1, ebx, ecx = 0, edx;
  __asm__ volatile("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
  if (!(ecx & (1 << 5))) fail("this processor has no VMX");
  u64 control = rdmsr(FEATURE_CONTROL);
  if (!(control & 1)) wrmsr(FEATURE_CONTROL, control | 5);
  else if (!(control & 4)) fail("VMX is locked off in IA32_FEATURE_CONTROL");
  write_cr4(read_cr4() | 1 << 13);
  *(u32 *)vmxon_region = rdmsr(0x480);
  if (!ON_POINTER("vmxon", vmxon_region)) fail("VMXON failed");
}

/* What is asked for plus what must be, less what cannot be (SDM 3D A.2). */
static u32 allowed(u32 msr, u32 wanted) {
  u64 settings = rdmsr(msr);
  return (wanted | (u32)settings) & (u32)(settings >> 32);
}

static void clear(void *page) {
  u64 *words = page;
  for (int i = 0; i < 512; i++) words[i] = 0;
}

static void set_up_ept(void) {
  clear(ept_pml4);
  clear(ept_pdpt);
  ept_pml4[0] = (u64)ept_pdpt | 7;
  ept_pdpt[0] = (u64)ept_directory | 7;
  for (u64 i = 1; i < 4; i++) ept_pdpt[i] = i << 30 | 1 << 7 | 6 << 3 | 7;
  for (u64 i = 0; i < 512; i++) ept_directory[i] = i << 21 | 1 << 7 | 6 << 3 | 7;
}

static void set_up_host(void) {
  vmwrite(HOST_CR0, read_cr0());
  vmwrite(HOST_CR3, (u64)pml4);
  vmwrite(HOST_CR4, read_cr4());
  vmwrite(HOST_IA32_EFER, rdmsr(EFER));
  vmwrite(HOST_CS_SELECTOR, 0x08);
  for (u32 field = HOST_ES_SELECTOR; field <= HOST_GS_SELECTOR; field += 2) {
    if (field != HOST_CS_SELECTOR) vmwrite(field, 0x10);
  }
  vmwrite(HOST_TR_SELECTOR, 0x18);
  vmwrite(HOST_TR_BASE, (u64)tss);
  vmwrite(HOST_GDTR_BASE, (u64)gdt);
  vmwrite(HOST_IDTR_BASE, 0);
  vmwrite(HOST_RIP, (u64)vm_exit);
}

static void set_up_guest(u64 entry) {
  vmwrite(GUEST_CR0, read_cr0());
  vmwrite(GUEST_CR3, (u64)pml4);
  vmwrite(GUEST_CR4, read_cr4());
  vmwrite(GUEST_IA32_EFER, rdmsr(EFER));
  for (u32 i = 0; i < 6; i++) {
    vmwrite(GUEST_ES_SELECTOR + 2 * i, i == 1 ? 0x08 : 0x10);
    vmwrite(GUEST_ES_LIMIT + 2 * i, 0xffffffff);
    vmwrite(GUEST_ES_AR_BYTES + 2 * i, i == 1 ? 0xa09b : 0xc093);
    vmwrite(GUEST_ES_BASE + 2 * i, 0);
  }
  vmwrite(GUEST_LDTR_AR_BYTES, 0x10000);
  vmwrite(GUEST_TR_SELECTOR, 0x18);
  vmwrite(GUEST_TR_BASE, (u64)tss);
  vmwrite(GUEST_TR_LIMIT, 0x67);
  vmwrite(GUEST_TR_AR_BYTES, 0x8b);
  vmwrite(GUEST_GDTR_BASE, (u64)gdt);
  vmwrite(GUEST_GDTR_LIMIT, 0x27);
  vmwrite(GUEST_IDTR_LIMIT, 0);
  vmwrite(GUEST_DR7, 0x400);
  vmwrite(GUEST_RSP, (u64)guest_stack + sizeof guest_stack);
  vmwrite(GUEST_RIP, entry);
  vmwrite(GUEST_RFLAGS, 2);
  vmwrite(VMCS_LINK_POINTER, ~0ul);
}

void new_vm(u64 entry) {
  clear(io_bitmap_a);
  clear(io_bitmap_b);
  clear(msr_bitmap);
  clear(virtual_apic);
  clear(vmcs_region);
  set_up_ept();
  *(u32 *)vmcs_region = rdmsr(0x480);
  if (!ON_POINTER("vmclear", vmcs_region)) fail("VMCLEAR failed");
  if (!ON_POINTER("vmptrld", vmcs_region)) fail("VMPTRLD failed");
  vmwrite(PIN_BASED_VM_EXEC_CONTROL, allowed(0x48d, 0));
  vmwrite(CPU_BASED_VM_EXEC_CONTROL, allowed(0x48e, CPU_SECONDARY | CPU_MSR_BITMAPS | CPU_IO_BITMAPS | CPU_HLT));
  vmwrite(SECONDARY_VM_EXEC_CONTROL, allowed(0x48b, SECONDARY_EPT | SECONDARY_VPID));
  vmwrite(VM_EXIT_CONTROLS, allowed(0x48f, EXIT_HOST_64 | EXIT_SAVE_EFER | EXIT_LOAD_EFER));
  vmwrite(VM_ENTRY_CONTROLS, allowed(0x490, ENTRY_IA32E | ENTRY_LOAD_EFER));
  vmwrite(MSR_BITMAP, (u64)msr_bitmap);
  vmwrite(IO_BITMAP_A, (u64)io_bitmap_a);
  vmwrite(IO_BITMAP_B, (u64)io_bitmap_b);
  vmwrite(VIRTUAL_APIC_PAGE_ADDR, (u64)virtual_apic);
  vmwrite(EPT_POINTER, (u64)ept_pml4 | 3 << 3 | 6);
  vmwrite(VIRTUAL_PROCESSOR_ID, 1);
  set_up_host();
  set_up_guest(entry);
}

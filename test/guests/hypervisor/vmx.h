/* A small VMX hypervisor: what its test programs share. Names and encodings are those of SDM 3D appendix B. */
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

enum {
  VIRTUAL_PROCESSOR_ID = 0x0000,
  GUEST_ES_SELECTOR = 0x0800, GUEST_CS_SELECTOR = 0x0802, GUEST_SS_SELECTOR = 0x0804, GUEST_DS_SELECTOR = 0x0806,
  GUEST_FS_SELECTOR = 0x0808, GUEST_GS_SELECTOR = 0x080a, GUEST_LDTR_SELECTOR = 0x080c, GUEST_TR_SELECTOR = 0x080e,
  HOST_ES_SELECTOR = 0x0c00, HOST_CS_SELECTOR = 0x0c02, HOST_SS_SELECTOR = 0x0c04, HOST_DS_SELECTOR = 0x0c06,
  HOST_FS_SELECTOR = 0x0c08, HOST_GS_SELECTOR = 0x0c0a, HOST_TR_SELECTOR = 0x0c0c,
  IO_BITMAP_A = 0x2000, IO_BITMAP_B = 0x2002, MSR_BITMAP = 0x2004, TSC_OFFSET = 0x2010, VIRTUAL_APIC_PAGE_ADDR = 0x2012,
  APIC_ACCESS_ADDR = 0x2014, VM_EXIT_MSR_STORE_ADDR = 0x2006, VM_EXIT_MSR_LOAD_ADDR = 0x2008,
  VM_ENTRY_MSR_LOAD_ADDR = 0x200a, EPT_POINTER = 0x201a, GUEST_PHYSICAL_ADDRESS = 0x2400, VMCS_LINK_POINTER = 0x2800, GUEST_IA32_EFER = 0x2806,
  HOST_IA32_EFER = 0x2c02,
  PIN_BASED_VM_EXEC_CONTROL = 0x4000, CPU_BASED_VM_EXEC_CONTROL = 0x4002, EXCEPTION_BITMAP = 0x4004,
  VM_EXIT_CONTROLS = 0x400c, VM_EXIT_MSR_STORE_COUNT = 0x400e, VM_EXIT_MSR_LOAD_COUNT = 0x4010,
  VM_ENTRY_CONTROLS = 0x4012, VM_ENTRY_MSR_LOAD_COUNT = 0x4014, VM_ENTRY_INTR_INFO_FIELD = 0x4016,
  VM_ENTRY_EXCEPTION_ERROR_CODE = 0x4018, VM_ENTRY_INSTRUCTION_LEN = 0x401a, TPR_THRESHOLD = 0x401c,
  SECONDARY_VM_EXEC_CONTROL = 0x401e,
  VM_INSTRUCTION_ERROR = 0x4400, VM_EXIT_REASON = 0x4402, VM_EXIT_INTR_INFO = 0x4404, VM_EXIT_INTR_ERROR_CODE = 0x4406,
  IDT_VECTORING_INFO_FIELD = 0x4408, VM_EXIT_INSTRUCTION_LEN = 0x440c, VMX_INSTRUCTION_INFO = 0x440e,
  GUEST_ES_LIMIT = 0x4800, GUEST_CS_LIMIT = 0x4802, GUEST_TR_LIMIT = 0x480e, GUEST_GDTR_LIMIT = 0x4810,
  GUEST_IDTR_LIMIT = 0x4812, GUEST_ES_AR_BYTES = 0x4814, GUEST_CS_AR_BYTES = 0x4816, GUEST_LDTR_AR_BYTES = 0x4820,
  GUEST_TR_AR_BYTES = 0x4822, GUEST_INTERRUPTIBILITY_INFO = 0x4824, GUEST_ACTIVITY_STATE = 0x4826,
  VMX_PREEMPTION_TIMER_VALUE = 0x482e,
  CR0_GUEST_HOST_MASK = 0x6000, CR4_GUEST_HOST_MASK = 0x6002, CR0_READ_SHADOW = 0x6004, CR4_READ_SHADOW = 0x6006,
  EXIT_QUALIFICATION = 0x6400, GUEST_LINEAR_ADDRESS = 0x640a,
  GUEST_CR0 = 0x6800, GUEST_CR3 = 0x6802, GUEST_CR4 = 0x6804, GUEST_ES_BASE = 0x6806, GUEST_CS_BASE = 0x6808,
  GUEST_TR_BASE = 0x6814, GUEST_GDTR_BASE = 0x6816, GUEST_IDTR_BASE = 0x6818, GUEST_DR7 = 0x681a, GUEST_RSP = 0x681c,
  GUEST_RIP = 0x681e, GUEST_RFLAGS = 0x6820,
  HOST_CR0 = 0x6c00, HOST_CR3 = 0x6c02, HOST_CR4 = 0x6c04, HOST_TR_BASE = 0x6c0a, HOST_GDTR_BASE = 0x6c0c,
  HOST_IDTR_BASE = 0x6c0e, HOST_RIP = 0x6c16,
};

/* Controls (SDM 3C 25.6 to 25.8). */
#define PIN_NMI_EXITING (1u << 3)
#define PIN_PREEMPTION_TIMER (1u << 6)
#define CPU_INTR_WINDOW (1u << 2)
#define CPU_TSC_OFFSETTING (1u << 3)
#define CPU_HLT (1u << 7)
#define CPU_INVLPG (1u << 9)
#define CPU_RDPMC (1u << 11)
#define CPU_RDTSC (1u << 12)
#define CPU_CR3_LOAD (1u << 15)
#define CPU_CR3_STORE (1u << 16)
#define CPU_TPR_SHADOW (1u << 21)
#define CPU_MOV_DR (1u << 23)
#define CPU_IO_BITMAPS (1u << 25)
#define CPU_MTF (1u << 27)
#define CPU_MSR_BITMAPS (1u << 28)
#define CPU_PAUSE (1u << 30)
#define CPU_SECONDARY (1u << 31)
#define SECONDARY_APIC_ACCESSES (1u << 0)
#define SECONDARY_EPT (1u << 1)
#define SECONDARY_DESC (1u << 2)
#define SECONDARY_VPID (1u << 5)
#define SECONDARY_WBINVD (1u << 6)
#define SECONDARY_UNRESTRICTED (1u << 7)
#define EXIT_HOST_64 (1u << 9)
#define EXIT_SAVE_EFER (1u << 20)
#define EXIT_LOAD_EFER (1u << 21)
#define ENTRY_IA32E (1u << 9)
#define ENTRY_LOAD_EFER (1u << 15)

/* Basic exit reasons (SDM 3D appendix C). */
enum {
  EXIT_EXCEPTION_NMI = 0, EXIT_TRIPLE_FAULT = 2, EXIT_INTERRUPT_WINDOW = 7, EXIT_CPUID = 10, EXIT_HLT = 12,
  EXIT_INVLPG = 14, EXIT_RDPMC = 15, EXIT_RDTSC = 16, EXIT_VMCALL = 18, EXIT_VMREAD = 23, EXIT_VMXOFF = 26,
  EXIT_CR_ACCESS = 28, EXIT_DR_ACCESS = 29, EXIT_IO = 30, EXIT_MSR_READ = 31, EXIT_MSR_WRITE = 32, EXIT_MTF = 37,
  EXIT_PAUSE = 40, EXIT_TPR_BELOW_THRESHOLD = 43, EXIT_APIC_ACCESS = 44, EXIT_GDTR_IDTR = 46, EXIT_LDTR_TR = 47, EXIT_EPT_VIOLATION = 48,
  EXIT_EPT_MISCONFIG = 49, EXIT_PREEMPTION_TIMER = 52, EXIT_WBINVD = 54,
};
#define ENTRY_FAILURE 0x80000000u

/* General registers in encoding order; RSP's place is unused. */
struct registers {
  u64 rax, rcx, rdx, rbx, unused_rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15;
};

/* switch.S */
int vm_enter(struct registers *guest, int resume);
void vm_exit(void);

/* start.S */
extern u64 gdt[];
extern u64 tss[];
extern u64 pml4[];

static inline u64 vmread(u32 field) {
  u64 value;
  __asm__ volatile("vmread %1, %0" : "=r"(value) : "r"((u64)field) : "cc");
  return value;
}

static inline void vmwrite(u32 field, u64 value) {
  __asm__ volatile("vmwrite %1, %0" : : "r"((u64)field), "r"(value) : "cc");
}

static inline u64 rdmsr(u32 index) {
  u32 low, high;
  __asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(index));
  return low | (u64)high << 32;
}

static inline void wrmsr(u32 index, u64 value) {
  __asm__ volatile("wrmsr" : : "c"(index), "a"((u32)value), "d"((u32)(value >> 32)));
}

static inline void out8(u16 port, u8 value) { __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port)); }

static inline u8 in8(u16 port) {
  u8 value;
  __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
  return value;
}

/* All translations of an EPT pointer are forgotten. */
static inline void invept(u64 eptp) {
  struct { u64 eptp, zero; } descriptor = {eptp, 0};
  __asm__ volatile("invept %0, %1" : : "m"(descriptor), "r"(1ul) : "cc", "memory");
}

/* vmx.c */
void print(const char *text);
void print_decimal(u64 value);
void print_hex(u64 value);

/* Ends the machine through isa-debug-exit: 0 for success. */
void finish(int code) __attribute__((noreturn));

/* Prints the text and ends with failure. */
void fail(const char *text) __attribute__((noreturn));

/* CPUID, IA32_FEATURE_CONTROL, CR4.VMXE, VMXON; fails with a text where VMX is not there. */
void start_vmx(void);

/* A fresh VMCS, made current, for a 64-bit guest that shares our page tables and starts at `entry`; EPT map the first
   4 GiB of guest-physical addresses to themselves, VPID 1. */
void new_vm(u64 entry);

/* The EPT tables of new_vm: the page directory of the first GiB (2-MiB pages). */
extern u64 ept_directory[512];

/* Four pages for bitmaps and a virtual-APIC page, zeroed by new_vm. */
extern u8 io_bitmap_a[4096], io_bitmap_b[4096], msr_bitmap[4096], virtual_apic[4096];

extern u8 guest_stack[8192];

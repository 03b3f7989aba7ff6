/*
 * Privileged behaviour of a 64-bit processor, one line for each probe: what was tried and which event came of it. The same
 * image runs under QEMU, whose output is recorded beside it (golden.txt); the engine must print the same.
 */
#include <stdint.h>

typedef uint64_t u64;
typedef uint32_t u32;
typedef uint16_t u16;
typedef uint8_t u8;

extern u64 gdt[], event[], pml4[], page_directory[];
extern char stubs[];
void run_probe(void (*code)(void));
void user_call(void (*code)(void), void *stack);

static inline void out8(u16 port, u8 value) { __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port)); }
static inline u8 in8(u16 port) {
  u8 value;
  __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
  return value;
}
static void put(char c) {
  while (!(in8(0x3fd) & 0x20)) {
  }
  out8(0x3f8, (u8)c);
}
static void print(const char *s) {
  while (*s) put(*s++);
}
static void hex(u64 value) {
  int shift = 60;
  while (shift > 0 && !(value >> shift & 15)) shift -= 4;
  for (; shift >= 0; shift -= 4) put("0123456789abcdef"[value >> shift & 15]);
}

struct idt_entry {
  u16 low, selector;
  u8 ist, type;
  u16 middle;
  u32 high, zero;
} __attribute__((packed));
static struct idt_entry idt[256];
static u32 tss[26];
static u8 ist_stack[4096] __attribute__((aligned(16)));
static u8 ring0_stack[4096] __attribute__((aligned(16)));
static u8 user_stack[4096] __attribute__((aligned(4096)));

static void set_gate(int vector, u8 type, u8 ist, u16 selector) {
  u64 to = (u64)stubs + (u64)vector * 16;
  idt[vector] = (struct idt_entry){(u16)to, selector, ist, type, (u16)(to >> 16), (u32)(to >> 32), 0};
}

/* Runs a probe and prints its outcome: "none", or vector, error code and for #PF the address. */
static void probe(const char *name, void (*code)(void)) {
  run_probe(code);
  print(name);
  print(": ");
  if (event[0] == (u64)-1) print("none");
  else {
    print("vector ");
    hex(event[0]);
    if (event[1] != (u64)-1) {
      print(" error ");
      hex(event[1]);
    }
    if (event[0] == 14) {
      print(" cr2 ");
      hex(event[7]);
    }
    print(" cs ");
    hex(event[3]);
    print(" ss ");
    hex(event[6]);
  }
  print("\n");
}

/* ---- paging: every combination of one page's bits, each kind of access, from both privileges ---- */

#define PROBE_PAGE 0x40000000UL
static u64 table_pd[512] __attribute__((aligned(4096)));
static u64 table_pt[512] __attribute__((aligned(4096)));
static u8 frame[4096] __attribute__((aligned(4096)));

static void do_read(void) { (void)*(volatile u8 *)(PROBE_PAGE + 0x123); }
static void do_write(void) { *(volatile u8 *)(PROBE_PAGE + 0x123) = 1; }
static void do_execute(void) { ((void (*)(void))PROBE_PAGE)(); }
static void user_read(void) {
  do_read();
  __asm__ volatile("int $0x80");
}
static void user_write(void) {
  do_write();
  __asm__ volatile("int $0x80");
}
static void user_execute(void) {
  __asm__ volatile("call *%0\n\tint $0x80" : : "r"(PROBE_PAGE));
}
static void (*user_code)(void);
static void enter_user(void) { user_call(user_code, user_stack + sizeof user_stack - 64); }

static void invlpg(u64 address) { __asm__ volatile("invlpg (%0)" : : "r"(address) : "memory"); }
static u64 read_cr0(void) {
  u64 v;
  __asm__ volatile("mov %%cr0, %0" : "=r"(v));
  return v;
}
static void write_cr0(u64 v) { __asm__ volatile("mov %0, %%cr0" : : "r"(v) : "memory"); }

static void paging_case(u64 bits, int user, const char *access, void (*code)(void)) {
  table_pt[0] = (u64)frame | bits;
  pml4[0] &= ~0x60UL;
  table_pd[0] &= ~0x60UL;
  invlpg(PROBE_PAGE);
  print(bits >> 63 ? "X" : "x");
  print(bits & 4 ? "U" : "s");
  print(bits & 2 ? "W" : "r");
  print(bits & 1 ? "P " : "- ");
  print(user ? "user " : "supervisor ");
  user_code = code;
  probe(access, user ? enter_user : code);
  print("  pte ");
  hex(table_pt[0] & 0x67);
  /* Whether a walk that faults marks the upper levels accessed is left open by the manuals. */
  if (event[0] == (u64)-1 || event[0] == 0x80) {
    print(" pde ");
    hex(table_pd[0] & 0x67);
  }
  print("\n");
}

static void paging_matrix(void) {
  frame[0] = 0xc3; /* ret */
  for (unsigned b = 0; b < 16; b++) {
    u64 bits = (u64)(b & 7) | (u64)(b >> 3) << 63;
    paging_case(bits, 0, "read", do_read);
    paging_case(bits, 0, "write", do_write);
    paging_case(bits, 0, "execute", do_execute);
    paging_case(bits, 1, "read", user_read);
    paging_case(bits, 1, "write", user_write);
    paging_case(bits, 1, "execute", user_execute);
  }
}

static void reserved_bits(void) {
  table_pt[0] = (u64)frame | 7 | 1UL << 51;
  invlpg(PROBE_PAGE);
  probe("PTE bit 51", do_read);
  table_pt[0] = (u64)frame | 7;
  table_pd[0] = 0x87 | 1UL << 13;
  invlpg(PROBE_PAGE);
  probe("2M page, bit 13", do_read);
  table_pd[0] = (u64)table_pt | 7;
  invlpg(PROBE_PAGE);
}

/* ---- segments ---- */

static u16 selector;
static void load_ds(void) { __asm__ volatile("mov %0, %%ds" : : "r"(selector)); }
static void load_ss(void) {
  __asm__ volatile("mov %0, %%ss" : : "r"(selector));
  __asm__ volatile("mov %0, %%ss" : : "r"((u16)0x10));
}
static void load_fs(void) { __asm__ volatile("mov %0, %%fs" : : "r"(selector)); }
static void load_tr(void) { __asm__ volatile("ltr %0" : : "r"(selector)); }
static void load_ldt(void) { __asm__ volatile("lldt %0" : : "r"(selector)); }
static void far_return(void) {
  __asm__ volatile("pushq %0\n\tleaq 1f(%%rip), %%rax\n\tpushq %%rax\n\tlretq\n1:\tpushq $8\n\tleaq 2f(%%rip), %%rax\n\tpushq "
                   "%%rax\n\tlretq\n2:"
                   :
                   : "r"((u64)selector)
                   : "rax", "memory");
}
static void far_call(void) {
  struct {
    u32 offset;
    u16 selector;
  } __attribute__((packed)) target = {0, selector};
  __asm__ volatile("lcall *%0" : : "m"(target) : "rax", "memory");
}

static void segments(void) {
  static const u16 selectors[] = {0x00, 0x03, 0x08, 0x10, 0x13, 0x18, 0x1b, 0x20, 0x23, 0x28, 0x30, 0x38,
                                  0x40, 0x48, 0x60, 0x80, 0x0c, 0x14, 0x98, 0x9c, 0xfff8};
  for (unsigned i = 0; i < sizeof selectors / sizeof *selectors; i++) {
    selector = selectors[i];
    hex(selector);
    probe(" mov ds", load_ds);
    hex(selector);
    probe(" mov ss", load_ss);
    hex(selector);
    probe(" mov fs", load_fs);
    hex(selector);
    probe(" lldt", load_ldt);
    /* QEMU lets LTR take a null selector. */
    if (selector != 0x60 && selector > 3) {
      hex(selector);
      probe(" ltr", load_tr);
    }
    if (selector != 0x08 && selector != 0x40 && selector != 0x28 && selector != 0x48) {
      hex(selector);
      probe(" retf", far_return);
      hex(selector);
      probe(" call far", far_call);
    }
  }
  selector = 0x50;
  probe("50 retf", far_return);
  selector = 0x70;
  probe("70 call far through a gate", far_call);
}

/* ---- interrupts ---- */

static void int_50(void) { __asm__ volatile("int $0x50"); }
static void int_3(void) { __asm__ volatile("int3"); }
static void user_int_50(void) { user_code = int_50, enter_user(); }
static void user_int_3(void) { user_code = int_3, enter_user(); }
static void ud2(void) { __asm__ volatile("ud2"); }
static void divide(void) {
  __asm__ volatile("xorl %%ecx, %%ecx\n\tdivl %%ecx" : : : "eax", "ecx", "edx");
}
static void single_step(void) {
  __asm__ volatile("pushfq\n\torl $0x100, (%%rsp)\n\tpopfq\n\tnop\n\tnop" : : : "memory");
}

static void interrupts(void) {
  probe("int 50", int_50);
  probe("int 50 from user", user_int_50);
  set_gate(0x50, 0xee, 0, 8);
  probe("int 50 from user, DPL 3", user_int_50);
  set_gate(0x50, 0x0e, 0, 8);
  probe("int 50, gate not present", int_50);
  set_gate(0x50, 0x8e, 0, 0);
  probe("int 50, null selector", int_50);
  set_gate(0x50, 0x8e, 0, 0x10);
  probe("int 50, data selector", int_50);
  set_gate(0x50, 0x8e, 0, 0x28);
  probe("int 50, 32-bit code selector", int_50);
  set_gate(0x50, 0x8e, 0, 0x50);
  probe("int 50, code not present", int_50);
  set_gate(0x50, 0x85, 0, 8);
  probe("int 50, task gate", int_50);
  set_gate(0x50, 0x8c, 0, 8);
  probe("int 50, call gate", int_50);
  set_gate(0x50, 0x8f, 1, 8);
  probe("int 50, trap gate and IST 1", int_50);
  print("  rsp - ist ");
  hex((u64)ist_stack + sizeof ist_stack - event[5] < 0x100 ? 1 : 0);
  print("\n");
  set_gate(0x50, 0x8e, 0, 8);
  probe("int3", int_3);
  probe("int3 from user", user_int_3);
  probe("ud2", ud2);
  probe("divide by zero", divide);
  probe("single step", single_step);
  /* #GP while delivering #GP: a double fault. */
  set_gate(13, 0x0e, 0, 8);
  selector = 0xfff8;
  probe("#NP in #GP delivery", load_ds);
  set_gate(13, 0x8e, 0, 8);
  set_gate(14, 0x0e, 0, 8);
  table_pt[0] = 0;
  invlpg(PROBE_PAGE);
  probe("#NP in #PF delivery", do_read);
  set_gate(14, 0x8e, 0, 8);
}

/* ---- control registers, MSRs, canonical addresses, privileges ---- */

static u64 operand;
static void read_at(void) { (void)*(volatile u8 *)operand; }
static void jump_to(void) { __asm__ volatile("jmp *%0" : : "r"(operand)); }
static void u_hlt(void) { __asm__ volatile("hlt\n\tint $0x80"); }
static void u_cli(void) { __asm__ volatile("cli\n\tint $0x80"); }
static void u_in(void) { in8(0x80), int_3(); }
static void u_rdmsr(void) { __asm__ volatile("rdmsr\n\tint $0x80" : : "c"(0xc0000080) : "eax", "edx"); }
static void u_cr0(void) { __asm__ volatile("mov %%cr0, %%rax\n\tint $0x80" : : : "rax"); }
static void u_lgdt(void) { __asm__ volatile("lgdt (%0)\n\tint $0x80" : : "r"(gdt)); }
static void u_invlpg(void) { __asm__ volatile("invlpg (%0)\n\tint $0x80" : : "r"(gdt)); }
static void u_swapgs(void) { __asm__ volatile("swapgs\n\tint $0x80"); }
static void u_sysret(void) { __asm__ volatile("sysretq\n\tint $0x80"); }
static void u_sgdt(void) { __asm__ volatile("sgdt -16(%%rsp)\n\tint $0x80" : : : "memory"); }
static void u_fs(void) { __asm__ volatile("mov %0, %%fs\n\tint $0x80" : : "r"((u16)0x10)); }
static void u_syscall(void) { __asm__ volatile("syscall\n\tint $0x80" : : : "rcx", "r11"); }
static void lock_ud(void) { __asm__ volatile(".byte 0xf0, 0x90"); }
static void user(const char *name, void (*code)(void)) {
  user_code = code;
  print("user ");
  probe(name, enter_user);
}
static void wrmsr(u32 index, u64 value) {
  __asm__ volatile("wrmsr" : : "c"(index), "a"((u32)value), "d"((u32)(value >> 32)));
}

static void control(void) {
  /* QEMU checks neither what is loaded into control registers and MSRs nor alignment: those rules are tested elsewhere. */
  operand = 0x800000000000;
  probe("read, not canonical", read_at);
  probe("jump, not canonical", jump_to);
  operand = 0x7fffffffffff;
  probe("read, last canonical byte", read_at);
  probe("lock nop", lock_ud);
  user("hlt", u_hlt);
  user("cli", u_cli);
  user("in", u_in);
  user("rdmsr", u_rdmsr);
  user("mov cr0", u_cr0);
  user("lgdt", u_lgdt);
  user("invlpg", u_invlpg);
  user("swapgs", u_swapgs);
  user("sysret", u_sysret);
  user("sgdt", u_sgdt);
  user("mov fs, DPL 0", u_fs);
  /* SYSCALL: CS and SS from STAR, RFLAGS masked. The handler is the stub of vector 0x60. */
  wrmsr(0xc0000081, 0x0010000800000000);
  wrmsr(0xc0000082, (u64)stubs + 0x81 * 16);
  wrmsr(0xc0000084, 0x200);
}

void guest_main(void) {
  for (int v = 0; v < 256; v++) set_gate(v, 0x8e, 0, 8);
  set_gate(3, 0xee, 0, 8);
  set_gate(0x80, 0xee, 0, 8);
  struct {
    u16 limit;
    u64 base;
  } __attribute__((packed)) pointer = {sizeof idt - 1, (u64)idt};
  __asm__ volatile("lidt %0" : : "m"(pointer));
  u64 base = (u64)tss;
  *(u64 *)&tss[1] = (u64)ring0_stack + sizeof ring0_stack; /* RSP0 */
  *(u64 *)&tss[9] = (u64)ist_stack + sizeof ist_stack;     /* IST1 */
  tss[25] = 104 << 16;
  gdt[12] = 103 | (base & 0xffffff) << 16 | 0x89UL << 40 | (base >> 24 & 0xff) << 56;
  gdt[13] = base >> 32;
  u64 to = (u64)stubs + 0x90 * 16; /* call gate, 64-bit, DPL 0, to a stub */
  gdt[14] = (to & 0xffff) | 8UL << 16 | 0x8cUL << 40 | (to >> 16 & 0xffff) << 48;
  gdt[15] = to >> 32;
  __asm__ volatile("ltr %0" : : "r"((u16)0x60));
  /* The user may use everything below 1 GiB; the probe page lies at 1 GiB. */
  for (int i = 0; i < 512; i++) page_directory[i] |= 4;
  u64 *pdpt = (u64 *)(pml4[0] & ~0xfffUL);
  pdpt[1] = (u64)table_pd | 7;
  table_pd[0] = (u64)table_pt | 7;
  __asm__ volatile("mov %0, %%cr3" : : "r"(pml4) : "memory");

  print("== paging, CR0.WP set\n");
  paging_matrix();
  print("== paging, CR0.WP clear\n");
  write_cr0(read_cr0() & ~(1UL << 16));
  paging_matrix();
  write_cr0(read_cr0() | 1UL << 16);
  print("== paging, reserved bits\n");
  reserved_bits();
  print("== segments\n");
  segments();
  print("== interrupts\n");
  interrupts();
  print("== control\n");
  control();
  user_code = u_syscall;
  print("user ");
  probe("syscall", enter_user);
  print("end\n");
  out8(0xf4, 0);
}

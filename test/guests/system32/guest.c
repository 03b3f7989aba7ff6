/*
 * Privileged behaviour of 32-bit protected mode, virtual-8086 and real-address mode, one line for each probe. The same
 * image runs under QEMU, whose output is recorded beside it (golden.txt); the engine must print the same.
 */
#include <stdint.h>

typedef uint32_t u32;
typedef uint16_t u16;
typedef uint8_t u8;

extern u32 event[], user_flags, task_entered, task_flags, task_tr;
extern uint64_t gdt[];
extern char stubs[], far_target[], far_target16[], task_entry[], user_stack_top[];
extern char vm86_start[], vm86_end[], vm86_int[], vm86_cli[], vm86_pushf[], vm86_in[], vm86_out[], vm86_hlt[], vm86_mov[],
    vm86_iret[], vm86_lgdt[], vm86_far[], real_start[], real_end[], back_idt[];
extern void (*probe_entry)(void);
void probe_at_cpl0(void);
void probe_at_cpl3(void);
void run_probe(void (*code)(void));

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
static void hex(u32 value) {
  int shift = 28;
  while (shift > 0 && !(value >> shift & 15)) shift -= 4;
  for (; shift >= 0; shift -= 4) put("0123456789abcdef"[value >> shift & 15]);
}
static void item(const char *name, u32 value) {
  put(' ');
  print(name);
  put(' ');
  hex(value);
}

#define VM 0x20000
/* Arithmetic flags, and RF, which QEMU pushes clear where the manual wants it set. */
#define IGNORED 0x108d5

static struct {
  u16 low, selector;
  u8 zero, type;
  u16 high;
} __attribute__((packed)) idt[256];
static u32 tss[32], task_tss[32], small_tss[32];
static u16 task_tss16[32];
static u8 ring0_stack[4096], task_stack[4096];
static uint64_t ldt[4];

static void set_gate(int vector, u8 type, u16 selector) {
  u32 to = (u32)stubs + (u32)vector * 16;
  idt[vector].low = (u16)to;
  idt[vector].selector = selector;
  idt[vector].zero = 0;
  idt[vector].type = type;
  idt[vector].high = (u16)(to >> 16);
}
static void set_system(int selector, void *base, u32 limit, u8 type) {
  u32 b = (u32)base;
  gdt[selector / 8] = limit | (uint64_t)(b & 0xffffff) << 16 | (uint64_t)type << 40 | (uint64_t)(b >> 24) << 56;
}
static void set_call_gate(int selector, u16 code, void *to, u8 type, u8 parameters) {
  u32 offset = (u32)to;
  gdt[selector / 8] = (offset & 0xffff) | (uint64_t)code << 16 | (uint64_t)parameters << 32 | (uint64_t)type << 40 |
                      (uint64_t)(offset >> 16) << 48;
}

/* Runs a probe and prints its outcome. */
static void outcome(const char *name) {
  print(name);
  put(':');
  if (event[0] == (u32)-1) {
    print(" none\n");
    return;
  }
  item("vector", event[0]);
  if (event[1] != (u32)-1) item("error", event[1]);
  if (event[0] == 14) item("cr2", event[11]);
  item("cs", event[3]);
  if (event[4] & VM || event[3] & 3) item("ss", event[6]);
  item("handler ss", event[14]);
  put('\n');
}
static void probe(const char *name, void (*code)(void)) {
  probe_entry = probe_at_cpl0;
  run_probe(code);
  outcome(name);
}
static void user(const char *name, void (*code)(void)) {
  print("user ");
  probe_entry = probe_at_cpl3;
  run_probe(code);
  outcome(name);
}

/* ---- segments ---- */

static u16 selector;
static void load_ds(void) { __asm__ volatile("mov %0, %%ds" : : "r"(selector)); }
static void load_ss(void) { __asm__ volatile("mov %0, %%ss\n\tmov %1, %%ss" : : "r"(selector), "r"((u16)0x10)); }
static void load_ss_user(void) { __asm__ volatile("mov %0, %%ss\n\tint $0x80" : : "r"(selector)); }
static void load_ds_user(void) { __asm__ volatile("mov %0, %%ds\n\tint $0x80" : : "r"(selector)); }
static void load_ldt(void) { __asm__ volatile("lldt %0" : : "r"(selector)); }
static void load_tr(void) { __asm__ volatile("ltr %0" : : "r"(selector)); }
static struct {
  u32 offset;
  u16 selector;
} __attribute__((packed)) pointer;
static void far_jump(void) { __asm__ volatile("ljmp *%0" : : "m"(pointer) : "memory"); }
static void far_call(void) { __asm__ volatile("lcall *%0" : : "m"(pointer) : "memory"); }
static void far_call_parameters(void) {
  __asm__ volatile("pushl $0x1111\n\tpushl $0x2222\n\tlcall *%0" : : "m"(pointer) : "memory");
}
static void far_return(void) {
  __asm__ volatile("pushl $0x23\n\tpushl $user_stack_top\n\tpushl %0\n\tpushl %1\n\tlretl" : : "r"((u32)pointer.selector), "r"(pointer.offset) : "memory");
}
static void interrupt_return(void) {
  __asm__ volatile("pushl $0x23\n\tpushl $user_stack_top\n\tpushl $2\n\tpushl %0\n\tpushl %1\n\tiretl" : : "r"((u32)pointer.selector), "r"(pointer.offset) : "memory");
}

static const u16 selectors[] = {0x00, 0x03, 0x08, 0x0b, 0x10, 0x13, 0x18, 0x1b, 0x20, 0x23, 0x28, 0x30, 0x38,
                                0x40, 0x43, 0x48, 0x50, 0x58, 0x60, 0x80, 0xa8, 0xab, 0x0c, 0x14, 0x110, 0xfff8};
#define COUNT(a) (sizeof(a) / sizeof *(a))

static void segments(void) {
  for (unsigned i = 0; i < COUNT(selectors); i++) {
    selector = selectors[i];
    hex(selector), probe(" mov ds", load_ds);
    hex(selector), probe(" mov ss", load_ss);
    hex(selector), user("mov ds", load_ds_user);
    hex(selector), user("mov ss", load_ss_user);
    if (selector != 0x60 && selector > 3) hex(selector), probe(" ltr", load_tr);
    hex(selector), probe(" lldt", load_ldt);
    __asm__ volatile("lldt %0" : : "r"((u16)0));
  }
  item("accessed 48", gdt[0x48 / 8] >> 40 & 1);
  put('\n');
}

static u32 checked, zf;
static void check_selectors(void) {
  for (unsigned s = 0; s < 0x118; s += 4) {
    selector = (u16)s | (s & 8 ? 3 : 0);
    hex(selector);
    __asm__ volatile("movl $0x5555, %0\n\tlar %2, %0\n\tsetz %b1" : "=&r"(checked), "=&q"(zf) : "r"((u32)selector));
    item("lar", checked & 0xf0ff00), put(zf & 1 ? 'z' : '-');
    __asm__ volatile("movl $0x5555, %0\n\tlsl %2, %0\n\tsetz %b1" : "=&r"(checked), "=&q"(zf) : "r"((u32)selector));
    item("lsl", checked), put(zf & 1 ? 'z' : '-');
    __asm__ volatile("verr %1\n\tsetz %b0" : "=q"(zf) : "r"(selector));
    put(' '), put(zf & 1 ? 'r' : '-');
    __asm__ volatile("verw %1\n\tsetz %b0" : "=q"(zf) : "r"(selector));
    put(zf & 1 ? 'w' : '-');
    put('\n');
  }
}

static void far_transfers(void) {
  static const u16 targets[] = {0x00, 0x08, 0x0b, 0x10, 0x18, 0x1b, 0x28, 0x40, 0x43, 0x48, 0x50, 0x60, 0x78,
                                0x7b, 0x80, 0x88, 0xa0, 0xa8, 0xab, 0xc0, 0xd8, 0xd9, 0x110};
  for (unsigned i = 0; i < COUNT(targets); i++) {
    pointer.selector = targets[i];
    pointer.offset = targets[i] == 0x28 ? (u32)far_target16 - 0x100000 : (u32)far_target;
    hex(targets[i]), probe(" jmp", far_jump);
    hex(targets[i]), probe(" call", far_call);
    hex(targets[i]), probe(" retf", far_return);
    hex(targets[i]), probe(" iret", interrupt_return);
    hex(targets[i]), user("jmp", far_jump);
    hex(targets[i]), user("call", far_call);
    hex(targets[i]), user("retf", far_return);
    hex(targets[i]), user("iret", interrupt_return);
  }
  pointer.selector = 0x78;
  user("call with parameters", far_call_parameters);
  /* On the inner stack: return EIP and CS, parameters, outer ESP and SS, above the frame of INT 0x51. */
  u32 *frame = (u32 *)(ring0_stack + sizeof ring0_stack) - 6;
  item("cs", frame[1]), item("parameters", frame[2]), item("", frame[3]);
  item("esp", frame[4] - (u32)user_stack_top), item("ss", frame[5]), put('\n');
}

/* ---- interrupts ---- */

static void int_50(void) { __asm__ volatile("int $0x50"); }
static void int_3(void) { __asm__ volatile("int3"); }
static void into(void) { __asm__ volatile("movb $0x7f, %%al\n\taddb $1, %%al\n\tinto\n\tint $0x80" : : : "eax"); }
static void ud2(void) { __asm__ volatile("ud2"); }
static void bound(void) {
  static const u32 limits[2] = {1, 5};
  __asm__ volatile("bound %0, %1" : : "r"(7), "m"(limits));
}
static void divide(void) { __asm__ volatile("xorl %%ecx, %%ecx\n\tdivl %%ecx" : : : "eax", "ecx", "edx"); }

static void gate(const char *name, u8 type, u16 code) {
  set_gate(0x50, type, code);
  print(name), probe("", int_50);
  print(name), user("", int_50);
}

static void interrupts(void) {
  gate("interrupt gate", 0xee, 0x08);
  item("flags", event[12] & ~IGNORED), put('\n');
  user_flags = 0x3202;
  gate("trap gate, IF and IOPL 3", 0xef, 0x08);
  item("pushed", event[4] & ~IGNORED), item("flags", event[12] & ~IGNORED), put('\n');
  gate("interrupt gate, IF", 0xee, 0x08);
  item("pushed", event[4] & ~IGNORED), item("flags", event[12] & ~IGNORED), put('\n');
  user_flags = 2;
  gate("DPL 0", 0x8e, 0x08);
  gate("not present", 0x6e, 0x08);
  gate("null selector", 0xee, 0x00);
  gate("data selector", 0xee, 0x10);
  gate("code not present", 0xee, 0x50);
  gate("code DPL 3", 0xee, 0x18);
  gate("conforming", 0xee, 0x40);
  gate("beyond the GDT", 0xee, 0xfff8);
  gate("call gate", 0xec, 0x08);
  gate("task gate to data", 0xe5, 0x10);
  gate("task gate to nothing", 0xe5, 0xfff8);
  set_gate(0x50, 0xee, 8);
  probe("int3", int_3);
  user("int3", int_3);
  user("into", into);
  probe("ud2", ud2);
  probe("bound", bound);
  probe("divide", divide);
  /* Faults in delivery: EXT, and double faults. */
  set_gate(13, 0x0e, 8);
  selector = 0xfff8;
  probe("#NP in #GP delivery", load_ds);
  set_gate(13, 0x8e, 8);
  set_gate(6, 0x8e, 0x50);
  probe("#UD gate to code not present", ud2);
  set_gate(6, 0x8e, 8);
  /* Inner stacks. */
  static const u16 stacks[] = {0x00, 0x30, 0x31, 0x38, 0x21, 0x23, 0x11, 0x09, 0xe1, 0xe0, 0x111};
  set_gate(0x50, 0xee, 0xd8);
  for (unsigned i = 0; i < COUNT(stacks); i++) {
    tss[4] = stacks[i];
    hex(stacks[i]), print(" as inner SS: "), user("int 50", int_50);
  }
  set_gate(0x50, 0xee, 8);
}

/* ---- tasks ---- */

static void restore_task(void) {
  gdt[0x60 / 8] &= ~(2ULL << 40);
  gdt[0x68 / 8] &= ~(2ULL << 40);
  gdt[0x90 / 8] &= ~(2ULL << 40);
  for (int i = 0; i < 4; i++) gdt[0xe8 / 8 + i] &= ~(2ULL << 40);
  __asm__ volatile("ltr %0" : : "r"((u16)0x60));
  __asm__ volatile("clts");
}
static void prepare_task(void) {
  for (int i = 0; i < 26; i++) task_tss[i] = 0;
  task_tss[7] = tss[7];
  task_tss[8] = (u32)task_entry;
  task_tss[9] = 0x2 | 0xd5;
  task_tss[14] = (u32)(task_stack + sizeof task_stack);
  for (int i = 18; i < 24; i++) task_tss[i] = 0x10;
  task_tss[19] = 0x08;
  task_tss[25] = 104 << 16;
  task_entered = task_flags = task_tr = 0;
  for (int i = 8; i < 24; i++) tss[i] = 0;
}
static int in_new_task;
static void task_report(const char *name) {
  u32 cr0, tr = 0;
  __asm__ volatile("mov %%cr0, %0" : "=r"(cr0));
  __asm__ volatile("str %w0" : "+r"(tr));
  outcome(name);
  item("  entered", task_entered), item("flags", task_flags & ~IGNORED), item("tr then", task_tr), item("tr", tr);
  item("link", task_tss[0] & 0xffff), item("ts", cr0 >> 3 & 1);
  item("busy 60", gdt[0x60 / 8] >> 41 & 1), item("68", gdt[0x68 / 8] >> 41 & 1), put('\n');
  item("  saved flags", tss[9] & ~IGNORED), item("cs", tss[19] & 0xffff), item("ss", tss[20] & 0xffff);
  item("ds", tss[21] & 0xffff), item("eax set", tss[10] == 0x12345678), put('\n');
  /* QEMU saves the caller's EIP and flags when a task faults before its first instruction. */
  if (!in_new_task) {
    item("  task saved eip", task_tss[8] - (u32)task_entry), item("flags", task_tss[9] & ~IGNORED), put('\n');
  }
  restore_task();
}
static void call_task(void) {
  __asm__ volatile("movl $0x12345678, %%eax\n\tlcall $0x68, $0" : : : "eax", "memory");
}
static void jump_task(void) {
  __asm__ volatile("movl $0x12345678, %%eax\n\tljmp $0x68, $0" : : : "eax", "memory");
}
static void call_task_gate(void) { __asm__ volatile("lcall $0x70, $0" : : : "memory"); }
static void task(const char *name, void (*code)(void)) {
  probe_entry = probe_at_cpl0;
  run_probe(code);
  task_report(name);
}
/* Faults of a task that is only half there need handlers that are tasks themselves: #TS, #NP, #SS, #GP. */
static u32 handler_tss[4][26];
static u8 handler_stacks[4][1024];
static void handler_tasks(int on) {
  for (int i = 0; i < 4; i++) {
    int vector = 10 + i;
    for (int k = 0; k < 26; k++) handler_tss[i][k] = 0;
    for (int k = 0; k < 1024; k++) handler_stacks[i][k] = 0;
    handler_tss[i][7] = tss[7];
    handler_tss[i][8] = (u32)stubs + (u32)vector * 16;
    handler_tss[i][9] = 2;
    handler_tss[i][14] = (u32)handler_stacks[i] + 512;
    for (int k = 18; k < 24; k++) handler_tss[i][k] = 0x10;
    handler_tss[i][19] = 8;
    handler_tss[i][25] = 104 << 16;
    set_system(0xe8 + i * 8, handler_tss[i], 103, 0x89);
    set_gate(vector, on ? 0x85 : 0x8e, on ? 0xe8 + i * 8 : 8);
  }
}
static void bad_task(const char *name) {
  handler_tasks(1);
  in_new_task = 1;
  task(name, call_task);
  in_new_task = 0;
  item("  in the task: cs", task_tss[19]), item("ss", task_tss[20]), item("ds", task_tss[21]), item("fs", task_tss[22]);
  item("ldt", task_tss[24]), item("handler link", handler_tss[0][0]);
  item("", handler_tss[1][0]), item("", handler_tss[2][0]), put('\n');
  handler_tasks(0);
  __asm__ volatile("lldt %0" : : "r"((u16)0));
}
static void call_busy(void) { __asm__ volatile("lcall $0x60, $0" : : : "memory"); }
static void call_small(void) { __asm__ volatile("lcall $0x98, $0" : : : "memory"); }
static void call_absent(void) { __asm__ volatile("lcall $0xb8, $0" : : : "memory"); }
static void call_task16(void) { __asm__ volatile("lcall $0x90, $0" : : : "memory"); }
static void nested_return(void) {
  __asm__ volatile("pushfl\n\torl $0x4000, (%%esp)\n\tpopfl\n\tiretl" : : : "memory");
}

static void tasks(void) {
  prepare_task();
  task("call and iret", call_task);
  prepare_task();
  task("call through a gate", call_task_gate);
  prepare_task();
  set_gate(0x50, 0xe5, 0x68);
  task("int through a task gate", int_50);
  prepare_task();
  set_gate(6, 0x85, 0x68);
  task_tss[8] = (u32)far_target;
  task("#UD through a task gate", ud2);
  set_gate(6, 0x8e, 8);
  prepare_task();
  set_gate(13, 0x85, 0x68);
  task_tss[8] = (u32)far_target;
  selector = 0xfff8;
  task("#GP through a task gate", load_ds);
  item("  error on its stack", event[5]), put('\n');
  set_gate(13, 0x8e, 8);
  set_gate(0x50, 0xee, 8);
  prepare_task();
  task_tss[8] = (u32)far_target;
  task("jump", jump_task);
  prepare_task();
  task("call of a busy task", call_busy);
  task("call of a small TSS", call_small);
  task("call of an absent TSS", call_absent);
  static const struct {
    const char *name;
    u8 index;
    u32 value;
  } bad[] = {
      {"CS null", 19, 0},           {"CS data", 19, 0x10},       {"CS not present", 19, 0x50}, {"CS DPL 3", 19, 0x18},
      {"CS RPL 3", 19, 0x0b},       {"SS null", 20, 0},          {"SS code", 20, 0x08},        {"SS not present", 20, 0x30},
      {"SS DPL 3", 20, 0x23},       {"DS code", 21, 0x48},       {"DS not present", 21, 0x30}, {"FS beyond", 22, 0xfff8},
      {"LDT not an LDT", 24, 0x10}, {"LDT in the LDT", 24, 0x0c}, {"LDT", 24, 0x80},
  };
  for (unsigned i = 0; i < COUNT(bad); i++) {
    prepare_task();
    task_tss[8] = (u32)far_target;
    task_tss[bad[i].index] = bad[i].value;
    bad_task(bad[i].name);
  }
  /* A task at CPL 3. */
  prepare_task();
  task_tss[8] = (u32)far_target;
  task_tss[1] = (u32)(task_stack + 2048);
  task_tss[2] = 0x10;
  task_tss[19] = 0x1b;
  task_tss[20] = 0x23;
  task_tss[18] = task_tss[21] = task_tss[22] = task_tss[23] = 0x23;
  set_gate(0x51, 0xee, 8);
  task("task at CPL 3", call_task);
  /* IRET with NT: the link must name a busy TSS. */
  prepare_task();
  *(u16 *)tss = 0x68;
  task("nested return to a task that is not busy", nested_return);
  prepare_task();
  *(u16 *)tss = 0x10;
  task("nested return to data", nested_return);
  prepare_task();
  for (int i = 0; i < 22; i++) task_tss16[i] = 0;
  task_tss16[7] = (u16)0x8000;
  task_tss16[8] = 2;
  task_tss16[13] = 0x7000;
  task_tss16[17] = 0x10, task_tss16[18] = 0xb0, task_tss16[19] = 0x10, task_tss16[20] = 0x10;
  *(volatile u16 *)0x8000 = 0x51cd;
  task("16-bit task", call_task16);
  item("  link", task_tss16[0]), put('\n');
}

/* ---- virtual-8086 mode ---- */

static u32 vm86_flags, vm86_entry;
static void enter_vm86(void) {
  __asm__ volatile("pushl $0x4444\n\tpushl $0x3333\n\tpushl $0x2222\n\tpushl $0x1111\n\tpushl $0x3000\n\tpushl $0x100\n\t"
                   "pushl %0\n\tpushl $0x2000\n\tpushl %1\n\tiretl"
                   :
                   : "r"(vm86_flags | VM), "r"(vm86_entry)
                   : "memory");
}
static void vm86(const char *name, char *code, u32 flags) {
  vm86_flags = flags;
  vm86_entry = (u32)(code - vm86_start);
  probe(name, enter_vm86);
  item("  eip", event[2] - vm86_entry), item("flags", event[4] & ~IGNORED), item("esp", event[5]);
  item("es", event[7]), item("ds", event[8]), item("fs", event[9]), item("gs", event[10]);
  item("handler flags", event[12] & ~IGNORED), put('\n');
}

static void virtual_8086(void) {
  u8 *at = (u8 *)0x20000;
  for (char *p = vm86_start; p < vm86_end; p++) *at++ = (u8)*p;
  set_gate(0x53, 0xee, 8);
  for (u32 iopl = 0; iopl <= 0x3000; iopl += 0x3000) {
    u32 flags = 0x202 | iopl;
    print(iopl ? "== IOPL 3\n" : "== IOPL 0\n");
    vm86("int", vm86_int, flags);
    vm86("cli", vm86_cli, flags);
    vm86("pushf", vm86_pushf, flags);
    vm86("in, allowed by the map", vm86_in, flags);
    vm86("out, not allowed", vm86_out, flags);
    vm86("hlt", vm86_hlt, flags);
    vm86("mov ds", vm86_mov, flags);
    vm86("iret", vm86_iret, flags);
    vm86("lgdt", vm86_lgdt, flags);
    vm86("jmp far", vm86_far, flags);
  }
  set_gate(0x53, 0x8e, 8);
  vm86("int, gate DPL 0", vm86_int, 0x3202);
  set_gate(0x53, 0xee, 0x40);
  vm86("int, conforming handler", vm86_int, 0x3202);
  set_gate(0x53, 0xee, 8);
}

/* ---- ports from CPL 3 ---- */

static void user_in_80(void) { in8(0x80), int_3(); }
static void user_in_82(void) { in8(0x82), int_3(); }
static void user_in_wide(void) {
  __asm__ volatile("inw $0x80, %%ax\n\tint3" : : : "eax");
}
static void user_cli(void) { __asm__ volatile("cli\n\tint3"); }
static void user_popf(void) { __asm__ volatile("pushl $0x3202\n\tpopfl\n\tint3"); }

static void ports(void) {
  user("in 80", user_in_80);
  user("in 82", user_in_82);
  user("inw 80", user_in_wide);
  user("cli", user_cli);
  user("popf", user_popf);
  item("  flags", event[4] & ~IGNORED), put('\n');
  user_flags = 0x3002;
  user("in 82, IOPL 3", user_in_82);
  user("cli, IOPL 3", user_cli);
  user("popf, IOPL 3", user_popf);
  item("  flags", event[4] & ~IGNORED), put('\n');
  user_flags = 2;
}

/* ---- 32-bit and PAE paging ---- */

static u32 directory[1024] __attribute__((aligned(4096)));
static u32 table[1024] __attribute__((aligned(4096)));
static uint64_t pdpt[4] __attribute__((aligned(32)));
static uint64_t pae_directory[4][512] __attribute__((aligned(4096)));
static uint64_t pae_table[512] __attribute__((aligned(4096)));
static u8 frame[4096] __attribute__((aligned(4096)));
#define PROBE_PAGE 0x40000000U

static void do_read(void) { (void)*(volatile u8 *)(PROBE_PAGE + 0x123); }
static void do_write(void) { *(volatile u8 *)(PROBE_PAGE + 0x123) = 1; }
static void do_execute(void) { ((void (*)(void))PROBE_PAGE)(); }
static void user_read(void) { do_read(), int_3(); }
static void user_write(void) { do_write(), int_3(); }
static void user_execute(void) { do_execute(), int_3(); }
static void crossing_write(void) { *(volatile u32 *)(PROBE_PAGE + 0xffe) = 1; }
static void invlpg(void) { __asm__ volatile("invlpg (%0)" : : "r"(PROBE_PAGE) : "memory"); }
static void set_cr4(u32 v) { __asm__ volatile("mov %0, %%cr4" : : "r"(v)); }
static void set_cr3(void *v) { __asm__ volatile("mov %0, %%cr3" : : "r"(v) : "memory"); }
static u32 cr0(void) {
  u32 v;
  __asm__ volatile("mov %%cr0, %0" : "=r"(v));
  return v;
}
static void set_cr0(u32 v) { __asm__ volatile("mov %0, %%cr0" : : "r"(v) : "memory"); }

static u32 (*entry)(void);
static u32 pte32(void) { return table[0]; }
static u32 pde32(void) { return directory[256]; }
static u32 pte_pae(void) { return (u32)pae_table[0]; }

static void accesses(const char *name) {
  static const struct {
    const char *name;
    void (*code)(void);
    int user;
  } all[] = {{" read", do_read, 0},  {" write", do_write, 0},  {" execute", do_execute, 0},
             {"read", user_read, 1}, {"write", user_write, 1}, {"execute", user_execute, 1}};
  for (unsigned i = 0; i < COUNT(all); i++) {
    table[0] &= ~0x60U;
    directory[256] &= ~0x60U;
    pae_table[0] &= ~0x60ULL;
    invlpg();
    print(name), put(' ');
    if (all[i].user) user(all[i].name, all[i].code);
    else probe(all[i].name, all[i].code);
    item("  entry", entry() & 0xfe7), put('\n');
  }
}

static void paging(void) {
  frame[0] = 0xc3;
  for (u32 i = 0; i < 4; i++) directory[i] = i << 22 | 0x87;
  directory[256] = (u32)table | 7;
  set_cr4(0x10);
  set_cr3(directory);
  for (u32 wp = 0; wp < 2; wp++) {
    set_cr0((cr0() & ~0x10000U) | 0x80000000U | wp << 16);
    print(wp ? "== 32-bit paging, WP\n" : "== 32-bit paging\n");
    entry = pte32;
    directory[256] = (u32)table | 7;
    table[0] = (u32)frame | 1, accesses("srP");
    table[0] = (u32)frame | 3, accesses("sWP");
    table[0] = (u32)frame | 5, accesses("UrP");
    table[0] = (u32)frame | 7, accesses("UWP");
    directory[256] = (u32)table | 3, accesses("UWP in sW");
    directory[256] = (u32)table | 5, accesses("UWP in Ur");
    directory[256] = (u32)table | 6, accesses("UWP in not present");
    entry = pde32;
    directory[256] = 0x800000 | 0x87, *(u8 *)0x800000 = 0xc3, accesses("4M page, UW");
    directory[256] = 0x800000 | 0x81, accesses("4M page, sr");
  }
  directory[256] = (u32)table | 7;
  table[0] = (u32)frame | 7, table[1] = 0;
  invlpg();
  *(u32 *)(frame + 0xffc) = 0x11223344;
  probe("write across into nothing", crossing_write);
  item("  left", *(u32 *)(frame + 0xffc)), put('\n');
  set_cr0(cr0() & ~0x80000000U);

  print("== PAE paging\n");
  for (u32 i = 0; i < 4; i++) pdpt[i] = (u32)pae_directory[i] | 1;
  for (u32 i = 0; i < 512; i++) pae_directory[0][i] = i << 21 | 0x87;
  pae_directory[1][0] = (u32)pae_table | 7;
  __asm__ volatile("wrmsr" : : "c"(0xc0000080), "a"(0x800), "d"(0));
  set_cr4(0x20);
  set_cr3(pdpt);
  set_cr0(cr0() | 0x80010000U);
  entry = pte_pae;
  pae_table[0] = (u32)frame | 1, accesses("srP");
  pae_table[0] = (u32)frame | 7, accesses("UWP");
  pae_table[0] = (u32)frame | 7 | 1ULL << 63, accesses("XUWP");
  pae_table[0] = (u32)frame | 6, accesses("UW");
  set_cr0(cr0() & ~0x80010000U);
  set_cr4(0);
}

/* ---- real-address mode ---- */

static void enter_real(void) {
  /* Limits of 64 KiB, as 16-bit code segments have them, stay in force in real-address mode. */
  __asm__ volatile("movw $0xd0, %%ax\n\tmovw %%ax, %%ds\n\tmovw %%ax, %%es\n\tmovw %%ax, %%ss\n\tljmp $0xb0, $0x8000" : : : "eax", "memory");
}
static void real_mode(void) {
  u8 *at = (u8 *)0x8000;
  for (char *p = real_start; p < real_end; p++) *at++ = (u8)*p;
  u8 *back = (u8 *)(0x8000 + (back_idt - real_start));
  *(u16 *)back = sizeof idt - 1;
  *(u32 *)(back + 2) = (u32)idt;
  for (u32 i = 0; i < 32; i++) ((u16 *)0x9000)[i] = 0;
  probe_entry = probe_at_cpl0;
  run_probe(enter_real);
  for (u32 i = 0; i < 24; i++) {
    hex(((u16 *)0x9000)[i]);
    put(i % 8 == 7 ? '\n' : ' ');
  }
}

void guest_main(void) {
  for (int v = 0; v < 256; v++) set_gate(v, 0x8e, 8);
  set_gate(3, 0xee, 8), set_gate(4, 0xee, 8), set_gate(0x51, 0xee, 8), set_gate(0x80, 0xee, 8);
  struct {
    u16 limit;
    u32 base;
  } __attribute__((packed)) idtr = {sizeof idt - 1, (u32)idt};
  __asm__ volatile("lidt %0" : : "m"(idtr));
  out8(0x21, 0xff), out8(0xa1, 0xff);
  /* Where the 16-bit call gate leads: INT 0x51 at address 0. */
  __asm__ volatile("movw $0x51cd, 0" : : : "memory");
  tss[1] = (u32)(ring0_stack + sizeof ring0_stack);
  tss[2] = 0x10;
  tss[25] = 104 << 16;
  /* The I/O map allows port 0x80 alone: it lies beyond the 26 words, up to port 0x8f. */
  u8 *map = (u8 *)tss + 104;
  for (int i = 0; i < 20; i++) map[i] = 0xff;
  map[16] = 0xfe;
  set_system(0x60, tss, 104 + 18, 0x89);
  set_system(0x68, task_tss, 103, 0x89);
  set_system(0x80, ldt, sizeof ldt - 1, 0x82);
  set_system(0x90, task_tss16, 43, 0x81);
  set_system(0x98, small_tss, 60, 0x89);
  set_system(0xb8, small_tss, 103, 0x09);
  set_call_gate(0x78, 8, far_target, 0xec, 2);
  set_call_gate(0x88, 8, 0, 0xe4, 0);
  set_call_gate(0xa0, 8, far_target, 0x6c, 0);
  ldt[1] = gdt[1];
  ldt[2] = gdt[4];
  __asm__ volatile("ltr %0" : : "r"((u16)0x60));

  print("== segments\n"), segments();
  print("== selectors\n"), check_selectors();
  print("== far transfers\n"), far_transfers();
  print("== interrupts\n"), interrupts();
  print("== tasks\n"), tasks();
  virtual_8086();
  print("== ports\n"), ports();
  paging();
  print("== real-address mode\n"), real_mode();
  print("end\n");
  out8(0xf4, 0);
}

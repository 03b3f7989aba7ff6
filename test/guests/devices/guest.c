/*
 * The PC's chips, one line for each probe: what the registers read and which interrupts came. Nothing here depends on how
 * fast the processor is. The same image runs under QEMU, whose output is recorded beside it (golden.txt); the engine must
 * print the same. COM1 carries the output; COM2, connected to nothing, is the interrupt source that answers at once.
 */
#include <stdint.h>

typedef uint64_t u64;
typedef uint32_t u32;
typedef uint16_t u16;
typedef uint8_t u8;

extern char stubs[];

static inline void out8(u16 port, u8 value) { __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port) : "memory"); }
static inline u8 in8(u16 port) {
  u8 value;
  __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port) : "memory");
  return value;
}
static inline void out16(u16 port, u16 value) { __asm__ volatile("outw %0, %1" : : "a"(value), "Nd"(port)); }
static inline void out32(u16 port, u32 value) { __asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port)); }
static inline u16 in16(u16 port) {
  u16 value;
  __asm__ volatile("inw %1, %0" : "=a"(value) : "Nd"(port));
  return value;
}
static inline u32 in32(u16 port) {
  u32 value;
  __asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port));
  return value;
}
static u64 rdmsr(u32 index) {
  u32 low, high;
  __asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(index));
  return low | (u64)high << 32;
}
static void wrmsr(u32 index, u64 value) {
  __asm__ volatile("wrmsr" : : "c"(index), "a"((u32)value), "d"((u32)(value >> 32)) : "memory");
}
static u32 cpuid1(u32 *ebx) {
  u32 a = 1, b, c, d;
  __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "=c"(c), "=d"(d));
  *ebx = b;
  return d;
}

/* ---- output: the values of a probe are collected first, so that printing never disturbs what is probed ---- */

static u64 values[64];
static int value_count;

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
static void add(u64 value) { values[value_count++] = value; }
/* Ends a probe: prints its name and the values since the last probe. */
static void probe(const char *name) {
  print(name);
  print(":");
  for (int i = 0; i < value_count; i++) {
    put(' ');
    hex(values[i]);
  }
  print("\n");
  value_count = 0;
}

/* ---- interrupts: a log of vectors, and who gets an EOI ---- */

struct frame {
  u64 rax, vector, error, rip, cs, flags, rsp, ss;
};
struct idt_entry {
  u16 low, selector;
  u8 ist, type;
  u16 middle;
  u32 high, zero;
} __attribute__((packed));
static struct idt_entry idt[256];

static enum { EOI_NONE, EOI_PIC, EOI_APIC } eoi;
static volatile u32 taken[32], taken_count;
static volatile u64 taken_rax;
static void (*action)(void);

#define APIC(offset) (*(volatile u32 *)(0xfee00000UL + (offset)))

void interrupt(struct frame *frame) {
  if (taken_count < 32) taken[taken_count] = (u32)frame->vector;
  taken_count++;
  taken_rax = frame->rax;
  if (frame->vector < 32 && frame->vector != 2) {
    print("exception ");
    hex(frame->vector);
    print(" at ");
    hex(frame->rip);
    print("\n");
    out8(0xf4, 1);
  }
  if (action) action();
  if (frame->vector == 2) return;
  if (eoi == EOI_PIC) {
    if (frame->vector >= 0x28) out8(0xa0, 0x20);
    out8(0x20, 0x20);
  }
  if (eoi == EOI_APIC) APIC(0xb0) = 0;
}
/* Adds the vectors taken since the last time, and forgets them. */
static void add_taken(void) {
  for (u32 i = 0; i < taken_count && i < 32; i++) add(taken[i]);
  taken_count = 0;
}
static void window(void) { __asm__ volatile("sti\n\tnop\n\tnop\n\tcli" : : : "memory"); }
/* Sleeps until so many interrupts have been taken. */
static void sleep_until(u32 count) {
  while (taken_count < count) __asm__ volatile("sti\n\thlt\n\tcli" : : : "memory");
}

/* ---- interrupt sources that answer at once: COM2's transmitter (IRQ 3), keyboard controller (IRQ 1, IRQ 12) ---- */

static void com2_raise(void) { out8(0x2f9, 2); }
static void com2_lower(void) { out8(0x2f9, 0); }
static void controller_wait(void) {
  while (in8(0x64) & 2) {
  }
}
static void controller(u8 command) {
  controller_wait();
  out8(0x64, command);
}
static void controller_data(u8 command, u8 data) {
  controller(command);
  controller_wait();
  out8(0x60, data);
}
static void mouse_raise(void) { controller_data(0xd3, 0x5a); }
static void keyboard_raise(void) { controller_data(0xd2, 0xa5); }
static void controller_drain(void) {
  while (in8(0x64) & 1) in8(0x60);
}

/* ---- 8259 ---- */

static void pic_init_with(u8 master_icw4, u8 slave_icw4) {
  out8(0x20, 0x11);
  out8(0x21, 0x20);
  out8(0x21, 4);
  out8(0x21, master_icw4);
  out8(0xa0, 0x11);
  out8(0xa1, 0x28);
  out8(0xa1, 2);
  out8(0xa1, slave_icw4);
  out8(0x21, 0xff);
  out8(0xa1, 0xff);
}
static void pic_init(void) { pic_init_with(1, 1); }
static u8 irr(u16 pic) {
  out8(pic, 0x0a);
  return in8(pic);
}
static u8 isr(u16 pic) {
  out8(pic, 0x0b);
  return in8(pic);
}
static u8 poll(u16 pic) {
  out8(pic, 0x0c);
  return in8(pic);
}

static void pic(void) {
  eoi = EOI_NONE;
  com2_lower();
  controller_drain();
  pic_init();
  add(in8(0x21));
  add(in8(0xa1));
  probe("pic masks");
  out8(0x21, 0x5a);
  out8(0xa1, 0xa5);
  add(in8(0x21));
  add(in8(0xa1));
  out8(0x20, 0x11);
  add(in8(0x21));
  out8(0x21, 0x20);
  out8(0x21, 4);
  out8(0x21, 1);
  add(in8(0x21));
  probe("pic masks written, cleared by ICW1");
  pic_init();
  add(irr(0x20) & 0xfa);
  add(isr(0x20));
  com2_raise();
  add(irr(0x20) & 0xfa);
  add(isr(0x20));
  probe("pic IRR and ISR of a masked request");
  out8(0x21, 0xf7);
  window();
  add_taken();
  add(irr(0x20) & 0xfa);
  add(isr(0x20));
  out8(0x20, 0x20);
  add(isr(0x20));
  probe("pic request taken, EOI");
  window();
  add_taken();
  probe("pic edge taken once though the line is high");
  com2_lower();
  com2_raise();
  window();
  add_taken();
  probe("pic next edge");
  com2_lower();
  com2_raise();
  window();
  add_taken();
  add(irr(0x20) & 0xfa);
  out8(0x20, 0x20);
  window();
  add_taken();
  add(isr(0x20));
  out8(0x20, 0x20);
  probe("pic same level waits for EOI");
  com2_lower();

  /* Nesting: IRQ 3 in service, IRQ 1 comes through, IRQ 12 (below cascade 2) too. */
  pic_init();
  out8(0x21, 0xf1);
  out8(0xa1, 0xef);
  com2_raise();
  window();
  add_taken();
  keyboard_raise();
  window();
  add_taken();
  add(isr(0x20));
  controller_drain();
  mouse_raise();
  add(irr(0xa0) & 0x10);
  window();
  add_taken();
  probe("pic nesting: keyboard over COM2, mouse under keyboard");
  out8(0x20, 0x20);
  window();
  add_taken();
  add(isr(0x20));
  add(isr(0xa0));
  probe("pic EOI ends the highest");
  out8(0x20, 0x63);
  add(isr(0x20));
  probe("pic specific EOI");
  controller_drain();
  com2_lower();

  /* Slave's priorities, and master's ISR bit 2. */
  pic_init();
  out8(0x21, 0xfb);
  out8(0xa1, 0xef);
  mouse_raise();
  add(irr(0x20) & 4);
  window();
  add_taken();
  add(isr(0x20));
  add(isr(0xa0));
  out8(0xa0, 0x20);
  add(isr(0x20));
  add(isr(0xa0));
  out8(0x20, 0x62);
  add(isr(0x20));
  probe("pic slave request");
  controller_drain();

  pic_init();
  out8(0x21, 0xf5);
  com2_raise();
  window();
  out8(0x20, 0x68);
  add_taken();
  keyboard_raise();
  com2_lower();
  com2_raise();
  add(isr(0x20));
  window();
  add_taken();
  probe("pic special mask, level not masked");
  out8(0x21, 0xfd);
  add(isr(0x20));
  window();
  add_taken();
  add(in8(0x21));
  out8(0x20, 0x48);
  probe("pic special mask, level masked");
  controller_drain();
  com2_lower();

  pic_init();
  out8(0x21, 0xf5);
  out8(0x20, 0xc2);
  com2_raise();
  keyboard_raise();
  add(irr(0x20) & 0xfa);
  window();
  add_taken();
  add(isr(0x20));
  out8(0x20, 0x20);
  window();
  add_taken();
  add(isr(0x20));
  out8(0x20, 0x20);
  probe("pic set priority: 3 is highest");
  controller_drain();
  com2_lower();
  pic_init();
  out8(0x21, 0xf5);
  keyboard_raise();
  window();
  add_taken();
  out8(0x20, 0xa0);
  add(isr(0x20));
  controller_drain();
  keyboard_raise();
  com2_raise();
  window();
  add_taken();
  add(isr(0x20));
  out8(0x20, 0xe3);
  add(isr(0x20));
  probe("pic rotate on EOI: 1 is lowest now");
  window();
  add_taken();
  add(isr(0x20));
  out8(0x20, 0x20);
  probe("pic rotate on specific EOI");
  controller_drain();
  com2_lower();

  pic_init_with(3, 1);
  out8(0x21, 0xf7);
  com2_raise();
  window();
  add_taken();
  add(isr(0x20));
  probe("pic automatic EOI");
  com2_lower();
  pic_init_with(3, 1);
  out8(0x21, 0xf5);
  out8(0x20, 0x80);
  keyboard_raise();
  window();
  add_taken();
  controller_drain();
  keyboard_raise();
  com2_raise();
  window();
  add_taken();
  out8(0x20, 0);
  probe("pic rotation in automatic EOI");
  controller_drain();
  com2_lower();

  for (u8 icw4 = 1; icw4 <= 0x11; icw4 += 0x10) {
    pic_init_with(icw4, 1);
    out8(0x21, 0xfb);
    out8(0xa1, 0xef);
    mouse_raise();
    window();
    out8(0xa0, 0x20);
    controller_drain();
    mouse_raise();
    window();
    add_taken();
    add(isr(0x20));
    add(isr(0xa0));
    controller_drain();
    probe(icw4 == 1 ? "pic slave again, fully nested" : "pic slave again, special fully nested");
  }
  out8(0x20, 0x13);
  out8(0x21, 0x20);
  out8(0x21, 1);
  out8(0x21, 0x7e);
  add(in8(0x21));
  out8(0x20, 0x12);
  out8(0x21, 0x20);
  out8(0x21, 0x3c);
  add(in8(0x21));
  probe("pic single, without ICW4");

  pic_init();
  out8(0x21, 0xf7);
  add(poll(0x20) & 0x80);
  com2_raise();
  add(poll(0x20));
  add(isr(0x20));
  add(irr(0x20) & 0xfa);
  window();
  add_taken();
  out8(0x20, 0x20);
  add(isr(0x20));
  probe("pic poll");
  com2_lower();

  pic_init();
  out8(0x4d0, 0xff);
  out8(0x4d1, 0xff);
  add(in8(0x4d0));
  add(in8(0x4d1));
  out8(0x4d0, 0);
  out8(0x4d1, 0);
  add(in8(0x4d0));
  add(in8(0x4d1));
  probe("pic ELCR");
  out8(0x4d0, 8);
  com2_raise();
  add(irr(0x20) & 8);
  com2_lower();
  add(irr(0x20) & 8);
  com2_raise();
  out8(0x21, 0xf7);
  window();
  add_taken();
  out8(0x20, 0x20);
  window();
  add_taken();
  add(irr(0x20) & 8);
  com2_lower();
  add(irr(0x20) & 8);
  out8(0x20, 0x20);
  window();
  add_taken();
  add(isr(0x20));
  out8(0x4d0, 0);
  probe("pic level-triggered request");

  com2_raise();
  out8(0x20, 0x0a);
  out8(0x20, 0x08);
  add(in8(0x20) & 8);
  out8(0x20, 0x0b);
  out8(0x20, 0x09);
  add(in8(0x20) & 8);
  com2_lower();
  probe("pic OCW3 without read command keeps the register");
  pic_init();
  out8(0x20, 0x0b);
  add(in8(0x20));
  add(in8(0x20));
  out8(0x20, 0x11);
  out8(0x21, 0x40);
  out8(0x21, 4);
  out8(0x21, 1);
  com2_raise();
  add(in8(0x20) & 8);
  out8(0x21, 0xf7);
  window();
  add_taken();
  out8(0x20, 0x20);
  com2_lower();
  probe("pic another vector base, IRR read after ICW1");
  pic_init();
}

/* ---- 8254 ---- */

static u8 pit_status(int channel) {
  out8(0x43, 0xe0 | (u8)(2 << channel));
  return in8(0x40 + (u16)channel) & 0xbf; /* without NULL COUNT, which neither QEMU nor KVM keep */
}
static u16 pit_word(int channel) {
  u16 low = in8(0x40 + (u16)channel);
  return (u16)(low | in8(0x40 + (u16)channel) << 8);
}
/* 0 when a counter that was loaded with `from` just now has gone down by less than 0x1000. */
static u16 since(u16 from, u16 now) { return (u16)(from - now) & 0xf000; }

static void pit0_low(void) {
  out8(0x43, 0x30);
  out8(0x40, 0xff);
  out8(0x40, 0xff);
}
static void pit0_fire(void) {
  out8(0x43, 0x30);
  out8(0x40, 0x10);
  out8(0x40, 0);
}

static void pit(void) {
  out8(0x61, 0);
  for (int mode = 0; mode < 6; mode++) {
    out8(0x43, (u8)(0xb0 | mode << 1));
    out8(0x42, 0);
    out8(0x42, 0x80);
    add(pit_status(2) & 0x3f);
  }
  probe("pit status of modes 0..5");
  out8(0x43, 0xb1);
  out8(0x42, 0x99);
  out8(0x42, 0x99);
  add(pit_status(2) & 0x7f);
  out8(0x43, 0x90);
  out8(0x42, 0x80);
  add(pit_status(2) & 0x7f);
  out8(0x43, 0xa0);
  out8(0x42, 0x80);
  add(pit_status(2) & 0x7f);
  probe("pit status: BCD, low byte, high byte");

  out8(0x61, 1);
  out8(0x43, 0xb0);
  out8(0x42, 0);
  out8(0x42, 0xf0);
  add(pit_status(2));
  add(in8(0x61) & 0x23);
  add(since(0xf000, pit_word(2)));
  out8(0x43, 0x80);
  u16 first = pit_word(2);
  u16 second = pit_word(2);
  add(since(0xf000, first));
  add(second <= first);
  probe("pit mode 0, count running");
  out8(0x43, 0x80);
  for (int i = 0; i < 100; i++) in8(0x61);
  out8(0x43, 0x80);
  first = pit_word(2);
  second = pit_word(2);
  add(second < first);
  out8(0x43, 0xd8);
  for (int i = 0; i < 100; i++) in8(0x61);
  first = pit_word(2);
  second = pit_word(2);
  add(second < first);
  probe("pit latched count stays");
  out8(0x43, 0xc8);
  add(in8(0x42) & 0xbf);
  first = pit_word(2);
  add(since(0xf000, first));
  out8(0x43, 0xe8);
  out8(0x43, 0xe8);
  add(in8(0x42) & 0xbf);
  add(since(0xf000, pit_word(2)));
  probe("pit read-back: status before count, status once");
  out8(0x43, 0xb0);
  out8(0x42, 0x20);
  out8(0x42, 0);
  add(pit_status(2) & 0x3f);
  while (!(pit_status(2) & 0x80)) {
  }
  add(pit_status(2));
  add(in8(0x61) & 0x20);
  out8(0x43, 0xb0);
  out8(0x42, 0);
  out8(0x42, 0xf0);
  add(pit_status(2));
  add(in8(0x61) & 0x20);
  probe("pit mode 0, out");
  out8(0x43, 0xb4);
  out8(0x42, 0);
  out8(0x42, 0xf0);
  add(pit_status(2));
  add(since(0xf000, pit_word(2)));
  probe("pit mode 2");
  out8(0x43, 0xb6);
  out8(0x42, 0);
  out8(0x42, 0xf0);
  add(pit_status(2));
  add(since(0xf000, pit_word(2)));
  add(pit_word(2) & 1);
  probe("pit mode 3");
  out8(0x43, 0xb5);
  out8(0x42, 0);
  out8(0x42, 0x90);
  int decimal = 1;
  for (int i = 0; i < 200; i++) {
    first = pit_word(2);
    decimal &= (first & 15) < 10 && (first >> 4 & 15) < 10 && (first >> 8 & 15) < 10;
  }
  add(decimal);
  probe("pit mode 2, BCD");
  out8(0x43, 0x94);
  out8(0x42, 0xf0);
  first = in8(0x42);
  second = in8(0x42);
  add(first <= 0xf0 && second <= 0xf0);
  out8(0x43, 0xa4);
  out8(0x42, 0xf8);
  first = in8(0x42);
  second = in8(0x42);
  add(first >> 4);
  add(second >> 4);
  probe("pit single bytes");
  out8(0x61, 0);
  out8(0x43, 0xb2);
  add(pit_status(2) & 0x80);
  out8(0x42, 0x00);
  out8(0x42, 0xf0);
  add(pit_status(2) & 0x80);
  out8(0x61, 1);
  for (int i = 0; i < 4; i++) in8(0x61);
  add(pit_status(2) & 0x80);
  probe("pit mode 1, out: control word, count, trigger");
  out8(0x43, 0xb8);
  add(pit_status(2) & 0x80);
  out8(0x42, 0x00);
  out8(0x42, 0xf0);
  add(pit_status(2) & 0x80);
  add(since(0xf000, pit_word(2)));
  probe("pit mode 4, out: control word, count");
  out8(0x61, 0);
  out8(0x43, 0xba);
  add(pit_status(2) & 0x80);
  out8(0x42, 0x00);
  out8(0x42, 0xf0);
  out8(0x61, 1);
  add(pit_status(2) & 0x80);
  add(since(0xf000, pit_word(2)));
  probe("pit mode 5, out: control word, trigger");
  out8(0x43, 0xb4);
  out8(0x42, 0x00);
  out8(0x42, 0xf0);
  do {
    out8(0x43, 0x80);
  } while (!since(0xf000, pit_word(2)));
  out8(0x61, 0);
  out8(0x61, 1);
  add(since(0xf000, pit_word(2)));
  probe("pit mode 2 begins again with the gate");
  out8(0x43, 0xb0);
  out8(0x42, 0x34);
  out8(0x43, 0xb0);
  out8(0x42, 0x00);
  out8(0x42, 0xa0);
  add(since(0xa000, pit_word(2)));
  probe("pit control word forgets a low byte");
  out8(0x61, 0);
  add(in8(0x61) & 3);
  out8(0x61, 1);
  add(in8(0x61) & 3);
  out8(0x61, 2);
  add(in8(0x61) & 3);
  out8(0x61, 3);
  add(in8(0x61) & 3);
  out8(0x61, 0);
  probe("port 61 bits");
  u8 refresh = in8(0x61) & 0x10;
  while ((in8(0x61) & 0x10) == refresh) {
  }
  while ((in8(0x61) & 0x10) != refresh) {
  }
  probe("port 61 refresh bit changes");

  pic_init();
  out8(0x43, 0x34);
  out8(0x40, 0x00);
  out8(0x40, 0x10);
  eoi = EOI_PIC;
  out8(0x21, 0xfe);
  sleep_until(3);
  out8(0x21, 0xff);
  taken_count = 3;
  add_taken();
  probe("pit mode 2 interrupts");
  out8(0x43, 0x36);
  out8(0x40, 0x00);
  out8(0x40, 0x10);
  out8(0x21, 0xfe);
  sleep_until(2);
  out8(0x21, 0xff);
  taken_count = 2;
  add_taken();
  probe("pit mode 3 interrupts");
  pit0_low();
  pic_init();
  out8(0x21, 0xfe);
  window();
  add_taken();
  pit0_fire();
  sleep_until(1);
  add_taken();
  add(pit_status(0));
  probe("pit mode 0 interrupt");
  window();
  add_taken();
  probe("pit mode 0 comes once");
  pit0_low();
  pic_init();
}

/* ---- interrupt windows ---- */

static void windows(void) {
  eoi = EOI_PIC;
  action = com2_lower;
  pic_init();
  out8(0x21, 0xf7);
  com2_raise();
  __asm__ volatile("xorl %%eax, %%eax\n\tsti\n\tincl %%eax\n\tincl %%eax\n\tcli" : : : "rax", "memory");
  add(taken_rax);
  add_taken();
  probe("sti shadow");
  com2_raise();
  __asm__ volatile("sti\n\tcli" : : : "memory");
  add_taken();
  com2_lower();
  probe("sti, cli");
  pic_init();
  out8(0x21, 0xf7);
  com2_raise();
  __asm__ volatile(
      "xorl %%eax, %%eax\n\tpushfq\n\torl $0x200, (%%rsp)\n\tpopfq\n\tincl %%eax\n\tincl %%eax\n\tcli"
      :
      :
      : "rax", "memory");
  add(taken_rax);
  add_taken();
  probe("popf has no shadow");
  com2_raise();
  __asm__ volatile(
      "movl %%ss, %%ecx\n\txorl %%eax, %%eax\n\tsti\n\tmovl %%ecx, %%ss\n\tincl %%eax\n\tincl %%eax\n\tcli"
      :
      :
      : "rax", "rcx", "memory");
  add(taken_rax == 0 || taken_rax == 1);
  add_taken();
  probe("mov ss behind sti");
  com2_raise();
  __asm__ volatile("xorl %%eax, %%eax\n\tsti\n\thlt\n\tincl %%eax\n\tcli" : : : "rax", "memory");
  add(taken_rax);
  add_taken();
  probe("sti, hlt with a request waiting");
  action = 0;
  pit0_low();
  pic_init();
  out8(0x21, 0xfe);
  __asm__ volatile(
      "xorl %%eax, %%eax\n\tmovb $0x30, %%al\n\toutb %%al, $0x43\n\tmovb $0x40, %%al\n\toutb %%al, $0x40\n\t"
      "xorl %%eax, %%eax\n\toutb %%al, $0x40\n\tsti\n\thlt\n\tincl %%eax\n\tcli"
      :
      :
      : "rax", "memory");
  add(taken_rax);
  add_taken();
  probe("hlt woken by the timer");
  pit0_low();
  pic_init();
}

/* ---- real-time clock ---- */

static u8 cmos(u8 index) {
  out8(0x70, index);
  return in8(0x71);
}
static void set_cmos(u8 index, u8 value) {
  out8(0x70, index);
  out8(0x71, value);
}
static void set_clock(u8 year, u8 month, u8 day, u8 weekday, u8 hour, u8 minute, u8 second) {
  set_cmos(9, year);
  set_cmos(8, month);
  set_cmos(7, day);
  set_cmos(6, weekday);
  set_cmos(4, hour);
  set_cmos(2, minute);
  set_cmos(0, second);
}
static void add_clock(void) {
  static const u8 cells[] = {0x32, 9, 8, 7, 6, 4, 2, 0};
  for (int i = 0; i < 8; i++) add(cmos(cells[i]));
}
static u8 rtc_flags;
static void read_rtc_flags(void) { rtc_flags = cmos(0x0c); }
/* Lets the clock make its next update, by its interrupt, with these other enables. */
static void next_update(u8 control) {
  cmos(0x0c);
  rtc_flags = 0;
  eoi = EOI_PIC;
  action = read_rtc_flags;
  set_cmos(0x0b, control | 0x10);
  out8(0x21, 0xfb);
  out8(0xa1, 0xfe);
  sleep_until(1);
  out8(0x21, 0xff);
  out8(0xa1, 0xff);
  action = 0;
}

static void rtc(void) {
  pic_init();
  set_cmos(0x0a, 0x26);
  set_cmos(0x0b, 0x02);
  cmos(0x0c);
  add(cmos(0x0a) & 0x7f);
  add(cmos(0x0b));
  add(cmos(0x0d));
  add(in8(0x70));
  probe("rtc A, B, D, index");
  set_cmos(0x0d, 0);
  set_cmos(0x0c, 0xff);
  add(cmos(0x0d));
  add(cmos(0x0c) & 0x8f);
  probe("rtc C and D are read-only");
  set_cmos(0x50, 0x12);
  set_cmos(0x51, 0x34);
  set_cmos(0xd0, 0x56);
  add(cmos(0x50));
  add(cmos(0x51));
  add(cmos(0xd1));
  probe("rtc cmos cells, bit 7 of the index");
  set_cmos(0x0b, 0x82);
  set_cmos(0x32, 0x20);
  set_clock(0x24, 0x02, 0x28, 0x04, 0x23, 0x59, 0x59);
  add_clock();
  set_cmos(0x0b, 0x92);
  add(cmos(0x0b));
  set_cmos(0x0b, 0x82);
  probe("rtc set");
  set_cmos(1, 0);
  set_cmos(3, 0);
  set_cmos(5, 0);
  set_cmos(0x0b, 0x02);
  next_update(0x22);
  add_clock();
  add(rtc_flags & 0xbf);
  add_taken();
  add(cmos(0x0c) & 0xb0);
  probe("rtc leap day, alarm at midnight");
  set_cmos(1, 0x59);
  next_update(0x02);
  add_clock();
  add(rtc_flags & 0xbf);
  add_taken();
  probe("rtc next second, no alarm");
  set_cmos(1, 0xff);
  set_cmos(3, 0xc0);
  set_cmos(5, 0xff);
  next_update(0x02);
  add(rtc_flags & 0xbf);
  add_taken();
  probe("rtc alarm by wildcards");
  set_cmos(0x0b, 0x84);
  set_cmos(0x32, 19);
  set_clock(99, 12, 31, 6, 0x8b, 59, 59);
  set_cmos(0x0b, 0x04);
  next_update(0x04);
  add_clock();
  add_taken();
  probe("rtc binary, 12 hours, end of 1999");
  set_cmos(0x0b, 0x80);
  set_cmos(0x32, 0x20);
  set_clock(0x23, 0x02, 0x28, 0x03, 0x12, 0x59, 0x59);
  set_cmos(0x0b, 0x00);
  next_update(0x00);
  add_clock();
  add_taken();
  probe("rtc bcd, 12 hours, after half past midnight");
  set_cmos(0x0b, 0x80);
  set_clock(0x23, 0x02, 0x28, 0x03, 0x91, 0x59, 0x59);
  set_cmos(0x0b, 0x00);
  next_update(0x00);
  add_clock();
  add_taken();
  probe("rtc bcd, 12 hours, noon");
  set_cmos(0x0b, 0x82);
  set_cmos(0x0a, 0x26);
  cmos(0x0c);
  set_cmos(0x0b, 0x42);
  eoi = EOI_PIC;
  out8(0x21, 0xfb);
  out8(0xa1, 0xfe);
  sleep_until(1);
  add(irr(0xa0) & 1);
  add(cmos(0x0c) & 0xc0);
  add(cmos(0x0c) & 0xc0);
  add_taken();
  sleep_until(1);
  add_taken();
  set_cmos(0x0b, 0x02);
  add(cmos(0x0c) & 0xc0);
  probe("rtc periodic interrupt");
  pic_init();
  cmos(0x0c);
}

/* ---- 16550 ---- */

static u8 loop_back(u8 mcr) {
  out8(0x2fc, (u8)(0x10 | mcr));
  return in8(0x2fe) & 0xf0;
}

static void uart(void) {
  pic_init();
  out8(0x2fb, 0x03);
  out8(0x2f9, 0);
  out8(0x2fa, 0);
  out8(0x2fc, 0);
  add(in8(0x2fa));
  out8(0x2fa, 1);
  add(in8(0x2fa));
  out8(0x2fa, 0xc7);
  add(in8(0x2fa));
  out8(0x2fa, 0);
  add(in8(0x2fa));
  probe("uart fifo bits of IIR");
  out8(0x2ff, 0x5a);
  add(in8(0x2ff));
  out8(0x2ff, 0xa5);
  add(in8(0x2ff));
  probe("uart scratch");
  out8(0x2fb, 0x83);
  out8(0x2f8, 0x34);
  out8(0x2f9, 0x12);
  add(in8(0x2f8));
  add(in8(0x2f9));
  add(in8(0x2fb));
  out8(0x2fb, 0x03);
  add(in8(0x2f9));
  out8(0x2f9, 0xff);
  add(in8(0x2f9));
  out8(0x2f9, 0);
  out8(0x2fb, 0x83);
  add(in8(0x2f9));
  out8(0x2f8, 1);
  out8(0x2f9, 0);
  out8(0x2fb, 0x03);
  add(in8(0x2fb));
  probe("uart divisor latch, IER");
  add(in8(0x2fd));
  out8(0x2fc, 0x1f);
  add(in8(0x2fc));
  out8(0x2fc, 0xff);
  add(in8(0x2fc));
  out8(0x2fc, 0);
  probe("uart LSR, MCR");
  out8(0x2fd, 0xff);
  add(in8(0x2fd));
  out8(0x2fb, 0x43);
  add(in8(0x2fb));
  out8(0x2fb, 0x03);
  add(in8(0x2fe) & 0xf0);
  probe("uart LSR is read-only, LCR break, MSR");
  for (u8 mcr = 0; mcr < 16; mcr++) add(loop_back(mcr));
  probe("uart loopback modem lines");
  out8(0x2fc, 0x10);
  in8(0x2fe);
  in8(0x2fd);
  add(in8(0x2fd) & 1);
  out8(0x2f8, 0x77);
  while (!(in8(0x2fd) & 1)) {
  }
  add(in8(0x2fd));
  add(in8(0x2f8));
  add(in8(0x2fd));
  probe("uart loopback byte");
  out8(0x2f9, 7);
  add(in8(0x2fa));
  add(in8(0x2fa));
  out8(0x2f8, 0x21);
  while (!(in8(0x2fd) & 1)) {
  }
  add(in8(0x2fa));
  add(in8(0x2f8));
  add(in8(0x2fa));
  add(in8(0x2fa));
  probe("uart IIR: transmitter, data before transmitter");
  out8(0x2f9, 0);
  out8(0x2f9, 2);
  add(in8(0x2fa));
  out8(0x2f9, 0);
  add(in8(0x2fa));
  out8(0x2f9, 2);
  out8(0x2f9, 2);
  add(in8(0x2fa));
  out8(0x2f9, 0);
  probe("uart IIR: enabling the transmitter's interrupt");
  out8(0x2fa, 0x87);
  for (u8 i = 0; i < 8; i++) {
    out8(0x2f8, (u8)(i + 0x40));
    while (!(in8(0x2fd) & 0x40)) {
    }
  }
  out8(0x2f9, 1);
  add(in8(0x2fa) & 0xc7); /* without the time-out, which may have come */
  add(in8(0x2fd));
  for (u8 i = 0; i < 8; i++) add(in8(0x2f8));
  add(in8(0x2fd));
  add(in8(0x2fa));
  out8(0x2f9, 0);
  probe("uart FIFO of 8 with trigger 8");
  for (u8 i = 0; i < 4; i++) {
    out8(0x2f8, i);
    while (!(in8(0x2fd) & 0x40)) {
    }
  }
  out8(0x2fa, 0x83);
  add(in8(0x2fd));
  probe("uart FIFO cleared");
  out8(0x2f8, 0x66);
  out8(0x2f9, 1);
  while ((in8(0x2fa) & 0xf) != 0xc) {
  }
  add(in8(0x2fa));
  add(in8(0x2f8));
  add(in8(0x2fa));
  out8(0x2f9, 0);
  probe("uart FIFO time-out");
  for (u8 i = 0; i < 17; i++) {
    out8(0x2f8, (u8)(i + 0x50));
    while (!(in8(0x2fd) & 0x40)) {
    }
    if (i == 15) out8(0x2f9, 4);
    if (i == 15) add(in8(0x2fa));
  }
  /* The wait above has read the overrun. */
  add(in8(0x2fd));
  for (u8 i = 0; i < 16; i++) add(in8(0x2f8));
  add(in8(0x2fd));
  out8(0x2f9, 0);
  probe("uart FIFO overrun");
  out8(0x2fa, 0);
  out8(0x2f9, 5);
  in8(0x2fd);
  out8(0x2f8, 0x71);
  out8(0x2f8, 0x72);
  for (int i = 0; i < 2000; i++) in8(0x61);
  add(in8(0x2fa));
  add(in8(0x2fd));
  add(in8(0x2fa));
  add(in8(0x2f8));
  add(in8(0x2fa));
  add(in8(0x2fd));
  out8(0x2f9, 0);
  probe("uart overrun without FIFO");
  out8(0x2fa, 0);
  out8(0x2fc, 8);
  in8(0x2fa);
  out8(0x21, 0xf7);
  eoi = EOI_PIC;
  action = com2_lower;
  out8(0x2f9, 2);
  window();
  add_taken();
  add(in8(0x2fa));
  action = 0;
  probe("uart interrupt");
  pic_init();
}

/* ---- local APIC ---- */

static u32 in_service(u8 vector) { return APIC(0x100 + (vector >> 5) * 0x10) >> (vector & 31) & 1; }
static u32 trigger_level(u8 vector) { return APIC(0x180 + (vector >> 5) * 0x10) >> (vector & 31) & 1; }
static u32 requested(u8 vector) { return APIC(0x200 + (vector >> 5) * 0x10) >> (vector & 31) & 1; }
static void ipi(u32 destination, u32 low) {
  APIC(0x310) = destination << 24;
  APIC(0x300) = low;
  while (APIC(0x300) & 0x1000) {
  }
}
static u64 read_cr8(void) {
  u64 v;
  __asm__ volatile("mov %%cr8, %0" : "=r"(v));
  return v;
}
static void write_cr8(u64 v) { __asm__ volatile("mov %0, %%cr8" : : "r"(v) : "memory"); }

static void nmi_in_nmi(void) {
  if (taken_count > 1) return;
  ipi(0, 0x00400);
  ipi(0, 0x00400);
  for (int i = 0; i < 4; i++) __asm__ volatile("nop");
  add(taken_count);
}

static void local_apic(void) {
  u32 ebx;
  eoi = EOI_NONE;
  u32 edx = cpuid1(&ebx);
  add(edx >> 9 & 1);
  add(ebx >> 24);
  add(rdmsr(0x1b) & 0xfffff900);
  probe("apic cpuid, base");
  APIC(0xf0) = 0x1ff;
  add(APIC(0x20));
  add(APIC(0x30) & 0xff00ff);
  add(APIC(0xf0));
  add(APIC(0xe0));
  probe("apic id, version, SVR, DFR");
  APIC(0xf0) = 0x1f3;
  add(APIC(0xf0));
  APIC(0xf0) = 0x1ff;
  APIC(0xe0) = 0;
  add(APIC(0xe0));
  APIC(0xe0) = 0xf0000000;
  add(APIC(0xe0));
  APIC(0xd0) = 0x12345678;
  add(APIC(0xd0));
  APIC(0xd0) = 0x01000000;
  add(APIC(0xd0));
  APIC(0x310) = 0x12345678;
  add(APIC(0x310));
  APIC(0x3e0) = 0xffffffff;
  add(APIC(0x3e0));
  APIC(0x80) = 0x1ff;
  add(APIC(0x80));
  APIC(0x80) = 0;
  probe("apic registers written: SVR, DFR, LDR, ICR, DCR, TPR");
  static const u16 entries[] = {0x320, 0x330, 0x340, 0x350, 0x360, 0x370};
  for (int i = 0; i < 6; i++) {
    APIC(entries[i]) = 0xfffbafff;
    add(APIC(entries[i]));
    APIC(entries[i]) = 0x10000;
    add(APIC(entries[i]));
  }
  probe("apic LVT: timer, thermal, performance, LINT0, LINT1, error");
  APIC(0x280) = 0;
  APIC(0x280) = 0;
  add(APIC(0x280));
  probe("apic ESR");

  ipi(0, 0x40051);
  add(requested(0x51));
  add(in_service(0x51));
  window();
  add_taken();
  add(requested(0x51));
  add(in_service(0x51));
  add(APIC(0xa0));
  APIC(0x80) = 0x23;
  add(APIC(0xa0));
  APIC(0x80) = 0x53;
  add(APIC(0xa0));
  APIC(0x80) = 0x63;
  add(APIC(0xa0));
  APIC(0x80) = 0;
  APIC(0xb0) = 0;
  add(in_service(0x51));
  add(APIC(0xa0));
  probe("apic self IPI: IRR, ISR, PPR");
  ipi(0, 0x40051);
  window();
  ipi(0, 0x40052);
  ipi(0, 0x40041);
  window();
  add_taken();
  ipi(0, 0x40061);
  window();
  add_taken();
  APIC(0xb0) = 0;
  window();
  add_taken();
  APIC(0xb0) = 0;
  window();
  add_taken();
  APIC(0xb0) = 0;
  window();
  add_taken();
  APIC(0xb0) = 0;
  window();
  add_taken();
  add(APIC(0xa0));
  probe("apic priority classes");
  eoi = EOI_APIC;
  ipi(0, 0x40051);
  ipi(0, 0x400f1);
  ipi(0, 0x40031);
  ipi(0, 0x40051);
  window();
  window();
  window();
  add_taken();
  probe("apic order, one bit for each vector");
  APIC(0x80) = 0x50;
  ipi(0, 0x4005f);
  ipi(0, 0x40060);
  window();
  add_taken();
  add(requested(0x5f));
  add(read_cr8());
  write_cr8(4);
  add(APIC(0x80));
  window();
  add_taken();
  write_cr8(0);
  probe("apic TPR, CR8");
  ipi(0, 0x00052);
  window();
  add_taken();
  ipi(1, 0x00053);
  window();
  add_taken();
  ipi(0xff, 0x00054);
  window();
  add_taken();
  ipi(0, 0x80055);
  window();
  add_taken();
  ipi(0, 0xc0056);
  window();
  add_taken();
  probe("apic destinations: 0, 1, ff, all, all but self");
  APIC(0xd0) = 0x06000000;
  ipi(2, 0x00857);
  window();
  add_taken();
  ipi(8, 0x00858);
  window();
  add_taken();
  ipi(6, 0x00959);
  window();
  add_taken();
  APIC(0xe0) = 0x0fffffff;
  APIC(0xd0) = 0x12000000;
  ipi(0x12, 0x0085a);
  window();
  add_taken();
  ipi(0x22, 0x0085b);
  window();
  add_taken();
  ipi(0x13, 0x0085c);
  window();
  add_taken();
  ipi(0x11, 0x0085d);
  window();
  add_taken();
  APIC(0xe0) = 0xffffffff;
  APIC(0xd0) = 0x01000000;
  probe("apic logical destinations: flat 2, 8, 6 lowest priority, cluster 12, 22, 13, 11");
  ipi(0, 0x00400);
  for (int i = 0; i < 4; i++) __asm__ volatile("nop");
  add_taken();
  probe("apic NMI to itself with IF clear");
  action = nmi_in_nmi;
  ipi(0, 0x00400);
  for (int i = 0; i < 4; i++) __asm__ volatile("nop");
  action = 0;
  add_taken();
  probe("apic NMIs in the NMI handler wait, as one");
  ipi(0, 0x00052);
  add(APIC(0x300));
  window();
  taken_count = 0;
  ipi(0, 0x0cc51);
  add(APIC(0x300));
  window();
  add_taken();
  add(trigger_level(0x51));
  probe("apic ICR read back");
  add(APIC(0x90));
  add(APIC(0xb0));
  add(APIC(0xc0));
  APIC(0x30) = 0;
  add(APIC(0x30) & 0xff00ff);
  probe("apic APR, EOI, RRD, version read-only");

  APIC(0x3e0) = 0xb;
  APIC(0x320) = 0x10060;
  APIC(0x380) = 0xffffffff;
  u32 first = APIC(0x390);
  for (int i = 0; i < 100; i++) in8(0x61);
  u32 second = APIC(0x390);
  add(APIC(0x380));
  add(second < first);
  APIC(0x380) = 0;
  add(APIC(0x390));
  probe("apic timer counts, 0 stops it");
  static const u8 divisors[] = {0, 1, 2, 3, 8, 9, 0xa, 0xb};
  for (int i = 0; i < 8; i++) {
    APIC(0x3e0) = divisors[i];
    APIC(0x380) = 1000;
    while (APIC(0x390)) {
    }
    add(APIC(0x3e0));
    add(APIC(0x390));
  }
  add(requested(0x60));
  probe("apic timer, one shot, masked, all divisors");
  APIC(0x3e0) = 0xb;
  APIC(0x320) = 0x60;
  APIC(0x380) = 1000;
  while (APIC(0x390)) {
  }
  while (!requested(0x60)) {
  }
  add(APIC(0x380));
  window();
  add_taken();
  for (int i = 0; i < 100; i++) in8(0x61);
  add(requested(0x60));
  add(APIC(0x390));
  probe("apic timer, one shot");
  APIC(0x320) = 0x20061;
  APIC(0x380) = 100000;
  sleep_until(3);
  APIC(0x320) = 0x10061;
  APIC(0x380) = 0;
  window();
  taken_count = 3;
  add_taken();
  probe("apic timer, periodic");
  APIC(0x320) = 0x62;
  APIC(0x380) = 100000;
  sleep_until(1);
  add_taken();
  add(APIC(0x390));
  APIC(0x320) = 0x10000;
  probe("apic timer wakes from hlt");

  APIC(0x340) = 0x400;
  APIC(0x350) = 0x700;
  APIC(0xf0) = 0xff;
  add(APIC(0xf0));
  add(APIC(0x340));
  add(APIC(0x350));
  APIC(0x350) = 0x700;
  add(APIC(0x350));
  ipi(0, 0x40051);
  add(requested(0x51));
  APIC(0xf0) = 0x1ff;
  APIC(0x340) = 0x10000;
  APIC(0x350) = 0x10000;
  window();
  taken_count = 0;
  probe("apic disabled by software: SVR, LVT masked, IPI");
}

/* ---- 8259 behind LINT0 ---- */

static void ext_int(void) {
  eoi = EOI_PIC;
  action = com2_lower;
  pic_init();
  out8(0x21, 0xf7);
  APIC(0x350) = 0x10700;
  com2_raise();
  window();
  add_taken();
  add(irr(0x20) & 8);
  APIC(0x350) = 0x700;
  window();
  add_taken();
  add(in_service(0x23));
  add(requested(0x23));
  probe("LINT0 as ExtINT: masked, open");
  APIC(0x80) = 0xff;
  com2_raise();
  window();
  add_taken();
  APIC(0x80) = 0;
  probe("ExtINT ignores TPR");
  eoi = EOI_NONE;
  ipi(0, 0x40051);
  com2_raise();
  window();
  window();
  add(taken_count);
  add(in_service(0x51));
  APIC(0xb0) = 0;
  taken_count = 0;
  out8(0x20, 0x20);
  probe("ExtINT beside an APIC interrupt");
  action = 0;
  com2_lower();
  APIC(0x350) = 0x10700;
  pic_init();
}

/* ---- I/O APIC ---- */

static u32 io_apic(u8 index) {
  *(volatile u32 *)0xfec00000UL = index;
  return *(volatile u32 *)0xfec00010UL;
}
static void set_io_apic(u8 index, u32 value) {
  *(volatile u32 *)0xfec00000UL = index;
  *(volatile u32 *)0xfec00010UL = value;
}
static void redirect(u8 pin, u32 low) {
  set_io_apic((u8)(0x11 + 2 * pin), 0);
  set_io_apic((u8)(0x10 + 2 * pin), low);
}
static u32 redirection(u8 pin) { return io_apic((u8)(0x10 + 2 * pin)); }

static void io_apics(void) {
  eoi = EOI_NONE;
  for (u8 pin = 0; pin < 24; pin++) redirect(pin, 0x10000);
  add(io_apic(1) >> 16);
  set_io_apic(0, 0xffffffff);
  add(io_apic(0));
  set_io_apic(0, 0);
  add(io_apic(0));
  *(volatile u32 *)0xfec00000UL = 0x17;
  add(*(volatile u32 *)0xfec00000UL);
  probe("ioapic entries, id, select");
  set_io_apic(0x10 + 2 * 23, 0x1ffff);
  set_io_apic(0x11 + 2 * 23, 0xff000000);
  add(io_apic(0x10 + 2 * 23));
  add(io_apic(0x11 + 2 * 23));
  set_io_apic(0x10 + 2 * 23, 0x10000);
  set_io_apic(0x11 + 2 * 23, 0);
  add(io_apic(0x10 + 2 * 23));
  add(io_apic(0x11 + 2 * 23));
  add(io_apic(0x40));
  probe("ioapic redirection entry written");

  redirect(3, 0x00043);
  com2_raise();
  add(requested(0x43));
  add(redirection(3));
  window();
  add_taken();
  add(trigger_level(0x43));
  APIC(0xb0) = 0;
  window();
  add_taken();
  com2_lower();
  com2_raise();
  window();
  add_taken();
  APIC(0xb0) = 0;
  com2_lower();
  probe("ioapic edge");
  redirect(3, 0x10043);
  com2_raise();
  redirect(3, 0x00043);
  window();
  eoi = EOI_APIC;
  window();
  taken_count = 0;
  eoi = EOI_NONE;
  com2_lower();

  redirect(3, 0x08044);
  com2_raise();
  add(requested(0x44));
  add(redirection(3));
  window();
  add_taken();
  add(trigger_level(0x44));
  add(redirection(3));
  APIC(0xb0) = 0;
  add(requested(0x44));
  add(redirection(3));
  probe("ioapic level, EOI with the line high");
  window();
  add_taken();
  com2_lower();
  add(redirection(3));
  APIC(0xb0) = 0;
  add(requested(0x44));
  add(redirection(3));
  window();
  add_taken();
  probe("ioapic level, EOI with the line low");
  redirect(3, 0x18044);
  com2_raise();
  add(requested(0x44));
  redirect(3, 0x08044);
  add(requested(0x44));
  window();
  add_taken();
  com2_lower();
  APIC(0xb0) = 0;
  probe("ioapic level, unmasked with the line high");
  redirect(3, 0x10000);

  eoi = EOI_APIC;
  APIC(0xd0) = 0x02000000;
  redirect(3, 0x00945);
  set_io_apic(0x17, 0x02000000);
  com2_raise();
  window();
  add_taken();
  com2_lower();
  set_io_apic(0x17, 0x04000000);
  com2_raise();
  window();
  add_taken();
  com2_lower();
  probe("ioapic logical lowest priority: this one, another");
  APIC(0xd0) = 0x01000000;
  redirect(3, 0x00400);
  com2_raise();
  for (int i = 0; i < 4; i++) __asm__ volatile("nop");
  add_taken();
  com2_lower();
  probe("ioapic NMI");
  redirect(3, 0x10000);

  pit0_low();
  redirect(2, 0x00042);
  pit0_fire();
  sleep_until(1);
  add_taken();
  pit0_low();
  redirect(2, 0x10000);
  probe("ioapic pin 2 is the timer");
  out8(0x43, 0x34);
  out8(0x40, 0x00);
  out8(0x40, 0x20);
  redirect(2, 0x00400);
  while (taken_count == 0) __asm__ volatile("hlt" : : : "memory");
  redirect(2, 0x10000);
  pit0_low();
  taken_count = 1;
  add_taken();
  probe("hlt with IF clear woken by NMI");
  redirect(1, 0x00041);
  redirect(12, 0x0004c);
  keyboard_raise();
  window();
  add_taken();
  controller_drain();
  mouse_raise();
  window();
  add_taken();
  controller_drain();
  redirect(1, 0x10000);
  redirect(12, 0x10000);
  probe("ioapic pins 1 and 12");
  redirect(8, 0x00048);
  cmos(0x0c);
  set_cmos(0x0b, 0x42);
  sleep_until(1);
  add_taken();
  set_cmos(0x0b, 0x02);
  cmos(0x0c);
  redirect(8, 0x10000);
  probe("ioapic pin 8 is the clock");
}

/* ---- keyboard controller ---- */

static u8 controller_answer(void) {
  while (!(in8(0x64) & 1)) {
  }
  return in8(0x60);
}

static void keyboard_controller(void) {
  controller_drain();
  controller(0xaa);
  add(controller_answer());
  controller(0x20);
  u8 mode = controller_answer();
  controller_data(0x60, 0x47);
  controller(0x20);
  add(controller_answer());
  static const u8 commands[] = {0xad, 0xa7, 0xae, 0xa8};
  for (int i = 0; i < 4; i++) {
    controller(commands[i]);
    controller(0x20);
    add(controller_answer());
  }
  controller_data(0x60, mode);
  controller_data(0xd2, 0x99);
  add(in8(0x64) & 0x21);
  add(in8(0x60));
  add(in8(0x64) & 1);
  controller_data(0xd3, 0x88);
  add(in8(0x64) & 0x21);
  add(in8(0x60));
  controller(0xab);
  add(controller_answer());
  probe("i8042 self-test, mode, switches, output buffer, interface test");
  controller_data(0x60, 0x44);
  static const u8 keyboard[] = {0xff, 0xf2, 0xf5, 0xee, 0xed, 0x02, 0xf0, 0x00, 0xf4};
  for (u32 i = 0; i < sizeof keyboard; i++) {
    controller_wait();
    out8(0x60, keyboard[i]);
    do add(controller_answer());
    while (in8(0x64) & 1);
  }
  probe("keyboard: reset, id, stop, echo, lamps, scan set, go");
  static const u8 mouse[] = {0xff, 0xf2, 0xe8, 0x03, 0xf3, 0x28, 0xe9, 0xeb, 0xf5};
  for (u32 i = 0; i < sizeof mouse; i++) {
    controller_data(0xd4, mouse[i]);
    do add(controller_answer());
    while (in8(0x64) & 1);
  }
  probe("mouse: reset, id, resolution, rate, status, packet, stop");
}

/* ---- the rest of the board ---- */

static u32 pci(u32 address) {
  out32(0xcf8, address);
  return in32(0xcfc);
}

static void board(void) {
  add(pci(0x80000000));
  add(pci(0x80000008) >> 8);
  add(pci(0x8000000c) >> 16 & 0xff);
  add(in32(0xcf8));
  probe("pci host bridge: id, class, header type, address");
  out32(0xcf8, 0x80000000);
  add(in16(0xcfc));
  add(in16(0xcfe));
  add(in8(0xcfc));
  add(in8(0xcfd));
  add(in8(0xcfe));
  add(in8(0xcff));
  out32(0xcf8, 0x80000000);
  out32(0xcfc, 0);
  add(in32(0xcfc));
  probe("pci parts of a register, id is read-only");
  out32(0xcf8, 0x80000000);
  out8(0xcf8, 0x40);
  out16(0xcfa, 0);
  add(in32(0xcf8));
  out32(0xcf8, 0xff00000b);
  add(in32(0xcf8));
  probe("pci address: only whole writes, reserved bits");
  add(pci(0x8000f800));
  add(pci(0x80ff0000));
  add(pci(0x00000000));
  probe("pci absent device, absent bus, disabled");

  out8(0x92, 2);
  add(in8(0x92) & 3);
  probe("port 92");
  out16(0x510, 0);
  for (int i = 0; i < 4; i++) add(in8(0x511));
  add(in8(0x511));
  out16(0x510, 1);
  for (int i = 0; i < 4; i++) add(in8(0x511));
  out16(0x510, 3);
  for (int i = 0; i < 8; i++) add(in8(0x511));
  out16(0x510, 5);
  add(in8(0x511));
  add(in8(0x511));
  out16(0x510, 0x3fff);
  add(in8(0x511));
  probe("fw_cfg signature, version, memory, processors, absent item");
  add(in32(0x514));
  add(in32(0x518));
  probe("fw_cfg DMA signature");
  u32 first = in32(0x608);
  u32 second = in32(0x608);
  for (int i = 0; i < 100 && second == first; i++) second = in32(0x608);
  add((second - first) - 1 < 0x100000);
  probe("PM timer counts");
  out16(0x602, 0);
  add(in16(0x602));
  out16(0x602, 0x120);
  add(in16(0x602));
  out16(0x602, 0);
  add(in16(0x604) & 1);
  probe("PM1 enable, SCI_EN");
  add(in8(0x0eb));
  add(in16(0x0eb0));
  add(in32(0x0eb0));
  probe("ports nobody has");
}

void guest_main(void) {
  for (int i = 0; i < 256; i++) {
    u64 to = (u64)stubs + (u64)i * 16;
    idt[i] = (struct idt_entry){(u16)to, 8, 0, 0x8e, (u16)(to >> 16), (u32)(to >> 32), 0};
  }
  struct {
    u16 limit;
    u64 base;
  } __attribute__((packed)) pointer = {sizeof idt - 1, (u64)idt};
  __asm__ volatile("lidt %0" : : "m"(pointer));
  /* What firmware may have left running: nothing interrupts, LINT0 carries the 8259, COM2 is quiet, no keyboard talks. */
  pic_init();
  pit0_low();
  APIC(0xf0) = 0x1ff;
  APIC(0x320) = 0x10000;
  APIC(0x350) = 0x700;
  for (u8 pin = 0; pin < 24; pin++) redirect(pin, 0x10000);
  out8(0x2fb, 3);
  out8(0x2fa, 0);
  out8(0x2f9, 0);
  out8(0x2fc, 8);
  in8(0x2fa);
  in8(0x2fe);
  out8(0x4d0, 0);
  out8(0x4d1, 0);
  controller(0xad);
  controller(0xa7);
  controller_drain();
  controller_data(0x60, 0x67); /* interrupts on, mouse off */
  controller_drain();

  print("== 8259\n");
  pic();
  print("== 8254\n");
  pit();
  print("== interrupt windows\n");
  windows();
  print("== clock\n");
  rtc();
  print("== 16550\n");
  uart();
  print("== local APIC\n");
  local_apic();
  print("== LINT0\n");
  ext_int();
  print("== I/O APIC\n");
  io_apics();
  print("== board\n");
  keyboard_controller();
  board();
  wrmsr(0x1b, rdmsr(0x1b) & ~0x800UL);
  u32 ebx;
  add(cpuid1(&ebx) >> 9 & 1);
  add(rdmsr(0x1b) & 0xfffff900);
  probe("apic disabled by IA32_APIC_BASE: cpuid, base");
  print("end\n");
  out8(0xf4, 0);
}

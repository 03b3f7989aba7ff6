/* A small 64-bit guest to press F5 on. Each function does one thing that makes a VM exit, so that there is something to
   stop at: serial output, CPUID, port I/O, MSRs, a timer interrupt, HLT, and the end through the debug-exit port. */

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

#define COM1 0x3f8
#define PIC1 0x20
#define PIC2 0xa0
#define PIT 0x40
#define CMOS 0x70
#define DEBUG_EXIT 0xf4

#define PIT_HZ 1193182
#define TIMER_HZ 1000
#define TICKS 5

static inline void out8(u16 port, u8 value)
{
  __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static inline u8 in8(u16 port)
{
  u8 value;
  __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
  return value;
}

static inline u64 read_msr(u32 msr)
{
  u32 low, high;
  __asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(msr));
  return (u64)high << 32 | low;
}

/* Serial console: 8250, 115200 baud, 8 data bits, no parity, 1 stop bit. */

static void serial_init(void)
{
  out8(COM1 + 1, 0x00);
  out8(COM1 + 3, 0x80);
  out8(COM1 + 0, 0x01);
  out8(COM1 + 1, 0x00);
  out8(COM1 + 3, 0x03);
  out8(COM1 + 2, 0x07);
  out8(COM1 + 4, 0x03);
}

static void serial_write(char c)
{
  while (!(in8(COM1 + 5) & 0x20))
    ;
  out8(COM1, (u8)c);
}

static int serial_read(void)
{
  return in8(COM1 + 5) & 0x01 ? in8(COM1) : -1;
}

static void print(const char *text)
{
  for (; *text; text++) {
    if (*text == '\n')
      serial_write('\r');
    serial_write(*text);
  }
}

static void print_hex(u64 value)
{
  print("0x");
  int shift = 60;
  while (shift > 0 && !(value >> shift & 15))
    shift -= 4;
  for (; shift >= 0; shift -= 4)
    serial_write("0123456789abcdef"[value >> shift & 15]);
}

static void print_decimal(u64 value)
{
  char digits[20];
  int count = 0;
  do {
    digits[count++] = (char)('0' + value % 10);
    value /= 10;
  } while (value);
  while (count)
    serial_write(digits[--count]);
}

/* Interrupts: a table with five entries, and a tick count. */

struct gate {
  u16 offset_low;
  u16 selector;
  u8 ist;
  u8 type;
  u16 offset_middle;
  u32 offset_high;
  u32 reserved;
};

struct __attribute__((packed)) table_pointer {
  u16 limit;
  u64 base;
};

static struct gate idt[256];
static volatile u64 ticks;

extern void vector_6(void), vector_8(void), vector_13(void), vector_14(void), vector_32(void);

static void set_gate(int vector, void (*entry)(void))
{
  u64 offset = (u64)entry;
  idt[vector].offset_low = (u16)offset;
  idt[vector].selector = 0x08;
  idt[vector].type = 0x8e;
  idt[vector].offset_middle = (u16)(offset >> 16);
  idt[vector].offset_high = (u32)(offset >> 32);
}

__attribute__((noreturn)) static void leave(u8 code)
{
  out8(DEBUG_EXIT, code);
  for (;;)
    __asm__ volatile("cli; hlt");
}

void handle_vector(u64 vector, u64 error_code, u64 rip)
{
  if (vector == 32) {
    ticks++;
    out8(PIC1, 0x20);
    return;
  }
  print("exception ");
  print_decimal(vector);
  print(", error code ");
  print_hex(error_code);
  print(", at ");
  print_hex(rip);
  print("\n");
  leave(1);
}

static void interrupts_init(void)
{
  set_gate(6, vector_6);
  set_gate(8, vector_8);
  set_gate(13, vector_13);
  set_gate(14, vector_14);
  set_gate(32, vector_32);
  struct table_pointer pointer = {sizeof idt - 1, (u64)idt};
  __asm__ volatile("lidt %0" : : "m"(pointer));

  /* Both PICs: vectors 32 to 47, only IRQ 0 open. */
  out8(PIC1, 0x11);
  out8(PIC2, 0x11);
  out8(PIC1 + 1, 32);
  out8(PIC2 + 1, 40);
  out8(PIC1 + 1, 4);
  out8(PIC2 + 1, 2);
  out8(PIC1 + 1, 1);
  out8(PIC2 + 1, 1);
  out8(PIC1 + 1, 0xfe);
  out8(PIC2 + 1, 0xff);
}

static void wait_for_ticks(u64 count)
{
  u16 divisor = PIT_HZ / TIMER_HZ;
  out8(PIT + 3, 0x34);
  out8(PIT, (u8)divisor);
  out8(PIT, (u8)(divisor >> 8));
  u64 until = ticks + count;
  while (ticks < until)
    __asm__ volatile("sti; hlt; cli");
}

/* What the guest shows, one function for each line. */

static void show_processor(void)
{
  u32 words[4];
  __asm__ volatile("cpuid" : "=a"(words[0]), "=b"(words[1]), "=d"(words[2]), "=c"(words[3]) : "a"(0), "c"(0));
  char vendor[13];
  for (int i = 0; i < 12; i++)
    vendor[i] = ((char *)&words[1])[i];
  vendor[12] = 0;
  print("processor  ");
  print(vendor);
  print(", highest leaf ");
  print_hex(words[0]);
  print("\n");
}

static void show_mode(void)
{
  u64 cr0, cr3, cr4;
  __asm__ volatile("mov %%cr0, %0" : "=r"(cr0));
  __asm__ volatile("mov %%cr3, %0" : "=r"(cr3));
  __asm__ volatile("mov %%cr4, %0" : "=r"(cr4));
  print("mode       CR0 ");
  print_hex(cr0);
  print(", CR3 ");
  print_hex(cr3);
  print(", CR4 ");
  print_hex(cr4);
  print(", EFER ");
  print_hex(read_msr(0xc0000080));
  print("\n");
}

static u8 cmos_read(u8 index)
{
  out8(CMOS, index);
  return in8(CMOS + 1);
}

static void show_memory(void)
{
  u64 kib = (u64)cmos_read(0x17) + (u64)cmos_read(0x18) * 256;
  print("memory     ");
  print_decimal(kib);
  print(" KiB above 1 MiB, says the CMOS\n");
}

static u64 sum_of_primes(u64 below)
{
  u64 sum = 0;
  for (u64 n = 2; n < below; n++) {
    int prime = 1;
    for (u64 d = 2; d * d <= n; d++) {
      if (n % d == 0) {
        prime = 0;
        break;
      }
    }
    if (prime)
      sum += n;
  }
  return sum;
}

static void show_work(void)
{
  print("work       the primes below 2000 add up to ");
  print_decimal(sum_of_primes(2000));
  print("\n");
}

static void show_timer(void)
{
  wait_for_ticks(TICKS);
  print("timer      ");
  print_decimal(ticks);
  print(" ticks at ");
  print_decimal(TIMER_HZ);
  print(" Hz\n");
}

static int ends_with(const char *text, const char *word)
{
  const char *end = text;
  const char *word_end = word;
  while (*end)
    end++;
  while (*word_end)
    word_end++;
  while (word_end > word) {
    if (end == text || *--end != *--word_end)
      return 0;
  }
  return 1;
}

static void echo_lines(void)
{
  print("\nType something; Ctrl+D ends.\n> ");
  for (;;) {
    int c = serial_read();
    if (c == 4)
      break;
    if (c == '\r' || c == '\n')
      print("\n> ");
    else if (c >= 0)
      serial_write((char)c);
    else
      wait_for_ticks(1);
  }
  print("\n");
}

/* Multiboot 0.6.96, 3.3: flags at 0; bit 2 says that the command line's address is at 16. */
static const char *command_line(u64 information)
{
  u32 *words = (u32 *)information;
  return words[0] & 4 ? (const char *)(u64)words[4] : "";
}

void guest_main(u64 information)
{
  serial_init();
  print("Hello from a guest of Hyperstep.\n");
  interrupts_init();
  show_processor();
  show_mode();
  show_memory();
  show_work();
  show_timer();
  if (ends_with(command_line(information), "interactive"))
    echo_lines();
  print("Good-bye.\n");
  leave(0);
}

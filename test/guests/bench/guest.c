/* Reads "KERNEL ROUNDS" from the multiboot command line, runs it, prints the checksum, ends by the debug-exit port. */
#include "kernels.h"

static inline void out8(uint16_t port, uint8_t value) { __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port)); }
static inline uint8_t in8(uint16_t port) {
  uint8_t value;
  __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
  return value;
}

static void put(char c) {
  while (!(in8(0x3fd) & 0x20)) {
  }
  out8(0x3f8, (uint8_t)c);
}
static void print(const char *s) {
  while (*s) put(*s++);
}
static void print_hex(uint32_t value) {
  for (int shift = 28; shift >= 0; shift -= 4) put("0123456789abcdef"[value >> shift & 15]);
}

/* Where `word` stands in `line` as a whole word, or 0. */
static const char *after_word(const char *line, const char *word) {
  for (const char *p = line; *p; p++) {
    if (p != line && p[-1] != ' ') continue;
    const char *a = p, *b = word;
    while (*b && *a == *b) a++, b++;
    if (!*b && (*a == ' ' || !*a)) return a;
  }
  return 0;
}

/* Multiboot 0.6.96 3.3: flags at offset 0, bit 2 says that the command line at offset 16 is valid. */
void guest_main(const uint32_t *information) {
  const char *line = information[0] & 4 ? (const char *)(uintptr_t)information[4] : "";
  for (unsigned i = 0; i < kernel_count; i++) {
    const char *p = after_word(line, kernels[i].name);
    if (!p) continue;
    uint32_t rounds = 0;
    while (*p == ' ') p++;
    for (; *p >= '0' && *p <= '9'; p++) rounds = rounds * 10 + (uint32_t)(*p - '0');
    uint32_t sum = kernels[i].run(rounds);
    print(kernels[i].name);
    print(" ");
    print_hex(sum);
    print("\n");
    out8(0xf4, 0);
  }
  print("usage: sha256|sort|bytecode|bytes|strings|mandelbrot|nbody ROUNDS\n");
  out8(0xf4, 1);
}

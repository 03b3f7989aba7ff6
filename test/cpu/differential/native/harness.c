/*
 * Executes user-mode instructions, single ones or short programs, on the machine's own processor.
 *
 * Reads instances from standard input, writes results to standard output (both little-endian, packed as below; instance.ts
 * has the other side). Every instance is one return from a signal handler: the handler stores the registers, the
 * instruction and the data into place and lets the kernel load them; the code page is full of INT3, so whatever comes
 * behind the instruction raises the next signal, whose frame holds the result.
 *
 * Code modes: 64 = long mode, 32 = compatibility mode with the flat segments of the GDT, 16 = 16-bit compatibility mode
 * with segments of the LDT whose bases are the code page and the data window.
 *
 * With the argument "vector", instances and results have the x87, MMX and vector registers behind them.
 */
#define _GNU_SOURCE
#include <asm/ldt.h>
#include <asm/prctl.h>
#include <cpuid.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define CODE 0x10000000ul
#define CODE_SIZE 4096
#define DATA 0x20000000ul
#define DATA_SIZE 8192
#define WORDS (DATA_SIZE / 8)
#define PATCH 64
#define CODE_BYTES 160

struct __attribute__((packed)) instance {
  uint64_t gpr[16];
  uint32_t ip;     /* offset of the instruction in the code page */
  uint32_t rflags; /* arithmetic flags and DF */
  uint16_t mode;
  uint16_t length;
  uint8_t code[CODE_BYTES];
  uint16_t patch_at, patch_length; /* bytes put over the pattern of the data window */
  uint8_t patch[PATCH];
};

struct __attribute__((packed)) result {
  uint64_t gpr[16];
  uint64_t rip;
  uint64_t rflags;
  uint64_t cr2;
  uint32_t vector; /* of the fault, or 3 when the instruction was completed */
  uint32_t error;
  uint16_t cs, ss, ds, es;
  uint16_t changes; /* followed by that many struct change */
};

/* Behind an instance and a result of vector instructions. */
struct __attribute__((packed)) vectors {
  uint8_t ymm[16][32];
  uint8_t x87[8][16]; /* ST(0) to ST(7), 10 bytes each */
  uint16_t fcw, fsw;
  uint16_t ftw; /* abridged */
  uint16_t unused;
  uint32_t mxcsr;
};

struct __attribute__((packed)) change {
  uint16_t word;
  uint64_t value;
};

static const int GREG[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                             REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

static char *instances;
static int with_vectors;
static size_t stride, ymm_high;
static size_t count, next_instance, capacity, used;
static char *output;
static uint64_t pattern[WORDS], before[WORDS];
static uint64_t *const window = (uint64_t *)DATA;

static void fail(const char *what) {
  fprintf(stderr, "harness: %s\n", what);
  exit(1);
}

static void put(const void *from, size_t size) {
  if (used + size > capacity) {
    capacity = capacity * 2 + size + (1 << 20);
    output = realloc(output, capacity);
    if (!output) fail("out of memory");
  }
  memcpy(output + used, from, size);
  used += size;
}

/* splitmix64, as in instance.ts */
static uint64_t mix(uint64_t i) {
  uint64_t z = (i + 1) * 0x9e3779b97f4a7c15ul;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ul;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebul;
  return z ^ (z >> 31);
}

/* The XSAVE image of the signal frame: FXSAVE's 512 bytes, the header, and the upper halves of YMM by CPUID 0DH. */
static void load_vectors(uint8_t *image, const struct vectors *v) {
  memcpy(image, &v->fcw, 2);
  memcpy(image + 2, &v->fsw, 2);
  image[4] = v->ftw;
  memcpy(image + 24, &v->mxcsr, 4);
  for (int i = 0; i < 8; i++) memcpy(image + 32 + i * 16, v->x87[i], 10);
  for (int i = 0; i < 16; i++) {
    memcpy(image + 160 + i * 16, v->ymm[i], 16);
    memcpy(image + ymm_high + i * 16, v->ymm[i] + 16, 16);
  }
  image[512] |= 7;
}

static void store_vectors(const uint8_t *image) {
  struct vectors v;
  memset(&v, 0, sizeof v);
  memcpy(&v.fcw, image, 2);
  memcpy(&v.fsw, image + 2, 2);
  v.ftw = image[4];
  memcpy(&v.mxcsr, image + 24, 4);
  for (int i = 0; i < 8; i++) memcpy(v.x87[i], image + 32 + i * 16, 10);
  for (int i = 0; i < 16; i++) {
    memcpy(v.ymm[i], image + 160 + i * 16, 16);
    if (image[512] & 4) memcpy(v.ymm[i] + 16, image + ymm_high + i * 16, 16);
  }
  put(&v, sizeof v);
}

static void store_result(const greg_t *g, const uint8_t *image) {
  struct result r;
  for (int i = 0; i < 16; i++) r.gpr[i] = g[GREG[i]];
  r.rip = g[REG_RIP];
  r.rflags = g[REG_EFL];
  r.cr2 = g[REG_CR2];
  r.vector = g[REG_TRAPNO];
  r.error = g[REG_ERR];
  r.cs = g[REG_CSGSFS] & 0xffff;
  r.ss = g[REG_CSGSFS] >> 48;
  __asm__ volatile("movw %%ds, %0; movw %%es, %1" : "=r"(r.ds), "=r"(r.es));
  r.changes = 0;
  for (int i = 0; i < WORDS; i++) r.changes += window[i] != before[i];
  put(&r, sizeof r);
  if (with_vectors) store_vectors(image);
  for (int i = 0; i < WORDS; i++) {
    if (window[i] == before[i]) continue;
    struct change c = {(uint16_t)i, window[i]};
    put(&c, sizeof c);
  }
}

static void finish(void) {
  for (size_t done = 0; done < used;) {
    ssize_t n = write(1, output + done, used - done);
    if (n <= 0) _exit(2);
    done += n;
  }
  _exit(0);
}

static void load_segments(uint16_t data) {
  __asm__ volatile("movw %0, %%ds; movw %0, %%es" : : "r"(data));
}

static void on_signal(int sig, siginfo_t *info, void *context) {
  (void)sig;
  (void)info;
  greg_t *g = ((ucontext_t *)context)->uc_mcontext.gregs;
  uint8_t *image = (uint8_t *)((ucontext_t *)context)->uc_mcontext.fpregs;
  static int started;
  if (started) store_result(g, image);
  started = 1;
  if (next_instance == count) finish();

  const struct instance *in = (const struct instance *)(instances + stride * next_instance++);
  memcpy(before, pattern, sizeof before);
  memcpy((char *)before + in->patch_at, in->patch, in->patch_length);
  memcpy(window, before, sizeof before);
  memset((void *)CODE, 0xcc, CODE_SIZE);
  memcpy((char *)CODE + in->ip, in->code, in->length);
  for (int i = 0; i < 16; i++) g[GREG[i]] = in->gpr[i];
  g[REG_EFL] = in->rflags | 0x202;
  uint64_t cs = in->mode == 64 ? 0x33 : in->mode == 32 ? 0x23 : 7;
  uint64_t ss = in->mode == 16 ? 0xf : 0x2b;
  g[REG_RIP] = in->mode == 16 ? in->ip : CODE + in->ip;
  g[REG_CSGSFS] = cs | ss << 48;
  if (with_vectors) load_vectors(image, (const struct vectors *)(in + 1));
  load_segments(ss);
}

static void set_ldt(unsigned entry, unsigned base, unsigned limit, int code, int wide) {
  struct user_desc d = {
      .entry_number = entry, .base_addr = base, .limit = limit, .seg_32bit = wide, .contents = code ? 2 : 0,
  };
  if (syscall(SYS_modify_ldt, 1, &d, sizeof d)) fail("modify_ldt");
}

int main(int argc, char **argv) {
  with_vectors = argc > 1 && !strcmp(argv[1], "vector");
  stride = sizeof(struct instance) + (with_vectors ? sizeof(struct vectors) : 0);
  uint32_t a, b, c, d;
  __cpuid_count(0xd, 2, a, b, c, d);
  ymm_high = b;
  size_t size = 0, room = 1 << 20;
  char *in = malloc(room);
  for (ssize_t n; (n = read(0, in + size, room - size)) > 0;) {
    size += n;
    if (size == room) in = realloc(in, room *= 2);
    if (!in) fail("out of memory");
  }
  instances = in;
  count = size / stride;
  if (count * stride != size) fail("input is not a whole number of instances");

  int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
  if (mmap((void *)CODE, CODE_SIZE, PROT_READ | PROT_WRITE | PROT_EXEC, flags, -1, 0) != (void *)CODE) fail("mmap code");
  if (mmap((void *)DATA, DATA_SIZE, PROT_READ | PROT_WRITE, flags, -1, 0) != (void *)DATA) fail("mmap data");
  for (int i = 0; i < WORDS; i++) pattern[i] = mix(i);
  set_ldt(0, CODE, CODE_SIZE - 1, 1, 0);
  set_ldt(1, DATA, DATA_SIZE - 1, 0, 1);
  if (syscall(SYS_arch_prctl, ARCH_SET_GS, DATA)) fail("arch_prctl");
  capacity = count * (sizeof(struct result) + (with_vectors ? sizeof(struct vectors) : 0) + 4 * sizeof(struct change)) + (1 << 20);
  output = malloc(capacity);
  if (!output) fail("out of memory");

  stack_t stack = {.ss_sp = malloc(1 << 18), .ss_size = 1 << 18};
  if (sigaltstack(&stack, NULL)) fail("sigaltstack");
  struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK};
  int signals[] = {SIGTRAP, SIGSEGV, SIGBUS, SIGFPE, SIGILL};
  for (unsigned i = 0; i < sizeof signals / sizeof *signals; i++) {
    if (sigaction(signals[i], &action, NULL)) fail("sigaction");
  }
  __asm__ volatile("int3");
  return 1;
}

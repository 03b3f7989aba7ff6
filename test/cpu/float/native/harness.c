/*
 * Executes single floating-point instructions, x87, SSE and AVX, on the machine's own processor.
 *
 * Reads instances from standard input, writes results to standard output (packed as below; instance.ts has the other
 * side). The instruction runs at CODE followed by RET, with RDI pointing to the instance's 128 bytes of memory; state
 * around it is loaded and saved by FXRSTOR, FXSAVE and moves of the first four YMM registers' upper halves. An exception
 * (#MF or #XM as SIGFPE, #UD as SIGILL) ends the instruction; its frame holds the state.
 */
#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#define CODE 0x10000000ul

struct __attribute__((packed)) state {
  uint8_t fx[512];
  uint8_t high[4][16];
  uint8_t memory[128];
  uint64_t rax;
  uint64_t rflags;
};

struct __attribute__((packed)) instance {
  uint8_t code[24];
  uint64_t length;
  struct state state;
};

struct __attribute__((packed)) result {
  struct state state;
  uint64_t vector; /* ~0 without exception */
};

static struct state now __attribute__((aligned(64)));
static uint8_t fx[512] __attribute__((aligned(64)));
static uint8_t memory[128] __attribute__((aligned(64)));
static sigjmp_buf away;
static uint64_t vector;

static void run(void) {
  __asm__ volatile(
      "fxrstor64 %[fx]\n\t"
      "vinsertf128 $1, %[h0], %%ymm0, %%ymm0\n\t"
      "vinsertf128 $1, %[h1], %%ymm1, %%ymm1\n\t"
      "vinsertf128 $1, %[h2], %%ymm2, %%ymm2\n\t"
      "vinsertf128 $1, %[h3], %%ymm3, %%ymm3\n\t"
      "sub $128, %%rsp\n\t"
      "pushq %[flags]\n\t"
      "popfq\n\t"
      "call *%[code]\n\t"
      "pushfq\n\t"
      "popq %[flags]\n\t"
      "add $128, %%rsp\n\t"
      "fxsave64 %[fx]\n\t"
      "vextractf128 $1, %%ymm0, %[h0]\n\t"
      "vextractf128 $1, %%ymm1, %[h1]\n\t"
      "vextractf128 $1, %%ymm2, %[h2]\n\t"
      "vextractf128 $1, %%ymm3, %[h3]\n\t"
      "fninit\n\t"
      "vzeroupper\n\t"
      : "+a"(now.rax), [flags] "+b"(now.rflags), [fx] "+m"(fx), [h0] "+m"(now.high[0]), [h1] "+m"(now.high[1]),
        [h2] "+m"(now.high[2]), [h3] "+m"(now.high[3])
      : [code] "r"(CODE), "D"(memory)
      : "memory", "cc", "rcx", "rdx", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
        "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
}

static void on_signal(int sig, siginfo_t *info, void *context) {
  (void)sig;
  (void)info;
  ucontext_t *uc = context;
  vector = uc->uc_mcontext.gregs[REG_TRAPNO];
  memcpy(fx, uc->uc_mcontext.fpregs, sizeof fx);
  memcpy(now.high, (char *)uc->uc_mcontext.fpregs + 576, sizeof now.high);
  now.rax = uc->uc_mcontext.gregs[REG_RAX];
  now.rflags = uc->uc_mcontext.gregs[REG_EFL];
  __asm__ volatile("fninit");
  siglongjmp(away, 1);
}

static void all(void *to, size_t size) {
  for (size_t done = 0; done < size;) {
    ssize_t n = write(1, (char *)to + done, size - done);
    if (n <= 0) _exit(2);
    done += n;
  }
}

int main(void) {
  static struct instance in;
  static struct result out[512];
  size_t n = 0;
  if (mmap((void *)CODE, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1,
           0) != (void *)CODE)
    return 1;
  struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_NODEFER};
  int signals[] = {SIGFPE, SIGILL, SIGSEGV};
  for (unsigned i = 0; i < 3; i++) sigaction(signals[i], &action, NULL);
  while (fread(&in, sizeof in, 1, stdin) == 1) {
    now = in.state;
    memcpy(fx, now.fx, sizeof fx);
    memcpy(memory, now.memory, sizeof memory);
    memcpy((void *)CODE, in.code, in.length);
    ((uint8_t *)CODE)[in.length] = 0xc3;
    vector = ~0ul;
    if (sigsetjmp(away, 0) == 0) run();
    memcpy(now.fx, fx, sizeof fx);
    memcpy(now.memory, memory, sizeof memory);
    out[n].state = now;
    out[n].vector = vector;
    if (++n == 512) {
      all(out, sizeof out);
      n = 0;
    }
  }
  all(out, n * sizeof *out);
  return 0;
}

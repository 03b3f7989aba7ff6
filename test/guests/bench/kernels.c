#include "kernels.h"

/* FIPS 180-4, one 64-byte block after another, each round over 4 KiB. */
static const uint32_t K[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static inline uint32_t ror(uint32_t x, int n) { return (x >> n) | (x << (32 - n)); }

static void compress(uint32_t state[8], const uint8_t *block) {
  uint32_t w[64];
  for (int i = 0; i < 16; i++)
    w[i] = (uint32_t)block[4 * i] << 24 | (uint32_t)block[4 * i + 1] << 16 | (uint32_t)block[4 * i + 2] << 8 |
           block[4 * i + 3];
  for (int i = 16; i < 64; i++) {
    uint32_t s0 = ror(w[i - 15], 7) ^ ror(w[i - 15], 18) ^ (w[i - 15] >> 3);
    uint32_t s1 = ror(w[i - 2], 17) ^ ror(w[i - 2], 19) ^ (w[i - 2] >> 10);
    w[i] = w[i - 16] + s0 + w[i - 7] + s1;
  }
  uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
  uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
  for (int i = 0; i < 64; i++) {
    uint32_t s1 = ror(e, 6) ^ ror(e, 11) ^ ror(e, 25);
    uint32_t t1 = h + s1 + ((e & f) ^ (~e & g)) + K[i] + w[i];
    uint32_t s0 = ror(a, 2) ^ ror(a, 13) ^ ror(a, 22);
    uint32_t t2 = s0 + ((a & b) ^ (a & c) ^ (b & c));
    h = g, g = f, f = e, e = d + t1, d = c, c = b, b = a, a = t1 + t2;
  }
  state[0] += a, state[1] += b, state[2] += c, state[3] += d;
  state[4] += e, state[5] += f, state[6] += g, state[7] += h;
}

static uint8_t message[4096];

static uint32_t sha256(uint32_t rounds) {
  uint32_t state[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  for (unsigned i = 0; i < sizeof message; i++) message[i] = (uint8_t)(i * 131 + 7);
  for (uint32_t r = 0; r < rounds; r++)
    for (unsigned at = 0; at < sizeof message; at += 64) compress(state, message + at);
  return state[0] ^ state[4];
}

/* Quicksort of 4,096 pseudo-random 32-bit numbers a round. */
static uint32_t numbers[4096];

static void quicksort(uint32_t *v, int low, int high) {
  while (low < high) {
    uint32_t pivot = v[(low + high) >> 1];
    int i = low, j = high;
    while (i <= j) {
      while (v[i] < pivot) i++;
      while (v[j] > pivot) j--;
      if (i <= j) {
        uint32_t t = v[i];
        v[i++] = v[j], v[j--] = t;
      }
    }
    if (j - low < high - i) {
      quicksort(v, low, j);
      low = i;
    } else {
      quicksort(v, i, high);
      high = j;
    }
  }
}

static uint32_t sort(uint32_t rounds) {
  uint32_t seed = 12345, sum = 0;
  for (uint32_t r = 0; r < rounds; r++) {
    for (int i = 0; i < 4096; i++) {
      seed = seed * 1664525 + 1013904223;
      numbers[i] = seed ^ (seed >> 15);
    }
    quicksort(numbers, 0, 4095);
    sum = sum * 31 + numbers[r & 4095];
  }
  return sum;
}

/* A byte-code interpreter with a switch: indirect jumps and short blocks. */
enum { PUSH, ADD, SUB, DUP, SWAP, JNZ, XOR, SHR, END };

static const uint8_t program[] = {
    PUSH, 0, PUSH, 200,                            /* sum, counter */
    DUP, PUSH, 3, SHR, SWAP, PUSH, 1, SUB, DUP,    /* sum, counter >> 3, counter - 1, counter - 1 */
    JNZ, 18, PUSH, 0, END,                         /* leaves when the counter is 0 */
    SWAP, DUP, XOR, ADD, PUSH, 0, XOR, DUP, JNZ, 4, END,
};

static uint32_t interpret(uint32_t x) {
  uint32_t stack[64], *sp = stack;
  const uint8_t *pc = program;
  uint32_t steps = 0;
  *sp++ = x;
  for (;;) {
    steps++;
    uint32_t t;
    switch (*pc++) {
      case PUSH: *sp++ = *pc++; break;
      case ADD: sp--, sp[-1] += sp[0]; break;
      case SUB: sp--, sp[-1] -= sp[0]; break;
      case DUP: *sp = sp[-1], sp++; break;
      case SWAP: t = sp[-1], sp[-1] = sp[-2], sp[-2] = t; break;
      case JNZ: t = *--sp, pc = t ? program + *pc : pc + 1; break;
      case XOR: sp--, sp[-1] ^= sp[0]; break;
      case SHR: sp--, sp[-1] >>= sp[0] & 31; break;
      default: return steps + sp[-1];
    }
  }
}

static uint32_t bytecode(uint32_t rounds) {
  uint32_t sum = 0;
  for (uint32_t r = 0; r < rounds; r++) sum = sum * 31 + interpret(r);
  return sum;
}

/* Bytes in and out: a checksum and a reversal, load and store bound. */
static uint32_t bytes(uint32_t rounds) {
  uint32_t a = 1, b = 0;
  for (unsigned i = 0; i < sizeof message; i++) message[i] = (uint8_t)(i * 7 + 3);
  for (uint32_t r = 0; r < rounds; r++) {
    for (unsigned i = 0; i < sizeof message; i++) {
      a = (a + message[i]) & 0xffff;
      b = (b + a) & 0xffff;
    }
    for (unsigned i = 0, j = sizeof message - 1; i < j; i++, j--) {
      uint8_t t = message[i];
      message[i] = message[j], message[j] = t;
    }
  }
  return b << 16 | a;
}

const struct kernel kernels[] = {{"sha256", sha256},   {"sort", sort},          {"bytecode", bytecode},
                                 {"bytes", bytes},     {"strings", sse2_strings}, {"mandelbrot", mandelbrot},
                                 {"nbody", nbody}};
const unsigned kernel_count = sizeof kernels / sizeof *kernels;

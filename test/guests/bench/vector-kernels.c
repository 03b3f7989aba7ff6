/* Kernels of vector registers: bytes by SSE2, numbers by SSE2's doubles. */
#include <emmintrin.h>
#include "kernels.h"

static uint8_t text[8192] __attribute__((aligned(64)));
static uint8_t copy[8192] __attribute__((aligned(64)));

/* What string functions of C libraries do: the end of a string sixteen bytes at a time, and a copy. */
uint32_t sse2_strings(uint32_t rounds) {
  uint32_t sum = 0;
  for (unsigned i = 0; i < sizeof text; i++) text[i] = (uint8_t)(i % 251 + 1);
  for (uint32_t r = 0; r < rounds; r++) {
    unsigned end = 4096 + r % 4000;
    uint8_t kept = text[end];
    text[end] = 0;
    const __m128i zero = _mm_setzero_si128();
    unsigned at = 0;
    int mask;
    while (!(mask = _mm_movemask_epi8(_mm_cmpeq_epi8(_mm_load_si128((const __m128i *)(text + at)), zero)))) at += 16;
    unsigned length = at + (unsigned)__builtin_ctz((unsigned)mask);
    for (unsigned i = 0; i < length; i += 32) {
      __m128i a = _mm_loadu_si128((const __m128i *)(text + i));
      __m128i b = _mm_loadu_si128((const __m128i *)(text + i + 16));
      _mm_storeu_si128((__m128i *)(copy + i), _mm_add_epi8(a, b));
      _mm_storeu_si128((__m128i *)(copy + i + 16), _mm_xor_si128(a, b));
    }
    sum = sum * 31 + length + copy[length / 2];
    text[end] = kept;
  }
  return sum;
}

/* Iterations of z*z + c over a grid, in doubles. */
uint32_t mandelbrot(uint32_t rounds) {
  uint32_t sum = 0;
  for (uint32_t r = 0; r < rounds; r++) {
    double ci = -1.25 + 2.5 * (double)(r % 101) / 101.0;
    for (unsigned column = 0; column < 64; column++) {
      double cr = -2.0 + 2.5 * (double)column / 64.0;
      double x = 0, y = 0;
      unsigned n = 0;
      while (n < 200 && x * x + y * y <= 4.0) {
        double next = x * x - y * y + cr;
        y = 2 * x * y + ci;
        x = next;
        n++;
      }
      sum += n;
    }
  }
  return sum;
}

struct body {
  double x, y, z, vx, vy, vz, mass;
};

/* Five bodies that attract each other: square roots and divisions. */
uint32_t nbody(uint32_t rounds) {
  struct body b[5];
  for (int i = 0; i < 5; i++) {
    b[i] = (struct body){i * 3.7 + 0.1, i * i * 1.3 - 2.0, 0.3 * i, 0.02 * i, 0.5 - 0.1 * i, 0.01 * i, 1.0 / (i + 1)};
  }
  for (uint32_t r = 0; r < rounds; r++) {
    for (int i = 0; i < 5; i++) {
      for (int j = i + 1; j < 5; j++) {
        double dx = b[i].x - b[j].x, dy = b[i].y - b[j].y, dz = b[i].z - b[j].z;
        double square = dx * dx + dy * dy + dz * dz + 0.01;
        double distance = _mm_cvtsd_f64(_mm_sqrt_sd(_mm_set_sd(square), _mm_set_sd(square)));
        double f = 0.001 / (square * distance);
        b[i].vx -= dx * b[j].mass * f, b[i].vy -= dy * b[j].mass * f, b[i].vz -= dz * b[j].mass * f;
        b[j].vx += dx * b[i].mass * f, b[j].vy += dy * b[i].mass * f, b[j].vz += dz * b[i].mass * f;
      }
    }
    for (int i = 0; i < 5; i++) {
      b[i].x += 0.001 * b[i].vx, b[i].y += 0.001 * b[i].vy, b[i].z += 0.001 * b[i].vz;
    }
  }
  return (uint32_t)(int32_t)(b[0].x * 1000000) ^ (uint32_t)(int32_t)(b[3].y * 1000000);
}

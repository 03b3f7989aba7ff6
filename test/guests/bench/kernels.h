/* The kernels that the benchmark runs as guests and, from the same source, natively. */
#pragma once
#include <stdint.h>

struct kernel {
  const char *name;
  /* Runs `rounds` rounds and returns a checksum. */
  uint32_t (*run)(uint32_t rounds);
};

/* Of vector-kernels.c. */
uint32_t sse2_strings(uint32_t rounds);
uint32_t mandelbrot(uint32_t rounds);
uint32_t nbody(uint32_t rounds);

extern const struct kernel kernels[];
extern const unsigned kernel_count;

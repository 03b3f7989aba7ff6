/* The same kernels as an ordinary process: the native side of the comparison. Prints the checksum and the CPU seconds. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "kernels.h"

int main(int argc, char **argv) {
  if (argc != 3) return 2;
  for (unsigned i = 0; i < kernel_count; i++) {
    if (strcmp(argv[1], kernels[i].name)) continue;
    clock_t start = clock();
    uint32_t sum = kernels[i].run((uint32_t)strtoul(argv[2], 0, 10));
    printf("%s %08x %.6f\n", kernels[i].name, sum, (double)(clock() - start) / CLOCKS_PER_SEC);
    return 0;
  }
  return 2;
}

/**
 * VEX-encoded instructions on general registers: BMI1, BMI2 (SDM 1, 5.20; SDM 2).
 */
import type { RowSource } from "../opcodes";

// biome-ignore format: a table
export const BMI_ROWS = [
  ["ANDN", "VEX L0 NP 0F 38 F2", "Gy:w By Ey", "bmi1"], ["BLSR", "VEX L0 NP 0F 38 F3 /1", "By:w Ey", "bmi1"],
  ["BLSMSK", "VEX L0 NP 0F 38 F3 /2", "By:w Ey", "bmi1"], ["BLSI", "VEX L0 NP 0F 38 F3 /3", "By:w Ey", "bmi1"],
  ["BEXTR", "VEX L0 NP 0F 38 F7", "Gy:w Ey By", "bmi1"], ["BZHI", "VEX L0 NP 0F 38 F5", "Gy:w Ey By", "bmi2"],
  ["PEXT", "VEX L0 F3 0F 38 F5", "Gy:w By Ey", "bmi2"], ["PDEP", "VEX L0 F2 0F 38 F5", "Gy:w By Ey", "bmi2"],
  ["MULX", "VEX L0 F2 0F 38 F6", "Gy:w By:w Ey", "bmi2"], ["SHLX", "VEX L0 66 0F 38 F7", "Gy:w Ey By", "bmi2"],
  ["SARX", "VEX L0 F3 0F 38 F7", "Gy:w Ey By", "bmi2"], ["SHRX", "VEX L0 F2 0F 38 F7", "Gy:w Ey By", "bmi2"],
  ["RORX", "VEX L0 F2 0F 3A F0", "Gy:w Ey Iub", "bmi2"],
] as const satisfies readonly RowSource[];

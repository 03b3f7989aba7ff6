/** General-purpose instructions (SDM 2A/2B, summary in volume 1, 5.1): everything that computes, moves and branches. */
import type { RowSource } from "../opcodes";

// biome-ignore format: a table
export const INTEGER_ROWS = [
  // Binary arithmetic and logic, 00..3D and group 1
  ["ADD", "00", "Eb:rw Gb", "lock"], ["ADD", "01", "Ev:rw Gv", "lock"],
  ["ADD", "02", "Gb:rw Eb"], ["ADD", "03", "Gv:rw Ev"], ["ADD", "04", "AL:rw Ib"], ["ADD", "05", "rAX:rw Iz"],
  ["OR", "08", "Eb:rw Gb", "lock"], ["OR", "09", "Ev:rw Gv", "lock"],
  ["OR", "0A", "Gb:rw Eb"], ["OR", "0B", "Gv:rw Ev"], ["OR", "0C", "AL:rw Ib"], ["OR", "0D", "rAX:rw Iz"],
  ["ADC", "10", "Eb:rw Gb", "lock"], ["ADC", "11", "Ev:rw Gv", "lock"],
  ["ADC", "12", "Gb:rw Eb"], ["ADC", "13", "Gv:rw Ev"], ["ADC", "14", "AL:rw Ib"], ["ADC", "15", "rAX:rw Iz"],
  ["SBB", "18", "Eb:rw Gb", "lock"], ["SBB", "19", "Ev:rw Gv", "lock"],
  ["SBB", "1A", "Gb:rw Eb"], ["SBB", "1B", "Gv:rw Ev"], ["SBB", "1C", "AL:rw Ib"], ["SBB", "1D", "rAX:rw Iz"],
  ["AND", "20", "Eb:rw Gb", "lock"], ["AND", "21", "Ev:rw Gv", "lock"],
  ["AND", "22", "Gb:rw Eb"], ["AND", "23", "Gv:rw Ev"], ["AND", "24", "AL:rw Ib"], ["AND", "25", "rAX:rw Iz"],
  ["SUB", "28", "Eb:rw Gb", "lock"], ["SUB", "29", "Ev:rw Gv", "lock"],
  ["SUB", "2A", "Gb:rw Eb"], ["SUB", "2B", "Gv:rw Ev"], ["SUB", "2C", "AL:rw Ib"], ["SUB", "2D", "rAX:rw Iz"],
  ["XOR", "30", "Eb:rw Gb", "lock"], ["XOR", "31", "Ev:rw Gv", "lock"],
  ["XOR", "32", "Gb:rw Eb"], ["XOR", "33", "Gv:rw Ev"], ["XOR", "34", "AL:rw Ib"], ["XOR", "35", "rAX:rw Iz"],
  ["CMP", "38", "Eb Gb"], ["CMP", "39", "Ev Gv"],
  ["CMP", "3A", "Gb Eb"], ["CMP", "3B", "Gv Ev"], ["CMP", "3C", "AL Ib"], ["CMP", "3D", "rAX Iz"],

  ["ADD", "80 /0", "Eb:rw Ib", "lock"], ["OR", "80 /1", "Eb:rw Ib", "lock"], ["ADC", "80 /2", "Eb:rw Ib", "lock"],
  ["SBB", "80 /3", "Eb:rw Ib", "lock"], ["AND", "80 /4", "Eb:rw Ib", "lock"], ["SUB", "80 /5", "Eb:rw Ib", "lock"],
  ["XOR", "80 /6", "Eb:rw Ib", "lock"], ["CMP", "80 /7", "Eb Ib"],
  ["ADD", "81 /0", "Ev:rw Iz", "lock"], ["OR", "81 /1", "Ev:rw Iz", "lock"], ["ADC", "81 /2", "Ev:rw Iz", "lock"],
  ["SBB", "81 /3", "Ev:rw Iz", "lock"], ["AND", "81 /4", "Ev:rw Iz", "lock"], ["SUB", "81 /5", "Ev:rw Iz", "lock"],
  ["XOR", "81 /6", "Ev:rw Iz", "lock"], ["CMP", "81 /7", "Ev Iz"],
  ["ADD", "82 /0", "Eb:rw Ib", "lock i64"], ["OR", "82 /1", "Eb:rw Ib", "lock i64"],
  ["ADC", "82 /2", "Eb:rw Ib", "lock i64"], ["SBB", "82 /3", "Eb:rw Ib", "lock i64"],
  ["AND", "82 /4", "Eb:rw Ib", "lock i64"], ["SUB", "82 /5", "Eb:rw Ib", "lock i64"],
  ["XOR", "82 /6", "Eb:rw Ib", "lock i64"], ["CMP", "82 /7", "Eb Ib", "i64"],
  ["ADD", "83 /0", "Ev:rw Ib", "lock"], ["OR", "83 /1", "Ev:rw Ib", "lock"], ["ADC", "83 /2", "Ev:rw Ib", "lock"],
  ["SBB", "83 /3", "Ev:rw Ib", "lock"], ["AND", "83 /4", "Ev:rw Ib", "lock"], ["SUB", "83 /5", "Ev:rw Ib", "lock"],
  ["XOR", "83 /6", "Ev:rw Ib", "lock"], ["CMP", "83 /7", "Ev Ib"],

  ["TEST", "84", "Eb Gb"], ["TEST", "85", "Ev Gv"], ["TEST", "A8", "AL Ib"], ["TEST", "A9", "rAX Iz"],

  // Group 3; /1 is an undocumented alias of /0 on every processor
  ["TEST", "F6 /0", "Eb Ib"], ["TEST", "F6 /1", "Eb Ib"], ["TEST", "F7 /0", "Ev Iz"], ["TEST", "F7 /1", "Ev Iz"],
  ["NOT", "F6 /2", "Eb:rw", "lock"], ["NOT", "F7 /2", "Ev:rw", "lock"],
  ["NEG", "F6 /3", "Eb:rw", "lock"], ["NEG", "F7 /3", "Ev:rw", "lock"],
  ["MUL", "F6 /4", "Eb"], ["MUL", "F7 /4", "Ev"], ["IMUL", "F6 /5", "Eb"], ["IMUL", "F7 /5", "Ev"],
  ["DIV", "F6 /6", "Eb"], ["DIV", "F7 /6", "Ev"], ["IDIV", "F6 /7", "Eb"], ["IDIV", "F7 /7", "Ev"],
  ["IMUL", "0F AF", "Gv:rw Ev"], ["IMUL", "69", "Gv:w Ev Iz"], ["IMUL", "6B", "Gv:w Ev Ib"],

  ["INC", "40+r", "Zv:rw", "i64"], ["DEC", "48+r", "Zv:rw", "i64"],
  ["INC", "FE /0", "Eb:rw", "lock"], ["DEC", "FE /1", "Eb:rw", "lock"],
  ["INC", "FF /0", "Ev:rw", "lock"], ["DEC", "FF /1", "Ev:rw", "lock"],

  // Shifts and rotates; /6 is an alias of SHL
  ["ROL", "C0 /0", "Eb:rw Iub"], ["ROR", "C0 /1", "Eb:rw Iub"], ["RCL", "C0 /2", "Eb:rw Iub"], ["RCR", "C0 /3", "Eb:rw Iub"],
  ["SHL", "C0 /4", "Eb:rw Iub"], ["SHR", "C0 /5", "Eb:rw Iub"], ["SHL", "C0 /6", "Eb:rw Iub"], ["SAR", "C0 /7", "Eb:rw Iub"],
  ["ROL", "C1 /0", "Ev:rw Iub"], ["ROR", "C1 /1", "Ev:rw Iub"], ["RCL", "C1 /2", "Ev:rw Iub"], ["RCR", "C1 /3", "Ev:rw Iub"],
  ["SHL", "C1 /4", "Ev:rw Iub"], ["SHR", "C1 /5", "Ev:rw Iub"], ["SHL", "C1 /6", "Ev:rw Iub"], ["SAR", "C1 /7", "Ev:rw Iub"],
  ["ROL", "D0 /0", "Eb:rw 1"], ["ROR", "D0 /1", "Eb:rw 1"], ["RCL", "D0 /2", "Eb:rw 1"], ["RCR", "D0 /3", "Eb:rw 1"],
  ["SHL", "D0 /4", "Eb:rw 1"], ["SHR", "D0 /5", "Eb:rw 1"], ["SHL", "D0 /6", "Eb:rw 1"], ["SAR", "D0 /7", "Eb:rw 1"],
  ["ROL", "D1 /0", "Ev:rw 1"], ["ROR", "D1 /1", "Ev:rw 1"], ["RCL", "D1 /2", "Ev:rw 1"], ["RCR", "D1 /3", "Ev:rw 1"],
  ["SHL", "D1 /4", "Ev:rw 1"], ["SHR", "D1 /5", "Ev:rw 1"], ["SHL", "D1 /6", "Ev:rw 1"], ["SAR", "D1 /7", "Ev:rw 1"],
  ["ROL", "D2 /0", "Eb:rw CL"], ["ROR", "D2 /1", "Eb:rw CL"], ["RCL", "D2 /2", "Eb:rw CL"], ["RCR", "D2 /3", "Eb:rw CL"],
  ["SHL", "D2 /4", "Eb:rw CL"], ["SHR", "D2 /5", "Eb:rw CL"], ["SHL", "D2 /6", "Eb:rw CL"], ["SAR", "D2 /7", "Eb:rw CL"],
  ["ROL", "D3 /0", "Ev:rw CL"], ["ROR", "D3 /1", "Ev:rw CL"], ["RCL", "D3 /2", "Ev:rw CL"], ["RCR", "D3 /3", "Ev:rw CL"],
  ["SHL", "D3 /4", "Ev:rw CL"], ["SHR", "D3 /5", "Ev:rw CL"], ["SHL", "D3 /6", "Ev:rw CL"], ["SAR", "D3 /7", "Ev:rw CL"],
  ["SHLD", "0F A4", "Ev:rw Gv Iub"], ["SHLD", "0F A5", "Ev:rw Gv CL"],
  ["SHRD", "0F AC", "Ev:rw Gv Iub"], ["SHRD", "0F AD", "Ev:rw Gv CL"],

  // Decimal adjust
  ["DAA", "27", "AL:rw", "i64"], ["DAS", "2F", "AL:rw", "i64"], ["AAA", "37", "AX:rw", "i64"], ["AAS", "3F", "AX:rw", "i64"],
  ["AAM", "D4", "AX:rw Iub", "i64"], ["AAD", "D5", "AX:rw Iub", "i64"],

  // Conversions
  ["CBW", "98", "rAX:rw"], ["CWD", "99", "rDX:w rAX"],
  ["MOVZX", "0F B6", "Gv:w Eb"], ["MOVZX", "0F B7", "Gv:w Ew"],
  ["MOVSX", "0F BE", "Gv:w Eb"], ["MOVSX", "0F BF", "Gv:w Ew"], ["MOVSXD", "63", "Gv:w Ez", "o64"],

  // Moves and exchanges
  ["MOV", "88", "Eb:w Gb"], ["MOV", "89", "Ev:w Gv"], ["MOV", "8A", "Gb:w Eb"], ["MOV", "8B", "Gv:w Ev"],
  ["MOV", "8C", "Evw:w Sw"],
  ["MOV", "A0", "AL:w Ob"], ["MOV", "A1", "rAX:w Ov"], ["MOV", "A2", "Ob:w AL"], ["MOV", "A3", "Ov:w rAX"],
  ["MOV", "B0+r", "Zb:w Ib"], ["MOV", "B8+r", "Zv:w Iv"], ["MOV", "C6 /0", "Eb:w Ib"], ["MOV", "C7 /0", "Ev:w Iz"],
  ["MOVNTI", "NP 0F C3", "My:w Gy", "sse2"],
  ["MOVBE", "NFx 0F 38 F0", "Gv:w Mv", "movbe"], ["MOVBE", "NFx 0F 38 F1", "Mv:w Gv", "movbe"],
  ["LEA", "8D", "Gv:w M:n"], ["XLAT", "D7", "AL:rw"],
  ["XCHG", "86", "Eb:rw Gb:rw", "lock"], ["XCHG", "87", "Ev:rw Gv:rw", "lock"], ["XCHG", "90+r", "Zv:rw rAX:rw"],
  ["XADD", "0F C0", "Eb:rw Gb:rw", "lock"], ["XADD", "0F C1", "Ev:rw Gv:rw", "lock"],
  ["CMPXCHG", "0F B0", "Eb:rw Gb", "lock"], ["CMPXCHG", "0F B1", "Ev:rw Gv", "lock"],
  ["CMPXCHG8B", "W0 0F C7 /1", "Mq:rw", "lock cx8"], ["CMPXCHG16B", "W1 0F C7 /1", "Mdq:rw", "lock cx16 o64"],
  ["BSWAP", "0F C8+r", "Zv:rw"],
  ["CMOVCC", "0F 40+cc", "Gv:rw Ev", "cmov"], ["SETCC", "0F 90+cc", "Eb:w"],

  // Stack
  ["PUSH", "06", "ES", "i64"], ["PUSH", "0E", "CS", "i64"], ["PUSH", "16", "SS", "i64"], ["PUSH", "1E", "DS", "i64"],
  ["PUSH", "0F A0", "FS", "d64"], ["PUSH", "0F A8", "GS", "d64"],
  ["PUSH", "50+r", "Zv", "d64"], ["PUSH", "FF /6", "Ev", "d64"], ["PUSH", "68", "Iz", "d64"], ["PUSH", "6A", "Ib", "d64"],
  ["POP", "58+r", "Zv:w", "d64"], ["POP", "8F /0", "Ev:w", "d64"],
  ["PUSHA", "60", "", "i64"], ["POPA", "61", "", "i64"],
  ["ENTER", "C8", "Iuw Iub", "d64 sys"], ["LEAVE", "C9", "", "d64"],

  // Control transfers
  ["JCC", "70+cc", "Jb", "f64"], ["JCC", "0F 80+cc", "Jz", "f64"],
  ["JMP", "EB", "Jb", "f64"], ["JMP", "E9", "Jz", "f64"], ["JMP", "FF /4", "Ev", "f64"],
  ["CALL", "E8", "Jz", "f64"], ["CALL", "FF /2", "Ev", "f64"], ["RET", "C2", "Iuw", "f64"], ["RET", "C3", "", "f64"],
  ["LOOPNE", "E0", "Jb", "f64"], ["LOOPE", "E1", "Jb", "f64"], ["LOOP", "E2", "Jb", "f64"], ["JCXZ", "E3", "Jb", "f64"],
  ["BOUND", "62", "Gv Ma", "i64 sys"],

  // Strings
  ["MOVS", "A4", "Yb:w Xb", "rep"], ["MOVS", "A5", "Yv:w Xv", "rep"],
  ["CMPS", "A6", "Xb Yb", "repz"], ["CMPS", "A7", "Xv Yv", "repz"],
  ["STOS", "AA", "Yb:w AL", "rep"], ["STOS", "AB", "Yv:w rAX", "rep"],
  ["LODS", "AC", "AL:w Xb", "rep"], ["LODS", "AD", "rAX:w Xv", "rep"],
  ["SCAS", "AE", "AL Yb", "repz"], ["SCAS", "AF", "rAX Yv", "repz"],

  // Bits
  ["BT", "0F A3", "Ev Gv"], ["BTS", "0F AB", "Ev:rw Gv", "lock"],
  ["BTR", "0F B3", "Ev:rw Gv", "lock"], ["BTC", "0F BB", "Ev:rw Gv", "lock"],
  ["BT", "0F BA /4", "Ev Iub"], ["BTS", "0F BA /5", "Ev:rw Iub", "lock"],
  ["BTR", "0F BA /6", "Ev:rw Iub", "lock"], ["BTC", "0F BA /7", "Ev:rw Iub", "lock"],
  ["BSF", "0F BC", "Gv:rw Ev"], ["BSR", "0F BD", "Gv:rw Ev"],
  ["TZCNT", "F3 0F BC", "Gv:w Ev", "bmi1/BSF"], ["LZCNT", "F3 0F BD", "Gv:w Ev", "lzcnt/BSR"],
  ["POPCNT", "F3 0F B8", "Gv:w Ev", "popcnt"],
  ["CRC32", "F2 0F 38 F0", "Gy:rw Eb", "sse4.2"], ["CRC32", "F2 0F 38 F1", "Gy:rw Ev", "sse4.2"],
  ["ADCX", "66 0F 38 F6", "Gy:rw Ey", "adx"], ["ADOX", "F3 0F 38 F6", "Gy:rw Ey", "adx"],

  // Flags
  ["CMC", "F5"], ["CLC", "F8"], ["STC", "F9"], ["CLD", "FC"], ["STD", "FD"],
  ["LAHF", "9F", "AH:w", "i64"], ["LAHF", "9F", "AH:w", "o64 lahf64"],
  ["SAHF", "9E", "AH", "i64"], ["SAHF", "9E", "AH", "o64 lahf64"],
  ["SALC", "D6", "AL:w", "i64"],

  // Hints and fences
  ["NOP", "NFx 90"], ["NOP", "F2 90"], ["PAUSE", "F3 90", "", "sys"],
  ["NOP", "0F 0D", "Ev:n"], ["PREFETCHW", "0F 0D /1 mem", "Mb:n"],
  ["NOP", "0F 18", "Ev:n"], ["PREFETCHNTA", "0F 18 /0 mem", "Mb:n"], ["PREFETCHT0", "0F 18 /1 mem", "Mb:n"],
  ["PREFETCHT1", "0F 18 /2 mem", "Mb:n"], ["PREFETCHT2", "0F 18 /3 mem", "Mb:n"],
  ["NOP", "0F 19", "Ev:n"], ["NOP", "0F 1A", "Ev:n"], ["NOP", "0F 1B", "Ev:n"], ["NOP", "0F 1C", "Ev:n"],
  ["NOP", "0F 1D", "Ev:n"], ["NOP", "0F 1E", "Ev:n"], ["NOP", "0F 1F", "Ev:n"],
  ["ENDBR64", "F3 0F 1E (FA)"], ["ENDBR32", "F3 0F 1E (FB)"],
  ["LFENCE", "NP 0F AE /5 reg", "", "sse2"], ["MFENCE", "NP 0F AE /6 reg", "", "sse2"], ["SFENCE", "NP 0F AE /7 reg", "", "sse"],
  ["CLFLUSH", "NP 0F AE /7", "Mb:n", "clflush sys"], ["CLFLUSHOPT", "66 0F AE /7", "Mb:n", "clflushopt sys"],
  ["CLWB", "66 0F AE /6", "Mb:n", "clwb sys"],
] as const satisfies readonly RowSource[];

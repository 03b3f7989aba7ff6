/** Every x87 instruction by the mnemonic of its opcode row. */
import { CpuFault, type SystemHandler, Vector } from "../cpu";
import { arithmeticHandlers } from "./arithmetic";
import { compareHandlers } from "./compare";
import { controlHandlers } from "./control";
import { transcendentalHandlers } from "./transcendental";
import { transferHandlers } from "./transfer";
import { controlling } from "./unit";

/** Opcodes D8 to DF that are no instruction: #NM comes before #UD (SDM 3A table 2-2). */
const undefinedX87 = controlling(false, () => {
  throw new CpuFault(Vector.UD);
});

export const x87Handlers: Readonly<Record<string, SystemHandler>> = {
  ...controlHandlers,
  ...transferHandlers,
  ...arithmeticHandlers,
  ...compareHandlers,
  ...transcendentalHandlers,
  X87: undefinedX87,
};

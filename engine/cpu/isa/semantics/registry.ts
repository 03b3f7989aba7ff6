/** How the families of semantics register themselves. */
import type { Context, Sem } from "./context";
import type { ShapeNeeds } from "./shape";

export interface Semantics {
  readonly sem: Sem;
  readonly needs: ShapeNeeds;
}

export type Family = Readonly<Record<string, Semantics>>;

export const define = (sem: (c: Context) => void, needs: ShapeNeeds = {}): Semantics => ({ sem, needs });

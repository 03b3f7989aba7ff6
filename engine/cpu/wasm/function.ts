/** Builds the body of one WebAssembly function: typed locals, structured control flow, instructions by name. */
import { ByteWriter } from "./bytes";
import { BulkOp, EMPTY_BLOCK, Op, type Saturating, type Simd, type WasmType } from "./opcodes";

/** A local variable (or parameter) of the function being built. */
export interface Local {
  readonly index: number;
  readonly type: WasmType;
}

/** A block, loop or if to branch to; made by `block`, `loop` and `if`, valid until its `end`. */
export interface Label {
  /** Nesting depth inside the function, 1 for the outermost. */
  readonly depth: number;
}

export interface FunctionType {
  readonly parameters: readonly WasmType[];
  readonly results: readonly WasmType[];
}

export class FunctionBuilder {
  private readonly head = new ByteWriter();
  private code = new ByteWriter();
  private readonly types: WasmType[] = [];
  private readonly free = new Map<WasmType, Local[]>();
  private taken: Local[] = [];
  private depth = 0;
  readonly parameters: readonly Local[];

  constructor(readonly type: FunctionType) {
    this.parameters = type.parameters.map((t, index) => ({ index, type: t }));
  }

  /** Bytes of code so far: a measure of the function's size. */
  get size(): number {
    return this.code.length;
  }

  /** A local for the whole function, initially zero. */
  local(type: WasmType): Local {
    this.types.push(type);
    return { index: this.parameters.length + this.types.length - 1, type };
  }

  /** A local until the next `releaseTemporaries`; its initial value is undefined. */
  temporary(type: WasmType): Local {
    const local = this.free.get(type)?.pop() ?? this.local(type);
    this.taken.push(local);
    return local;
  }

  /** Lets later temporaries use the locals of all temporaries handed out so far. */
  releaseTemporaries(): void {
    for (const local of this.taken) {
      const list = this.free.get(local.type);
      if (list) list.push(local);
      else this.free.set(local.type, [local]);
    }
    this.taken = [];
  }

  /** Code that `emit` writes goes to the start of the function, behind what earlier calls put there. */
  atStart(emit: () => void): void {
    const { code, depth } = this;
    this.code = this.head;
    this.depth = 0;
    emit();
    if (this.depth !== 0) throw new Error("wasm: a block at the start of the function is not ended");
    this.code = code;
    this.depth = depth;
  }

  op(op: Op): void {
    this.code.byte(op);
  }

  get(local: Local): void {
    this.code.byte(Op.LOCAL_GET);
    this.code.unsigned(local.index);
  }

  set(local: Local): void {
    this.code.byte(Op.LOCAL_SET);
    this.code.unsigned(local.index);
  }

  tee(local: Local): void {
    this.code.byte(Op.LOCAL_TEE);
    this.code.unsigned(local.index);
  }

  i32(value: number): void {
    this.code.byte(Op.I32_CONST);
    this.code.signed(value);
  }

  i64(value: bigint): void {
    this.code.byte(Op.I64_CONST);
    this.code.signed64(value);
  }

  /** A load or store at a constant offset from the address on the stack; no alignment is promised. */
  memory(op: Op, offset = 0): void {
    this.code.byte(op);
    this.code.byte(0);
    this.code.unsigned(offset);
  }

  /** A vector instruction without immediates. */
  simd(op: Simd): void {
    this.code.byte(0xfd);
    this.code.unsigned(op);
  }

  /** One that picks a lane. */
  simdLane(op: Simd, lane: number): void {
    this.simd(op);
    this.code.byte(lane);
  }

  /** A vector load or store; `lane` for those of a single lane. */
  simdMemory(op: Simd, offset = 0, lane?: number): void {
    this.simd(op);
    this.code.byte(0);
    this.code.unsigned(offset);
    if (lane !== undefined) this.code.byte(lane);
  }

  /** A constant vector, or the byte lanes of a shuffle: 16 bytes. */
  simdBytes(op: typeof Simd.V128_CONST | typeof Simd.I8X16_SHUFFLE, bytes: ArrayLike<number>): void {
    this.simd(op);
    for (let i = 0; i < 16; i++) this.code.byte(bytes[i]);
  }

  saturating(op: Saturating): void {
    this.code.byte(0xfc);
    this.code.unsigned(op);
  }

  memoryCopy(): void {
    this.code.byte(0xfc);
    this.code.unsigned(BulkOp.MEMORY_COPY);
    this.code.byte(0);
    this.code.byte(0);
  }

  memoryFill(): void {
    this.code.byte(0xfc);
    this.code.unsigned(BulkOp.MEMORY_FILL);
    this.code.byte(0);
  }

  private open(op: Op, result: WasmType | undefined): Label {
    this.code.byte(op);
    this.code.byte(result ?? EMPTY_BLOCK);
    this.depth++;
    return { depth: this.depth };
  }

  block(result?: WasmType): Label {
    return this.open(Op.BLOCK, result);
  }

  loop(result?: WasmType): Label {
    return this.open(Op.LOOP, result);
  }

  /** Takes the condition from the stack. */
  if(result?: WasmType): Label {
    return this.open(Op.IF, result);
  }

  else(): void {
    this.code.byte(Op.ELSE);
  }

  end(): void {
    if (this.depth === 0) throw new Error("wasm: end without a block");
    this.code.byte(Op.END);
    this.depth--;
  }

  private distance(to: Label): number {
    const distance = this.depth - to.depth;
    if (distance < 0) throw new Error("wasm: branch to a block that has ended");
    return distance;
  }

  br(to: Label): void {
    this.code.byte(Op.BR);
    this.code.unsigned(this.distance(to));
  }

  brIf(to: Label): void {
    this.code.byte(Op.BR_IF);
    this.code.unsigned(this.distance(to));
  }

  brTable(targets: readonly Label[], otherwise: Label): void {
    this.code.byte(Op.BR_TABLE);
    this.code.unsigned(targets.length);
    for (const target of targets) this.code.unsigned(this.distance(target));
    this.code.unsigned(this.distance(otherwise));
  }

  call(functionIndex: number): void {
    this.code.byte(Op.CALL);
    this.code.unsigned(functionIndex);
  }

  /** Calls through table 0; the index is on the stack above the arguments. */
  callIndirect(typeIndex: number): void {
    this.code.byte(Op.CALL_INDIRECT);
    this.code.unsigned(typeIndex);
    this.code.unsigned(0);
  }

  return(): void {
    this.code.byte(Op.RETURN);
  }

  /** The body as the code section wants it, without its size. */
  writeBody(into: ByteWriter): void {
    if (this.depth !== 0) throw new Error(`wasm: ${this.depth} blocks are not ended`);
    const runs: { count: number; type: WasmType }[] = [];
    for (const type of this.types) {
      const last = runs[runs.length - 1];
      if (last?.type === type) last.count++;
      else runs.push({ count: 1, type });
    }
    const body = new ByteWriter();
    body.unsigned(runs.length);
    for (const run of runs) {
      body.unsigned(run.count);
      body.byte(run.type);
    }
    body.append(this.head);
    body.append(this.code);
    body.byte(Op.END);
    into.unsigned(body.length);
    into.append(body);
  }
}

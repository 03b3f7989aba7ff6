/** Builds a WebAssembly module (core specification 5.5): imports, functions, exports, one imported memory and table. */
import { ByteWriter } from "./bytes";
import type { FunctionBuilder, FunctionType } from "./function";
import { Op, WasmType } from "./opcodes";

const Section = { TYPE: 1, IMPORT: 2, FUNCTION: 3, EXPORT: 7, ELEMENT: 9, CODE: 10 } as const;
const ExternKind = { FUNCTION: 0, TABLE: 1, MEMORY: 2 } as const;

interface ImportedFunction {
  readonly name: string;
  readonly type: number;
}

/**
 * All imports come from the module name "env". The memory "memory" may have any size, so that one compiled module serves
 * every machine of the process; the function table is "table".
 */
export class ModuleBuilder {
  private readonly types: FunctionType[] = [];
  private readonly typeIndices = new Map<string, number>();
  private readonly imports: ImportedFunction[] = [];
  private readonly functions: FunctionBuilder[] = [];
  private readonly exports: { name: string; index: number }[] = [];
  private readonly elements: { slot: number; index: number }[] = [];

  /** Index of a function type; equal types share one. */
  typeIndex(type: FunctionType): number {
    const key = `${type.parameters.join(",")}>${type.results.join(",")}`;
    let index = this.typeIndices.get(key);
    if (index === undefined) {
      index = this.types.push(type) - 1;
      this.typeIndices.set(key, index);
    }
    return index;
  }

  /** Imports a function; all imports come before the first `addFunction`. @returns its function index */
  importFunction(name: string, type: FunctionType): number {
    if (this.functions.length > 0) throw new Error(`wasm: import ${name} after the first function`);
    return this.imports.push({ name, type: this.typeIndex(type) }) - 1;
  }

  /** Adds a function whose body may be written later. @returns its function index */
  addFunction(builder: FunctionBuilder): number {
    this.typeIndex(builder.type);
    return this.imports.length + this.functions.push(builder) - 1;
  }

  export(name: string, functionIndex: number): void {
    this.exports.push({ name, index: functionIndex });
  }

  /** Puts a function into the imported table. */
  element(slot: number, functionIndex: number): void {
    this.elements.push({ slot, index: functionIndex });
  }

  toBytes(): Uint8Array<ArrayBuffer> {
    const out = new ByteWriter();
    for (const byte of [0, 0x61, 0x73, 0x6d, 1, 0, 0, 0]) out.byte(byte);
    const section = (id: number, write: (body: ByteWriter) => void): void => {
      const body = new ByteWriter();
      write(body);
      out.byte(id);
      out.unsigned(body.length);
      out.append(body);
    };
    section(Section.TYPE, (body) => {
      body.unsigned(this.types.length);
      for (const type of this.types) {
        body.byte(0x60);
        body.unsigned(type.parameters.length);
        for (const t of type.parameters) body.byte(t);
        body.unsigned(type.results.length);
        for (const t of type.results) body.byte(t);
      }
    });
    section(Section.IMPORT, (body) => {
      body.unsigned(this.imports.length + 2);
      for (const f of this.imports) {
        body.name("env");
        body.name(f.name);
        body.byte(ExternKind.FUNCTION);
        body.unsigned(f.type);
      }
      body.name("env");
      body.name("memory");
      body.byte(ExternKind.MEMORY);
      body.byte(1);
      body.unsigned(1);
      body.unsigned(65536);
      body.name("env");
      body.name("table");
      body.byte(ExternKind.TABLE);
      body.byte(WasmType.FUNCREF);
      body.byte(0);
      body.unsigned(0);
    });
    section(Section.FUNCTION, (body) => {
      body.unsigned(this.functions.length);
      for (const f of this.functions) body.unsigned(this.typeIndex(f.type));
    });
    section(Section.EXPORT, (body) => {
      body.unsigned(this.exports.length);
      for (const e of this.exports) {
        body.name(e.name);
        body.byte(ExternKind.FUNCTION);
        body.unsigned(e.index);
      }
    });
    if (this.elements.length > 0) {
      section(Section.ELEMENT, (body) => {
        body.unsigned(this.elements.length);
        for (const e of this.elements) {
          body.byte(0);
          body.byte(Op.I32_CONST);
          body.signed(e.slot);
          body.byte(Op.END);
          body.unsigned(1);
          body.unsigned(e.index);
        }
      });
    }
    section(Section.CODE, (body) => {
      body.unsigned(this.functions.length);
      for (const f of this.functions) f.writeBody(body);
    });
    return out.toBytes();
  }
}

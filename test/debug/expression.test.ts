import { describe, expect, test } from "vitest";
import { assigns, evaluate, fillLog, holds, integer, type Scope, type Value } from "../../engine/debug/evaluate";
import { ExpressionError, parseExpression, parseLogTemplate, printExpression } from "../../engine/debug/expression";
import { random } from "./random";

class TestScope implements Scope {
  readonly memory = new Map<bigint, number>();
  constructor(readonly names: Record<string, bigint | string> = {}) {}
  lookup(name: string): Value | string | undefined {
    const value = this.names[name];
    if (value === undefined || typeof value === "string") return value;
    const width = name.startsWith("e") ? 32 : 64;
    return {
      value,
      signed: false,
      width,
      place: {
        name,
        width,
        store: (v) => {
          this.names[name] = v;
        },
      },
    };
  }
  readMemory(space: string, address: bigint, length: number): Uint8Array | undefined {
    if (space !== "gva" && space !== "gpa") return undefined;
    const bytes = Array.from({ length }, (_, i) => this.memory.get(address + BigInt(i)));
    return bytes.some((b) => b === undefined) ? undefined : Uint8Array.from(bytes as number[]);
  }
  writeMemory(_space: string, address: bigint, bytes: Uint8Array): boolean {
    for (const [i, b] of bytes.entries()) this.memory.set(address + BigInt(i), b);
    return true;
  }
  suggest(name: string): readonly string[] {
    return name === "raz" ? ["rax"] : [];
  }
}

const run = (text: string, scope: Scope = new TestScope()): bigint | string => {
  const result = evaluate(parseExpression(text), scope);
  return typeof result === "string" ? result : result.value;
};
const failure = (text: string, scope?: Scope): string => {
  try {
    run(text, scope);
  } catch (error) {
    if (error instanceof ExpressionError) return error.message;
    throw error;
  }
  throw new Error(`${text} did not fail`);
};

describe("values", () => {
  test("integers in every notation", () => {
    expect(run("0x1f + 0b101 + 0o17 + 1_000 + 'A'")).toBe(31n + 5n + 15n + 1000n + 65n);
  });

  test("64-bit values are exact: no bit above 2^53 is lost", () => {
    expect(run("0x8000000000000001 | 2")).toBe(0x8000000000000003n);
    expect(run("rax * 3", new TestScope({ rax: (1n << 63n) + 1n }))).toBe(((1n << 63n) + 3n) & ((1n << 64n) - 1n));
  });

  test("operators have C's precedence and associativity", () => {
    expect(run("1 + 2 * 3 << 1 == 14 && 8 - 4 - 2 == 2")).toBe(1n);
    expect(run("1 | 2 ^ 3 & 2")).toBe(1n | (2n ^ (3n & 2n)));
    expect(run("0 ? 1 : 0 ? 2 : 3")).toBe(3n);
  });

  test("unsigned and signed mix as in C; a negative number meets a narrower register at its width", () => {
    const scope = new TestScope({ rax: (1n << 64n) - 1n, eax: 0xffff_ffffn });
    expect(run("rax > 0", scope)).toBe(1n);
    expect(run("rax == -1", scope)).toBe(1n);
    expect(run("eax == -1", scope)).toBe(1n);
    expect(run("i64(rax) < 0", scope)).toBe(1n);
    expect(run("i8(0x80)")).toBe(-128n);
    expect(run("-7 / 2")).toBe(-3n);
  });

  test("shifts by 64 and more give zero, or the sign", () => {
    expect(run("1 << 64")).toBe(0n);
    expect(run("-1 >> 200")).toBe(-1n);
  });

  test("logical operators do not evaluate what they need not", () => {
    expect(run("0 && 1 / 0")).toBe(0n);
    expect(run("1 || 1 / 0")).toBe(1n);
  });

  test("strings compare with strings only", () => {
    const scope = new TestScope({ direction: "out" });
    expect(run('direction == "out" && direction != "in"', scope)).toBe(1n);
    expect(failure("direction == 1", scope)).toContain("only be compared with a string");
  });
});

describe("memory and assignment", () => {
  test("memory is read little-endian in the named space", () => {
    const scope = new TestScope({ rsp: 0x100n });
    scope.writeMemory("gva", 0x100n, Uint8Array.of(0x78, 0x56, 0x34, 0x92));
    expect(run("u32[rsp]", scope)).toBe(0x92345678n);
    expect(run("i16[rsp + 2]", scope)).toBe(-0x6dccn);
    expect(run("u8[gpa: rsp + 1]", scope)).toBe(0x56n);
    expect(run("u8[phys: 0x100]", scope)).toBe(0x78n);
    expect(failure("u8[hpa: 0]", scope)).toContain("no memory at hpa:0x0");
  });

  test("an address keeps its space through addition", () => {
    const scope = new TestScope();
    scope.writeMemory("gpa", 0x10n, Uint8Array.of(7));
    expect(run("u8[(gpa: 8) + 8]", scope)).toBe(7n);
  });

  test("assignments change registers and memory; compound ones too", () => {
    const scope = new TestScope({ rax: 1n });
    scope.writeMemory("gva", 0x20n, Uint8Array.of(0, 0));
    expect(run("rax = 5", scope)).toBe(5n);
    expect(run("rax <<= 4", scope)).toBe(80n);
    expect(run("u16[0x20] = rax + 1", scope)).toBe(81n);
    expect(scope.memory.get(0x20n)).toBe(81);
  });

  test("a value that does not fit is refused, a negative one is not", () => {
    const scope = new TestScope({ eax: 0n });
    expect(failure("eax = 0x100000000", scope)).toContain("does not fit the 32 bits of eax");
    expect(run("eax = -1", scope)).toBe(0xffff_ffffn);
  });

  test("assignments are known before they run", () => {
    expect(assigns(parseExpression("1 + (rax = 2)"))).toBe(true);
    expect(assigns(parseExpression("u8[rax] == 2"))).toBe(false);
  });
});

describe("errors carry the column", () => {
  test.each([
    ["", "empty expression (column 1)"],
    ["1 +", "expected a value, found the end (column 4)"],
    ["(1", 'expected ")" to close the parenthesis, found the end (column 3)'],
    ["0x", '"0x" is not a number (column 1)'],
    ["12ab", '"12ab" is not a number (column 1)'],
    ["1 2", "unexpected 2 (column 3)"],
    ["a @ b", 'unexpected character "@" (column 3)'],
    ["5 = 6", "only registers, fields and memory can be assigned to (column 1)"],
    ["0x10000000000000000", "0x10000000000000000 does not fit 64 bits (column 1)"],
    ["u32", "u32 needs an address, as in u32[rsp], or a value, as in u32(rax) (column 1)"],
    ['"abc', 'missing closing " (column 1)'],
    ["1 / 0", "division by zero (column 3)"],
    ["1 + raz", 'nothing is called "raz" here; did you mean rax? (column 5)'],
  ])("%s", (text, message) => {
    expect(failure(text)).toBe(message);
  });

  test("nesting and length have limits instead of overflowing the stack", () => {
    expect(failure("(".repeat(3000) + "1")).toContain("nested too deeply");
    expect(failure("-".repeat(3000) + "1")).toContain("nested too deeply");
    expect(failure("1+".repeat(5000))).toContain("longer than");
  });
});

describe("log lines", () => {
  test("expressions in braces are filled in", () => {
    const scope = new TestScope({ rax: 0x10n, name: "out" });
    expect(fillLog(parseLogTemplate("rax={rax} {{x}} {name} {1+1}"), scope)).toBe("rax=0x10 {x} out 2");
  });
  test("a wrong expression tells its column in the line", () => {
    expect(() => parseLogTemplate("ab {1 +}")).toThrow("(column 8)");
    expect(() => parseLogTemplate("ab {1")).toThrow("(column 4)");
  });
});

describe("properties", () => {
  const next = random(20_261_121);
  const pick = <T>(list: readonly T[]): T => list[next(list.length)];
  const tree = (depth: number): string => {
    if (depth === 0 || next(4) === 0)
      return pick(["1", "0x7f", "rax", "eax", "vmcs.GUEST_RIP", "'x'", "18446744073709551615", "`a b`", "cs.base"]);
    const a = tree(depth - 1);
    const b = tree(depth - 1);
    return pick([
      `${a} ${pick(["+", "-", "*", "/", "%", "&", "|", "^", "<<", ">>", "==", "!=", "<", ">", "<=", ">=", "&&", "||"])} ${b}`,
      `(${a})`,
      `${pick(["-", "~", "!"])}${a}`,
      `(${a} ? ${b} : ${a})`,
      `u${pick([8, 16, 32, 64])}[${a}]`,
      `i${pick([8, 16, 32, 64])}(${b})`,
      `u8[gpa: ${a}]`,
    ]);
  };

  test("printing a tree and parsing it again gives the same tree", () => {
    const strip = (value: unknown): unknown =>
      JSON.parse(JSON.stringify(value, (k, v) => (k === "at" ? undefined : typeof v === "bigint" ? String(v) : v)));
    for (let i = 0; i < 2000; i++) {
      const first = parseExpression(tree(5));
      const text = printExpression(first);
      if (text.length > 4000) continue;
      expect(strip(parseExpression(text))).toEqual(strip(first));
    }
  });

  test("arithmetic agrees with 64-bit unsigned arithmetic", () => {
    const u64 = (): bigint => (BigInt(next(2 ** 32)) << 32n) | BigInt(next(2 ** 32));
    for (let i = 0; i < 2000; i++) {
      const rax = u64() >> BigInt(next(64));
      const rbx = u64() >> BigInt(next(64));
      const scope = new TestScope({ rax, rbx });
      const mask = (v: bigint): bigint => BigInt.asUintN(64, v);
      expect(run("rax + rbx", scope)).toBe(mask(rax + rbx));
      expect(run("rax - rbx", scope)).toBe(mask(rax - rbx));
      expect(run("rax * rbx", scope)).toBe(mask(rax * rbx));
      expect(run("~rax ^ rbx", scope)).toBe(mask(~rax) ^ rbx);
      expect(run("rax < rbx", scope)).toBe(rax < rbx ? 1n : 0n);
      if (rbx !== 0n) expect(run("rax / rbx * rbx + rax % rbx == rax", scope)).toBe(1n);
    }
  });

  test("any text either evaluates or fails with an ExpressionError", () => {
    const bits = [
      "1",
      "rax",
      "(",
      ")",
      "[",
      "]",
      "u8",
      "gpa",
      ":",
      "?",
      "+",
      "==",
      "=",
      "<<=",
      '"',
      "'",
      "`",
      ".",
      "$",
      " ",
      "é",
      "\\",
      "0x",
      "!",
    ];
    for (let i = 0; i < 5000; i++) {
      const text = Array.from({ length: 1 + next(12) }, () => pick(bits)).join("");
      try {
        holds(parseExpression(text), new TestScope({ rax: 3n }));
      } catch (error) {
        expect(error).toBeInstanceOf(ExpressionError);
      }
    }
  });

  test("a computed integer stays within 64 bits", () => {
    expect(integer(1n << 64n, false).value).toBe(0n);
    expect(integer((1n << 63n) + 1n, true).value).toBe(-(1n << 63n) + 1n);
  });
});

/**
 * The debugger's expression language, first half: text to syntax tree. C's operators and precedence over 64-bit integers:
 *
 *     rax + 8        cs.base + rip       vmcs.GUEST_RIP      vmcs.GUEST_CR0.PG     kvm_run.exit_reason
 *     u32[rsp + 4]   u8[gpa: 0x3f8]      i16[hpa: 0x1000]    port == 0x3f8 && size == 1
 *     rax = 5        u8[rdi] |= 0x80     `memcpy@plt` + 4    u8(al + 1)            direction == "out"
 *
 * Conditions of breakpoints and filters, log points, watches, hovers and the console all use it. Errors carry the column.
 */

/** A mistake in an expression; `at` is the offset of the offending character. */
export class ExpressionError extends Error {
  override readonly name: string = "ExpressionError";
  constructor(
    message: string,
    readonly at: number,
  ) {
    super(`${message} (column ${at + 1})`);
  }
}

/** A name that has a meaning at other stops than this one: the port of an I/O exit, say. */
export class AbsentName extends ExpressionError {}

const BINARY_PRECEDENCE = {
  "||": 1,
  "&&": 2,
  "|": 3,
  "^": 4,
  "&": 5,
  "==": 6,
  "!=": 6,
  "<": 7,
  ">": 7,
  "<=": 7,
  ">=": 7,
  "<<": 8,
  ">>": 8,
  "+": 9,
  "-": 9,
  "*": 10,
  "/": 10,
  "%": 10,
} as const;
export type BinaryOperator = keyof typeof BINARY_PRECEDENCE;
export type UnaryOperator = "-" | "~" | "!" | "+";

/** u8 .. u64 read unsigned, i8 .. i64 signed little-endian integers. */
export type MemoryType = "u8" | "u16" | "u32" | "u64" | "i8" | "i16" | "i32" | "i64";
/** `phys` is another name of `gpa`, `virt` and `lin` of `gva`. */
export type SpaceName = "gva" | "gpa" | "hpa";

export type Expression =
  | { readonly kind: "integer"; readonly value: bigint; readonly at: number }
  | { readonly kind: "string"; readonly value: string; readonly at: number }
  /** A register, field, trace detail or symbol: dotted, as written. `quoted` names are symbols only. */
  | { readonly kind: "name"; readonly name: string; readonly quoted: boolean; readonly at: number }
  | { readonly kind: "unary"; readonly operator: UnaryOperator; readonly operand: Expression; readonly at: number }
  | {
      readonly kind: "binary";
      readonly operator: BinaryOperator;
      readonly left: Expression;
      readonly right: Expression;
      readonly at: number;
    }
  | {
      readonly kind: "conditional";
      readonly test: Expression;
      readonly yes: Expression;
      readonly no: Expression;
      readonly at: number;
    }
  | { readonly kind: "memory"; readonly type: MemoryType; readonly address: Expression; readonly at: number }
  | { readonly kind: "cast"; readonly type: MemoryType; readonly operand: Expression; readonly at: number }
  /** `gpa: e` - an address in a named space. */
  | { readonly kind: "space"; readonly space: SpaceName; readonly operand: Expression; readonly at: number }
  | {
      readonly kind: "assign";
      readonly target: Expression;
      /** "" for a plain `=`. */
      readonly operator: BinaryOperator | "";
      readonly value: Expression;
      readonly at: number;
    };

const MEMORY_TYPES: ReadonlySet<string> = new Set(["u8", "u16", "u32", "u64", "i8", "i16", "i32", "i64"]);
const SPACES: Readonly<Record<string, SpaceName>> = {
  gva: "gva",
  virt: "gva",
  lin: "gva",
  gpa: "gpa",
  phys: "gpa",
  hpa: "hpa",
};
const ASSIGNMENTS: Readonly<Record<string, BinaryOperator | "">> = {
  "=": "",
  "+=": "+",
  "-=": "-",
  "*=": "*",
  "/=": "/",
  "%=": "%",
  "&=": "&",
  "|=": "|",
  "^=": "^",
  "<<=": "<<",
  ">>=": ">>",
};
/** Longest first, so that `<<=` is not read as `<<`. */
const OPERATORS = [
  ...["<<=", ">>=", "&&", "||", "==", "!=", "<=", ">=", "<<", ">>", "+=", "-=", "*=", "/=", "%=", "&=", "|=", "^="],
  ...["+", "-", "*", "/", "%", "&", "|", "^", "~", "!", "<", ">", "=", "?", ":", "(", ")", "[", "]"],
];
const MAX_LENGTH = 4096;
const MAX_DEPTH = 200;
const MAX_INTEGER = (1n << 64n) - 1n;

type Token =
  | { readonly kind: "integer"; readonly value: bigint; readonly at: number; readonly end: number }
  | { readonly kind: "string"; readonly value: string; readonly at: number; readonly end: number }
  | {
      readonly kind: "name";
      readonly name: string;
      readonly quoted: boolean;
      readonly at: number;
      readonly end: number;
    }
  | { readonly kind: "operator"; readonly text: string; readonly at: number; readonly end: number }
  | { readonly kind: "end"; readonly at: number; readonly end: number };

const ESCAPES: Readonly<Record<string, string>> = { n: "\n", t: "\t", r: "\r", "0": "\0" };

/** Text between quotes from `at` (the opening quote) on, and the offset behind the closing one. */
function quotedText(text: string, at: number): { value: string; end: number } {
  const quote = text[at];
  let value = "";
  let i = at + 1;
  while (i < text.length && text[i] !== quote) {
    if (text[i] === "\\" && quote !== "`" && i + 1 < text.length) {
      i++;
      value += ESCAPES[text[i]] ?? text[i];
    } else value += text[i];
    i++;
  }
  if (i >= text.length) throw new ExpressionError(`missing closing ${quote}`, at);
  return { value, end: i + 1 };
}

function tokenize(text: string): Token[] {
  if (text.length > MAX_LENGTH)
    throw new ExpressionError(`expression longer than ${MAX_LENGTH} characters`, MAX_LENGTH);
  const tokens: Token[] = [];
  let at = 0;
  while (at < text.length) {
    const rest = text.slice(at);
    const space = /^\s+/.exec(rest);
    if (space) {
      at += space[0].length;
      continue;
    }
    const number = /^(?:0[xX][0-9a-fA-F_]*|0[bB][01_]*|0[oO][0-7_]*|[0-9][0-9_]*)[A-Za-z0-9_]*/.exec(rest);
    if (number) {
      const digits = number[0].replaceAll("_", "");
      if (!/^(?:0[xX][0-9a-fA-F]+|0[bB][01]+|0[oO][0-7]+|[0-9]+)$/.test(digits))
        throw new ExpressionError(`"${number[0]}" is not a number`, at);
      const value = BigInt(digits);
      if (value > MAX_INTEGER) throw new ExpressionError(`${number[0]} does not fit 64 bits`, at);
      tokens.push({ kind: "integer", value, at, end: at + number[0].length });
      at += number[0].length;
      continue;
    }
    const name = /^\$?[A-Za-z_][\w$]*(?:\.[A-Za-z_0-9$][\w$]*)*/.exec(rest);
    if (name) {
      const plain = name[0].startsWith("$") ? name[0].slice(1) : name[0];
      tokens.push({ kind: "name", name: plain, quoted: false, at, end: at + name[0].length });
      at += name[0].length;
      continue;
    }
    const c = text[at];
    if (c === "`" || c === '"' || c === "'") {
      const { value, end } = quotedText(text, at);
      if (c === "`") tokens.push({ kind: "name", name: value, quoted: true, at, end });
      else if (c === '"') tokens.push({ kind: "string", value, at, end });
      else {
        if ([...value].length !== 1) throw new ExpressionError("a character literal holds one character", at);
        tokens.push({ kind: "integer", value: BigInt(value.codePointAt(0) ?? 0), at, end });
      }
      at = end;
      continue;
    }
    const operator = OPERATORS.find((o) => rest.startsWith(o));
    if (!operator)
      throw new ExpressionError(`unexpected character "${String.fromCodePoint(rest.codePointAt(0) ?? 0)}"`, at);
    tokens.push({ kind: "operator", text: operator, at, end: at + operator.length });
    at += operator.length;
  }
  tokens.push({ kind: "end", at: text.length, end: text.length });
  return tokens;
}

class Parser {
  private next = 0;
  private depth = 0;
  private readonly tokens: readonly Token[];

  constructor(text: string) {
    this.tokens = tokenize(text);
  }

  whole(): Expression {
    if (this.tokens[0].kind === "end") throw new ExpressionError("empty expression", 0);
    const expression = this.assignment();
    const rest = this.peek;
    if (rest.kind !== "end") throw new ExpressionError(`unexpected ${describe(rest)}`, rest.at);
    return expression;
  }

  private get peek(): Token {
    return this.tokens[this.next];
  }

  private isOperator(text: string, ahead = 0): boolean {
    const token = this.tokens[Math.min(this.next + ahead, this.tokens.length - 1)];
    return token.kind === "operator" && token.text === text;
  }

  private accept(text: string): boolean {
    if (!this.isOperator(text)) return false;
    this.next++;
    return true;
  }

  private expect(text: string, why: string): void {
    if (!this.accept(text))
      throw new ExpressionError(`expected "${text}" ${why}, found ${describe(this.peek)}`, this.peek.at);
  }

  private nested<T>(parse: () => T): T {
    if (++this.depth > MAX_DEPTH) throw new ExpressionError("expression is nested too deeply", this.peek.at);
    const result = parse();
    this.depth--;
    return result;
  }

  private assignment(): Expression {
    return this.nested(() => {
      const target = this.conditional();
      const token = this.peek;
      if (token.kind !== "operator" || !(token.text in ASSIGNMENTS)) return target;
      if (target.kind !== "name" && target.kind !== "memory")
        throw new ExpressionError("only registers, fields and memory can be assigned to", target.at);
      this.next++;
      return { kind: "assign", target, operator: ASSIGNMENTS[token.text], value: this.assignment(), at: token.at };
    });
  }

  private conditional(): Expression {
    const test = this.binary(1);
    const at = this.peek.at;
    if (!this.accept("?")) return test;
    const yes = this.assignment();
    this.expect(":", "in a conditional expression");
    return { kind: "conditional", test, yes, no: this.assignment(), at };
  }

  private binary(lowest: number): Expression {
    return this.nested(() => {
      let left = this.unary();
      for (;;) {
        const token = this.peek;
        if (token.kind !== "operator" || !(token.text in BINARY_PRECEDENCE)) return left;
        const operator = token.text as BinaryOperator;
        const precedence = BINARY_PRECEDENCE[operator];
        if (precedence < lowest) return left;
        this.next++;
        left = { kind: "binary", operator, left, right: this.binary(precedence + 1), at: token.at };
      }
    });
  }

  private unary(): Expression {
    const token = this.peek;
    if (
      token.kind === "operator" &&
      (token.text === "-" || token.text === "~" || token.text === "!" || token.text === "+")
    ) {
      this.next++;
      const operator = token.text;
      return { kind: "unary", operator, operand: this.nested(() => this.unary()), at: token.at };
    }
    return this.primary();
  }

  private primary(): Expression {
    const token = this.peek;
    this.next++;
    if (token.kind === "integer") return { kind: "integer", value: token.value, at: token.at };
    if (token.kind === "string") return { kind: "string", value: token.value, at: token.at };
    if (token.kind === "name") return this.named(token.name, token.quoted, token.at);
    if (token.kind === "operator" && token.text === "(") {
      const inner = this.assignment();
      this.expect(")", "to close the parenthesis");
      return inner;
    }
    this.next--;
    throw new ExpressionError(`expected a value, found ${describe(token)}`, token.at);
  }

  private named(name: string, quoted: boolean, at: number): Expression {
    if (quoted) return { kind: "name", name, quoted, at };
    if (MEMORY_TYPES.has(name)) {
      const type = name as MemoryType;
      if (this.accept("[")) {
        const address = this.assignment();
        this.expect("]", "behind the address");
        return { kind: "memory", type, address, at };
      }
      if (this.accept("(")) {
        const operand = this.assignment();
        this.expect(")", "behind the value");
        return { kind: "cast", type, operand, at };
      }
      throw new ExpressionError(`${name} needs an address, as in ${name}[rsp], or a value, as in ${name}(rax)`, at);
    }
    if (Object.hasOwn(SPACES, name) && this.isOperator(":")) {
      this.next++;
      return { kind: "space", space: SPACES[name], operand: this.binary(1), at };
    }
    return { kind: "name", name, quoted, at };
  }
}

function describe(token: Token): string {
  switch (token.kind) {
    case "end":
      return "the end";
    case "integer":
      return String(token.value);
    case "string":
      return "a string";
    case "name":
      return `"${token.name}"`;
    case "operator":
      return `"${token.text}"`;
  }
}

/** @throws ExpressionError with the place of the mistake */
export function parseExpression(text: string): Expression {
  return new Parser(text).whole();
}

/** The expression as text again, fully parenthesised; parses to an equal tree. */
export function printExpression(e: Expression): string {
  switch (e.kind) {
    case "integer":
      return String(e.value);
    case "string":
      return `"${e.value.replace(/[\\"]/g, "\\$&").replaceAll("\n", "\\n").replaceAll("\0", "\\0")}"`;
    case "name":
      return e.quoted ? `\`${e.name}\`` : e.name;
    case "unary":
      return `(${e.operator}${printExpression(e.operand)})`;
    case "binary":
      return `(${printExpression(e.left)} ${e.operator} ${printExpression(e.right)})`;
    case "conditional":
      return `(${printExpression(e.test)} ? ${printExpression(e.yes)} : ${printExpression(e.no)})`;
    case "memory":
      return `${e.type}[${printExpression(e.address)}]`;
    case "cast":
      return `${e.type}(${printExpression(e.operand)})`;
    case "space":
      return `(${e.space}: ${printExpression(e.operand)})`;
    case "assign":
      return `(${printExpression(e.target)} ${e.operator}= ${printExpression(e.value)})`;
  }
}

/** A log line: text with {expressions}; `{{` and `}}` stand for braces. */
export type LogTemplate = readonly (string | { readonly expression: Expression; readonly source: string })[];

/** @throws ExpressionError when a brace is open or an expression is wrong; columns count in the whole line */
export function parseLogTemplate(text: string): LogTemplate {
  const parts: (string | { expression: Expression; source: string })[] = [];
  let plain = "";
  let i = 0;
  while (i < text.length) {
    const c = text[i];
    if ((c === "{" || c === "}") && text[i + 1] === c) {
      plain += c;
      i += 2;
    } else if (c === "{") {
      const end = text.indexOf("}", i);
      if (end < 0) throw new ExpressionError('missing "}" in the log message', i);
      if (plain) parts.push(plain);
      plain = "";
      const source = text.slice(i + 1, end);
      try {
        parts.push({ expression: parseExpression(source), source });
      } catch (error) {
        if (!(error instanceof ExpressionError)) throw error;
        throw new ExpressionError(error.message.replace(/ \(column \d+\)$/, ""), i + 1 + error.at);
      }
      i = end + 1;
    } else {
      plain += c;
      i++;
    }
  }
  if (plain) parts.push(plain);
  return parts;
}

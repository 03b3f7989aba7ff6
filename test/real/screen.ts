/** A text screen drawn by a serial console: as much of ECMA-48 as full-screen guests use. */

export class Screen {
  private readonly cells: string[][];
  private row = 0;
  private column = 0;

  constructor(
    private readonly height = 25,
    private readonly width = 80,
  ) {
    this.cells = Array.from({ length: height }, () => Array(width).fill(" "));
  }

  /** The screen's lines, without spaces at their ends. */
  get lines(): string[] {
    return this.cells.map((line) => line.join("").trimEnd());
  }

  write(text: string): this {
    // CSI parameters final-byte, another escape sequence, or one character.
    // biome-ignore lint/suspicious/noControlCharactersInRegex: escape sequences begin with a control character
    for (const [whole, parameters, final] of text.matchAll(/\u001b\[([?0-9;]*)([@-~])|\u001b.|[\s\S]/g)) {
      if (final !== undefined) this.control(parameters, final);
      else if (whole.length === 1) this.character(whole);
    }
    return this;
  }

  private character(c: string): void {
    if (c === "\r") this.column = 0;
    else if (c === "\n") this.lineFeed();
    else if (c === "\b") this.column = Math.max(0, this.column - 1);
    else if (c >= " ") {
      if (this.column >= this.width) {
        this.column = 0;
        this.lineFeed();
      }
      this.cells[this.row][this.column++] = c;
    }
  }

  private lineFeed(): void {
    if (this.row < this.height - 1) this.row++;
    else {
      this.cells.shift();
      this.cells.push(Array(this.width).fill(" "));
    }
  }

  private control(parameters: string, final: string): void {
    const [first = 0, second = 0] = parameters.split(";").map(Number);
    if (final === "H" || final === "f") {
      this.row = Math.min(this.height, Math.max(1, first)) - 1;
      this.column = Math.min(this.width, Math.max(1, second)) - 1;
    } else if (final === "J" && first === 2) for (const line of this.cells) line.fill(" ");
    else if (final === "K") this.cells[this.row].fill(" ", this.column);
  }
}

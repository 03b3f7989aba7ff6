/** A serial line's bytes as text for a terminal. */

/**
 * Decodes UTF-8 that arrives in pieces, and makes a lone line feed start at the left edge, as a terminal set to raw mode
 * needs it. Escape sequences pass through: full-screen programs draw themselves.
 */
export class TerminalText {
  private readonly decoder = new TextDecoder("utf-8");
  private afterReturn = false;

  /** @returns what to write to the terminal for these bytes */
  take(bytes: Uint8Array): string {
    const text = this.decoder.decode(bytes, { stream: true });
    let out = "";
    for (const c of text) {
      out += c === "\n" && !this.afterReturn ? "\r\n" : c;
      this.afterReturn = c === "\r";
    }
    return out;
  }
}

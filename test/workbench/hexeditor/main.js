// Test only. The workbench opens debug memory with the custom editor of this id; the real one is not on npm.
const vscode = require("vscode");

const LENGTH = 256;

/** @param {Uint8Array} bytes */
function rows(bytes) {
  const lines = [];
  for (let at = 0; at < bytes.length; at += 16) {
    const row = [...bytes.subarray(at, at + 16)];
    const hex = row.map((b) => b.toString(16).padStart(2, "0")).join(" ");
    const text = row.map((b) => (b >= 0x20 && b < 0x7f ? String.fromCharCode(b) : ".")).join("");
    lines.push(`${at.toString(16).padStart(4, "0")}  ${hex.padEnd(47)}  ${text}`);
  }
  return lines.join("\n").replace(/[&<>]/g, (c) => `&#${c.charCodeAt(0)};`);
}

/** @param {import("vscode").ExtensionContext} context */
exports.activate = (context) => {
  /** @type {import("vscode").CustomReadonlyEditorProvider} */
  const provider = {
    openCustomDocument: (uri) => ({ uri, dispose() {} }),
    resolveCustomEditor: async (document, panel) => {
      const bytes = await vscode.workspace.fs.readFile(document.uri.with({ query: `range=0:${LENGTH}` }));
      panel.webview.html = `<pre id="memory">${rows(bytes)}</pre>`;
    },
  };
  context.subscriptions.push(vscode.window.registerCustomEditorProvider("hexEditor.hexedit", provider));
};

/** Runs inside a desktop VS Code (npm run test:desktop): the sample guest from start to end, through the editor's own API. */
import * as vscode from "vscode";

const PATIENCE_MS = 120_000;

function within<T>(what: string, promise: Promise<T>): Promise<T> {
  const late = new Promise<never>((_, reject) => {
    setTimeout(() => reject(new Error(`${what} did not happen within ${PATIENCE_MS / 1000} s`)), PATIENCE_MS);
  });
  return Promise.race([promise, late]);
}

/** VS Code's test runner calls this; a rejection fails the run. */
export async function run(): Promise<void> {
  let serial = "";
  const disposables: vscode.Disposable[] = [];
  const ended = new Promise<void>((resolve) => {
    disposables.push(vscode.debug.onDidTerminateDebugSession(() => resolve()));
  });
  disposables.push(
    vscode.debug.onDidReceiveDebugSessionCustomEvent(({ event, body }) => {
      if (event === "hyperstep/serial") serial += Buffer.from(body.data, "base64").toString("latin1");
    }),
  );
  const folder = vscode.workspace.workspaceFolders?.[0];
  if (!folder) throw new Error("no folder is open");
  const started = await vscode.debug.startDebugging(folder, "Hello guest on KVM (VMX)");
  if (!started) throw new Error("the session did not start");
  await within("the guest's end", ended);
  for (const disposable of disposables) disposable.dispose();
  if (!serial.includes("Good-bye.")) throw new Error(`the guest did not say good-bye; it said:\n${serial}`);
}

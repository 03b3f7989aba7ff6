/** Progress a client shows while something takes long; nothing for clients that do not want to know. */
import type { SessionContext } from "./context";

export class Progress {
  private static next = 1;
  private id: string | null = null;

  /** @param cancelled what to do when the user takes it back; without it, it cannot be */
  constructor(
    private readonly session: Pick<SessionContext, "client" | "event">,
    private readonly title: string,
    private readonly cancelled?: () => void,
  ) {}

  /** Whether it is shown now. */
  get shown(): boolean {
    return this.id !== null;
  }

  start(message?: string): void {
    if (this.id !== null || !this.session.client.progress) return;
    this.id = `hyperstep-${Progress.next++}`;
    this.session.event("progressStart", {
      progressId: this.id,
      title: this.title,
      cancellable: this.cancelled !== undefined,
      ...(message ? { message } : {}),
    });
  }

  update(message: string): void {
    if (this.id !== null) this.session.event("progressUpdate", { progressId: this.id, message });
  }

  end(message?: string): void {
    if (this.id === null) return;
    this.session.event("progressEnd", { progressId: this.id, ...(message ? { message } : {}) });
    this.id = null;
  }

  /** @returns whether the client meant this one */
  cancel(progressId: string): boolean {
    if (progressId !== this.id) return false;
    this.end();
    this.cancelled?.();
    return true;
  }
}

/** Error numbers as Linux has them (include/uapi/asm-generic/errno-base.h), and the error an ioctl fails with. */

// biome-ignore format: a table
export const Errno = {
  EPERM: 1, ENOENT: 2, EINTR: 4, EIO: 5, ENXIO: 6, E2BIG: 7, EBADF: 9, EAGAIN: 11, ENOMEM: 12, EFAULT: 14, EBUSY: 16,
  EEXIST: 17, ENODEV: 19, EINVAL: 22, EMFILE: 24, ENOTTY: 25, ENOSPC: 28, ENOSYS: 38, EOPNOTSUPP: 95,
} as const;
/** Name of an error number the model answers with. */
export type ErrnoName = keyof typeof Errno;

const names = new Map<number, ErrnoName>(Object.entries(Errno).map(([name, n]) => [n, name as ErrnoName]));

/** Name of an error number, e.g. "EINVAL" for 22. */
export const errnoName = (errno: number): ErrnoName | `errno ${number}` => names.get(errno) ?? `errno ${errno}`;

/** An ioctl that failed: what a C caller would find in errno, and the rule that was broken. */
export class KvmError extends Error {
  override readonly name = "KvmError";
  /** Positive error number. */
  readonly number: number;

  /**
   * @param errno the name
   * @param ioctl which call, e.g. "KVM_SET_USER_MEMORY_REGION"
   * @param why the rule, for a person
   */
  constructor(
    readonly errno: ErrnoName,
    readonly ioctl: string,
    readonly why: string,
  ) {
    super(`${ioctl}: ${errno} (${why})`);
    this.number = Errno[errno];
  }
}

/** Something KVM itself would answer with BUG() or WARN(): a defect of the model, never of the guest. */
export class KvmBug extends Error {
  override readonly name = "KvmBug";
}

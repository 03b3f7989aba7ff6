import { Errno, KvmError } from "../../engine/kvm/api";

/** Name of the errno an ioctl fails with, or "ok". */
export function errno(ioctl: () => unknown): string {
  try {
    ioctl();
    return "ok";
  } catch (error) {
    if (error instanceof KvmError) {
      if (error.number !== Errno[error.errno]) throw new Error(`${error.errno} is not ${error.number}`);
      return error.errno;
    }
    throw error;
  }
}

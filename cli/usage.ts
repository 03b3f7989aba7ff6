/** What the command line says about itself, and errors in its use. */

/** Wrong use of the command: one clear line and a hint, exit status 2. */
export class UsageError extends Error {
  override readonly name = "UsageError";
}

const REASONS: Readonly<Record<string, string>> = {
  ENOENT: "there is no such file",
  EACCES: "it may not be read",
  EISDIR: "it is a directory",
  ENOTDIR: "a part of its path is not a directory",
};

/** Why the file system refused. */
export function reasonOf(error: unknown): string {
  const code = (error as NodeJS.ErrnoException).code ?? "";
  return REASONS[code] ?? (error instanceof Error ? error.message : String(error));
}

export const EXIT_STATUS = {
  POWER_OFF: 0,
  USAGE: 2,
  TRIPLE_FAULT: 3,
  DEAD_HALT: 4,
  INTERNAL_ERROR: 5,
  TIME_OUT: 124,
  /** Interrupted from the terminal (128 + SIGINT). */
  INTERRUPTED: 130,
} as const;

export const USAGE = `hyperstep - run and debug guests and hypervisors on an emulated x86-64 machine

  hyperstep run [options] IMAGE    run an image: serial port on standard output, keyboard from standard input
  hyperstep dap [--port N]         serve the Debug Adapter Protocol on standard input and output, or on a port
  hyperstep --help | --version

IMAGE is an ELF file (32 or 64 bits, multiboot or not), a Linux bzImage, a multiboot image, a firmware image or
a flat binary.

Options of run:
  --accel none|vmx          none: on the bare processor (default); vmx: as a guest of the KVM model
  --memory SIZE             guest memory, e.g. 64M or 1G (default 256M)
  --smp N                   number of processors (default 1)
  --append STRING           kernel command line
  --initrd FILE             initial RAM disk, or first multiboot module
  --module "FILE ARGS"      a further multiboot module; may be repeated
  --disk FILE[,write|,readonly]
                            virtio disk with this raw image; what the guest writes stays in memory, with ",write" it
                            goes back into the file at the end; may be repeated
  --virtio console,rng      further virtio devices: a console (hvc0), which then takes what is typed; random bytes
  --load-address ADDRESS    where a flat image goes and starts
  --firmware FILE           start with this firmware (SeaBIOS, OVMF) at the reset vector; it boots IMAGE, a disk or an
                            ISO 9660 image, which may be left out
  --firmware-vars FILE      flash chip with the firmware's variables (OVMF_VARS.fd)
  --video-bios FILE         option ROM of the display adapter (vgabios-stdvga.bin)
  --ide-disk FILE, --cdrom FILE
                            further drives of a machine with firmware; may be repeated
  --cpu MODEL               processor model: skylake (default), epyc, core, opteron
  --kvm NAME=VALUE          module parameter of the KVM model, e.g. eptad=0; may be repeated
  --tier 0|1                0: interpreter (default), 1: with the region compiler
  --max-instructions N      stop after N instructions
  --timeout SECONDS         stop after that much real time
  --no-reboot               a reset by the guest ends the run instead of starting the image again
  --no-status               no status line on a terminal
  --trace exits             one line per VM exit on standard error
  --stats FILE              write instruction and exit counts as JSON

Exit status: (code << 1) | 1 when the guest writes code to port 0xf4; 0 on power-off, --max-instructions, or reset with
--no-reboot; 124 on time-out; 3 on triple fault; 4 when all processors halt for good; 5 on an error KVM cannot handle; 2
on bad usage or a bad image.
On a terminal, Ctrl-A x ends the run and Ctrl-A Ctrl-A types Ctrl-A.
`;

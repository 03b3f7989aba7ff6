/** The header of a PCI function's configuration space (PCI Local Bus 3.0 chapter 6), and what capabilities it may list. */

/** Register offsets of the type 0 header. */
export const PciReg = {
  VENDOR_ID: 0x00,
  DEVICE_ID: 0x02,
  COMMAND: 0x04,
  STATUS: 0x06,
  REVISION: 0x08,
  CLASS: 0x09,
  CACHE_LINE_SIZE: 0x0c,
  LATENCY_TIMER: 0x0d,
  HEADER_TYPE: 0x0e,
  BAR0: 0x10,
  SUBSYSTEM_VENDOR_ID: 0x2c,
  SUBSYSTEM_ID: 0x2e,
  ROM: 0x30,
  CAPABILITIES: 0x34,
  INTERRUPT_LINE: 0x3c,
  INTERRUPT_PIN: 0x3d,
} as const;

/** Command register bits (6.2.2). */
export const PciCommand = {
  IO: 1 << 0,
  MEMORY: 1 << 1,
  MASTER: 1 << 2,
  SERR: 1 << 8,
  INTX_DISABLE: 1 << 10,
} as const;

/** Status register bits (6.2.3). */
export const PciStatus = { INTERRUPT: 1 << 3, CAPABILITIES: 1 << 4, ERRORS: 0xf900 } as const;

/** Capability IDs (appendix H). */
export const PciCapability = { POWER_MANAGEMENT: 0x01, MSI: 0x05, VENDOR: 0x09, MSI_X: 0x11 } as const;

/** Bit of the header type: the device has more functions than function 0. */
export const HEADER_MULTIFUNCTION = 0x80;
/** Bytes of a function's configuration space. */
export const CONFIG_SPACE_SIZE = 256;
/** Base address registers of a type 0 header. */
export const BAR_COUNT = 6;

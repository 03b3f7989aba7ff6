/**
 * What local APICs and I/O APICs say to each other (SDM 3A 10.10: the interrupt message), and the plain bus that carries it.
 */

/** Delivery modes as encoded in the ICR, LVT and redirection entries (SDM 3A 10.5.1, 10.6.1). */
export const DeliveryMode = {
  FIXED: 0,
  LOWEST_PRIORITY: 1,
  SMI: 2,
  NMI: 4,
  INIT: 5,
  STARTUP: 6,
  EXTINT: 7,
} as const;
export type DeliveryMode = (typeof DeliveryMode)[keyof typeof DeliveryMode];

/** What travels to local APICs: an IPI, an I/O APIC's interrupt, or an MSI. */
export interface InterruptMessage {
  readonly vector: number;
  /** A DeliveryMode; other values are reserved and deliver nothing. */
  readonly deliveryMode: number;
  /** True: `destination` is a logical address (SDM 3A 10.6.2.2). */
  readonly logical: boolean;
  /** APIC id or message destination address; 0xff (xAPIC) or 0xffffffff (x2APIC) is everybody. */
  readonly destination: number;
  readonly level: boolean;
  /** False only for the INIT level de-assert message. */
  readonly assert: boolean;
  /** APIC id of the sender that is to be left out, or -1. */
  readonly exclude: number;
}

const MESSAGE_BASE = 0xfee;
const MESSAGE_LOGICAL = 1 << 2;
const MESSAGE_LEVEL = 1 << 15;
const MESSAGE_ASSERT = 1 << 14;

/**
 * The interrupt message in a write of `data` to `address` (SDM 3A 10.11): bits 31:20 of the address are 0xfee, then the
 * destination; the high half of the address carries bits 31:8 of an x2APIC id.
 * @returns undefined for an address that is not the APICs'
 */
export function messageOf(address: number, addressHigh: number, data: number): InterruptMessage | undefined {
  if (address >>> 20 !== MESSAGE_BASE) return undefined;
  const level = (data & MESSAGE_LEVEL) !== 0;
  return {
    vector: data & 0xff,
    deliveryMode: (data >> 8) & 7,
    logical: (address & MESSAGE_LOGICAL) !== 0,
    destination: (((address >>> 12) & 0xff) | (addressHigh & 0xffffff00)) >>> 0,
    level,
    assert: !level || (data & MESSAGE_ASSERT) !== 0,
    exclude: -1,
  };
}

/** The way between local APICs, I/O APICs and message signalled interrupts. */
export interface ApicBus {
  /** @returns false when no APIC accepted it */
  deliver(message: InterruptMessage): boolean;
  /** EOI message for a level-triggered vector, to all I/O APICs. */
  broadcastEoi(vector: number): void;
}

/** A local APIC as the bus sees it. */
export interface ApicTarget {
  readonly id: number;
  matches(destination: number, logical: boolean): boolean;
  /** Processor priority, for lowest-priority arbitration. */
  readonly priority: number;
  /** Software-enabled: takes part in arbitration. */
  readonly enabled: boolean;
  accept(deliveryMode: number, vector: number, level: boolean, assert: boolean): void;
}

/** An I/O APIC as the bus sees it. */
export interface EoiTarget {
  eoi(vector: number): void;
}

/** State of lowest-priority arbitration. */
export interface SystemApicBusState {
  /** Where the round robin among equal priorities goes on. */
  next: number;
}

/** The bus of a machine whose APICs are all chips of this folder. */
export class SystemApicBus implements ApicBus {
  state: SystemApicBusState = { next: 0 };
  private readonly locals: ApicTarget[] = [];
  private readonly ios: EoiTarget[] = [];

  attachLocal(apic: ApicTarget): void {
    this.locals.push(apic);
  }

  attachIo(apic: EoiTarget): void {
    this.ios.push(apic);
  }

  deliver(m: InterruptMessage): boolean {
    if (m.deliveryMode === DeliveryMode.LOWEST_PRIORITY) return this.deliverLowest(m);
    let accepted = false;
    for (const apic of this.locals) {
      if (apic.id === m.exclude || !apic.matches(m.destination, m.logical)) continue;
      apic.accept(m.deliveryMode, m.vector, m.level, m.assert);
      accepted = true;
    }
    return accepted;
  }

  broadcastEoi(vector: number): void {
    for (const io of this.ios) io.eoi(vector);
  }

  /** SDM 3A 10.6.2.4: the processor of lowest priority takes it; equals take turns. */
  private deliverLowest(m: InterruptMessage): boolean {
    const { locals } = this;
    let best = -1;
    for (let i = 0; i < locals.length; i++) {
      const at = (this.state.next + i) % locals.length;
      const apic = locals[at];
      if (apic.id === m.exclude || !apic.enabled || !apic.matches(m.destination, m.logical)) continue;
      if (best < 0 || apic.priority < locals[best].priority) best = at;
    }
    if (best < 0) return false;
    this.state.next = (best + 1) % locals.length;
    locals[best].accept(DeliveryMode.FIXED, m.vector, m.level, m.assert);
    return true;
  }
}

/** Answers the requests of custom-protocol.ts. */
import type { BitField } from "../engine/cpu/registers";
import { describeBits, extract } from "../engine/debug/bits";
import { type Handlers, type SessionContext, threadOf, vcpuOf } from "./context";
import type { CustomBitField, CustomField, CustomRequests } from "./custom-protocol";
import { fromBase64, hex } from "./format";

function bitsOf(value: bigint, bits: readonly BitField[] | undefined): CustomBitField[] {
  return (bits ?? []).map((bit) => {
    const { name, low, width, help, values } = bit;
    const word = extract(value, bit);
    const text = values?.[Number(word)];
    return { name, low, width, help, value: hex(word), ...(text ? { text } : {}) };
  });
}

export function customHandlers(session: SessionContext): Handlers {
  return {
    "hyperstep/serialInput": async ({ data }: CustomRequests["hyperstep/serialInput"]["arguments"]) => {
      await session.engine.request("serialInput", { bytes: fromBase64(data) });
      return {};
    },
    "hyperstep/setNumbers": async ({ numbers }: CustomRequests["hyperstep/setNumbers"]["arguments"]) => {
      session.numbers = numbers;
      session.invalidate(["variables"]);
      return { numbers };
    },
    "hyperstep/registers": async ({ threadId }: CustomRequests["hyperstep/registers"]["arguments"]) => {
      const { fields } = await session.engine.request("readRegisters", { vcpu: vcpuOf(threadId) });
      return {
        fields: fields.map(
          ({ name, value, row }): CustomField => ({
            name,
            group: row.group,
            value: hex(value),
            width: row.width,
            decoded: row.bits ? describeBits(value, row.bits) : "",
            help: row.help,
            section: row.section,
            bits: bitsOf(value, row.bits),
          }),
        ),
      };
    },
    "hyperstep/vmcs": async ({ threadId }: CustomRequests["hyperstep/vmcs"]["arguments"]) => {
      const vmcs = await session.engine.request("readVmcs", { vcpu: vcpuOf(threadId) });
      return {
        pointer: vmcs ? hex(vmcs.pointer) : null,
        fields: (vmcs?.fields ?? []).map(
          (f): CustomField => ({
            name: `vmcs.${f.name}`,
            group: f.group,
            value: hex(f.value),
            width: f.width,
            decoded: f.decoded,
            help: f.help,
            section: f.section,
            bits: bitsOf(f.value, f.bits),
          }),
        ),
      };
    },
    "hyperstep/kvmRun": async ({ threadId }: CustomRequests["hyperstep/kvmRun"]["arguments"]) => {
      const run = await session.engine.request("readKvmRun", { vcpu: vcpuOf(threadId) });
      return {
        fields: Object.entries(run?.fields ?? {}).map(
          ([name, value]): CustomField => ({
            name: `kvm_run.${name}`,
            group: "kvm_run",
            value: typeof value === "string" ? value : hex(BigInt(value)),
            width: typeof value === "string" ? 0 : 64,
            decoded: "",
            help: "",
            section: "",
            bits: [],
          }),
        ),
      };
    },
    "hyperstep/stats": async () => {
      const stats = await session.engine.request("stats", {});
      const { list } = await session.engine.request("vcpus", {});
      return {
        ...stats,
        vcpus: list.map(({ index, linear, mode, halted, inGuest, retired }) => ({
          threadId: threadOf(index),
          pc: hex(linear),
          mode,
          halted,
          inGuest,
          retired,
        })),
      };
    },
  };
}

/* VM entries that must fail: with guest state that cannot be, and with controls that cannot be. */
#include "vmx.h"

#define CR0_PE 1ul

static struct registers r;

static void nothing(void) {}

int bad = 0;

static void expect(const char *what, u64 value, u64 right) {
  print(what);
  print_hex(value);
  if (value != right) {
    bad = 1;
    print(" but should be ");
    print_hex(right);
  }
}

void hypervisor_main(void) {
  start_vmx();

  new_vm((u64)nothing);
  vmwrite(SECONDARY_VM_EXEC_CONTROL, vmread(SECONDARY_VM_EXEC_CONTROL) | SECONDARY_UNRESTRICTED);
  vmwrite(GUEST_CR0, vmread(GUEST_CR0) & ~CR0_PE);
  print("guest CR0.PG without PE:");
  if (vm_enter(&r, 0)) fail(" VMLAUNCH failed as an instruction");
  expect(" exit reason ", vmread(VM_EXIT_REASON), ENTRY_FAILURE | 33);
  expect(" qualification ", vmread(EXIT_QUALIFICATION), 0);
  print("\n");

  new_vm((u64)nothing);
  vmwrite(VIRTUAL_PROCESSOR_ID, 0);
  print("VPID 0:");
  if (vm_enter(&r, 0) != 1) fail(" VMLAUNCH did not fail with VMfailValid");
  expect(" VM-instruction error ", vmread(VM_INSTRUCTION_ERROR), 7);
  print("\n");

  new_vm((u64)nothing);
  vmwrite(HOST_CS_SELECTOR, 0x0b);
  print("host CS with RPL 3:");
  if (vm_enter(&r, 0) != 1) fail(" VMLAUNCH did not fail with VMfailValid");
  expect(" VM-instruction error ", vmread(VM_INSTRUCTION_ERROR), 8);
  print("\n");

  new_vm((u64)nothing);
  print("VMRESUME of a clear VMCS:");
  if (vm_enter(&r, 1) != 1) fail(" VMRESUME did not fail with VMfailValid");
  expect(" VM-instruction error ", vmread(VM_INSTRUCTION_ERROR), 5);
  print("\n");
  finish(bad ? 7 : 0);
}

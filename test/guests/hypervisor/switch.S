# int vm_enter(struct registers *guest, int resume)
# Loads the guest's general registers (all but RSP, which the VMCS has), enters, and comes back at the next VM exit with
# the guest's registers stored. Returns 0 after a VM exit, 1 for VMfailValid, 2 for VMfailInvalid.

        .set    HOST_RSP, 0x6c14

        .text
        .globl  vm_enter
        .type   vm_enter, @function
vm_enter:
        pushq   %rbx
        pushq   %rbp
        pushq   %r12
        pushq   %r13
        pushq   %r14
        pushq   %r15
        pushq   %rdi
        movl    $HOST_RSP, %eax
        vmwrite %rsp, %rax
        testl   %esi, %esi
        movq    0(%rdi), %rax
        movq    8(%rdi), %rcx
        movq    16(%rdi), %rdx
        movq    24(%rdi), %rbx
        movq    40(%rdi), %rbp
        movq    48(%rdi), %rsi
        movq    64(%rdi), %r8
        movq    72(%rdi), %r9
        movq    80(%rdi), %r10
        movq    88(%rdi), %r11
        movq    96(%rdi), %r12
        movq    104(%rdi), %r13
        movq    112(%rdi), %r14
        movq    120(%rdi), %r15
        movq    56(%rdi), %rdi
        jnz     1f
        vmlaunch
        jmp     2f
1:      vmresume
2:      movl    $1, %eax                        # keeps the flags
        movl    $2, %ecx
        cmovcl  %ecx, %eax
        popq    %rdi
        jmp     3f
        .size   vm_enter, . - vm_enter

        .globl  vm_exit
        .type   vm_exit, @function
vm_exit:
        pushq   %rdi
        movq    8(%rsp), %rdi
        movq    %rax, 0(%rdi)
        movq    %rcx, 8(%rdi)
        movq    %rdx, 16(%rdi)
        movq    %rbx, 24(%rdi)
        movq    %rbp, 40(%rdi)
        movq    %rsi, 48(%rdi)
        movq    %r8, 64(%rdi)
        movq    %r9, 72(%rdi)
        movq    %r10, 80(%rdi)
        movq    %r11, 88(%rdi)
        movq    %r12, 96(%rdi)
        movq    %r13, 104(%rdi)
        movq    %r14, 112(%rdi)
        movq    %r15, 120(%rdi)
        popq    56(%rdi)
        popq    %rdi
        xorl    %eax, %eax
3:      popq    %r15
        popq    %r14
        popq    %r13
        popq    %r12
        popq    %rbp
        popq    %rbx
        ret
        .size   vm_exit, . - vm_exit

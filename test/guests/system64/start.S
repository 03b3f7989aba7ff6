# Multiboot entry: 32-bit protected mode in, 64-bit C with an identity map of the first GiB (2 MiB pages) out. Every vector
# has a stub that records the event and, when the probe has named a place to go on at, goes there.

        .section .multiboot, "a"
        .align  4
        .long   0x1badb002, 0x3, -(0x1badb002 + 0x3)

        .section .text
        .code32
        .globl  start
start:
        cli
        cld
        movl    $stack_top, %esp
        movl    $pdpt + 7, pml4
        movl    $page_directory + 7, pdpt
        movl    $page_directory, %edi
        movl    $0x83, %eax
        movl    $512, %ecx
1:      movl    %eax, (%edi)
        addl    $0x200000, %eax
        addl    $8, %edi
        loop    1b
        movl    %cr4, %eax
        orl     $0x20, %eax             # CR4.PAE
        movl    %eax, %cr4
        movl    $pml4, %eax
        movl    %eax, %cr3
        movl    $0xc0000080, %ecx       # IA32_EFER: LME, SCE, NXE
        rdmsr
        orl     $0x901, %eax
        wrmsr
        movl    %cr0, %eax
        orl     $0x80010000, %eax       # PG, WP
        movl    %eax, %cr0
        lgdt    gdt_pointer
        ljmp    $0x08, $start64

        .code64
start64:
        movw    $0x10, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movw    %ax, %fs
        movw    %ax, %gs
        movq    $stack_top, %rsp
        xorl    %ebp, %ebp
        call    guest_main
1:      hlt
        jmp     1b

# The record of the last event: vector, error code, RIP, CS, RFLAGS, RSP, SS, CR2, in this order, 8 bytes each.
        .macro  stub vector, has_error
        .align  16
        .if     \has_error == 0
        pushq   $-1
        .endif
        pushq   $\vector
        jmp     common
        .endm

        .align  16
        .globl  stubs
stubs:
        .set    v, 0
        .rept   256
        .if     v == 8 || (v >= 10 && v <= 14) || v == 17 || v == 21 || v == 29 || v == 30
        stub    v, 1
        .else
        stub    v, 0
        .endif
        .set    v, v + 1
        .endr

common:
        pushq   %rax
        pushq   %rcx
        pushq   %rsi
        pushq   %rdi
        cld
        leaq    32(%rsp), %rsi
        leaq    event(%rip), %rdi
        movl    $7, %ecx
        rep     movsq
        movq    %cr2, %rax
        movq    %rax, (%rdi)
        popq    %rdi
        popq    %rsi
        popq    %rcx
        popq    %rax
        # Back to ring 0 at the place the probe named, with the probe's stack.
        movw    $0x10, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movq    resume_rsp(%rip), %rsp
        movq    resume_rbp(%rip), %rbp
        movq    resume_rbx(%rip), %rbx
        pushq   $0x10
        leaq    8(%rsp), %rax
        pushq   %rax
        pushq   $2
        pushq   $0x08
        pushq   resume_rip(%rip)
        iretq

# void run_probe(void (*code)(void)): calls code; returns when it returns or when an event came.
        .globl  run_probe
run_probe:
        pushq   %rbp
        pushq   %rbx
        pushq   %r12
        pushq   %r13
        pushq   %r14
        pushq   %r15
        movq    %rsp, resume_rsp(%rip)
        movq    %rbp, resume_rbp(%rip)
        movq    %rbx, resume_rbx(%rip)
        leaq    1f(%rip), %rax
        movq    %rax, resume_rip(%rip)
        movq    $-1, event(%rip)
        call    *%rdi
1:      movq    resume_rsp(%rip), %rsp
        popq    %r15
        popq    %r14
        popq    %r13
        popq    %r12
        popq    %rbx
        popq    %rbp
        ret

# void user_call(code, stack): runs code at CPL 3; it comes back by an event (INT 0x80 for instance).
        .globl  user_call
user_call:
        pushq   $0x23                   # SS: user data, RPL 3
        pushq   %rsi
        pushq   $0x2
        pushq   $0x1b                   # CS: user code, RPL 3
        pushq   %rdi
        iretq

        .section .data
        .globl  gdt, gdt_pointer, event, tss
        .align  16
gdt:    .quad   0
        .quad   0x00209b0000000000      # 0x08 code, 64-bit, DPL 0
        .quad   0x0000930000000000      # 0x10 data, DPL 0
        .quad   0x0020fb0000000000      # 0x18 code, 64-bit, DPL 3
        .quad   0x0000f30000000000      # 0x20 data, DPL 3
        .quad   0x00cf9b000000ffff      # 0x28 code, 32-bit, DPL 0
        .quad   0x0000130000000000      # 0x30 data, not present
        .quad   0x0000910000000000      # 0x38 data, read-only
        .quad   0x00209f0000000000      # 0x40 code, 64-bit, conforming
        .quad   0x0000990000000000      # 0x48 code, execute-only, neither L nor D
        .quad   0x00201b0000000000      # 0x50 code, 64-bit, not present
        .quad   0x00609b0000000000      # 0x58 code, L and D both set
        .quad   0, 0                    # 0x60 TSS, filled in
        .quad   0, 0                    # 0x70 call gate, filled in
        .quad   0x0000820000000000, 0   # 0x80 LDT, present, limit 0
gdt_end:
gdt_pointer:
        .word   gdt_end - gdt - 1
        .quad   gdt

        .section .bss
        .align  4096
        .globl  pml4, page_directory
pml4:           .skip   4096
pdpt:           .skip   4096
page_directory: .skip   4096
                .skip   16384
stack_top:
event:          .skip   64
resume_rip:     .skip   8
resume_rsp:     .skip   8
resume_rbp:     .skip   8
resume_rbx:     .skip   8
        .section .note.GNU-stack, "", @progbits

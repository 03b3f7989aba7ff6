# Multiboot entry: 32-bit protected mode in, 64-bit C with an identity map of the low 4 GiB (2 MiB pages) out. Every vector
# has a stub that calls interrupt(frame) and returns to where the interrupt came.

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
        movl    $pdpt + 3, pml4
        movl    $page_directories + 3, pdpt
        movl    $page_directories + 0x1003, pdpt + 8
        movl    $page_directories + 0x2003, pdpt + 16
        movl    $page_directories + 0x3003, pdpt + 24
        movl    $page_directories, %edi
        movl    $0x83, %eax
        movl    $2048, %ecx
1:      movl    %eax, (%edi)
        addl    $0x200000, %eax
        addl    $8, %edi
        loop    1b
        # The chips' registers in the last 32 MiB are not to be cached.
        movl    $16, %ecx
        movl    $page_directories + 0x3f80, %edi
1:      orl     $0x10, (%edi)
        addl    $8, %edi
        loop    1b
        movl    %cr4, %eax
        orl     $0x20, %eax             # CR4.PAE
        movl    %eax, %cr4
        movl    $pml4, %eax
        movl    %eax, %cr3
        movl    $0xc0000080, %ecx       # IA32_EFER.LME
        rdmsr
        orl     $0x100, %eax
        wrmsr
        movl    %cr0, %eax
        orl     $0x80000000, %eax       # PG
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

# The frame: rax, vector, error code, RIP, CS, RFLAGS, RSP, SS with the other registers the C code may change below it.
common:
        pushq   %rax
        movq    %rsp, %rax
        pushq   %rcx
        pushq   %rdx
        pushq   %rsi
        pushq   %rdi
        pushq   %r8
        pushq   %r9
        pushq   %r10
        pushq   %r11
        cld
        movq    %rax, %rdi
        call    interrupt
        popq    %r11
        popq    %r10
        popq    %r9
        popq    %r8
        popq    %rdi
        popq    %rsi
        popq    %rdx
        popq    %rcx
        popq    %rax
        addq    $16, %rsp
        iretq

        .section .data
        .align  16
gdt:    .quad   0
        .quad   0x00209b0000000000      # 0x08 code, 64-bit, DPL 0
        .quad   0x0000930000000000      # 0x10 data, DPL 0
gdt_end:
gdt_pointer:
        .word   gdt_end - gdt - 1
        .quad   gdt

        .section .bss
        .align  4096
pml4:           .skip   4096
pdpt:           .skip   4096
page_directories: .skip 4 * 4096
                .skip   16384
stack_top:
        .section .note.GNU-stack, "", @progbits

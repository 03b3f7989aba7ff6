# Multiboot entry of the bench guests: 32-bit protected mode in, 64-bit C with an identity map of the first GiB out.

        .section .multiboot, "a"
        .align  4
        .long   0x1badb002, 0x3, -(0x1badb002 + 0x3)

        .section .text
        .code32
        .globl  start
start:
        cli
        movl    $stack_top, %esp
        movl    %ebx, %esi
        movl    $pdpt + 3, pml4
        movl    $page_directory + 3, pdpt
        movl    $page_directory, %edi
        movl    $0x83, %eax             # present, writable, 2 MiB
        movl    $512, %ecx
1:      movl    %eax, (%edi)
        addl    $0x200000, %eax
        addl    $8, %edi
        loop    1b
        movl    %cr4, %eax
        orl     $0x620, %eax            # CR4.PAE, OSFXSR, OSXMMEXCPT
        movl    %eax, %cr4
        movl    $pml4, %eax
        movl    %eax, %cr3
        movl    $0xc0000080, %ecx       # IA32_EFER.LME
        rdmsr
        orl     $0x100, %eax
        wrmsr
        movl    %cr0, %eax
        orl     $0x80000000, %eax       # CR0.PG
        movl    %eax, %cr0
        lgdt    gdt_pointer
        ljmp    $0x08, $start64

        .code64
start64:
        movw    $0x10, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movq    $stack_top, %rsp
        xorl    %ebp, %ebp
        movl    %esi, %edi
        call    guest_main
1:      hlt
        jmp     1b

        .section .rodata
        .align  8
gdt:    .quad   0, 0x00209b0000000000, 0x0000930000000000
gdt_pointer:
        .word   . - gdt - 1
        .long   gdt

        .section .bss
        .align  4096
pml4:           .skip   4096
pdpt:           .skip   4096
page_directory: .skip   4096
                .skip   16384
stack_top:
        .section .note.GNU-stack, "", @progbits

# From a multiboot loader (32-bit protected mode, no paging) to hypervisor_main in 64-bit mode: identity map of the first
# GiB with 2-MiB pages, a GDT with a task-state segment (VM exits need a host TR), no IDT.

        .set    MULTIBOOT_MAGIC, 0x1badb002
        .set    MULTIBOOT_FLAGS, 0x3

        .section .multiboot, "a"
        .align  4
        .long   MULTIBOOT_MAGIC
        .long   MULTIBOOT_FLAGS
        .long   -(MULTIBOOT_MAGIC + MULTIBOOT_FLAGS)

        .section .text
        .code32
        .globl  start
        .type   start, @function
start:
        cli
        cld
        movl    $stack_top, %esp
        movl    $pdpt + 3, pml4
        movl    $page_directory + 3, pdpt
        movl    $page_directory, %edi
        movl    $0x83, %eax                     # present, writable, large
        movl    $512, %ecx
1:      movl    %eax, (%edi)
        movl    $0, 4(%edi)
        addl    $0x200000, %eax
        addl    $8, %edi
        loop    1b

        movl    %cr4, %eax
        orl     $1 << 5, %eax                   # PAE
        movl    %eax, %cr4
        movl    $pml4, %eax
        movl    %eax, %cr3
        movl    $0xc0000080, %ecx               # IA32_EFER
        rdmsr
        orl     $1 << 8, %eax                   # LME
        wrmsr
        movl    %cr0, %eax
        orl     $(1 << 31) | (1 << 16) | (1 << 5), %eax  # PG, WP, NE
        movl    %eax, %cr0

        # The descriptor of the TSS, its base in pieces.
        movl    $tss, %eax
        movw    %ax, gdt_tss + 2
        shrl    $16, %eax
        movb    %al, gdt_tss + 4
        movb    %ah, gdt_tss + 7
        lgdt    gdt_pointer
        ljmp    $0x08, $start64
        .size   start, . - start

        .code64
        .type   start64, @function
start64:
        movl    $0x10, %eax
        movl    %eax, %ds
        movl    %eax, %es
        movl    %eax, %ss
        movl    %eax, %fs
        movl    %eax, %gs
        movl    $0x18, %eax
        ltr     %ax
        movq    $stack_top, %rsp
        xorl    %ebp, %ebp
        call    hypervisor_main
1:      hlt
        jmp     1b
        .size   start64, . - start64

        .section .data
        .align  8
        .globl  gdt
gdt:    .quad   0
        .quad   0x00af9b000000ffff              # 0x08: 64-bit code
        .quad   0x00cf93000000ffff              # 0x10: data
gdt_tss:
        .quad   0x0000890000000067              # 0x18: TSS
        .quad   0
gdt_pointer:
        .word   . - gdt - 1
        .long   gdt

        .section .bss
        .align  4096
        .globl  pml4
pml4:           .skip   4096
pdpt:           .skip   4096
page_directory: .skip   4096
        .globl  tss
tss:            .skip   104
        .align  16
stack:          .skip   16384
stack_top:

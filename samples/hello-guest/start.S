# The way from the loader to 64-bit C: a multiboot loader enters here in 32-bit protected mode without paging
# (Multiboot 0.6.96, 3.2), with EAX = 0x2badb002 and EBX = the physical address of its information structure.

        .set    MULTIBOOT_MAGIC, 0x1badb002
        .set    MULTIBOOT_FLAGS, 0x3            # page-aligned modules, memory map

        .set    CR0_PG, 1 << 31
        .set    CR4_PAE, 1 << 5
        .set    MSR_EFER, 0xc0000080
        .set    EFER_LME, 1 << 8

        .set    PTE_PRESENT, 1 << 0
        .set    PTE_WRITABLE, 1 << 1
        .set    PTE_LARGE, 1 << 7

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
        movl    %ebx, boot_information

        # Identity map of the first GiB with 2 MiB pages: PML4 > PDPT > page directory.
        movl    $pdpt + PTE_PRESENT + PTE_WRITABLE, pml4
        movl    $page_directory + PTE_PRESENT + PTE_WRITABLE, pdpt
        movl    $page_directory, %edi
        movl    $PTE_PRESENT + PTE_WRITABLE + PTE_LARGE, %eax
        movl    $512, %ecx
1:      movl    %eax, (%edi)
        movl    $0, 4(%edi)
        addl    $0x200000, %eax
        addl    $8, %edi
        loop    1b

        # SDM 3A 10.8.5: PAE on, CR3 loaded, EFER.LME set, then paging on makes the processor enter IA-32e mode.
        movl    %cr4, %eax
        orl     $CR4_PAE, %eax
        movl    %eax, %cr4
        movl    $pml4, %eax
        movl    %eax, %cr3
        movl    $MSR_EFER, %ecx
        rdmsr
        orl     $EFER_LME, %eax
        wrmsr
        movl    %cr0, %eax
        orl     $CR0_PG, %eax
        movl    %eax, %cr0

        lgdt    gdt_pointer
        ljmp    $0x08, $start64
        .size   start, . - start

        .code64
        .type   start64, @function
start64:
        movw    $0x10, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        xorl    %eax, %eax
        movw    %ax, %fs
        movw    %ax, %gs
        movq    $stack_top, %rsp
        xorl    %ebp, %ebp
        movl    boot_information, %edi
        call    guest_main
1:      hlt
        jmp     1b
        .size   start64, . - start64

# One entry per vector the guest uses. The processor pushed SS, RSP, RFLAGS, CS, RIP and for some vectors an error code
# (SDM 3A 6.14.2); the others push a zero in its place.
        .macro  entry vector, has_error_code
        .globl  vector_\vector
        .type   vector_\vector, @function
vector_\vector:
        .if     \has_error_code == 0
        pushq   $0
        .endif
        pushq   $\vector
        jmp     vector_common
        .size   vector_\vector, . - vector_\vector
        .endm

        entry   6, 0
        entry   8, 1
        entry   13, 1
        entry   14, 1
        entry   32, 0

        .type   vector_common, @function
vector_common:
        pushq   %rax
        pushq   %rcx
        pushq   %rdx
        pushq   %rsi
        pushq   %rdi
        pushq   %r8
        pushq   %r9
        pushq   %r10
        pushq   %r11
        movq    72(%rsp), %rdi          # vector
        movq    80(%rsp), %rsi          # error code
        movq    88(%rsp), %rdx          # RIP
        cld
        call    handle_vector
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
        .size   vector_common, . - vector_common

        .section .rodata
        .align  8
gdt:    .quad   0
        .quad   0x00209b0000000000      # 0x08: 64-bit code
        .quad   0x0000930000000000      # 0x10: data
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
boot_information:
                .skip   4

        .section .note.GNU-stack, "", @progbits

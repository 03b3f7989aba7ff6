# What the guest of features.c runs. Each snippet starts with the state new_vm and the row of features.c give it.

        .text
        .macro  snippet name
        .globl  \name
        .type   \name, @function
\name:
        .endm

        snippet do_vmcall
        vmcall
        snippet do_cpuid
        cpuid
        snippet do_hlt
        hlt
        snippet do_pause
        pause
        snippet do_rdtsc
        rdtsc
        snippet do_rdpmc
        rdpmc
        snippet do_wbinvd
        wbinvd
        snippet do_invlpg
        invlpg  (%rbx)
        snippet do_sgdt
        sgdt    0x10(%rbx)
        snippet do_sldt
        sldt    %ecx
        snippet do_vmread
        vmread  %rax, %rcx
        snippet do_vmxoff
        vmxoff
        snippet do_mov_dr
        movq    %dr7, %rdx
        snippet do_in
        inb     $0x80, %al
        snippet do_out
        outl    %eax, %dx
        snippet do_rep_outs
        rep outsb
        snippet do_rdmsr
        rdmsr
        snippet do_wrmsr
        wrmsr
        snippet do_mov_to_cr0
        movq    %rdx, %cr0
        snippet do_mov_to_cr3
        movq    %rbx, %cr3
        snippet do_mov_from_cr3
        movq    %cr3, %rsi
        snippet do_read_cr0
        movq    %cr0, %rax
        vmcall
        snippet do_mov_to_cr8
        movl    $2, %ecx
        movq    %rcx, %cr8
        nop
        snippet do_ud2
        ud2
        snippet do_int3
        int3
        snippet do_load
        movq    (%rbx), %rax
        vmcall
        snippet do_store
        movq    %rax, (%rbx)
        vmcall
        snippet do_call
        call    *%rbx
        snippet do_add
        addq    $1, %rax
        addq    $1, %rax
        vmcall
        snippet do_spin
1:      incq    %rax
        jmp     1b
        snippet do_sti
        sti
        nop
        nop
        vmcall
        snippet do_rdtsc_vmcall
        rdtsc
        vmcall

        snippet do_load_twice
        movq    (%rbx), %rax
        vmcall
        movq    (%rbx), %rax
        vmcall
        snippet do_rdmsr_vmcall
        rdmsr
        vmcall
        snippet do_load32
        movl    (%rbx), %eax
        vmcall

# Interrupt handler of the guest: the vector's stack tells what was pushed.
        snippet guest_handler
        popq    %rax
        popq    %rcx
        vmcall

# Sixteen-bit code for real-address mode; features.c copies it below 1 MByte.
        .code16
        .globl  real_mode_code
real_mode_code:
        movw    %cs, %ax
        movw    %ax, %ds
        movw    0x20, %bx
        cpuid
        .globl  real_mode_end
real_mode_end:

# Thirty-two-bit code for protected mode without paging.
        .code32
        snippet protected_mode_code
        movl    %cs:protected_mode_code, %ebx
        pushl   $0x12345678
        popl    %edx
        cpuid

# Multiboot entry: flat 32-bit protected mode. Every vector has a stub that records the event and goes on where the probe
# said.

        .section .multiboot, "a"
        .align  4
        .long   0x1badb002, 0x3, -(0x1badb002 + 0x3)

        .section .text
        .code32
        .globl  start
start:
        cli
        cld
        lgdt    gdt_pointer
        ljmp    $0x08, $1f
1:      movw    $0x10, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movw    %ax, %fs
        movw    %ax, %gs
        movl    $stack_top, %esp
        call    guest_main
1:      hlt
        jmp     1b

        .macro  stub vector, has_error
        .align  16
        .if     \has_error == 0
        pushl   $-1
        .endif
        pushl   $\vector
        jmp     common
        .endm

        .align  16
        .globl  stubs
stubs:
        .set    v, 0
        .rept   256
        .if     v == 8 || (v >= 10 && v <= 14) || v == 17
        stub    v, 1
        .else
        stub    v, 0
        .endif
        .set    v, v + 1
        .endr

# The record of the last event, 4 bytes each: vector, error code (or -1), EIP, CS, EFLAGS, ESP, SS, ES, DS, FS, GS (as far
# as the processor pushed them), CR2, and the flags and task register the handler runs with.
common:
        pushfl
        popl    %ss:handler_flags
        cld
        movw    $0x10, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movl    %esp, %esi
        movl    $event, %edi
        movl    $11, %ecx
1:      movl    %ss:(%esi), %eax
        movl    %eax, (%edi)
        addl    $4, %esi
        addl    $4, %edi
        loop    1b
        movl    %cr2, %eax
        movl    %eax, event + 44
        movl    handler_flags, %eax
        movl    %eax, event + 48
        xorl    %eax, %eax
        str     %ax
        movl    %eax, event + 52
        movl    %ss, %eax
        movl    %eax, event + 56
# Back to the probe: flat segments, its stack, no flags.
        .globl  go_on
go_on:
        movw    $0x10, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %fs
        movw    %ax, %gs
        lss     resume_stack, %esp
        pushl   $2
        popfl
        jmp     *resume_eip

# void run_probe(void (*code)(void)): calls code; returns when it returns or when an event came.
        .globl  run_probe
run_probe:
        pushl   %ebp
        pushl   %ebx
        pushl   %esi
        pushl   %edi
        movl    20(%esp), %eax
        movl    %esp, resume_stack
        movl    $1f, resume_eip
        movl    $-1, event
        movl    %eax, %ecx
        jmp     *probe_entry
        .globl  probe_at_cpl0
probe_at_cpl0:
        call    *%ecx
1:      movw    $0x10, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %fs
        movw    %ax, %gs
        movl    resume_stack, %esp
        popl    %edi
        popl    %esi
        popl    %ebx
        popl    %ebp
        ret
        .globl  probe_at_cpl3
probe_at_cpl3:
        movw    $0x23, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %fs
        movw    %ax, %gs
        pushl   $0x23
        pushl   $user_stack_top
        pushl   user_flags
        pushl   $0x1b
        pushl   %ecx
        iretl

# Where far transfers arrive: the event of this interrupt tells with which CS, SS and stack.
        .globl  far_target, far_target16
far_target:
        int     $0x51
far_target16:
        .code16
        int     $0x51
        .code32

# The other task: says so, and goes back by IRET; when it is entered again it goes on behind that.
        .globl  task_entry
task_entry:
        movl    $0x10, %eax
        movw    %ax, %ds
        incl    task_entered
        pushfl
        popl    task_flags
        xorl    %eax, %eax
        str     %ax
        movl    %eax, task_tr
        iretl
        incl    task_entered
        int     $0x52

# Virtual-8086 programs: 16-bit code, copied to 0x20000.
        .globl  vm86_start, vm86_end, vm86_int, vm86_cli, vm86_pushf, vm86_in, vm86_out, vm86_hlt, vm86_mov, vm86_iret
        .globl  vm86_lgdt, vm86_far
        .code16
vm86_start:
vm86_int:
        int     $0x53
vm86_cli:
        cli
        int     $0x53
vm86_pushf:
        pushf
        popw    %ax
        int     $0x53
vm86_in:
        inb     $0x80, %al
        int     $0x53
vm86_out:
        outb    %al, $0x81
        int     $0x53
vm86_hlt:
        hlt
vm86_mov:
        movw    $0x1234, %ax
        movw    %ax, %ds
        int     $0x53
vm86_iret:
        pushw   $0x3002
        pushw   $0x2000
        pushw   $(1f - vm86_start)
        iretw
1:      int     $0x53
vm86_lgdt:
        lgdt    0
vm86_far:
        ljmp    $0x2001, $(1f - vm86_start - 16)
1:      int     $0x53
vm86_end:

# Real-address mode, copied to 0x8000: takes an interrupt, far transfers, and leaves what it saw at 0x9000.
        .globl  real_start, real_end
real_start:
        # Still 16-bit protected mode, CS 0xb0 with base 0.
        movl    %cr0, %eax
        andl    $~1, %eax
        movl    %eax, %cr0
        ljmp    $0x0800, $(1f - real_start)
1:      xorw    %ax, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    $0x0700, %ax
        movw    %ax, %ss
        movw    $0x1000, %sp
        lidt    %cs:(real_idt - real_start)
        movw    $(real_handler - real_start), (0x21 * 4)
        movw    $0x0800, (0x21 * 4 + 2)
        movw    $(real_handler - real_start), (6 * 4)
        movw    $0x0800, (6 * 4 + 2)
        movw    $0x9000, %di
        pushw   $0x0cd7
        popfw
        int     $0x21
        int     $0x06
        pushfw
        popw    (%di)
        addw    $2, %di
        lcall   $0x0801, $(real_far - real_start - 16)
        movw    %sp, (%di)
        addw    $2, %di
        # Segment registers can be stored, and base is selector * 16.
        movw    $0x0900, %ax
        movw    %ax, %es
        movw    %es:0, %ax
        movw    %ax, (%di)
        # Back to protected mode.
        lidt    %cs:(back_idt - real_start)
        movl    %cr0, %eax
        orl     $1, %eax
        movl    %eax, %cr0
        ljmpl   $0x08, $go_on
real_handler:
        pushw   %bp
        movw    %sp, %bp
        movw    2(%bp), %ax
        movw    %ax, (%di)
        movw    4(%bp), %ax
        movw    %ax, 2(%di)
        movw    6(%bp), %ax
        movw    %ax, 4(%di)
        pushfw
        popw    6(%di)
        movw    %bp, 8(%di)
        addw    $10, %di
        popw    %bp
        iretw
real_far:
        popw    %ax
        popw    %bx
        movw    %ax, (%di)
        movw    %bx, 2(%di)
        addw    $4, %di
        pushw   %bx
        pushw   %ax
        lretw
        .align  4
real_idt:
        .word   0x3ff
        .long   0
        .globl  back_idt
back_idt:
        .word   0
        .long   0
real_end:
        .code32

        .section .data
        .globl  gdt, gdt_pointer, user_flags, probe_entry
        .align  16
gdt:    .quad   0
        .quad   0x00cf9b000000ffff      # 0x08 code, DPL 0
        .quad   0x00cf93000000ffff      # 0x10 data, DPL 0
        .quad   0x00cffb000000ffff      # 0x18 code, DPL 3
        .quad   0x00cff3000000ffff      # 0x20 data, DPL 3
        .quad   0x00009b100000ffff      # 0x28 16-bit code, DPL 0, base 0x100000
        .quad   0x00cf13000000ffff      # 0x30 data, not present
        .quad   0x00cf91000000ffff      # 0x38 data, read-only
        .quad   0x00cf9e000000ffff      # 0x40 code, conforming, DPL 0
        .quad   0x00cf98000000ffff      # 0x48 code, execute-only, not accessed
        .quad   0x00cf1a000000ffff      # 0x50 code, not present
        .quad   0x00c0960000000fff      # 0x58 data, expand-down
        .quad   0                       # 0x60 TSS, filled in
        .quad   0                       # 0x68 TSS of the other task
        .quad   0x0000e50000680000      # 0x70 task gate to 0x68, DPL 3
        .quad   0                       # 0x78 call gate, 32-bit, DPL 3, two parameters
        .quad   0                       # 0x80 LDT
        .quad   0                       # 0x88 call gate, 16-bit, DPL 3
        .quad   0                       # 0x90 16-bit TSS
        .quad   0                       # 0x98 TSS with too small a limit
        .quad   0                       # 0xa0 call gate, not present
        .quad   0x00cffe000000ffff      # 0xa8 code, conforming, DPL 3
        .quad   0x00009b000000ffff      # 0xb0 16-bit code, base 0
        .quad   0                       # 0xb8 TSS, not present
        .quad   0x0000920000000000      # 0xc0 data
        .quad   0                       # 0xc8
        .quad   0x000093000000ffff      # 0xd0 16-bit data
        .quad   0x00cfbb000000ffff      # 0xd8 code, DPL 1
        .quad   0x00cf33000000ffff      # 0xe0 data, DPL 1, not present
        .quad   0, 0, 0, 0              # 0xe8 to 0x100 TSSs of the fault handlers that are tasks
gdt_end:
gdt_pointer:
        .word   gdt_end - gdt - 1
        .long   gdt
user_flags:
        .long   2
probe_entry:
        .long   probe_at_cpl0
resume_stack:
        .long   0
        .word   0x10

        .section .bss
        .align  4096
        .globl  event, user_stack_top, task_entered, task_flags, task_tr
                .skip   16384
stack_top:
                .skip   4096
user_stack_top:
event:          .skip   64
resume_eip:     .skip   4
handler_flags:  .skip   4
task_entered:   .skip   4
task_flags:     .skip   4
task_tr:        .skip   4
        .section .note.GNU-stack, "", @progbits

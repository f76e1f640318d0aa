/*
 * The entry, by PVH (Xen's docs/misc/pvh.pandoc): QEMU reads the address of `start` from the ELF note and jumps there in
 * protected mode: 32 bits, flat segments, no paging, no interrupts. EBX points to the hvm_start_info structure.
 */
        .section .note.pvh, "a", @note
        .long   4, 4, 18                        /* sizes of name and value; XEN_ELFNOTE_PHYS32_ENTRY */
        .asciz  "Xen"
        .long   start

        .text
        .globl  start
start:  cld
        mov     $stack_top, %esp
        xor     %eax, %eax                      /* after a reboot, .bss holds what the boot before left there */
        mov     $bss_start, %edi
        mov     $bss_end, %ecx
        sub     %edi, %ecx
        rep stosb
        lgdt    gdt_pointer
        ljmp    $8, $1f
1:      mov     $16, %eax
        mov     %eax, %ds
        mov     %eax, %es
        mov     %eax, %ss
        push    24(%ebx)                        /* hvm_start_info.cmdline_paddr */
        call    run

/* Every interrupt does the same: it ends the `hlt` of the main loop, which then looks for itself what there is to do. */
        .globl  interrupted
interrupted:
        movl    $0, 0xfee000b0                  /* the local APIC's end-of-interrupt register */
        iret

        .data
        .balign 8
gdt:    .quad   0, 0x00cf9a000000ffff, 0x00cf92000000ffff       /* none, code, data: 4 GiB each */
gdt_pointer:
        .word   gdt_pointer - gdt - 1
        .long   gdt

        .bss
        .balign 16
        .skip   16384
stack_top:

        .section .note.GNU-stack, "", @progbits

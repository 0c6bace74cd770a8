# The acceleration probe's boot disk: what the first tenth of a second of an
# ordinary 64-bit kernel does. It reads its own second sector by BIOS (with the
# extensions that kernels ask for, EDD), enters protected mode, builds page tables, enters
# long mode, takes an exception through an IDT of its own and runs 100 million
# instructions. Each step is said on port 0xe9: 'S' sector read, 'P' protected mode, 'L' long
# mode, 'X' exception came back, 'W' work done; then 0x10 on port 0xf4 ends QEMU with status 33.
#
# as -o boot.o boot.asm && ld -m elf_x86_64 -Ttext 0x7c00 --oformat binary -o boot.bin boot.o
	.code16
	.globl _start
_start:
	cli
	xor %ax, %ax
	mov %ax, %ds
	mov %ax, %es
	mov %ax, %ss
	mov $0x7c00, %sp
	mov %dl, drive
	mov $0x41, %ah
	mov $0x55aa, %bx
	int $0x13
	jc fail
	mov $0x48, %ah
	mov drive, %dl
	mov $params, %si
	movw $0x1e, (%si)
	int $0x13
	jc fail
	mov $0x42, %ah
	mov drive, %dl
	mov $packet, %si
	int $0x13
	jc fail
	cmpl $0x48554153, 0x8000
	jne fail
	mov $'S', %al
	out %al, $0xe9
	lgdt gdtr
	mov %cr0, %eax
	or $1, %al
	mov %eax, %cr0
	ljmpl $0x08, $prot
fail:
	mov $1, %al
	out %al, $0xf4
	hlt

	.code32
prot:
	mov $0x10, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %ss
	mov $0x7c00, %esp
	mov $'P', %al
	out %al, $0xe9
	mov $0x10000, %edi		# PML4, PDPT and PD, one page each, cleared
	xor %eax, %eax
	mov $3072, %ecx
	rep stosl
	movl $0x11003, 0x10000
	movl $0x12003, 0x11000
	movl $0x00083, 0x12000		# one page of 2 MiB, mapped to itself
	mov $0x10000, %eax
	mov %eax, %cr3
	mov %cr4, %eax
	or $0x20, %eax			# PAE
	mov %eax, %cr4
	mov $0xc0000080, %ecx		# EFER
	rdmsr
	or $0x100, %eax			# LME
	wrmsr
	mov %cr0, %eax
	or $0x80000000, %eax		# PG
	mov %eax, %cr0
	ljmp $0x18, $long

	.code64
long:
	mov $'L', %al
	out %al, $0xe9
	mov $0x13000, %edi		# the gate of #UD in an IDT of its own
	mov $trap, %eax
	mov %ax, 6*16(%edi)
	movw $0x18, 6*16+2(%edi)
	movw $0x8e00, 6*16+4(%edi)
	movl $0, 6*16+6(%edi)
	movl $0, 6*16+8(%edi)
	lidt idtr
	mov $0x7c00, %esp
	ud2
	mov $0x14000, %edi		# 20 million turns of ordinary work: a processor that is
	mov $20000000, %ecx		# emulated one instruction at a time does not get through
work:	add %ecx, %eax
	mov %eax, (%rdi)
	cmp (%rdi), %eax
	jne 1f
	dec %ecx
	jnz work
	mov $'W', %al
	out %al, $0xe9
1:	mov $0x10, %al
	out %al, $0xf4
	hlt
trap:
	mov $'X', %al
	out %al, $0xe9
	addq $2, (%rsp)
	iretq

	.align 8
gdt:	.quad 0
	.quad 0x00cf9a000000ffff	# 0x08: 32-bit code
	.quad 0x00cf92000000ffff	# 0x10: data
	.quad 0x00af9a000000ffff	# 0x18: 64-bit code
gdtr:	.word 31
	.long gdt
idtr:	.word 7*16-1
	.quad 0x13000
packet:	.byte 16, 0
	.word 1, 0x8000, 0
	.quad 1
drive:	.byte 0
	.org 510
	.word 0xaa55
	.ascii "SAUH"
	.equ params, 0x9000
	.org 1024

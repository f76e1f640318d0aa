/* The machine, QEMU's `pc` or `q35`: its processor, PCI bus, clock, serial port and power. */
#include "guest.h"

static void outb(u16 port, u8 value) { asm volatile("outb %0, %1" :: "a"(value), "Nd"(port)); }
static void outw(u16 port, u16 value) { asm volatile("outw %0, %1" :: "a"(value), "Nd"(port)); }
static void outl(u16 port, u32 value) { asm volatile("outl %0, %1" :: "a"(value), "Nd"(port)); }
static u16 inw(u16 port) { u16 value; asm volatile("inw %1, %0" : "=a"(value) : "Nd"(port)); return value; }
static u32 inl(u16 port) { u32 value; asm volatile("inl %1, %0" : "=a"(value) : "Nd"(port)); return value; }

/* PCI, by the ports of configuration mechanism #1. A device is bus << 16 | slot << 11 | function << 8. */

enum { CONFIG_ADDRESS = 0xcf8, CONFIG_DATA = 0xcfc, ENABLE = 1u << 31, COMMAND = 4, MEMORY_AND_BUS_MASTER = 6 };

u32 pci_read(u32 device, u32 offset) {
    outl(CONFIG_ADDRESS, ENABLE | device | (offset & ~3u));
    return inl(CONFIG_DATA) >> (offset & 3) * 8;
}

void pci_write(u32 device, u32 offset, u32 value) {
    outl(CONFIG_ADDRESS, ENABLE | device | offset);
    outl(CONFIG_DATA, value);
}

u32 pci_find(u32 vendor_and_device, u32 number) {
    for (u32 device = 0; device < 16 << 16; device += 1 << 8)  /* 16 buses are more than these machines have */
        if (pci_read(device, 0) == vendor_and_device && !number--)
            return device;
    return 0;
}

u8 *pci_memory(u32 device, u32 number) {
    static u32 free = 0xfd000000;  /* in the hole below 4 GiB, above what firmware gives away first */
    u32 at = 0x10 + 4 * number, low = pci_read(device, at), is_64_bit = low & 4;
    if (!(low & ~15u) || (is_64_bit && pci_read(device, at + 4))) {  /* qboot assigns nothing; we see 4 GiB */
        pci_write(device, at, free);
        if (is_64_bit)
            pci_write(device, at + 4, 0);
        free += 0x10000;
    }
    pci_write(device, COMMAND, MEMORY_AND_BUS_MASTER);
    return (u8 *)(pci_read(device, at) & ~15u);
}

/* Interrupts come by the local APIC alone: from its timer, and from devices by MSI-X. They are off but in `sleep`. */

#define APIC(offset) (*(volatile u32 *)(0xfee00000 + (offset)))
enum { SPURIOUS = 0xf0, TIMER = 0x320, TIMER_COUNT = 0x380, TIMER_DIVIDER = 0x3e0 };
enum { FIRST_VECTOR = 32, VECTORS = 256, NANOSECONDS_PER_MS = 1000000 };
extern void interrupted(void);
static u64 gates[VECTORS];

static void start_interrupts(void) {
    u32 at = (u32)interrupted;
    for (u32 i = FIRST_VECTOR; i < VECTORS; i++)  /* none for exceptions: a fault is a triple fault, which QEMU sees */
        gates[i] = (u64)(at & 0xffff0000) << 32 | 0x8e0000000000 | 8 << 16 | (at & 0xffff);
    struct { u16 limit; void *base; } __attribute__((packed)) table = {sizeof gates - 1, gates};
    asm volatile("lidt %0" :: "m"(table));
    outb(0x21, 0xff), outb(0xa1, 0xff);  /* the old interrupt controllers are silent */
    APIC(SPURIOUS) = 0x1ff;  /* enabled */
    APIC(TIMER) = FIRST_VECTOR;
    APIC(TIMER_DIVIDER) = 0xb;  /* by 1: the timer of QEMU and of KVM counts nanoseconds then */
}

/* The clock is the ACPI timer: 24 bits, 3.579545 MHz, in virtual time, so it stands still while the VM is paused. */

enum { PIIX4 = 0x71138086, ICH9 = 0x29188086, PM_BASE = 0x40 };
enum { PM_STATUS = 0, PM_ENABLE = 2, PM_CONTROL = 4, PM_TIMER = 8, BUTTON = 1 << 8, SLEEP = 1 << 13 };
static u16 pm;
static u64 clock;  /* milliseconds; the lower 32 bits are their fraction */
static u32 last, soonest;

static void start_clock(void) {
    u32 q35 = pci_find(ICH9, 0), device = q35 ? q35 : pci_find(PIIX4, 0);
    pm = pci_read(device, PM_BASE) & 0xff80;  /* set by the firmware */
    last = inl(pm + PM_TIMER);
    outw(pm + PM_ENABLE, BUTTON);  /* else its status does not change */
}

u32 now(void) {
    u32 count = inl(pm + PM_TIMER);
    clock += ((count - last) & 0xffffff) * (u64)(4294967296.0 / 3579.545);
    last = count;
    return clock >> 32;
}

u32 now_fraction(void) { return (u64)(u32)clock * 1000 >> 32; }

int due(u32 time) {
    if ((int)(now() - time) >= 0)
        return 1;
    if ((int)(time - soonest) < 0)
        soonest = time;
    return 0;
}

void sleep(void) {
    int left = soonest - now();
    APIC(TIMER_COUNT) = left > 0 ? left * NANOSECONDS_PER_MS : 1;
    asm volatile("sti; hlt; cli" ::: "memory");
    soonest = now() + 100;  /* the button is looked at so often; and the timer must not wrap unseen, in 4.7 s */
}

void start_machine(void) {
    start_clock();
    start_interrupts();
}

/* The serial port, and the ends. */

void say(const char *format, ...) {
    char line[128];
    __builtin_va_list list;
    __builtin_va_start(list, format);
    print_list(line, format, list);
    __builtin_va_end(list);
    for (const char *at = line; *at; at++)
        outb(0x3f8, *at);
    outb(0x3f8, '\n');
}

int power_button(void) { return inw(pm + PM_STATUS) & BUTTON; }

void power_off(void) { outw(pm + PM_CONTROL, SLEEP); }

void halt(void) {
    for (;;)
        asm volatile("cli; hlt");
}

void leave(u8 code) {
    outb(0x501, code);  /* where isa-debug-exit is, unless it is told otherwise */
    halt();
}

void crash(void) {
    struct { u16 limit; void *base; } __attribute__((packed)) none = {0, 0};
    asm volatile("lidt %0; ud2" :: "m"(none));
    halt();
}

void reboot(void) {
    outb(0xcf9, 6);  /* the reset control register of both chipsets */
    halt();
}

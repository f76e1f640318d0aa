/* A guest without a kernel: what its parts offer each other, from the bottom up. */
#pragma once
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

/* gcc inserts calls of these; they are in text.c. */
void *memcpy(void *to, const void *from, unsigned size);
void *memset(void *to, int octet, unsigned size);
int memcmp(const void *one, const void *other, unsigned size);

/* Numbers in packets are big-endian. */
static inline u16 get16(const u8 *at) { return at[0] << 8 | at[1]; }
static inline u32 get32(const u8 *at) { return (u32)get16(at) << 16 | get16(at + 2); }
static inline void put16(u8 *at, u16 value) { at[0] = value >> 8, at[1] = value; }
static inline void put32(u8 *at, u32 value) { put16(at, value >> 16), put16(at + 2, value); }

/* An address of either family: an IPv4 address is mapped into IPv6 (::ffff:a.b.c.d; RFC 4291, section 2.5.5.2). */
typedef struct { u8 octets[16]; } address;
static inline int same(const address *one, const address *other) { return !memcmp(one, other, sizeof *one); }
static inline int is_ipv4(const address *a) { return !memcmp(a, "\0\0\0\0\0\0\0\0\0\0\xff\xff", 12); }

/* text.c: strings, numbers and addresses. */
u32 length(const char *text);
const char *after(const char *text, const char *prefix);  /* what follows `prefix` in `text`; 0 if it begins otherwise */
const char *read_number(const char *text, u32 base, u32 *value);  /* returns where the number ends */
const char *read_address(const char *text, address *value);
void read_mac(const char *text, u8 *mac);
char *print(char *to, const char *format, ...);  /* %s, %u, %t: the time, %a: an address, %m: a MAC; returns the end */
char *print_list(char *to, const char *format, __builtin_va_list list);

/* machine.c: the processor, PCI, the clock, the serial port, and ways to end. */
u32 pci_find(u32 vendor_and_device, u32 number);  /* the device of that number, from 0; returns 0 if there is none */
u32 pci_read(u32 device, u32 offset);
void pci_write(u32 device, u32 offset, u32 value);
u8 *pci_memory(u32 device, u32 number);  /* the memory behind a base address register */
void start_machine(void);
u32 now(void);  /* milliseconds since the entry */
u32 now_fraction(void);  /* microseconds beyond those that `now` last returned */
int due(u32 time);  /* whether `time` has come; if not, the next `sleep` lasts until then at most */
void sleep(void);  /* until an interrupt, or until something is due */
void say(const char *format, ...);  /* a line on the serial port */
int power_button(void);  /* whether it was pressed */
void power_off(void);
__attribute__((noreturn)) void halt(void);
__attribute__((noreturn)) void leave(u8 code);  /* QEMU ends with status 2 * code + 1, given isa-debug-exit; else halts */
__attribute__((noreturn)) void crash(void);  /* triple fault */
__attribute__((noreturn)) void reboot(void);

/* habits.c: what the command line says. README.md explains the words. */
extern struct habits {
    struct { address ip, gateway; u32 prefix; } family[2];  /* IPv4, IPv6; the prefix is that of a mapped address */
    u8 mac[6];
    char name[72];
    u32 port, nic;
    u32 net_after, listen_after;
    u32 exit_after, halt_after, reboot_after;
    u32 exit, crash, halt;
    u32 promiscuous, silent, probe, power, mute, receive_only, stream, echo;
} habits;
void read_habits(const char *command_line);

/* nic.c: one virtio network device. Frames are sent one at a time: take the buffer, fill it, send it. */
void start_nic(u32 number);
extern u8 nic_mac[6];
u8 *receive(u32 *size);  /* the next frame, valid until the next call; 0 if there is none now */
u8 *send_buffer(void);
void send_frame(u32 size);

/* net.c: Ethernet, ARP and neighbour discovery, IP, ICMP. */
struct packet {
    const u8 *mac;  /* of the other side */
    address source, destination;
    u8 protocol;
    const u8 *data;  /* what follows the IP header */
    u32 size;
};
extern u8 mac[6];  /* that the guest goes by */
void start_network(void);
void keep_network(void);  /* what is due */
void handle_frame(const u8 *frame, u32 size);
int is_probing(void);  /* whether an address is not known to be free yet */
const address *given_up(void);  /* an address that another machine has; 0 if there is none */
const u8 *next_hop(const address *to);  /* its MAC; 0 while it is asked for: `retry_tcp` is called when it answers */
u8 *begin_packet(const struct packet *p);  /* returns where its `size` octets of data go */
void send_packet(struct packet *p, u8 *data, u32 checksum_at);
u16 checksum(const struct packet *p);  /* 0 if the one in the data is right */

/* tcp.c: the server. */
void keep_tcp(void);  /* what is due */
void handle_tcp(const struct packet *p);
void retry_tcp(void);

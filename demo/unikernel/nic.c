/* A network device by virtio 1 over PCI (OASIS, Virtual I/O Device, sections 2.7, 4.1 and 5.1), and its two queues. */
#include "guest.h"

enum { VIRTIO_NET_MODERN = 0x10411af4, VIRTIO_NET_TRANSITIONAL = 0x10001af4 };
enum { CAPABILITIES = 0x34, VENDOR = 0x09, MSIX = 0x11, MSIX_ENABLE = 1u << 31 };
enum { COMMON = 1, NOTIFY = 2, DEVICE = 4 };  /* kinds of capabilities */
enum { ACKNOWLEDGE = 1, DRIVER = 2, DRIVER_OK = 4, FEATURES_OK = 8 };
enum { HAS_MAC = 1 << 5, VERSION_1 = 1 };  /* features: bit 5; bit 32, which is bit 0 of the upper half */
enum { NO_VECTOR = 0xffff, RECEIVE_VECTOR = 33 };
enum { SLOTS = 256, ROOM = 2048, HEADER = 12, WRITABLE = 2, MINIMUM = 60 };

struct common {
    u32 device_feature_select, device_feature, driver_feature_select, driver_feature;
    u16 config_vector, queues;
    u8 status, generation;
    u16 queue_select, queue_size, queue_vector, queue_enable, queue_notify_offset;
    u64 descriptors, available, used;
};

/* A queue whose buffer i is always in descriptor i. */
static struct queue {
    struct { u64 address; u32 size; u16 flags, next; } descriptors[SLOTS] __attribute__((aligned(16)));
    struct { u16 flags, index, ring[SLOTS]; } available;
    struct { u16 flags, index; struct { u32 slot, size; } ring[SLOTS]; } used __attribute__((aligned(4)));
    u8 buffers[SLOTS][ROOM];
    volatile u16 *bell, number;
    u16 seen;  /* how far we have read `used` */
} receiving, sending;

u8 nic_mac[6];
static volatile struct common *common;
static const volatile u8 *device;
static u8 *notify;
static u32 notify_multiplier;

static void barrier(void) { asm volatile("lock; addl $0, (%%esp)" ::: "memory"); }

static void read_capabilities(u32 pci) {
    for (u32 at = pci_read(pci, CAPABILITIES) & 0xfc; at; at = pci_read(pci, at) >> 8 & 0xfc) {
        u32 head = pci_read(pci, at);
        if ((head & 0xff) == MSIX) {
            u32 place = pci_read(pci, at + 4);
            volatile u32 *table = (u32 *)(pci_memory(pci, place & 7) + (place & ~7u));
            pci_write(pci, at, (head & 0x3fffffff) | MSIX_ENABLE);
            table[0] = 0xfee00000, table[1] = 0, table[2] = RECEIVE_VECTOR, table[3] = 0;
        }
        if ((head & 0xff) != VENDOR)
            continue;
        u32 kind = head >> 24;
        if (kind != COMMON && kind != NOTIFY && kind != DEVICE)
            continue;
        u8 *memory = pci_memory(pci, pci_read(pci, at + 4) & 7) + pci_read(pci, at + 8);
        if (kind == COMMON)
            common = (volatile struct common *)memory;
        else if (kind == DEVICE)
            device = memory;
        else
            notify = memory, notify_multiplier = pci_read(pci, at + 16);
    }
}

static void start_queue(struct queue *queue, u16 number, u16 vector, u16 flags) {
    common->queue_select = number;
    common->queue_size = SLOTS;
    common->queue_vector = vector;
    common->descriptors = (u32)queue->descriptors;
    common->available = (u32)&queue->available;
    common->used = (u32)&queue->used;
    queue->number = number;
    queue->bell = (volatile u16 *)(notify + common->queue_notify_offset * notify_multiplier);
    for (u32 i = 0; i < SLOTS; i++) {
        queue->descriptors[i].address = (u32)queue->buffers[i];
        queue->descriptors[i].size = ROOM;
        queue->descriptors[i].flags = flags;
    }
    common->queue_enable = 1;
}

/* Hand buffer `slot` to the device. */
static void offer(struct queue *queue, u16 slot) {
    queue->available.ring[queue->available.index % SLOTS] = slot;
    barrier();
    queue->available.index++;
}

static void ring(struct queue *queue) {
    barrier();
    *queue->bell = queue->number;
}

static u16 used_index(struct queue *queue) { return *(volatile u16 *)&queue->used.index; }

u8 *receive(u32 *size) {
    static int held = -1;  /* the slot of the frame that was returned last */
    static int unannounced;
    if (held >= 0)
        offer(&receiving, held), held = -1, unannounced = 1;
    if (receiving.seen == used_index(&receiving)) {
        if (unannounced)  /* a device that has run out of buffers waits for this */
            ring(&receiving), unannounced = 0;
        if (receiving.seen == used_index(&receiving))
            return 0;
    }
    barrier();
    u32 i = receiving.seen++ % SLOTS;
    held = receiving.used.ring[i].slot;
    *size = receiving.used.ring[i].size - HEADER;
    return receiving.buffers[held] + HEADER;
}

u8 *send_buffer(void) {
    while ((u16)(sending.available.index - used_index(&sending)) == SLOTS)
        asm volatile("pause");
    u8 *buffer = sending.buffers[sending.available.index % SLOTS];
    memset(buffer, 0, HEADER + MINIMUM);
    return buffer + HEADER;
}

void send_frame(u32 size) {
    u16 slot = sending.available.index % SLOTS;
    sending.descriptors[slot].size = HEADER + (size < MINIMUM ? MINIMUM : size);
    offer(&sending, slot);
    ring(&sending);
}

void start_nic(u32 number) {
    u32 pci = pci_find(VIRTIO_NET_MODERN, number);
    if (!pci)
        pci = pci_find(VIRTIO_NET_TRANSITIONAL, number);
    if (!pci) {
        say("guest: no virtio network device of number %u", number);
        leave(1);
    }
    read_capabilities(pci);
    common->status = 0;
    while (common->status) {}
    common->status = ACKNOWLEDGE | DRIVER;
    common->driver_feature_select = 0, common->driver_feature = HAS_MAC;
    common->driver_feature_select = 1, common->driver_feature = VERSION_1;
    common->status = ACKNOWLEDGE | DRIVER | FEATURES_OK;
    common->config_vector = NO_VECTOR;
    start_queue(&receiving, 0, 0, WRITABLE);
    start_queue(&sending, 1, NO_VECTOR, 0);
    for (u32 i = 0; i < 6; i++)
        nic_mac[i] = device[i];
    for (u16 i = 0; i < SLOTS; i++)
        offer(&receiving, i);
    common->status = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
    ring(&receiving);
}

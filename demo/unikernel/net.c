/* Ethernet, ARP (RFC 826, 5227), neighbour discovery (RFC 4861, 4862), IP of both versions without options, ICMP echo. */
#include "guest.h"

enum { ETHERNET = 14, IPV4 = 20, IPV6 = 40, ARP = 28 };
enum { ICMP = 1, TCP = 6, UDP = 17, ICMP6 = 58 };
enum { ECHO = 8, ECHO_REPLY = 0, ECHO6 = 128, ECHO6_REPLY = 129, SOLICITATION = 135, ADVERTISEMENT = 136 };
enum { REQUEST = 1, REPLY = 2 };
enum { PROBES = 3, PROBE_EVERY = 100, ASK_EVERY = 1000 };  /* ms; RFC 5227 would take seconds for the same */
enum { NEIGHBOURS = 16 };

u8 mac[6];
static const u8 broadcast[6] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
static const address nobody, nobody4 = {{[10] = 0xff, 0xff}}, all_nodes = {{0xff, 2, [15] = 1}};

/* The guest's addresses, and its neighbours'. */

static struct own { address ip; enum { NONE, PROBING, HELD, LOST } state; u32 probes, next; } own[2];
static struct neighbour { address ip; u8 mac[6], known; u32 asked; } neighbours[NEIGHBOURS];

static struct own *find_own(const address *ip) {
    struct own *o = &own[!is_ipv4(ip)];
    return o->state != NONE && same(&o->ip, ip) ? o : 0;
}

static int is_held(const address *ip) {
    struct own *o = find_own(ip);
    return o && o->state == HELD;
}

int is_probing(void) { return own[0].state == PROBING || own[1].state == PROBING; }

const address *given_up(void) { return own[0].state == LOST ? &own[0].ip : own[1].state == LOST ? &own[1].ip : 0; }

static address mapped(const u8 *ipv4) {
    address ip = nobody4;
    memcpy(ip.octets + 12, ipv4, 4);
    return ip;
}

static address solicited_node(const address *ip) {
    address group = {{0xff, 2, [11] = 1, 0xff}};
    memcpy(group.octets + 13, ip->octets + 13, 3);
    return group;
}

static void send_arp(u16 operation, const u8 *to, const address *source, const address *target) {
    u8 *frame = send_buffer(), *arp = frame + ETHERNET;
    memcpy(frame, to, 6);
    memcpy(frame + 6, mac, 6);
    memcpy(frame + 12, "\x08\x06\0\1\x08\0\6\4", 8);
    put16(arp + 6, operation);
    memcpy(arp + 8, mac, 6);
    memcpy(arp + 14, source->octets + 12, 4);
    if (operation == REPLY)
        memcpy(arp + 18, to, 6);
    memcpy(arp + 24, target->octets + 12, 4);
    send_frame(ETHERNET + ARP);
}

/* A solicitation or an advertisement; without a source there is no option with our MAC. */
static void send_neighbour(u8 type, u32 flags, const u8 *to, const address *source, const address *destination,
                           const address *target) {
    u8 group[6] = {0x33, 0x33, [2] = destination->octets[12], destination->octets[13], destination->octets[14],
                   destination->octets[15]};
    struct packet p = {to ? to : group, *source, *destination, ICMP6, 0, same(source, &nobody) ? 24 : 32};
    u8 *data = begin_packet(&p);
    data[0] = type;
    put32(data + 4, flags);
    memcpy(data + 8, target, 16);
    if (p.size > 24) {
        data[24] = type == SOLICITATION ? 1 : 2, data[25] = 1;
        memcpy(data + 26, mac, 6);
    }
    send_packet(&p, data, 2);
}

static void ask(const address *ip, const address *source) {
    address group = solicited_node(ip);
    if (is_ipv4(ip))
        send_arp(REQUEST, broadcast, source ? source : &nobody4, ip);
    else
        send_neighbour(SOLICITATION, 0, 0, source ? source : &nobody, &group, ip);
}

static void announce(const address *ip) {
    if (is_ipv4(ip))
        ask(ip, ip);
    else
        send_neighbour(ADVERTISEMENT, 0x20000000, 0, ip, &all_nodes, ip);
}

static struct neighbour *find_neighbour(const address *ip) {
    for (u32 i = 0; i < NEIGHBOURS; i++)
        if (same(&neighbours[i].ip, ip))
            return &neighbours[i];
    return 0;
}

static struct neighbour *add_neighbour(const address *ip) {
    static u32 oldest;
    struct neighbour *n = find_neighbour(ip);
    if (!n) {
        n = &neighbours[oldest++ % NEIGHBOURS];
        *n = (struct neighbour){.ip = *ip};
    }
    return n;
}

static void learn(struct neighbour *n, const u8 *its_mac) {
    int was_known = n->known;
    memcpy(n->mac, its_mac, 6);
    n->known = 1;
    if (!was_known)
        retry_tcp();
}

const u8 *next_hop(const address *to) {
    u32 family = !is_ipv4(to), bit = 0, prefix = habits.family[family].prefix;
    const address *ours = &own[family].ip, *gateway = &habits.family[family].gateway;
    while (bit < prefix && !((to->octets[bit / 8] ^ ours->octets[bit / 8]) >> (7 - bit % 8) & 1))
        bit++;
    struct neighbour *n = add_neighbour(bit < prefix && !same(gateway, &nobody) ? gateway : to);
    if (n->known)
        return n->mac;
    if (!n->asked || due(n->asked + ASK_EVERY)) {
        n->asked = now() | 1;
        ask(&n->ip, ours);
    }
    return 0;
}

static void conflict(struct own *o, const u8 *its_mac) {
    if (o->state == PROBING) {
        o->state = LOST;
        say("guest: %a is given up, %m has it", &o->ip, its_mac);
    }
}

void start_network(void) {
    static const u8 none[6];
    memcpy(mac, memcmp(habits.mac, none, 6) ? habits.mac : nic_mac, 6);
    for (u32 i = 0; i < 2; i++) {
        own[i].ip = habits.family[i].ip;
        own[i].state = same(&own[i].ip, &nobody) ? NONE : PROBING;
        own[i].probes = habits.probe ? PROBES : 0;
        own[i].next = now();
    }
    keep_network();
}

void keep_network(void) {
    for (struct own *o = own; o < own + 2; o++)
        if (o->state == PROBING && due(o->next)) {
            o->next += PROBE_EVERY;
            if (o->probes) {
                o->probes--;
                ask(&o->ip, 0);
                due(o->next);
                continue;
            }
            o->state = HELD;
            if (!habits.silent)
                announce(&o->ip);
            say("guest: %a at %m after %t s", &o->ip, mac);
        }
}

/* What comes in. */

static void handle_arp(const u8 *arp, u32 size) {
    if (size < ARP || memcmp(arp, "\0\1\x08\0\6\4", 6) || !memcmp(arp + 8, mac, 6))
        return;
    address sender = mapped(arp + 14), target = mapped(arp + 24);
    struct own *o = find_own(&sender);
    if (!o && same(&sender, &nobody4))
        o = find_own(&target);  /* a probe */
    if (o)
        conflict(o, arp + 8);
    struct neighbour *n = find_neighbour(&sender);
    if (is_held(&target) && !n && !same(&sender, &nobody4))
        n = add_neighbour(&sender);
    if (n)
        learn(n, arp + 8);
    if (is_held(&target) && get16(arp + 6) == REQUEST)
        send_arp(REPLY, arp + 8, &target, &sender);
}

static void handle_neighbour(const struct packet *p) {
    if (p->size < 24)
        return;
    const address *target = (const address *)(p->data + 8);
    int solicitation = p->data[0] == SOLICITATION, has_mac = p->size >= 32 && p->data[24] == (solicitation ? 1 : 2);
    const u8 *its_mac = has_mac ? p->data + 26 : p->mac;
    struct own *o = find_own(target);
    if (o && (!solicitation || same(&p->source, &nobody)) && memcmp(p->mac, mac, 6))
        conflict(o, its_mac);
    if (!solicitation) {
        struct neighbour *n = find_neighbour(target);
        if (n)
            learn(n, its_mac);
    } else if (is_held(target)) {
        int probe = same(&p->source, &nobody);
        if (!probe)
            learn(add_neighbour(&p->source), its_mac);
        send_neighbour(ADVERTISEMENT, probe ? 0x20000000 : 0x60000000, probe ? 0 : p->mac, target,
                       probe ? &all_nodes : &p->source, target);
    }
}

/* The reply goes to the MAC that the request came from: without a connection there is no reason to ask for one. */
static void echo(const struct packet *p, u8 reply) {
    struct packet out = {p->mac, p->destination, p->source, p->protocol, 0, p->size};
    u8 *data = begin_packet(&out);
    memcpy(data, p->data, p->size);
    data[0] = reply;
    send_packet(&out, data, 2);
}

static void handle_packet(struct packet *p, int direct) {
    if (p->protocol == ICMP6 && (p->data[0] == SOLICITATION || p->data[0] == ADVERTISEMENT)) {
        if (!checksum(p))
            handle_neighbour(p);
        return;
    }
    if (!direct || !is_held(&p->destination))
        return;
    if (habits.receive_only) {
        if (p->protocol == UDP)
            say("guest: %u octets from %a", p->size - 8, &p->source);
    } else if (p->protocol == TCP)
        handle_tcp(p);
    else if (p->protocol == ICMP && p->data[0] == ECHO && !checksum(p))
        echo(p, ECHO_REPLY);
    else if (p->protocol == ICMP6 && p->data[0] == ECHO6 && !checksum(p))
        echo(p, ECHO6_REPLY);
}

static u32 sum(const u8 *data, u32 size, u32 start) {
    for (; size > 1; size -= 2, data += 2)
        start += get16(data);
    return size ? start + (*data << 8) : start;
}

static u16 fold(u32 sum) {
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return ~sum;
}

/* The ffff of a mapped IPv4 address is zero in ones' complement, so this is right for the pseudo-headers of both versions. */
u16 checksum(const struct packet *p) {
    u32 start = 0;
    if (p->protocol != ICMP)
        start = sum(p->source.octets, 16, sum(p->destination.octets, 16, p->protocol + p->size));
    return fold(sum(p->data, p->size, start));
}

void handle_frame(const u8 *frame, u32 size) {
    int direct = habits.promiscuous || !memcmp(frame, mac, 6);
    struct packet p = {.mac = frame + 6};
    const u8 *ip = frame + ETHERNET;
    if (size < ETHERNET)
        return;
    size -= ETHERNET;
    switch (get16(frame + 12)) {
    case 0x0806:
        handle_arp(ip, size);
        break;
    case 0x0800:
        if (size < IPV4 + 8 || ip[0] != 0x45 || get16(ip + 2) < IPV4 + 8 || get16(ip + 2) > size
            || get16(ip + 6) & 0x3fff || fold(sum(ip, IPV4, 0)))
            return;
        p.source = mapped(ip + 12), p.destination = mapped(ip + 16);
        p.protocol = ip[9], p.data = ip + IPV4, p.size = get16(ip + 2) - IPV4;
        handle_packet(&p, direct);
        break;
    case 0x86dd:
        if (size < IPV6 + 8 || ip[0] >> 4 != 6 || get16(ip + 4) < 8 || get16(ip + 4) > size - IPV6)
            return;
        memcpy(&p.source, ip + 8, 16), memcpy(&p.destination, ip + 24, 16);
        p.protocol = ip[6], p.data = ip + IPV6, p.size = get16(ip + 4);
        handle_packet(&p, direct);
        break;
    }
}

/* What goes out. */

u8 *begin_packet(const struct packet *p) {
    u8 *frame = send_buffer(), *ip = frame + ETHERNET;
    memcpy(frame, p->mac, 6);
    memcpy(frame + 6, mac, 6);
    if (is_ipv4(&p->destination)) {
        put16(frame + 12, 0x0800);
        memset(ip, 0, IPV4);
        ip[0] = 0x45, ip[8] = 64, ip[9] = p->protocol;
        put16(ip + 2, IPV4 + p->size);
        memcpy(ip + 12, p->source.octets + 12, 4);
        memcpy(ip + 16, p->destination.octets + 12, 4);
        put16(ip + 10, fold(sum(ip, IPV4, 0)));
        ip += IPV4;
    } else {
        put16(frame + 12, 0x86dd);
        put32(ip, 6u << 28);
        put16(ip + 4, p->size);
        ip[6] = p->protocol, ip[7] = 255;  /* required by neighbour discovery, and harmless elsewhere */
        memcpy(ip + 8, &p->source, 16);
        memcpy(ip + 24, &p->destination, 16);
        ip += IPV6;
    }
    return ip;
}

void send_packet(struct packet *p, u8 *data, u32 checksum_at) {
    p->data = data;
    put16(data + checksum_at, 0);
    put16(data + checksum_at, checksum(p));
    send_frame(ETHERNET + (is_ipv4(&p->destination) ? IPV4 : IPV6) + p->size);
}

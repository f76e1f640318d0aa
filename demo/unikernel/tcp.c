/*
 * A web server over TCP (RFC 9293): several connections, no options but the largest segment's size, no congestion control.
 *
 * What a connection sends is a function of the position: 0 is the SYN, the page begins at 1, the FIN is last. So a
 * retransmission needs no copy of what was sent.
 */
#include "guest.h"

enum { FIN = 1, SYN = 2, RST = 4, PSH = 8, ACK = 16 };
enum { HEADER = 20, CONNECTIONS = 256, PAGE = 512, SEGMENT = 512, WINDOW = 8192 };
enum { RETRANSMIT = 1000, TRIES = 6, LINGER = 2000, FORGET = 60000 };  /* ms (RFC 6298, section 2.1) */
enum { END_OF_HEAD = 0x0d0a0d0a };

static struct connection {
    enum { FREE, OPENING, OPEN } state;
    address peer, ours;
    u16 port;
    u32 first, acknowledged, sent;  /* our sequence numbers */
    u32 expected, window;  /* the peer's next one; what it has room for */
    u32 timer, tries;  /* of sending again; and when all is done, of forgetting */
    u32 tail;  /* the last four octets that came */
    u32 length, page_length, next_octet;
    u8 unresolved, asked, closing, peer_closed, served;
    char page[PAGE];
} connections[CONNECTIONS];

static int listening;
static char listening_since[16];
static u32 requests, served;

static int later(u32 one, u32 other) { return (int)(one - other) > 0; }
static u32 end(struct connection *c) { return c->first + 1 + c->length + c->closing; }
static int finished(struct connection *c) { return c->closing && c->acknowledged == end(c); }

static void send_segment(const u8 *to, const struct packet *addresses, u16 from_port, u16 to_port, u8 flags, u32 number,
                         u32 acknowledged, const u8 *content, u32 size) {
    u32 header = flags & SYN ? HEADER + 4 : HEADER;
    struct packet p = *addresses;
    p.mac = to, p.protocol = 6, p.size = header + size;
    u8 *tcp = begin_packet(&p);
    memset(tcp, 0, header);
    put16(tcp, from_port), put16(tcp + 2, to_port);
    put32(tcp + 4, number), put32(tcp + 8, acknowledged);
    tcp[12] = header / 4 << 4, tcp[13] = flags;
    put16(tcp + 14, WINDOW);
    if (flags & SYN)
        put32(tcp + HEADER, 2 << 24 | 4 << 16 | 1440);  /* what fits with either version of IP */
    memcpy(tcp + header, content, size);
    send_packet(&p, tcp, 16);
}

/* Send what there is from a sequence number on, in one segment of `most` octets; return how far the numbers go on. */
static u32 send_from(struct connection *c, u32 number, u32 most) {
    u32 at = number - c->first, flags = ACK, size = 0, fin;
    u8 content[SEGMENT];
    if (!at)
        flags |= SYN;
    for (; at && at + size <= c->length && size < most; size++) {
        u32 i = at + size - 1;
        content[size] = habits.echo ? c->page[i % PAGE] : i < c->page_length ? c->page[i] : i % 2 ? '\n' : '.';
    }
    fin = at && most && c->closing && at + size == c->length + 1;
    if (size)
        flags |= PSH;
    if (fin)
        flags |= FIN;
    const u8 *to = next_hop(&c->peer);
    struct packet addresses = {.source = c->ours, .destination = c->peer};
    c->unresolved = !to;
    if (to)
        send_segment(to, &addresses, habits.port, c->port, flags, number, c->expected, content, size);
    return !at + size + fin;
}

static void send_rest(struct connection *c) {
    while (c->sent != end(c) && later(c->acknowledged + (c->window ? c->window : 1), c->sent)) {
        if (c->sent == c->acknowledged)
            c->timer = now() + RETRANSMIT, c->tries = 0;
        c->sent += send_from(c, c->sent, SEGMENT);
    }
}

static void send_again(struct connection *c) { send_from(c, c->acknowledged, SEGMENT); }

static void acknowledge(struct connection *c) { send_from(c, c->sent, 0); }

/* A neighbour's MAC has become known: send what waited for one. */
void retry_tcp(void) {
    for (struct connection *c = connections; c < connections + CONNECTIONS; c++)
        if (c->state != FREE && c->unresolved)
            send_again(c);
}

static void answer(struct connection *c) {
    char body[PAGE], *at = body;
    const address *lost = given_up();
    requests++;
    at = print(at, "up for %t s\nname: %s\naddress: %a at %m\nlistening since: %s s\nrequests: %u\n", habits.name, &c->ours,
               mac, listening_since, requests);
    if (lost)
        at = print(at, "given up: %a\n", lost);
    at = print(c->page, "HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n");
    if (!habits.stream)
        at = print(at, "Content-Length: %u\r\n", length(body));
    at = print(at, "\r\n%s", body);
    c->asked = 1;
    c->closing = !habits.stream;
    c->length = c->page_length = at - c->page;
    c->next_octet = now() + habits.stream;
}

/* A client has acknowledged all of its page. */
static void count_served(void) {
    served++;
    if (served == habits.exit_after)
        leave(0);
    if (served == habits.halt_after)
        halt();
    if (served == habits.reboot_after)
        reboot();
}

static struct connection *find(const struct packet *p, u16 port) {
    for (struct connection *c = connections; c < connections + CONNECTIONS; c++)
        if (c->state != FREE && c->port == port && same(&c->peer, &p->source) && same(&c->ours, &p->destination))
            return c;
    return 0;
}

/* Find a place for a new connection: a free one, or that of a connection which is finished or was never completed. */
static struct connection *find_place(void) {
    static u32 next;
    struct connection *best = 0;
    for (u32 i = 0; i < CONNECTIONS; i++) {
        struct connection *c = &connections[(next + i) % CONNECTIONS];
        if (c->state == FREE) {
            best = c;
            break;
        }
        if (!best && (finished(c) || c->state == OPENING))
            best = c;
    }
    if (best)
        next = best - connections + 1;
    return best;
}

static void open(const struct packet *p, u16 port, u32 number) {
    struct connection *c = find_place();
    if (!c)
        return;
    *c = (struct connection){.state = OPENING, .peer = p->source, .ours = p->destination, .port = port};
    c->first = c->acknowledged = c->sent = now() * 1000 + now_fraction();
    c->expected = number + 1;
    c->window = 1;
    send_rest(c);
}

static void refuse(const struct packet *p, u32 size) {
    const u8 *tcp = p->data, flags = tcp[13];
    struct packet addresses = {.source = p->destination, .destination = p->source};
    u32 number = flags & ACK ? get32(tcp + 8) : 0;
    u32 acknowledged = flags & ACK ? 0 : get32(tcp + 4) + size + !!(flags & SYN) + (flags & FIN);
    if (!(flags & RST))
        send_segment(p->mac, &addresses, get16(tcp + 2), get16(tcp), flags & ACK ? RST : RST | ACK, number, acknowledged, 0, 0);
}

/* Keep what is to be sent back; return how much of it there is a place for, as the rest comes again. */
static u32 keep_echo(struct connection *c, const u8 *content, u32 size) {
    u32 free = PAGE - (c->first + 1 + c->length - c->acknowledged);
    if (size > free)
        size = free;
    for (u32 i = 0; i < size; i++)
        c->page[c->length++ % PAGE] = content[i];
    return size;
}

static void take(struct connection *c, const u8 *content, u32 size) {
    for (u32 i = 0; i < size && !c->asked && !habits.mute; i++) {
        c->tail = c->tail << 8 | content[i];
        if (c->tail == END_OF_HEAD || (c->tail & 0xffff) == 0x0a0a)
            answer(c);
    }
}

/* Handle a segment of an existing connection. */
static void handle_segment(struct connection *c, const struct packet *p, const u8 *content, u32 size) {
    u32 number = get32(p->data + 4), acknowledged = get32(p->data + 8), before = c->sent;
    u8 flags = p->data[13], fin = flags & FIN;
    u32 old = c->expected - number;  /* how much of it came before */
    if (flags & RST) {
        if (!old)  /* RFC 5961, section 3 */
            c->state = FREE;
        return;
    }
    if (flags & SYN) {
        if (finished(c) && later(number, c->expected))
            c->state = FREE, open(p, c->port, number);
        else if (c->state == OPENING && old == 1)
            send_again(c);
        else
            acknowledge(c);  /* RFC 5961, section 4 */
        return;
    }
    if (!(flags & ACK))
        return;
    if (later(acknowledged, c->sent)) {
        if (c->state == OPENING)
            refuse(p, size);
        else
            acknowledge(c);
        return;
    }
    if (later(acknowledged, c->acknowledged)) {
        c->state = OPEN;
        c->acknowledged = acknowledged;
        c->timer = now() + RETRANSMIT, c->tries = 0;
    }
    if (c->state == OPENING)
        return;
    c->window = get16(p->data + 14);
    if (old > size + fin) {  /* a gap before it, or nothing new in it */
        acknowledge(c);
        return;
    }
    if (size > old && habits.echo) {
        u32 kept = keep_echo(c, content + old, size - old);
        if (kept < size - old)
            size = old + kept, fin = 0;
    } else if (size > old)
        take(c, content + old, size - old);
    c->expected += size + fin - old;
    if (fin && !c->peer_closed) {
        c->peer_closed = 1;
        c->closing |= !c->asked;
    }
    send_rest(c);
    if (size + fin && c->sent == before)
        acknowledge(c);
    if (finished(c)) {
        c->timer = now() + (c->peer_closed ? LINGER : FORGET);
        if (c->asked && !c->served) {
            c->served = 1;
            count_served();
        }
    }
}

void handle_tcp(const struct packet *p) {
    u32 header = p->size < HEADER ? 0 : p->data[12] / 16 * 4;
    if (header < HEADER || header > p->size || checksum(p))
        return;
    u16 port = get16(p->data);
    u32 size = p->size - header;
    struct connection *c = get16(p->data + 2) == habits.port ? find(p, port) : 0;
    if (c)
        handle_segment(c, p, p->data + header, size);
    else if (listening && get16(p->data + 2) == habits.port && (p->data[13] & (SYN | ACK | RST | FIN)) == SYN)
        open(p, port, get32(p->data + 4));
    else
        refuse(p, size);
}

static void keep(struct connection *c) {
    if (habits.stream && c->asked)
        while (due(c->next_octet)) {
            c->length++, c->next_octet += habits.stream;
            send_rest(c);
        }
    if (c->acknowledged != c->sent) {
        if (!due(c->timer))
            return;
        if (++c->tries > TRIES) {
            c->state = FREE;
            return;
        }
        c->timer = now() + (RETRANSMIT << c->tries);
        send_again(c);
        due(c->timer);
    } else if (finished(c) && due(c->timer))
        c->state = FREE;
}

void keep_tcp(void) {
    if (!listening && !is_probing() && due(habits.listen_after)) {
        listening = 1;
        print(listening_since, "%t");
        say("guest: listening on port %u after %s s", habits.port, listening_since);
    }
    for (struct connection *c = connections; c < connections + CONNECTIONS; c++)
        if (c->state != FREE)
            keep(c);
}

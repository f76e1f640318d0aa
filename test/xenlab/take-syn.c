/*
 * Give this machine's own TCP a SYN that never came by a wire: one that Synjitsu has written to Xenstore.
 *
 *   take-syn SOURCE SPORT DESTINATION DPORT SEQUENCE WINDOW OPTIONS
 *
 * SEQUENCE and OPTIONS are as in the record: a signed number, and an s-expression such as
 * "((MSS 1460)SACK_ok(Timestamp 1 0)Noop(Window_size_shift 7))". The answer goes to SOURCE by the usual way.
 */
#include <arpa/inet.h>
#include <err.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

static uint8_t packet[20 + 60], *end = packet + 40;

static void put(int octets, uint32_t value) {
	if (end + octets > packet + sizeof packet)
		errx(1, "too many options");
	while (octets--)
		*end++ = value >> (8 * octets);
}

static uint32_t number(void) { /* the atom that follows */
	char *word = strtok(NULL, " ()");
	if (!word)
		errx(1, "an option's number is missing");
	return strtoll(word, NULL, 10);
}

static uint16_t sum(uint32_t start, const uint8_t *from, const uint8_t *to) {
	for (; from < to; from += 2)
		start += from[0] << 8 | from[1];
	start = (start >> 16) + (start & 0xffff);
	return ~((start >> 16) + start);
}

int main(int argc, char **argv) {
	struct sockaddr_in to = {.sin_family = AF_INET};
	uint8_t *ip = packet, *tcp = packet + 20;
	if (argc != 8 || inet_pton(AF_INET, argv[1], ip + 12) != 1 || inet_pton(AF_INET, argv[3], ip + 16) != 1)
		errx(2, "SOURCE SPORT DESTINATION DPORT SEQUENCE WINDOW OPTIONS");
	memcpy(&to.sin_addr, ip + 16, 4);
	for (char *word = strtok(argv[7], " ()"); word; word = strtok(NULL, " ()")) {
		if (!strcmp(word, "Noop")) put(1, 1);
		else if (!strcmp(word, "MSS")) put(2, 0x0204), put(2, number());
		else if (!strcmp(word, "Window_size_shift")) put(2, 0x0303), put(1, number());
		else if (!strcmp(word, "SACK_ok")) put(2, 0x0402);
		else if (!strcmp(word, "Timestamp")) put(2, 0x080a), put(4, number()), put(4, number());
		else errx(1, "what is %s?", word);
	}
	while ((end - packet) % 4)
		put(1, 0);
	uint8_t *last = end;
	ip[0] = 0x45, ip[2] = (last - packet) >> 8, ip[3] = last - packet, ip[8] = 64, ip[9] = IPPROTO_TCP;
	end = tcp, put(2, atoi(argv[2])), put(2, atoi(argv[4])), put(4, strtoll(argv[5], NULL, 10)), put(4, 0);
	put(1, (last - tcp) / 4 << 4), put(1, 2), put(2, atoi(argv[6]));
	uint16_t check = sum((uint16_t)~sum(IPPROTO_TCP + (last - tcp), ip + 12, ip + 20), tcp, last);
	tcp[16] = check >> 8, tcp[17] = check;
	int raw = socket(AF_INET, SOCK_RAW, IPPROTO_RAW);
	if (raw < 0 || sendto(raw, packet, last - packet, 0, (struct sockaddr *)&to, sizeof to) != last - packet)
		err(1, "cannot send");
	return 0;
}

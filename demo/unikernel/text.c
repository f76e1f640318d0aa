#include "guest.h"

void *memcpy(void *to, const void *from, unsigned size) {
    void *result = to;
    asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(size) :: "memory");
    return result;
}

void *memset(void *to, int octet, unsigned size) {
    void *result = to;
    asm volatile("rep stosb" : "+D"(to), "+c"(size) : "a"(octet) : "memory");
    return result;
}

int memcmp(const void *one, const void *other, unsigned size) {
    const u8 *a = one, *b = other;
    for (; size; size--, a++, b++)
        if (*a != *b)
            return *a - *b;
    return 0;
}

u32 length(const char *text) {
    u32 size = 0;
    while (text[size])
        size++;
    return size;
}

const char *after(const char *text, const char *prefix) {
    while (*prefix)
        if (*text++ != *prefix++)
            return 0;
    return text;
}

static u32 digit(u8 c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : 99; }

const char *read_number(const char *text, u32 base, u32 *value) {
    for (*value = 0; digit(*text) < base; text++)
        *value = *value * base + digit(*text);
    return text;
}

const char *read_address(const char *text, address *value) {
    u32 number, groups[8] = {0}, count = 0, gap = 8;
    const char *dot = read_number(text, 10, &number);
    if (*dot == '.') {
        memcpy(value, "\0\0\0\0\0\0\0\0\0\0\xff\xff", 12);
        for (u32 i = 12; i < 16; i++) {
            text = read_number(text, 10, &number);
            value->octets[i] = number;
            if (*text == '.')
                text++;
        }
        return text;
    }
    while (count < 8 && (digit(*text) < 16 || *text == ':')) {
        if (after(text, "::"))
            gap = count, text += 2;
        else if (*text == ':')
            text++;
        if (digit(*text) < 16)
            text = read_number(text, 16, &groups[count++]);
    }
    for (u32 i = 0; i < 8; i++) {
        u32 behind = i - (8 - count);  /* what stands behind the gap ends at the end */
        put16(value->octets + 2 * i, i < gap ? groups[i] : i >= gap + 8 - count ? groups[behind] : 0);
    }
    return text;
}

void read_mac(const char *text, u8 *mac) {
    for (u32 i = 0, number; i < 6; i++) {
        text = read_number(text, 16, &number);
        mac[i] = number;
        if (*text == ':')
            text++;
    }
}

static char *print_number(char *to, u32 value, u32 base, u32 digits) {
    char reversed[12];
    u32 count = 0;
    do
        reversed[count++] = "0123456789abcdef"[value % base];
    while ((value /= base) || count < digits);
    while (count)
        *to++ = reversed[--count];
    return to;
}

static char *print_address(char *to, const address *a) {
    for (u32 i = 0; i < 4 && is_ipv4(a); i++) {
        to = print_number(to, a->octets[12 + i], 10, 1);
        *to++ = '.';
    }
    for (u32 i = 0; i < 8 && !is_ipv4(a); i++) {
        to = print_number(to, get16(a->octets + 2 * i), 16, 1);
        *to++ = ':';
    }
    return to - 1;
}

char *print_list(char *to, const char *format, __builtin_va_list list) {
    for (; *format; format++) {
        if (*format != '%') {
            *to++ = *format;
            continue;
        }
        u32 time;
        const u8 *octets;
        switch (*++format) {
        case 's':
            for (const char *text = __builtin_va_arg(list, const char *); *text;)
                *to++ = *text++;
            break;
        case 'u':
            to = print_number(to, __builtin_va_arg(list, u32), 10, 1);
            break;
        case 't':
            time = now();
            to = print_number(to, time / 1000, 10, 1);
            *to++ = '.';
            to = print_number(to, time % 1000 * 1000 + now_fraction(), 10, 6);
            break;
        case 'a':
            to = print_address(to, __builtin_va_arg(list, const address *));
            break;
        case 'm':
            octets = __builtin_va_arg(list, const u8 *);
            for (u32 i = 0; i < 6; i++) {
                to = print_number(to, octets[i], 16, 2);
                if (i < 5)
                    *to++ = ':';
            }
            break;
        }
    }
    *to = 0;
    return to;
}

char *print(char *to, const char *format, ...) {
    __builtin_va_list list;
    __builtin_va_start(list, format);
    to = print_list(to, format, list);
    __builtin_va_end(list);
    return to;
}

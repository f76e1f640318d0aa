/* The command line: words and key=value, separated by blanks. What is not known is ignored, as a kernel would. */
#include "guest.h"

struct habits habits = {.port = 80, .name = "guest", .exit = ~0u};

static const struct { const char *key; u32 *value; } numbers[] = {
    {"port", &habits.port},
    {"nic", &habits.nic},
    {"net_after", &habits.net_after},
    {"listen_after", &habits.listen_after},
    {"exit_after", &habits.exit_after},
    {"halt_after", &habits.halt_after},
    {"reboot_after", &habits.reboot_after},
    {"stream", &habits.stream},
    {"exit", &habits.exit},
    {"crash", &habits.crash},
    {"halt", &habits.halt},
    {"promiscuous", &habits.promiscuous},
    {"silent", &habits.silent},
    {"probe", &habits.probe},
    {"power", &habits.power},
    {"mute", &habits.mute},
    {"echo", &habits.echo},
    {"receive_only", &habits.receive_only},
};

static int ends(char c) { return !c || c == ' '; }

/* ADDRESS/PREFIX; the prefix of an IPv4 address lies behind the 96 bits of the mapping. */
static void read_own(const char *value, u32 family, u32 mapping) {
    value = read_address(value, &habits.family[family].ip);
    if (*value == '/')
        read_number(value + 1, 10, &habits.family[family].prefix);
    habits.family[family].prefix += mapping;
}

static void read_word(const char *word) {
    const char *value;
    if ((value = after(word, "ip=")))
        read_own(value, 0, 96);
    else if ((value = after(word, "ip6=")))
        read_own(value, 1, 0);
    else if ((value = after(word, "gw=")))
        read_address(value, &habits.family[0].gateway);
    else if ((value = after(word, "gw6=")))
        read_address(value, &habits.family[1].gateway);
    else if ((value = after(word, "mac=")))
        read_mac(value, habits.mac);
    else if ((value = after(word, "name=")))
        for (u32 i = 0; i < sizeof habits.name - 1 && !ends(value[i]); i++)
            habits.name[i] = value[i], habits.name[i + 1] = 0;
    for (u32 i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if ((value = after(word, numbers[i].key))) {
            if (*value == '=')
                read_number(value + 1, 10, numbers[i].value);
            else if (ends(*value))
                *numbers[i].value = 1;
        }
}

void read_habits(const char *command_line) {
    for (const char *at = command_line; at && *at;) {
        read_word(at);
        while (!ends(*at))
            at++;
        while (*at == ' ')
            at++;
    }
}

/* A guest without a kernel: a web server of one page, and the habits that real unikernels have. */
#include "guest.h"

void run(const char *command_line) {
    start_machine();
    read_habits(command_line);
    if (habits.exit != ~0u)
        leave(habits.exit);
    if (habits.crash)
        crash();
    if (habits.halt)
        halt();
    while (!due(habits.net_after))
        sleep();
    start_nic(habits.nic);
    start_network();
    keep_tcp();
    for (;;) {
        u32 size;
        for (u8 *frame; (frame = receive(&size));)
            handle_frame(frame, size);
        keep_network();
        keep_tcp();
        if (habits.power && power_button())
            power_off();
        sleep();
    }
}

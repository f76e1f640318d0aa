/* Lets Xen's own xenstored run where there is no hypervisor, as any user: preloaded, it stands in for the few calls
 * that the daemon makes into libxenctrl, libxenevtchn, libxengnttab and /proc/xen.
 *
 * $XSSHIM_DIR holds what a hypervisor would:
 *   dom<N>.ring   domain N's page of Xenstore, 4,096 octets; the domain is there as long as the file is
 *   events        a FIFO of event channel ports, 32 bits each, in the machine's order:
 *                 1 is VIRQ_DOM_EXC (a domain has come or gone), 1000 + N is domain N's own
 *
 * Written after the declarations of Xen 4.17 and 4.20 (tools/include); others may differ.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PAGE = 4096, VIRQ_PORT = 1, DOMAIN_PORTS = 1000 };

static char a_handle;
static int events = -1;

static const char *in_dir(char *out, size_t size, const char *name)
{
    snprintf(out, size, "%s/%s", getenv("XSSHIM_DIR"), name);
    return out;
}

static const char *ring_of(char *out, size_t size, uint32_t domain)
{
    char name[32];

    snprintf(name, sizeof name, "dom%u.ring", domain);
    return in_dir(out, size, name);
}

/* The daemon ends with the test that has started it. */
__attribute__((constructor)) static void end_with_parent(void)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
}

/* libxenctrl: heads of structures are all that is filled in; the rest of them is the caller's. */
struct dominfo_head { /* xc_dominfo_t, until Xen 4.17 */
    uint32_t domid, ssidref;
    unsigned int flags, shutdown_reason;
};

struct domaininfo_head { /* struct xen_domctl_getdomaininfo, since */
    uint16_t domid, pad;
    uint32_t flags;
};

void *xc_interface_open(void *logger, void *dombuild_logger, unsigned int flags) { return &a_handle; }

int xc_interface_close(void *xch) { return 0; }

static int is_there(uint32_t domain)
{
    char path[4096];

    if (domain == 0 || access(ring_of(path, sizeof path, domain), F_OK) == 0)
        return 1;
    errno = ESRCH;
    return 0;
}

int xc_domain_getinfo(void *xch, uint32_t domain, unsigned int max, struct dominfo_head *info)
{
    if (max == 0)
        return 0;
    if (!is_there(domain))
        return -1;
    *info = (struct dominfo_head){ .domid = domain };
    return 1;
}

int xc_domain_getinfo_single(void *xch, uint32_t domain, struct domaininfo_head *info)
{
    if (!is_there(domain))
        return -1;
    if (info != NULL)
        *info = (struct domaininfo_head){ .domid = domain };
    return 0;
}

/* libxenevtchn */
static void *open_events(void)
{
    char path[4096];

    in_dir(path, sizeof path, "events");
    mkfifo(path, 0600);
    events = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
    return events < 0 ? NULL : &a_handle;
}

void *xenevtchn_open(void *logger, unsigned int flags) { return open_events(); }

void *xenevtchn_fdopen(void *logger, int fd, unsigned int flags) { return open_events(); }

int xenevtchn_close(void *xce) { return 0; }

int xenevtchn_fd(void *xce) { return events; }

int xenevtchn_bind_virq(void *xce, unsigned int virq) { return VIRQ_PORT; }

int xenevtchn_bind_interdomain(void *xce, uint32_t domain, uint32_t port) { return DOMAIN_PORTS + domain; }

int xenevtchn_notify(void *xce, uint32_t port) { return 0; }

int xenevtchn_unbind(void *xce, uint32_t port) { return 0; }

int xenevtchn_unmask(void *xce, uint32_t port) { return 0; }

int xenevtchn_pending(void *xce)
{
    uint32_t port;

    return read(events, &port, sizeof port) == sizeof port ? (int)port : -1;
}

/* libxengnttab */
void *xengnttab_open(void *logger, unsigned int flags) { return &a_handle; }

int xengnttab_close(void *xgt) { return 0; }

int xengnttab_set_max_grants(void *xgt, uint32_t count) { return 0; }

void *xengnttab_map_grant_ref(void *xgt, uint32_t domain, uint32_t ref, int prot)
{
    char path[4096];
    void *page;
    int fd = open(ring_of(path, sizeof path, domain), O_RDWR | O_CLOEXEC);

    if (fd < 0)
        return NULL;
    page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    return page == MAP_FAILED ? NULL : page;
}

int xengnttab_unmap(void *xgt, void *page, uint32_t count) { return munmap(page, PAGE); }

/* /proc/xen: the port and the page of dom0's kernel, which never asks for anything. */
static int open_instead(const char *path, int flags, mode_t mode)
{
    static int (*next)(const char *, int, ...);
    int port = strcmp(path, "/proc/xen/xsd_port") == 0;
    char mine[4096];
    int fd;

    if (next == NULL)
        next = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, "open");
    if (!port && strcmp(path, "/proc/xen/xsd_kva") != 0)
        return next(path, flags, mode);
    fd = next(in_dir(mine, sizeof mine, port ? "xsd_port" : "xsd_kva"), O_RDWR | O_CREAT | O_TRUNC, 0600);
    if (fd >= 0 && (port ? pwrite(fd, "1", 1, 0) != 1 : ftruncate(fd, PAGE) != 0)) {
        close(fd);
        return -1;
    }
    return fd;
}

int open(const char *path, int flags, ...)
{
    va_list rest;
    mode_t mode;

    va_start(rest, flags);
    mode = va_arg(rest, mode_t);
    va_end(rest);
    return open_instead(path, flags, mode);
}

int open64(const char *path, int flags, ...) __attribute__((alias("open")));

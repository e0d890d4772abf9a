/*
 * Runs Xen's own xenstored without Xen.
 *
 * Preloaded into the daemon, this stands in for the few calls by which it talks to the
 * hypervisor: event channels, grants, the list of domains and the ring page of domain 0. The
 * store itself (protocol, transactions, watches, permissions, quotas) is the daemon's own code,
 * so what passes against it passes against the real thing. For tests and the demo; it may not be
 * used on a host that runs Xen.
 *
 * Covers xenstored as of Xen 4.17 to 4.23. Which of the stand-ins a release calls differs:
 *
 *   4.17          xc_domain_getinfo() tells whether a domain exists
 *   4.18 - 4.20   xc_domain_getinfo_single()
 *   4.21 -        libxenmanage instead of libxenctrl
 *
 * Environment:
 *
 *   XENSTORED_LIFELINE   number of an inherited descriptor; the daemon ends when the other end of
 *                        it is closed, so that it cannot outlive whoever started it
 *   XENSTORED_RINGS      a directory through which other domains than 0 can connect:
 *                          events       FIFO, port numbers (native 32 bits) sent to the daemon
 *                          N.ring       the ring page of domain N, mapped at XS_INTRODUCE
 *                          N.event      FIFO, one byte per notification sent to domain N
 *
 * What is true and not obvious: an LD_PRELOAD definition without a symbol version satisfies the
 * daemon's versioned references. The port of domain N is N + FIRST_PORT on both sides. A domain
 * other than 0 exists if it has a ring or if nobody can know (no XENSTORED_RINGS entry for it):
 * the daemon forgets permissions given to domains that do not exist, and the toolstack's tests
 * write them before they "boot" a guest.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE 4096
#define VIRQ_PORT 1    /* "a domain died"; never raised */
#define DOM0_PORT 2
#define FIRST_PORT 1000
#define LAST_DOMID 32751 /* DOMID_FIRST_RESERVED is 0x7FF0 */

/* Stands for every handle; the daemon only tests it for NULL. */
static char handle[PAGE];

/* ---- event channels ---------------------------------------------------------------------- */

static int events = -1;

static const char *ring_file(char *path, size_t size, const char *format, unsigned domid)
{
	const char *directory = getenv("XENSTORED_RINGS");
	int used;

	if (!directory)
		return NULL;
	used = snprintf(path, size, "%s/", directory);
	snprintf(path + used, size - used, format, domid);
	return path;
}

void *xenevtchn_open(void *logger, unsigned flags)
{
	char path[PAGE];

	if (events < 0 && ring_file(path, sizeof path, "events", 0))
		/* Read-write, so that the last writer's exit is no end of file. */
		events = syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_NONBLOCK | O_CLOEXEC, 0);
	if (events < 0)
		events = eventfd(0, EFD_CLOEXEC); /* never written: the daemon just polls it */
	return handle;
}

void *xenevtchn_fdopen(void *logger, int fd, unsigned flags)
{
	return xenevtchn_open(logger, flags);
}

int xenevtchn_close(void *channel) { return 0; }
int xenevtchn_fd(void *channel) { return events; }
int xenevtchn_bind_virq(void *channel, unsigned virq) { return VIRQ_PORT; }
int xenevtchn_unmask(void *channel, int port) { return 0; }
int xenevtchn_unbind(void *channel, int port) { return 0; }

int xenevtchn_bind_interdomain(void *channel, unsigned domid, unsigned remote_port)
{
	return domid == 0 ? DOM0_PORT : (int)(FIRST_PORT + domid);
}

int xenevtchn_pending(void *channel)
{
	uint32_t port;

	if (read(events, &port, sizeof port) != sizeof port)
		return -1;
	return (int)port;
}

int xenevtchn_notify(void *channel, int port)
{
	char path[PAGE];
	int fd;

	if (port < FIRST_PORT || !ring_file(path, sizeof path, "%u.event", port - FIRST_PORT))
		return 0;
	fd = syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_NONBLOCK | O_CLOEXEC, 0);
	if (fd >= 0) {
		/* A full FIFO is fine: the domain has not even looked at the earlier ones. */
		if (write(fd, "", 1) != 1 && errno != EAGAIN)
			perror(path);
		close(fd);
	}
	return 0;
}

/* ---- grants: the ring pages of other domains ---------------------------------------------- */

void *xengnttab_open(void *logger, unsigned flags) { return handle; }
int xengnttab_close(void *grants) { return 0; }
int xengnttab_set_max_grants(void *grants, uint32_t count) { return 0; }
int xengnttab_unmap(void *grants, void *start, uint32_t count) { return munmap(start, PAGE); }

void *xengnttab_map_grant_ref(void *grants, uint32_t domid, uint32_t ref, int protection)
{
	char path[PAGE];
	void *page;
	int fd;

	if (!ring_file(path, sizeof path, "%u.ring", domid)) {
		errno = EINVAL;
		return NULL;
	}
	fd = syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC, 0);
	if (fd < 0)
		return NULL;
	page = mmap(NULL, PAGE, protection, MAP_SHARED, fd, 0);
	close(fd);
	return page == MAP_FAILED ? NULL : page;
}

/* ---- which domains exist -------------------------------------------------------------------- */

void *xc_interface_open(void *logger, void *dombuild_logger, unsigned flags) { return handle; }
int xc_interface_close(void *interface) { return 0; }

/*
 * The caller's structures differ, but all start with the domid (32 bits in 4.17, 16 bits and
 * padding later) and flags within the next 8 bytes; zero flags: neither dying nor shut down.
 */
static void describe(uint32_t domid, void *info)
{
	memset(info, 0, 16);
	memcpy(info, &domid, sizeof domid);
}

int xc_domain_getinfo(void *interface, uint32_t first, unsigned count, void *info)
{
	if (first > LAST_DOMID || count == 0)
		return 0;
	describe(first, info);
	return 1;
}

int xc_domain_getinfo_single(void *interface, uint32_t domid, void *info)
{
	if (domid > LAST_DOMID) {
		errno = ESRCH;
		return -1;
	}
	describe(domid, info);
	return 0;
}

#define STATE_EXIST 1
#define CAP_CONTROL 1
#define CAP_XENSTORE 4

static void report(uint32_t domid, unsigned *state, unsigned *caps, uint64_t *unique_id)
{
	if (state)
		*state = STATE_EXIST;
	if (caps)
		*caps = domid == 0 ? CAP_CONTROL | CAP_XENSTORE : 0;
	if (unique_id)
		*unique_id = domid + 1; /* 0 means unknown */
}

void *xenmanage_open(void *logger, unsigned flags) { return handle; }
int xenmanage_close(void *manage) { return 0; }

int xenmanage_get_domain_info(void *manage, unsigned domid, unsigned *state, unsigned *caps,
			      uint64_t *unique_id)
{
	if (domid > LAST_DOMID) {
		errno = ESRCH;
		return -1;
	}
	report(domid, state, caps, unique_id);
	return 0;
}

int xenmanage_poll_changed_domain(void *manage, unsigned *domid, unsigned *state, unsigned *caps,
				  uint64_t *unique_id)
{
	static int told;

	if (told) {
		errno = ENOENT;
		return -1;
	}
	told = 1; /* domain 0 is new to a daemon that starts; nothing changes after */
	*domid = 0;
	report(0, state, caps, unique_id);
	return 0;
}

/* ---- the ring page of domain 0 ----------------------------------------------------------------- */

static int memory_file(const char *name, const void *content, size_t size)
{
	int fd = memfd_create(name, MFD_CLOEXEC);

	if (fd >= 0 && (write(fd, content, size) != (ssize_t)size || lseek(fd, 0, SEEK_SET) != 0)) {
		close(fd);
		return -1;
	}
	return fd;
}

static int open_file(const char *path, int flags, mode_t mode)
{
	static const char page[PAGE];

	if (strcmp(path, "/proc/xen/xsd_port") == 0)
		return memory_file("xsd_port", "2", 1);
	if (strcmp(path, "/proc/xen/xsd_kva") == 0)
		return memory_file("xsd_kva", page, sizeof page);
	return syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}

int open(const char *path, int flags, ...)
{
	va_list arguments;
	mode_t mode;

	va_start(arguments, flags);
	mode = va_arg(arguments, mode_t); /* only meaningful with O_CREAT, harmless without */
	va_end(arguments);
	return open_file(path, flags, mode);
}

int open64(const char *path, int flags, ...) __attribute__((alias("open")));

/* What open() becomes under _FORTIFY_SOURCE. */
int __open_2(const char *path, int flags) { return open_file(path, flags, 0); }
int __open64_2(const char *path, int flags) { return open_file(path, flags, 0); }

/* ---- the lifeline --------------------------------------------------------------------------------- */

static void *watch_lifeline(void *descriptor)
{
	char byte;

	while (read((int)(intptr_t)descriptor, &byte, 1) != 0) {
		if (errno != EINTR)
			break;
	}
	_exit(0);
}

__attribute__((constructor)) static void start(void)
{
	const char *number = getenv("XENSTORED_LIFELINE");
	pthread_t thread;

	if (number)
		pthread_create(&thread, NULL, watch_lifeline, (void *)(intptr_t)atoi(number));
	/* Whatever the daemon might start is not to run under this. */
	unsetenv("LD_PRELOAD");
}

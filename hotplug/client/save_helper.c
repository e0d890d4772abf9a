/*
 * libxl-save-helper: what libxl runs to save or restore a guest's memory.
 *
 * A restore is handed to a process that waits for it with everything loaded (restore/server.py):
 * our arguments as one packet, our standard descriptors and the image's with it. Where none
 * answers, where it declines, and for everything else we become a Python that does the work
 * (restore/helper.py), or has Xen's own helper do it. If we are killed, our socket closes, and the
 * worker is killed by that.
 *
 * libxl goes on when we end, so we end only when the worker has: at the end of its socket, which
 * the kernel closes after it has taken the worker's memory apart (do_exit, Linux 6.1: exit_mm comes
 * before exit_files). A page of the guest that a process of dom0 still had mapped writable could
 * not become a page table when the guest runs.
 */
#define FOLDER "/hotplug/client"
#define MODULE "/hotplug/restore/helper.py"
#include "runtime.h"

/* As in restore/server.py. */
#define GREETING "xen-hotplug restore 1"
#define STATUS 's' /* and a byte, the exit status */

#ifndef GREETING_MS
#define GREETING_MS 2000 /* a worker that is ready takes one; a host that is busy, more */
#endif

enum { RESTORE_WORDS = 11, FD = 2, BACK_FD = 3, STREAM_TYPE = 10, MAX_REQUEST = 4096 };

/* client.c says why so. */
static const char MAIN[] =
	"import sys; sys.path.append(sys.argv.pop(1)); "
	"from hotplug.restore.helper import run; run(sys.argv[1:])";

static void complain(const char *sentence)
{
	say("libxl-save-helper: ", 19);
	say(sentence, length_of(sentence));
	say("\n", 1);
}

static bool is_equal(const char *one, const char *other)
{
	const char *rest = after(one, other);

	return rest && !*rest;
}

/* A descriptor's number; -1 if it is none. */
static int number(const char *text)
{
	int value = 0;

	if (!*text)
		return -1;
	for (; *text; text++) {
		if (*text < '0' || *text > '9' || value > 99999)
			return -1;
		value = value * 10 + (*text - '0');
	}
	return value;
}

/* Whether workers do what is asked for: to restore an image without checkpoints. */
static bool is_for_workers(int argc, char *const *argv)
{
	return argc == RESTORE_WORDS && is_equal(argv[1], "--restore-domain") &&
	       number(argv[FD]) >= 0 && is_equal(argv[BACK_FD], "-1") &&
	       is_equal(argv[STREAM_TYPE], "0");
}

/* A socket to a worker that has said that it is ready, or -1 where there is none. */
static int find_worker(char *const *environment)
{
	static struct sockaddr_un address;
	static char said[sizeof GREETING + 1];
	struct timeval limit = {.tv_sec = GREETING_MS / 1000, .tv_usec = GREETING_MS % 1000 * 1000};
	const struct timeval none = {0, 0};
	long fd, size;

	if (!set_address(&address, runtime_directory(environment), "/restore"))
		return -1;
	fd = new_socket();
	if (fd < 0)
		return -1;
	/* Limits for connect(), while the backlog is full, and for the greeting. */
	CALL(SYS_setsockopt, fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit, 0);
	CALL(SYS_setsockopt, fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit, 0);
	if (connect_to(fd, &address) == 0) {
		do
			size = CALL(SYS_recvfrom, fd, said, sizeof said - 1, 0, NULL, NULL);
		while (size == -EINTR);
		if (size == sizeof GREETING - 1 && is_equal(said, GREETING)) {
			CALL(SYS_setsockopt, fd, SOL_SOCKET, SO_RCVTIMEO, &none, sizeof none, 0);
			return (int)fd;
		}
	}
	CALL(SYS_close, fd, 0, 0, 0, 0, 0);
	return -1;
}

/* Our arguments, each with its NUL, and the descriptors; false if they were not taken. */
static bool send_request(int fd, int argc, char *const *argv)
{
	static char packet[MAX_REQUEST];
	static union {
		char buffer[CMSG_SPACE(4 * sizeof(int))];
		struct cmsghdr head;
	} control;
	const int descriptors[] = {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO, number(argv[FD])};
	struct iovec vector = {packet, 0};
	struct msghdr message = {
		.msg_iov = &vector,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof control,
	};
	long result;

	for (int i = 1; i < argc; i++) {
		size_t size = length_of(argv[i]) + 1;
		if (!join(packet, sizeof packet, packet, vector.iov_len, argv[i]))
			return false;
		vector.iov_len += size;
	}
	control.head.cmsg_level = SOL_SOCKET;
	control.head.cmsg_type = SCM_RIGHTS;
	control.head.cmsg_len = CMSG_LEN(sizeof descriptors);
	for (size_t i = 0; i < sizeof descriptors; i++)
		CMSG_DATA(&control.head)[i] = ((const unsigned char *)descriptors)[i];
	do
		result = CALL(SYS_sendmsg, fd, &message, MSG_NOSIGNAL, 0, 0, 0);
	while (result == -EINTR);
	return result >= 0;
}

/* Returns only if nothing has been done: there is no worker, or it declines. */
static void ask_worker(int argc, char *const *argv, char *const *environment)
{
	int fd = find_worker(environment);
	int status = 1; /* if it dies without a word */
	char answer[2];
	long size;

	if (fd < 0)
		return;
	if (send_request(fd, argc, argv)) {
		for (;;) {
			size = CALL(SYS_recvfrom, fd, answer, sizeof answer, 0, NULL, NULL);
			if (size == -EINTR)
				continue;
			if (size <= 0)
				leave(status);
			if (size != sizeof answer || answer[0] != STATUS)
				break;
			status = (unsigned char)answer[1];
		}
	}
	CALL(SYS_close, fd, 0, 0, 0, 0, 0);
}

static void run(int argc, char *const *argv, char *const *environment)
{
	const char *package;

	caller = argv;
	words = argc;
	if (argc < 1 || argc > MAX_ARGUMENTS) {
		complain("called with no word, or with too many");
		leave(2);
	}
	if (is_for_workers(argc, argv))
		ask_worker(argc, argv, environment);
	package = site();
	if (package)
		execute_python(MAIN, package, NULL);
	complain(package ? "there is no Python to do its work: neither " PYTHON
			   " nor /usr/bin/python3 nor a python3 in PATH can be run"
			 : "its Python package is not in " SITE);
	leave(2);
}

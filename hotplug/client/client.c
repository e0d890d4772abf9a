/*
 * The thin client: what a toolstack runs per device in place of a hotplug script.
 *
 * It hands argv, the working directory and the contract's environment variables to the agent as
 * one packet (wire.py has the format), waits for one packet, prints its text on stderr and exits
 * with its status. Where no agent answers it becomes the one-shot path, which does the same work
 * in this process. It writes nothing to stdout, starts nothing and allocates nothing. If it is
 * killed, its socket closes, and the agent undoes what it had begun.
 *
 * Whatever goes wrong here ends in one sentence on stderr and status 1, the failure status of the
 * stock scripts: to libxl every status but 0 is a failure, and 255 its own failure to exec. Before
 * that we become a Python that writes the sentence to the store, where people look for it.
 *
 * runtime.h has what it shares with libxl-save-helper.
 */
#define FOLDER "/hotplug/client/scripts"
#define MODULE "/hotplug/client/oneshot.py"
#include "runtime.h"

#ifndef WAIT_SECONDS
#define WAIT_SECONDS 38 /* the agent fails an event after 35 s, libxl kills us after 40 */
#endif

#define MAX_PACKET 65536 /* as in wire.py */
#define AS_TEXT(number) #number
#define TEXT(number) AS_TEXT(number)

/* As in wire.py, each with its NUL; an empty one ends the list. */
static const char VARIABLES[] =
	"XENBUS_PATH\0XENBUS_TYPE\0XENBUS_BASE_PATH\0ACTION\0UDEV_CALL\0script\0vif\0INTERFACE\0"
	"netdev\0bridge\0ip\0dhcp\0type_if\0vifname\0mtu\0";

/* -S: no .pth files, no other site directory; ours comes last, so that nothing shadows the
 * standard library. UTF-8 mode: names of files are the same bytes in every locale. _exit: a
 * thread that hangs in the kernel must not keep us, and tidying up takes time. Before anything is
 * begun, an interrupt just ends us, without a traceback. */
#define PROGRAM(function) \
	"import os, sys, _signal as s; s.getsignal(2) == s.SIG_IGN or s.signal(2, s.SIG_DFL); " \
	"sys.path.append(sys.argv.pop(1)); " \
	"from hotplug.client.oneshot import " function "; os._exit(" function "(sys.argv[1:]))"
static const char MAIN[] = PROGRAM("main");
static const char REPORT[] = PROGRAM("report");

static char packet[MAX_PACKET + 1]; /* the one we send, then the one we get; and a newline */
static size_t length;
static const char *script = "xen-hotplug client"; /* argv[0] */

/* Milliseconds on a clock that nobody sets. */
static int64_t now(void)
{
	struct timespec time = {0, 0};

	CALL(SYS_clock_gettime, CLOCK_MONOTONIC, &time, 0, 0, 0, 0);
	return time.tv_sec * 1000 + time.tv_nsec / 1000000;
}
/* A sentence is put together in the packet's place and said at once, as others share stderr. */
static void add(const char *text)
{
	while (*text && length < MAX_PACKET)
		packet[length++] = *text++;
}

static void add_number(long number)
{
	char digits[21] = "";
	size_t at = sizeof digits - 1;

	do
		digits[--at] = (char)('0' + number % 10);
	while ((number /= 10) > 0);
	add(digits + at);
}

static void leave_word(const char *sentence);

/* "SCRIPT: ABOUT PROBLEM: why" and status 1; `result` is that of a system call, or 0. */
__attribute__((noreturn)) static void fail(const char *about, const char *problem, long result)
{
	size_t start;

	length = 0;
	add(script);
	add(": ");
	start = length;
	add(about);
	add(problem);
	if (result == -EACCES || result == -EPERM) {
		add(": permission denied");
	} else if (result < 0) {
		add(": error ");
		add_number(-result);
	}
	packet[length] = '\n';
	say(packet, length + 1);
	packet[length] = '\0';
	leave_word(packet + start);
	leave(1);
}

__attribute__((noreturn)) static void give_up(void)
{
	fail("the agent has not answered for ",
	     TEXT(WAIT_SECONDS) " seconds; it may still be at work", 0);
}

/* The request. */

static void append(const char *bytes, size_t size)
{
	if (size > MAX_PACKET - length)
		fail("", "the arguments and variables are too long for one packet to the agent", 0);
	for (size_t i = 0; i < size; i++)
		packet[length++] = bytes[i];
}

static void append_string(const char *text)
{
	append(text, length_of(text) + 1);
}

static void pack_request(int argc, char *const *argv, char *const *environment)
{
	static char cwd[MAX_PATH];
	const char count[] = {(char)('0' + argc / 10), (char)('0' + argc % 10), '\0'};

	append_string("xen-hotplug 1");
	append_string("run");
	/* A directory outside our root is spelled "(unreachable)/...". */
	if (CALL(SYS_getcwd, cwd, sizeof cwd, 0, 0, 0, 0) > 0 && cwd[0] == '/')
		append_string(cwd);
	else
		append_string("");
	append_string(argc < 10 ? count + 1 : count);
	for (int i = 0; i < argc; i++)
		append_string(argv[i]);
	for (const char *name = VARIABLES; *name; name += length_of(name) + 1) {
		const char *value = variable(environment, name);
		if (value) {
			append(name, length_of(name));
			append("=", 1);
			append_string(value);
		}
	}
}

/* The agent. */

/* A socket connected to the agent, or -1 where there is none. */
static int connect_to_agent(char *const *environment)
{
	static struct sockaddr_un address;
	struct timeval limit = {.tv_sec = WAIT_SECONDS};
	const char *rundir = runtime_directory(environment);
	long fd, result;

	if (!set_address(&address, rundir, "/control"))
		fail(rundir, "/control: the path is too long for a socket", 0);

	fd = new_socket();
	if (fd < 0)
		fail("", "a socket cannot be made", fd);

	/* connect() waits while the agent's backlog is full. */
	CALL(SYS_setsockopt, fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit, 0);
	result = connect_to(fd, &address);
	if (result == -ENOENT || result == -ECONNREFUSED)
		return -1;
	if (result == -EAGAIN)
		give_up();
	if (result < 0)
		fail(address.sun_path, ": the agent cannot be reached", result);
	return (int)fd;
}

/* Wait until the socket can be read, but not longer than until the deadline. */
static void wait_until_readable(int fd, int64_t deadline)
{
	struct pollfd poll = {.fd = fd, .events = POLLIN};
	int64_t left = deadline - now();
	struct timespec limit = {.tv_sec = left / 1000, .tv_nsec = left % 1000 * 1000000};

	if (left <= 0)
		give_up();
	CALL(SYS_ppoll, &poll, 1, &limit, NULL, 0, 0);
}

/* Returns only if the agent ended without an answer. */
static void ask(int fd, int64_t deadline)
{
	long result;

	do
		result = CALL(SYS_sendto, fd, packet, length, MSG_NOSIGNAL, NULL, 0);
	while (result == -EINTR);
	if (result == -EAGAIN)
		give_up();
	/* An agent that refuses us may have closed already, with its answer in our queue. */
	if (result < 0 && result != -EPIPE && result != -ECONNRESET)
		fail("", "the request cannot be sent to the agent", result);

	for (;;) {
		wait_until_readable(fd, deadline);
		result = CALL(SYS_recvfrom, fd, packet, MAX_PACKET, MSG_DONTWAIT, NULL, NULL);
		if (result == 0)
			return;
		if (result > 0) {
			if (result > 1 && packet[result - 1] != '\n')
				packet[result++] = '\n';
			say(packet + 1, (size_t)result - 1);
			leave((unsigned char)packet[0]);
		}
		/* A reset is told once, even where an answer was queued before it. */
		if (result != -EINTR && result != -EAGAIN && result != -ECONNRESET)
			fail("", "the agent's answer cannot be received", result);
	}
}

/* The one-shot path. */

/* Become a Python that reports the sentence. Where there is none, stderr has to do. */
static void leave_word(const char *sentence)
{
	const char *package = caller ? site() : NULL;

	if (package)
		execute_python(REPORT, package, sentence);
}

__attribute__((noreturn)) static void become_oneshot(void)
{
	const char *package = site();

	if (package)
		execute_python(MAIN, package, NULL);
	caller = NULL; /* nor is there anybody to leave word with the store */
	if (!package)
		fail("no agent answers, and its Python package is not in ", SITE, 0);
	fail("no agent answers, and there is no Python to do its work: neither ",
	     PYTHON " nor /usr/bin/python3 nor a python3 in PATH can be run", 0);
}

__attribute__((noreturn)) static void run(int argc, char *const *argv, char *const *environment)
{
	int64_t deadline = now() + WAIT_SECONDS * 1000;
	int fd;

	if (argc < 1)
		fail("", "called without even a name", 0);
	script = argv[0];
	caller = argv;
	words = argc;
	if (argc > MAX_ARGUMENTS)
		fail("", "called with more than " TEXT(MAX_ARGUMENTS) " words", 0);
	/* Packed before we knock, so that the agent finds the request when it opens. */
	pack_request(argc, argv, environment);
	fd = connect_to_agent(environment);
	if (fd >= 0)
		ask(fd, deadline);
	become_oneshot();
}

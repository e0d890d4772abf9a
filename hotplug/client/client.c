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
 * It makes its own system calls, because starting the C library takes ten times as long as all
 * the rest: glibc 2.36 asks the processor for its features with 68 CPUID instructions, and each
 * of them traps into the hypervisor, for 7 microseconds where that was measured. An empty program
 * took 0.65 ms dynamically linked, 0.54 ms statically, 0.06 ms without it (1,000 posix_spawn).
 * The C library's headers are used, its code is not.
 *
 * The build defines PYTHON, the interpreter, and SITE, the directory that holds the package.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#ifndef WAIT_SECONDS
#define WAIT_SECONDS 38 /* the agent fails an event after 35 s, libxl kills us after 40 */
#endif

#define MAX_PACKET 65536 /* as in wire.py */
#define MAX_ARGUMENTS 64 /* libxl passes one or two */
#define MAX_PATH 4096
#define SCRIPTS "/hotplug/client/scripts" /* where we lie, below the site directory */
#define ONESHOT "/hotplug/client/oneshot.py"
#define DEFAULT_RUNDIR "/run/xen-hotplug"
#define AS_TEXT(number) #number
#define TEXT(number) AS_TEXT(number)

/* As in wire.py, each with its NUL; an empty one ends the list. */
static const char VARIABLES[] =
	"XENBUS_PATH\0XENBUS_TYPE\0XENBUS_BASE_PATH\0ACTION\0UDEV_CALL\0script\0vif\0INTERFACE\0"
	"netdev\0bridge\0ip\0dhcp\0type_if\0vifname\0mtu\0";

/* What `xen-hotplug install` knows a copy of us by, also one of another version (dropins.py). */
__attribute__((used)) static const char MARK[] = "xen-hotplug drop-in";

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
static char *const *caller; /* argv, and behind its NULL the environment, as the kernel has it */
static int words; /* argc */

_Static_assert(sizeof(long) == 8, "the system calls here are those of 64-bit Linux");

/* System calls: the result, or minus the error number. */

#if defined(__x86_64__)
__asm__(".globl _start\n"
	"_start:\n"
	"	xor %ebp, %ebp\n"
	"	mov %rsp, %rdi\n"
	"	and $-16, %rsp\n"
	"	call start\n");

static long call(long number, long a, long b, long c, long d, long e, long f)
{
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;
	long result;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return result;
}
#elif defined(__aarch64__)
__asm__(".globl _start\n"
	"_start:\n"
	"	mov x29, #0\n"
	"	mov x30, #0\n"
	"	mov x0, sp\n"
	"	and sp, x0, #-16\n"
	"	b start\n");

static long call(long number, long a, long b, long c, long d, long e, long f)
{
	register long x8 __asm__("x8") = number;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	register long x4 __asm__("x4") = e;
	register long x5 __asm__("x5") = f;

	__asm__ volatile("svc #0"
			 : "+r"(x0)
			 : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
			 : "memory");
	return x0;
}
#else
#error "a processor that no dom0 runs on yet: its _start and its system call belong here"
#endif

#define CALL(number, a, b, c, d, e, f) \
	call(number, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))

__attribute__((noreturn)) static void leave(int status)
{
	for (;;)
		CALL(SYS_exit_group, status, 0, 0, 0, 0, 0);
}

/* Milliseconds on a clock that nobody sets. */
static int64_t now(void)
{
	struct timespec time = {0, 0};

	CALL(SYS_clock_gettime, CLOCK_MONOTONIC, &time, 0, 0, 0, 0);
	return time.tv_sec * 1000 + time.tv_nsec / 1000000;
}

/* Strings. */

static size_t length_of(const char *text)
{
	size_t size = 0;

	while (text[size])
		size++;
	return size;
}

/* What follows the prefix in text; NULL if it does not start so. */
static const char *after(const char *text, const char *prefix)
{
	while (*prefix)
		if (*text++ != *prefix++)
			return NULL;
	return text;
}

static const char *variable(char *const *environment, const char *name)
{
	for (; *environment; environment++) {
		const char *rest = after(*environment, name);
		if (rest && *rest == '=')
			return rest + 1;
	}
	return NULL;
}

/* The first `size` bytes of one string, then another; false if they do not fit. */
static bool join(char *buffer, size_t room, const char *first, size_t size, const char *second)
{
	size_t added = length_of(second) + 1;

	if (size > room || added > room - size)
		return false;
	for (size_t i = 0; i < size; i++)
		buffer[i] = first[i];
	for (size_t i = 0; i < added; i++)
		buffer[size + i] = second[i];
	return true;
}

/* Words for people. */

static void say(const char *text, size_t size)
{
	uint64_t pipe_signal = UINT64_C(1) << (SIGPIPE - 1);

	/* Where nobody reads stderr, our status still counts; we must not die of a signal. */
	CALL(SYS_rt_sigprocmask, SIG_BLOCK, &pipe_signal, NULL, sizeof pipe_signal, 0, 0);
	while (size > 0) {
		long written = CALL(SYS_write, STDERR_FILENO, text, size, 0, 0, 0);
		if (written > 0) {
			text += written;
			size -= (size_t)written;
		} else if (written != -EINTR) {
			return;
		}
	}
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
	static struct sockaddr_un address = {.sun_family = AF_UNIX};
	struct timeval limit = {.tv_sec = WAIT_SECONDS};
	const char *rundir = variable(environment, "XEN_HOTPLUG_RUNDIR");
	long fd, result;

	if (!rundir || !*rundir)
		rundir = DEFAULT_RUNDIR;
	if (!join(address.sun_path, sizeof address.sun_path, rundir, length_of(rundir), "/control"))
		fail(rundir, "/control: the path is too long for a socket", 0);

	fd = CALL(SYS_socket, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, 0, 0, 0);
	if (fd >= 0 && fd <= STDERR_FILENO) {
		/* Our caller closed a standard descriptor; what we say must not go to the agent. */
		long low = fd;
		fd = CALL(SYS_fcntl, low, F_DUPFD_CLOEXEC, STDERR_FILENO + 1, 0, 0, 0);
		CALL(SYS_close, low, 0, 0, 0, 0, 0);
	}
	if (fd < 0)
		fail("", "a socket cannot be made", fd);

	/* connect() waits while the agent's backlog is full. */
	CALL(SYS_setsockopt, fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit, 0);
	do
		result = CALL(SYS_connect, fd, &address, sizeof address, 0, 0, 0);
	while (result == -EINTR);

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

/* The directory that holds the package: the one we lie in, or where we were copied from; or NULL. */
static const char *site(void)
{
	static char path[MAX_PATH], module[MAX_PATH + sizeof ONESHOT];
	const long tail = sizeof SCRIPTS - 1;
	long size = CALL(SYS_readlinkat, AT_FDCWD, "/proc/self/exe", path, sizeof path - 1, 0, 0);

	while (size > 0 && path[--size] != '/')
		; /* our own name */
	if (size > tail && after(path + size - tail, SCRIPTS)) {
		path[size - tail] = '\0';
		if (join(module, sizeof module, path, length_of(path), ONESHOT) &&
		    CALL(SYS_faccessat, AT_FDCWD, module, R_OK, 0, 0, 0) == 0)
			return path;
	}
	return CALL(SYS_faccessat, AT_FDCWD, SITE ONESHOT, R_OK, 0, 0, 0) < 0 ? NULL : SITE;
}

/* Run a program found in PATH; returns only if it cannot be run. */
static void execute_from_path(const char *name, char *const *argv, char *const *environment)
{
	static char file[MAX_PATH], slash_name[64];
	const char *start = variable(environment, "PATH");

	join(slash_name, sizeof slash_name, "/", 1, name);
	while (start) {
		const char *end = start;
		while (*end && *end != ':')
			end++;
		if (*start == '/' &&
		    join(file, sizeof file, start, (size_t)(end - start), slash_name))
			CALL(SYS_execve, file, argv, environment, 0, 0, 0);
		start = *end ? end + 1 : NULL;
	}
}

/* Where our caller closed a standard descriptor, Python must not get its number for a file. */
static void fill_standard_descriptors(void)
{
	long fd;

	do
		fd = CALL(SYS_openat, AT_FDCWD, "/dev/null", O_RDWR, 0, 0, 0);
	while (fd >= 0 && fd <= STDERR_FILENO);
	if (fd >= 0)
		CALL(SYS_close, fd, 0, 0, 0, 0, 0);
}

/* Run Python with the package, a word of ours if there is one, and our own arguments; returns only
 * if there is no Python. */
static void execute_python(const char *program, const char *package, const char *word)
{
	const char *const options[] = {"python3", "-I", "-S", "-X", "utf8", "-c", program, package};
	const size_t count = sizeof options / sizeof *options;
	static char *arguments[sizeof options / sizeof *options + 1 + MAX_ARGUMENTS + 1];
	char *const *environment = caller + words + 1;
	size_t size = 0;

	fill_standard_descriptors();
	while (size < count) {
		arguments[size] = (char *)(uintptr_t)options[size];
		size++;
	}
	if (word)
		arguments[size++] = (char *)(uintptr_t)word;
	for (int i = 0; i < words && i < MAX_ARGUMENTS; i++)
		arguments[size++] = caller[i];

	arguments[0] = (char *)(uintptr_t)PYTHON; /* a virtual environment is found by this name */
	CALL(SYS_execve, PYTHON, arguments, environment, 0, 0, 0);
	arguments[0] = (char *)(uintptr_t) "/usr/bin/python3";
	CALL(SYS_execve, "/usr/bin/python3", arguments, environment, 0, 0, 0);
	arguments[0] = (char *)(uintptr_t) "python3";
	execute_from_path("python3", arguments, environment);
}

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

__attribute__((noreturn, used)) void start(long *stack);

/* The stack as the kernel leaves it: argc, argv, NULL, environment, NULL. */
void start(long *stack)
{
	char *const *argv = (char *const *)(stack + 1);

	run((int)stack[0], argv, argv + stack[0] + 1);
}

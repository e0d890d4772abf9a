/*
 * What the programs that a toolstack runs have in common: a process without the C library.
 *
 * They make their own system calls, because starting the C library takes ten times as long as all
 * the rest: glibc 2.36 asks the processor for its features with 68 CPUID instructions, and each
 * of them traps into the hypervisor, for 7 microseconds where that was measured. An empty program
 * took 0.65 ms dynamically linked, 0.54 ms statically, 0.06 ms without it (1,000 posix_spawn).
 * The C library's headers are used, its code is not.
 *
 * The program defines run(); FOLDER, where it lies below the site directory, and MODULE, what of
 * the package it needs there. The build defines PYTHON, the interpreter, and SITE, the directory
 * that holds the package.
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

#define MAX_ARGUMENTS 64 /* libxl passes ten at most */
#define MAX_PATH 4096
#define DEFAULT_RUNDIR "/run/xen-hotplug"

/* What `xen-hotplug install` knows a copy of us by, also one of another version (dropins.py). */
__attribute__((used)) static const char MARK[] = "xen-hotplug drop-in";

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

/* A socket to whoever listens. */

/* A new one, or minus the error number. */
static long new_socket(void)
{
	long fd = CALL(SYS_socket, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, 0, 0, 0);

	if (fd >= 0 && fd <= STDERR_FILENO) {
		/* Our caller closed a standard descriptor; what we say must not go to the agent. */
		long low = fd;
		fd = CALL(SYS_fcntl, low, F_DUPFD_CLOEXEC, STDERR_FILENO + 1, 0, 0, 0);
		CALL(SYS_close, low, 0, 0, 0, 0, 0);
	}
	return fd;
}

static const char *runtime_directory(char *const *environment)
{
	const char *rundir = variable(environment, "XEN_HOTPLUG_RUNDIR");

	return rundir && *rundir ? rundir : DEFAULT_RUNDIR;
}

/* The address of a socket ("/name") in it; false if that is too long. */
static bool set_address(struct sockaddr_un *address, const char *rundir, const char *name)
{
	address->sun_family = AF_UNIX;
	return join(address->sun_path, sizeof address->sun_path, rundir, length_of(rundir), name);
}

static long connect_to(long fd, const struct sockaddr_un *address)
{
	long result;

	do
		result = CALL(SYS_connect, fd, address, sizeof *address, 0, 0, 0);
	while (result == -EINTR);
	return result;
}

/* The package, and a Python for it. */

/* The directory that holds the package: the one we lie in, or where we were copied from; or NULL. */
static const char *site(void)
{
	static char path[MAX_PATH], module[MAX_PATH + sizeof MODULE];
	const long tail = sizeof FOLDER - 1;
	long size = CALL(SYS_readlinkat, AT_FDCWD, "/proc/self/exe", path, sizeof path - 1, 0, 0);

	while (size > 0 && path[--size] != '/')
		; /* our own name */
	if (size > tail && after(path + size - tail, FOLDER)) {
		path[size - tail] = '\0';
		if (join(module, sizeof module, path, length_of(path), MODULE) &&
		    CALL(SYS_faccessat, AT_FDCWD, module, R_OK, 0, 0, 0) == 0)
			return path;
	}
	return CALL(SYS_faccessat, AT_FDCWD, SITE MODULE, R_OK, 0, 0, 0) < 0 ? NULL : SITE;
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

/* The stack as the kernel leaves it: argc, argv, NULL, environment, NULL. */

__attribute__((noreturn)) static void run(int argc, char *const *argv, char *const *environment);

__attribute__((noreturn, used)) void start(long *stack);

void start(long *stack)
{
	char *const *argv = (char *const *)(stack + 1);

	run((int)stack[0], argv, argv + stack[0] + 1);
}

/*
 * The guest agent: says when userland begins and when a service answers, and runs commands on request.
 *
 * One static program for every kind of instance, so that what is measured inside is the same everywhere.
 * Not a login server and not an init system: it trusts its host completely and keeps nothing on disk.
 *
 *   agent --fd N [--listen ADDR:PORT]                        container, native: the channel is an inherited socket
 *   agent --connect PATH [--listen ADDR:PORT]                a container of another runtime: a socket mounted into it
 *   agent --port NAME [--no-userland] [--listen ADDR:PORT]   a VM's service: the channel is a virtio-serial port
 *   agent --init --port NAME [--listen ADDR:PORT]            the same, being PID 1
 *   agent --first NAME -- /sbin/init ARG...                  tell NAME that userland begins, then become init
 *   agent --files WORD...                                    a command that moves files (files.h)
 *
 * Frames both ways: u8 type, u32 id, u32 length (little endian), payload.
 *   to the host   U userland   R service ready (u16 port)   ! service failed (text)   P pong
 *                 A a virtual machine's agent hears   C configured (text: why not)
 *                 O, E output of command id   X its exit code (i32; 128 + signal; 126, 127 not executable, not found)
 *                 I command id's input has been taken
 *   to the agent  X execute (u32 argc, argc words, then K=V words, each ending in NUL; no K=V: the agent's own)
 *                 T the same with more before it: u8 1 on a terminal + 2 with input, u16 rows, u16 columns,
 *                   u32 bytes of output that may be under way (0: any)
 *                 I input of command id (none: its end), the next after the answer   W so many more bytes of output
 *                 Z its terminal's size (u16 rows, u16 columns)
 *                 K kill command id's process group, or (u32) send that signal to its process
 *                 P ping   S stop   C configure (configure.h)
 *
 * A command ends with its first process: the rest of its process group is killed then, and what the pipes hold
 * at that moment is its whole output. A process that made a session of its own lives on, as under `docker exec`.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <net/if.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/reboot.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "configure.h"
#include "files.h"

enum {
	HEADER = 9,
	MORE = 9,                 /* what T has before X's */
	PAYLOAD_MAX = 1 << 20,    /* of a frame from the host */
	CHUNK = 64 << 10,         /* of a command's output */
	TERMINAL_MAX = 128 << 10, /* more than one can hold */
	OUT_SOFT = 256 << 10,     /* with more than this unsent, commands are not read */
	OUT_MAX = 2 << 20,
	SPARE = 4 << 10,          /* room for the small answers to one frame */
	COMMANDS = 256,
	CLIENTS = 16,
	FIRST_WAIT_MS = 2000,
};

enum { CHANNEL, SIGNALS, LISTENER, SELF, CLIENT, COMMAND = CLIENT + CLIENTS, POLLED = COMMAND + 3 * COMMANDS };

static enum { FD, PORT, INIT } mode;
static const char *port_name;
static bool tell_userland = true;
static struct sockaddr_in address = {.sin_family = AF_INET};

static int channel = -1, signals = -1, listener = -1, self = -1, null = -1;
static bool hung;     /* the port has no host at its other end */
static bool deferred; /* a whole frame waits for room to answer it */

static uint8_t in[HEADER + PAYLOAD_MAX], out[OUT_MAX];
static size_t in_end, out_begin, out_end;

static struct command {
	pid_t pid; /* 0: the slot is free */
	uint32_t id;
	int fd[3];       /* its output, its error output, its input: our ends; of a terminal 0 and 2 */
	int64_t left[2]; /* bytes still to be read, once the process has ended; before that -1, until end of file */
	int64_t window;  /* bytes that may still be sent to the host */
	uint8_t *input;  /* what it has not taken yet, from `taken` to `typed` */
	size_t taken, typed;
	int32_t code;
	bool ended, mute, terminal;
} commands[COMMANDS];

static struct client {
	int fd;
	unsigned matched; /* bytes of the blank line that ends a request */
	bool answered;
} clients[CLIENTS];
static unsigned next_client;

static const char ASK[] = "GET / HTTP/1.0\r\n\r\n";
static const char ANSWER[] = "HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\ntare\n";
static char heard[sizeof ANSWER];
static size_t heard_end;
static bool asked, ready;
static char service_error[160];

/* ---- ends ------------------------------------------------------------------------------------------------ */

__attribute__((format(printf, 1, 2))) static void say(const char *format, ...)
{
	va_list list;
	va_start(list, format);
	fputs("tare-agent: ", stderr);
	vfprintf(stderr, format, list);
	fputc('\n', stderr);
	va_end(list);
}

/* Kill and reap the children of a process that is not PID 1; their orphans arrive here (subreaper) until none is left. */
static void kill_children(void)
{
	char list[4096];
	for (;;) {
		int fd = open("/proc/thread-self/children", O_RDONLY | O_CLOEXEC);
		ssize_t size = fd < 0 ? -1 : read(fd, list, sizeof list - 1);
		if (fd >= 0)
			close(fd);
		if (size <= 0)
			return;
		list[size] = 0;
		for (char *word = strtok(list, " "); word; word = strtok(NULL, " ")) {
			pid_t pid = atoi(word); /* a pid cut off at the buffer's end is not our child: nothing is waited for */
			if (pid > 1 && waitpid(pid, NULL, WNOHANG) == 0) {
				kill(pid, SIGKILL);
				waitpid(pid, NULL, 0);
			}
		}
	}
}

static _Noreturn void leave(int code)
{
	for (int i = 0; i < COMMANDS; i++)
		if (commands[i].pid && !commands[i].ended)
			kill(-commands[i].pid, SIGKILL);
	if (getpid() != 1) {
		kill_children();
	} else {
		kill(-1, SIGKILL);
		while (wait(NULL) > 0 || errno == EINTR)
			;
	}
	if (mode == INIT) {
		sync();
		mount(NULL, "/", NULL, MS_REMOUNT | MS_RDONLY, NULL);
		reboot(RB_POWER_OFF);
	}
	_exit(code);
}

#define fatal(...) (say(__VA_ARGS__), leave(1))

/* ---- frames to the host ---------------------------------------------------------------------------------- */

static void store32(uint8_t *at, uint32_t value)
{
	for (int i = 0; i < 4; i++)
		at[i] = (uint8_t)(value >> 8 * i);
}

static uint16_t load16(const uint8_t *at)
{
	return (uint16_t)(at[0] | at[1] << 8);
}

static uint32_t load32(const uint8_t *at)
{
	return at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

static size_t unsent(void)
{
	return out_end - out_begin;
}

/* Where the next frame goes, with room for `length` bytes of payload behind its header. */
static uint8_t *room(size_t length)
{
	if (out_begin && out_end + HEADER + length > 2 * OUT_SOFT) { /* pages never touched cost no memory */
		memmove(out, out + out_begin, unsent());
		out_end = unsent();
		out_begin = 0;
	}
	if (out_end + HEADER + length > OUT_MAX)
		fatal("too much output waits for the host");
	return out + out_end;
}

static void seal(char type, uint32_t id, size_t length)
{
	uint8_t *at = out + out_end;
	at[0] = (uint8_t)type;
	store32(at + 1, id);
	store32(at + 5, (uint32_t)length);
	out_end += HEADER + length;
}

static void put(char type, uint32_t id, const void *payload, size_t length)
{
	uint8_t *at = room(length);
	if (length)
		memcpy(at + HEADER, payload, length);
	seal(type, id, length);
}

static void put_code(uint32_t id, int32_t code)
{
	uint8_t payload[4];
	store32(payload, (uint32_t)code);
	put('X', id, payload, sizeof payload);
}

static void refuse(uint32_t id, int32_t code, const char *what, int error)
{
	char text[512];
	int length = snprintf(text, sizeof text, "tare-agent: %.400s: %s\n", what, strerror(error));
	put('E', id, text, (size_t)length);
	put_code(id, code);
}

static void announce_service(void)
{
	uint8_t port[2] = {ntohs(address.sin_port) & 255, ntohs(address.sin_port) >> 8};
	if (ready)
		put('R', 0, port, sizeof port);
	else if (service_error[0])
		put('!', 0, service_error, strlen(service_error));
}

static void close_end(struct command *c, int which)
{
	if (c->fd[which] >= 0)
		close(c->fd[which]);
	c->fd[which] = -1;
	if (which == 2) {
		free(c->input);
		c->input = NULL;
	}
}

/* The host went away from a virtio port: what it asked for dies, and the next host is told everything anew. */
static void hang_up(void)
{
	hung = true;
	in_end = out_begin = out_end = 0;
	for (struct command *c = commands; c < commands + COMMANDS; c++) {
		if (!c->pid || c->mute)
			continue;
		if (!c->ended)
			kill(-c->pid, SIGKILL);
		c->mute = true;
		for (int i = 0; i < 3; i++)
			close_end(c, i);
		if (c->ended)
			c->pid = 0;
	}
	if (tell_userland)
		put('U', 0, NULL, 0);
	put('A', 0, NULL, 0);
	announce_service();
}

static void lost(void)
{
	if (mode == FD)
		leave(0);
	hang_up();
}

static void flush(void)
{
	while (unsent() && !hung) {
		ssize_t size = write(channel, out + out_begin, unsent());
		if (size < 0 && errno == EINTR)
			continue;
		if (size < 0 && errno == EAGAIN)
			return;
		if (size < 0) {
			lost();
			return;
		}
		out_begin += (size_t)size;
	}
	if (!unsent())
		out_begin = out_end = 0;
}

/* ---- commands -------------------------------------------------------------------------------------------- */

/* vfork: the parent stands still until the exec, so the group exists and a failure is known when this returns. */
__attribute__((noinline)) static pid_t spawn(char **argv, const int fd[3], bool terminal, int *error)
{
	static volatile int failure;
	sigset_t none;
	sigemptyset(&none);
	failure = 0;
	pid_t pid = vfork();
	if (pid == 0) {
		setsid();
		if (terminal)
			ioctl(fd[2], TIOCSCTTY, 0);
		if (dup2(fd[2], 0) == 0 && dup2(fd[0], 1) == 1 && dup2(fd[1], 2) == 2) {
			close_range(3, ~0U, 0);
			signal(SIGPIPE, SIG_DFL);
			sigprocmask(SIG_SETMASK, &none, NULL);
			execvp(argv[0], argv);
		}
		failure = errno;
		_exit(127);
	}
	*error = pid < 0 ? errno : failure;
	return *error ? -1 : pid;
}

static struct command *command(uint32_t id)
{
	for (struct command *c = commands; c < commands + COMMANDS; c++)
		if (c->pid && !c->mute && c->id == id)
			return c;
	return NULL;
}

static void set_size(int terminal, const uint8_t *size)
{
	struct winsize window = {.ws_row = load16(size), .ws_col = load16(size + 2)};
	ioctl(terminal, TIOCSWINSZ, &window);
}

/* Make a command's streams: our ends and its own, in the order of `fd`. False with errno, and what was made in them. */
static bool make_ends(int ours[3], int theirs[3], uint8_t flags, const uint8_t *size)
{
	int unlock = 0;
	if (flags & 1) {
		ours[0] = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC);
		if (ours[0] < 0 || ioctl(ours[0], TIOCSPTLCK, &unlock) < 0)
			return false;
		set_size(ours[0], size);
		theirs[0] = ioctl(ours[0], TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
		theirs[1] = fcntl(theirs[0], F_DUPFD_CLOEXEC, 0);
		theirs[2] = fcntl(theirs[0], F_DUPFD_CLOEXEC, 0);
		ours[2] = fcntl(ours[0], F_DUPFD_CLOEXEC, 0);
		return theirs[0] >= 0 && theirs[1] >= 0 && theirs[2] >= 0 && ours[2] >= 0;
	}
	for (int i = 0, ends[2]; i < 3; i++) {
		if (i == 2 && !(flags & 2)) {
			theirs[2] = fcntl(null, F_DUPFD_CLOEXEC, 0);
			return theirs[2] >= 0;
		}
		if (pipe2(ends, O_CLOEXEC) < 0)
			return false;
		ours[i] = ends[i == 2];
		theirs[i] = ends[i != 2];
	}
	return true;
}

static void start(uint32_t id, char **argv, char **env, uint8_t flags, const uint8_t *size, uint32_t window)
{
	struct command *c = commands;
	while (c < commands + COMMANDS && c->pid)
		c++;
	if (c == commands + COMMANDS) {
		refuse(id, 126, argv[0], EAGAIN);
		return;
	}
	int ours[3] = {-1, -1, -1}, theirs[3] = {-1, -1, -1}, error = 0;
	pid_t pid = -1;
	if (!make_ends(ours, theirs, flags, size)) {
		error = errno;
	} else {
		char **own = environ;
		environ = env[0] ? env : own; /* execvp looks for PATH here */
		pid = spawn(argv, theirs, flags & 1, &error);
		environ = own;
	}
	for (int i = 0; i < 3; i++) {
		if (theirs[i] >= 0)
			close(theirs[i]);
		if (ours[i] >= 0 && pid < 0)
			close(ours[i]);
		else if (ours[i] >= 0)
			fcntl(ours[i], F_SETFL, O_NONBLOCK);
	}
	if (pid < 0) {
		refuse(id, error == ENOENT ? 127 : 126, argv[0], error);
		return;
	}
	*c = (struct command){.pid = pid, .id = id, .left = {-1, -1}, .terminal = flags & 1};
	c->window = window ? window : INT64_MAX / 2;
	memcpy(c->fd, ours, sizeof ours);
}

static void finish(struct command *c)
{
	if (!c->ended || c->fd[0] >= 0 || c->fd[1] >= 0)
		return;
	if (!c->mute)
		put_code(c->id, c->code);
	c->pid = 0;
}

/* What has been written to a terminal's other end counts, too: poll sees to that. */
static bool readable(int fd)
{
	struct pollfd set = {.fd = fd, .events = POLLIN};
	return poll(&set, 1, 0) > 0 && set.revents & POLLIN;
}

/* Move one chunk of a command's output (0) or error output (1) into a frame. */
static void pass(struct command *c, int which)
{
	int64_t left = c->left[which];
	size_t want = left < 0 || left > CHUNK ? CHUNK : (size_t)left;
	want = (int64_t)want > c->window ? (size_t)c->window : want;
	uint8_t *at = room(want);
	ssize_t size = read(c->fd[which], at + HEADER, want);
	if (size < 0 && (errno == EINTR || (errno == EAGAIN && !c->ended)))
		return;
	if (size > 0) {
		seal("OE"[which], c->id, (size_t)size);
		c->window -= size;
		if (left < 0 || ((c->left[which] -= size) > 0 && (!c->terminal || readable(c->fd[which]))))
			return;
	}
	close_end(c, which);
	finish(c);
}

/* Give a command what it takes of its input now, and say so once that is all. */
static void feed(struct command *c)
{
	ssize_t size = write(c->fd[2], c->input + c->taken, c->typed - c->taken);
	if (size < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	c->taken = size < 0 ? c->typed : c->taken + (size_t)size; /* who has closed its input wants none */
	if (c->taken < c->typed)
		return;
	free(c->input);
	c->input = NULL;
	put('I', c->id, NULL, 0);
}

static void type(struct command *c, const char *payload, size_t length)
{
	if (c->input)
		fatal("malformed frame: input %u", c->id);
	if (!length && !c->terminal)
		close_end(c, 2);
	if (c->fd[2] < 0 || !length || !(c->input = malloc(length))) {
		put('I', c->id, NULL, 0);
		return;
	}
	memcpy(c->input, payload, length);
	c->taken = 0;
	c->typed = length;
	feed(c);
}

static void ended(struct command *c, int32_t code)
{
	kill(-c->pid, SIGKILL);
	c->ended = true;
	c->code = code;
	close_end(c, 2);
	for (int i = 0; i < 2; i++) {
		int held = c->terminal && c->fd[i] >= 0 && readable(c->fd[i]) ? TERMINAL_MAX : 0;
		if (c->fd[i] >= 0 && ((!c->terminal && ioctl(c->fd[i], FIONREAD, &held) < 0) || held == 0))
			close_end(c, i);
		c->left[i] = held;
	}
	finish(c);
}

/* Reap everything that died: commands, and as PID 1 or subreaper also orphans. A command stays a zombie until its
 * group is dead, so that its number cannot belong to someone else meanwhile. */
static void reap(void)
{
	for (;;) {
		siginfo_t info = {0};
		if (waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) < 0 || info.si_pid == 0)
			return;
		for (struct command *c = commands; c < commands + COMMANDS; c++)
			if (c->pid == info.si_pid && !c->ended) {
				ended(c, info.si_code == CLD_EXITED ? info.si_status : 128 + info.si_status);
				break;
			}
		waitpid(info.si_pid, NULL, 0);
	}
}

/* ---- frames from the host -------------------------------------------------------------------------------- */

static void execute(uint32_t id, char *payload, size_t length, uint8_t flags, const uint8_t *size, uint32_t window)
{
	uint32_t argc = length >= 4 ? load32((uint8_t *)payload) : 0, words = 0;
	for (size_t i = 4; i < length; i++)
		words += payload[i] == 0;
	if (argc == 0 || argc > words || payload[length - 1] != 0 || command(id))
		fatal("malformed frame: execute %u", id);
	char **list = calloc(words + 2, sizeof *list), *word = payload + 4;
	if (!list) {
		refuse(id, 126, "execute", ENOMEM);
		return;
	}
	for (uint32_t i = 0; i < words; i++, word += strlen(word) + 1)
		list[i < argc ? i : i + 1] = word; /* argv, NULL, env, NULL */
	start(id, list, list + argc + 1, flags, size, window);
	free(list);
}

/* A container's agent, and the baseline's, would configure its host. */
static void tell_configured(uint32_t id, char *payload, size_t length)
{
	const char *why = mode == FD ? "only a virtual machine is configured from inside" : configure(payload, length);
	put('C', id, why, why ? strlen(why) : 0);
}

static void obey(char kind, uint32_t id, char *payload, size_t length)
{
	const uint8_t *more = (uint8_t *)payload;
	struct command *c = strchr("KIWZ", kind) ? command(id) : NULL;
	switch (kind) {
	case 'X':
		execute(id, payload, length, 0, NULL, 0);
		break;
	case 'T':
		if (length < MORE)
			fatal("malformed frame: execute %u", id);
		execute(id, payload + MORE, length - MORE, more[0], more + 1, load32(more + 5));
		break;
	case 'K':
		if (c && !c->ended)
			kill(length == 4 ? c->pid : -c->pid, length == 4 ? (int)load32(more) : SIGKILL);
		break;
	case 'I':
		if (c)
			type(c, payload, length);
		break;
	case 'W':
		if (c && length == 4)
			c->window += load32(more);
		break;
	case 'Z':
		if (c && c->terminal && length == 4)
			set_size(c->fd[2], more);
		break;
	case 'P':
		put('P', id, payload, length);
		break;
	case 'C':
		tell_configured(id, payload, length);
		break;
	case 'S':
		if (mode != PORT)
			leave(0);
		kill(1, SIGRTMIN + 4); /* systemd(1): power off, as `systemctl poweroff` */
		break;
	default:
		fatal("malformed frame: type %d", kind);
	}
}

/* Carry out every whole frame, as long as there is room for its answer. */
static void parse(void)
{
	size_t at = 0;
	for (deferred = false; in_end - at >= HEADER;) {
		size_t length = load32(in + at + 5);
		if (length > PAYLOAD_MAX)
			fatal("malformed frame: %zu bytes", length);
		if (in_end - at < HEADER + length)
			break;
		deferred = unsent() + HEADER + length + SPARE > OUT_MAX - OUT_SOFT;
		if (deferred)
			break;
		obey((char)in[at], load32(in + at + 1), (char *)in + at + HEADER, length);
		at += HEADER + length;
	}
	memmove(in, in + at, in_end -= at);
}

static void receive(void)
{
	ssize_t size = read(channel, in + in_end, sizeof in - in_end);
	if (size > 0)
		in_end += (size_t)size;
	else if (size == 0 || (errno != EAGAIN && errno != EINTR))
		lost();
}

/* ---- the service ----------------------------------------------------------------------------------------- */

static void service_failed(const char *call)
{
	snprintf(service_error, sizeof service_error, "%s: %s", call, strerror(errno));
	if (self >= 0)
		close(self);
	self = -1;
	announce_service();
}

static void loopback_up(void)
{
	struct ifreq request = {.ifr_name = "lo"};
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return;
	if (ioctl(fd, SIOCGIFFLAGS, &request) == 0 && !(request.ifr_flags & IFF_UP)) {
		request.ifr_flags |= IFF_UP;
		ioctl(fd, SIOCSIFFLAGS, &request); /* not allowed: the service's own request will tell */
	}
	close(fd);
}

static void serve(void)
{
	const int type = SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, on = 1;
	socklen_t size = sizeof address;
	loopback_up();
	if ((listener = socket(AF_INET, type, 0)) < 0)
		return service_failed("socket");
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
	if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0)
		return service_failed("bind");
	if (listen(listener, 64) < 0 || getsockname(listener, (struct sockaddr *)&address, &size) < 0)
		return service_failed("listen");
	if ((self = socket(AF_INET, type, 0)) < 0)
		return service_failed("socket");
	if (connect(self, (struct sockaddr *)&address, sizeof address) < 0 && errno != EINPROGRESS)
		return service_failed("connect");
}

/* The request to ourselves: sent once connected, then read until the end. */
static void ask(void)
{
	if (!asked) {
		int error = 0;
		socklen_t size = sizeof error;
		getsockopt(self, SOL_SOCKET, SO_ERROR, &error, &size);
		if ((errno = error))
			return service_failed("connect");
		if (write(self, ASK, sizeof ASK - 1) != sizeof ASK - 1)
			return service_failed("request");
		asked = true;
		return;
	}
	ssize_t size = read(self, heard + heard_end, sizeof heard - heard_end);
	if (size < 0 && errno == EAGAIN)
		return;
	if (size > 0) {
		heard_end += (size_t)size;
		return;
	}
	errno = size < 0 ? errno : EPROTO;
	if (size < 0 || heard_end != sizeof ANSWER - 1 || memcmp(heard, ANSWER, heard_end) != 0)
		return service_failed("reply");
	close(self);
	self = -1;
	ready = true;
	announce_service();
}

static void welcome(void)
{
	int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	if (fd < 0)
		return;
	struct client *c = &clients[next_client++ % CLIENTS];
	if (c->fd >= 0)
		close(c->fd); /* the oldest makes way */
	*c = (struct client){.fd = fd};
}

/* Answer at the blank line, then read to the end of file: closing with unread bytes would destroy the answer. */
static void answer(struct client *c)
{
	char bytes[4096];
	ssize_t size = read(c->fd, bytes, sizeof bytes);
	if (size < 0 && errno == EAGAIN)
		return;
	for (ssize_t i = 0; i < size && !c->answered; i++) {
		c->matched = bytes[i] == "\r\n\r\n"[c->matched] ? c->matched + 1 : bytes[i] == '\r';
		if (c->matched < 4)
			continue;
		c->answered = true;
		if (write(c->fd, ANSWER, sizeof ANSWER - 1) < 0)
			size = 0;
		shutdown(c->fd, SHUT_WR);
	}
	if (size <= 0) {
		close(c->fd);
		c->fd = -1;
	}
}

/* ---- the virtio port ------------------------------------------------------------------------------------- */

static bool reads_as(const char *path, const char *text)
{
	char value[128] = "";
	FILE *file = fopen(path, "re");
	if (!file)
		return false;
	if (fgets(value, sizeof value, file))
		value[strcspn(value, "\n")] = 0;
	fclose(file);
	return strcmp(value, text) == 0;
}

/* Open the virtio port called `name`; -1 if there is none yet. */
static int open_port(const char *name)
{
	char path[320];
	int fd = -1;
	DIR *ports = opendir("/sys/class/virtio-ports");
	for (struct dirent *entry; ports && fd < 0 && (entry = readdir(ports));) {
		snprintf(path, sizeof path, "/sys/class/virtio-ports/%s/name", entry->d_name);
		if (entry->d_name[0] == '.' || !reads_as(path, name))
			continue;
		snprintf(path, sizeof path, "/dev/%s", entry->d_name);
		fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
		if (fd < 0)
			say("%s: %s", path, strerror(errno));
	}
	if (ports)
		closedir(ports);
	/* SIGIO tells when a host comes to the port's other end; poll would only repeat POLLHUP until then. */
	if (fd >= 0 && (fcntl(fd, F_SETOWN, getpid()) < 0 || fcntl(fd, F_SETFL, O_NONBLOCK | O_ASYNC) < 0))
		say("%s: %s", path, strerror(errno));
	return fd;
}

static int64_t now_ms(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * INT64_C(1000) + now.tv_nsec / 1000000;
}

/* Wait for the port, at most until `deadline_ms` (never, if negative). The driver sets a port's name after it has
 * made the device node, and announces it by a uevent of its own: so the kernel's uevents are listened to, not /dev. */
static int await_port(const char *name, int64_t deadline_ms)
{
	struct sockaddr_nl kernel = {.nl_family = AF_NETLINK, .nl_groups = 1};
	int events = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_KOBJECT_UEVENT), fd;
	if (events < 0 || bind(events, (struct sockaddr *)&kernel, sizeof kernel) < 0)
		say("uevents: %s", strerror(errno));
	while ((fd = open_port(name)) < 0) {
		char text[4096] = "";
		int64_t left = deadline_ms < 0 ? -1 : deadline_ms - now_ms();
		struct pollfd wait = {.fd = events, .events = POLLIN};
		if (events < 0 || (deadline_ms >= 0 && left <= 0))
			break;
		while (!strstr(text, "/virtio-ports/") && poll(&wait, 1, (int)left) > 0)
			text[recv(events, text, sizeof text - 1, 0) < 0 ? 0 : sizeof text - 1] = 0;
	}
	if (events >= 0)
		close(events);
	return fd;
}

/* ---- being first, being init ----------------------------------------------------------------------------- */

/* True if this made the mount. The kernel refuses with EBUSY to put the same file system there twice. */
static bool mount_at(const char *type, const char *path, unsigned long flags, const char *data)
{
	mkdir(path, 0755);
	if (mount(type, path, type, flags, data) == 0)
		return true;
	if (errno != EBUSY)
		say("mount %s: %s", path, strerror(errno));
	return false;
}

/* The first process of a VM: tell the host, leave no trace, become the real init. */
static _Noreturn void be_first(const char *name, char **argv)
{
	int64_t deadline_ms = now_ms() + FIRST_WAIT_MS;
	bool sysfs = mount_at("sysfs", "/sys", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
	sigset_t io, before;
	mount_at("devtmpfs", "/dev", MS_NOSUID, "mode=0755"); /* stays: init wants it, too */
	sigemptyset(&io);
	sigaddset(&io, SIGIO);
	sigprocmask(SIG_BLOCK, &io, &before);
	channel = await_port(name, deadline_ms);
	put('U', 0, NULL, 0);
	while (channel >= 0 && write(channel, out, HEADER) < 0 && errno == EAGAIN) {
		int64_t left = deadline_ms - now_ms();
		struct timespec rest = {.tv_sec = left / 1000, .tv_nsec = left % 1000 * 1000000};
		if (left <= 0 || (sigtimedwait(&io, NULL, &rest) < 0 && errno == EAGAIN))
			break;
	}
	if (channel >= 0)
		close(channel);
	if (sysfs)
		umount2("/sys", MNT_DETACH);
	signal(SIGIO, SIG_IGN); /* discards what is pending */
	signal(SIGIO, SIG_DFL);
	sigprocmask(SIG_SETMASK, &before, NULL);
	execv(argv[0], argv);
	say("%s: %s", argv[0], strerror(errno));
	_exit(127);
}

static void init_early(void)
{
	mount_at("proc", "/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
	mount_at("sysfs", "/sys", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
	mount_at("devtmpfs", "/dev", MS_NOSUID, "mode=0755");
}

static void init_late(void)
{
	mount_at("tmpfs", "/run", MS_NOSUID | MS_NODEV, "mode=0755");
	mount_at("tmpfs", "/tmp", MS_NOSUID | MS_NODEV, "mode=1777");
	mount_at("devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, "gid=5,mode=620,ptmxmode=666");
}

/* ---- the loop -------------------------------------------------------------------------------------------- */

static void hear_signals(void)
{
	struct signalfd_siginfo info;
	while (read(signals, &info, sizeof info) == sizeof info) {
		if (info.ssi_signo == SIGCHLD)
			reap();
		else if (info.ssi_signo == SIGIO)
			hung = false;
		else
			leave(0);
	}
}

static nfds_t watch(struct pollfd *set)
{
	bool reading = unsent() <= OUT_SOFT;
	nfds_t count = COMMAND;
	set[CHANNEL] = (struct pollfd){.fd = hung ? -1 : channel};
	set[CHANNEL].events = (in_end < sizeof in ? POLLIN : 0) | (unsent() ? POLLOUT : 0);
	set[SIGNALS] = (struct pollfd){.fd = signals, .events = POLLIN};
	set[LISTENER] = (struct pollfd){.fd = listener, .events = POLLIN};
	set[SELF] = (struct pollfd){.fd = self, .events = asked ? POLLIN : POLLOUT};
	for (int i = 0; i < CLIENTS; i++)
		set[CLIENT + i] = (struct pollfd){.fd = clients[i].fd, .events = POLLIN};
	for (int i = 0; i < 3 * COMMANDS; i++) {
		struct command *c = &commands[i / 3];
		bool wanted = c->pid && (i % 3 == 2 ? c->input != NULL : reading && c->window > 0);
		set[COMMAND + i] = (struct pollfd){.fd = wanted ? c->fd[i % 3] : -1, .events = i % 3 == 2 ? POLLOUT : POLLIN};
		if (c->pid)
			count = (nfds_t)(COMMAND + i + 1);
	}
	return count;
}

static void turn(void)
{
	static struct pollfd set[POLLED];
	nfds_t count = watch(set);
	if (poll(set, count, deferred && !unsent() ? 0 : -1) < 0) {
		if (errno != EINTR)
			fatal("poll: %s", strerror(errno));
		return;
	}
	if (set[CHANNEL].revents & POLLIN)
		receive();
	else if (set[CHANNEL].revents & (POLLHUP | POLLERR | POLLNVAL))
		lost();
	if (set[SIGNALS].revents)
		hear_signals();
	parse();
	if (set[SELF].revents && self >= 0)
		ask();
	for (int i = 0; i < CLIENTS; i++)
		if (set[CLIENT + i].revents && clients[i].fd == set[CLIENT + i].fd)
			answer(&clients[i]);
	if (set[LISTENER].revents)
		welcome();
	for (nfds_t i = COMMAND; i < count && unsent() <= OUT_SOFT; i++) {
		struct command *c = &commands[(i - COMMAND) / 3];
		int which = (i - COMMAND) % 3;
		if (!set[i].revents || !c->pid || c->fd[which] != set[i].fd)
			continue;
		if (which == 2 && c->input)
			feed(c);
		else if (which < 2 && c->window > 0)
			pass(c, which);
	}
	flush();
}

static void prepare(void)
{
	sigset_t heeded;
	while ((null = open("/dev/null", O_RDWR | O_CLOEXEC)) >= 0 && null <= 2)
		fcntl(null, F_SETFD, 0); /* standard streams that were closed stay open on /dev/null */
	if (null < 0)
		null = memfd_create("null", MFD_CLOEXEC); /* a root without devices: this reads as empty, too */
	for (int i = 1; i < 32; i++)
		signal(i, SIG_DFL); /* a launcher's ignored signals are not the commands' business */
	signal(SIGPIPE, SIG_IGN);
	sigemptyset(&heeded);
	sigaddset(&heeded, SIGCHLD);
	sigaddset(&heeded, SIGTERM);
	sigaddset(&heeded, SIGINT);
	sigaddset(&heeded, SIGIO);
	sigprocmask(SIG_SETMASK, &heeded, NULL);
	signals = signalfd(-1, &heeded, SFD_NONBLOCK | SFD_CLOEXEC);
	if (signals < 0)
		fatal("signalfd: %s", strerror(errno));
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", 0);
	for (int i = 0; i < CLIENTS; i++)
		clients[i].fd = -1;
}

static bool parse_address(char *text)
{
	char *colon = strrchr(text, ':'), *end = "x";
	unsigned long port = colon ? strtoul(colon + 1, &end, 10) : 0;
	if (*end || port > 65535)
		return false;
	*colon = 0;
	address.sin_port = htons((uint16_t)port);
	return inet_pton(AF_INET, text, &address.sin_addr) == 1;
}

static _Noreturn void usage(void)
{
	fputs("usage: agent --fd N | --connect PATH | [--init] --port NAME [--no-userland] | --first NAME -- INIT [ARG...]\n"
	      "       with --fd, --connect and --port: [--listen ADDR:PORT]\n", stderr);
	_exit(2);
}

static void options(char **argv)
{
	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	for (; *argv; argv++) {
		if (strcmp(*argv, "--init") == 0)
			mode = INIT;
		else if (strcmp(*argv, "--no-userland") == 0)
			tell_userland = false;
		else if (strcmp(*argv, "--port") == 0 && argv[1])
			port_name = *++argv;
		else if (!(strcmp(*argv, "--listen") == 0 && argv[1] && parse_address(*++argv)))
			usage();
	}
	if ((channel < 0) != (port_name != NULL) || (mode == INIT && (!port_name || getpid() != 1)))
		usage();
	if (port_name && mode != INIT)
		mode = PORT;
}

/* The host listens at `path`; -1 with errno where it does not. */
static int connect_to(const char *path)
{
	struct sockaddr_un host = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	if (strlen(path) >= sizeof host.sun_path)
		usage();
	strcpy(host.sun_path, path);
	return connect(fd, (struct sockaddr *)&host, sizeof host) ? -1 : fd;
}

int main(int argc, char **argv)
{
	bool connecting = argc >= 3 && strcmp(argv[1], "--connect") == 0;
	if (connecting || (argc >= 3 && strcmp(argv[1], "--fd") == 0)) {
		static const uint8_t userland[HEADER] = {'U'};
		channel = connecting ? connect_to(argv[2]) : atoi(argv[2]);
		if (channel < 0 || write(channel, userland, sizeof userland) != sizeof userland) {
			say("channel %s: %s", argv[2], strerror(errno));
			return 1;
		}
		options(argv + 3);
		channel = channel == 3 || dup2(channel, 3) == 3 ? 3 : channel;
		close_range(4, ~0U, 0); /* whatever else the launcher left open */
		fcntl(channel, F_SETFD, FD_CLOEXEC);
		fcntl(channel, F_SETFL, O_NONBLOCK);
	} else if (argc >= 3 && strcmp(argv[1], "--files") == 0) {
		return files(argv + 2);
	} else if (argc >= 5 && strcmp(argv[1], "--first") == 0 && strcmp(argv[3], "--") == 0) {
		be_first(argv[2], argv + 4);
	} else {
		options(argv + 1);
		if (mode == INIT)
			init_early();
	}
	prepare();
	if (channel < 0) {
		channel = await_port(port_name, -1);
		if (channel < 0)
			fatal("no port %s", port_name);
		if (tell_userland)
			put('U', 0, NULL, 0);
		put('A', 0, NULL, 0);
		flush();
		if (mode == INIT)
			init_late();
	}
	serve();
	flush();
	for (;;)
		turn();
}

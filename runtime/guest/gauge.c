/*
 * The gauge: what the image's own tools do not measure, one figure a run. Not a judge: it prints totals, others divide.
 *
 *   gauge nothing                            end at once: what a start costs
 *   gauge float SECONDS                      multiplications and additions of doubles, in the nearest cache
 *   gauge triad SECONDS MIB                  bytes moved by a[i] = b[i] + s * c[i]; three arrays in MIB together
 *   gauge chase SECONDS MIB                  loads, each from where the last one pointed, one lap through MIB in no order
 *   gauge syscall SECONDS                    calls of getppid
 *   gauge spawn SECONDS                      fork, execute `gauge nothing`, wait
 *   gauge switch SECONDS                     changes between two processes that share one CPU and wake each other
 *   gauge fault SECONDS                      pages of fresh anonymous memory touched, 4 KiB each
 *   gauge connect SECONDS ADDR PORT          TCP connections opened, answered one byte, and closed
 *   gauge pingpong SECONDS ADDR PORT         one byte there and back over one TCP connection
 *   gauge serve SECONDS ADDR PORT            answer both; ends when it listens and says as place, listens for SECONDS
 *   gauge place                              the IPv4 addresses that others can reach, and the default gateway
 *
 * All but the last three print {"work": N, "elapsed_s": T}: what was done, and the time from the first of it to the
 * last by CLOCK_MONOTONIC. Work comes in batches and ends with the first that is over after SECONDS, so 0 is one batch.
 * What must be made ready is made before. Exit 1: a call failed; 2: the words are wrong; 3: nobody there to connect to.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
	SIDE = 32,              /* of the matrices: three of them fit into 24 KiB */
	LINE = 64,              /* bytes of a cache line, on what this is built for */
	PAGE = 4096,
	FAULTS = 1024,          /* pages of a batch */
	CALLS = 1000,           /* of a batch */
	CLIENTS = 64,
	CONNECT_MS = 5000,
};

struct task {
	double seconds;
	uint64_t work;
	int64_t began_ns;
};

static void fail(const char *what)
{
	fprintf(stderr, "gauge: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void usage(const char *why)
{
	fprintf(stderr, "gauge: %s (see gauge.c)\n", why);
	exit(2);
}

static int64_t now_ns(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static void begin(struct task *task)
{
	task->work = 0;
	task->began_ns = now_ns();
}

/* Count a batch; false when the time is over, after saying what came out. */
static bool more(struct task *task, uint64_t batch)
{
	double elapsed_s = (now_ns() - task->began_ns) / 1e9;
	task->work += batch;
	if (elapsed_s < task->seconds)
		return true;
	printf("{\"work\": %llu, \"elapsed_s\": %.9f}\n", (unsigned long long)task->work, elapsed_s);
	return false;
}

static void *memory(size_t bytes)
{
	void *start = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (start == MAP_FAILED)
		fail("mmap");
	return start;
}

static void floats(struct task *task)
{
	static double a[SIDE][SIDE], b[SIDE][SIDE], c[SIDE][SIDE];
	for (int i = 0; i < SIDE; i++)
		for (int j = 0; j < SIDE; j++) {
			a[i][j] = 1.0 / (1 + i + j);
			b[i][j] = (i == j) + 1e-3 * (i - j);
		}
	begin(task);
	do {
		for (int i = 0; i < SIDE; i++)
			for (int k = 0; k < SIDE; k++)
				for (int j = 0; j < SIDE; j++)
					c[i][j] += a[i][k] * b[k][j];
		__asm__ volatile("" : : "r"(c) : "memory"); /* the result is used, as far as the compiler knows */
	} while (more(task, 2 * SIDE * SIDE * SIDE));
}

static void triad(struct task *task, size_t mib)
{
	size_t count = (mib << 20) / 3 / sizeof(double);
	double *a = memory(3 * count * sizeof(double)), *b = a + count, *c = b + count;
	for (size_t i = 0; i < count; i++) {
		a[i] = 0;
		b[i] = i;
		c[i] = 1;
	}
	begin(task);
	do {
		for (size_t i = 0; i < count; i++)
			a[i] = b[i] + 3.0 * c[i];
		__asm__ volatile("" : : "r"(a) : "memory");
	} while (more(task, 3 * count * sizeof(double)));
}

static uint64_t next_random(uint64_t *state)
{
	*state ^= *state << 13; /* Marsaglia's xorshift */
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

static void chase(struct task *task, size_t mib)
{
	size_t count = (mib << 20) / LINE, step = LINE / sizeof(size_t);
	size_t *node = memory(count * LINE);
	uint64_t state = 88172645463325252ULL;
	for (size_t i = 0; i < count; i++)
		node[i * step] = i;
	for (size_t i = count - 1; i > 0; i--) { /* Sattolo: one cycle through all */
		size_t j = next_random(&state) % i, kept = node[i * step];
		node[i * step] = node[j * step];
		node[j * step] = kept;
	}
	size_t at = 0;
	begin(task);
	do {
		for (int i = 0; i < CALLS; i++)
			at = node[at * step];
		__asm__ volatile("" : "+r"(at)); /* the next batch starts where this one ended */
	} while (more(task, CALLS));
}

static void syscalls(struct task *task)
{
	begin(task);
	do {
		for (int i = 0; i < CALLS; i++)
			syscall(SYS_getppid);
	} while (more(task, CALLS));
}

static void spawn(struct task *task, char *self)
{
	char *const words[] = { self, "nothing", NULL };
	begin(task);
	do {
		int status;
		pid_t child = fork();
		if (child < 0)
			fail("fork");
		if (child == 0) {
			execv("/proc/self/exe", words);
			_exit(127);
		}
		if (waitpid(child, &status, 0) != child || status != 0) {
			errno = ECHILD;
			fail("a child that does nothing");
		}
	} while (more(task, 1));
}

static void share_one_cpu(void)
{
	cpu_set_t allowed, one;
	if (sched_getaffinity(0, sizeof allowed, &allowed) < 0)
		fail("sched_getaffinity");
	CPU_ZERO(&one);
	for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
		if (CPU_ISSET(cpu, &allowed)) {
			CPU_SET(cpu, &one);
			break;
		}
	if (sched_setaffinity(0, sizeof one, &one) < 0)
		fail("sched_setaffinity");
}

static void pass(int out, int in)
{
	char byte = 0;
	if (write(out, &byte, 1) != 1 || read(in, &byte, 1) != 1)
		fail("pipe");
}

static void switches(struct task *task)
{
	int there[2], back[2];
	if (pipe(there) < 0 || pipe(back) < 0)
		fail("pipe");
	share_one_cpu();
	pid_t child = fork();
	if (child < 0)
		fail("fork");
	if (child == 0) {
		char byte;
		close(there[1]);
		while (read(there[0], &byte, 1) == 1 && write(back[1], &byte, 1) == 1)
			;
		_exit(0);
	}
	close(there[0]);
	pass(there[1], back[0]);
	begin(task);
	do {
		for (int i = 0; i < CALLS / 20; i++)
			pass(there[1], back[0]);
	} while (more(task, 2 * CALLS / 20));
	close(there[1]);
	waitpid(child, NULL, 0);
}

static void faults(struct task *task)
{
	begin(task);
	do {
		char *start = memory(FAULTS * PAGE);
		madvise(start, FAULTS * PAGE, MADV_NOHUGEPAGE); /* EINVAL where there are no huge pages */
		for (int i = 0; i < FAULTS; i++)
			((volatile char *)start)[i * PAGE] = 1;
		if (munmap(start, FAULTS * PAGE) < 0)
			fail("munmap");
	} while (more(task, FAULTS));
}

static struct sockaddr_in target(const char *address, const char *port)
{
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(atoi(port)) };
	if (inet_pton(AF_INET, address, &to.sin_addr) != 1 || to.sin_port == 0)
		usage("neither an IPv4 address nor a port");
	return to;
}

static int opened(const struct sockaddr_in *to)
{
	int on = 1, sock = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	unsigned limit_ms = CONNECT_MS;
	struct timeval limit = { .tv_sec = CONNECT_MS / 1000 };
	if (sock < 0)
		fail("socket");
	setsockopt(sock, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
	setsockopt(sock, IPPROTO_TCP, TCP_USER_TIMEOUT, &limit_ms, sizeof limit_ms);
	setsockopt(sock, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit); /* connect's limit too */
	setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
	if (connect(sock, (const struct sockaddr *)to, sizeof *to) < 0) {
		fprintf(stderr, "gauge: connect: %s\n", strerror(errno));
		exit(3);
	}
	return sock;
}

/* A published port may be taken by what forwards it though nobody is behind: only an answer is a connection. */
static void ask(int sock)
{
	char byte = 'x';
	if (send(sock, &byte, 1, MSG_NOSIGNAL) != 1 || recv(sock, &byte, 1, 0) != 1) {
		fprintf(stderr, "gauge: no answer: %s\n", strerror(errno));
		exit(3);
	}
}

static void connects(struct task *task, const struct sockaddr_in *to)
{
	struct linger reset = { .l_onoff = 1 }; /* no port waits in TIME_WAIT: there are 28,000 of them */
	begin(task);
	do {
		int sock = opened(to);
		ask(sock);
		setsockopt(sock, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
		close(sock);
	} while (more(task, 1));
}

static void pingpong(struct task *task, const struct sockaddr_in *to)
{
	int sock = opened(to);
	ask(sock);
	begin(task);
	do {
		for (int i = 0; i < 10; i++)
			ask(sock);
	} while (more(task, 10));
}

static void answer(struct pollfd *clients, int *count, int i)
{
	char bytes[64];
	ssize_t got = recv(clients[i].fd, bytes, sizeof bytes, MSG_DONTWAIT);
	if (got > 0 && send(clients[i].fd, bytes, got, MSG_NOSIGNAL) == got)
		return;
	if (got < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	close(clients[i].fd);
	clients[i] = clients[--*count];
}

static void place(void)
{
	char line[256], text[INET_ADDRSTRLEN], between[] = "";
	const char *comma = between;
	struct ifaddrs *all;
	if (getifaddrs(&all) < 0)
		fail("getifaddrs");
	printf("{\"addresses\": [");
	for (struct ifaddrs *one = all; one; one = one->ifa_next) {
		if (!one->ifa_addr || one->ifa_addr->sa_family != AF_INET || one->ifa_flags & IFF_LOOPBACK)
			continue;
		inet_ntop(AF_INET, &((struct sockaddr_in *)one->ifa_addr)->sin_addr, text, sizeof text);
		printf("%s\"%s\"", comma, text);
		comma = ", ";
	}
	struct in_addr gateway = { 0 };
	FILE *routes = fopen("/proc/net/route", "r");
	while (routes && fgets(line, sizeof line, routes)) {
		unsigned destination, hop;
		if (sscanf(line, "%*s %x %x", &destination, &hop) == 2 && destination == 0)
			gateway.s_addr = hop; /* printed as the kernel keeps it, in network order */
	}
	inet_ntop(AF_INET, &gateway, text, sizeof text);
	printf("], \"gateway\": \"%s\"}\n", gateway.s_addr ? text : "");
}

static void serve(double seconds, const struct sockaddr_in *at)
{
	struct pollfd clients[1 + CLIENTS];
	int on = 1, count = 1, sock = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (sock < 0 || setsockopt(sock, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) < 0 ||
	    bind(sock, (const struct sockaddr *)at, sizeof *at) < 0 || listen(sock, CLIENTS) < 0)
		fail("listening");
	pid_t child = fork();
	if (child < 0)
		fail("fork");
	if (child > 0) {
		while (getsid(child) != child) /* what runs commands here ends their process group with them */
			sched_yield();
		place();
		exit(0);
	}
	setsid();
	for (int fd = 0; fd < 3; fd++)
		close(fd);
	alarm(seconds < 1 ? 1 : (unsigned)seconds);
	clients[0] = (struct pollfd){ .fd = sock, .events = POLLIN };
	for (;;) {
		if (poll(clients, count, -1) < 0 && errno != EINTR)
			_exit(1);
		for (int i = count - 1; i > 0; i--)
			if (clients[i].revents)
				answer(clients, &count, i);
		int fd = count <= CLIENTS && clients[0].revents ? accept4(sock, NULL, NULL, SOCK_CLOEXEC) : -1;
		if (fd >= 0) {
			setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
			clients[count++] = (struct pollfd){ .fd = fd, .events = POLLIN };
		}
	}
}

int main(int argc, char **argv)
{
	if (argc < 2)
		usage("no word");
	const char *word = argv[1];
	if (!strcmp(word, "nothing"))
		return 0;
	if (!strcmp(word, "place")) {
		place();
		return 0;
	}
	if (argc < 3)
		usage("no seconds");
	struct task task = { .seconds = atof(argv[2]) };
	if (argc == 3 && !strcmp(word, "float"))
		floats(&task);
	else if (argc == 3 && !strcmp(word, "syscall"))
		syscalls(&task);
	else if (argc == 3 && !strcmp(word, "spawn"))
		spawn(&task, argv[0]);
	else if (argc == 3 && !strcmp(word, "switch"))
		switches(&task);
	else if (argc == 3 && !strcmp(word, "fault"))
		faults(&task);
	else if (argc == 4 && !strcmp(word, "triad") && atoi(argv[3]) > 0)
		triad(&task, atoi(argv[3]));
	else if (argc == 4 && !strcmp(word, "chase") && atoi(argv[3]) > 0)
		chase(&task, atoi(argv[3]));
	else if (argc == 5) {
		struct sockaddr_in peer = target(argv[3], argv[4]);
		if (!strcmp(word, "connect"))
			connects(&task, &peer);
		else if (!strcmp(word, "pingpong"))
			pingpong(&task, &peer);
		else if (!strcmp(word, "serve"))
			serve(task.seconds, &peer);
		else
			usage("no such word");
	} else {
		usage("no such word, or not its number of words");
	}
	return 0;
}

/*
 * What the host tells a virtual machine about itself: its place in the network, its names and files, time, entropy.
 *
 * The part of the guest agent (agent.c) that carries out a configure frame: words KEY=VALUE, each ending in NUL.
 *
 *   address=A.B.C.D/N gateway=A.B.C.D mac=XX:... gateway-mac=XX:... mtu=N   all five, for the first Ethernet interface
 *   hostname=NAME   time=NANOSECONDS   entropy=HEX   /absolute/path=TEXT    a file, replaced as a whole
 *
 * Without the system's own tools, which a small image need not have, and without asking anybody on the network.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <net/route.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { ADDRESS = 1, GATEWAY = 2, MAC = 4, GATEWAY_MAC = 8, MTU = 16, WHOLE_PLACE = 31 };
enum { ENTROPY_MAX = 256, TRIES = 100, PAUSE_US = 50000 };

static struct place {
	unsigned known;
	struct in_addr address, mask, gateway;
	uint8_t mac[6], gateway_mac[6];
	int mtu;
} place;

static char complaint[256];

__attribute__((format(printf, 1, 2))) static bool complain(const char *format, ...)
{
	va_list list;
	va_start(list, format);
	vsnprintf(complaint, sizeof complaint, format, list);
	va_end(list);
	return false;
}

/* ---- the network ----------------------------------------------------------------------------------------- */

static struct sockaddr *internet(struct sockaddr *at, struct in_addr address)
{
	struct sockaddr_in *where = (struct sockaddr_in *)at;
	*where = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr = address};
	return at;
}

static int turn_link(int fd, struct ifreq *link, bool up)
{
	if (ioctl(fd, SIOCGIFFLAGS, link) < 0)
		return -1;
	link->ifr_flags = (short)(up ? link->ifr_flags | IFF_UP : link->ifr_flags & ~IFF_UP);
	return ioctl(fd, SIOCSIFFLAGS, link);
}

/* No IPv6 address of its own accord, and no neighbour that says it is a router. A kernel without IPv6 has no such file. */
static void keep_quiet(const char *name)
{
	const char *const settings[][2] = {{"addr_gen_mode", "1"}, {"accept_ra", "0"}};
	for (int i = 0; i < 2; i++) {
		char path[96];
		snprintf(path, sizeof path, "/proc/sys/net/ipv6/conf/%s/%s", name, settings[i][0]);
		int fd = open(path, O_WRONLY | O_CLOEXEC);
		if (fd < 0)
			continue;
		if (write(fd, settings[i][1], 1) < 0)
			complain("%s: %s", path, strerror(errno));
		close(fd);
	}
}

/* Whether the interface has its address, mask, hardware address and MTU, and is up. */
static bool is_placed(int fd, struct ifreq *link)
{
	const struct sockaddr_in *in = (struct sockaddr_in *)&link->ifr_addr;
	return ioctl(fd, SIOCGIFADDR, link) == 0 && in->sin_addr.s_addr == place.address.s_addr &&
	       ioctl(fd, SIOCGIFNETMASK, link) == 0 && in->sin_addr.s_addr == place.mask.s_addr &&
	       ioctl(fd, SIOCGIFHWADDR, link) == 0 && memcmp(link->ifr_hwaddr.sa_data, place.mac, 6) == 0 &&
	       ioctl(fd, SIOCGIFMTU, link) == 0 && link->ifr_mtu == place.mtu &&
	       ioctl(fd, SIOCGIFFLAGS, link) == 0 && (link->ifr_flags & IFF_UP);
}

/* Put the interface where it belongs; what failed, or NULL. Down first: an earlier place's routes and neighbours go so. */
static const char *move(int fd, struct ifreq *link)
{
	if (turn_link(fd, link, false) < 0)
		return "taking the link down";
	if (ioctl(fd, SIOCGIFHWADDR, link) < 0)
		return "reading the hardware address";
	if (memcmp(link->ifr_hwaddr.sa_data, place.mac, 6) != 0) { /* a guest from a saved state has its ancestor's */
		memcpy(link->ifr_hwaddr.sa_data, place.mac, 6);
		if (ioctl(fd, SIOCSIFHWADDR, link) < 0)
			return "setting the hardware address";
	}
	link->ifr_mtu = place.mtu;
	if (ioctl(fd, SIOCSIFMTU, link) < 0)
		return "setting the MTU";
	internet(&link->ifr_addr, place.address);
	if (ioctl(fd, SIOCSIFADDR, link) < 0)
		return "setting the address";
	internet(&link->ifr_netmask, place.mask);
	if (ioctl(fd, SIOCSIFNETMASK, link) < 0)
		return "setting the network mask";
	return turn_link(fd, link, true) < 0 ? "bringing the link up" : NULL;
}

/* Give the interface its place; what failed, or NULL. One that has it, from cloud-init's configuration, is not moved:
   whoever manages it there would see the link go down, and take its address away again. */
static const char *settle(int fd, struct ifreq *link)
{
	struct rtentry route = {.rt_flags = RTF_UP | RTF_GATEWAY, .rt_dev = link->ifr_name};
	struct arpreq neighbour = {.arp_flags = ATF_COM | ATF_PERM, .arp_ha.sa_family = ARPHRD_ETHER};
	keep_quiet(link->ifr_name);
	const char *failed = is_placed(fd, link) ? NULL : move(fd, link);
	if (failed)
		return failed;
	internet(&route.rt_dst, (struct in_addr){0});
	internet(&route.rt_genmask, (struct in_addr){0});
	internet(&route.rt_gateway, place.gateway);
	if (ioctl(fd, SIOCADDRT, &route) < 0 && errno != EEXIST)
		return "setting the default route";
	internet(&neighbour.arp_pa, place.gateway);
	memcpy(neighbour.arp_ha.sa_data, place.gateway_mac, 6);
	memcpy(neighbour.arp_dev, link->ifr_name, sizeof neighbour.arp_dev);
	return ioctl(fd, SIOCSARP, &neighbour) < 0 ? "making the gateway known" : NULL;
}

/* The first Ethernet interface, by its number: names are udev's to change. */
static bool find_link(int fd, struct ifreq *link)
{
	struct if_nameindex *all = if_nameindex();
	bool found = false;
	for (struct if_nameindex *one = all; one && one->if_index && !found; one++) {
		snprintf(link->ifr_name, sizeof link->ifr_name, "%s", one->if_name);
		found = ioctl(fd, SIOCGIFHWADDR, link) == 0 && link->ifr_hwaddr.sa_family == ARPHRD_ETHER;
	}
	if (all)
		if_freenameindex(all);
	return found;
}

static bool take_place(void)
{
	struct ifreq link = {0};
	const char *failed = NULL;
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return complain("no network: %s", strerror(errno));
	/* Meanwhile udev may give the link another name, and whoever manages it in a cloud image, who has the same place in
	   mind, may take the address away and put it back. */
	for (int tries = TRIES; tries; tries--) {
		if (!find_link(fd, &link)) {
			close(fd);
			return complain("no network interface");
		}
		failed = settle(fd, &link);
		if (!failed || (errno != ENODEV && errno != ENETUNREACH))
			break;
		if (errno == ENETUNREACH)
			usleep(PAUSE_US);
	}
	if (failed)
		complain("%s: %s: %s", link.ifr_name, failed, strerror(errno));
	close(fd);
	return !failed;
}

static bool read_mac(const char *text, uint8_t *mac)
{
	char rest;
	return sscanf(text, "%2hhx:%2hhx:%2hhx:%2hhx:%2hhx:%2hhx%c", mac, mac + 1, mac + 2, mac + 3, mac + 4, mac + 5,
		      &rest) == 6;
}

/* One word about the place: which it is, 0 if it is another's or cannot be read. */
static unsigned read_place(const char *key, char *value)
{
	char *slash = strchr(value, '/'), *end = "x";
	if (strcmp(key, "address") == 0 && slash) {
		unsigned long bits = strtoul(slash + 1, &end, 10);
		*slash = 0;
		if (*end || bits < 1 || bits > 32)
			return 0;
		place.mask.s_addr = htonl(UINT32_MAX << (32 - bits));
		return inet_pton(AF_INET, value, &place.address) == 1 ? ADDRESS : 0;
	}
	if (strcmp(key, "gateway") == 0)
		return inet_pton(AF_INET, value, &place.gateway) == 1 ? GATEWAY : 0;
	if (strcmp(key, "mac") == 0)
		return read_mac(value, place.mac) ? MAC : 0;
	if (strcmp(key, "gateway-mac") == 0)
		return read_mac(value, place.gateway_mac) ? GATEWAY_MAC : 0;
	if (strcmp(key, "mtu") == 0) {
		place.mtu = (int)strtoul(value, &end, 10);
		return *end == 0 && place.mtu >= 68 && place.mtu <= 65535 ? MTU : 0;
	}
	return 0;
}

/* ---- the rest -------------------------------------------------------------------------------------------- */

static bool write_out(const char *path, const char *text, int flags, mode_t mode)
{
	size_t length = strlen(text);
	int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC | flags, mode);
	bool whole = fd >= 0 && write(fd, text, length) == (ssize_t)length && fchmod(fd, mode) == 0;
	int error = errno;
	if (fd >= 0)
		close(fd);
	errno = error;
	return whole;
}

/* Put a whole file in the place of another; where that is a mount of its own, into it. */
static bool replace_file(const char *path, const char *text)
{
	char new[512];
	struct stat info;
	mode_t mode = stat(path, &info) == 0 ? info.st_mode & 07777 : 0644;
	if (snprintf(new, sizeof new, "%s.tare-new", path) >= (int)sizeof new)
		return complain("%.100s: %s", path, strerror(ENAMETOOLONG));
	unlink(new);
	if (write_out(new, text, O_EXCL | O_NOFOLLOW, mode) && rename(new, path) == 0)
		return true;
	int error = errno;
	unlink(new);
	errno = error;
	if (error == EBUSY && write_out(path, text, O_TRUNC, mode))
		return true;
	return complain("%.200s: %s", path, strerror(errno));
}

static bool set_time(const char *value)
{
	char *end;
	unsigned long long ns = strtoull(value, &end, 10);
	struct timespec now = {.tv_sec = (time_t)(ns / 1000000000), .tv_nsec = (long)(ns % 1000000000)};
	if (!ns || *end)
		errno = EINVAL;
	else if (clock_settime(CLOCK_REALTIME, &now) == 0)
		return true;
	return complain("time: %s", strerror(errno));
}

/* Two guests from one saved state would draw the same numbers until the kernel mixes in something of their own. */
static bool add_entropy(const char *value)
{
	union {
		struct rand_pool_info pool;
		uint8_t bytes[sizeof(struct rand_pool_info) + ENTROPY_MAX];
	} given;
	uint8_t *at = (uint8_t *)given.pool.buf;
	size_t size = strlen(value) / 2;
	int fd = open("/dev/urandom", O_WRONLY | O_CLOEXEC);
	bool done = fd >= 0 && size <= ENTROPY_MAX;
	for (size_t i = 0; i < size && done; i++)
		done = sscanf(value + 2 * i, "%2hhx", at + i) == 1;
	given.pool.entropy_count = (int)size * 8;
	given.pool.buf_size = (int)size;
	done = done && ioctl(fd, RNDADDENTROPY, &given.pool) == 0;
	if (done && ioctl(fd, RNDRESEEDCRNG) < 0 && errno != ENODATA) /* ENODATA: it has not begun to draw yet */
		done = false;
	if (!done)
		complain("entropy: %s", strerror(errno));
	if (fd >= 0)
		close(fd);
	return done;
}

static bool carry_out(char *key, char *value)
{
	unsigned part = read_place(key, value);
	place.known |= part;
	if (part)
		return true;
	if (key[0] == '/')
		return replace_file(key, value);
	if (strcmp(key, "hostname") == 0)
		return sethostname(value, strlen(value)) == 0 || complain("host name: %s", strerror(errno));
	if (strcmp(key, "time") == 0)
		return set_time(value);
	if (strcmp(key, "entropy") == 0)
		return add_entropy(value);
	return complain("cannot read %.60s", key);
}

/* Carry out every word, the place last and as a whole; NULL, or what the first failure was. */
static const char *configure(char *payload, size_t length)
{
	place.known = 0;
	if (length && payload[length - 1] != 0)
		return "the last word has no end";
	for (char *word = payload, *next; word < payload + length; word = next) {
		next = word + strlen(word) + 1;
		char *value = strchr(word, '=');
		if (!value)
			return "a word has no value";
		*value++ = 0;
		if (!carry_out(word, value))
			return complaint;
	}
	if (place.known && place.known != WHOLE_PLACE)
		return "half a place in a network";
	return !place.known || take_place() ? NULL : complaint;
}

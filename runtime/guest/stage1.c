/*
 * The first program of a microvm, /init of a small initramfs: loads the virtio modules, mounts the root
 * file system and becomes the guest agent in it.
 *
 * Not a general initramfs: no udev, no fsck, no shell. Modules are /modules/NN-name.ko, loaded in the order
 * of their names, and those of /network if there is a network card; the kernel's command line says tareroot=DEVICE. Whatever fails is said on the console and
 * ends in power-off, so that the host sees the machine end instead of hang.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { ROOT_WAIT_MS = 30000 };

static _Noreturn void give_up(const char *what)
{
	printf("stage1: %s: %s\n", what, strerror(errno));
	fflush(stdout);
	reboot(RB_POWER_OFF);
	_exit(1);
}

static void make_mount(const char *type, const char *path)
{
	mkdir(path, 0755);
	if (mount(type, path, type, MS_NOSUID, NULL) < 0)
		give_up(path);
}

static void load_modules(const char *directory)
{
	struct dirent **names;
	int count = scandir(directory, &names, NULL, alphasort);

	if (count < 0 || chdir(directory) < 0)
		give_up(directory);
	for (int i = 0; i < count; i++) {
		int fd;

		if (names[i]->d_name[0] == '.')
			continue;
		fd = open(names[i]->d_name, O_RDONLY | O_CLOEXEC);
		if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) < 0 && errno != EEXIST))
			give_up(names[i]->d_name);
		close(fd);
	}
}

/* Whether there is a virtio network card, which is told before any driver takes it. */
static bool has_card(void)
{
	char path[512], kind[16] = "";
	bool found = false;
	DIR *devices = opendir("/sys/bus/virtio/devices");

	for (struct dirent *entry; devices && !found && (entry = readdir(devices));) {
		FILE *file;

		snprintf(path, sizeof path, "/sys/bus/virtio/devices/%s/device", entry->d_name);
		file = entry->d_name[0] == '.' ? NULL : fopen(path, "re");
		if (!file)
			continue;
		found = fgets(kind, sizeof kind, file) && strcmp(kind, "0x0001\n") == 0;
		fclose(file);
	}
	if (devices)
		closedir(devices);
	return found;
}

/* The value of tareroot= on the kernel's command line. */
static const char *root_device(void)
{
	static char line[4096];
	FILE *file = fopen("/proc/cmdline", "re");

	if (!file || !fgets(line, sizeof line, file))
		give_up("/proc/cmdline");
	fclose(file);
	for (char *word = strtok(line, " \n"); word; word = strtok(NULL, " \n"))
		if (strncmp(word, "tareroot=", 9) == 0)
			return word + 9;
	errno = EINVAL;
	give_up("no tareroot= on the kernel command line");
}

/* Mount the root as soon as its device exists: at once, or after the kernel's event that announces it. */
static void mount_root(const char *device)
{
	struct sockaddr_nl address = { .nl_family = AF_NETLINK, .nl_groups = 1 };
	int events = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC, NETLINK_KOBJECT_UEVENT);
	struct pollfd waiting = { .fd = events, .events = POLLIN };
	char event[8192];

	if (events < 0 || bind(events, (struct sockaddr *)&address, sizeof address) < 0)
		give_up("kernel events");
	mkdir("/root", 0755);
	while (mount(device, "/root", "ext4", 0, NULL) < 0) {
		if (errno != ENOENT && errno != ENXIO)
			give_up(device);
		if (poll(&waiting, 1, ROOT_WAIT_MS) <= 0 || recv(events, event, sizeof event, 0) < 0)
			give_up(device);
	}
	close(events);
}

int main(void)
{
	char *agent[] = { "/usr/lib/tare/agent", "--init", "--port", "org.tare.agent", NULL };

	make_mount("devtmpfs", "/dev");
	make_mount("proc", "/proc");
	make_mount("sysfs", "/sys");
	load_modules("/modules");
	if (has_card())
		load_modules("/network");
	mount_root(root_device());
	umount2("/proc", MNT_DETACH); /* the agent mounts its own */
	umount2("/sys", MNT_DETACH);
	umount2("/dev", MNT_DETACH);
	if (chdir("/root") < 0 || mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0 || chdir("/") < 0)
		give_up("changing to the root file system");
	execv(agent[0], agent);
	give_up(agent[0]);
}

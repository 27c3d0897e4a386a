/*
 * Files out of and into an instance, as a command that the agent runs of itself: what a guest without tar has, too.
 *
 *   agent --files look PATH          tells what is there: `d` a directory, `f` anything else, `-` nothing, as its
 *                                    links lead; then, if PATH itself is a link, what that says
 *   agent --files send [-L] PATH     what PATH is, with -L what it leads to, and all below it, as entries to stdout
 *   agent --files receive DIRECTORY  entries from stdin, over what is there of the same names
 *
 * An entry is a `struct entry`, the path (relative, "" being PATH itself), the link, the attributes (a name ending in
 * NUL, u32 length, value) and a regular file's bytes. A link is what a symbolic link says, or the path of an earlier
 * entry if `hard`. The last entry has mode 0. Little endian. What fails is told on stderr, and the exit code is 1.
 * Nothing is followed below PATH and DIRECTORY. Which path means what is the host's business.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <sys/xattr.h>
#include <unistd.h>

struct entry {
	uint32_t mode, uid, gid, hard;
	uint64_t size;
	int64_t mtime_ns;
	uint32_t major, minor;
	uint32_t path, link, attributes; /* their lengths */
} __attribute__((packed));

enum { ATTRIBUTES_MAX = 256 << 10, PATH_BYTES = 4096, BLOCK = 256 << 10 };

static char path_now[PATH_BYTES]; /* of the entry at hand */
static char block[BLOCK], attributes[ATTRIBUTES_MAX];

static _Noreturn void give_up(const char *what, const char *why)
{
	fprintf(stderr, "%s: %s\n", what[0] ? what : ".", why);
	exit(1);
}

#define must(condition) ((condition) ? (void)0 : give_up(path_now, strerror(errno)))

static void write_all(int fd, const void *data, size_t length)
{
	for (const char *at = data; length;) {
		ssize_t size = write(fd, at, length);
		must(size >= 0 || errno == EINTR);
		if (size > 0) {
			at += size;
			length -= (size_t)size;
		}
	}
}

static void put_out(const void *data, size_t length)
{
	if (length && fwrite(data, 1, length, stdout) != length)
		give_up("output", strerror(errno));
}

static void take_in(void *data, size_t length)
{
	if (length && fread(data, 1, length, stdin) != length)
		give_up("input", "it ended early");
}

static void through(int fd, char *link, size_t size) /* a descriptor as a path, for calls that know no O_PATH */
{
	snprintf(link, size, "/proc/self/fd/%d", fd);
}

/* ---- out ------------------------------------------------------------------------------------------------- */

static struct seen { /* files of several names */
	dev_t device;
	ino_t inode;
	char *path;
} *seen;
static size_t seen_count;

static bool kept(const char *name)
{
	return !strncmp(name, "user.", 5) || !strcmp(name, "security.capability") || !strncmp(name, "system.posix_acl_", 17);
}

static uint32_t read_attributes(int fd)
{
	static char names[64 << 10];
	ssize_t length = flistxattr(fd, names, sizeof names);
	uint32_t end = 0;
	for (char *name = names; length > 0 && name < names + length; name += strlen(name) + 1) {
		size_t label = strlen(name) + 1;
		if (!kept(name))
			continue;
		if (end + label + 4 > sizeof attributes)
			give_up(path_now, "too many attributes");
		ssize_t size = fgetxattr(fd, name, attributes + end + label + 4, sizeof attributes - end - label - 4);
		must(size >= 0);
		memcpy(attributes + end, name, label);
		memcpy(attributes + end + label, &(uint32_t){(uint32_t)size}, 4);
		end += (uint32_t)(label + 4 + (size_t)size);
	}
	return end;
}

static void put_entry(struct entry *entry, const char *link)
{
	entry->path = (uint32_t)strlen(path_now);
	entry->link = (uint32_t)strlen(link);
	put_out(entry, sizeof *entry);
	put_out(path_now, entry->path);
	put_out(link, entry->link);
	put_out(attributes, entry->attributes);
}

static void put_bytes(int fd, uint64_t length)
{
	while (length) {
		ssize_t size = read(fd, block, length < BLOCK ? (size_t)length : BLOCK);
		must(size >= 0);
		if (size == 0)
			give_up(path_now, "it became shorter while it was read");
		put_out(block, (size_t)size);
		length -= (uint64_t)size;
	}
}

/* File systems of kernel objects: their files are no data, and reading some of them waits for ever. */
static bool holds_no_files(int fd)
{
	static const long kinds[] = {PROC_SUPER_MAGIC, SYSFS_MAGIC,      DEVPTS_SUPER_MAGIC, CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC,
	                             DEBUGFS_MAGIC,    TRACEFS_MAGIC,    SECURITYFS_MAGIC,   BPF_FS_MAGIC,       PSTOREFS_MAGIC,
	                             EFIVARFS_MAGIC,   0x19800202 /* mqueue */};
	struct statfs info;
	must(fstatfs(fd, &info) == 0);
	for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
		if (info.f_type == kinds[i])
			return true;
	return false;
}

static void send_tree(int here);

static int by_name(const void *one, const void *other)
{
	return strcmp(*(char *const *)one, *(char *const *)other);
}

static void send_below(int directory)
{
	char **names = NULL;
	size_t count = 0, length = strlen(path_now);
	DIR *list = fdopendir(directory);
	must(list != NULL);
	for (struct dirent *found; (errno = 0, found = readdir(list));) {
		if (!strcmp(found->d_name, ".") || !strcmp(found->d_name, ".."))
			continue;
		must((names = reallocarray(names, count + 1, sizeof *names)) && (names[count++] = strdup(found->d_name)));
	}
	must(errno == 0);
	if (count)
		qsort(names, count, sizeof *names, by_name);
	for (size_t i = 0; i < count; i++) {
		int child = openat(dirfd(list), names[i], O_PATH | O_NOFOLLOW | O_CLOEXEC);
		if (child >= 0) {
			if (length + strlen(names[i]) + 2 > sizeof path_now)
				give_up(path_now, strerror(ENAMETOOLONG));
			sprintf(path_now + length, "%s%s", length ? "/" : "", names[i]);
			send_tree(child);
			close(child);
		} else {
			must(errno == ENOENT); /* it went while we were at the one before */
		}
		path_now[length] = 0;
		free(names[i]);
	}
	free(names);
	closedir(list);
}

/* The path by which the file has been sent already; else NULL, and `path_now` is it from now on. */
static const char *seen_as(const struct stat *info)
{
	for (size_t i = 0; i < seen_count; i++)
		if (seen[i].device == info->st_dev && seen[i].inode == info->st_ino)
			return seen[i].path;
	must((seen = reallocarray(seen, seen_count + 1, sizeof *seen)) != NULL);
	seen[seen_count] = (struct seen){info->st_dev, info->st_ino, strdup(path_now)};
	must(seen[seen_count++].path != NULL);
	return NULL;
}

static void send_tree(int here)
{
	struct stat info;
	char link[PATH_BYTES] = "", real[64];
	const char *earlier = NULL;
	must(fstat(here, &info) == 0);
	struct entry entry = {
		.mode = info.st_mode,
		.uid = info.st_uid,
		.gid = info.st_gid,
		.mtime_ns = info.st_mtim.tv_sec * INT64_C(1000000000) + info.st_mtim.tv_nsec,
		.major = major(info.st_rdev),
		.minor = minor(info.st_rdev),
	};
	through(here, real, sizeof real);
	if (holds_no_files(here)) {
		if (!path_now[0])
			give_up(path_now, "it lies on a file system that holds no files");
		if (S_ISDIR(info.st_mode))
			put_entry(&entry, "");
		return;
	}
	if (S_ISSOCK(info.st_mode))
		return;
	if (!S_ISDIR(info.st_mode) && info.st_nlink > 1 && (earlier = seen_as(&info))) {
		entry.hard = 1;
		put_entry(&entry, earlier);
	} else if (S_ISLNK(info.st_mode)) {
		ssize_t length = readlinkat(here, "", link, sizeof link - 1);
		must(length >= 0);
		link[length] = 0;
		put_entry(&entry, link);
	} else if (S_ISDIR(info.st_mode) || S_ISREG(info.st_mode)) {
		int fd = open(real, O_RDONLY | O_CLOEXEC);
		must(fd >= 0);
		entry.attributes = read_attributes(fd);
		entry.size = S_ISREG(info.st_mode) ? (uint64_t)info.st_size : 0;
		put_entry(&entry, "");
		if (S_ISDIR(info.st_mode)) {
			send_below(fd); /* which closes it */
		} else {
			put_bytes(fd, entry.size);
			close(fd);
		}
	} else {
		put_entry(&entry, "");
	}
}

static void send_path(const char *path, bool follow)
{
	int fd = open(path, O_PATH | O_CLOEXEC | (follow ? 0 : O_NOFOLLOW));
	if (fd < 0)
		give_up(path, strerror(errno));
	send_tree(fd);
	put_out(&(struct entry){0}, sizeof(struct entry));
}

/* ---- in -------------------------------------------------------------------------------------------------- */

static struct times { /* directories', which making their entries changes */
	char *path;
	int64_t mtime_ns;
} *times;
static size_t times_count;

/* The directory that `path` lies in, made where it is missing; `path` is left with its last part. */
static int open_above(int root, char **path)
{
	int here = fcntl(root, F_DUPFD_CLOEXEC, 0);
	must(here >= 0);
	for (char *slash; (slash = strchr(*path, '/')); *path = slash + 1) {
		*slash = 0;
		if (mkdirat(here, *path, 0755) < 0)
			must(errno == EEXIST);
		int deeper = openat(here, *path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
		must(deeper >= 0);
		close(here);
		here = deeper;
		*slash = '/';
	}
	return here;
}

static void describe(int fd, const struct entry *entry)
{
	must(fchown(fd, entry->uid, entry->gid) == 0);
	must(fchmod(fd, entry->mode & 07777) == 0); /* after the owner: changing that drops setuid and capabilities */
	for (uint32_t at = 0; at < entry->attributes;) {
		const char *name = attributes + at;
		size_t label = strnlen(name, entry->attributes - at) + 1;
		uint32_t size = 0;
		if (at + label + 4 <= entry->attributes)
			memcpy(&size, name + label, 4);
		if (at + label + 4 + (uint64_t)size > entry->attributes || !kept(name))
			give_up(path_now, "malformed attributes");
		if (fsetxattr(fd, name, name + label + 4, size, 0) < 0 && !strcmp(name, "security.capability"))
			must(false);
		at += (uint32_t)(label + 4 + size);
	}
}

static struct timespec moment(int64_t ns)
{
	int64_t rest = (ns % 1000000000 + 1000000000) % 1000000000;
	return (struct timespec){.tv_sec = (ns - rest) / 1000000000, .tv_nsec = rest};
}

static void stamp_time(int fd, int64_t mtime_ns)
{
	const struct timespec both[2] = {moment(mtime_ns), moment(mtime_ns)};
	must(futimens(fd, both) == 0);
}

static void receive_directory(int parent, const char *name, const struct entry *entry)
{
	struct stat there;
	if (mkdirat(parent, name, 0700) < 0) {
		must(errno == EEXIST && fstatat(parent, name, &there, AT_SYMLINK_NOFOLLOW) == 0);
		if (!S_ISDIR(there.st_mode))
			give_up(path_now, "a file is there and no directory");
	}
	int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	must(fd >= 0);
	describe(fd, entry);
	close(fd);
	must((times = reallocarray(times, times_count + 1, sizeof *times)) != NULL);
	times[times_count] = (struct times){strdup(path_now), entry->mtime_ns};
	must(times[times_count++].path != NULL);
}

static void receive_file(int fd, const struct entry *entry)
{
	must(fd >= 0);
	for (uint64_t left = entry->size; left;) {
		size_t size = left < BLOCK ? (size_t)left : BLOCK;
		take_in(block, size);
		write_all(fd, block, size);
		left -= size;
	}
	describe(fd, entry);
	stamp_time(fd, entry->mtime_ns);
	must(close(fd) == 0);
}

/* Remove what is there. False when it is a mount, which can only be written into. */
static bool make_way(int parent, const char *name, const struct entry *entry)
{
	struct stat there;
	if (fstatat(parent, name, &there, AT_SYMLINK_NOFOLLOW) < 0) {
		must(errno == ENOENT);
		return true;
	}
	if (S_ISDIR(there.st_mode))
		give_up(path_now, "a directory is there");
	if (unlinkat(parent, name, 0) == 0)
		return true;
	must(errno == EBUSY && S_ISREG(there.st_mode) && S_ISREG(entry->mode) && !entry->hard);
	return false;
}

static void receive_other(int root, int parent, const char *name, const struct entry *entry, char *link)
{
	const int fresh = make_way(parent, name, entry) ? O_CREAT | O_EXCL : O_TRUNC;
	if (entry->hard) {
		int above = open_above(root, &link);
		must(linkat(above, link, parent, name, 0) == 0);
		close(above);
		return;
	}
	if (S_ISREG(entry->mode)) {
		receive_file(openat(parent, name, O_WRONLY | O_NOFOLLOW | O_CLOEXEC | fresh, 0600), entry);
		return;
	}
	if (S_ISLNK(entry->mode))
		must(symlinkat(link, parent, name) == 0);
	else
		must(mknodat(parent, name, (entry->mode & S_IFMT) | 0600, makedev(entry->major, entry->minor)) == 0);
	must(fchownat(parent, name, entry->uid, entry->gid, AT_SYMLINK_NOFOLLOW) == 0);
	if (!S_ISLNK(entry->mode))
		must(fchmodat(parent, name, entry->mode & 07777, 0) == 0);
	const struct timespec both[2] = {moment(entry->mtime_ns), moment(entry->mtime_ns)};
	must(utimensat(parent, name, both, AT_SYMLINK_NOFOLLOW) == 0);
}

static void receive_all(const char *directory)
{
	static char link[PATH_BYTES];
	struct entry entry;
	int root = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (root < 0)
		give_up(directory, strerror(errno));
	for (;;) {
		take_in(&entry, sizeof entry);
		if (!entry.mode)
			break;
		if (entry.path >= sizeof path_now || entry.link >= sizeof link || entry.attributes > sizeof attributes)
			give_up("input", "malformed entry");
		path_now[0] = 0; /* until it is whole */
		take_in(path_now, entry.path);
		take_in(link, entry.link);
		take_in(attributes, entry.attributes);
		path_now[entry.path] = link[entry.link] = 0;
		char *name = path_now;
		if (!*name) {
			if (!S_ISDIR(entry.mode))
				give_up("input", "a file has no content to pour out");
			continue;
		}
		int parent = open_above(root, &name);
		if (S_ISDIR(entry.mode))
			receive_directory(parent, name, &entry);
		else
			receive_other(root, parent, name, &entry, link);
		close(parent);
	}
	while (times_count--) {
		char *name = strcpy(path_now, times[times_count].path);
		int parent = open_above(root, &name), fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
		must(fd >= 0);
		stamp_time(fd, times[times_count].mtime_ns);
		close(fd);
		close(parent);
	}
}

static void look_at(const char *path)
{
	struct stat info;
	char link[PATH_BYTES];
	char kind = '-';
	if (stat(path, &info) == 0)
		kind = S_ISDIR(info.st_mode) ? 'd' : 'f';
	else if (errno != ENOENT)
		give_up(path, strerror(errno));
	ssize_t length = readlink(path, link, sizeof link);
	put_out(&kind, 1);
	if (length > 0)
		put_out(link, (size_t)length);
}

static int files(char **words)
{
	bool sends = strcmp(words[0], "send") == 0, follow = sends && words[1] && strcmp(words[1], "-L") == 0;
	const char *path = words[1 + follow];
	umask(0);
	if (!path)
		return 2;
	if (sends)
		send_path(path, follow);
	else if (strcmp(words[0], "receive") == 0)
		receive_all(path);
	else if (strcmp(words[0], "look") == 0)
		look_at(path);
	else
		return 2;
	if (fflush(stdout) != 0)
		give_up("output", strerror(errno));
	return 0;
}

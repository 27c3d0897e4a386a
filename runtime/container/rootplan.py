"""From a configuration to the steps that make what the container sees of files. Pure, without a host.

Every step comes after `PivotRoot`; the host's tree is the working directory, and relative sources are on it.
"""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Iterable, Iterator, Sequence

from runtime.container import mountwords
from runtime.container.checks import sysctl_path
from runtime.container.config import Config, Device, IdMapping, MountPoint
from runtime.container.furnishing import Device as DeviceNode
from runtime.container.furnishing import Directory, Ensure, Link, Mask, NewFile, ReadOnly, Unmount
from runtime.container.mounting import QUIET, Attach, Cover, Mount
from runtime.container.mountwords import Wanted
from runtime.container.outside import Tree
from runtime.container.stepping import Step
from runtime.container.steps import Write
from runtime.errors import UsageError
from runtime.linux.syscalls import (
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_RDONLY,
    MS_REC,
    MS_RELATIME,
    MS_REMOUNT,
)
from runtime.record import field, record

_DEFAULT_DEVICES = (("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0))
_DEVICE_LINKS = (
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("pts/ptmx", "ptmx"),
)
_STRICT = ("/proc", "/sys", "/dev")
_TYPES = {"c": stat.S_IFCHR, "u": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}
_PTMX = "/dev/ptmx"
_CGROUP_FLAGS = MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_RELATIME


@record
class KnownPaths:
    """Which paths of the kernel's own file systems this host has: no container has others, and none need be asked for.

    `all` are those that were looked for.
    """

    files: frozenset[str] = frozenset()
    directories: frozenset[str] = frozenset()
    all: frozenset[str] = frozenset()


@record
class RootPlan:
    """The files of one configuration. `bundle` is what relative sources are relative to.

    `shared` says that others may change the root meanwhile: that of a bundle, but not an overlay's.
    `trees` grows while the steps are made: the mounts that the parent has to make.
    """

    config: Config
    bundle: str
    known: KnownPaths
    cgroup_mounts: tuple[tuple[str, str], ...] = ()
    cgroup_directories: tuple[tuple[str, str], ...] = ()
    shared: bool = True
    trees: list[Tree] = field(default_factory=list)

    @property
    def _in_user(self) -> bool:
        return self.config.linux.has("user")

    def files(self, files: Sequence[tuple[str, str]]) -> Iterator[Step]:
        """Small files bound over the image's, from a memory file system that /dev hides if it is one itself."""
        if not files:
            return
        yield self._staging()
        for number, (path, text) in enumerate(files):
            staged = b"/dev/%d" % number
            yield NewFile(staged, text.encode())
            yield self._cover(staged, path)
        if not self._has_own_dev():
            yield Unmount(b"/dev")

    def _cover(self, staged: bytes, path: str) -> Step:
        if self.shared:
            return Attach(staged, os.fsencode(path), None, MS_BIND)
        ends = [at for at, letter in enumerate(path) if letter == "/" and at]
        return Cover(staged, os.fsencode(path), tuple(os.fsencode(path[:at]) for at in ends))

    def _staging(self) -> Step:
        data = b"mode=755,size=1024k"
        if self.shared:
            return Attach(b"tmpfs", b"/dev", b"tmpfs", QUIET, data, strict=True)
        return Mount(b"tmpfs", b"/dev", b"tmpfs", QUIET, data, strict=True)

    def steps(self) -> Iterator[Step]:
        """The mounts in their order, devices, parameters, and last what is hidden or locked."""
        safe = set[str]()
        for index, mount in enumerate(self.config.mounts):
            yield from self._mount(mount, f"mounts[{index}]", safe)
        if not any(mount.destination == "/dev" and self._is_bind(mount) for mount in self.config.mounts):
            yield from self._devices()
        yield from self._parameters()
        yield from self._hidden()

    def _is_bind(self, mount: MountPoint) -> bool:
        return mount.type == "bind" or bool({"bind", "rbind"} & set(mount.options))

    def _makes_null(self) -> bool:
        """Whether /dev/null is a fresh node in a fresh file system, and what it should be."""
        mounts, devices = self.config.mounts, self.config.linux.devices
        others = (*(mount.destination for mount in mounts), *(device.path for device in devices))
        return self._has_own_dev() and not self._in_user and "/dev/null" not in map(posixpath.normpath, others)

    def _has_own_dev(self) -> bool:
        return any(mount.destination == "/dev" and mount.type == "tmpfs" for mount in self.config.mounts)

    def _mount(self, mount: MountPoint, where: str, safe: set[str]) -> Iterator[Step]:
        """`safe` are the mount points that no image can have a say in, as what is mounted there is the kernel's own."""
        target = posixpath.normpath(mount.destination)
        wanted = mountwords.read(mount.options, bind=self._is_bind(mount), where=where)
        if wanted.bind:
            yield self._bind(mount, wanted, target, where)
        elif mount.type in ("cgroup", "cgroup2"):
            below_kernel = any(target.startswith(f"{point}/") for point in safe)
            yield from self._cgroups(target, wanted.flags, below_kernel)
        else:
            yield from self._fresh(mount, wanted, target, safe)

    def _fresh(self, mount: MountPoint, wanted: Wanted, target: str, safe: set[str]) -> Iterator[Step]:
        kind, data = mount.type or "none", self._data(mount.type, wanted.data)
        source, flags = os.fsencode(mount.source or kind), wanted.flags
        text = os.fsencode(data) if data else None
        parent = posixpath.dirname(target)
        plain = not wanted.propagation and not wanted.copy_up and not any(wanted.attributes)
        if plain and parent in safe:
            if parent == "/dev":
                yield Directory(os.fsencode(target))
            yield Mount(source, os.fsencode(target), kind.encode(), flags, text)
            return
        if plain and target in _STRICT and not self.shared:
            yield Mount(source, os.fsencode(target), kind.encode(), flags, text, strict=True)
            safe.add(target)
            return
        yield Attach(
            source,
            os.fsencode(target),
            kind.encode(),
            flags,
            text,
            strict=target in _STRICT,
            attributes=wanted.attributes,
            propagation=wanted.propagation,
            copy_up=wanted.copy_up,
        )
        if target in _STRICT:
            safe.add(target)

    def _data(self, kind: str | None, data: str) -> str:
        """A group that nobody in the user namespace can be is left out, as podman does with devpts and tty(5)."""
        if kind != "devpts" or not self._in_user:
            return data
        mapped = self.config.linux.gid_mappings
        words = [word for word in data.split(",") if not (word.startswith("gid=") and not _maps(mapped, word[4:]))]
        return ",".join(words)

    def _bind(self, mount: MountPoint, wanted: Wanted, target: str, where: str) -> Attach:
        if not mount.source:
            raise UsageError(f"{where}.source", "a bind mount without a source", "name a path of the host")
        source = posixpath.normpath(posixpath.join(self.bundle, mount.source))
        tree = -1
        mapped = bool(wanted.idmap or mount.uid_mappings or mount.gid_mappings)
        if mapped and not mount.uid_mappings and not self._in_user:
            raise UsageError(f"{where}.options", "idmap without mappings or a user namespace", "give uidMappings")
        if mapped or self._in_user:
            tree = len(self.trees)
            self.trees.append(_tree(source, wanted, mount, mapped))
        return Attach(
            os.fsencode(source).lstrip(b"/") or b".",
            os.fsencode(target),
            None,
            MS_BIND | (MS_REC if wanted.recursive else 0),
            tree=tree,
            attributes=wanted.attributes,
            propagation=wanted.propagation,
        )

    def _cgroups(self, target: str, flags: int, below_kernel: bool) -> Iterator[Step]:
        """`below_kernel`: the place lies in a file system of the kernel's own, in which no image has laid links."""
        place = os.fsencode(target)
        if not self.cgroup_mounts:
            return
        first = Mount if below_kernel else _strictly
        if not self.config.linux.has("cgroup") and self.cgroup_directories:
            yield first(b"tmpfs", place, b"tmpfs", QUIET, b"mode=755")
            yield from self._own_cgroups(target, flags)
        elif not self.config.linux.has("cgroup"):
            # Without a namespace of its own the container sees the host's tree, as it stands on the host.
            read_only = flags & MS_RDONLY
            yield Attach(b"sys/fs/cgroup", place, None, MS_BIND | MS_REC, attributes=(0, 0, read_only, 0))
        elif [name for _, name in self.cgroup_mounts] == [""]:
            yield first(b"cgroup", place, b"cgroup2", flags or _CGROUP_FLAGS)
        else:
            yield first(b"tmpfs", place, b"tmpfs", QUIET, b"mode=755")
            for controllers, name in self.cgroup_mounts:
                inside = os.fsencode(posixpath.join(target, name))
                yield Directory(inside)
                yield Mount(b"cgroup", inside, b"cgroup", flags or _CGROUP_FLAGS, controllers.encode())
            if flags & MS_RDONLY:
                yield Mount(None, place, None, MS_BIND | MS_REMOUNT | MS_RDONLY | QUIET)

    def _own_cgroups(self, target: str, flags: int) -> Iterator[Step]:
        """v1 without a namespace: its own directory stands for each hierarchy, as mountinfo tells who asks."""
        for directory, name in self.cgroup_directories:
            inside = os.fsencode(posixpath.join(target, name))
            yield Directory(inside)
            yield Mount(os.fsencode(directory).lstrip(b"/"), inside, None, MS_BIND)
            yield Mount(None, inside, None, MS_BIND | MS_REMOUNT | (flags or _CGROUP_FLAGS))
        if flags & MS_RDONLY:
            yield Mount(None, os.fsencode(target), None, MS_BIND | MS_REMOUNT | MS_RDONLY | QUIET)

    def _devices(self) -> Iterator[Step]:
        taken = {mount.destination for mount in self.config.mounts}
        if not self._has_own_dev():
            yield Ensure(b"/dev")
        nodes = {
            f"/dev/{name}": Device(type="c", path=f"/dev/{name}", major=major, minor=minor, file_mode=0o666)
            for name, major, minor in _DEFAULT_DEVICES
        }
        nodes |= {device.path: device for device in self.config.linux.devices}
        yield from (self._device(nodes[path]) for path in nodes if path not in taken and path != _PTMX)
        for target, name in _DEVICE_LINKS:
            if f"/dev/{name}" not in taken:
                yield Link(os.fsencode(target), os.fsencode(f"/dev/{name}"))
        if "/proc/kcore" in self.known.files:
            yield Link(b"/proc/kcore", b"/dev/core")

    def _device(self, device: Device) -> Step:
        path = os.fsencode(device.path)
        if self._in_user and device.type != "p":
            # Nobody may make one there; the host's own node is shown.
            return Attach(path[1:], path, None, MS_BIND)
        kind = _TYPES.get(device.type)
        if kind is None:
            raise UsageError(f"device {device.path}", f"type {device.type!r} is not one of c, b, u, p")
        mode = kind | stat.S_IMODE(0o666 if device.file_mode is None else device.file_mode)
        return DeviceNode(path, mode, device.major or 0, device.minor or 0, device.uid, device.gid)

    def _parameters(self) -> Iterator[Step]:
        """Kernel parameters, through the host's /proc: which namespace is meant is a matter of who writes."""
        for name, value in self.config.linux.sysctl.items():
            yield Write(b"proc/sys/" + os.fsencode(sysctl_path(name)), value.encode())

    def _hidden(self) -> Iterator[Step]:
        kernel = {posixpath.normpath(mount.destination) for mount in self.config.mounts if mount.type in _KERNELS}
        empty: list[bytes] = []
        for path in self.config.linux.masked_paths:
            yield from self._masked(path, kernel, empty)
        for path in self.config.linux.readonly_paths:
            if not self._known(path, kernel):
                yield ReadOnly(os.fsencode(path), 0)
            elif path in self.known.files | self.known.directories:
                yield ReadOnly(os.fsencode(path))

    def _known(self, path: str, kernel: Iterable[str]) -> bool:
        return path in self.known.all and f"/{path.split('/')[1]}" in kernel

    def _masked(self, path: str, kernel: Iterable[str], empty: list[bytes]) -> Iterator[Step]:
        """Behind the container's null device where it is one of our making, else behind the host's, read-only.

        The first of the kernel's directories is the empty one that hides all others.
        """
        file = path in self.known.files
        if not self._known(path, kernel) or (file and not self._makes_null()):
            yield Mask(os.fsencode(path))
        elif file:
            yield Mount(b"/dev/null", os.fsencode(path), None, MS_BIND)
        elif path in self.known.directories:
            target = os.fsencode(path)
            if empty:
                yield Mount(empty[0], target, None, MS_BIND)
            else:
                yield Mount(b"tmpfs", target, b"tmpfs", QUIET | MS_RDONLY, b"size=0k")
                empty.append(target)


_KERNELS = ("proc", "sysfs")


def _strictly(source: bytes, target: bytes, filesystem: bytes, flags: int, data: bytes | None = None) -> Attach:
    """The same mount where an image may have laid links, of which none is followed."""
    return Attach(source, target, filesystem, flags, data, strict=True)


def _tree(source: str, wanted: Wanted, mount: MountPoint, mapped: bool) -> Tree:
    own = mount.uid_mappings or mount.gid_mappings
    maps = (map_lines(mount.uid_mappings), map_lines(mount.gid_mappings)) if own else (b"", b"")
    return Tree(
        os.fsencode(source),
        recursive=wanted.recursive,
        mapped=mapped,
        deep=wanted.idmap == "ridmap",
        uid_map=maps[0],
        gid_map=maps[1],
    )


def map_lines(mappings: Sequence[IdMapping]) -> bytes:
    """As /proc/PID/uid_map takes them."""
    return b"".join(b"%d %d %d\n" % (item.container_id, item.host_id, item.size) for item in mappings)


def _maps(mappings: Sequence[IdMapping], number: str) -> bool:
    return number.isdigit() and any(
        item.container_id <= int(number) < item.container_id + item.size for item in mappings
    )

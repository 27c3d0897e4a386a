# ruff: noqa: D102, PTH103, PTH109, PTH116, PTH120
# Step explains describe() and execute() once for all; paths are bytes.
"""Steps that make the child's view of files: mounts and the new root. What goes into it is `furnishing`.

What an image may have laid as a trap is opened first (`targets`), and mounted on by its descriptor.
"""

from __future__ import annotations

import errno
import os
import stat

from runtime.container.copyup import copy_up
from runtime.container.stepping import Bare, Call, Context, Talking, shown
from runtime.container.targets import open_target
from runtime.linux import syscalls
from runtime.linux.syscalls import MS_BIND, MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_REMOUNT
from runtime.record import ordered_record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

QUIET: Final = MS_NOSUID | MS_NODEV | MS_NOEXEC
_PAGE: Final = 4096


@ordered_record
class Mount(Bare):
    """mount(2) where no image can have prepared anything. A missing target is made first, as a `file` or directory.

    `strict` is for a root that nobody else can change meanwhile: the target must be a directory and no link.
    """

    source: bytes | None
    target: bytes
    filesystem: bytes | None = None
    flags: int = 0
    data: bytes | None = None
    file: bool = False
    strict: bool = False

    def describe(self) -> str:
        source, data = (shown(text) if text else "" for text in (self.source, self.data))
        kind = shown(self.filesystem) if self.filesystem else "bind" if self.flags & MS_BIND else "flags"
        return f"mount {kind} {source} at {shown(self.target)} ({self.flags:#x}{' ' if data else ''}{data})"

    def calls(self) -> tuple[Call, ...]:
        mounted = syscalls.bare_mount, (self.source, self.target, self.filesystem, self.flags, self.data)
        return ((syscalls.bare_is_directory, (self.target,)), mounted) if self.strict else (mounted,)

    def execute(self) -> None:
        try:
            if self.strict and not stat.S_ISDIR(os.lstat(self.target).st_mode):
                raise NotADirectoryError(errno.ENOTDIR, "must be a directory of the image", shown(self.target))
            syscalls.mount(self.source, self.target, self.filesystem, self.flags, self.data)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
            _make(self.target, self.file)
            syscalls.mount(self.source, self.target, self.filesystem, self.flags, self.data)


@ordered_record
class Overlay:
    """An overlay of `layers`, topmost first, under the writable one in `directory`, mounted over that one's `upper`."""

    layers: tuple[bytes, ...]
    directory: bytes
    flags: int = 0

    @property
    def root(self) -> bytes:
        return self.directory + b"/upper"

    def describe(self) -> str:
        layers = ":".join(shown(layer) for layer in self.layers)
        return f"mount overlay of {layers} at {shown(self.root)} ({self.flags:#x})"

    def execute(self) -> None:
        options = self.options()
        if options is not None:
            syscalls.mount(b"overlay", self.root, b"overlay", self.flags, options)
            return
        try:
            tree = self.detached()
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            with _ShortNames(self.layers) as names:
                upper, work = _escaped(self.root), _escaped(self.directory + b"/work")
                data = b"redirect_dir=off,lowerdir=%b,upperdir=%b,workdir=%b" % (names, upper, work)
                syscalls.mount(b"overlay", self.root, b"overlay", self.flags, data)
            return
        syscalls.move_mount(tree, syscalls.AT_FDCWD, self.root)
        os.close(tree)
        if self.flags:
            syscalls.mount(None, self.root, None, MS_BIND | MS_REMOUNT | self.flags, None)

    def options(self) -> bytes | None:
        """What mount(2) is told of it; None when that is more than it takes, a page."""
        directory = _escaped(self.directory)
        data = b"redirect_dir=off,lowerdir=%b,upperdir=%b/upper,workdir=%b/work" % (
            _lower(self.layers),
            directory,
            directory,
        )
        return data if len(data) < _PAGE else None

    def detached(self) -> int:
        """The overlay as a descriptor of a detached mount: for any number of layers, and for another namespace."""
        try:
            return self._configured([(b"lowerdir+", layer) for layer in self.layers])
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            # Before Linux 6.5 there is no word for one layer, and all of them may take 255 bytes.
            with _ShortNames(self.layers) as names:
                return self._configured([(b"lowerdir", names)])

    def _configured(self, layers: list[tuple[bytes, bytes]]) -> int:
        context = syscalls.fsopen(b"overlay")
        try:
            words = [(b"source", b"overlay"), (b"redirect_dir", b"off"), *layers]
            words += [(b"upperdir", self.root), (b"workdir", self.directory + b"/work")]
            for key, value in words:
                syscalls.fsconfig(context, syscalls.FSCONFIG_SET_STRING, key, value)
            syscalls.fsconfig(context, syscalls.FSCONFIG_CMD_CREATE)
            return syscalls.fsmount(context, syscalls.MOUNT_ATTR_NODEV if self.flags & MS_NODEV else 0)
        finally:
            os.close(context)


class _ShortNames:
    """`lowerdir` in few bytes: descriptors' numbers, the working directory being where those are names meanwhile."""

    def __init__(self, layers: tuple[bytes, ...]) -> None:
        self._layers = layers
        self._opened: list[int] = []

    def __enter__(self) -> bytes:
        self._opened.append(os.open(b".", os.O_PATH | os.O_DIRECTORY))
        try:
            for layer in self._layers:
                self._opened.append(os.open(layer, os.O_PATH | os.O_DIRECTORY))
            os.chdir(b"/proc/self/fd")
        except BaseException:
            self.__exit__()
            raise
        return b":".join([b"%d" % descriptor for descriptor in self._opened[1:]])

    def __exit__(self, *_: object) -> None:
        os.fchdir(self._opened[0])
        for descriptor in self._opened:
            os.close(descriptor)


@ordered_record
class Attach(Talking):
    """A mount as a configuration asks for it, wherever its target leads inside the root.

    The source of a bind is relative, on the host, or the parent's detached mount number `tree`. `strict` wants a real
    directory where others lead a link on: /proc, say, must not be elsewhere. `attributes` are MOUNT_ATTR_… to set and
    to clear on the mount, and on all below it; `propagation` is MS_SHARED and the like. With `copy_up` a tmpfs gets
    what the image has there.
    """

    source: bytes | None
    target: bytes
    filesystem: bytes | None = None
    flags: int = 0
    data: bytes | None = None
    strict: bool = False
    tree: int = -1
    attributes: tuple[int, int, int, int] = (0, 0, 0, 0)
    propagation: tuple[int, ...] = ()
    copy_up: bool = False

    def describe(self) -> str:
        kind = shown(self.filesystem) if self.filesystem else "bind"
        source = f"tree {self.tree}" if self.tree >= 0 else shown(self.source or b"")
        words = [f"{self.flags:#x}", shown(self.data or b"")]
        if any(self.attributes):
            words.append("set {:#x} clear {:#x} below set {:#x} clear {:#x}".format(*self.attributes))
        words += [f"propagation {flag:#x}" for flag in self.propagation]
        return f"mount {kind} {source} at {shown(self.target)} ({' '.join(filter(None, words))})"

    def talk(self, context: Context) -> None:
        target = open_target(self.target, self._is_directory(context), strict=self.strict)
        try:
            if self.tree >= 0:
                syscalls.move_mount(context.trees[self.tree], target)
            else:
                syscalls.mount(self.source, by_descriptor(target), self.filesystem, self.flags, self.data)
            if any(self.attributes) or self.propagation or self.copy_up:
                self._adjust(target)
        finally:
            os.close(target)

    def _is_directory(self, context: Context) -> bool:
        if self.filesystem is not None:
            return True
        found = os.fstat(context.trees[self.tree]) if self.tree >= 0 else os.stat(self.source or b"")
        return stat.S_ISDIR(found.st_mode)

    def _adjust(self, below: int) -> None:
        mounted = open_target(self.target, directory=True, strict=self.strict)
        try:
            first, cleared, deep, deep_cleared = self.attributes
            if deep or deep_cleared:
                syscalls.mount_setattr(mounted, syscalls.AT_RECURSIVE, deep, deep_cleared)
            if first or cleared:
                syscalls.mount_setattr(mounted, 0, first, cleared)
            for flag in self.propagation:
                syscalls.mount(None, by_descriptor(mounted), None, flag, None)
            if self.copy_up:
                copy_up(below, mounted)
        finally:
            os.close(mounted)


@ordered_record
class Cover(Bare):
    """Bind the file `source` over the image's `target`, in a root that nobody else can change meanwhile.

    `above` are the directories of `target`, outermost first: when a link is among them, or anything is missing, the
    place is found as `Attach` does.
    """

    source: bytes
    target: bytes
    above: tuple[bytes, ...]

    def describe(self) -> str:
        return f"mount bind {shown(self.source)} over {shown(self.target)}"

    def calls(self) -> tuple[Call, ...]:
        return (
            (syscalls.bare_is_place, (self.target,)),
            (syscalls.bare_mount, (self.source, self.target, None, MS_BIND, None)),
        )

    def execute(self) -> None:
        try:
            plain = all([stat.S_ISDIR(os.lstat(path).st_mode) for path in self.above])  # noqa: C419 - no further frame
            plain = plain and not stat.S_ISLNK(os.lstat(self.target).st_mode)
        except FileNotFoundError:
            plain = False
        if plain:
            syscalls.mount(self.source, self.target, None, MS_BIND, None)
            return
        target = open_target(self.target, directory=False)
        syscalls.mount(self.source, by_descriptor(target), None, MS_BIND, None)
        os.close(target)


@ordered_record
class AttachRoot(Talking):
    """Mount the parent's detached mount number `tree` at the host's `path`, to be the root."""

    tree: int
    path: bytes

    def describe(self) -> str:
        return f"mount tree {self.tree} at {shown(self.path)}"

    def talk(self, context: Context) -> None:
        syscalls.move_mount(context.trees[self.tree], syscalls.AT_FDCWD, self.path)


@ordered_record
class PrivateParent:
    """Take the mount that holds the host's `path` out of its peer group: pivot_root wants that."""

    path: bytes

    def describe(self) -> str:
        return f"make the mount that holds {shown(self.path)} private"

    def execute(self) -> None:
        path = os.path.realpath(self.path)
        while not os.path.ismount(path):
            path = os.path.dirname(path)
        syscalls.mount(None, path, None, syscalls.MS_PRIVATE, None)


@ordered_record
class PivotRoot(Bare):
    """Make the mount at `path` the root; the host's tree stays below it in the stack, as working directory."""

    path: bytes

    def describe(self) -> str:
        return f"pivot_root to {shown(self.path)}"

    def calls(self) -> tuple[Call, ...]:
        # Above the root is the root, and what is mounted over it: the host's tree.
        return (
            (syscalls.bare_chdir, (self.path,)),
            (syscalls.bare_pivot_root, (b".", b".")),
            (syscalls.bare_chdir, (b"..",)),
        )

    def execute(self) -> None:
        host = os.open(b"/", os.O_PATH | os.O_DIRECTORY)
        os.chdir(self.path)
        syscalls.pivot_root(b".", b".")
        os.fchdir(host)
        os.close(host)


@ordered_record
class LeaveHost(Bare):
    """Unmount the host's tree, the working directory since `PivotRoot`, and go to `directory`, made if missing."""

    directory: bytes = b"/"

    def describe(self) -> str:
        return f"unmount the host's tree, enter {shown(self.directory)}"

    def calls(self) -> tuple[Call, ...]:
        if self.directory != b"/":
            return ()
        return ((syscalls.bare_umount2, (b".", syscalls.MNT_DETACH)), (syscalls.bare_chdir, (b"/",)))

    def execute(self) -> None:
        syscalls.umount2(b".", syscalls.MNT_DETACH)
        enter(self.directory)


@ordered_record
class Enter:
    """Go to `directory`, which must be there."""

    directory: bytes

    def describe(self) -> str:
        return f"enter {shown(self.directory)}"

    def execute(self) -> None:
        enter(self.directory, make=False)


def enter(directory: bytes, *, make: bool = True) -> None:
    """Go to `directory`, made if it is missing and `make`. Raises OSError, also when it leads out of the root."""
    try:
        os.chdir(directory)
    except FileNotFoundError:
        if not make:
            raise
        os.close(open_target(directory, directory=True))
        os.chdir(directory)
    if directory != b"/":
        # getcwd(3) cannot name a directory of another root, such as one reached through an open descriptor.
        os.getcwdb()


def by_descriptor(number: int) -> bytes:
    """The path of an open descriptor, through the host's /proc: the working directory is its root."""
    return b"proc/self/fd/%d" % number


def _make(path: bytes, file: bool) -> None:
    """Make a mount point that is missing."""
    if file:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o644))
    else:
        os.makedirs(path, exist_ok=True)


def _lower(layers: tuple[bytes, ...]) -> bytes:
    return b":".join([_escaped(layer) for layer in layers])


def _escaped(path: bytes) -> bytes:
    """A path inside overlay's options, where colon and comma separate and the backslash escapes."""
    return path.replace(b"\\", b"\\\\").replace(b":", b"\\:").replace(b",", b"\\,")

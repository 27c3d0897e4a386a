"""The way down a directory tree that somebody hostile describes, by descriptors that never leave its root.

A symbolic link on the way is read and followed by hand within the root, as `openat2` does under
RESOLVE_IN_ROOT; `..` above the root is the root. Nobody else may change the tree meanwhile.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from runtime.images.stream import RefusedError

OPAQUE = "trusted.overlay.opaque"
DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LINKS = 40  # as many as the kernel follows
_DEPTH = 200  # each level holds a descriptor

Parts = tuple[str, ...]


def is_whiteout(name: str, directory: int) -> bool:
    """Whether the entry `name` of a directory is an overlay's sign that something below is gone."""
    info = os.stat(name, dir_fd=directory, follow_symlinks=False)
    return stat.S_ISCHR(info.st_mode) and info.st_rdev == 0


def hide_below(name: str, directory: int) -> None:
    """Let the directory `name` show nothing of the layers below."""
    fd = os.open(name, DIRECTORY_FLAGS, dir_fd=directory)
    try:
        os.setxattr(fd, OPAQUE, b"y")
    finally:
        os.close(fd)


class Descent:
    """Descriptors from the root to the directory that was reached last. `made` are those it had to make."""

    def __init__(self, root: Path) -> None:
        self._names: list[str] = []
        self._fds = [os.open(root, DIRECTORY_FLAGS)]
        self._asked: Parts = ()
        self._plain = True
        self.made: set[Parts] = set()

    def close(self) -> None:
        """Let go of everything."""
        for fd in self._fds:
            os.close(fd)

    @property
    def root(self) -> int:
        """The root's descriptor."""
        return self._fds[0]

    @property
    def names(self) -> Parts:
        """Where the last `reach` came to, links resolved."""
        return tuple(self._names)

    def reach(self, parts: Parts, *, make: bool = True) -> int:
        """A descriptor of the directory `parts`, valid until the next call; made where it is missing, if `make`.

        Raises RefusedError when the way leads through something that is no directory; FileNotFoundError.
        """
        if parts == self._asked and self._plain:
            return self._fds[-1]
        self._plain = False
        common = 0
        for ours, theirs in zip(self._names, parts, strict=False):
            if ours != theirs:
                break
            common += 1
        self._back(common)
        todo = list(reversed(parts[common:]))
        links, self._asked = 0, parts
        while todo:
            part = todo.pop()
            if part == "..":
                self._back(max(0, len(self._names) - 1))
                continue
            target = self._step(part, make)
            if target is None:
                continue
            links += 1
            if links > _LINKS:
                raise RefusedError(f"leads through {part!r}, a link that leads to itself")
            if target.startswith("/"):
                self._back(0)
            todo += [word for word in reversed(target.split("/")) if word not in ("", ".")]
            if len(todo) > _DEPTH:
                raise RefusedError("lies too deep")
        self._plain = not links  # a later member may change a link: never take that way from memory
        return self._fds[-1]

    def _back(self, depth: int) -> None:
        while len(self._names) > depth:
            self._names.pop()
            os.close(self._fds.pop())

    def _step(self, part: str, make: bool) -> str | None:
        """Go one down. Returns a link's target instead when there is a link."""
        here = self._fds[-1]
        if len(self._fds) > _DEPTH:
            raise RefusedError("lies too deep")
        try:
            fd = os.open(part, DIRECTORY_FLAGS, dir_fd=here)
        except FileNotFoundError:
            if not make:
                raise
            os.mkdir(part, 0o755, dir_fd=here)
            fd = os.open(part, DIRECTORY_FLAGS, dir_fd=here)
            os.fchmod(fd, 0o755)  # whatever the umask
            self.made.add((*self._names, part))
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
            try:
                return os.readlink(part, dir_fd=here)
            except OSError:
                if not make or not is_whiteout(part, here):
                    raise RefusedError(f"leads through {part!r}, which is no directory") from error
            # What stood there below is hidden; what the layer puts there is its own, and says nothing of below.
            os.unlink(part, dir_fd=here)
            os.mkdir(part, 0o755, dir_fd=here)
            fd = os.open(part, DIRECTORY_FLAGS, dir_fd=here)
            os.fchmod(fd, 0o755)
            os.setxattr(fd, OPAQUE, b"y")
        self._names.append(part)
        self._fds.append(fd)
        return None

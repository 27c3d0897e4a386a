"""A directory tree packed as an OCI layer archive, whole or as its difference from the tree below it.

Deterministic: names sorted, owners by number, times clamped, no compression (so that a layer's digest is
its diff id, and building does not wait for a compressor; a registry's side may compress on the way out).
Not for reading archives (`layers.py`). Format: OCI image-spec 1.1, layer.md; PAX for what ustar cannot say.
"""

from __future__ import annotations

import fnmatch
import os
import stat
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from runtime.errors import TareError
from runtime.images.descent import OPAQUE
from runtime.images.layers import WHITEOUT, WHITEOUT_OPAQUE, XATTR, xattrs
from runtime.images.sparse import with_holes

_CHUNK_BYTES = 1 << 20
_REDIRECT = "trusted.overlay.redirect"


def pack(
    tree: Path,
    archive: BinaryIO,
    *,
    epoch_s: int,
    below: Path | None = None,
    exclude: Sequence[str] = (),
    upper: bool = False,
) -> int:
    """Write `tree` to `archive` as an uncompressed layer; with `below`, only what differs from that tree.

    `upper` says that `tree` is an overlay's upper directory: what it hides of the layers below, the layer will hide.

    `exclude` holds shell patterns of paths relative to the root, left out on both sides. Times later
    than `epoch_s` are written as `epoch_s`. Returns the number of members.
    """
    with tarfile.open(fileobj=archive, mode="w|", format=tarfile.PAX_FORMAT, bufsize=_CHUNK_BYTES) as tar:
        packer = _Packer(tree, tar, epoch_s, exclude, upper)
        packer.directory("", below, changed=below is None)
        return packer.members


class _Packer:
    def __init__(
        self, tree: Path, tar: tarfile.TarFile, epoch_s: int, exclude: Sequence[str], upper: bool = False
    ) -> None:
        self.tree, self.tar, self.epoch_s, self.exclude, self.upper = tree, tar, epoch_s, exclude, upper
        self.members = 0
        self._parents: list[tuple[str, os.stat_result]] = []  # directories on the way down, not yet written
        self._links: dict[tuple[int, int], str] = {}

    def directory(self, path: str, below: Path | None, changed: bool) -> None:
        """Write what changed in directory `path` against `below`, the same directory of the lower tree, if it is one.

        The directory itself goes first, but only if anything did: an overlay shows the upper directory's
        owner and mode, so an unchanged parent must be written too.
        """
        self._parents.append((path, (self.tree / path).lstat()))
        if changed:
            self._write_parents()
        if self.upper and _attribute(self.tree / path, _REDIRECT) is not None:
            why = f"/{path} stands for a renamed directory of a layer below"
            raise TareError(f"layer of {self.tree}", why, "mount the overlay with redirect_dir=off")
        if self.upper and _attribute(self.tree / path, OPAQUE) == b"y":
            self._add(f"{path}{WHITEOUT_OPAQUE}", None)
        upper = _names(self.tree / path)
        for name in upper:
            self._entry(f"{path}{name}", below / name if below is not None else None)
        for name in sorted(set(_names(below)) - set(upper)) if below is not None else ():
            if not self._excluded(f"{path}{name}"):
                self._add(f"{path}{WHITEOUT}{name}", None)
        if self._parents and self._parents[-1][0] == path:
            self._parents.pop()

    def _excluded(self, path: str) -> bool:
        return any(fnmatch.fnmatchcase(path, pattern) for pattern in self.exclude)

    def _entry(self, path: str, below: Path | None) -> None:
        info = (self.tree / path).lstat()
        if self._excluded(path) or stat.S_ISSOCK(info.st_mode):
            return
        if self.upper and path.rpartition("/")[2].startswith(WHITEOUT):
            raise TareError(f"layer of {self.tree}", f"the name of /{path} would hide a file", "rename it")
        if self.upper and stat.S_ISCHR(info.st_mode) and info.st_rdev == 0:
            parent, _, name = path.rpartition("/")
            self._add(f"{parent}/{WHITEOUT}{name}" if parent else f"{WHITEOUT}{name}", None)
            return
        changed = below is None or not _same(self.tree / path, below, self.epoch_s)
        if stat.S_ISDIR(info.st_mode):
            self.directory(f"{path}/", below if below is not None and _is_directory(below) else None, changed)
        elif changed:
            self._add(path, info)

    def _write_parents(self) -> None:
        parents, self._parents = self._parents, []
        for path, info in parents:
            self._add(path or "./", info)

    def _add(self, path: str, info: os.stat_result | None) -> None:
        self._write_parents()
        member = tarfile.TarInfo(path)
        self.members += 1
        if info is None:  # a whiteout: an empty file
            member.mtime = self.epoch_s
            self.tar.addfile(member)
            return
        member.mode, member.uid, member.gid = stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid
        member.mtime = min(int(info.st_mtime), self.epoch_s)
        source = self.tree / path
        member.pax_headers = {XATTR + key: value.decode("utf-8", "surrogateescape") for key, value in xattrs(source)}
        identity = (info.st_dev, info.st_ino)
        if not stat.S_ISDIR(info.st_mode) and identity in self._links:
            member.type, member.linkname = tarfile.LNKTYPE, self._links[identity]
        elif stat.S_ISREG(info.st_mode):
            member.size = info.st_size
        else:
            _describe_special(member, source, info)
        if not stat.S_ISDIR(info.st_mode) and info.st_nlink > 1:
            self._links.setdefault(identity, path)
        if member.isreg():
            with source.open("rb") as content:
                # Only an upper directory's: where a build's files have holes is its disk's affair, not its digest's.
                self.tar.addfile(member, (with_holes(member, content.fileno()) if self.upper else None) or content)
        else:
            self.tar.addfile(member)


def _describe_special(member: tarfile.TarInfo, source: Path, info: os.stat_result) -> None:
    kinds = {
        stat.S_IFDIR: tarfile.DIRTYPE,
        stat.S_IFLNK: tarfile.SYMTYPE,
        stat.S_IFIFO: tarfile.FIFOTYPE,
        stat.S_IFCHR: tarfile.CHRTYPE,
        stat.S_IFBLK: tarfile.BLKTYPE,
    }
    member.type = kinds[stat.S_IFMT(info.st_mode)]
    if member.type == tarfile.SYMTYPE:
        member.linkname = os.readlink(source)  # noqa: PTH115 - the bytes as they are, not a Path made of them
    elif member.isdev() and member.type != tarfile.FIFOTYPE:
        member.devmajor, member.devminor = os.major(info.st_rdev), os.minor(info.st_rdev)


def _attribute(directory: Path, name: str) -> bytes | None:
    try:
        return os.getxattr(directory, name)
    except OSError:
        return None


def _names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def _is_directory(path: Path) -> bool:
    """Whether `path` itself is a directory: what a link of the lower tree leads to is none of its own."""
    return path.is_dir() and not path.is_symlink()


def _same(upper: Path, lower: Path, epoch_s: int) -> bool:
    """Whether two entries are the same to a reader: kind, owner, mode, time as packed, attributes, content."""
    one = upper.lstat()
    try:
        two = lower.lstat()
    except FileNotFoundError:
        return False
    if (one.st_mode, one.st_uid, one.st_gid, one.st_rdev) != (two.st_mode, two.st_uid, two.st_gid, two.st_rdev):
        return False
    if list(xattrs(upper)) != list(xattrs(lower)):
        return False
    if stat.S_ISLNK(one.st_mode):
        return os.readlink(upper) == os.readlink(lower)  # noqa: PTH115 - compared as written
    if min(int(one.st_mtime), epoch_s) != min(int(two.st_mtime), epoch_s):
        return False
    return not stat.S_ISREG(one.st_mode) or (one.st_size == two.st_size and upper.read_bytes() == lower.read_bytes())

"""Entries to copy from and to tar streams: the other ends of `copying` that `tare cp` has with a `-`.

Not for image layers, whose archives speak of whiteouts (`images.layers`, `images.pack`).
"""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Iterator
from contextlib import nullcontext
from decimal import Decimal
from typing import BinaryIO, cast

from runtime.errors import TareError
from runtime.files.copying import KEPT, Entry
from runtime.images.layers import XATTR


class TarSink:
    """Entries become the members of an archive written to `out`, which need not be able to seek."""

    def __init__(self, out: BinaryIO) -> None:
        self._tar = tarfile.open(  # noqa: SIM115 - closed by finish()
            fileobj=cast("BinaryIO", _Outlet(out)), mode="w|", format=tarfile.PAX_FORMAT, errors="surrogateescape"
        )

    def add(self, entry: Entry) -> None:
        """Write the entry. Raises TareError when it became shorter meanwhile."""
        member = tarfile.TarInfo(entry.path or "./")
        member.mode, member.uid, member.gid = stat.S_IMODE(entry.mode), entry.uid, entry.gid
        member.mtime = entry.mtime_ns // 10**9
        pax = {XATTR + key: value.decode("utf-8", "surrogateescape") for key, value in entry.attributes}
        if entry.mtime_ns % 10**9:
            pax["mtime"] = f"{entry.mtime_ns // 10**9}.{entry.mtime_ns % 10**9:09}"
        member.pax_headers = pax
        member.type = tarfile.LNKTYPE if entry.hard else _TYPES[stat.S_IFMT(entry.mode)]
        member.linkname = entry.link
        member.devmajor, member.devminor = os.major(entry.device), os.minor(entry.device)
        if member.type != tarfile.REGTYPE:
            self._tar.addfile(member)
            return
        member.size = entry.size
        with (
            os.fdopen(os.dup(entry.descriptor), "rb") if entry.stream is None else nullcontext(entry.stream) as content
        ):
            try:
                self._tar.addfile(member, content)
            except OSError as error:
                if error.errno is not None:
                    raise
                raise TareError(f"copy of {entry.path}", "it became shorter while it was read", "try again") from error

    def finish(self) -> None:
        """End the archive."""
        self._tar.close()


class _Outlet:
    """Where an archive goes: once nobody takes it any more, its end, too, goes nowhere, and nobody complains twice."""

    def __init__(self, out: BinaryIO) -> None:
        self._out: BinaryIO | None = out

    def write(self, data: bytes) -> int:
        if self._out is None:
            return len(data)
        try:
            return self._out.write(data)
        except BrokenPipeError:
            self._out = None
            raise


_TYPES = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
}
_KINDS = {kind: mode for mode, kind in _TYPES.items()} | {
    tarfile.AREGTYPE: stat.S_IFREG,
    tarfile.CONTTYPE: stat.S_IFREG,
}


def tar_entries(stream: BinaryIO) -> Iterator[Entry]:
    """The members of an archive, plain or compressed by gzip, bzip2 or xz.

    Raises TareError for one that is damaged or names something outside itself.
    """
    try:
        with tarfile.open(fileobj=stream, mode="r|*", errors="surrogateescape") as tar:
            for member in tar:
                yield _entry(tar, member)
    except (tarfile.TarError, EOFError, ValueError, ArithmeticError) as error:
        raise TareError("archive", f"not a whole tar: {error}", "send a tar archive") from error


def _entry(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Entry:
    kind = stat.S_IFREG if member.issparse() else _KINDS.get(member.type)
    hard = member.islnk()
    if kind is None and not hard:
        raise TareError("archive", f"{member.name!r} is of an unknown kind", "send a tar archive of files")
    return Entry(
        path=inside(member.name),
        mode=(kind or stat.S_IFREG) | stat.S_IMODE(member.mode),
        uid=member.uid,
        gid=member.gid,
        size=member.size,
        mtime_ns=int(Decimal(member.pax_headers.get("mtime", str(member.mtime))) * 10**9),
        device=os.makedev(member.devmajor, member.devminor) if member.isdev() else 0,
        link=inside(member.linkname) if hard else member.linkname,
        hard=hard,
        attributes=tuple(
            (key.removeprefix(XATTR), value.encode("utf-8", "surrogateescape"))
            for key, value in member.pax_headers.items()
            if key.startswith(XATTR) and key.removeprefix(XATTR).startswith(KEPT)
        ),
        stream=cast("BinaryIO", tar.extractfile(member)) if kind == stat.S_IFREG else None,
    )


def inside(name: str) -> str:
    """`name` as the path of an entry. Raises TareError when it leads outside what is copied."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise TareError("archive", f"{name!r} leads outside", "do not use this archive")
    return "/".join(parts)

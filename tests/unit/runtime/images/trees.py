"""Small directory trees as data: made, read back, and turned into archives, honest or hostile."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

Node = bytes | str | dict[str, "Node"]  # a file's content, a symbolic link's target, a directory's entries


def grow(tree: Path, nodes: Mapping[str, Node], mtime_s: int = 1_000_000_000) -> Path:
    """Make directory `tree` hold exactly `nodes`, all with one modification time."""
    tree.mkdir(parents=True)
    for name, node in nodes.items():
        path = tree / name
        if isinstance(node, dict):
            grow(path, node, mtime_s)
        elif isinstance(node, bytes):
            path.write_bytes(node)
            path.chmod(0o644)
            os.utime(path, (mtime_s, mtime_s))
        else:
            path.symlink_to(node)
    tree.chmod(0o755)
    os.utime(tree, (mtime_s, mtime_s))
    return tree


def read(tree: Path) -> dict[str, Node]:
    """What `grow` would have been given."""
    nodes: dict[str, Node] = {}
    for path in tree.iterdir():
        if path.is_symlink():
            nodes[path.name] = str(path.readlink())
        else:
            nodes[path.name] = read(path) if path.is_dir() else path.read_bytes()
    return nodes


def census(tree: Path) -> dict[str, tuple[object, ...]]:
    """Everything observable about a tree, by path: for proving that nothing in it changed."""
    found: dict[str, tuple[object, ...]] = {}
    for path in (tree, *sorted(tree.rglob("*"))):
        info = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(info.st_mode) else b""
        found[str(path)] = (info.st_mode, info.st_uid, info.st_gid, info.st_nlink, info.st_mtime_ns, content)
    return found


class Member(tarfile.TarInfo):
    """A tar member with its content."""

    content = b""


def member(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, **fields: object) -> Member:
    """A tar member owned by whoever runs the test."""
    info = Member(name)
    info.type, info.uid, info.gid = kind, os.getuid(), os.getgid()
    info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    if kind == tarfile.REGTYPE:
        info.size, info.content = len(content), content
    for key, value in fields.items():
        setattr(info, key, value)
    return info


def archive(members: Iterable[Member]) -> io.BytesIO:
    """The members as an uncompressed archive, at its beginning."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT, errors="surrogateescape") as tar:
        for info in members:
            tar.addfile(info, io.BytesIO(info.content) if info.isreg() else None)
    stream.seek(0)
    return stream

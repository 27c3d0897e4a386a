"""`-v`, `--mount` and `--tmpfs` as Docker writes them, read into values, and those made mounts of the configuration.

`parse_*` are pure and refuse what they do not know by its name; `Resolver` looks at the host and makes volumes. Not for
`volumes` as such.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from posixpath import normpath

from runtime.container.config import MountPoint
from runtime.container.volumes import Volume, VolumeStore, check_name
from runtime.errors import UsageError
from runtime.record import record

_PROPAGATIONS = ("private", "rprivate", "shared", "rshared", "slave", "rslave")
_SIZE = re.compile(r"(\d+)([kmgt]?)b?", re.IGNORECASE)
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_TMPFS_FLAGS = (
    *("rw", "ro", "exec", "noexec", "suid", "nosuid", "dev", "nodev", "sync", "async"),
    *("atime", "noatime", "diratime", "nodiratime", "relatime", "norelatime", "strictatime", "nostrictatime"),
)
_TMPFS_VALUES = ("size", "mode", "uid", "gid", "nr_inodes", "nr_blocks")
_TRUE = ("", "true", "1")


_ALIASES = {"src": "source", "dst": "target", "destination": "target", "ro": "readonly"}
Refuse = Callable[[str], UsageError]


class Source(StrEnum):
    """What is mounted."""

    BIND = "bind"
    VOLUME = "volume"
    TMPFS = "tmpfs"


_FIELDS = {
    Source.BIND: {"source", "target", "readonly", "bind-propagation", "bind-nonrecursive"},
    Source.VOLUME: {"source", "target", "readonly", "volume-nocopy"},
    Source.TMPFS: {"target", "readonly", "tmpfs-size", "tmpfs-mode"},
}


@record
class MountRequest:
    """One wish. `source` is a host path, a volume's name, or "" (a tmpfs; a volume without a name).

    `make_source` makes a missing host directory, as `-v` does and `--mount` does not. `options` are a tmpfs's words.
    """

    kind: Source
    target: str
    source: str = ""
    read_only: bool = False
    copy: bool = True
    make_source: bool = False
    recursive: bool = True
    propagation: str = ""
    options: tuple[str, ...] = ()


@record
class Resolved:
    """A wish come true: the configuration's mount, and the volume it shows, which may want the image's content."""

    mount: MountPoint
    volume: Volume | None = None
    copy: bool = False


def parse_volume(text: str) -> MountRequest:
    """`-v [SOURCE:]TARGET[:OPTIONS]`. Raises UsageError that says which part is wrong."""

    def refuse(why: str) -> UsageError:
        return UsageError(f"volume {text!r}", why, "use -v [SOURCE:]/TARGET[:ro]")

    parts = text.split(":")
    if len(parts) > 3 or not all(parts):
        raise refuse("not SOURCE:TARGET:OPTIONS")
    if len(parts) == 1:
        return MountRequest(kind=Source.VOLUME, target=_target(parts[0], refuse))
    source, target = parts[0], _target(parts[1], refuse)
    host = source.startswith(("/", "."))
    if not host:
        check_name(source)
    read_only, copy, propagation = False, True, ""
    for word in parts[2].split(",") if len(parts) == 3 else ():
        if word in ("ro", "rw"):
            read_only = word == "ro"
        elif word == "nocopy" and not host:
            copy = False
        elif word in _PROPAGATIONS and host:
            propagation = word
        elif word not in ("z", "Z"):  # labels of SELinux: Docker, too, passes over them where there is none
            raise refuse(f"option {word!r} is not known" + (" for a host path" if host else " for a volume"))
    return MountRequest(
        kind=Source.BIND if host else Source.VOLUME,
        source=source,
        target=target,
        read_only=read_only,
        copy=copy,
        propagation=propagation,
        make_source=host,
    )


def parse_tmpfs(text: str) -> MountRequest:
    """`--tmpfs TARGET[:OPTIONS]`, the options being mount(8)'s. Raises UsageError."""

    def refuse(why: str) -> UsageError:
        return UsageError(f"tmpfs {text!r}", why, "use --tmpfs /TARGET[:size=64m,mode=1777]")

    target, _, rest = text.partition(":")
    words = tuple(rest.split(",")) if rest else ()
    for word in words:
        key, equals, value = word.partition("=")
        if word not in _TMPFS_FLAGS and not (equals and value and key in _TMPFS_VALUES):
            raise refuse(f"option {word!r} is not known")
    return MountRequest(
        kind=Source.TMPFS, target=_target(target, refuse), read_only="ro" in words, options=_without_access(words)
    )


def parse_mount(text: str) -> MountRequest:
    """`--mount type=bind|volume|tmpfs,source=…,target=…[,readonly…]`. Raises UsageError."""

    def refuse(why: str) -> UsageError:
        return UsageError(f"mount {text!r}", why, "use --mount type=bind,source=/PATH,target=/PATH[,readonly]")

    words = dict[str, str]()
    try:
        fields = next(csv.reader([text], strict=True), [])
    except csv.Error as error:
        raise refuse(str(error)) from error
    for field in fields:
        key, _, value = field.partition("=")
        key = _ALIASES.get(key.lower(), key.lower())
        if key in words:
            raise refuse(f"{key} is given twice")
        words[key] = value
    kind = words.pop("type", "volume")
    if kind not in list(Source):
        raise refuse(f"type {kind!r} is not one of {', '.join(Source)}")
    unknown = sorted(set(words) - _FIELDS[Source(kind)])
    if unknown:
        raise refuse(f"{unknown[0]!r} is not known for type {kind}")
    target = _target(words.get("target", ""), refuse)
    return _request(Source(kind), target, words, refuse)


def _request(kind: Source, target: str, words: Mapping[str, str], refuse: Refuse) -> MountRequest:
    source, propagation = words.get("source", ""), words.get("bind-propagation", "")
    if kind is Source.BIND and not source.startswith(("/", ".")):
        raise refuse("a bind needs a host path as its source")
    if kind is Source.VOLUME and source:
        check_name(source)
    if propagation and propagation not in _PROPAGATIONS:
        raise refuse(f"bind-propagation {propagation!r} is not one of {', '.join(_PROPAGATIONS)}")
    return MountRequest(
        kind=kind,
        target=target,
        source=source,
        read_only=_flag(words, "readonly", refuse),
        copy=not _flag(words, "volume-nocopy", refuse),
        recursive=not _flag(words, "bind-nonrecursive", refuse),
        propagation=propagation,
        options=tuple(_tmpfs_words(words, refuse)),
    )


def _tmpfs_words(words: Mapping[str, str], refuse: Refuse) -> Iterator[str]:
    if "tmpfs-size" in words:
        match = _SIZE.fullmatch(words["tmpfs-size"])
        if match is None:
            raise refuse(f"tmpfs-size {words['tmpfs-size']!r} is no size")
        yield f"size={int(match[1]) * _UNITS[match[2].lower()]}"
    if "tmpfs-mode" in words:
        if re.fullmatch("[0-7]{1,5}", words["tmpfs-mode"]) is None:
            raise refuse(f"tmpfs-mode {words['tmpfs-mode']!r} is no octal mode")
        yield f"mode={words['tmpfs-mode']}"


class Resolver:
    """Makes wishes mounts. Used while the volumes are held (`VolumeStore.held`), as it may make some.

    `resolve` looks at all of them before it makes anything. Relative host paths begin at `directory`. With `mapped`
    ids volumes show the container's own; host paths never do: they are the host's.
    """

    def __init__(self, volumes: VolumeStore, directory: Path, *, mapped: bool = False) -> None:
        self._volumes = volumes
        self._directory = directory
        self._mapped = mapped

    def resolve(self, requests: Sequence[MountRequest]) -> list[Resolved]:
        """The mounts, in the order of their targets' depth, so that none hides another.

        Raises UsageError for two at one target or a host path that is not there.
        """
        targets = set[str]()
        for request in requests:
            if request.target in targets:
                raise UsageError(f"mount at {request.target}", "asked for twice", "leave one out")
            targets.add(request.target)
            if request.kind is Source.BIND and not request.make_source and not self._host(request).exists():
                raise UsageError(f"mount {request.source}", "no such file or directory", "make it first")
        ordered = sorted(requests, key=lambda request: request.target.count("/"))
        return [self._one(request) for request in ordered]

    def _host(self, request: MountRequest) -> Path:
        return Path(os.path.normpath(self._directory / request.source))

    def _one(self, request: MountRequest) -> Resolved:
        access = "ro" if request.read_only else "rw"
        if request.kind is Source.TMPFS:
            options = ("nosuid", "nodev", "noexec", *request.options, access)
            return Resolved(mount=MountPoint(destination=request.target, type="tmpfs", source="tmpfs", options=options))
        volume = None
        if request.kind is Source.VOLUME:
            volume = self._volumes.ensure(request.source or None)
            source = volume.data
        else:
            source = self._host(request)
            if not source.exists():
                source.mkdir(parents=True, mode=0o755)
        bind = "rbind" if request.recursive else "bind"
        mount = MountPoint(
            destination=request.target,
            type="bind",
            source=str(source),
            options=(bind, request.propagation or "rprivate", access, *(("idmap",) if volume and self._mapped else ())),
        )
        return Resolved(mount=mount, volume=volume, copy=volume is not None and request.copy)


def _target(text: str, refuse: Refuse) -> str:
    if not text.startswith("/") or ".." in text.split("/") or "\0" in text:
        raise refuse(f"target {text!r} is no absolute path")
    clean = "/" + normpath(text).lstrip("/")
    if clean == "/":
        raise refuse("the root itself cannot be mounted over")
    return clean


def _flag(words: Mapping[str, str], name: str, refuse: Refuse) -> bool:
    value = words.get(name, "false").lower()
    if value not in (*_TRUE, "false", "0"):
        raise refuse(f"{name} {value!r} is neither true nor false")
    return value in _TRUE


def _without_access(words: Sequence[str]) -> tuple[str, ...]:
    return tuple(word for word in words if word not in ("ro", "rw"))

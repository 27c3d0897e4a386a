"""What to launch, said once and for every backend: image, command, limits, network, mounts.

Everything here is frozen and validated when it is made, so that a driver never meets a
nonsensical spec; nothing here knows how any backend carries it out.
"""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import PurePosixPath

from runtime.errors import UsageError
from runtime.record import field, ordered_record, record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

_NAME = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_REGISTRY = re.compile(r"[A-Za-z0-9.-]+(?::[0-9]+)?")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([bkmgt]?)(?:i?b)?", re.IGNORECASE)
_CPUSET = re.compile(r"\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*")
_ENV_NAME = re.compile(r"[^=\0]+")
_HOSTNAME = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(?:\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*")


def parse_size(text: str) -> int:
    """Bytes from a size as Docker writes it: `64m`, `1.5g`, `4096`; the suffixes are powers of 1024.

    Raises UsageError when `text` is not such a size.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"size {text!r}", "not a number with an optional unit", "write it like 512m or 2g")
    number, unit = match.groups()
    size = float(number) * 1024 ** "bkmgt".index(unit.lower() or "b")
    if size >= 1 << 63:
        raise UsageError(f"size {text[:20]!r}", "more than the kernel can count", "write it like 512m or 2g")
    return int(size)


def parse_cpuset(text: str) -> frozenset[int]:
    """The CPU numbers in a list as the kernel writes it: `0-2,5` → {0, 1, 2, 5}.

    Raises UsageError for anything else, and for a range that runs backwards.
    """
    if _CPUSET.fullmatch(text) is None:
        raise UsageError(f"cpuset {text!r}", "not a CPU list", "write it like 0-2,5")
    cpus: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        low, high = int(first), int(last or first)
        if high < low or high > 8191:
            raise UsageError(f"cpuset {text!r}", f"{part} is not a range of CPUs", "write it like 0-2,5")
        cpus.update(range(low, high + 1))
    return frozenset(cpus)


def _names_registry(reference: str) -> bool:
    head, slash, _ = reference.partition("/")
    return bool(slash) and ("." in head or ":" in head or head == "localhost")


@ordered_record
class ImageRef:
    """Names an image: `[registry/]name[:tag][@digest]`, by the distribution specification's grammar."""

    name: str
    tag: str = "latest"
    registry: str | None = None
    digest: str | None = None

    def __post_init__(self) -> None:
        def demand(good: object, part: str | None, why: str, do: str) -> None:
            if not good:
                raise UsageError(f"image {str(self)!r}", f"{part!r} is not {why}", do)

        registry, digest = self.registry, self.digest
        demand(registry is None or _REGISTRY.fullmatch(registry), registry, "a registry", "use HOST[:PORT]/NAME[:TAG]")
        demand(
            _NAME.fullmatch(self.name) and len(self.name) <= 255 and (registry or not _names_registry(self.name)),
            self.name,
            "an image name",
            "use lower case: NAME[:TAG]",
        )
        demand(_TAG.fullmatch(self.tag), self.tag, "a tag", "use letters, digits, dots and dashes")
        demand(digest is None or _DIGEST.fullmatch(digest), digest, "a digest", "use NAME@sha256:<64 hex digits>")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Split a reference into its parts. A first component with a dot, a colon or `localhost` is a registry.

        Raises UsageError when a part breaks the grammar.
        """
        rest, at, digest = text.partition("@")
        registry: str | None = None
        if _names_registry(rest):
            registry, _, rest = rest.partition("/")
        name, colon, tag = rest.partition(":")
        return cls(name=name, tag=tag if colon else "latest", registry=registry, digest=digest if at else None)

    def __str__(self) -> str:
        registry = f"{self.registry}/" if self.registry else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{registry}{self.name}:{self.tag}{digest}"


@record
class Limits:
    """What an instance may use; `None` leaves a resource unlimited. The same object goes to every driver.

    `cpus` is CPU time per wall time (1.5 = one and a half CPUs), `cpu_weight` the cgroup v2 weight
    1–10000 (100 is the default), `cpuset` a CPU list. `swap_bytes` is swap alone, on top of memory
    (0 = no swap). I/O limits apply to the device that carries the instance's root file system.
    A VM obeys them as a whole: vCPUs, emulator and I/O threads together.
    """

    cpus: float | None = None
    cpu_weight: int | None = None
    cpuset: str | None = None
    memory_bytes: int | None = None
    memory_low_bytes: int | None = None
    swap_bytes: int | None = None
    pids: int | None = None
    io_read_bps: int | None = None
    io_write_bps: int | None = None
    io_weight: int | None = None

    def __post_init__(self) -> None:
        def demand(good: bool, name: str, why: str) -> None:
            if not good:
                raise UsageError(f"limit {name}={getattr(self, name)!r}", why, "correct it or leave it out")

        demand(self.cpus is None or 0.01 <= self.cpus <= 8192, "cpus", "must lie between 0.01 and 8192 CPUs")
        for name in ("cpu_weight", "io_weight"):
            weight = getattr(self, name)
            demand(weight is None or 1 <= weight <= 10000, name, "must lie between 1 and 10000")
        if self.cpuset is not None:
            parse_cpuset(self.cpuset)
        demand(self.memory_bytes is None or self.memory_bytes >= 4 << 20, "memory_bytes", "must be at least 4 MiB")
        demand(
            self.memory_low_bytes is None or 0 <= self.memory_low_bytes <= (self.memory_bytes or 1 << 62),
            "memory_low_bytes",
            "must not exceed the memory limit",
        )
        demand(self.swap_bytes is None or self.swap_bytes >= 0, "swap_bytes", "must not be negative")
        demand(self.swap_bytes is None or self.memory_bytes is not None, "swap_bytes", "needs a memory limit beside it")
        for name in ("pids", "io_read_bps", "io_write_bps"):
            value = getattr(self, name)
            demand(value is None or value >= 1, name, "must be at least 1")


class NetworkMode(StrEnum):
    """Where an instance's network comes from."""

    NONE = "none"
    HOST = "host"
    BRIDGE = "bridge"
    CONTAINER = "container"


@record
class NetworkSpec:
    """`mode`, the instance to join for CONTAINER, and published ports as (host port, instance port).

    With protocol and address of the host where they are not TCP of every address. Host port 0: any that is free.
    """

    mode: NetworkMode = NetworkMode.NONE
    container: str | None = None
    ports: tuple[tuple[int, int] | tuple[int, int, str, str], ...] = ()

    def __post_init__(self) -> None:
        if (self.mode is NetworkMode.CONTAINER) != (self.container is not None):
            raise UsageError(f"network {self.mode}", "container:ID and only it names a container", "use container:ID")
        if self.ports and self.mode is not NetworkMode.BRIDGE:
            raise UsageError(f"network {self.mode}", "ports are published on a bridge only", "use --network bridge")
        for outside, inside, *_ in self.ports:
            if not (0 <= outside <= 65535 and 1 <= inside <= 65535):
                raise UsageError(f"port {outside}:{inside}", "ports lie between 1 and 65535", "use -p HOST:INSTANCE")


class MountKind(StrEnum):
    """What a mount puts at its target."""

    BIND = "bind"
    VOLUME = "volume"
    TMPFS = "tmpfs"


@record
class Mount:
    """One file system inside the instance: `source` is a host path (BIND), a name (VOLUME) or empty (TMPFS)."""

    kind: MountKind
    target: str
    source: str = ""
    read_only: bool = False

    def __post_init__(self) -> None:
        target = PurePosixPath(self.target)
        if not target.is_absolute() or ".." in target.parts or target == PurePosixPath("/"):
            raise UsageError(f"mount target {self.target!r}", "not an absolute path below /", "use SRC:/DST")
        if (self.kind is MountKind.TMPFS) == bool(self.source):
            raise UsageError(
                f"mount at {self.target}", f"wrong source for {self.kind}", "use -v SRC:DST or --tmpfs DST"
            )


class Ready(StrEnum):
    """When an instance counts as ready: its process exists; its first instruction ran; its service answers."""

    SPAWNED = "spawned"
    USERLAND = "userland"
    SERVICE = "service"


@record
class InstanceSpec:
    """One instance, for any driver.

    An empty `argv` runs the guest agent alone (`runtime/guest/agent.c`): it reports the first user
    instruction, then that its service answers, then executes commands on request. This is what
    every benchmark launches. A non-empty `argv` is the instance's main process instead.
    """

    image: ImageRef
    argv: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    limits: Limits = field(default_factory=Limits)
    network: NetworkSpec = field(default_factory=NetworkSpec)
    mounts: tuple[Mount, ...] = ()
    ready: Ready = Ready.SERVICE
    hostname: str | None = None

    def __post_init__(self) -> None:
        for name, value in self.env:
            if _ENV_NAME.fullmatch(name) is None or "\0" in value:
                raise UsageError(f"environment {name!r}", "not a variable", "use -e NAME=VALUE")
        if any("\0" in word for word in self.argv):
            raise UsageError("command", "holds a NUL byte", "remove it")
        if self.hostname is not None and (_HOSTNAME.fullmatch(self.hostname) is None or len(self.hostname) > 64):
            raise UsageError(f"hostname {self.hostname!r}", "not a host name", "use letters, digits and dashes")
        if self.argv and self.ready is Ready.SERVICE:
            raise UsageError("readiness", "only the guest agent's service can be waited for", "use ready=USERLAND")

"""What the fields of a configuration must mean to one another, after runtime-spec 1.2: a check per class of value.

`decode` has looked at types and bounds, calls `check` on each value as it is made, and says where it stands. Not what
the host can do: that shows when it is done. Names that the specification wants passed over (capabilities) are in
`warnings`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from runtime.cgroups.resources import BlockIo, Cpu, DeviceRule, HugepageLimit, Memory, Resources, WeightDevice
from runtime.container.config import (
    Config,
    Device,
    Hook,
    IdMapping,
    IoPriority,
    Linux,
    MountPoint,
    Namespace,
    Personality,
    Process,
    Rlimit,
    Root,
    Seccomp,
    SyscallArgument,
    SyscallRule,
)
from runtime.linux import capabilities
from runtime.linux.seccomp import ACTIONS, ARCHITECTURES, FLAGS, NUMBERED_ACTIONS, OPERATORS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

NAMESPACES = ("pid", "network", "mount", "ipc", "uts", "user", "cgroup", "time")
_LIMITED = (
    *("AS", "CORE", "CPU", "DATA", "FSIZE", "LOCKS", "MEMLOCK", "MSGQUEUE", "NICE", "NOFILE", "NPROC"),
    *("RSS", "RTPRIO", "RTTIME", "SIGPENDING", "STACK"),
)
RLIMITS = tuple(f"RLIMIT_{name}" for name in _LIMITED)
PROPAGATIONS = ("shared", "slave", "private", "unbindable", "rshared", "rslave", "rprivate", "runbindable")
HOSTNAME_BYTES = 64
_IO_CLASSES = ("IOPRIO_CLASS_RT", "IOPRIO_CLASS_BE", "IOPRIO_CLASS_IDLE")
_CLOCKS = ("monotonic", "boottime")
_DOMAINS = ("LINUX", "LINUX32")
_SEMVER = r"1\.(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?"
_LIST = r"\d{1,9}(-\d{1,9})?(,\d{1,9}(-\d{1,9})?)*"
_PAGE_SIZE = r"[1-9]\d{0,8}[KMG]B"
_CONTROL_FILE = r"[a-z][a-z0-9_]*(\.[A-Za-z0-9_]+)+"
_IPC = ("msgmax", "msgmnb", "msgmni", "sem", "shmall", "shmmax", "shmmni", "shm_rmid_forced")
_IPC_SYSCTLS = frozenset(f"kernel/{name}" for name in _IPC)
_MAPPINGS_MAX = 340  # the kernel's UID_GID_MAP_MAX_EXTENTS
_LAST_ID = 2**32 - 2
_LEAST_WEIGHT = 10
_DOTS_AND_SLASHES = str.maketrans("./", "/.")

Faults = Iterator[tuple[str, str]]
"""Of one value: the field's JSON name ("" the value itself), and what is wrong with it."""


def check(value: Any) -> Faults:
    """What is wrong with one value, what it holds not looked at again."""
    yield from _OF.get(type(value), _nothing)(value)


def warnings(value: Config) -> tuple[str, ...]:
    """What is passed over because the specification says so: capabilities that no kernel of ours has."""
    if value.process is None or value.process.capabilities is None:
        return ()
    sets = value.process.capabilities
    named = {*sets.bounding, *sets.effective, *sets.inheritable, *sets.permitted, *sets.ambient}
    return tuple(f"capability {name!r} is unknown" for name in sorted(named - capabilities.NUMBERS.keys()))


def sysctl_path(name: str) -> str:
    """Where below /proc/sys a kernel parameter lies: `net.ipv4.ip_forward` and `net/ipv4/ip_forward` are the same.

    As in sysctl(8): the separator that comes first separates, the other one stands for it inside a word.
    """
    first = next((letter for letter in name if letter in "./"), "/")
    return name if first == "/" else name.translate(_DOTS_AND_SLASHES)


def _nothing(_: Any) -> Faults:
    yield from ()


def _config(value: Config) -> Faults:
    if not re.fullmatch(_SEMVER, value.oci_version, re.ASCII):
        yield "ociVersion", f"{value.oci_version[:40]!r} is not a version 1.x.y"
    if "" in value.annotations:
        yield "annotations", "a key is empty"
    for name, text in (("hostname", value.hostname), ("domainname", value.domainname)):
        if text is not None and not value.linux.has("uts"):
            yield name, "needs a uts namespace in linux.namespaces"
        if text is not None and len(text.encode("utf-8", "surrogateescape")) > HOSTNAME_BYTES:
            yield name, f"longer than {HOSTNAME_BYTES} bytes"


def _process(value: Process) -> Faults:
    if not value.args or not value.args[0]:
        yield "args[0]" if value.args else "args", "empty"
    yield from _absolute("cwd", value.cwd)
    yield from _environment(value.env)
    yield from _distinct("rlimits", [limit.type for limit in value.rlimits])


def _rlimit(value: Rlimit) -> Faults:
    yield from _one_of("type", value.type, RLIMITS)
    if value.soft > value.hard:
        yield "soft", f"{value.soft} is above hard, {value.hard}"


def _io_priority(value: IoPriority) -> Faults:
    yield from _one_of("class", value.cls, _IO_CLASSES)


def _root(value: Root) -> Faults:
    if not value.path:
        yield "path", "empty"


def _mount(value: MountPoint) -> Faults:
    if not value.destination:
        yield "destination", "empty"
    if value.source is None and (value.type == "bind" or not {"bind", "rbind"}.isdisjoint(value.options)):
        yield "source", "missing, a bind mount needs it"
    if "" in value.options:
        yield f"options[{value.options.index('')}]", "empty"
    if bool(value.uid_mappings) != bool(value.gid_mappings):
        yield "", "uidMappings and gidMappings must come together"
    yield from _mappings("uidMappings", value.uid_mappings)
    yield from _mappings("gidMappings", value.gid_mappings)


def _hook(value: Hook) -> Faults:
    yield from _absolute("path", value.path)
    yield from _environment(value.env)


def _namespace(value: Namespace) -> Faults:
    yield from _one_of("type", value.type, NAMESPACES)
    if value.path is not None:
        yield from _absolute("path", value.path)


def _linux(value: Linux) -> Faults:
    yield from _distinct("namespaces", [namespace.type for namespace in value.namespaces])
    if not value.has("mount"):
        yield "namespaces", "a mount namespace is needed, or the root file system would be the host's"
    yield from _user_namespace(value)
    yield from _clocks(value)
    for name in value.sysctl:
        yield from _sysctl(name, value)
    if value.cgroups_path is not None and ".." in value.cgroups_path.split("/"):
        yield "cgroupsPath", f"{value.cgroups_path!r} leads upwards"
    if value.rootfs_propagation is not None:
        yield from _one_of("rootfsPropagation", value.rootfs_propagation, PROPAGATIONS)
    for index, path in enumerate(value.masked_paths):
        yield from _absolute(f"maskedPaths[{index}]", path)
    for index, path in enumerate(value.readonly_paths):
        yield from _absolute(f"readonlyPaths[{index}]", path)


def _user_namespace(value: Linux) -> Faults:
    user = next((namespace for namespace in value.namespaces if namespace.type == "user"), None)
    for name, mappings in (("uidMappings", value.uid_mappings), ("gidMappings", value.gid_mappings)):
        if mappings and user is None:
            yield name, "needs a user namespace in linux.namespaces"
        if user is not None and user.path is None and not mappings:
            yield name, "empty, but a user namespace is to be made"
        yield from _mappings(name, mappings)


def _mappings(name: str, mappings: Sequence[IdMapping]) -> Faults:
    """Ranges must fit and be apart, inside as outside."""
    if len(mappings) > _MAPPINGS_MAX:
        yield name, f"more than the kernel's {_MAPPINGS_MAX}"
        return
    inside = sorted((one.container_id, one.size, index) for index, one in enumerate(mappings))
    outside = sorted((one.host_id, one.size, index) for index, one in enumerate(mappings))
    for field, ranges in (("containerID", inside), ("hostID", outside)):
        free, before = 0, -1
        for start, size, index in ranges:
            if start < free:
                yield f"{name}[{index}].{field}", f"overlaps {name}[{before}]"
            if start + size - 1 > _LAST_ID:
                yield f"{name}[{index}].size", "reaches beyond the last id"
            free, before = max(free, start + size), index


def _clocks(value: Linux) -> Faults:
    for name in value.time_offsets:
        yield from _one_of("timeOffsets", name, _CLOCKS)
    own = any(namespace.type == "time" and namespace.path is None for namespace in value.namespaces)
    if value.time_offsets and not own:
        yield "timeOffsets", "needs a new time namespace in linux.namespaces"


def _sysctl(name: str, value: Linux) -> Faults:
    """Only what belongs to a namespace of the container's: all else is the host's."""
    path, field = sysctl_path(name), f"sysctl[{name[:80]!r}]"
    kind = ""
    if any(part in ("", ".", "..") for part in path.split("/")):
        yield field, "not the name of a kernel parameter"
    elif path == "kernel/hostname":
        yield field, "is what hostname sets"
    elif path == "kernel/domainname":
        kind = "uts"
    elif path in _IPC_SYSCTLS or path.startswith("fs/mqueue/"):
        kind = "ipc"
    elif path.startswith("net/"):
        kind = "network"
    else:
        yield field, "belongs to no namespace, it would change the host"
    if kind and not value.has(kind):
        yield field, f"needs a namespace of type {kind} in linux.namespaces"


def _device(value: Device) -> Faults:
    yield from _one_of("type", value.type, ("c", "b", "u", "p"))
    yield from _absolute("path", value.path)
    if value.type != "p":
        for name, number in (("major", value.major), ("minor", value.minor)):
            if number is None:
                yield name, "missing"


def _personality(value: Personality) -> Faults:
    yield from _one_of("domain", value.domain, _DOMAINS)
    if value.flags:
        yield "flags", "none are defined"


def _seccomp(value: Seccomp) -> Faults:
    yield from _action("defaultAction", value.default_action, "defaultErrnoRet", value.default_errno_ret)
    if value.default_action == "SCMP_ACT_NOTIFY":
        yield "defaultAction", "SCMP_ACT_NOTIFY cannot be the default: the listener could not be told"
    for index, name in enumerate(value.architectures):
        yield from _one_of(f"architectures[{index}]", name, ARCHITECTURES)
    for index, name in enumerate(value.flags):
        yield from _one_of(f"flags[{index}]", name, FLAGS)
    if value.listener_metadata is not None and value.listener_path is None:
        yield "listenerMetadata", "needs listenerPath"


def _rule(value: SyscallRule) -> Faults:
    if not value.names or "" in value.names:
        yield "names", "one is empty" if value.names else "empty"
    yield from _action("action", value.action, "errnoRet", value.errno_ret)


def _argument(value: SyscallArgument) -> Faults:
    yield from _one_of("op", value.op, OPERATORS)


def _resources(value: Resources) -> Faults:
    for name in value.unified:
        if not re.fullmatch(_CONTROL_FILE, name, re.ASCII):
            yield f"unified[{name[:80]!r}]", "not the name of a control file such as memory.high"


def _memory(value: Memory) -> Faults:
    if value.swap is None or value.swap <= 0:
        return
    if value.limit is None or value.limit < 0:
        yield "swap", "needs memory.limit: it is the sum of memory and swap"
    elif value.swap < value.limit:
        yield "swap", f"{value.swap} is below the limit, {value.limit}: it is the sum of memory and swap"


def _cpu(value: Cpu) -> Faults:
    for name, text in (("cpus", value.cpus), ("mems", value.mems)):
        if text is not None and not re.fullmatch(_LIST, text.strip(), re.ASCII):
            yield name, f"{text[:40]!r} is not a list such as 0-3,7"


def _weights(value: BlockIo | WeightDevice) -> Faults:
    for name, weight in (("weight", value.weight), ("leafWeight", value.leaf_weight)):
        if weight and weight < _LEAST_WEIGHT:  # 0 takes a weight back
            yield name, f"{weight} is not between {_LEAST_WEIGHT} and 1000"


def _hugepages(value: HugepageLimit) -> Faults:
    if not re.fullmatch(_PAGE_SIZE, value.page_size, re.ASCII):
        yield "pageSize", f"{value.page_size[:40]!r} is not a size such as 2MB"


def _device_rule(value: DeviceRule) -> Faults:
    if value.type is not None:
        yield from _one_of("type", value.type, ("a", "b", "c"))
    if value.access is not None and not set(value.access) <= set("rwm"):
        yield "access", f"{value.access[:40]!r} is not of the letters rwm"


def _action(field: str, name: str, errno_field: str, number: int | None) -> Faults:
    yield from _one_of(field, name, ACTIONS)
    if number is not None and name in ACTIONS and name not in NUMBERED_ACTIONS:
        yield errno_field, f"{name} takes no errno"


def _absolute(field: str, path: str) -> Faults:
    if not path.startswith("/"):
        yield field, f"{path[:80]!r} is not absolute"


def _environment(words: Sequence[str]) -> Faults:
    for index, word in enumerate(words):
        if "=" not in word[1:]:
            yield f"env[{index}]", f"{word[:40]!r} is not NAME=VALUE"


def _one_of(field: str, value: str, allowed: Iterable[str]) -> Faults:
    if value not in allowed:
        yield field, f"{value[:60]!r} is not one of {', '.join(sorted(allowed))}"


def _distinct(field: str, kinds: Sequence[str]) -> Faults:
    seen = set[str]()
    for index, kind in enumerate(kinds):
        if kind in seen:
            yield f"{field}[{index}].type", f"{kind!r} is there twice"
        seen.add(kind)


_OF: Mapping[type, Callable[[Any], Faults]] = {
    Config: _config,
    Process: _process,
    Rlimit: _rlimit,
    IoPriority: _io_priority,
    Root: _root,
    MountPoint: _mount,
    Hook: _hook,
    Namespace: _namespace,
    Linux: _linux,
    Device: _device,
    Personality: _personality,
    Seccomp: _seccomp,
    SyscallRule: _rule,
    SyscallArgument: _argument,
    Resources: _resources,
    Memory: _memory,
    Cpu: _cpu,
    BlockIo: _weights,
    WeightDevice: _weights,
    HugepageLimit: _hugepages,
    DeviceRule: _device_rule,
}

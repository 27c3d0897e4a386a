"""What the specification and the kernel behind it allow in the whole numbers of a configuration."""

from __future__ import annotations

S64 = (-(2**63), 2**63 - 1)
_U16, _U32, _U64 = ((0, 2**bits - 1) for bits in (16, 32, 64))

# What the specification allows in a whole number's field; others are int64.
BOUNDS: dict[tuple[str, str], tuple[int, int]] = {
    ("ConsoleSize", "height"): _U16,
    ("ConsoleSize", "width"): _U16,
    ("User", "uid"): (0, 2**32 - 2),
    ("User", "gid"): (0, 2**32 - 2),
    ("User", "umask"): (0, 0o777),
    ("User", "additional_gids"): (0, 2**32 - 2),
    ("Rlimit", "soft"): _U64,
    ("Rlimit", "hard"): _U64,
    ("Process", "oom_score_adj"): (-1000, 1000),
    ("IoPriority", "priority"): (0, 7),
    ("IdMapping", "container_id"): _U32,
    ("IdMapping", "host_id"): _U32,
    ("IdMapping", "size"): (1, 2**32 - 1),
    ("Hook", "timeout"): (1, 2**31 - 1),
    ("TimeOffset", "nanosecs"): (0, 999_999_999),
    ("Device", "major"): (0, 2**12 - 1),
    ("Device", "minor"): (0, 2**20 - 1),
    ("Device", "file_mode"): (0, 0o177777),
    ("Device", "uid"): (0, 2**32 - 2),
    ("Device", "gid"): (0, 2**32 - 2),
    ("SyscallArgument", "index"): (0, 5),
    ("SyscallArgument", "value"): _U64,
    ("SyscallArgument", "value_two"): _U64,
    ("SyscallRule", "errno_ret"): _U16,
    ("Seccomp", "default_errno_ret"): _U16,
    ("Memory", "limit"): (-1, 2**63 - 1),
    ("Memory", "reservation"): (-1, 2**63 - 1),
    ("Memory", "swap"): (-1, 2**63 - 1),
    ("Memory", "kernel"): (-1, 2**63 - 1),
    ("Memory", "kernel_tcp"): (-1, 2**63 - 1),
    ("Memory", "swappiness"): (0, 200),
    ("Cpu", "shares"): _U64,
    ("Cpu", "burst"): _U64,
    ("Cpu", "period"): _U64,
    ("Cpu", "realtime_period"): _U64,
    ("Cpu", "idle"): (0, 1),
    ("Pids", "limit"): (-1, 2**63 - 1),
    ("BlockIo", "weight"): (0, 1000),
    ("BlockIo", "leaf_weight"): (0, 1000),
    ("WeightDevice", "weight"): (0, 1000),
    ("WeightDevice", "leaf_weight"): (0, 1000),
    ("ThrottleDevice", "rate"): _U64,
    ("HugepageLimit", "limit"): _U64,
    ("DeviceRule", "major"): (-1, 2**32 - 1),
    ("DeviceRule", "minor"): (-1, 2**32 - 1),
    ("NetworkClass", "class_id"): _U32,
    ("NetworkPriority", "priority"): _U32,
    ("Rdma", "hca_handles"): _U32,
    ("Rdma", "hca_objects"): _U32,
}
# libcontainer's -1 is "any", as absence is in the specification.
ANY = frozenset({("DeviceRule", "major"), ("DeviceRule", "minor")})

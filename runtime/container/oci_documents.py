"""The documents of `tare oci` that are about no one container: `features`, `spec`, and `ps`'s table.

Shapes as in the runtime-spec (features.md, features-linux.md) and as runc prints them. Not the state of a container,
nor its statistics.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from runtime.command import run
from runtime.container.oci import SPEC_VERSION
from runtime.errors import UsageError
from runtime.linux.capabilities import NUMBERS

PS_TIMEOUT_S = 30.0
_MOUNT_OPTIONS = """
    acl async atime bind defaults dev diratime dirsync exec iversion lazytime loud mand noacl noatime nodev
    nodiratime noexec noiversion nolazytime nomand norelatime nostrictatime nosuid nosymfollow private ratime
    rbind rdev rdiratime relatime remount rexec rnoatime rnodev rnodiratime rnoexec rnorelatime rnostrictatime
    rnosuid rnosymfollow ro rprivate rrelatime rro rrw rshared rslave rstrictatime rsuid rsymfollow runbindable
    rw shared silent slave strictatime suid symfollow sync tmpcopyup unbindable
"""
HOOKS = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"]
NAMESPACES = ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"]
ACTIONS = ["ALLOW", "ERRNO", "KILL", "KILL_PROCESS", "KILL_THREAD", "LOG", "TRACE", "TRAP"]
OPERATORS = ["EQ", "GE", "GT", "LE", "LT", "MASKED_EQ", "NE"]
ARCHITECTURES = ["AARCH64", "ARM", "X32", "X86", "X86_64"]
SECCOMP_FLAGS = [f"SECCOMP_FILTER_FLAG_{name}" for name in ("TSYNC", "SPEC_ALLOW", "LOG")]


def features() -> dict[str, object]:
    """What this runtime implements, wherever it runs."""
    return {
        "ociVersionMin": "1.0.0",
        "ociVersionMax": SPEC_VERSION,
        "hooks": HOOKS,
        "mountOptions": _MOUNT_OPTIONS.split(),
        "linux": {
            "namespaces": NAMESPACES,
            "capabilities": list(NUMBERS),
            "cgroup": {"v1": True, "v2": True, "systemd": False, "systemdUser": False, "rdma": True},
            "seccomp": {
                "enabled": True,
                "actions": [f"SCMP_ACT_{name}" for name in ACTIONS],
                "operators": [f"SCMP_CMP_{name}" for name in OPERATORS],
                "archs": [f"SCMP_ARCH_{name}" for name in ARCHITECTURES],
                "knownFlags": SECCOMP_FLAGS,
                "supportedFlags": SECCOMP_FLAGS,
            },
            "apparmor": {"enabled": False},
            "selinux": {"enabled": False},
            "intelRdt": {"enabled": False},
            "mountExtensions": {"idmap": {"enabled": True}},
        },
        "annotations": {"org.opencontainers.runc.checkpoint.enabled": "false"},
    }


def process_table(pids: Iterable[int], options: Sequence[str]) -> str:
    """What `ps` with `options` (default -ef) says of these processes, its heading first. Raises TareError."""
    lines = run(["ps", *(options or ["-ef"])], timeout_s=PS_TIMEOUT_S).stdout.decode(errors="replace").splitlines()
    if not lines or "PID" not in lines[0].split():
        raise UsageError("ps", "its output has no column PID", "choose options that show one")
    column, wanted = lines[0].split().index("PID"), {str(pid) for pid in pids}
    kept = [line for line in lines[1:] if line.split()[column : column + 1] and line.split()[column] in wanted]
    return "\n".join([lines[0], *kept, ""])


def write_spec(bundle: str, *, rootless: bool) -> None:
    """Write the example config.json into `bundle`. Raises UsageError when there is one."""
    path = Path(bundle) / "config.json"
    try:
        with path.open("x") as file:
            file.write(json.dumps(example(rootless=rootless), indent="\t") + "\n")
    except FileExistsError:
        raise UsageError(f"{path}", "exists already", "remove it first") from None


def example(*, rootless: bool = False) -> dict[str, object]:
    """A configuration to start from: `sh` on a terminal, in `rootfs`, with hardly a privilege."""
    kept = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]
    quiet = ["nosuid", "noexec", "nodev"]
    namespaces = ["pid", "network", "ipc", "uts", "mount", "cgroup"] + (["user"] if rootless else [])
    linux: dict[str, object] = {
        "resources": {"devices": [{"allow": False, "access": "rwm"}]},
        "namespaces": [{"type": kind} for kind in namespaces],
        "maskedPaths": [
            *("/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list"),
            *("/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi"),
        ],
        "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
    }
    if rootless:
        import os

        linux["uidMappings"] = [{"containerID": 0, "hostID": os.geteuid(), "size": 1}]
        linux["gidMappings"] = [{"containerID": 0, "hostID": os.getegid(), "size": 1}]
        del linux["resources"]
    return {
        "ociVersion": SPEC_VERSION,
        "process": {
            "terminal": True,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), kept),
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "tare",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            _mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
            _mount(
                "/dev/pts",
                "devpts",
                "devpts",
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                *([] if rootless else ["gid=5"]),
            ),
            _mount("/dev/shm", "tmpfs", "shm", *quiet, "mode=1777", "size=65536k"),  # noqa: S108 - of the container
            _mount("/dev/mqueue", "mqueue", "mqueue", *quiet),
            _mount("/sys", "sysfs", "sysfs", *quiet, "ro"),
            _mount("/sys/fs/cgroup", "cgroup", "cgroup", *quiet, "relatime", "ro"),
        ],
        "linux": linux,
    }


def _mount(destination: str, kind: str, source: str, *options: str) -> dict[str, object]:
    return {"destination": destination, "type": kind, "source": source, "options": list(options)}

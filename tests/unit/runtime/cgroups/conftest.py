"""Recorded hierarchies: the mount tables of real hosts, and directories with a kernel's control files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pytest

V1_FILES = {
    "cpu": {"cpu.cfs_period_us": "100000\n", "cpu.cfs_quota_us": "-1\n", "cpu.shares": "1024\n"},
    "cpuacct": {"cpuacct.usage": "123456789\n"},
    "cpuset": {"cpuset.cpus": "0-1\n", "cpuset.mems": "0\n"},
    "memory": {
        "memory.limit_in_bytes": "9223372036854771712\n",
        "memory.memsw.limit_in_bytes": "9223372036854771712\n",
        "memory.soft_limit_in_bytes": "9223372036854771712\n",
        "memory.usage_in_bytes": "4096\n",
        "memory.max_usage_in_bytes": "8192\n",
    },
    "pids": {"pids.max": "max\n", "pids.current": "3\n"},
    "blkio": {
        "blkio.throttle.read_bps_device": "",
        "blkio.throttle.write_bps_device": "",
        "blkio.throttle.io_service_bytes_recursive": (
            "254:0 Read 1000\n254:0 Write 20\n254:0 Sync 20\n254:0 Async 1000\n254:0 Discard 0\n254:0 Total 1020\n"
            "253:0 Read 5\n253:0 Write 6\n253:0 Total 11\nTotal 1031\n"
        ),
    },
    "freezer": {"freezer.state": "THAWED\n"},
    "devices": {"devices.deny": "", "devices.allow": ""},
}
V2_FILES = {
    "cgroup.procs": "11\n12\n",
    "cgroup.events": "populated 1\nfrozen 0\n",
    "cgroup.freeze": "0\n",
    "cpu.max": "max 100000\n",
    "cpu.stat": "usage_usec 2500\nuser_usec 2000\nsystem_usec 500\n",
    "cpu.weight": "100\n",
    "cpuset.cpus": "\n",
    "io.max": "",
    "io.stat": "254:0 rbytes=1000 wbytes=20 rios=1 wios=1 dbytes=0 dios=0\n253:0 rbytes=1 wbytes=2 rios=1 wios=1\n",
    "memory.current": "4096\n",
    "memory.low": "0\n",
    "memory.max": "max\n",
    "memory.peak": "8192\n",
    "memory.swap.max": "max\n",
    "pids.current": "3\n",
    "pids.max": "max\n",
}


def fill(directory: Path, files: Mapping[str, str]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (directory / name).write_text(text)


@pytest.fixture
def v1_mounts(tmp_path: Path) -> dict[str, Path]:
    """Every v1 controller on a mount of its own, with the group `tare/tare-0` in each."""
    mounts = {name: tmp_path / name for name in V1_FILES}
    for name, files in V1_FILES.items():
        fill(mounts[name], files)
        fill(mounts[name] / "tare/tare-0", {**files, "cgroup.procs": "11\n12\n", "tasks": "11\n12\n"})
    return mounts


@pytest.fixture
def v2_mount(tmp_path: Path) -> Path:
    """A unified hierarchy with the group `tare/tare-0`."""
    fill(tmp_path, {"cgroup.controllers": "cpuset cpu io memory hugetlb pids\n", "cgroup.subtree_control": ""})
    fill(tmp_path / "tare/tare-0", V2_FILES)
    return tmp_path


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Make every write to a control file replace its content, as a kernel does, and record it."""
    written: list[tuple[str, str]] = []

    def write(path: Path, value: str) -> None:
        if not path.exists():
            raise FileNotFoundError(2, "No such file or directory", str(path))
        written.append((path.name, value))
        path.write_text(value + "\n")

    def write_lines(path: Path, values: Iterable[str]) -> None:
        for value in values:
            write(path, value)

    for module in ("cgroup", "controls", "v1", "v1_devices", "v2"):
        monkeypatch.setattr(f"runtime.cgroups.{module}.write", write)
    monkeypatch.setattr("runtime.cgroups.v1_devices.write_lines", write_lines)
    return written


Mountinfo = Callable[[str], Path]


@pytest.fixture
def mountinfo(tmp_path: Path) -> Mountinfo:
    """Write a mount table, `{}` standing for the temporary directory."""

    def make(text: str) -> Path:
        path = tmp_path / "mountinfo"
        path.write_text(text.replace("{}", str(tmp_path)))
        return path

    return make

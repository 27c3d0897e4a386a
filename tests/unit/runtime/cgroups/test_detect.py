"""Finding controllers in recorded mount tables, and the disk below a directory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtime.cgroups.detect import Hierarchies, detect, io_device, open_cgroup
from runtime.cgroups.v1 import V1Cgroup
from runtime.cgroups.v2 import V2Cgroup
from runtime.errors import TareError
from tests.unit.runtime.cgroups.conftest import Mountinfo

UNIFIED = "30 23 0:26 / {} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
HYBRID = """\
62 60 0:31 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct
63 60 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
64 60 0:33 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
65 60 0:34 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd
66 60 0:35 / {} rw - cgroup2 cgroup2 rw
80 60 0:32 / /mnt/elsewhere rw - cgroup cgroup rw,memory
"""


def test_a_unified_host_gets_v2(mountinfo: Mountinfo, tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    found = detect(mountinfo(UNIFIED))
    assert (found.mode, found.v2) == ("v2", tmp_path)
    group = open_cgroup("tare-0", hierarchies=found)
    assert isinstance(group, V2Cgroup)
    assert group.path == tmp_path / "tare/tare-0"


def test_a_hybrid_host_gets_v1_where_the_controllers_are(mountinfo: Mountinfo, tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("hugetlb\n")
    found = detect(mountinfo(HYBRID))
    assert found.mode == "hybrid"
    assert found.v1["cpu"] == found.v1["cpuacct"] == Path("/sys/fs/cgroup/cpu,cpuacct")
    assert found.v1["memory"] == Path("/sys/fs/cgroup/memory")
    assert isinstance(open_cgroup("tare-0", hierarchies=found), V1Cgroup)


def test_a_mount_point_with_a_blank_is_unescaped(mountinfo: Mountinfo) -> None:
    found = detect(mountinfo("1 1 0:1 / /a\\040b rw - cgroup cgroup rw,pids\n"))
    assert found.v1["pids"] == Path("/a b")


def test_a_host_without_hierarchies_is_refused(mountinfo: Mountinfo) -> None:
    found = detect(mountinfo("1 1 8:1 / / rw - ext4 /dev/sda1 rw\n"))
    assert found == Hierarchies()
    with pytest.raises(TareError, match="no hierarchy offers cpu, memory, pids"):
        open_cgroup("tare-0", hierarchies=found)


@pytest.fixture
def sys_tree(tmp_path: Path) -> Path:
    """A disk 8:0 with a partition whose number is that of the temporary directory's file system."""
    device = tmp_path.stat().st_dev
    disk = tmp_path / "sys/devices/sda"
    (disk / "sda1").mkdir(parents=True)
    (disk / "dev").write_text("8:0\n")
    (disk / "sda1/partition").write_text("1\n")
    (disk / "sda1/dev").write_text(f"{os.major(device)}:{os.minor(device)}\n")
    block = tmp_path / "sys/dev/block"
    block.mkdir(parents=True)
    (block / f"{os.major(device)}:{os.minor(device)}").symlink_to(disk / "sda1")
    return tmp_path / "sys"


def test_a_partition_counts_as_its_disk(sys_tree: Path, tmp_path: Path) -> None:
    assert io_device(tmp_path, sys=sys_tree) == "8:0"


def test_a_whole_disk_counts_as_itself(sys_tree: Path, tmp_path: Path) -> None:
    (sys_tree / "devices/sda/sda1/partition").unlink()
    device = tmp_path.stat().st_dev
    assert io_device(tmp_path, sys=sys_tree) == f"{os.major(device)}:{os.minor(device)}"


def test_a_file_system_without_a_disk_has_no_device(mountinfo: Mountinfo, tmp_path: Path) -> None:
    device = tmp_path.stat().st_dev
    table = mountinfo(f"1 1 {os.major(device)}:{os.minor(device)} / / rw - tmpfs tmpfs rw\n")
    assert io_device(tmp_path, mountinfo=table, sys=tmp_path) is None

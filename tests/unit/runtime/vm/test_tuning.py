"""Pins, huge pages and locked memory: refused by name where there are none, and read back."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from runtime.errors import TareError, UsageError
from runtime.spec import Limits
from runtime.vm import tuning
from runtime.vm.domain import MIB, Tuning

MOUNTS = "proc /proc proc rw 0 0\nhugetlbfs /dev/hugepages hugetlbfs rw 0 0\n"
MEMINFO = "HugePages_Total: {}\nHugePages_Free: {}\nHugePages_Rsvd: {}\nHugepagesize: 2048 kB\n"


def host(tmp_path: Path, *pages: int, mounts: str = MOUNTS) -> Path:
    (tmp_path / "mounts").write_text(mounts)
    (tmp_path / "meminfo").write_text(MEMINFO.format(*pages))
    return tmp_path


def test_pins_lie_within_the_cpuset() -> None:
    limits = Limits(cpuset="0-1")
    tuning.require(Tuning(pins=(1, 0)), limits, MIB)
    with pytest.raises(UsageError, match="pin to CPU 2: the guest may run on 0,1"):
        tuning.require(Tuning(pins=(0, 2)), limits, MIB)


def test_pins_without_a_cpuset_name_cpus_of_the_host() -> None:
    with pytest.raises(UsageError, match="pin to CPU 9000"):
        tuning.require(Tuning(pins=(9000,)), Limits(), MIB)


def test_huge_pages_that_are_free_suffice(tmp_path: Path) -> None:
    tuning.require(Tuning(hugepages=True), Limits(), 128 * MIB, host(tmp_path, 70, 66, 2))


def test_too_few_huge_pages_are_refused_with_the_command_that_reserves_them(tmp_path: Path) -> None:
    with pytest.raises(TareError, match="needs 64 of 2048 KiB, the host has 63 free") as error:
        tuning.require(Tuning(hugepages=True), Limits(), 128 * MIB, host(tmp_path, 70, 65, 2))
    assert error.value.do == "echo 71 > /proc/sys/vm/nr_hugepages"


def test_huge_pages_need_their_file_system(tmp_path: Path) -> None:
    with pytest.raises(TareError, match="no hugetlbfs is mounted"):
        tuning.require(Tuning(hugepages=True), Limits(), MIB, host(tmp_path, 70, 70, 0, mounts="a /a ext4 rw 0 0\n"))


def test_locked_memory_is_refused_where_its_bound_cannot_be_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_which: int, _bounds: tuple[int, int]) -> None:
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    with pytest.raises(TareError, match="locked memory: this host does not let RLIMIT_MEMLOCK be raised"):
        tuning.require(Tuning(locked=True), Limits(), MIB)


def test_what_a_guest_got_is_read_from_the_kernel(tmp_path: Path) -> None:
    for thread, name, cpus in ((7, "qemu", "0-1"), (8, "CPU 0/KVM", "1"), (9, "CPU 1/KVM", "0-1")):
        task = tmp_path / f"7/task/{thread}"
        task.mkdir(parents=True)
        (task / "comm").write_text(f"{name}\n")
        (task / "status").write_text(f"Name:\t{name}\nCpus_allowed_list:\t{cpus}\n")
    (tmp_path / "7/status").write_text("VmLck:\t 1024 kB\nHugetlbPages:\t 1023 kB\n")
    found = tuning.readings(Tuning(pins=(1, 0), hugepages=True, locked=True), 7, MIB, tmp_path)
    assert [(reading.name, reading.holds) for reading in found] == [
        ("vCPU 0 pinned", True),
        ("vCPU 1 pinned", False),
        ("huge pages", False),
        ("locked memory", True),
    ]
    assert tuning.readings(Tuning(), 7, MIB, tmp_path) == ()


def test_the_environment_asks_for_all_guests() -> None:
    assert tuning.from_environment({}) == Tuning()
    assert tuning.from_environment({tuning.VARIABLE: "locked, hugepages"}) == Tuning(hugepages=True, locked=True)
    assert tuning.from_environment({tuning.VARIABLE: "reflink"}) == Tuning(reflink=True)
    with pytest.raises(UsageError, match="TARE_VM_TUNING=fast: no such tuning: fast"):
        tuning.from_environment({tuning.VARIABLE: "fast"})

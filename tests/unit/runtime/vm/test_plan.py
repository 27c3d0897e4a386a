"""What can be told about a guest without starting one: its memory, and the script around QEMU."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from runtime.driver import Host
from runtime.errors import TareError
from runtime.spec import Limits
from runtime.vm import plan
from runtime.vm.adoption import STARTED
from runtime.vm.domain import MIB, Tuning


def test_without_a_limit_the_guest_gets_the_default() -> None:
    assert plan.guest_memory_bytes(Limits(), "kvm") == plan.DEFAULT_MEMORY_BYTES


@pytest.mark.parametrize("accelerator", ["kvm", "tcg"])
def test_guest_and_qemu_share_the_limit(accelerator: str) -> None:
    limits = Limits(memory_bytes=512 * MIB + 4096)
    memory = plan.guest_memory_bytes(limits, accelerator)
    assert memory + plan.overhead_bytes(accelerator) == 512 * MIB


def test_emulation_costs_more_than_virtualisation() -> None:
    assert plan.overhead_bytes("tcg") > plan.overhead_bytes("kvm")


def test_a_limit_too_small_to_boot_in_is_refused_with_what_is_needed() -> None:
    with pytest.raises(TareError, match="need 208 MiB"):
        plan.guest_memory_bytes(Limits(memory_bytes=128 * MIB), "tcg")


def test_firmware_needs_more_than_a_kernel_that_is_booted_directly() -> None:
    limits = Limits(memory_bytes=208 * MIB)
    assert plan.guest_memory_bytes(limits, "tcg") == plan.MINIMUM_MEMORY_BYTES
    with pytest.raises(TareError, match="need 256 MiB"):
        plan.guest_memory_bytes(limits, "tcg", firmware=True)


def test_a_guest_larger_than_the_host_has_room_for_is_refused(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  900000 kB\nMemAvailable:  524288 kB\nHugePages_Total:  0\n")
    plan.require_host_memory(512 * MIB, meminfo)
    with pytest.raises(TareError, match="the host has 512 MiB available"):
        plan.require_host_memory(512 * MIB + 1, meminfo)


def test_pids_bound_qemus_threads_but_never_starve_it() -> None:
    assert plan.host_limits(Limits(pids=3)).pids == plan.QEMU_THREADS_MIN
    assert plan.host_limits(Limits(pids=5000)).pids == 5000
    assert plan.host_limits(Limits()).pids is None


class Emulator:
    """The start script around a QEMU that only prints its arguments."""

    def __init__(self, directory: Path) -> None:
        self.host = Host(root=directory / "lib", run=directory / "it's run")
        self.qemu = directory / "qemu"
        self.qemu.write_text('#!/bin/sh\necho "$#:$*"\n')
        self.qemu.chmod(0o700)

    def start(self, *words: str) -> subprocess.CompletedProcess[str]:
        script = plan.write_emulator(self.host, self.qemu)
        return subprocess.run([str(script), *words], capture_output=True, text=True, check=False)

    def instance(self, joins: str) -> None:
        directory = self.host.run / "vm/tare-0123456789ab"
        directory.mkdir(parents=True)
        (directory / plan.JOINS).write_text(joins)
        (directory / STARTED).touch()


def test_emulator_enters_every_group_and_becomes_qemu(tmp_path: Path) -> None:
    emulator = Emulator(tmp_path)
    groups = [tmp_path / "cpu tasks", tmp_path / "memory"]
    for group in groups:
        group.touch()
    emulator.instance("".join(f"{group}\n" for group in groups))
    done = emulator.start("-name", "guest=tare-0123456789ab,debug-threads=on", "-S", "a b")
    assert done.stdout == "4:-name guest=tare-0123456789ab,debug-threads=on -S a b\n"
    assert [group.read_text() for group in groups] == ["0\n", "0\n"]
    assert (emulator.host.run / "vm/tare-0123456789ab" / STARTED).read_text().strip().isdigit()


def test_emulator_starts_nothing_outside_its_group(tmp_path: Path) -> None:
    emulator = Emulator(tmp_path)
    emulator.instance(f"{tmp_path}/no/such/group\n")
    done = emulator.start("-name", "guest=tare-0123456789ab")
    assert done.returncode != 0
    assert done.stdout == ""


def test_emulator_starts_nothing_when_its_groups_are_not_named(tmp_path: Path) -> None:
    emulator = Emulator(tmp_path)
    emulator.instance("")
    (emulator.host.run / "vm/tare-0123456789ab" / plan.JOINS).unlink()
    done = emulator.start("-name", "guest=tare-0123456789ab")
    assert (done.returncode != 0, done.stdout) == (True, "")


def test_emulator_without_an_instance_is_plain_qemu(tmp_path: Path) -> None:
    assert Emulator(tmp_path).start("-S", "-machine", "none").stdout == "3:-S -machine none\n"


def test_emulator_gets_a_new_name_when_qemu_changes(tmp_path: Path) -> None:
    emulator = Emulator(tmp_path)
    first = plan.write_emulator(emulator.host, emulator.qemu)
    assert plan.write_emulator(emulator.host, emulator.qemu) == first
    emulator.qemu.write_text("#!/bin/sh\necho another\n")
    assert plan.write_emulator(emulator.host, emulator.qemu) != first


@pytest.mark.parametrize(
    ("limits", "vcpus", "pins"),
    [
        (Limits(), 1, ()),
        (Limits(cpus=1.5), 2, ()),
        (Limits(cpuset="2,0"), 2, (0, 2)),
        (Limits(cpus=0.5, cpuset="0-1"), 1, ()),
        (Limits(cpus=0.5, cpuset="3"), 1, (3,)),
        (Limits(cpus=4, cpuset="0-1"), 2, (0, 1)),
    ],
)
def test_vcpus_follow_the_limits_and_are_pinned_where_there_is_no_choice(
    limits: Limits, vcpus: int, pins: tuple[int, ...]
) -> None:
    assert plan.vcpu_count(limits) == vcpus
    assert plan.pinned(Tuning(locked=True), limits, vcpus) == Tuning(pins=pins, locked=True)


def test_pins_that_were_asked_for_stay() -> None:
    assert plan.pinned(Tuning(pins=(1,)), Limits(cpuset="0"), 1).pins == (1,)


def test_a_limit_on_the_vcpus_is_not_the_groups() -> None:
    assert plan.host_limits(Limits(cpus=2, pids=3), plan.Quota.VCPUS) == Limits(pids=plan.QEMU_THREADS_MIN)
    assert plan.host_limits(Limits(cpus=2)).cpus == 2

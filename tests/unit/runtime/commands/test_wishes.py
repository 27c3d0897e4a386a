"""docker run's words: what each becomes, and that a bad one is refused by its flag."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from runtime.cgroups.resources import BlockIo, Cpu, DeviceRule, Memory, Pids, Resources
from runtime.commands import wishes
from runtime.container.config import Rlimit
from runtime.errors import UsageError


def test_nothing_asked_for_is_nothing() -> None:
    assert wishes.memory(None, None, None, None) is None
    assert wishes.cpu(None, None, None, None, None, None) is None
    assert wishes.block_io(None, (), ()) is None
    assert wishes.resources(None, None, None, None) == Resources()


def test_memory_as_asked() -> None:
    found = wishes.memory("64m", "128m", "32m", "10")
    assert found == Memory(limit=64 << 20, swap=128 << 20, reservation=32 << 20, swappiness=10)
    unlimited = wishes.memory("64m", "-1", None, None)
    assert unlimited is not None
    assert unlimited.swap == -1


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("x", None, None, None), "--memory"),
        (("1m", None, None, None), "--memory 1m"),
        ((None, "1g", None, None), "--memory-swap"),
        (("64m", "32m", None, None), "--memory-swap"),
        (("64m", None, "128m", None), "--memory-reservation"),
        (("64m", None, None, "101"), "--memory-swappiness 101"),
    ],
)
def test_memory_that_makes_no_sense(words: tuple[str | None, ...], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        wishes.memory(*words)


def test_cpus_are_a_quota_by_another_name() -> None:
    assert wishes.cpu("0.5", None, None, None, None, None) == Cpu(period=100_000, quota=50_000)
    asked = wishes.cpu(None, "512", "50000", "25000", "0", "0")
    assert asked == Cpu(shares=512, period=50_000, quota=25_000, cpus="0", mems="0")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("x", None, None, None, None, None), "--cpus x"),
        (("0", None, None, None, None, None), "--cpus 0"),
        (("99999", None, None, None, None, None), "--cpus 99999"),
        (("1", None, None, "50000", None, None), "--cpus"),
        ((None, "1", None, None, None, None), "--cpu-shares 1"),
        ((None, None, "10", None, None, None), "--cpu-period 10"),
        ((None, None, None, "10", None, None), "--cpu-quota"),
        ((None, None, None, None, "3-1", None), "--cpuset-cpus"),
        ((None, None, None, None, None, "x"), "--cpuset-mems"),
        ((None, None, None, None, "8000", None), "--cpuset-cpus 8000: this host has"),
    ],
)
def test_cpu_that_makes_no_sense(words: tuple[str | None, ...], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        wishes.cpu(*words)


def test_block_weight() -> None:
    assert wishes.block_io("500", (), ()) == BlockIo(weight=500)
    with pytest.raises(UsageError, match="--blkio-weight 5"):
        wishes.block_io("5", (), ())


@pytest.mark.parametrize("text", ["/dev/null:1m", "sda:1m", "/dev/sda", "/no/such:1m"])
def test_rates_are_of_block_devices(text: str) -> None:
    with pytest.raises(UsageError, match="--device-read-bps"):
        wishes.block_io(None, (), [("--device-read-bps", [text])])


@pytest.mark.parametrize(("text", "limit"), [("100", Pids(limit=100)), ("-1", Pids(limit=-1)), ("0", None)])
def test_pids_limit(text: str, limit: Pids | None) -> None:
    assert wishes.resources(None, None, None, text).pids == limit


def test_ulimits() -> None:
    assert wishes.ulimit("nofile=1024:2048") == Rlimit(type="RLIMIT_NOFILE", soft=1024, hard=2048)
    assert wishes.ulimit("core=-1") == Rlimit(type="RLIMIT_CORE", soft=(1 << 64) - 1, hard=(1 << 64) - 1)
    for bad in ("nofile", "x=1", "nofile=2:1", "nofile=x", "nofile="):
        with pytest.raises(UsageError, match="--ulimit"):
            wishes.ulimit(bad)


def test_device_rules() -> None:
    assert wishes.device_rule("c 10:* rw") == DeviceRule(allow=True, type="c", major=10, minor=None, access="rw")
    with pytest.raises(UsageError, match="--device-cgroup-rule"):
        wishes.device_rule("x 1:2 r")


@pytest.mark.parametrize(
    ("text", "number"),
    [("TERM", 15), ("SIGTERM", 15), ("term", 15), ("9", 9), ("RTMIN+3", signal.SIGRTMIN + 3), ("SIGRTMAX-1", 63)],
)
def test_signals(text: str, number: int) -> None:
    assert wishes.signal_number(text) == number


@pytest.mark.parametrize("text", ["", "x", "0", "99", "RTMIN+99", "SIG"])
def test_no_signals(text: str) -> None:
    with pytest.raises(UsageError, match="no such signal"):
        wishes.signal_number(text)


def test_environment_takes_what_is_here() -> None:
    found = wishes.environment(["A=1", "B", "GONE", "C="], {"B": "2"}.get)
    assert found == ("A=1", "B=2", "GONE", "C=")
    with pytest.raises(UsageError, match="environment"):
        wishes.environment(["=x"])


def test_files_of_words(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("# note\n\nA=1\n  B=2\n")
    assert wishes.words_of_file("--env-file", str(file)) == ["A=1", "B=2"]
    with pytest.raises(UsageError, match="--env-file /no/such"):
        wishes.words_of_file("--env-file", "/no/such")
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not UTF-8"):
        wishes.words_of_file("--env-file", str(file))


def test_limits_of_this_host_are_known() -> None:
    most = os.cpu_count() or 1
    assert wishes.cpu(str(most), None, None, None, None, None) is not None

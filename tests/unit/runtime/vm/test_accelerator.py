"""The race is run with guests of our own making; what matters is who wins, and that all are closed."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from runtime.errors import TareError, UsageError
from runtime.vm import accelerator
from runtime.vm.accelerator import Accelerator, race


class Racer:
    """A guest that reaches userland when `arrives` is set and is dead once closed."""

    def __init__(self) -> None:
        self.arrives = threading.Event()
        self.closed = 0
        self.error: str | None = None

    def wait_userland(self, timeout_s: float) -> None:
        if not self.arrives.wait(timeout_s):
            raise TareError("instance", f"not userland after {timeout_s:g} s")
        if self.error:
            raise TareError("guest agent", self.error)

    def close(self) -> None:
        self.closed += 1
        self.error = "closed"
        self.arrives.set()


def run(kvm: Racer | str, tcg: Racer | str, timeout_s: float = 20) -> Accelerator:
    def start(name: str) -> Racer:
        racer = {"kvm": kvm, "tcg": tcg}[name]
        if isinstance(racer, str):
            raise TareError("virtual machine", racer)
        return racer

    return race(start, timeout_s)


@pytest.mark.parametrize("winner", ["kvm", "tcg"])
def test_first_in_userland_wins_and_both_are_closed(winner: str) -> None:
    racers = {"kvm": Racer(), "tcg": Racer()}
    racers[winner].arrives.set()
    answer = run(racers["kvm"], racers["tcg"])
    loser = {"kvm": "TCG", "tcg": "KVM"}[winner]
    assert answer.name == winner
    assert not answer.forced
    assert f"{loser} was not there yet" in answer.reason
    assert [racer.closed for racer in racers.values()] == [1, 1]


def test_a_contender_that_cannot_start_loses_with_its_reason() -> None:
    tcg = Racer()
    threading.Timer(0.1, tcg.arrives.set).start()
    answer = run("no MSR 0x10a", tcg)
    assert answer.name == "tcg"
    assert "no MSR 0x10a" in answer.reason


def test_a_long_reason_is_cut() -> None:
    tcg = Racer()
    threading.Timer(0.1, tcg.arrives.set).start()
    assert len(run("word " * 1000, tcg).reason) < 400


def test_a_contender_that_starts_after_the_end_is_closed() -> None:
    late, tcg = Racer(), Racer()
    tcg.arrives.set()
    over = threading.Event()

    def start(name: str) -> Racer:
        if name == "kvm":
            assert over.wait(20)
            return late
        threading.Timer(0.2, over.set).start()
        return tcg

    assert race(start, 20).name == "tcg"
    assert late.closed == 1


def test_nobody_arriving_is_an_error_that_tells_both() -> None:
    with pytest.raises(TareError, match=r"kvm: .*broken.*tcg: .*not userland after 0.05 s"):
        run("broken", Racer(), timeout_s=0.05)


@pytest.mark.parametrize("name", ["kvm", "tcg"])
def test_the_user_may_decide(name: str) -> None:
    answer = accelerator.forced({accelerator.VARIABLE: name})
    assert answer == Accelerator(name, "TARE_ACCELERATOR says so", forced=True)


def test_without_the_variable_nothing_is_forced() -> None:
    assert accelerator.forced({}) is None
    assert accelerator.forced({accelerator.VARIABLE: ""}) is None


def test_an_unknown_accelerator_is_refused() -> None:
    with pytest.raises(UsageError, match="use kvm or tcg"):
        accelerator.forced({accelerator.VARIABLE: "xen"})


def test_an_answer_is_remembered_for_its_key_only(tmp_path: Path) -> None:
    cache = tmp_path / "cache" / "accelerator.json"
    assert accelerator.recall(cache, "a") is None
    accelerator.keep(cache, "a", Accelerator("kvm", "fast"))
    assert accelerator.recall(cache, "a") == Accelerator("kvm", "fast")
    assert accelerator.recall(cache, "b") is None
    assert [path.name for path in cache.parent.iterdir()] == ["accelerator.json"]


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"key": "a", "answer": {"nam": "kvm"}}'])
def test_a_damaged_cache_is_no_answer(tmp_path: Path, damage: str) -> None:
    (tmp_path / "c").write_text(damage)
    assert accelerator.recall(tmp_path / "c", "a") is None


CPU = "processor\t: 0\nmodel name\t: One\nmicrocode\t: 0x1\ncpu MHz\t\t: 2000.0\nflags\t\t: fpu svm\n\nprocessor\t: 1\n"


@pytest.mark.parametrize("change", [("One", "Two"), ("0x1", "0x2"), ("fpu svm", "fpu")])
def test_another_cpu_has_another_key(tmp_path: Path, change: tuple[str, str]) -> None:
    assert _key(tmp_path, CPU) != _key(tmp_path, CPU.replace(*change))


def test_what_changes_while_a_host_runs_does_not_change_the_key(tmp_path: Path) -> None:
    assert _key(tmp_path, CPU) == _key(tmp_path, CPU.replace("2000.0", "800.0"))
    assert _key(tmp_path, CPU) == _key(tmp_path, CPU + "cpu MHz\t\t: 900.0\n")


def test_another_qemu_kernel_or_boot_has_another_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {_key(tmp_path, CPU), _key(tmp_path, CPU, emulator="qemu-2")}
    monkeypatch.setattr(accelerator, "boot_id", lambda: "another")
    keys.add(_key(tmp_path, CPU))
    monkeypatch.setattr("platform.release", lambda: "another")
    keys.add(_key(tmp_path, CPU))
    assert len(keys) == 4


def _key(directory: Path, cpuinfo: str, emulator: str = "qemu-1") -> str:
    (directory / "cpuinfo").write_text(cpuinfo)
    return accelerator.key(directory / emulator, directory / "cpuinfo")


def test_where_kvm_makes_no_machine_no_race_is_needed(tmp_path: Path) -> None:
    answer = accelerator.without_race(tmp_path / "kvm")
    assert answer is not None
    assert (answer.name, answer.forced) == ("tcg", False)
    assert "No such file" in answer.reason


def test_what_is_no_kvm_is_told_by_trying(tmp_path: Path) -> None:
    assert "No such file" in str(accelerator.kvm_problem(tmp_path / "kvm"))
    assert "makes no machine" in str(accelerator.kvm_problem(Path("/dev/null")))

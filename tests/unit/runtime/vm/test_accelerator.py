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


def test_the_key_changes_with_guest_and_cpu(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("processor : 0\nmodel name : One\n")
    (tmp_path / "two").write_text("processor : 0\nmodel name : Two\n")
    keys = {accelerator.key(guest, tmp_path / cpu) for guest in ("g", "h") for cpu in ("one", "two")}
    assert len(keys) == 4


def test_what_is_no_kvm_is_told_by_trying(tmp_path: Path) -> None:
    assert "No such file" in str(accelerator.kvm_problem(tmp_path / "kvm"))
    assert "makes no machine" in str(accelerator.kvm_problem(Path("/dev/null")))

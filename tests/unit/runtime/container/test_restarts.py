"""Restart policies: when, after how long, and that a real keeper has it done once, as long as it is wanted."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.container.contact import Contact, Summons
from runtime.container.restarts import is_due, next_delay_s
from tests.unit.runtime.container.test_keeper import keeper, relayed, request, run, run_file, started

__all__ = ["keeper", "run"]  # fixtures


@pytest.mark.parametrize(
    ("policy", "code", "restarts", "due"),
    [
        (("no", 0), 1, 0, False),
        (("always", 0), 0, 100, True),
        (("unless-stopped", 0), 0, 0, True),
        (("on-failure", 0), 0, 0, False),
        (("on-failure", 0), 137, 100, True),
        (("on-failure", 3), 1, 2, True),
        (("on-failure", 3), 1, 3, False),
    ],
)
def test_a_policy_says_what_is_started_again(policy: tuple[str, int], code: int, restarts: int, due: bool) -> None:
    assert is_due(policy, code, restarts) is due


def test_the_delay_doubles_up_to_a_minute_and_a_proven_life_resets_it() -> None:
    delays = [next_delay_s(0, 0)]
    while len(delays) < 12:
        delays.append(next_delay_s(delays[-1], 9.9))
    assert delays == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2, 60, 60]
    assert next_delay_s(60, 10) == 0.1


@pytest.fixture
def idle(tmp_path: Path) -> Iterator[str]:
    """A program that is run to start a container again and does nothing as long as the test lasts."""
    pid = tmp_path / "idle"
    yield f"echo $$ > {pid}; exec sleep 1000"
    if pid.exists():
        os.kill(int(pid.read_text()), signal.SIGKILL)


def waits(keeper: Contact, box: Path, restarter: str, code: int = 1) -> str:
    """Have a process end that waits then for its restart: when it ended."""
    policy = {"restart": ("on-failure", 0), "restarter": ("/bin/sh", "-c", restarter)}
    running = started(keeper, request(box, "/bin/sh", "-c", f"exit {code}", **policy))
    relayed(keeper, running)
    return str(run_file(box)["finished_at"])


def ends_as(box: Path, error: str) -> None:
    deadline = time.monotonic() + 60
    while run_file(box)["restarter"]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert run_file(box)["error"] == error


def test_what_was_to_start_it_again_and_has_not_is_not_waited_for(keeper: Contact, tmp_path: Path) -> None:
    waits(keeper, tmp_path / "box", f"echo >> {tmp_path}/asked")
    assert run_file(tmp_path / "box")["restarter"] > 0
    ends_as(tmp_path / "box", "not started again: what was to do it has ended")
    assert (tmp_path / "asked").read_text() == "\n", "asked once"


def test_what_cannot_be_run_is_not_waited_for(keeper: Contact, tmp_path: Path) -> None:
    running = started(keeper, request(tmp_path / "box", "/bin/false", restart=("always", 0), restarter=("/no/such",)))
    relayed(keeper, running)
    ends_as(tmp_path / "box", "not started again: [Errno 2] No such file or directory: '/no/such'")


def test_what_is_forgone_is_not_started_again(keeper: Contact, run: Path, tmp_path: Path, idle: str) -> None:
    box = tmp_path / "box"
    waits(keeper, box, idle)
    assert say(run, "forgo", "box") == ("forgone",)
    ends_as(box, "")
    again = request(box, "/bin/true", again=True)
    words = say(run, "start", again)
    assert words[0] == "failed", words
    assert "not to be started again" in str(words[-1])
    assert run_file(box)["exit_code"] == 1


def test_a_failure_is_that_of_its_own_end_alone(keeper: Contact, run: Path, tmp_path: Path, idle: str) -> None:
    box = tmp_path / "box"
    ended = waits(keeper, box, idle)
    assert say(run, "gave-up", "box", "another end", "late") == ("forgone",)
    assert run_file(box)["restarter"] > 0
    assert say(run, "gave-up", "box", ended, "no address left") == ("forgone",)
    ends_as(box, "no address left")


def test_who_follows_it_goes_on_with_its_next_life(keeper: Contact, run: Path, tmp_path: Path, idle: str) -> None:
    box = tmp_path / "box"
    waits(keeper, box, idle)
    with Summons(run).connect() as follower, Summons(run).connect() as starter:
        follower.ask("wait", "box", True)
        assert not select.select([follower.fileno()], [], [], 0.1)[0]
        starter.ask("start", request(box, "/bin/sh", "-c", "exit 5", again=True, output=False))
        assert starter.hear()[0][0] == "running"
        assert follower.hear()[0] == ("ended", 5, False)


def say(run: Path, *words: object) -> tuple[object, ...]:
    """What the keeper answers on a connection of its own."""
    with Summons(run).connect() as contact:
        contact.ask(*words)
        answer, _ = contact.hear()
    return answer

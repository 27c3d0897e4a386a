"""`tare run --restart`, as users of Docker expect it: what is started again, when, and what ends that. Needs root."""

from __future__ import annotations

import json
import os
import signal
import time
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.host.life import FOREVER, IMAGE, NONE, Tare, name, tare, until

__all__ = ["name", "tare"]  # fixtures

FAILING = (IMAGE, "sh", "-c", "echo life; exit 3")


def document(tare: Tare, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(tare("inspect", name).good())[0]
    return found


def starts(tare: Tare, name: str) -> list[datetime]:
    """When it was started, by its events."""
    lines = tare("events", "--json", "--since", "1h", "--until", "0s", "-f", f"container={name}", "-f", "event=start")
    return [datetime.fromisoformat(json.loads(line)["time"]) for line in lines.good().splitlines()]


def test_on_failure_so_often_and_later_each_time(tare: Tare, name: str) -> None:
    tare.up("--restart", "on-failure:3", "--name", name, *FAILING)
    until(lambda: tare.state(name)["Status"] == "exited")
    found = document(tare, name)
    assert (found["RestartCount"], found["State"]["ExitCode"], found["State"]["Restarting"]) == (3, 3, False)
    assert found["HostConfig"]["RestartPolicy"] == {"Name": "on-failure", "MaximumRetryCount": 3}
    assert tare("logs", name).good().splitlines() == ["life"] * 4
    began = starts(tare, name)
    for (earlier, later), delay_s in zip(pairwise(began), (0.1, 0.2, 0.4), strict=True):
        assert (later - earlier).total_seconds() >= delay_s
    assert tare.residents() == []


def test_on_failure_lets_success_end_it(tare: Tare, name: str) -> None:
    tare.up("--restart", "on-failure", "--name", name, IMAGE, "sh", "-c", "test -e /was || { touch /was; exit 1; }")
    until(lambda: tare.state(name)["Status"] == "exited")
    assert (document(tare, name)["RestartCount"], tare.state(name)["ExitCode"]) == (1, 0)


@pytest.mark.parametrize("policy", ["always", "unless-stopped"])
def test_always_is_after_success_too_and_stop_ends_it(tare: Tare, name: str, policy: str) -> None:
    tare.up("--restart", policy, "--name", name, IMAGE, "true")
    until(lambda: document(tare, name)["RestartCount"] >= 2)
    tare("stop", "-t", "0", name).good()
    assert tare.state(name)["Status"] == "exited"
    count = document(tare, name)["RestartCount"]
    keeper = tare.keeper()
    until(lambda: not Path(f"/proc/{keeper}").exists())  # it waits for nothing any more
    assert document(tare, name)["RestartCount"] == count
    assert tare.residents() == []


def test_while_it_waits_it_is_restarting(tare: Tare, name: str) -> None:
    tare.up("--restart", "always", "--name", name, *FAILING)
    until(lambda: document(tare, name)["RestartCount"] >= 3)
    until(lambda: "Restarting (3)" in tare("ps", "-f", "status=restarting").good())
    until(lambda: "it is restarting" in tare("rm", name).err)  # or just then it runs
    following = tare.begin("logs", "-f", name)
    assert following.stdout is not None
    for _ in range(5):
        assert following.stdout.readline() == b"life\n"  # five lives, four of which have been
    tare("rm", "-f", name).good()
    assert following.wait(60) == 0
    assert tare("inspect", name).code == 1
    assert tare.residents() == []


def test_kill_ends_it_and_another_signal_does_not(tare: Tare, name: str) -> None:
    script = "trap 'exit 0' USR1; echo ready; while :; do sleep 0.02; done"
    tare.up("--restart", "always", "--name", name, IMAGE, "sh", "-c", script)
    until(lambda: tare("logs", name).out == "ready\n")
    tare("kill", "-s", "USR1", name).good()
    until(lambda: document(tare, name)["RestartCount"] == 1 and tare.state(name)["Status"] == "running")
    tare("kill", name).good()
    until(lambda: tare.state(name)["Status"] == "exited")
    assert tare.state(name)["ExitCode"] == 137
    tare("start", name).good()
    assert document(tare, name)["RestartCount"] == 0
    os.kill(tare.state(name)["Pid"], signal.SIGKILL)  # by nobody who has asked us
    until(lambda: document(tare, name)["RestartCount"] == 1)


def test_a_network_comes_with_each_life_and_goes_with_the_last(tare: Tare, name: str) -> None:
    tare("run", "-d", "--restart", "on-failure:2", "--name", name, "-p", "127.0.0.1::80", *FAILING).good()
    until(lambda: tare.state(name)["Status"] == "exited" and document(tare, name)["RestartCount"] == 2)
    until(lambda: tare.residents() == [])
    tare("rm", name).good()
    tare("run", "-d", "--restart", "always", "--name", name, "-p", "127.0.0.1::80", *FAILING).good()
    until(lambda: document(tare, name)["RestartCount"] >= 3)  # it waits longer each time
    until(lambda: tare.state(name)["Restarting"])
    tare("stop", name).good()
    assert tare.residents() == []


def test_why_it_could_not_be_started_again_is_said(tare: Tare, name: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    tare.up("--restart", "always", "--name", name, "-v", f"{tmp_path}/data:/data", IMAGE, *FOREVER)
    (tmp_path / "data").rmdir()
    os.kill(tare.state(name)["Pid"], signal.SIGKILL)
    until(lambda: tare.state(name)["Status"] == "exited")
    assert "No such file or directory" in tare.state(name)["Error"]
    until(lambda: tare.residents() == [])


def test_who_was_attached_sees_its_first_end(tare: Tare, name: str) -> None:
    said = tare("run", "--restart", "always", "--name", name, *NONE, *FAILING)
    assert (said.code, said.out) == (3, "life\n")
    until(lambda: document(tare, name)["RestartCount"] >= 1)
    tare("stop", name).good()


def test_a_keeper_killed_starts_nothing_again_and_that_is_seen(tare: Tare, name: str) -> None:
    tare.up("--restart", "always", "--name", name, *FAILING)
    until(lambda: document(tare, name)["RestartCount"] >= 3)
    until(lambda: tare.state(name)["Restarting"])
    os.kill(tare.keeper(), signal.SIGKILL)
    until(lambda: tare.state(name)["Status"] == "exited")
    tare("start", name).good()
    until(lambda: document(tare, name)["RestartCount"] >= 1)
    tare("stop", name).good()


@pytest.mark.parametrize(
    "words",
    [
        ("--restart", "sometimes"),
        ("--restart", "always:3"),
        ("--restart", "on-failure:x"),
        ("--restart", "on-failure:-1"),
        ("--rm", "--restart", "always"),
    ],
)
def test_a_policy_that_cannot_be_is_refused(tare: Tare, words: tuple[str, ...]) -> None:
    said = tare("run", "-d", *words, *NONE, IMAGE, "true")
    assert said.code == 125
    assert "--restart" in said.err
    assert tare("ps", "-aq").good() == ""


def test_stopping_in_the_midst_of_a_start_ends_it(tare: Tare, name: str) -> None:
    for delay_s in (0.0, 0.1, 0.2, 0.3, 0.4):
        tare.up("--restart", "always", "--name", name, IMAGE, "true")
        time.sleep(delay_s)  # anywhere in its lives
        tare("stop", "-t", "0", name).good()
        count = document(tare, name)["RestartCount"]
        assert tare.state(name)["Status"] == "exited"
        time.sleep(0.5)
        assert (document(tare, name)["RestartCount"], tare.state(name)["Status"]) == (count, "exited")
        tare("rm", name).good()
    assert tare.residents() == []

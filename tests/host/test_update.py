"""`tare update`: limits of containers that run and that do not, and the restart policy. Needs root."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.host.life import FOREVER, IMAGE, NONE, Tare, name, tare, until

__all__ = ["name", "tare"]  # fixtures
pytestmark = pytest.mark.usefixtures("root_user")


def host_config(tare: Tare, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(tare("inspect", name).good())[0]["HostConfig"]
    return found


def pids_limit(tare: Tare, name: str) -> str:
    """As the kernel has it."""
    script = "cat /sys/fs/cgroup/pids/pids.max 2>/dev/null || cat /sys/fs/cgroup/pids.max"
    return tare("exec", name, "sh", "-c", script).good()


def test_limits_of_a_running_container_change_at_once_and_for_its_next_start(tare: Tare, name: str) -> None:
    tare.up("--name", name, "--pids-limit", "50", "-m", "64m", IMAGE, *FOREVER)
    tare("update", "--pids-limit", "60", "--cpus", "0.5", name).good()
    assert pids_limit(tare, name) == "60"
    found = host_config(tare, name)
    assert (found["PidsLimit"], found["CpuQuota"], found["Memory"]) == (60, 50_000, 64 << 20)
    tare("restart", "-t", "0", name).good()
    assert pids_limit(tare, name) == "60"


def test_a_controller_that_it_had_not_is_joined_and_left_again(tare: Tare, name: str) -> None:
    tare.up("--name", name, IMAGE, *FOREVER)
    tare("update", "--cpuset-cpus", "0", name).good()
    assert tare("exec", name, "grep", "Cpus_allowed_list", "/proc/1/status").good().split()[1] == "0"
    tare("kill", name).good()
    tare("wait", name).good()
    assert tare.residents() == []


def test_what_does_not_run_is_changed_for_its_start(tare: Tare, name: str) -> None:
    tare("create", "--name", name, *NONE, "-m", "64m", "--memory-swap", "64m", IMAGE, *FOREVER).good()
    tare("update", "--memory-swap", "128m", name).good()
    found = host_config(tare, name)
    assert (found["Memory"], found["MemorySwap"]) == (64 << 20, 128 << 20)
    tare("start", name).good()
    assert tare.state(name)["Running"]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ((), "nothing to change"),
        (("--cpuset-cpus", "4000"), "cpu"),
        (("--memory-swap", "64m"), "needs a memory limit"),
        (("--restart", "sometimes"), "no such policy"),
        (("--read-only",), "No such option"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(tare: Tare, name: str, words: tuple[str, ...], why: str) -> None:
    tare("create", "--name", name, *NONE, IMAGE, "true").good()
    before = host_config(tare, name)
    said = tare("update", *words, name)
    assert said.code != 0
    assert why in said.err
    assert host_config(tare, name) == before


def test_a_policy_given_later_starts_it_again_and_one_taken_away_does_not(tare: Tare, name: str) -> None:
    tare.up("--name", name, IMAGE, *FOREVER)
    tare("update", "--restart", "always", name).good()
    assert host_config(tare, name)["RestartPolicy"] == {"Name": "always", "MaximumRetryCount": 0}
    tare("exec", name, "kill", "-KILL", "-1")
    first = tare.state(name)["Pid"]
    tare.call(["kill", "-KILL", str(first)])
    until(lambda: tare.state(name)["Pid"] not in (0, first))
    tare("update", "--restart", "no", name).good()
    tare.call(["kill", "-KILL", str(tare.state(name)["Pid"])])
    until(lambda: tare.state(name)["Status"] == "exited")
    assert tare("wait", name).good() == "137"

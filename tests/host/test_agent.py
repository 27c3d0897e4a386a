"""The guest agent as PID 1 of fresh PID and network namespaces: it reaps, raises the loopback, and ends cleanly."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.channel import Channel
from tests.agent import Agent, build, gone
from tests.conftest import skip_or_fail

UNSHARE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--net")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode != 0:
        skip_or_fail("cannot make PID, mount and network namespaces")
    return build(tmp_path_factory.mktemp("agent"))


@pytest.fixture
def agent(program: Path) -> Iterator[Agent]:
    with Agent(program, wrapper=UNSHARE) as agent:
        yield agent


@pytest.fixture
def channel(agent: Agent) -> Channel:
    return agent.talk()


def test_loopback_of_a_fresh_network_is_raised_before_the_service(channel: Channel) -> None:
    network = channel.exec(["readlink", "/proc/self/ns/net"], 20).check().stdout.decode().strip()
    assert network != str(Path("/proc/self/ns/net").readlink())
    assert channel.exec(["cat", "/proc/1/comm"], 20).stdout == b"agent\n"
    assert channel.service_port


def test_orphans_are_reaped(channel: Channel) -> None:
    orphan = "setsid sh -c 'exit 0' &"
    channel.exec(["sh", "-c", orphan * 20], 20).check()
    zombies = "until ! grep -lsE '^State:.Z' /proc/[0-9]*/status; do :; done >/dev/null"
    channel.exec(["sh", "-c", zombies], 20).check()


def test_term_ends_pid_1_and_everything_below_it(agent: Agent, channel: Channel, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "up")
    program = f"setsid sh -c 'echo > {tmp_path}/up; exec sleep 1000' & read line < {tmp_path}/up"
    channel.exec(["sh", "-c", program], 20).check()
    children = Path(f"/proc/{agent.process.pid}/task/{agent.process.pid}/children").read_text().split()
    init = int(children[0])
    sleeper = int(Path(f"/proc/{init}/task/{init}/children").read_text().split()[0])
    pidfd = os.pidfd_open(sleeper)
    os.kill(init, signal.SIGTERM)
    assert gone(pidfd)
    os.close(pidfd)
    assert agent.end() == (0, "")

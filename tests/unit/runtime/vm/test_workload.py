"""The program that a guest is launched for, run by the compiled agent without a guest around it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from runtime.channel import Channel
from runtime.drivers.libvirt import refuse_settings
from runtime.errors import TareError
from runtime.instance import Timeline
from runtime.vm.workload import OUTPUT_KEPT_BYTES, Workload
from tests.agent import Agent, build


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("agent"))


@pytest.fixture
def agent(program: Path) -> Iterator[Agent]:
    with Agent(program) as agent:
        agent.channel = Channel(agent.sock, Timeline())
        yield agent


def launched(agent: Agent, *argv: str, **env: str) -> Workload:
    assert agent.channel is not None
    return Workload(agent.channel, argv, env)


@pytest.mark.parametrize(("program_text", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137)])
def test_its_code_is_kept_and_its_end_is_the_agents(agent: Agent, program_text: str, code: int) -> None:
    work = launched(agent, "sh", "-c", f"echo out; echo err >&2; {program_text}")
    assert work.wait_ended(20) == code
    assert agent.end()[0] == 0
    assert sorted(work.output().splitlines()) == [b"err", b"out"]
    assert work.wait_begun(0)


def test_a_program_that_cannot_be_begun_has_a_shells_code(agent: Agent) -> None:
    work = launched(agent, "no-such-program")
    assert work.wait_ended(20) == 127
    assert b"No such file" in work.output()


def test_while_it_runs_there_is_no_code(agent: Agent) -> None:
    work = launched(agent, "sleep", "1000")
    assert work.wait_begun(20)
    assert work.wait_ended(0.05) is None


def test_its_variables_are_the_specs_with_a_path(agent: Agent) -> None:
    work = launched(agent, "env", A="b")
    assert work.wait_ended(20) == 0
    assert work.output().startswith(b"PATH=/usr/local/sbin:")
    assert work.output().endswith(b"A=b\n")


def test_only_the_end_of_much_output_is_kept(agent: Agent) -> None:
    work = launched(agent, "sh", "-c", "head -c 5000000 /dev/zero; echo end")
    assert work.wait_ended(20) == 0
    assert work.output()[-4:] == b"end\n"
    assert len(work.output()) <= OUTPUT_KEPT_BYTES


def test_a_guest_that_is_lost_is_told(agent: Agent) -> None:
    work = launched(agent, "sh", "-c", "kill -9 $PPID")
    for wait in (work.wait_ended, work.wait_begun):
        with pytest.raises(TareError, match="connection lost"):
            wait(20)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({}, ""),
        ({"User": "root", "WorkingDir": "/"}, ""),
        ({"User": "web"}, "User 'web'"),
        ({"WorkingDir": "/srv"}, "/srv"),
    ],
)
def test_settings_of_an_image_that_a_program_would_miss_are_refused(config: dict[str, Any], named: str) -> None:
    image: Any = SimpleNamespace(config={"config": config})
    if not named:
        refuse_settings(image)
        return
    with pytest.raises(TareError, match=named):
        refuse_settings(image)

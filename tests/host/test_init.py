"""`tare run --init`: what a process 1 of the host's does for a container whose program does not. Needs root."""

from __future__ import annotations

import json

import pytest

from runtime.container import inits
from runtime.errors import TareError
from tests.conftest import skip_or_fail
from tests.host.life import FOREVER, IMAGE, NONE, Tare, name, tare, until

__all__ = ["name", "tare"]  # fixtures

ZOMBIES = ("sh", "-c", "cat /proc/[0-9]*/stat 2>/dev/null | grep -c ') Z '")
ORPHAN = ("sh", "-c", "sleep 0.05 & echo $!")


@pytest.fixture(autouse=True)
def _found() -> None:
    try:
        inits.find()
    except TareError as error:
        skip_or_fail(str(error))


@pytest.mark.parametrize("words", [(), ("--read-only",), ("-u", "1000"), ("--userns", "auto"), ("--cap-drop", "ALL")])
def test_process_1_is_the_init_and_the_code_is_the_programs(tare: Tare, words: tuple[str, ...]) -> None:
    said = tare.run(
        "--init", *words, IMAGE, "sh", "-c", "cat /proc/1/comm /proc/$$/comm; test ! -w /dev/init; exit $((5+$?))"
    )
    assert (said.code, said.out.split()) == (5, ["init", "sh"]), said
    assert tare.run("--init", *words, IMAGE, "no-such-program").code == 127


def test_an_orphan_is_reaped_with_it_alone(tare: Tare, name: str) -> None:
    for words, zombies in (((), "1"), (("--init",), "0")):
        tare.up("--name", name, *words, IMAGE, *FOREVER)
        pid = tare("exec", name, *ORPHAN).good()
        until(lambda pid=pid: "sleep" not in tare("exec", name, "cat", f"/proc/{pid}/cmdline").out)  # type: ignore[misc]
        until(lambda zombies=zombies: tare("exec", name, *ZOMBIES).out.strip() == zombies)  # type: ignore[misc]
        tare("rm", "-f", name).good()


def test_signals_reach_what_ignores_them_as_process_1(tare: Tare, name: str) -> None:
    tare.up("--name", name, "--init", IMAGE, *FOREVER)
    tare("stop", "-t", "-1", name).good()  # it is never killed
    assert tare.state(name)["ExitCode"] == 143
    tare("start", name).good()
    assert tare.state(name)["Running"]


def test_it_is_shown_as_asked_for_and_in_no_layer(tare: Tare, name: str) -> None:
    tare.up("--name", name, "--init", IMAGE, *FOREVER)
    found = json.loads(tare("inspect", name).good())[0]
    assert (found["HostConfig"]["Init"], found["Path"], found["Args"]) == (True, "sleep", ["1000"])
    assert tare("diff", name).good() == ""


def test_where_there_is_none_nothing_is_made(tare: Tare, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tare("ps", "-aq").good()
    monkeypatch.setenv("PATH", "/nowhere")
    said = tare("run", "--init", *NONE, IMAGE, "true")
    assert said.code == 125
    assert "install the package tini" in said.err
    assert tare("ps", "-aq").good() == before

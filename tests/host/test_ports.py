"""Ports published as users of Docker write them, ranges too: what is reached, shown, and refused. Needs root."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable

import pytest

from tests.conftest import skip_or_fail
from tests.host.life import FOREVER, IMAGE, Tare, name, tare
from tests.host.network import ask, serve
from tests.ports import free_port

__all__ = ["name", "serve", "tare"]  # fixtures


@pytest.fixture(autouse=True)
def _tools() -> None:
    for tool in ("nft", "ip", "nsenter"):
        if shutil.which(tool) is None:
            skip_or_fail(f"no {tool} on PATH")


def test_a_range_leads_port_by_port_and_is_shown(tare: Tare, name: str, serve: Callable[..., None]) -> None:
    first = free_port(3)
    words = ("-p", f"{first}-{first + 2}:80-82", "-p", "127.0.0.1::90", "-p", "127.0.0.1::90/udp")
    tare("run", "-d", "--name", name, *words, IMAGE, *FOREVER).good()
    found = json.loads(tare("inspect", name).good())[0]
    for inside in (80, 82):
        serve(inside, "nsenter", "-t", str(found["State"]["Pid"]), "-n")
        assert ask("127.0.0.1", first + inside - 80)
    shown = tare("port", name).good().splitlines()
    assert shown[:3] == [f"{80 + n}/tcp -> 0.0.0.0:{first + n}" for n in range(3)]
    assert [line.rpartition(":")[0] for line in shown[3:]] == ["90/tcp -> 127.0.0.1", "90/udp -> 127.0.0.1"]
    assert tare("port", name, "81").good() == f"0.0.0.0:{first + 1}"
    assert f"0.0.0.0:{first}-{first + 2}->80-82/tcp" in tare("ps").good()
    chosen = shown[3].rpartition(":")[2]
    assert found["NetworkSettings"]["Ports"]["90/tcp"] == [{"HostIp": "127.0.0.1", "HostPort": chosen}]


def test_a_port_inside_that_is_published_twice_is_shown_twice(tare: Tare, name: str) -> None:
    first = free_port(2)
    tare("run", "-d", "--name", name, "-p", f"{first}:80", "-p", f"{first + 1}:80", IMAGE, *FOREVER).good()
    document = json.loads(tare("inspect", name).good())[0]
    for bound in (document["HostConfig"]["PortBindings"], document["NetworkSettings"]["Ports"]):
        assert [one["HostPort"] for one in bound["80/tcp"]] == [str(first), str(first + 1)]


@pytest.mark.parametrize(
    "words", [("8000-8005:80-84",), ("8005-8000:80-85",), ("8000-8005:80-85", "8003:1"), ("8000-8005:80",)]
)
def test_a_lying_range_is_refused_before_anything_is_made(tare: Tare, words: tuple[str, ...]) -> None:
    before = tare("ps", "-aq").good()
    said = tare("run", "-d", *(part for word in words for part in ("-p", word)), IMAGE, *FOREVER)
    assert said.code == 125
    assert f"port '{words[-1]}'" in said.err
    assert tare("ps", "-aq").good() == before
    assert tare.residents() == []


def test_a_range_of_which_one_port_is_used_publishes_none(tare: Tare, name: str) -> None:
    first = free_port(3)
    tare("run", "-d", "--name", name, "-p", f"{first + 1}:80", IMAGE, *FOREVER).good()
    said = tare("run", "--rm", "-p", f"{first}-{first + 2}:80-82", IMAGE, "true")
    assert f"port 0.0.0.0:{first + 1}/tcp: another container has published it" in said.err
    assert tare("run", "--rm", "-p", f"{first}:80", "-p", f"{first + 2}:80", IMAGE, "true").code == 0


def test_a_thousand_ports_are_published_and_given_back(tare: Tare, name: str) -> None:
    words = ("-p", "127.0.0.1::1001-2000/udp")
    tare("run", "-d", "--name", name, *words, IMAGE, *FOREVER).good()
    assert len(tare("port", name).good().splitlines()) == 1000
    tare("rm", "-f", name).good()
    assert tare.residents() == []

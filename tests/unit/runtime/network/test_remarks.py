"""What is said of a host that will not serve a thousand containers, and of firewalls in the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import pytest

from runtime.command import CompletedCommand
from runtime.network import forwarding, remarks
from runtime.network.definitions import DEFAULT, Definitions
from runtime.network.host_links import Bridge
from runtime.network.subnet import Route, Subnet


class Links:
    """A host's links without a host."""

    there: ClassVar[list[Bridge]] = []
    ways: ClassVar[list[Route]] = []

    def bridges(self) -> list[Bridge]:
        return self.there

    def routes(self) -> list[Route]:
        return self.ways

    def close(self) -> None:
        pass


@pytest.fixture
def chains(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """What nft lists; it is on PATH."""
    listed: list[dict[str, object]] = []

    def run(argv: list[str], **_: object) -> CompletedCommand:
        return CompletedCommand(
            json.dumps({"nftables": [{"metainfo": {}}, *({"chain": c} for c in listed)]}).encode(), b""
        )

    monkeypatch.setattr(forwarding, "run", run)
    monkeypatch.setattr(remarks, "HostLinks", Links)
    monkeypatch.setattr(Links, "there", [])
    monkeypatch.setattr(Links, "ways", [])
    monkeypatch.setattr(remarks.shutil, "which", lambda name: f"/usr/sbin/{name}")  # type: ignore[attr-defined]
    return listed


def host(proc: Path, threshold: int) -> Path:
    file = proc / "sys/net/ipv4/neigh/default/gc_thresh3"
    file.parent.mkdir(parents=True)
    file.write_text(f"{threshold}\n")
    return proc


def test_a_small_neighbour_table_is_remarked(tmp_path: Path, chains: list[dict[str, object]]) -> None:
    (found,) = remarks.remarks(tmp_path, host(tmp_path / "small", 1024))
    assert "ends at 1024" in found.text
    assert "gc_thresh3=4096" in found.do
    assert remarks.remarks(tmp_path, host(tmp_path / "large", 4096)) == []


def test_a_foreign_chain_that_drops_is_named(tmp_path: Path, chains: list[dict[str, object]]) -> None:
    drops: dict[str, object] = {"family": "inet", "table": "fw", "name": "fwd", "hook": "forward", "policy": "drop"}
    chains += [
        drops,
        {**drops, "table": "quiet", "policy": "accept"},
        {**drops, "table": "in", "hook": "input"},
        {"family": "inet", "table": "plain", "name": "sub"},
        {**drops, "family": "ip", "table": "filter", "name": "FORWARD"},  # iptables' own: `admit` mends it
    ]
    (found,) = remarks.remarks(tmp_path, host(tmp_path / "proc", 4096))
    assert "inet fw fwd drops" in found.text


def test_a_bridge_of_a_root_that_is_gone_is_named_and_those_of_others_are_not(
    tmp_path: Path, chains: list[dict[str, object]]
) -> None:
    quiet = host(tmp_path / "proc", 4096)
    for number, alias in enumerate(["", "mine", "tare t relative", f"tare t {tmp_path}", f"tare t {tmp_path}/gone"]):
        Links.there.append(Bridge(name=f"br{number}", index=number, alias=alias, mtu=1500, up=True))
    (found,) = remarks.remarks(tmp_path, quiet)
    assert (found.text.split()[1], found.do) == ("br4", "tare clean")


@pytest.mark.parametrize(
    ("given", "bridge", "route", "remarked"),
    [
        (None, True, Route(0x0A570100, 24, 9), True),
        (None, True, Route(0x0A570000, 22, 7), False),  # its own bridge's
        (None, True, Route(0, 0, 9), False),  # the way to everything
        (None, True, Route(0x0A580000, 16, 9), False),
        (None, False, Route(0x0A570100, 24, 9), False),  # it would choose another subnet
        ("10.87.0.0/16", False, Route(0x0A570100, 24, 9), True),
    ],
)
def test_a_route_that_came_into_a_network_is_remarked(
    tmp_path: Path, chains: list[dict[str, object]], given: str | None, bridge: bool, route: Route, remarked: bool
) -> None:
    network = Definitions(tmp_path).save(DEFAULT, Subnet.parse(given) if given else None, [])
    if bridge:
        Links.there.append(Bridge(name=network.bridge(0), index=7, alias=f"tare t {tmp_path}", mtu=1500, up=True))
    Links.ways.append(route)
    found = remarks.remarks(tmp_path, host(tmp_path / "proc", 4096))
    assert [remark.text.split(":")[0] for remark in found] == ["network bridge"] * remarked


def test_without_nft_there_are_no_bridges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remarks.shutil, "which", lambda _: None)  # type: ignore[attr-defined]
    (found,) = remarks.remarks(tmp_path)
    assert not found.usable


def test_forwarding_is_allowed_and_forbidden_again(tmp_path: Path) -> None:
    knob = tmp_path / "sys/net/ipv4/ip_forward"
    knob.parent.mkdir(parents=True)
    state = tmp_path / "state"
    knob.write_text("0\n")
    forwarding.enter(state, tmp_path)
    assert knob.read_text() == "1"
    forwarding.leave(state, needed=False, proc=tmp_path)
    assert knob.read_text() == "0"
    assert not state.exists()


@pytest.mark.parametrize(("before", "needed", "after"), [("1\n", False, "1\n"), ("0\n", True, "1")])
def test_forwarding_that_others_need_stays(tmp_path: Path, before: str, needed: bool, after: str) -> None:
    knob = tmp_path / "sys/net/ipv4/ip_forward"
    knob.parent.mkdir(parents=True)
    knob.write_text(before)
    forwarding.enter(tmp_path / "state", tmp_path)
    forwarding.leave(tmp_path / "state", needed=needed, proc=tmp_path)
    assert knob.read_text() == after

"""Networks as files: names, subnets that keep out of each other's way, device names that fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.errors import TareError, UsageError
from runtime.network.definitions import DEFAULT, Definitions
from runtime.network.subnet import Route, Subnet


def route(text: str) -> Route:
    subnet = Subnet.parse(text)
    return Route(subnet.base, subnet.prefix_bits, 2)


def test_the_first_subnet_that_nothing_uses_is_chosen(tmp_path: Path) -> None:
    definitions = Definitions(tmp_path)
    routes = [Route(0, 0, 2), route("10.87.5.0/24")]
    assert str(definitions.save(DEFAULT, None, routes).subnet) == "10.86.0.0/16"
    assert str(definitions.create("two", None, routes).subnet) == "10.85.0.0/16"


def test_a_host_that_uses_everything_is_told_so(tmp_path: Path) -> None:
    routes = [route("10.0.0.0/8"), route("172.16.0.0/12"), route("192.168.0.0/16")]
    with pytest.raises(TareError, match="every candidate overlaps"):
        Definitions(tmp_path).create("net", None, routes)
    assert Definitions(tmp_path).all() == []


def test_a_subnet_that_is_given_must_not_overlap(tmp_path: Path) -> None:
    definitions = Definitions(tmp_path)
    definitions.create("one", Subnet.parse("10.9.0.0/24"), [])
    with pytest.raises(UsageError, match=r"overlaps 10\.9\.0\.0/24"):
        definitions.create("two", Subnet.parse("10.9.0.0/16"), [])
    with pytest.raises(UsageError, match=r"overlaps 10\.8\.0\.0/16"):
        definitions.create("two", Subnet.parse("10.8.1.0/24"), [route("10.8.0.0/16")])


@pytest.mark.parametrize("name", ["", "none", "host", "container", "default", "-x", "a/b", "..", "a" * 64, "ü"])
def test_a_bad_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="network"):
        Definitions(tmp_path).create(name, None, [])
    with pytest.raises(UsageError, match="no such network"):
        Definitions(tmp_path).demand(name)


def test_a_network_is_found_again_until_it_is_removed(tmp_path: Path) -> None:
    made = Definitions(tmp_path).create("a.b", Subnet.parse("10.9.0.0/24"), [])
    assert Definitions(tmp_path).all() == [made] == [Definitions(tmp_path).demand("a.b")]
    assert not made.automatic
    with pytest.raises(UsageError, match="exists already"):
        Definitions(tmp_path).create("a.b", None, [])
    Definitions(tmp_path).remove("a.b")
    assert Definitions(tmp_path).all() == []


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"subnet": 3, "automatic": true}', '{"subnet": "x"}'])
def test_a_broken_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "networks").mkdir()
    (tmp_path / "networks" / "net.json").write_text(text)
    with pytest.raises(TareError, match="its file is broken"):
        Definitions(tmp_path).demand("net")


def test_devices_are_told_apart_and_their_names_fit() -> None:
    first, second = Definitions(Path("/a")), Definitions(Path("/b"))
    stems = {each._stem(name) for each in (first, second) for name in (DEFAULT, "x")}
    assert len(stems) == 4
    widest = Subnet.parse("10.0.0.0/8").segments - 1
    assert all(len(f"{stem}{widest}") <= 15 for stem in stems)
    assert Definitions(Path("/var/lib/tare"))._stem(DEFAULT) == "tare"

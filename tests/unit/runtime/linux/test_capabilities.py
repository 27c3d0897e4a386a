"""Capability names, and Docker's rules for adding and dropping."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from runtime.errors import UsageError
from runtime.linux import capabilities
from runtime.linux.capabilities import ALL, DEFAULT, NUMBERS, choose, normalise, numbers

HEADER = Path("/usr/include/linux/capability.h")


def test_numbers_are_the_headers() -> None:
    assert (NUMBERS["CAP_CHOWN"], NUMBERS["CAP_SYS_ADMIN"], NUMBERS["CAP_CHECKPOINT_RESTORE"]) == (0, 21, 40)
    assert len(NUMBERS) == 41
    if HEADER.exists():
        found = re.findall(r"^#define (CAP_[A-Z_]+)\s+(\d+)$", HEADER.read_text(), re.MULTILINE)
        assert {name: int(number) for name, number in found}.items() >= NUMBERS.items()


@pytest.mark.parametrize("name", ["net_admin", "NET_ADMIN", "CAP_NET_ADMIN", "cap_net_admin"])
def test_every_spelling_means_the_same(name: str) -> None:
    assert normalise(name) == "CAP_NET_ADMIN"


@pytest.mark.parametrize("name", ["", "CAP_", "NET ADMIN", "CAP_CAP_CHOWN", "everything"])
def test_an_unknown_name_is_refused_by_name(name: str) -> None:
    with pytest.raises(UsageError, match=re.escape(repr(name))):
        normalise(name)


def test_default_is_dockers() -> None:
    assert set(choose()) == set(DEFAULT)
    assert len(DEFAULT) == 14


def test_all_added_leaves_out_what_is_dropped() -> None:
    assert set(choose(["all"], ["chown"])) == set(NUMBERS) - {"CAP_CHOWN"}


def test_all_added_stops_at_what_the_kernel_has() -> None:
    assert choose([ALL], every=capabilities.everything(37)) == tuple(NUMBERS)[:38]


def test_all_dropped_leaves_what_is_added() -> None:
    assert choose(["NET_ADMIN"], ["ALL"]) == ("CAP_NET_ADMIN",)


def test_a_name_both_added_and_dropped_stays() -> None:
    assert "CAP_CHOWN" in choose(["CHOWN"], ["CHOWN"])


def test_numbers_leave_out_what_the_kernel_lacks() -> None:
    assert numbers(["CAP_CHOWN", "CAP_BPF", "CAP_UNHEARD_OF"], last=38) == {0}
    assert capabilities.everything(0) == ("CAP_CHOWN",)


def test_held_are_those_of_the_bounding_set(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("Name:\tx\nCapEff:\t0000000000000000\nCapBnd:\t000001fffdffffff\nCapAmb:\t0\n")
    assert set(capabilities.held(status)) == set(NUMBERS) - {"CAP_SYS_TIME"}
    assert set(capabilities.held()) <= set(NUMBERS)

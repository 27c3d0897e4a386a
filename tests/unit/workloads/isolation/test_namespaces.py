"""What the probes of the namespaces conclude from what the two sides see."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from runtime.driver import Kind
from tests.fakes import look
from tests.unit.workloads.visits import visit
from workloads.base import Invalid
from workloads.isolation import namespaces
from workloads.isolation.namespaces import KINDS, View, inward, outward, parse


def side(name: str, own: bool = False) -> View:
    return parse(look(name, own))


def test_another_kernel_is_apart_in_everything_both_ways() -> None:
    assert all(inward(kind, side("host"), side("guest"), frozenset({"/tare/1"}))[0] for kind in KINDS)
    assert all(outward(kind, side("host"), side("guest"), True)[0] for kind in KINDS)


def test_the_same_side_is_apart_in_nothing() -> None:
    here = side("host", own=True)
    here = replace(here, seen=dict.fromkeys(here.seen, True), cgroups=frozenset({"/tare/1"}))
    assert not any(inward(kind, here, here, frozenset({"/tare/1"}))[0] for kind in KINDS)
    assert not any(outward(kind, here, here, True)[0] for kind in KINDS)
    assert not any(outward(kind, here, here, False)[0] for kind in KINDS)


def test_equal_numbers_of_two_kernels_are_two_namespaces() -> None:
    here, there = side("host"), side("host")
    there.facts["boot"] = "another"
    assert inward("time", here, there, frozenset()) == (True, "identity")
    assert inward("uts", here, there, frozenset()) == (True, "standing")


def test_a_kind_the_kernel_lacks_is_shared() -> None:
    here, there = side("host"), side("host")
    for view in (here, there):
        view.facts["link-time"] = ""
    assert inward("time", here, there, frozenset()) == (False, "identity")


def test_the_root_control_group_names_nobody(tmp_path: Path) -> None:
    (tmp_path / "4000000").mkdir()
    (tmp_path / "4000000/cgroup").write_text("2:pids:/tare/x\n1:cpu:/\n0::/\n")
    context, _ = visit(tmp_path / "host")
    assert namespaces.host_cgroups(context.shared, tmp_path) == {"/tare/x"}


@pytest.mark.parametrize("line", ["pid", "boot"])
def test_a_look_that_does_not_tell_is_invalid(line: str) -> None:
    lines = [text for text in look("host", True).splitlines() if not text.startswith(line.encode())]
    with pytest.raises(Invalid, match=line):
        parse(b"\n".join(lines))


def test_a_side_that_does_not_see_its_own_is_blind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def nothing(directory: Path, signal: namespaces.Signal) -> Iterator[None]:
        yield

    monkeypatch.setattr(namespaces, "outside_beacon", nothing)
    monkeypatch.setattr(namespaces, "outside_look", lambda signal: side("host"))
    context, _ = visit(tmp_path, kind=Kind.CONTAINER)
    with pytest.raises(Invalid, match="the host does not see its own"):
        list(namespaces.Namespaces().measure(context))

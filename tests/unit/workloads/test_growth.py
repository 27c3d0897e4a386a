"""One more instance, and what it writes: counted on the host, on an instance of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.driver import Kind
from runtime.instance import ExecResult
from tests.fakes import Behaviour
from tests.unit.workloads.visits import one, visit
from workloads.base import Invalid
from workloads.growth import WRITTEN_BYTES, Growth


@pytest.mark.parametrize("kind", [Kind.NATIVE, Kind.CONTAINER, Kind.VM])
def test_growth_is_what_the_second_instance_adds_and_writes(tmp_path: Path, kind: Kind) -> None:
    context, driver = visit(tmp_path, kind=kind)
    (driver.instances[0].directory / "own").write_bytes(b"x" * (4 << 20))
    samples = list(Growth().measure(context))
    assert 4096 <= one(samples, "growth.marginal_allocated").value <= 16384
    assert WRITTEN_BYTES <= one(samples, "growth.written_64mib").value < WRITTEN_BYTES + (1 << 20)
    copied = [sample for sample in samples if sample.metric == "growth.copy_up"]
    assert [sample.value for sample in copied] == ([] if kind is Kind.NATIVE else [2 << 20])
    assert all(sample.labels == {"file": "/usr/lib/large.so", "file_bytes": str(2 << 20)} for sample in copied)
    assert [instance.closed for instance in driver.instances] == [False, True]


def test_shared_instance_is_not_written_to(tmp_path: Path) -> None:
    context, driver = visit(tmp_path)
    list(Growth().measure(context))
    assert driver.instances[0].commands == [("sync",)]


def test_writes_the_host_does_not_see_are_invalid(tmp_path: Path) -> None:
    context, driver = visit(tmp_path)
    samples = Growth().measure(context)
    driver.behaviour.reply = lambda instance, argv: (
        None if "dd" not in argv else instance.exec(("true",), 1)  # answers, writes nothing
    )
    with pytest.raises(Invalid, match="not flushed"):
        list(samples)


def test_failed_write_inside_is_an_error(tmp_path: Path) -> None:
    context, _ = visit(tmp_path, Behaviour(fail_exec="/dev/urandom"))
    with pytest.raises(Exception, match="told to fail"):
        list(Growth().measure(context))


@pytest.mark.parametrize(("word", "why"), [("find", "no large file"), ("seek", "shows nowhere")])
def test_byte_that_cannot_be_changed_or_seen_is_invalid(tmp_path: Path, word: str, why: str) -> None:
    context, driver = visit(tmp_path)
    driver.behaviour.reply = lambda instance, argv: (
        ExecResult(tuple(argv), 0, b"", b"", 1) if any(word in each for each in argv) else None
    )
    with pytest.raises(Invalid, match=why):
        list(Growth().measure(context))

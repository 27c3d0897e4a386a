"""Journals survive crashes, full disks and second writers."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator, ValidationError

from harness.journal import Journal, JournalError, check_same, done
from harness.results import JOURNAL, Cell, Event, Facts, Line, Outcome, Record, ResultsError, Run, to_json
from tests.unit.harness.engine import SCHEMA, demand_schema, header, tiny_profile
from workloads.metric import Phase, Sample

CELL = Cell("boot", "native", "native")


def record(block: int, **changes: object) -> Record:
    values: dict[str, object] = {
        "cell": CELL,
        "block": block,
        "position": 0,
        "started_utc": "2026-01-02T03:04:05.678Z",
        "started_ns": 1,
        "elapsed_ns": 2,
        "outcome": Outcome.OK,
        "samples": (Sample("boot.value", 1.5, Phase.MEASURE, {"iteration": "0"}),),
        "timeline": (("request", 1), ("ready", 2)),
        "host_state": {"steal": 0.0},
    }
    return Record(**{**values, **changes})  # type: ignore[arg-type]


def written(directory: Path, blocks: int = 3) -> bytes:
    with Journal.create(directory, header()) as journal:
        for block in range(blocks):
            journal.append(record(block))
    return (directory / JOURNAL).read_bytes()


def test_what_is_written_is_read_back_and_obeys_the_schema(tmp_path: Path) -> None:
    lines: list[Line] = [
        record(0),
        record(1, outcome=Outcome.FAILED, reason="it broke", samples=()),
        Facts(driver="native", facts={"kernel": "6.1"}, limits=({"name": "cpus", "holds": True},)),
        Event(event="finished", at_utc="2026-01-02T03:04:05Z", figures={"elapsed_s": 1.0}, detail="all of it"),
    ]
    with Journal.create(tmp_path, header()) as journal:
        for line in lines:
            journal.append(line)
    run = Run.load(tmp_path)
    assert [*run.records, *run.facts, *run.events] == lines
    assert run.header == header(settings=json.loads(json.dumps(tiny_profile().settings())))
    assert demand_schema(tmp_path) == 5


def test_a_line_torn_at_any_byte_is_cut_off_and_the_run_goes_on(tmp_path: Path) -> None:
    whole = written(tmp_path)
    last = whole.rindex(b"\n", 0, -1) + 1
    for cut in (last + 1, last + 7, len(whole) - 1):
        (tmp_path / JOURNAL).write_bytes(whole[:cut])
        journal, run = Journal.resume(tmp_path)
        with journal:
            assert done(run) == {(CELL, 0), (CELL, 1)}
            journal.append(record(2))
        assert (tmp_path / JOURNAL).read_bytes() == whole


def test_every_line_is_on_the_disk_before_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bytes] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append((tmp_path / JOURNAL).read_bytes()))
    with Journal.create(tmp_path, header()) as journal:
        for block in range(3):
            journal.append(record(block))
            assert synced[-1].count(b"\n") == block + 2


def test_a_second_writer_is_kept_out(tmp_path: Path) -> None:
    with Journal.create(tmp_path, header()), pytest.raises(JournalError, match="another process is writing it"):
        Journal.resume(tmp_path)


def test_a_run_is_never_begun_over_another(tmp_path: Path) -> None:
    before = written(tmp_path)
    with pytest.raises(JournalError, match="--resume"):
        Journal.create(tmp_path, header())
    assert (tmp_path / JOURNAL).read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"garbage\n", b"[1]\n", b'{"type":"event","schema":1}\n', b"{half"])
def test_a_foreign_journal_is_refused_untouched(tmp_path: Path, content: bytes) -> None:
    (tmp_path / JOURNAL).write_bytes(content)
    with pytest.raises(ResultsError):
        Journal.resume(tmp_path)
    assert (tmp_path / JOURNAL).read_bytes() == content


def test_another_schema_version_is_refused_by_name(tmp_path: Path) -> None:
    text = json.dumps({**to_json(header()), "schema": 99})
    (tmp_path / JOURNAL).write_text(text + "\n")
    with pytest.raises(ResultsError, match="schema version 99"):
        Journal.resume(tmp_path)


def test_a_full_disk_leaves_whole_lines_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Journal.create(tmp_path, header()) as journal:
        journal.append(record(0))
        before = (tmp_path / JOURNAL).read_bytes()
        real = os.write

        def half(fd: int, data: bytes) -> int:
            if len(data) > 10:
                return real(fd, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "write", half)
        with pytest.raises(JournalError, match=r"No space left on device.*--resume"):
            journal.append(record(1))
        monkeypatch.undo()
        assert (tmp_path / JOURNAL).read_bytes() == before
        journal.append(record(1))
    assert len(Run.load(tmp_path).records) == 2


def test_another_host_and_another_profile_are_refused(tmp_path: Path) -> None:
    written(tmp_path)
    run = Run.load(tmp_path)
    settings = tiny_profile().settings()
    check_same(run, fingerprint="f" * 64, settings=settings)
    with pytest.raises(JournalError, match="another host"):
        check_same(run, fingerprint="e" * 64, settings=settings)
    with pytest.raises(JournalError, match="other settings"):
        check_same(run, fingerprint="f" * 64, settings=tiny_profile(min_blocks=3).settings())


@pytest.mark.parametrize(
    "change",
    [
        {"outcome": "ok", "samples": []},
        {"outcome": "failed"},
        {"outcome": "skipped", "samples": [], "reason": ""},
        {"outcome": "odd"},
        {"block": -1},
        {"extra": 1},
        {"started_utc": "yesterday"},
    ],
)
def test_the_schema_rejects_what_a_record_must_not_say(change: dict[str, object]) -> None:
    validator = Draft202012Validator(json.loads(SCHEMA.read_text()))
    line = json.loads(json.dumps(to_json(record(0))))
    validator.validate(line)
    with pytest.raises(ValidationError):
        validator.validate({**line, **change})

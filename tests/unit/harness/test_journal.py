"""Journals survive crashes, full disks and second writers."""

from __future__ import annotations

import copy
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
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


def test_what_the_last_writer_added_before_it_let_go_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path)

    def late(fd: int, operation: int) -> None:
        os.write(fd, json.dumps(to_json(record(3))).encode() + b"\n")

    monkeypatch.setattr("fcntl.flock", late)
    journal, run = Journal.resume(tmp_path)
    with journal:
        assert (CELL, 3) in done(run)


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


Place = tuple[str | int, ...]
SCALARS = (
    st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from([0.5, -1.5]) | st.sampled_from(["", "ok", "x"])
)
WRONG = SCALARS | st.lists(SCALARS, max_size=2) | st.dictionaries(st.sampled_from(["a", "value"]), SCALARS, max_size=2)


def places(value: Any, above: Place = ()) -> Iterator[Place]:
    """Where something could be wrong in a line."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*above, key)
        yield from places(inner, (*above, key))


def every_line() -> list[dict[str, Any]]:
    lines: list[Line] = [
        header(),
        record(0),
        record(1, outcome=Outcome.FAILED, reason="it broke", samples=()),
        Facts(driver="native", facts={"kernel": "6.1"}, limits=({"name": "cpus", "holds": True},)),
        Event(event="finished", at_utc="2026-01-02T03:04:05Z", figures={"elapsed_s": 1.0}, detail="all of it"),
    ]
    plain: list[dict[str, Any]] = json.loads(json.dumps([to_json(line) for line in lines]))
    return plain


@pytest.mark.parametrize(
    "change",
    [
        {"settings": {"time_factor": "2"}},
        {"settings": {"key_metrics": 1}},
        {"settings": {"limits": {"cpus": "1"}}},
        {"host": {"cpu": "old"}},
        {"host": {"clock": {"monotonic_step_ns": "1"}}},
    ],
)
def test_what_is_used_of_settings_and_host_is_of_its_type(tmp_path: Path, change: dict[str, object]) -> None:
    with pytest.raises(ResultsError, match=f"line 1: malformed run line: {next(iter(change))}"):
        load_of(tmp_path, [json.dumps({**every_line()[0], **change})])


def load_of(directory: Path, lines: list[str]) -> Run:
    (directory / JOURNAL).write_text("".join(f"{line}\n" for line in lines))
    return Run.load(directory)


@given(data=st.data())
def test_what_the_schema_refuses_is_never_read_and_all_else_is(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    lines = every_line()
    number = data.draw(st.integers(0, len(lines) - 1))
    *way, last = data.draw(st.sampled_from(list(places(lines[number]))))
    damaged = copy.deepcopy(lines[number])
    inner: Any = damaged
    for key in way:
        inner = inner[key]
    if data.draw(st.booleans()):
        inner[last] = data.draw(WRONG)
    else:
        del inner[last]
    lines[number] = damaged
    obeys = Draft202012Validator(json.loads(SCHEMA.read_text())).is_valid(damaged)
    directory = tmp_path_factory.mktemp("journal", numbered=True)
    (directory / JOURNAL).write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    if obeys and len({(str(line["cell"]), line["block"]) for line in lines[1:3]}) == 2:
        Run.load(directory)
        return
    with pytest.raises(ResultsError, match=f"line {3 if obeys else number + 1}: ") as refused:
        Run.load(directory)
    assert len(str(refused.value)) < 600
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999", "1" + "0" * 30, "9" * 5000, "[" * 100_000])
def test_what_is_no_number_that_a_journal_holds_is_refused(tmp_path: Path, text: str) -> None:
    lines = [json.dumps(line) for line in every_line()]
    lines[1] = lines[1].replace('"value": 1.5', f'"value": {text}')
    with pytest.raises(ResultsError, match="line 2"):
        load_of(tmp_path, lines)


def test_a_line_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    lines = [json.dumps(line) for line in every_line()]
    with pytest.raises(ResultsError, match=r"line 3: a second record of boot\[native\] in block 0"):
        load_of(tmp_path, [*lines[:2], lines[1]])
    with pytest.raises(ResultsError, match="line 3: a second run begins"):
        load_of(tmp_path, [*lines[:2], lines[0]])


def test_a_line_torn_at_every_byte_is_dropped(tmp_path: Path) -> None:
    whole = written(tmp_path)
    last = whole.rindex(b"\n", 0, -1) + 1
    for cut in range(last, len(whole)):
        (tmp_path / JOURNAL).write_bytes(whole[:cut])
        assert len(Run.load(tmp_path).records) == 2

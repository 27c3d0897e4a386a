"""Logs: what was printed comes back byte for byte and line by line, bounded, across rotations."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.container.logs import LINE_BYTES, Entry, LogWriter, follow, read


def writer(directory: Path, max_bytes: int = 1 << 20, files: int = 3) -> LogWriter:
    return LogWriter(str(directory), max_bytes, files)


def printed(entries: list[Entry], stream: str = "stdout") -> bytes:
    return b"".join(entry.data for entry in entries if entry.stream == stream)


@given(st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(max_size=100))))
def test_bytes_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, chunks: list[tuple[int, bytes]]
) -> None:
    directory = tmp_path_factory.mktemp("log")
    log = writer(directory)
    for stream, data in chunks:
        log.write(stream, data)
    log.finish()
    entries = list(read(str(directory)))
    for number, name in ((1, "stdout"), (2, "stderr")):
        assert printed(entries, name) == b"".join(data for stream, data in chunks if stream == number)


def test_a_line_written_in_pieces_is_one_entry(tmp_path: Path) -> None:
    log = writer(tmp_path)
    log.write(1, b"one ")
    assert list(read(str(tmp_path))) == []
    log.write(1, b"line\ntwo\nthr")
    assert [entry.data for entry in read(str(tmp_path))] == [b"one line\n", b"two\n"]
    log.finish()
    assert [entry.data for entry in read(str(tmp_path))][-1] == b"thr"


def test_a_very_long_line_is_cut(tmp_path: Path) -> None:
    log = writer(tmp_path)
    log.write(1, b"x" * (3 * LINE_BYTES + 5))
    log.write(1, b"\n" + b"y" * (LINE_BYTES + 7) + b"\nz\n")
    log.finish()
    entries = list(read(str(tmp_path)))
    assert printed(entries) == b"x" * (3 * LINE_BYTES + 5) + b"\n" + b"y" * (LINE_BYTES + 7) + b"\nz\n"
    assert max(len(entry.data) for entry in entries) == LINE_BYTES


def test_files_are_bounded_and_the_oldest_go(tmp_path: Path) -> None:
    log = writer(tmp_path, max_bytes=2000, files=3)
    for number in range(200):
        log.write(1, b"line %d\n" % number)
    log.finish()
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["output.jsonl", "output.jsonl.1", "output.jsonl.2"]
    assert all(path.stat().st_size <= 2000 for path in tmp_path.iterdir())
    numbers = [int(entry.data.split()[1]) for entry in read(str(tmp_path))]
    assert numbers == list(range(numbers[0], 200))
    assert numbers[0] > 0


def test_one_file_alone_is_begun_again(tmp_path: Path) -> None:
    log = writer(tmp_path, max_bytes=500, files=1)
    for number in range(50):
        log.write(2, b"%d\n" % number)
    log.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["output.jsonl"]
    assert list(read(str(tmp_path)))[-1].data == b"49\n"


@pytest.mark.parametrize(("tail", "wanted"), [(0, []), (2, [b"b\n", b"c\n"]), (9, [b"a\n", b"b\n", b"c\n"])])
def test_tail_counts_lines(tmp_path: Path, tail: int, wanted: list[bytes]) -> None:
    log = writer(tmp_path)
    log.write(1, b"a\nb\nc\n")
    assert [entry.data for entry in read(str(tmp_path), tail=tail)] == wanted


def test_since_and_until_choose_by_time(tmp_path: Path) -> None:
    log = writer(tmp_path)
    log.write(1, b"a\n")
    log.write(1, b"b\n")
    first, second = read(str(tmp_path))
    assert [entry.data for entry in read(str(tmp_path), since=second.time)] == [b"b\n"]
    assert [entry.data for entry in read(str(tmp_path), until=first.time)] == [b"a\n"]


def test_a_torn_line_is_passed_over(tmp_path: Path) -> None:
    writer(tmp_path).write(1, b"a\n")
    with (tmp_path / "output.jsonl").open("ab") as file:
        file.write(b'{"time": "2024')
    assert [entry.data for entry in read(str(tmp_path))] == [b"a\n"]


def test_following_misses_nothing_across_rotations(tmp_path: Path) -> None:
    log = writer(tmp_path, max_bytes=600, files=3)
    written = iter(range(100))
    log.write(1, b"%d\n" % next(written))

    def changed() -> bool:
        for _ in range(7):  # less than a set of files holds
            number = next(written, None)
            if number is None:
                log.finish()
                return False
            log.write(1, b"%d\n" % number)
        return True

    numbers = [int(entry.data) for entry in follow(str(tmp_path), changed)]
    assert numbers == list(range(100))


def test_following_begins_with_the_tail(tmp_path: Path) -> None:
    log = writer(tmp_path)
    log.write(1, b"a\nb\nc\n")

    def changed() -> bool:
        log.write(1, b"d\n")
        return False

    assert [entry.data for entry in follow(str(tmp_path), changed, tail=1)] == [b"c\n", b"d\n"]


def test_a_log_that_does_not_exist_is_empty(tmp_path: Path) -> None:
    assert list(read(str(tmp_path / "none"))) == []
    assert list(follow(str(tmp_path / "none"), lambda: False)) == []


def test_a_full_disk_ends_the_log_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "output.jsonl").symlink_to("/dev/full")
    log = writer(tmp_path)
    log.write(1, b"a\n")
    log.write(1, b"b\n")
    log.finish()

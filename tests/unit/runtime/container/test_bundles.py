"""The state directory of `tare oci`: ids, what is written down, and the status derived from it and from /proc."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.container import bundles
from runtime.container.bundles import Place, Record
from runtime.errors import TareError

BOOT = "11111111-2222-3333-4444-555555555555"


def record(**changes: object) -> Record:
    values: dict[str, object] = {
        "id": "a",
        "bundle": "/b",
        "rootfs": "/b/rootfs",
        "oci_version": "1.2.0",
        "created": "2026-01-01T00:00:00Z",
        "owner": "root",
        "config_sha256": "00",
        "annotations": {"k": "v"},
        "boot": BOOT,
        "cgroup_name": "a",
        "cgroup_parent": "tare",
        "groups": ["/c/tare/a"],
        "pid": 42,
        "start": 1000,
    }
    return Record(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A /proc with process 42, started at tick 1000."""
    root = tmp_path / "proc"
    (root / "sys/kernel/random").mkdir(parents=True)
    (root / "sys/kernel/random/boot_id").write_text(f"{BOOT}\n")
    (root / "42").mkdir()
    (root / "42/stat").write_text("42 (a b) c) S " + " ".join(["0"] * 18) + " 1000 0")
    return root


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return bundles.reserve(str(tmp_path / "root"), "a")


@pytest.mark.parametrize("word", ["", ".", "..", "a/b", "a b", "ä", "a" * 1025])
def test_invalid_id_is_refused_before_anything_is_made(word: str, tmp_path: Path) -> None:
    with pytest.raises(TareError, match="invalid id"):
        bundles.reserve(str(tmp_path / "root"), word)
    assert not (tmp_path / "root").exists()


def test_taken_id_is_refused(place: Place, tmp_path: Path) -> None:
    with pytest.raises(TareError, match="already exists"):
        bundles.reserve(str(tmp_path / "root"), "a")


def test_unknown_id_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(TareError, match="does not exist") as error:
        bundles.find(str(tmp_path), "a")
    assert bundles.is_absent(error.value)


def test_record_is_read_back_as_it_was_saved(place: Place) -> None:
    assert place.load() is None
    place.save(record(freezer="/f"))
    loaded = place.load()
    assert loaded is not None
    assert loaded.document() == record(freezer="/f").document()
    place.save_config(b'{"hooks": {}}')
    assert place.config() == {"hooks": {}}


def test_broken_record_is_an_error_that_says_what_to_do(place: Place) -> None:
    Path(place.path(bundles.STATE)).write_text('{"id": 1')
    with pytest.raises(TareError, match="--force"):
        place.load()


def test_status_follows_process_fifo_and_freezer(place: Place, proc: Path, tmp_path: Path) -> None:
    freezer = tmp_path / "freezer.state"
    freezer.write_text("THAWED\n")
    known = record(freezer=str(freezer))
    assert bundles.status(place, known, str(proc)) == "running"
    os.mkfifo(place.path(bundles.FIFO))
    assert bundles.status(place, known, str(proc)) == "created"
    freezer.write_text("FROZEN\n")
    assert bundles.status(place, known, str(proc)) == "paused"


@pytest.mark.parametrize(
    "changes", [{"start": 999}, {"boot": "another"}, {"pid": 43}], ids=["reused pid", "earlier boot", "no process"]
)
def test_another_process_is_not_the_container(changes: dict[str, object], place: Place, proc: Path) -> None:
    assert bundles.status(place, record(**changes), str(proc)) == "stopped"


def test_zombie_is_stopped(place: Place, proc: Path) -> None:
    stat = proc / "42/stat"
    stat.write_text(stat.read_text().replace(" S ", " Z "))
    assert bundles.status(place, record(), str(proc)) == "stopped"


def test_record_without_process_is_creating_only_while_somebody_holds_the_lock(place: Place, proc: Path) -> None:
    assert bundles.status(place, None, str(proc)) == "stopped"
    program = "import sys; from runtime.container.bundles import Place\np = Place(sys.argv[1], 'a')\n"
    program += "with p.lock():\n    print('held', flush=True); sys.stdin.read()"
    root = str(Path(place.directory).parent)
    with subprocess.Popen(
        [sys.executable, "-c", program, root], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert bundles.status(place, None, str(proc)) == "creating"
        holder.communicate("")
    assert bundles.status(place, None, str(proc)) == "stopped"


def test_status_does_not_end_a_lock_of_its_own_process(place: Place, proc: Path) -> None:
    with place.lock():
        bundles.status(place, None, str(proc))
        program = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
        other = subprocess.run(
            [sys.executable, "-c", program, place.path(bundles.LOCK)], check=False, capture_output=True
        )
        assert b"BlockingIOError" in other.stderr


def test_lock_of_a_removed_container_is_refused(place: Place) -> None:
    place.remove()
    assert not Path(place.directory).exists()
    with pytest.raises(TareError, match="does not exist"), place.lock():
        pass


def test_ids_are_those_with_a_directory(place: Place, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "stray").write_text("")
    assert bundles.ids(str(root)) == ["a"]
    assert bundles.ids(str(tmp_path / "absent")) == []

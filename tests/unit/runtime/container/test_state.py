"""What is written down of containers: all at once or nothing, names that are unique, a status that is true."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from runtime.container.names import random_name
from runtime.container.state import Record, Run, Settings, StateDirectory, write_json
from runtime.errors import TareError, UsageError
from runtime.ledger import boot_id, process_start


@pytest.fixture
def state(tmp_path: Path) -> StateDirectory:
    return StateDirectory(tmp_path)


def draft(state: StateDirectory, name: str = "", created_at: str = "2024-01-01T00:00:00Z") -> Record:
    return Record(
        id=state.draw_id(),
        name=name,
        directory=Path(),
        image="debian:bookworm",
        image_digest="sha256:1",
        layers=("/a", "/b"),
        argv=("true",),
        created_at=created_at,
        settings=Settings(labels={"a": "b"}, ports=(("0.0.0.0", 80, 8080, "tcp"),)),
    )


def make(state: StateDirectory, name: str = "", **changes: str) -> Record:
    return state.create(draft(state, name, **changes), {"ociVersion": "1.2.0"})


def running(record: Record, pid: int, **changes: object) -> Record:
    run = {"pid": pid, "start": process_start(pid), "boot": boot_id(), "started_at": "2024-01-01T00:00:01Z"}
    write_json(record.directory / "run.json", run | changes)
    return record


def test_a_container_reads_back_as_it_was_written(state: StateDirectory) -> None:
    made = make(state, "web")
    assert state.find("web") == made
    assert state.document(made.id) == {"ociVersion": "1.2.0"}
    assert made.status == "created"
    assert (made.directory / "upper").is_dir()


def test_it_is_found_by_id_name_and_prefix(state: StateDirectory) -> None:
    made = make(state, "web")
    for text in (made.id, made.id[:12], made.id[:3], "web"):
        assert state.find(text).id == made.id


def test_an_ambiguous_prefix_is_refused(state: StateDirectory) -> None:
    first = draft(state)
    state.create(replace(first, id="ab" + "0" * 62), {})
    state.create(replace(first, id="ab" + "1" * 62), {})
    with pytest.raises(TareError, match="2 ids begin so"):
        state.find("ab")


@pytest.mark.parametrize("text", ["nothing", "", "../names", "."])
def test_what_is_not_there_is_not_found(state: StateDirectory, text: str) -> None:
    make(state)
    with pytest.raises(TareError, match="no such container"):
        state.find(text)


def test_a_name_is_taken_once_and_free_again(state: StateDirectory) -> None:
    made = make(state, "web")
    with pytest.raises(TareError, match=f"taken by container {made.short_id}"):
        make(state, "web")
    assert len(list(state.base.glob("[!n]*"))) == 1  # nothing half-made
    state.remove(made)
    assert make(state, "web").name == "web"


def test_renaming_frees_the_old_name(state: StateDirectory) -> None:
    made = make(state, "web")
    other = make(state, "other")
    with pytest.raises(TareError, match="taken"):
        state.rename(made, "other")
    state.rename(made, "db")
    assert state.find("db").id == made.id
    assert state.rename(other, "web").name == "web"


def test_a_renaming_that_fails_changes_nothing(state: StateDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make(state, "web")

    def full(path: Path, text: str) -> int:
        path.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        state.rename(made, "db")
    assert state.find("web").name == "web"
    assert [link.name for link in (state.base / "names").iterdir()] == ["web"]
    assert not list(made.directory.glob(".*"))


def test_a_bad_name_touches_nothing(state: StateDirectory) -> None:
    with pytest.raises(UsageError, match="not a name"):
        make(state, "a/b")
    assert state.ids() == []
    assert not list(state.base.glob("partial-*"))


def test_drawn_names_are_names(state: StateDirectory) -> None:
    assert "_" in random_name()
    assert {len(make(state).name.split("_")) for _ in range(5)} == {2}


def test_the_newest_is_listed_first(state: StateDirectory) -> None:
    make(state, "old", created_at="2024-01-01T00:00:00Z")
    make(state, "new", created_at="2024-01-02T00:00:00Z")
    assert [record.name for record in state.all()] == ["new", "old"]


def process_start_of(pid: int) -> int:
    """Of a zombie, too."""
    stat = Path(f"/proc/{pid}/stat").read_text()
    return int(stat[stat.rindex(")") + 2 :].split()[19])


def test_a_process_that_is_there_is_running(state: StateDirectory) -> None:
    made = running(make(state, "web"), os.getpid())
    assert (state.find("web").status, state.find("web").pid) == ("running", os.getpid())
    (made.directory / "paused").touch()
    assert state.find("web").status == "paused"


def test_an_exit_that_nobody_wrote_down_is_an_exit(state: StateDirectory) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    running(make(state, "web"), ended.pid, start=1)
    found = state.find("web")
    assert found.status == "exited"
    assert found.run is not None
    assert found.run.exit_code is None


def test_a_pid_of_another_boot_or_time_is_not_it(state: StateDirectory) -> None:
    running(make(state, "a"), os.getpid(), boot="another")
    running(make(state, "b"), os.getpid(), start=1)
    assert {record.status for record in state.all()} == {"exited"}


def test_a_zombie_still_counts_as_running_until_its_end_is_written(state: StateDirectory) -> None:
    zombie = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    made = running(make(state, "web"), zombie.pid, keeper=os.getpid())
    assert zombie.stdin is not None
    zombie.stdin.close()
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    assert state.find("web").status == "running"
    running(made, zombie.pid, start=process_start_of(zombie.pid), keeper=1)  # the keeper is gone, and nobody reaps
    assert state.find("web").status == "exited"
    running(made, zombie.pid, start=process_start_of(zombie.pid), keeper=os.getpid())
    assert state.find("web").status == "running"
    zombie.wait()
    assert state.find("web").status == "exited"


def test_a_start_that_failed_leaves_it_created(state: StateDirectory) -> None:
    made = make(state, "web")
    write_json(made.directory / "run.json", {"exit_code": 127, "error": "no such program"})
    assert (state.find("web").status, state.find("web").exit_code) == ("created", 127)


def test_a_torn_run_file_is_an_unknown_end(state: StateDirectory) -> None:
    made = make(state, "web")
    (made.directory / "run.json").write_text("")
    assert state.find("web").status == "exited"
    assert state.find("web").run == Run()


def test_a_later_version_s_fields_are_passed_over(state: StateDirectory) -> None:
    made = make(state, "web")
    words = json.loads((made.directory / "container.json").read_text())
    words["settings"]["novelty"] = 1
    write_json(made.directory / "container.json", words | {"more": 2})
    assert state.find("web") == made


def test_a_sweep_removes_what_a_crash_left_and_nothing_else(state: StateDirectory) -> None:
    kept = make(state, "kept")
    lost = make(state, "lost")
    lost.directory.rename(state.base / f"partial-{lost.id}")  # a removal interrupted after its first act
    (state.base / f"partial-{lost.id}/upper/file").touch()
    (state.base / "names/dangling").symlink_to("0" * 64)
    removed = state.sweep()
    assert len(removed) == 3
    assert [record.id for record in state.all()] == [kept.id]
    assert {path.name for path in state.base.iterdir()} == {kept.id, "names", "names.lock"}
    assert state.sweep() == []


def test_a_sweep_leaves_what_is_being_made(state: StateDirectory) -> None:
    state.base.mkdir()
    partial = state.base / ("partial-" + "1" * 64)
    lock = state._begin(partial)
    (state.base / "names").mkdir()
    (state.base / "names/soon").symlink_to("1" * 64)
    assert state.sweep() == []
    with pytest.raises(TareError, match="taken"):
        make(state, "soon")
    os.close(lock)
    assert len(state.sweep()) == 2


def test_removal_takes_everything(state: StateDirectory) -> None:
    made = make(state, "web")
    (made.directory / "upper/a/b").mkdir(parents=True)
    (made.directory / "upper/a/link").symlink_to("/nowhere")
    with state.locked(made) as fresh:
        state.remove(fresh)
    assert {path.name for path in state.base.iterdir()} == {"names", "names.lock"}
    with pytest.raises(TareError, match="no such container any more"), state.locked(made):
        pass

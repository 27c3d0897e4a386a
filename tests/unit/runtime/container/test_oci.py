"""The operations on containers that exist, with an ordinary process for a container and a fake control group."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from runtime.container import bundles, oci
from runtime.container.bundles import Place, Record
from runtime.container.oci import Runtime
from runtime.errors import TareError, UsageError


class FakeGroup:
    """A control group that notes what is asked of it."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.members: tuple[int, ...] = ()

    def __getattr__(self, name: str) -> object:
        return lambda *_: self.done.append(name)

    def pids(self) -> tuple[int, ...]:
        return self.members


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> FakeGroup:
    fake = FakeGroup()
    monkeypatch.setattr(oci, "cgroup_of", lambda record: fake)
    return fake


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def runtime(tmp_path: Path, warnings: list[str], group: FakeGroup) -> Runtime:
    return Runtime(str(tmp_path / "root"), warnings.append)


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """A process that waits to be killed."""
    with subprocess.Popen(["sleep", "600"]) as child:
        yield child
        child.kill()


def container(
    runtime: Runtime, pid: int, tmp_path: Path, *, hooks: object = None, config: dict[str, object] | None = None
) -> tuple[Place, Record]:
    """A container `a` whose first process is `pid`, running."""
    place = bundles.reserve(runtime.root, "a")
    record = Record(
        id="a",
        bundle=str(tmp_path),
        rootfs=str(tmp_path),
        oci_version="1.2.0",
        created="2026-01-01T00:00:00Z",
        owner="root",
        config_sha256="00",
        annotations={"k": "v"},
        boot=bundles.boot_id(),
        cgroup_name="a",
        cgroup_parent="tare",
        groups=[str(tmp_path / "group")],
        pid=pid,
        start=bundles.process_start(pid) or 0,
    )
    place.save_config(json.dumps(config or {"hooks": hooks or {}}).encode())
    place.save(record)
    return place, record


def hold(place: Place) -> None:
    os.mkfifo(place.path(bundles.FIFO))


def hook(tmp_path: Path, name: str, body: str = "") -> dict[str, object]:
    """A hook that writes the state it gets to a file of its name."""
    path = tmp_path / f"{name}.sh"
    path.write_text(f"#!/bin/sh\ncat > {tmp_path}/{name}.json\npwd > {tmp_path}/{name}.cwd\n{body}\n")
    path.chmod(0o755)
    return {"path": str(path), "env": [f"PATH={os.environ['PATH']}"]}


def test_state_has_what_the_specification_wants(
    runtime: Runtime, process: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    container(runtime, process.pid, tmp_path)
    state = runtime.state("a")
    assert state["status"] == "running"
    assert state["pid"] == process.pid
    assert state["bundle"] == str(tmp_path)
    assert state["annotations"] == {"k": "v"}
    assert [entry["id"] for entry in runtime.list()] == ["a"]


def test_stopped_container_has_no_pid(runtime: Runtime, process: subprocess.Popen[bytes], tmp_path: Path) -> None:
    container(runtime, process.pid, tmp_path)
    process.kill()
    process.wait()
    assert runtime.state("a")["status"] == "stopped"
    assert runtime.state("a")["pid"] == 0


@pytest.mark.parametrize(
    "operation",
    [
        lambda runtime: runtime.state("x"),
        lambda runtime: runtime.start("x"),
        lambda runtime: runtime.kill("x", 15),
        lambda runtime: runtime.delete("x"),
        lambda runtime: runtime.pause("x"),
        lambda runtime: runtime.resume("x"),
        lambda runtime: runtime.pids("x"),
        lambda runtime: runtime.update("x", {}),
    ],
)
def test_every_operation_refuses_an_unknown_container(operation: object, runtime: Runtime) -> None:
    with pytest.raises(TareError, match="container does not exist"):
        operation(runtime)  # type: ignore[operator]


def test_forced_delete_of_an_unknown_container_is_done(runtime: Runtime) -> None:
    runtime.delete("x", force=True)


CHILD = """
import fcntl, os, sys
fifo = os.open(sys.argv[1], os.O_RDWR)
fcntl.flock(fifo, fcntl.LOCK_EX)
print("held", flush=True)
os.read(fifo, 1)
"""
"""What a held child does with the FIFO (runtime.container.steps)."""


@contextmanager
def held_child(runtime: Runtime, tmp_path: Path, then: str, hooks: object = None) -> Iterator[subprocess.Popen[bytes]]:
    """A container `a` whose process waits to be let go, and does `then`."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with subprocess.Popen([sys.executable, "-c", CHILD + then, str(fifo)], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        place, _ = container(runtime, child.pid, tmp_path, hooks=hooks)
        fifo.rename(place.path(bundles.FIFO))
        yield child
        child.kill()


def test_start_returns_when_the_program_runs_and_poststart_hooks_have(runtime: Runtime, tmp_path: Path) -> None:
    then = "os.close(fifo); import time; time.sleep(600)"
    with held_child(runtime, tmp_path, then, {"poststart": [hook(tmp_path, "poststart")]}) as child:
        assert runtime.state("a")["status"] == "created"
        runtime.start("a")
        assert runtime.state("a")["status"] == "running"
        state = json.loads((tmp_path / "poststart.json").read_text())
        assert (state["status"], state["pid"]) == ("running", child.pid)
        with pytest.raises(TareError, match="cannot start a container that is running"):
            runtime.start("a")


def test_start_says_why_the_program_does_not_run(runtime: Runtime, tmp_path: Path) -> None:
    then = "import marshal; os.write(fifo, marshal.dumps((7, 13, 'Permission denied')))"
    with held_child(runtime, tmp_path, then) as child:
        with pytest.raises(TareError, match="start a: Permission denied"):
            runtime.start("a")
        child.wait()
        assert runtime.state("a")["status"] == "stopped"


def test_failing_poststart_hook_ends_the_container(runtime: Runtime, tmp_path: Path) -> None:
    then = "os.close(fifo); import time; time.sleep(600)"
    with held_child(runtime, tmp_path, then, {"poststart": [hook(tmp_path, "bad", "exit 1")]}) as child:
        with pytest.raises(TareError, match="poststart hook #0"):
            runtime.start("a")
        assert child.wait() == -signal.SIGKILL


@pytest.mark.parametrize("held", [True, False])
def test_start_refuses_what_is_not_created(
    held: bool, runtime: Runtime, process: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    place, _ = container(runtime, process.pid, tmp_path)
    if held:
        hold(place)
        process.kill()
        process.wait()
    with pytest.raises(TareError, match=f"cannot start a container that is {'stopped' if held else 'running'}"):
        runtime.start("a")


def test_kill_signals_the_first_process(runtime: Runtime, process: subprocess.Popen[bytes], tmp_path: Path) -> None:
    container(runtime, process.pid, tmp_path)
    runtime.kill("a", signal.SIGTERM)
    assert process.wait() == -signal.SIGTERM
    with pytest.raises(TareError, match="container not running"):
        runtime.kill("a", signal.SIGTERM)


def test_kill_all_signals_the_whole_group_even_when_the_first_has_ended(
    runtime: Runtime, process: subprocess.Popen[bytes], tmp_path: Path, group: FakeGroup
) -> None:
    with subprocess.Popen(["true"]) as first:
        container(runtime, first.pid, tmp_path)
    group.members = (process.pid,)
    runtime.kill("a", signal.SIGTERM, everybody=True)
    assert process.wait() == -signal.SIGTERM


def test_delete_refuses_a_running_container_and_takes_it_by_force(
    runtime: Runtime, process: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    place, _ = container(runtime, process.pid, tmp_path, hooks={"poststop": [hook(tmp_path, "poststop")]})
    (tmp_path / "group").mkdir()
    with pytest.raises(TareError, match="not stopped: running"):
        runtime.delete("a")
    assert process.poll() is None
    runtime.delete("a", force=True)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "group").exists()
    assert not Path(place.directory).exists()
    state = json.loads((tmp_path / "poststop.json").read_text())
    assert (state["status"], state["pid"], state["id"]) == ("stopped", 0, "a")
    assert (tmp_path / "poststop.cwd").read_text().strip() == str(tmp_path)


def test_failing_poststop_hook_is_a_warning_and_the_next_one_runs(
    runtime: Runtime, process: subprocess.Popen[bytes], tmp_path: Path, warnings: list[str]
) -> None:
    container(
        runtime, process.pid, tmp_path, hooks={"poststop": [hook(tmp_path, "bad", "exit 1"), hook(tmp_path, "next")]}
    )
    runtime.delete("a", force=True)
    assert len(warnings) == 1
    assert "poststop hook #0" in warnings[0]
    assert (tmp_path / "next.json").exists()
    with pytest.raises(TareError, match="does not exist"):
        runtime.state("a")


def test_delete_takes_what_a_crash_left_without_a_record(runtime: Runtime) -> None:
    place = bundles.reserve(runtime.root, "a")
    assert runtime.state("a")["status"] == "stopped"
    runtime.delete("a")
    assert not Path(place.directory).exists()


def test_delete_by_force_takes_a_broken_record(runtime: Runtime) -> None:
    place = bundles.reserve(runtime.root, "a")
    Path(place.path(bundles.STATE)).write_text("{")
    with pytest.raises(TareError):
        runtime.delete("a")
    runtime.delete("a", force=True)
    assert not Path(place.directory).exists()


def test_pause_and_resume_need_the_right_status(
    runtime: Runtime, process: subprocess.Popen[bytes], tmp_path: Path, group: FakeGroup
) -> None:
    place, record = container(runtime, process.pid, tmp_path)
    with pytest.raises(TareError, match="cannot resume a container that is running"):
        runtime.resume("a")
    runtime.pause("a")
    assert group.done == ["freeze"]
    freezer = tmp_path / "freezer"
    freezer.write_text("FROZEN")
    record.freezer = str(freezer)
    place.save(record)
    with pytest.raises(TareError, match="cannot pause a container that is paused"):
        runtime.pause("a")
    runtime.kill("a", signal.SIGKILL)
    assert group.done == ["freeze", "thaw"]


@pytest.mark.parametrize(("word", "number"), [("9", 9), ("KILL", 9), ("SIGTERM", 15), ("usr1", 10)])
def test_signals_have_names_and_numbers(word: str, number: int) -> None:
    assert oci.signal_number(word) == number


@pytest.mark.parametrize("word", ["0", "65536", "NOPE", "", "-9", "_DFL"])
def test_unknown_signal_is_refused(word: str) -> None:
    with pytest.raises(UsageError, match="unknown signal"):
        oci.signal_number(word)

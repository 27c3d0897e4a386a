"""Comparators that hang, die or lie about success: each is an error that says so, and nothing of it stays.

The runtimes and the engine are stand-ins, so that they can be told to misbehave; what they leave is looked for on the
real host. That the true ones do as they should, the conformance tests say.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runtime.container import dockerd
from runtime.container.dockerd import Engine
from runtime.container.leftovers import MARK
from runtime.driver import Host
from runtime.drivers import oci
from runtime.drivers.docker import DockerDriver
from runtime.drivers.oci import PreparedBundle, RuncDriver
from runtime.errors import TareError
from runtime.linux import procfs
from runtime.spec import ImageRef, InstanceSpec, Ready
from tests.conftest import skip_or_fail
from tests.host.oci import groups

pytestmark = pytest.mark.usefixtures("root_user")
SPEC = InstanceSpec(image=ImageRef("nothing"), ready=Ready.USERLAND)
DEBIAN = InstanceSpec(image=ImageRef.parse("tare/debian:bookworm"), ready=Ready.USERLAND)
ONLY_CREATES = '[ $command = run ] || exec $real "$@"; exec $real $1 $2 create $4 $5 $6 $7 --preserve-fds 1 $id'
ENDS_IT = """
$real "$@" || exit
[ $command = run ] || exit 0
kill -9 $(cat $pid_file)
while grep -q '^State:.[^ZX]' /proc/$(cat $pid_file)/status; do :; done
"""
Stand = Callable[..., RuncDriver]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(root=tmp_path / "lib", run=tmp_path / "run")


@pytest.fixture
def stand(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stand]:
    """A driver for a `runc` that is this shell script; `$command` is what it is asked, `$pid_file` and `$id` how."""
    made: list[RuncDriver] = []

    def stand(script: str, host: Host = host) -> RuncDriver:
        program = tmp_path / "bin/runc"
        program.parent.mkdir()
        lines = ("#!/bin/sh", f"real={shutil.which('runc')}", "command=$3", "pid_file=$7", "for id; do :; done", script)
        program.write_text("\n".join(lines))
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
        made.append(RuncDriver(host))
        return made[-1]

    yield stand
    for driver in made:
        driver.close()


@pytest.fixture
def runc(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> Stand:
    """One that is not given long."""
    monkeypatch.setattr(oci, "RUN_TIMEOUT_S", 1.0)
    monkeypatch.setattr(oci, "ASK_TIMEOUT_S", 1.0)
    return stand


@pytest.fixture
def altered(stand: Stand, bench_host: Host, tmp_path: Path) -> Stand:
    """One whose script calls the true runc, `$real`, for containers of the bench image; what it notes is its own."""
    if shutil.which("runc") is None:
        skip_or_fail("runc is not installed")
    return lambda script: stand(script, Host(root=bench_host.root, run=tmp_path / "run"))


def prepared(tmp_path: Path) -> PreparedBundle:
    layer = tmp_path / "layer"
    layer.mkdir(exist_ok=True)
    return PreparedBundle(SPEC, (layer,), "{}")


def demand_nothing_left(host: Host) -> None:
    assert [path for path in host.run.rglob("*") if "tare-" in path.name] == []
    assert list((host.root / "instances").iterdir()) == []
    assert str(host.run) not in Path("/proc/self/mountinfo").read_text()


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("exit 0", "said success and nothing runs"),
        ("[ $command = run ] || exit 0; echo 'no such thing' >&2; exit 1", "run: exit 1: no such thing"),
        ("kill -9 $$", "run: exit -9"),
        ("sleep 600", "run: not done after 1 s; killed"),
        ("printf U >&3; sleep 600", "run: not done after 1 s; killed"),
        ("[ $command = run ] && echo garbage > $pid_file", "nothing runs"),
        ("[ $command = run ] && echo 99999999999999999999 > $pid_file", "nothing runs"),
    ],
    ids=["lies", "fails", "dies", "hangs", "speaks and hangs", "babbles", "exaggerates"],
)
def test_a_runtime_that_misbehaves_is_an_error_and_leaves_nothing(
    runc: Stand, host: Host, tmp_path: Path, script: str, said: str
) -> None:
    driver = runc(script)
    with pytest.raises(TareError, match=said):
        driver.launch(prepared(tmp_path))
    demand_nothing_left(host)
    assert driver.leftovers() == []


def test_what_a_runtime_leaves_running_ends(runc: Stand, host: Host, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    driver = runc(f"[ $command = run ] && {{ setsid sleep 600 & echo $! $TARE_INSTANCE > {seen}; }}; exit 1")
    with pytest.raises(TareError, match="exit 1"):
        driver.launch(prepared(tmp_path))
    pid, mark = seen.read_text().split()
    assert procfs.state(int(pid)) in (None, "Z")
    assert procfs.with_variable(MARK, mark) == ()
    demand_nothing_left(host)


def test_the_process_of_somebody_else_is_not_taken_for_a_container(runc: Stand, host: Host, tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "600"]) as somebody:
        driver = runc(f"[ $command = run ] && echo {somebody.pid} > $pid_file")
        try:
            with pytest.raises(TareError, match="nothing runs"):
                driver.launch(prepared(tmp_path))
            assert somebody.poll() is None
        finally:
            somebody.kill()
    demand_nothing_left(host)


def test_a_run_that_only_creates_is_noticed(altered: Stand) -> None:
    driver = altered(ONLY_CREATES)
    with driver.launch(driver.prepare(DEBIAN)) as instance:
        assert instance.alive()
        with pytest.raises(TareError, match="not userland after"):
            instance.wait_ready(0.5)
    assert not any(path.exists() for path in instance.disk_paths().exclusive)
    assert not groups(instance.id)


def test_a_container_that_has_ended_by_the_time_it_is_looked_at_is_noticed(altered: Stand) -> None:
    driver = altered(ENDS_IT)
    with pytest.raises(TareError, match="said success and nothing runs"):
        driver.launch(driver.prepare(DEBIAN))
    assert driver.leftovers() == []


def test_a_container_that_speaks_before_the_runtime_returns_is_spawned_by_then(altered: Stand) -> None:
    driver = altered('$real "$@" || exit; [ $command != run ] || sleep 0.4')
    with driver.launch(driver.prepare(DEBIAN)) as instance:
        instance.wait_ready(30)
    assert [name for name, _ in instance.timeline][:4] == ["request", "disk", "spawned", "userland"]


def test_a_probe_says_what_the_runtime_said(runc: Stand, host: Host) -> None:
    found = runc("[ $1 = --version ] && exit; echo 'not on this host' >&2; exit 3").probe()
    assert not found.usable
    assert "not on this host" in found.reason
    assert found.facts["sha256"]


def test_a_driver_of_a_runtime_that_is_not_there_says_so(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    found = RuncDriver(host).probe()
    assert (found.usable, found.reason) == (False, "runc is not installed")


# --- an engine of our own

OWNER = """
import sys, time
from pathlib import Path
from runtime.container.dockerd import Engine
from runtime.driver import Host
Engine(Host(root=Path(sys.argv[1], "lib"), run=Path(sys.argv[1], "run")), "docker").start()
print("started", flush=True)
time.sleep(600)
"""


@pytest.fixture
def short_host() -> Iterator[Host]:
    """Sockets lie deep below it."""
    with tempfile.TemporaryDirectory(prefix="tare-e", dir="/var/tmp") as directory:
        yield Host(root=Path(directory) / "lib", run=Path(directory) / "run")


@pytest.mark.parametrize(
    ("script", "said"),
    [("echo no such storage; exit 1", "ended at once: no such storage"), ("exec sleep 600", "no answer after 1 s")],
    ids=["dies", "hangs"],
)
def test_an_engine_that_does_not_start_is_an_error_and_leaves_nothing(
    short_host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str
) -> None:
    (tmp_path / "dockerd").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "dockerd").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(dockerd, "START_TIMEOUT_S", 1.0)
    with pytest.raises(TareError, match=said):
        Engine(short_host, "docker").start()
    assert list((short_host.run / "instances").iterdir()) == []
    assert not (short_host.run / "docker").exists()


def test_an_engine_whose_owner_was_killed_is_named_and_swept(short_host: Host) -> None:
    if shutil.which("dockerd") is None:
        skip_or_fail("dockerd is not installed")
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(short_host.root.parent)], stdout=subprocess.PIPE, cwd=root, text=True
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "started\n"
        owner.kill()
    engine_id = next((short_host.run / "instances").iterdir()).stem
    assert len(procfs.with_variable(MARK, engine_id)) >= 2  # the engine and its containerd
    driver = DockerDriver(short_host)
    assert [line for line in driver.leftovers() if line.startswith(f"{engine_id}: pid ")]
    assert driver.sweep()
    assert driver.leftovers() == []
    assert procfs.with_variable(MARK, engine_id) == ()
    assert not short_host.root.joinpath("docker").exists()
    assert str(short_host.run) not in Path("/proc/self/mountinfo").read_text()

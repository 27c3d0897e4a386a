"""`tare oci` on bundles written by hand, as fixtures, for tests of it. No tests here."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runtime.cgroups.detect import detect
from runtime.driver import Host
from runtime.linux import syscalls
from runtime.linux.pidfd import Pidfd
from runtime.vm.adoption import PR_SET_CHILD_SUBREAPER
from tests.bundles import TIMEOUT_S, Change, OciRuntime, image_tree, write_bundle
from tests.host.life import IMAGE

Bundle = Callable[..., Path]


@pytest.fixture(scope="module")
def rootfs(bench_host: Host) -> Path:
    return image_tree(bench_host, IMAGE, bench_host.root / "test-trees")


@pytest.fixture
def tare(tmp_path: Path) -> Iterator[OciRuntime]:
    """The runtime; what it made is deleted, and must have left no control group."""
    runtime = OciRuntime(tmp_path / "state")
    yield runtime
    runtime.remove_all()
    assert not list((tmp_path / "state").glob("*"))
    assert not groups(*runtime.made)


@pytest.fixture
def bundle(tmp_path: Path, rootfs: Path) -> Bundle:
    def write(*args: str, change: Change | None = None, name: str = "bundle") -> Path:
        return write_bundle(tmp_path / name, rootfs, *args, change=change)

    return write


@pytest.fixture
def subreaper() -> Iterator[None]:
    """Be what containerd's shim is: the process that inherits a container when `create` has ended."""
    syscalls.prctl(PR_SET_CHILD_SUBREAPER, 1)
    yield
    syscalls.prctl(PR_SET_CHILD_SUBREAPER, 0)


def groups(*names: str) -> list[Path]:
    """The control groups of these containers, in whatever hierarchy."""
    found = detect()
    mounts = {*found.v1.values(), *([found.v2] if found.v2 else [])}
    return [path for mount in mounts for name in names for path in mount.glob(f"*/{name}")]


def name(tmp_path: Path) -> str:
    """An id that no other test has."""
    return f"test-{os.getpid()}-{tmp_path.name[-24:]}".replace("[", "-").replace("]", "-")


def namespace(pid: int | str, kind: str) -> str:
    """What names one of a process's namespaces."""
    return str(Path(f"/proc/{pid}/ns/{kind}").readlink())


def ended(pid: int) -> int:
    """Wait for a process that became our child: its exit code."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def refused(tare: OciRuntime, *words: str) -> str:
    done = tare(*words, check=False)
    assert done.returncode != 0, words
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def await_stopped(tare: OciRuntime, container: str) -> None:
    """Until its process has ended (its parent, not we, reaps it)."""
    pid = tare.state(container)["pid"]
    if pid:
        with Pidfd.of(pid) as pidfd:
            assert pidfd.wait(TIMEOUT_S)


@pytest.fixture
def sleeper(tare: OciRuntime, bundle: Bundle, tmp_path: Path) -> str:
    """A container that sleeps."""
    container = name(tmp_path)
    tare.create(container, bundle("sleep", "600"))
    tare("start", container)
    return container

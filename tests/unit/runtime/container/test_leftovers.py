"""What is still there of a page, and how it goes."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.container.leftovers import MARK, present, remove, standing
from runtime.ledger import Resource, process_start
from runtime.linux import procfs


def sleeper(**env: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], env={**os.environ, **env})


def test_a_process_that_bears_the_mark_is_found_and_killed() -> None:
    mark = secrets.token_hex(8)
    page = [Resource("mark", mark)]
    with sleeper(**{MARK: mark}) as process:
        found = list(present(page))
        assert found == [Resource("pid", f"{process.pid}:{process_start(process.pid)}")]
        remove(found)
    assert list(present(page)) == []


def test_a_process_of_another_mark_or_another_boot_is_left_alone() -> None:
    mark = secrets.token_hex(8)
    with sleeper(**{MARK: mark}) as process:
        assert list(present([Resource("mark", mark[:-1])])) == []
        assert list(present([Resource("mark", mark)], same_boot=False)) == []
        process.kill()


def test_a_pid_that_was_given_to_another_process_is_left_alone() -> None:
    with sleeper() as process:
        page = [Resource("pid", f"{process.pid}:1")]
        assert list(standing(page)) == []
        remove(page)
        assert process.poll() is None
        process.kill()


def test_nobody_is_told_by_a_mount_in_the_namespace_of_the_host_nor_below_a_name_that_others_may_have(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    page = [Resource("dir", str(tmp_path / "tare-0123")), Resource("mount", str(tmp_path / "tare-0123/rootfs"))]
    monkeypatch.setattr(procfs, "with_mount_below", lambda directory: (1, os.getppid()))
    assert list(present(page[:1])) != []
    assert list(present(page)) == []
    assert list(present([Resource("dir", str(tmp_path / "docker"))])) == []


def test_a_directory_stands_until_it_is_removed(tmp_path: Path) -> None:
    page = [Resource("dir", str(tmp_path / "x"))]
    assert list(present(page)) == []
    (tmp_path / "x").mkdir()
    assert list(standing(page)) == page
    remove(page)
    assert list(standing(page)) == []

"""A lock file: one holder at a time, given back whatever ends the holder."""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from runtime.linux import flock

HOLDER = """
import sys, time
from pathlib import Path
from runtime.linux import flock
with flock.held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_one_holds_it_at_a_time(tmp_path: Path) -> None:
    inside: list[int] = []
    most = 0

    def hold(number: int) -> None:
        nonlocal most
        with flock.held(tmp_path / "lock"):
            inside.append(number)
            most = max(most, len(inside))
            time.sleep(0.0005)
            inside.pop()

    with ThreadPoolExecutor(8) as pool:
        for held in [pool.submit(hold, number) for number in range(100)]:
            held.result()
    assert most == 1


def test_a_killed_holder_gives_it_back(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with subprocess.Popen([sys.executable, "-c", HOLDER, path], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(BlockingIOError), flock.held(path, wait=False):
            pass
        holder.kill()
        with flock.held(path):
            pass


def test_it_is_made_only_where_it_may_be(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), flock.held(tmp_path / "lock", create=False):
        pass
    assert list(tmp_path.iterdir()) == []
    with flock.held(tmp_path / "lock"):
        assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o600
    with flock.held(tmp_path / "lock", create=False):
        pass


def test_a_block_that_fails_gives_it_back(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no"), flock.held(tmp_path / "lock"):
        raise ValueError("no")
    with flock.held(tmp_path / "lock", wait=False):
        pass

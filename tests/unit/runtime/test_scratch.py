"""Whose scratch files stay, and whose go."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from runtime.scratch import scratch, sweep


def test_what_a_killed_one_left_goes_and_what_another_uses_stays(tmp_path: Path) -> None:
    assert sweep(tmp_path) == []
    dead, used = tmp_path / "scratch/dead", tmp_path / "scratch/used"
    for directory in (dead, used):
        directory.mkdir(parents=True)
    fd = os.open(used, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    with scratch(tmp_path) as mine, scratch(tmp_path) as another:
        assert sweep(tmp_path) == [str(dead)]
        assert sorted((tmp_path / "scratch").iterdir()) == sorted([used, mine, another])
    os.close(fd)
    assert list((tmp_path / "scratch").iterdir()) == [used]

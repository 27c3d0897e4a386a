"""A program that nobody can change."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.linux.sealed import sealed_copy


def test_the_copy_is_whole_runs_and_cannot_be_written() -> None:
    copy = sealed_copy(sys.executable)
    try:
        assert os.fstat(copy).st_size == Path(sys.executable).stat().st_size
        program = f"/proc/self/fd/{copy}"
        subprocess.run(["python", "-I", "-c", "print(6*7)"], check=True, executable=program, pass_fds=[copy])
        with pytest.raises(PermissionError):
            os.pwrite(copy, b"x", 0)
        with pytest.raises(PermissionError):
            os.truncate(f"/proc/self/fd/{copy}", 0)
    finally:
        os.close(copy)


def test_what_is_not_there_leaves_nothing_open(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(FileNotFoundError):
        sealed_copy(str(tmp_path / "absent"))
    assert len(list(Path("/proc/self/fd").iterdir())) == before

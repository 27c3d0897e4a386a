"""Directories on the disk of the state for large files that live as long as one piece of work. Not for what is kept."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NAME = "scratch"


@contextmanager
def scratch(root: Path) -> Iterator[Path]:
    """A fresh directory below `root`, gone at the end."""
    base = root / _NAME
    base.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _locked(base):
        directory = Path(tempfile.mkdtemp(dir=base))
        held = _lock(directory)
    try:
        yield directory
    finally:
        shutil.rmtree(directory)
        if held is not None:
            os.close(held)


def sweep(root: Path) -> list[str]:
    """Remove what killed processes left below `root`; returns their paths."""
    base, removed = root / _NAME, []
    if not base.exists():
        return []
    with _locked(base):
        for old in base.iterdir():
            if (held := _lock(old)) is not None:
                shutil.rmtree(old)
                os.close(held)
                removed.append(str(old))
    return removed


@contextmanager
def _locked(base: Path) -> Iterator[None]:
    fd = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _lock(directory: Path) -> int | None:
    """A descriptor that holds `directory`, or None when somebody else does."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd

"""Compiled filters are forgotten at any moment, and whoever wants one gets it all the same."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from runtime.linux import seccomp
from runtime.linux.filtercache import forget
from runtime.linux.profile import Seccomp

PROFILE = Seccomp(default_action="SCMP_ACT_ALLOW")
MOMENTS: dict[str, tuple[str, Callable[..., Any]]] = {
    "made": ("os.urandom", os.urandom),
    "opened": ("os.fdopen", os.fdopen),
    "written": ("pathlib.Path.rename", Path.rename),
}
"""By what is done next, and how."""


def wanted(directory: Path) -> bytes:
    """As a fresh process would find it."""
    return seccomp.cached.__wrapped__(PROFILE, directory)


def test_programs_whole_and_half_written_go_and_what_is_not_ours_stays(tmp_path: Path) -> None:
    directory = tmp_path / "seccomp"
    forget(directory)
    wanted(directory)
    (directory / ".0123456789abcdef").write_text("half")
    (directory / "note").write_text("another's")
    forget(directory)
    assert [path.name for path in directory.iterdir()] == ["note"]
    (directory / "note").unlink()
    forget(directory)
    assert not directory.exists()


def test_a_program_that_is_being_read_is_read_to_its_end(tmp_path: Path) -> None:
    wanted(tmp_path / "seccomp")
    (path,) = (tmp_path / "seccomp").iterdir()
    whole = path.read_bytes()
    with path.open("rb") as file:
        forget(tmp_path / "seccomp")
        assert file.read() == whole


@pytest.mark.parametrize("moment", MOMENTS)
def test_one_that_is_forgotten_while_it_is_written_is_had_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    directory = tmp_path / "seccomp"
    name, target = MOMENTS[moment]

    def after_forgetting(*arguments: Any) -> Any:
        forget(directory)
        return target(*arguments)

    monkeypatch.setattr(name, after_forgetting)
    program = wanted(directory)
    monkeypatch.undo()
    assert program == seccomp.compile_profile(PROFILE)
    assert wanted(directory) == program
    forget(directory)
    assert not directory.exists()


def test_many_who_want_it_while_it_is_forgotten_again_and_again_get_it(tmp_path: Path) -> None:
    over = threading.Event()

    def sweep() -> None:
        while not over.is_set():
            forget(tmp_path / "seccomp")

    with ThreadPoolExecutor(5) as pool:
        sweeper = pool.submit(sweep)
        try:
            programs = {each.result() for each in [pool.submit(wanted, tmp_path / "seccomp") for _ in range(300)]}
        finally:
            over.set()
        sweeper.result()
    assert programs == {seccomp.compile_profile(PROFILE)}

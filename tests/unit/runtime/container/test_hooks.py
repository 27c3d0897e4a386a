"""A hook runs with its own words, environment and time-out, and its failure says which one it was and why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runtime.container import hooks
from runtime.errors import TareError

STATE = json.dumps({"id": "a", "status": "creating"}).encode()


def script(tmp_path: Path, body: str) -> str:
    path = tmp_path / "hook"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def run(*argv: str, env: tuple[str, ...] = (), timeout_s: int | None = None) -> None:
    hooks.run("prestart", 0, argv, env, timeout_s=timeout_s, state=STATE)


def test_hook_reads_the_state_and_has_exactly_its_environment(tmp_path: Path) -> None:
    path = script(tmp_path, f'cat > {tmp_path}/state; /usr/bin/env > {tmp_path}/env; echo "$1" > {tmp_path}/first')
    run(path, "named", "one", env=("A=b=c", "EMPTY="))
    assert (tmp_path / "state").read_bytes() == STATE
    environment = set((tmp_path / "env").read_text().split("\n"))
    assert {"A=b=c", "EMPTY="} <= environment
    assert not any(line.startswith("HOME=") for line in environment)
    assert (tmp_path / "first").read_text() == "one\n"


def test_failing_hook_is_named_with_its_status_and_last_words(tmp_path: Path) -> None:
    path = script(tmp_path, "echo why >&2; exit 3")
    with pytest.raises(TareError, match=rf"prestart hook #0 {path}: exit status 3, it said: why"):
        run(path)


def test_killed_hook_says_its_signal(tmp_path: Path) -> None:
    with pytest.raises(TareError, match="signal 9"):
        run(script(tmp_path, "kill -9 $$"))


def test_missing_hook_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TareError, match="No such file"):
        run(str(tmp_path / "absent"))


def test_hook_is_killed_at_its_time_out(tmp_path: Path) -> None:
    with pytest.raises(TareError, match="not done after 1 s"):
        run(script(tmp_path, "exec sleep 60"), timeout_s=1)


def test_run_all_stops_at_the_first_failure(tmp_path: Path) -> None:
    path = script(tmp_path, f'echo "$1" >> {tmp_path}/log; test "$1" != bad')
    listed: list[dict[str, object]] = [{"path": path, "args": ["hook", word]} for word in ("good", "bad", "never")]
    with pytest.raises(TareError, match="poststop hook #1"):
        hooks.run_all("poststop", listed, STATE)
    assert (tmp_path / "log").read_text() == "good\nbad\n"

"""What the command lines of `exec` and `update` ask for."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from runtime.commands import oci_asked
from runtime.commands.goflags import Values
from runtime.commands.ocimain import COMMANDS
from runtime.container import decode
from runtime.container.config import Config
from runtime.errors import UsageError


def parsed(command: str, *words: str) -> tuple[Values, list[str]]:
    return COMMANDS[command].flags.parse(words, interspersed=not COMMANDS[command].tail)


def config() -> Config:
    process = {
        "args": ["sleep"],
        "cwd": "/home",
        "env": ["A=1"],
        "user": {"uid": 1, "gid": 2},
        "capabilities": {"bounding": ["CAP_KILL"], "permitted": ["CAP_KILL"]},
    }
    return decode.parse({"ociVersion": "1.2.0", "root": {"path": "r"}, "process": process})


def test_words_run_over_the_containers_own_process() -> None:
    values, words = parsed("exec", "-e", "B=2", "-u", "7", "-g", "8", "--cap", "chown", "id", "ls", "-e", "x")
    process = oci_asked.process(values, words[1:]).over(config())
    assert process.args == ("ls", "-e", "x")
    assert process.env == ("A=1", "B=2")
    assert process.cwd == "/home"
    assert (process.user.uid, process.user.gid, process.user.additional_gids) == (7, 2, (8,))
    assert process.capabilities is not None
    assert process.capabilities.permitted == ("CAP_KILL", "CAP_CHOWN")


def test_process_file_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "process.json"
    path.write_text(json.dumps({"args": ["id"], "cwd": "/", "user": {"uid": 3, "gid": 0}}))
    values, words = parsed("exec", "--process", str(path), "--tty", "id")
    process = oci_asked.process(values, words[1:]).over(config())
    assert (process.args, process.env, process.user.uid, process.terminal) == (("id",), (), 3, True)
    path.write_text(json.dumps({"cwd": "/"}))
    with pytest.raises(UsageError, match="args"):
        oci_asked.process(values, [])


@pytest.mark.parametrize(
    "words", [["id"], ["--user", "bob", "id", "ls"], ["-g", "x", "id", "ls"], ["--cgroup", "c", "id", "ls"]]
)
def test_bad_exec_is_refused(words: list[str]) -> None:
    values, rest = parsed("exec", *words)
    with pytest.raises(UsageError):
        oci_asked.process(values, rest[1:]).over(config())


def test_update_flags_become_resources() -> None:
    values, _ = parsed(
        "update", "--memory", "64m", "--memory-swap", "-1", "--cpu-quota", "5000", "--cpuset-cpus", "0", "x"
    )
    assert oci_asked.resources(values) == {
        "memory": {"limit": 64 << 20, "swap": -1},
        "cpu": {"quota": 5000, "cpus": "0"},
    }


def test_update_reads_a_file_or_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.json"
    path.write_text('{"pids": {"limit": 7}}')
    values, _ = parsed("update", "--resources", str(path), "x")
    assert oci_asked.resources(values) == {"pids": {"limit": 7}}
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b'{"pids": {"limit": 8}}')))
    values, _ = parsed("update", "-r", "-", "x")
    assert oci_asked.resources(values) == {"pids": {"limit": 8}}
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"[]")))
    with pytest.raises(UsageError, match="standard input"):
        oci_asked.resources(values)


@pytest.mark.parametrize("words", [["x"], ["--memory", "lots", "x"]])
def test_bad_update_is_refused(words: list[str]) -> None:
    values, _ = parsed("update", *words)
    with pytest.raises(UsageError):
        oci_asked.resources(values)

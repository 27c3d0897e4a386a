"""The command line of `tare oci`: what it prints, where errors go, and that no command loads more than it needs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.commands import ocimain
from runtime.container import bundles


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """A process that clones takes signals as they come by default, which would end pytest at its next broken pipe."""
    numbers = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    umask = os.umask(0o22)
    yield
    os.umask(umask)
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


def call(root: Path, *words: str) -> int:
    return ocimain.main(["--root", str(root), *words])


def test_version_is_said_as_runc_says_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert ocimain.main(["--version"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("tare version ")
    assert lines[1] == "spec: 1.2.0"


def test_error_goes_to_standard_error_and_as_json_to_the_log(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.json"
    assert call(root, "--log", str(log), "--log-format", "json", "state", "x") == 1
    assert capsys.readouterr().err.startswith("tare: container x: container does not exist")
    line = json.loads(log.read_text())
    assert line["level"] == "error"
    assert "container does not exist" in line["msg"]
    assert line["time"].endswith("Z")


def test_text_log_quotes_its_message(root: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    call(root, "--log", str(log), "state", "x")
    assert 'level=error msg="container x: container does not exist' in log.read_text()


@pytest.mark.parametrize("words", [["nope"], ["state"], ["state", "--nope", "x"], ["kill", "x", "NOPE"], ["create"]])
def test_bad_command_line_is_refused_in_one_line(
    words: list[str], root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(root, *words) == 2
    error = capsys.readouterr().err
    assert error.startswith("tare: ")
    assert error.count("\n") == 1
    assert not root.exists()


def test_unwritable_log_is_said(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(root, "--log", "/nonexistent/log", "state", "x") == 1
    assert "log file /nonexistent/log" in capsys.readouterr().err


def test_list_is_a_table_json_or_ids(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(root, "list") == 0
    assert capsys.readouterr().out.split() == ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]
    bundles.reserve(str(root), "a")
    call(root, "list", "-q")
    assert capsys.readouterr().out == "a\n"
    call(root, "list", "--format", "json")
    assert [state["id"] for state in json.loads(capsys.readouterr().out)] == ["a"]


def test_help_of_every_command_names_its_flags(capsys: pytest.CaptureFixture[str]) -> None:
    assert ocimain.main([]) == 0
    usage = capsys.readouterr().out
    for name in ocimain.COMMANDS:
        assert f"  {name} " in usage
        assert ocimain.main([name, "--help"]) == 0
        assert capsys.readouterr().out.startswith(f"tare oci {name}")


def test_delete_by_force_of_nothing_is_fine(root: Path) -> None:
    assert call(root, "delete", "--force", "x") == 0
    assert call(root, "delete", "x") == 1


def test_flag_that_is_not_obeyed_is_warned_of(root: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert call(root, "--log", str(log), "create", "--no-pivot", "--bundle", str(tmp_path), "a") == 2
    assert "level=warning" in log.read_text()
    assert "level=error" in log.read_text()


def test_closed_standard_output_is_no_error_to_talk_about(root: Path) -> None:
    program = "from runtime.commands.ocimain import entry; entry()"
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", program, "--version"], stdout=write, stderr=subprocess.PIPE, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_small_commands_load_neither_click_nor_dataclasses_nor_pathlib() -> None:
    program = (
        "import sys; from runtime.commands import ocimain\n"
        "ocimain.main(['--root', '/nonexistent', 'list', '-q'])\n"
        "print(*sorted({'click', 'dataclasses', 'pathlib', 'typing', 'subprocess', 'runtime.cgroups.cgroup',"
        " 'runtime.container.config', 'runtime.container.plan'} & set(sys.modules)))"
    )
    # -S: what `site` loads for an editable install is not ours.
    run = subprocess.run(
        [sys.executable, "-S", "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(Path(__file__).parents[4]), **os.environ},
    )
    assert run.stdout.split() == []

"""The runner of outside programs: output, errors that can be pasted into a shell, time-outs that leave nothing."""

from __future__ import annotations

import os
import shlex
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.command import run
from runtime.errors import TareError
from tests.agent import gone


def test_output_comes_back_apart() -> None:
    done = run(["sh", "-c", "echo out; echo err >&2"], timeout_s=20)
    assert (done.stdout, done.stderr) == (b"out\n", b"err\n")


def test_words_are_never_split_or_expanded() -> None:
    words = ["a b", "$HOME", "*", "'", ""]
    assert run(["printf", "%s|", *words], timeout_s=20).stdout.decode() == "".join(f"{word}|" for word in words)


def test_input_is_given_and_otherwise_empty() -> None:
    assert run(["cat"], timeout_s=20, input=b"x\0y").stdout == b"x\0y"
    assert run(["cat"], timeout_s=20).stdout == b""


def test_terminal_s_input_is_not_the_programs() -> None:
    ours, read, write = os.dup(0), *os.pipe()
    os.write(write, b"typed")
    os.close(write)
    os.dup2(read, 0)
    try:
        assert run(["cat"], timeout_s=20).stdout == b""
    finally:
        os.dup2(ours, 0)
        os.close(ours)
        os.close(read)


def test_environment_and_directory_are_the_given_ones(tmp_path: Path) -> None:
    done = run(["/bin/sh", "-c", "echo $A$HOME; pwd"], timeout_s=20, env={"A": "1"}, cwd=tmp_path)
    assert done.stdout.decode() == f"1\n{tmp_path}\n"


def test_failure_names_the_command_its_code_and_the_end_of_its_stderr() -> None:
    argv = ["sh", "-c", "yes noise | head -c 5000 >&2; echo the reason >&2; exit 3"]
    with pytest.raises(TareError) as caught:
        run(argv, timeout_s=20)
    assert caught.value.what == f"command {shlex.join(argv)}"
    assert caught.value.why.startswith("exit 3: ")
    assert caught.value.why.endswith("the reason")
    assert len(caught.value.why) < 700


def test_silent_failure_says_so() -> None:
    with pytest.raises(TareError, match="exit 1: it said nothing"):
        run(["false"], timeout_s=20)


@pytest.mark.parametrize("program", ["no-such-program", "/etc/passwd"])
def test_missing_program_says_what_to_do(program: str) -> None:
    with pytest.raises(TareError, match=r"/etc/passwd: Permission denied|no-such-program: No such file.*bootstrap"):
        run([program], timeout_s=20)


def test_timeout_kills_the_whole_group(tmp_path: Path) -> None:
    fifo = tmp_path / "pid"
    os.mkfifo(fifo)
    with ThreadPoolExecutor() as pool:
        program = f"sh -c 'echo $$ > {fifo}; exec sleep 1000' & wait"
        done = pool.submit(run, ["sh", "-c", program], timeout_s=1)
        pidfd = os.pidfd_open(int(fifo.read_text()))
        with pytest.raises(TareError, match="not done after 1 s"):
            done.result(20)
    assert gone(pidfd)
    os.close(pidfd)


@given(st.lists(st.text(st.characters(exclude_characters="\0", codec="ascii"), max_size=10), max_size=4))
def test_command_in_the_message_pastes_back_into_the_same_words(words: list[str]) -> None:
    with pytest.raises(TareError) as caught:
        run(["no-such-program", *words], timeout_s=20)
    assert shlex.split(caught.value.what.removeprefix("command ")) == ["no-such-program", *words]

"""The gauge on this host: every word does work for the time asked, and says so or fails. Needs no root."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from pathlib import Path

import pytest

from runtime.images.recipe import GUEST_SOURCES, compile_static
from tests.ports import free_port
from workloads.tools import gauge

SECONDS = "0.05"
TIMED = ("float", "triad 8", "chase 8", "syscall", "spawn", "switch", "fault")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("gauge") / "gauge"
    compile_static(GUEST_SOURCES / "gauge.c", built)
    return built


def run(program: Path, words: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([program, *words.split()], capture_output=True, check=False, timeout=60)


def work(program: Path, words: str) -> gauge.Work:
    ended = run(program, words)
    assert ended.returncode == 0, ended.stderr
    return gauge.parse(ended.stdout)


@pytest.mark.parametrize("words", TIMED)
def test_word_works_for_the_time_asked_and_for_one_batch_when_that_is_none(program: Path, words: str) -> None:
    word, *rest = words.split()
    began_ns = time.monotonic_ns()
    done = work(program, " ".join([word, SECONDS, *rest]))
    assert float(SECONDS) <= done.elapsed_s <= (time.monotonic_ns() - began_ns) / 1e9
    batch = work(program, " ".join([word, "0", *rest]))
    assert done.work % batch.work == 0
    assert done.work > batch.work


def test_chase_is_one_lap_through_everything(program: Path) -> None:
    """Far memory costs more than near memory only when no line is met twice in a lap."""
    near, far = (min(1 / work(program, f"chase 0.1 {mib}").rate for _ in range(3)) for mib in (1, 256))
    assert far > 1.5 * near


def test_server_answers_both_clients_and_ends_by_itself(program: Path) -> None:
    port = free_port()
    served = run(program, f"serve 1 127.0.0.1 {port}")
    assert served.stdout == run(program, "place").stdout
    assert work(program, f"connect {SECONDS} 127.0.0.1 {port}").work > 1
    assert work(program, f"pingpong {SECONDS} 127.0.0.1 {port}").work > 1
    taken = run(program, f"serve 1 127.0.0.1 {port}")
    assert (taken.returncode, b"in use" in taken.stderr) == (1, True)
    deadline = time.monotonic() + 30
    while run(program, f"connect 0 127.0.0.1 {port}").returncode != gauge.UNREACHABLE:
        assert time.monotonic() < deadline


@pytest.mark.parametrize("word", ["connect", "pingpong"])
def test_nobody_there_has_an_exit_code_of_its_own(program: Path, word: str) -> None:
    assert run(program, f"{word} {SECONDS} 127.0.0.1 {free_port()}").returncode == gauge.UNREACHABLE


def test_one_who_takes_the_connection_and_never_answers_is_nobody(program: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        port = deaf.getsockname()[1]
        process = subprocess.Popen([program, "connect", "0", "127.0.0.1", str(port)], stderr=subprocess.PIPE)
        deaf.accept()[0].close()
        _, error = process.communicate(timeout=60)
    assert (process.returncode, b"no answer" in error) == (gauge.UNREACHABLE, True)


def test_place_names_what_others_can_reach(program: Path) -> None:
    place = json.loads(run(program, "place").stdout)
    assert not [address for address in place["addresses"] if address.startswith("127.")]
    assert set(place) == {"addresses", "gateway"}


@pytest.mark.parametrize(
    "words",
    ["", "nonsense 1", "float", "triad 1", "triad 1 0", "chase 1 x", "connect 1 there 80", "serve 1 127.0.0.1 0"],
)
def test_wrong_words_are_refused(program: Path, words: str) -> None:
    ended = run(program, words)
    assert (ended.returncode, ended.stdout) == (2, b"")
    assert ended.stderr.startswith(b"gauge: ")

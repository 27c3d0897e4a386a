"""Real guests' commands, streams and files: what `Instance.exec` bears, a program of its own, what a user does."""

from __future__ import annotations

import dataclasses
import io
import os
import pty
import select
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime import channel
from runtime.container import terminal
from runtime.driver import Host
from runtime.drivers.libvirt import MicrovmDriver
from runtime.errors import TareError
from runtime.spec import ImageRef, InstanceSpec, Ready
from runtime.vm.guest import Guest
from tests.host.drivers import usable
from tests.host.life import IMAGE, Tare, rooted_for_machines

READY_S = 180.0
SPEC = InstanceSpec(image=ImageRef.parse(IMAGE))


@pytest.fixture(scope="module")
def microvm(bench_host: Host) -> Iterator[MicrovmDriver]:
    with usable(MicrovmDriver(bench_host)) as driver:
        yield driver


@pytest.fixture(scope="module")
def guest(microvm: MicrovmDriver) -> Iterator[Guest]:
    with microvm.launch(microvm.prepare(SPEC)) as guest:
        guest.wait_ready(READY_S)
        yield guest


@pytest.fixture(scope="module")
def tare(bench_host: Host) -> Iterator[Tare]:
    """With a guest called `v`."""
    with rooted_for_machines(bench_host) as made:
        for words in (("run", "--micro", "-d", "--name", "v", IMAGE), ("exec", "v", "true")):
            process = made.begin("vm", *words)
            process.communicate(timeout=READY_S)
            assert process.returncode == 0
        yield made


# --- Instance.exec


def test_as_much_output_as_is_kept_comes_whole_and_one_byte_more_is_too_much(guest: Guest) -> None:
    result = guest.exec(["head", "-c", str(channel.OUTPUT_MAX), "/dev/zero"], 300)
    assert (result.exit_code, len(result.stdout), result.stderr) == (0, channel.OUTPUT_MAX, b"")
    with pytest.raises(TareError, match=f"printed more than {channel.OUTPUT_MAX} bytes; (killed|it has ended)$"):
        guest.exec(["head", "-c", str(channel.OUTPUT_MAX + 1), "/dev/zero"], 300)
    assert guest.exec(["true"], 60).exit_code == 0


def test_after_a_time_out_nothing_of_the_command_runs_inside(guest: Guest) -> None:
    with pytest.raises(TareError, match=r"not done after 2 s; killed$"):
        guest.exec(["sh", "-c", "sleep 1000 & sh -c 'sleep 1001'; wait"], 2)
    left = guest.exec(["sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"], 60).stdout
    assert b"sleep" not in left


def test_output_need_be_no_text_and_streams_stay_apart(guest: Guest) -> None:
    result = guest.exec(["sh", "-c", r"printf '\377\000\376'; printf '\375' >&2"], 60)
    assert (result.stdout, result.stderr) == (b"\xff\0\xfe", b"\xfd")


def test_command_that_closes_its_streams_and_lives_on_is_waited_for(guest: Guest) -> None:
    result = guest.exec(["sh", "-c", "echo before; exec >&- 2>&-; sleep 1; exit 6"], 60)
    assert (result.exit_code, result.stdout) == (6, b"before\n")
    assert result.elapsed_ns >= 10**9


def test_end_by_a_signal_has_a_shells_code(guest: Guest) -> None:
    assert [guest.exec(["sh", "-c", f"kill -{number} $$"], 60).exit_code for number in (9, 15)] == [137, 143]


# --- a program of its own


def test_guest_with_a_program_ends_with_it_and_keeps_its_code(microvm: MicrovmDriver) -> None:
    argv, env = ("sh", "-c", "echo $MARK; sleep 3; exit 9"), (("MARK", "ours"),)
    spec = dataclasses.replace(SPEC, argv=argv, env=env, ready=Ready.USERLAND)
    with microvm.launch(microvm.prepare(spec)) as guest:
        guest.wait_ready(READY_S)
        with pytest.raises(TareError, match="it runs a program of its own"):
            guest.exec(["true"], 60)
        assert guest.wait_ended(READY_S) == 9
        assert guest.output() == b"ours\n"
        deadline = time.monotonic() + READY_S
        while guest.alive():
            assert time.monotonic() < deadline
            time.sleep(0.1)


# --- tare vm cp, exec -i, exec -t


def test_files_go_in_and_come_out_as_they_were(tare: Tare, tmp_path: Path) -> None:
    (tmp_path / "in/deep").mkdir(parents=True)
    data = os.urandom(3 << 20)
    (tmp_path / "in/deep/file").write_bytes(data)
    (tmp_path / "in/deep/file").chmod(0o751)
    (tmp_path / "in/link").symlink_to("deep/file")
    os.link(tmp_path / "in/deep/file", tmp_path / "in/hard")
    tare("vm", "cp", f"{tmp_path}/in", "v:/root/new").good()
    said = tare("vm", "exec", "v", "sh", "-c", "cd /root/new; stat -c '%a %U %h %s' hard; readlink link; cmp hard link")
    assert said.good().splitlines() == [f"751 root 2 {len(data)}", "deep/file"]
    tare("vm", "cp", "v:/root/new/.", f"{tmp_path}/out").good()
    assert (tmp_path / "out/link").read_bytes() == data
    assert (tmp_path / "out/hard").stat().st_ino == (tmp_path / "out/deep/file").stat().st_ino
    assert (tmp_path / "out/deep/file").stat().st_mtime_ns == (tmp_path / "in/deep/file").stat().st_mtime_ns


def test_archives_go_both_ways(tare: Tare) -> None:
    done = subprocess.run(
        tare.argv("vm", "cp", "v:/etc/hostname", "-"), capture_output=True, env=tare.environment, check=True
    )
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        assert archive.getnames() == ["hostname"]
    tare.call(tare.argv("vm", "cp", "-", "v:/tmp"), data=done.stdout).good()
    assert tare("vm", "exec", "v", "cmp", "/etc/hostname", "/tmp/hostname").code == 0


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("v:/none", "/tmp/x"), "v:/none: no such file or directory"),
        (("/etc/hostname", "v:/proc/x"), "no such file"),
        (("v:/dev/null", "/tmp/x"), "v:/dev/null: a device"),
        (("v:/proc/version", "/tmp/x"), "holds no files"),
        (("nobody:/etc", "/tmp/x"), "no such virtual machine"),
    ],
)
def test_what_cannot_be_copied_is_told_in_one_line(tare: Tare, words: tuple[str, str], why: str) -> None:
    said = tare("vm", "cp", *words)
    assert said.code != 0
    assert why in said.err.lower()
    assert len(said.err.splitlines()) == 1


def test_input_goes_through_a_command_inside(tare: Tare) -> None:
    data = os.urandom(2 << 20)
    done = subprocess.run(
        tare.argv("vm", "exec", "-i", "v", "cat"),
        input=data,
        capture_output=True,
        env=tare.environment,
        timeout=READY_S,
        check=False,
    )
    assert (done.returncode, done.stdout == data, done.stderr) == (0, True, b"")
    assert tare("vm", "exec", "v", "cat").code == 0
    assert tare("vm", "exec", "v", "no-such-program").code == 127


class Screen:
    """A command on a terminal of ours."""

    def __init__(self, tare: Tare, *words: str, size: tuple[int, int]) -> None:
        self.ours, theirs = pty.openpty()
        terminal.resize(theirs, size)
        self.process = tare.begin(*words, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
        os.close(theirs)
        self.seen = b""

    def wait(self, word: bytes) -> None:
        deadline = time.monotonic() + READY_S
        while word not in self.seen:
            assert select.select([self.ours], [], [], deadline - time.monotonic())[0], self.seen
            self.seen += os.read(self.ours, 4096)

    def type(self, data: bytes) -> None:
        os.write(self.ours, data)

    def resize(self, size: tuple[int, int]) -> None:
        """Its process has no controlling terminal, so it is told by hand."""
        terminal.resize(self.ours, size)
        self.process.send_signal(28)

    def close(self) -> int:
        code = self.process.wait(READY_S)
        os.close(self.ours)
        return code


def test_shell_on_a_terminal_inside(tare: Tare) -> None:
    screen = Screen(tare, "vm", "exec", "-it", "v", "sh", size=(31, 97))
    screen.type(b"stty size; echo $TERM\n")
    screen.wait(b"31 97\r\nxterm\r\n")
    screen.resize((41, 87))
    screen.type(b"sleep 0.5; stty size\n")
    screen.wait(b"41 87\r\n")
    screen.type(b"sh -c 'echo go$((1)); exec sleep 1000'\n")
    screen.wait(b"go1\r\n")
    screen.type(b"\x03")
    screen.type(b"exit 5\n")
    assert screen.close() == 5


def test_terminal_without_one_of_ours_is_refused(tare: Tare) -> None:
    said = tare("vm", "exec", "-it", "v", "true")
    assert (said.code, "not a terminal" in said.err) == (125, True)


def test_run_on_a_terminal_takes_what_was_typed_before_it_was_up_and_ends_with_its_code(tare: Tare) -> None:
    screen = Screen(
        tare,
        "vm",
        "run",
        "--micro",
        "--rm",
        "-it",
        IMAGE,
        "sh",
        "-c",
        "read -r word; echo $word; exit 3",
        size=(24, 80),
    )
    screen.type(b"early\n")
    screen.wait(b"early\r\nearly\r\n")
    assert screen.close() == 3

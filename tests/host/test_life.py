"""Containers as users run them: streams, exit codes, what cannot be, and terminals. Needs root.

`test_life_commands` has what is done to them while they live, `test_life_crashes` how they outlive everybody's crashes.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests.host.life import FOREVER, IMAGE, NONE, Tare, conversation, heard, name, tare, until

__all__ = ["name", "tare"]  # fixtures


# --- run: streams, exit codes, what cannot be


def test_streams_and_exit_code_are_the_container_s(tare: Tare) -> None:
    said = tare.run(IMAGE, "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (said.code, said.out, said.err) == (7, "out\n", "err\n")


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (("/no/such",), 127, "command '/no/such': No such file"),
        (("no-such",), 127, "command 'no-such': No such file"),
        (("/etc/passwd",), 126, "command '/etc/passwd': Permission denied"),
        (("sh", "-c", "sh -c 'kill -9 $$'; exit $?"), 137, ""),
        (("sh", "-c", "exit 255"), 255, ""),
    ],
)
def test_exit_codes_are_docker_s(tare: Tare, argv: tuple[str, ...], code: int, words: str) -> None:
    said = tare.run(IMAGE, *argv)
    assert said.code == code
    assert words in said.err
    assert tare.residents() == []


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("-m", "1x", IMAGE), "--memory '1x'"),
        (("--cpus", "1000", IMAGE), "--cpus 1000"),
        (("--nonsense", IMAGE), "--nonsense"),
        (("--init", "--pid", "host", IMAGE), "--init: its process 1 is another one"),
        (("--restart", "sometimes", IMAGE), "--restart sometimes"),
        (("--security-opt", "apparmor=x", IMAGE), "--security-opt apparmor=x"),
        (("--network", "no-such-net", IMAGE), "no-such-net"),
        (("--network", "container:ghost", IMAGE), "ghost"),
        (("-v", "nonsense", IMAGE), "nonsense"),
        (("--pull", "never", "no/such:image"), "no/such:image"),
        (("-u", "nobody-known", IMAGE), "nobody-known"),
        (("-t", "-i", IMAGE, "true"), "not a terminal"),
        ((IMAGE, "echo", *["x" * 100_000] * 11), "too many"),
    ],
)
def test_what_cannot_be_is_125_in_one_line_and_leaves_nothing(
    tare: Tare, words: tuple[str, ...], complaint: str
) -> None:
    before = tare("ps", "-aq").good()
    said = tare("run", "--rm", *words)
    assert said.code == 125, said
    assert complaint in said.err
    assert said.err.count("\n") == 1
    assert (tare("ps", "-aq").good(), tare.residents()) == (before, [])


def test_input_of_any_size_comes_through(tare: Tare) -> None:
    data = os.urandom(1 << 20).hex().encode()
    said = tare("run", "--rm", "-i", *NONE, IMAGE, "cat", data=data)
    assert said.out.encode() == data


def test_without_i_there_is_no_input(tare: Tare) -> None:
    assert tare("run", "--rm", *NONE, IMAGE, "cat", data=b"unheard").out == ""


def test_much_output_on_both_streams_is_whole(tare: Tare) -> None:
    script = "for i in 1 2 3; do head -c 400000 /dev/zero; head -c 300000 /dev/zero >&2; done"
    said = tare.run(IMAGE, "sh", "-c", script)
    assert (len(said.out), len(said.err)) == (1_200_000, 900_000)


def test_signals_are_passed_on(tare: Tare) -> None:
    script = "trap 'echo got; exit 3' TERM; echo ready; while :; do sleep 0.01; done"
    process = tare.begin("run", "--rm", *NONE, IMAGE, "sh", "-c", script)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.terminate()
    assert (process.communicate()[0], process.returncode) == (b"got\n", 3)


def test_a_detached_one_is_named_and_its_id_printed(tare: Tare, name: str) -> None:
    identity = tare.up("--name", name, "--label", "a=b", IMAGE, *FOREVER)
    rows = json.loads(tare("ps", "--json", "--filter", f"name={name}").good())
    assert [(row["ID"], row["Names"], row["State"], row["Labels"]["a"]) for row in rows] == [
        (identity, name, "running", "b")
    ]
    assert tare("ps", "-q", "--no-trunc", "-f", f"name={name}", "-f", "label=a=b").good() == identity
    assert tare("ps", "-q", "-f", "label=a=c").good() == ""


def test_a_name_belongs_to_one(tare: Tare, name: str) -> None:
    tare.up("--name", name, IMAGE, *FOREVER)
    said = tare("run", "--rm", *NONE, "--name", name, IMAGE, "true")
    assert said.code == 125
    assert "taken by container" in said.err
    assert tare.state(name)["Running"]


def test_environment_user_directory_and_hostname(tare: Tare, tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("# comment\nB=2\n\nC=3\n")
    script = "echo $A $B $C $HOME; id -u; id -g; pwd; hostname; cat /etc/hostname"
    said = tare.run(
        *("-e", "A=1", "--env-file", str(file), "-u", "daemon", "-w", "/tmp", "-h", "box"), IMAGE, "sh", "-c", script
    )
    assert said.good().split() == ["1", "2", "3", "/usr/sbin", "1", "1", "/tmp", "box", "box"]


def test_an_entry_point_of_one_s_own(tare: Tare) -> None:
    assert tare.run("--entrypoint", "/bin/echo", IMAGE, "a", "b").good() == "a b"


def test_cidfile_holds_the_id_and_is_never_overwritten(tare: Tare, tmp_path: Path, name: str) -> None:
    file = tmp_path / "id"
    identity = tare.up("--name", name, "--cidfile", str(file), IMAGE, *FOREVER)
    assert file.read_text() == identity
    said = tare("run", "--rm", *NONE, "--cidfile", str(file), IMAGE, "true")
    assert said.code == 125
    assert "it exists" in said.err


@pytest.mark.parametrize("flag", ["--pid", "--ipc", "--uts", "--network"])
def test_namespaces_of_another_are_joined(tare: Tare, name: str, flag: str) -> None:
    tare.up("--name", name, IMAGE, *FOREVER)
    kind = {"--network": "net"}.get(flag, flag.removeprefix("--"))
    theirs = tare("exec", name, "readlink", f"/proc/self/ns/{kind}").good()
    words = (flag, f"container:{name}") if flag == "--network" else (*NONE, flag, f"container:{name}")
    assert tare("run", "--rm", *words, IMAGE, "readlink", f"/proc/self/ns/{kind}").good() == theirs


def test_ids_of_its_own(tare: Tare) -> None:
    rows = tare.run("--userns", "auto", IMAGE, "cat", "/proc/self/uid_map").good().split()
    assert rows[0] == "0"
    assert int(rows[1]) >= 1 << 30


# --- a terminal


def set_size(master: int, rows: int, columns: int) -> None:
    import fcntl
    import struct
    import termios

    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def test_a_terminal_is_the_container_s_and_keeps_our_size(tare: Tare) -> None:
    process, master = conversation(tare, "run", "--rm", "-it", *NONE, IMAGE, "sh")
    try:
        heard(master, b"# ")
        set_size(master, 41, 101)
        process.send_signal(signal.SIGWINCH)  # the kernel tells a terminal's foreground group; this is not one
        until(lambda: _size_inside(master) == b"41 101")
        os.write(master, b"tty; exit 5\n")
        heard(master, b"/dev/pts/0")
        assert process.wait(60) == 5
    finally:
        os.close(master)


def _size_inside(master: int) -> bytes:
    os.write(master, b"echo =$(stty size)=\n")
    shown = heard(master, b"=\r\n# ")
    return shown.split(b"=\r\n# ")[0].rsplit(b"=", 1)[-1]


def test_the_detach_keys_let_go_and_attach_takes_up_again(tare: Tare, name: str) -> None:
    process, master = conversation(tare, "run", "-it", "--name", name, *NONE, IMAGE, "sh")
    heard(master, b"# ")
    os.write(master, b"\x10\x11")
    assert process.wait(60) == 0
    os.close(master)
    assert tare.state(name)["Running"]
    process, master = conversation(tare, "attach", name)
    os.write(master, b"exit 9\n")
    assert process.wait(60) == 9
    os.close(master)


def test_exec_with_a_terminal(tare: Tare, name: str) -> None:
    tare.up("--name", name, IMAGE, *FOREVER)
    process, master = conversation(tare, "exec", "-it", name, "sh", "-c", "tty && exit 4")
    assert process.wait(60) == 4
    assert b"/dev/pts/0" in heard(master, b"/dev/pts/0")
    os.close(master)

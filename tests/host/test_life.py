"""Containers as users live with them: every command on real ones, through everybody's crashes. Needs root."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from runtime.driver import Host
from runtime.ledger import process_start
from tests.host.life import IMAGE, NONE, Tare, killed, rooted

FOREVER = ("sleep", "1000")
TICKING = ("sh", "-c", "while :; do echo tick; sleep 0.02; done")


@pytest.fixture(scope="module")
def tare(bench_host: Host) -> Iterator[Tare]:
    with rooted(bench_host) as tare:
        yield tare


@pytest.fixture
def name(tare: Tare, request: pytest.FixtureRequest) -> Iterator[str]:
    """A name for one container, which is removed after the test."""
    chosen = f"c{abs(hash(request.node.name)) % 10**9}"
    yield chosen
    tare("rm", "-f", chosen)


def until(holds: Callable[[], bool], timeout_s: float = 60) -> None:
    """Wait for what no descriptor announces."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


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
        (("--init", IMAGE), "option --init: not supported"),
        (("--restart", "always", IMAGE), "--restart always"),
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


def conversation(tare: Tare, *words: str) -> tuple[subprocess.Popen[bytes], int]:
    """A command with a terminal, and the master's end of it."""
    master, slave = os.openpty()
    process = tare.begin(*words, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
    os.close(slave)
    return process, master


def heard(master: int, ends: bytes, timeout_s: float = 60) -> bytes:
    """What the terminal shows until it shows `ends`."""
    found, deadline = b"", time.monotonic() + timeout_s
    while ends not in found:
        left_s = deadline - time.monotonic()
        assert left_s > 0, found
        if select.select([master], [], [], left_s)[0]:
            try:
                found += os.read(master, 65536)
            except OSError:
                break
    assert ends in found, found
    return found


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


# --- stop, kill, wait, pause, restart


def test_stop_asks_then_kills(tare: Tare, name: str) -> None:
    tare.up("--name", name, IMAGE, "sh", "-c", "trap '' TERM; while :; do sleep 0.1; done")
    assert tare("stop", "-t", "1", name).good() == name
    assert (tare.state(name)["Status"], tare.state(name)["ExitCode"]) == ("exited", 137)


def test_stop_uses_the_signal_asked_for(tare: Tare, name: str) -> None:
    script = "trap 'exit 6' USR1; echo ready; while :; do sleep 0.01; done"
    tare.up("--name", name, "--stop-signal", "USR1", IMAGE, "sh", "-c", script)
    until(lambda: tare("logs", name).out == "ready\n")
    tare("stop", name).good()
    assert tare.state(name)["ExitCode"] == 6


def test_stop_ends_a_paused_one(tare: Tare, name: str) -> None:
    tare.up("--name", name, IMAGE, *FOREVER)
    tare("pause", name).good()
    tare("stop", "-t", "1", name).good()
    assert tare.state(name)["Status"] == "exited"


def test_kill_sends_any_signal(tare: Tare, name: str) -> None:
    tare.up("--name", name, IMAGE, "sh", "-c", "trap 'echo hup' HUP; while :; do sleep 0.01; done")
    tare("kill", "-s", "HUP", name).good()
    until(lambda: "hup" in tare("logs", name).out)
    tare("kill", name).good()
    assert tare("wait", name).good() == "137"
    assert tare("kill", name).code == 1


def test_wait_gives_the_exit_code_when_it_comes(tare: Tare, name: str) -> None:
    tare.up("--name", name, IMAGE, "sh", "-c", "read x < /tmp/fifo; exit 3")
    process = tare.begin("wait", name)
    tare("exec", name, "sh", "-c", "mkfifo /tmp/fifo 2>/dev/null; kill -TERM 1; true")
    tare("kill", name)
    assert process.communicate(timeout=60)[0].strip() in (b"137", b"3", b"2")


def test_a_paused_one_stands_still(tare: Tare, name: str) -> None:
    tare.up("--name", name, IMAGE, *TICKING)
    tare("pause", name).good()
    assert tare.state(name)["Paused"]
    count = len(tare("logs", name).out)
    assert tare("exec", name, "true").code == 125
    assert len(tare("logs", name).out) == count
    tare("unpause", name).good()
    until(lambda: len(tare("logs", name).out) > count)
    assert tare("unpause", name).code == 1


def test_restart_is_another_process_and_the_same_files(tare: Tare, name: str) -> None:
    tare.up("--name", name, IMAGE, *FOREVER)
    tare("exec", name, "sh", "-c", "echo kept > /kept").good()
    before = tare.state(name)["Pid"]
    tare("restart", "-t", "0", name).good()
    assert tare.state(name)["Pid"] not in (0, before)
    assert tare("exec", name, "cat", "/kept").good() == "kept"


def test_create_then_start_attached(tare: Tare, name: str) -> None:
    tare("create", "--name", name, *NONE, IMAGE, "sh", "-c", "echo hello; exit 2").good()
    assert tare.state(name)["Status"] == "created"
    for _ in range(2):
        said = tare("start", "-a", name)
        assert (said.code, said.out) == (2, "hello\n")
    assert tare("logs", name).out == "hello\nhello\n"


def test_memory_that_runs_out_is_told(tare: Tare, name: str) -> None:
    said = tare("run", "--name", name, *NONE, "-m", "16m", IMAGE, "sh", "-c", "head -c 200m /dev/zero | tail -c 190m")
    assert said.code != 0
    assert tare.state(name)["OOMKilled"]


# --- rm


def test_rm_wants_force_for_a_running_one(tare: Tare, name: str) -> None:
    tare.up("--name", name, IMAGE, *FOREVER)
    said = tare("rm", name)
    assert (said.code, "it is running" in said.err) == (1, True)
    assert tare("rm", "-f", name).good() == name
    assert tare("rm", name).code == 1
    assert tare("rm", "-f", name).code == 0
    assert tare.residents() == []


def test_rm_of_several_goes_on_after_a_failure(tare: Tare, name: str) -> None:
    tare("create", "--name", name, *NONE, IMAGE, "true").good()
    said = tare("rm", "no-such", name)
    assert (said.code, said.out) == (1, f"{name}\n")
    assert "no-such: no such container" in said.err


def test_rename(tare: Tare, name: str) -> None:
    tare("create", "--name", f"{name}x", *NONE, IMAGE, "true").good()
    tare("rename", f"{name}x", name).good()
    assert tare.state(name)["Status"] == "created"
    assert tare("inspect", f"{name}x").code == 1


# --- exec


def test_exec_is_in_the_same_place_with_another_user(tare: Tare, name: str) -> None:
    tare.up("--name", name, "-e", "A=1", IMAGE, *FOREVER)
    script = "id -u; echo $A $B; pwd; readlink /proc/self/ns/pid /proc/1/ns/pid"
    said = tare("exec", "-u", "daemon", "-e", "B=2", "-w", "/tmp", name, "sh", "-c", script)
    words = said.out.split()
    assert words[:4] == ["1", "1", "2", "/tmp"], said


def test_exec_has_input_output_and_exit_code(tare: Tare, name: str) -> None:
    tare.up("--name", name, IMAGE, *FOREVER)
    said = tare("exec", "-i", name, "sh", "-c", "cat; echo err >&2; exit 8", data=b"data")
    assert (said.code, said.out, said.err) == (8, "data", "err\n")
    assert tare("exec", name, "/no/such").code == 127
    assert tare("exec", "-d", name, "touch", "/done").good() == ""
    until(lambda: tare("exec", name, "test", "-e", "/done").code == 0)


def test_exec_is_confined_as_the_container(tare: Tare, name: str) -> None:
    tare.up("--name", name, "--cap-drop", "ALL", IMAGE, *FOREVER)
    rows = dict(
        line.split(":\t", 1)
        for line in tare("exec", name, "cat", "/proc/self/status").out.splitlines()
        if ":\t" in line
    )
    assert (rows["CapEff"], rows["CapBnd"], rows["Seccomp"]) == ("0" * 16, "0" * 16, "2")


def test_exec_wants_a_running_one(tare: Tare, name: str) -> None:
    tare("create", "--name", name, *NONE, IMAGE, "true").good()
    said = tare("exec", name, "true")
    assert (said.code, "does not run" in said.err) == (125, True)


# --- logs, events, top, stats, inspect


def test_logs_by_tail_time_and_stream(tare: Tare, name: str) -> None:
    script = "echo two >&2; sleep 0.2; echo one; sleep 0.05; echo three"
    tare("run", "--name", name, *NONE, IMAGE, "sh", "-c", script).good()
    said = tare("logs", name)
    assert (said.out, said.err) == ("one\nthree\n", "two\n")
    assert tare("logs", "--tail", "1", name).out == "three\n"
    stamped = tare("logs", "-t", "--tail", "1", name).out
    assert stamped.endswith("Z three\n")
    assert tare("logs", "--since", stamped.split()[0], name).out == "three\n"
    assert tare("logs", "--until", "1h", name).out == ""
    assert tare("logs", "--since", "nonsense", name).code == 2


def test_logs_are_followed_to_the_end(tare: Tare, name: str) -> None:
    tare.up("--name", name, IMAGE, "sh", "-c", "for i in $(seq 200); do echo $i; sleep 0.005; done; exit 3")
    assert tare("logs", "-f", name).out.split() == [str(number) for number in range(1, 201)]


def test_logs_are_bounded(tare: Tare, name: str) -> None:
    options = ("--log-opt", "max-size=20k", "--log-opt", "max-file=2")
    tare("run", "--name", name, *NONE, *options, IMAGE, "seq", "100000").good()
    directory = tare.host.root / "containers"
    sizes = [path.stat().st_size for path in directory.glob("*/logs/output.jsonl*")]
    assert tare("logs", "--tail", "1", name).out == "100000\n"
    assert max(sizes) <= 20 << 10


def test_events_tell_the_whole_story(tare: Tare, name: str) -> None:
    tare("run", "--rm", "--name", name, *NONE, IMAGE, "sh", "-c", "exit 3")
    rows = tare("events", "--since", "10m", "--until", "0s", "--json", "--filter", f"container={name}").out.splitlines()
    events = [json.loads(row) for row in rows]
    assert [event["Action"] for event in events] == ["create", "start", "die", "destroy"]
    assert events[2]["attributes"]["exitCode"] == "3"


def test_events_are_told_as_they_come(tare: Tare, name: str) -> None:
    tare("create", "--name", name, *NONE, IMAGE, "true").good()
    identity = tare("ps", "-aq", "--no-trunc", "-f", f"name={name}").good()
    process = tare.begin("events", "--since", "10m", "--filter", f"container={identity}")
    assert process.stdout is not None
    assert b" container create " in process.stdout.readline()  # it looks already
    tare("rename", name, f"{name}x").good()
    assert b" container rename " in process.stdout.readline()
    tare("rm", f"{name}x").good()
    assert b" container destroy " in process.stdout.readline()
    killed(process)


def test_top_shows_the_processes(tare: Tare, name: str) -> None:
    tare.up("--name", name, IMAGE, *FOREVER)
    head, row = tare("top", name).good().splitlines()
    assert head.split()[:3] == ["UID", "PID", "PPID"]
    assert row.split()[1] == str(tare.state(name)["Pid"])
    assert row.endswith("sleep 1000")
    assert tare("top", name, "-eo", "pid,comm").good().splitlines()[1].split()[1] == "sleep"


def test_stats_once(tare: Tare, name: str) -> None:
    tare.up("--name", name, "-m", "64m", IMAGE, "sh", "-c", "while :; do :; done")
    (row,) = json.loads(tare("stats", "--no-stream", "--json", name).good())
    assert row["memory_limit_bytes"] == 64 << 20
    assert 0 < row["memory_bytes"] < 64 << 20
    assert row["cpu_percent"] > 1
    assert row["pids"] == 1
    assert name in tare("stats", "--no-stream").good()


def test_inspect_in_docker_s_shape(tare: Tare, name: str) -> None:
    identity = tare.up("--name", name, "-m", "64m", "--cpus", "0.5", IMAGE, *FOREVER)
    (found,) = json.loads(tare("inspect", name).good())
    assert (found["Id"], found["Name"], found["Path"], found["Args"]) == (identity, f"/{name}", "sleep", ["1000"])
    host = found["HostConfig"]
    assert (host["Memory"], host["CpuQuota"], host["NetworkMode"]) == (64 << 20, 50_000, "none")
    assert tare("inspect", "-f", "{{.State.Status}} {{.State.Pid}}", name).good() == f"running {found['State']['Pid']}"
    assert tare("inspect", "--type", "container", "no-such").code == 1
    assert json.loads(tare("inspect", IMAGE).good())[0]["RepoTags"] == [IMAGE]


# --- crashes


def test_a_client_killed_leaves_its_container(tare: Tare, name: str) -> None:
    process = tare.begin("run", "--name", name, *NONE, IMAGE, *TICKING)
    assert process.stdout is not None
    process.stdout.readline()
    killed(process)
    assert tare.state(name)["Running"]
    tare("stop", "-t", "0", name).good()
    assert tare.state(name)["ExitCode"] == 137


def test_a_client_killed_does_not_keep_rm_from_happening(tare: Tare, name: str) -> None:
    process = tare.begin("run", "--rm", "--name", name, *NONE, IMAGE, *TICKING)
    assert process.stdout is not None
    process.stdout.readline()
    killed(process)
    tare("kill", name).good()
    until(lambda: tare("inspect", name).code == 1)
    until(lambda: tare.residents() == [])


def test_a_keeper_killed_takes_its_containers_along_and_all_know(tare: Tare, name: str) -> None:
    tare.up("--name", name, IMAGE, *FOREVER)
    other = tare.begin("run", "--rm", *NONE, IMAGE, *TICKING)
    assert other.stdout is not None
    other.stdout.readline()
    pid = tare.state(name)["Pid"]
    waiting = tare.begin("wait", name)
    os.kill(tare.keeper(), signal.SIGKILL)
    until(lambda: not Path(f"/proc/{pid}").exists())
    assert other.wait(60) == 137
    assert waiting.communicate(timeout=60)[0].strip() == b"137"
    found = tare.state(name)
    assert (found["Status"], found["ExitCode"]) == ("exited", 137)
    assert "nobody saw" in found["Error"]
    assert "Exited (137)" in tare("ps", "-a").good()
    tare("clean").good()
    assert tare.residents() == []
    assert tare("ps", "-aq").good() == tare("ps", "-aq", "-f", f"name={name}").good()
    tare("start", name).good()
    assert tare.state(name)["Running"]


def test_create_interrupted_leaves_nothing_that_clean_does_not_remove(tare: Tare) -> None:
    for delay_s in (0.05, 0.1, 0.15, 0.2, 0.25, 0.3):
        process = tare.begin("run", "-d", *NONE, IMAGE, "true")
        time.sleep(delay_s)  # anywhere in its short life
        killed(process)
    until(lambda: not (tare.host.run / "keeper.sock").exists())  # to ask it would be to keep it
    tare("clean").good()
    assert tare.residents() == []
    for identity in tare("ps", "-aq").good().split():
        tare("rm", "-f", identity).good()
    assert {path.name for path in (tare.host.root / "containers").iterdir()} <= {"names", "names.lock", "ids.lock"}
    assert list((tare.host.root / "containers/names").iterdir()) == []


def test_a_keeper_survives_the_terminal_it_was_started_from(tare: Tare, name: str) -> None:
    process, master = conversation(tare, "run", "-d", "--name", name, *NONE, IMAGE, *FOREVER)
    heard(master, b"\n")
    os.close(master)
    process.wait(60)
    assert tare.state(name)["Running"]


def test_the_keeper_ends_with_the_last_container(tare: Tare, name: str) -> None:
    tare.up("--name", name, IMAGE, *FOREVER)
    keeper = tare.keeper()
    assert keeper > 0
    tare("rm", "-f", name).good()
    until(lambda: process_start(keeper) is None)  # to ask it would be to keep it


def test_twenty_at_once(tare: Tare) -> None:
    def one(number: int) -> tuple[int, str]:
        said = tare.run(IMAGE, "sh", "-c", f"echo {number}; exit {number}")
        return said.code, said.out.strip()

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(one, range(20)))
    assert found == [(number, str(number)) for number in range(20)]
    assert tare.residents() == []


def test_two_starts_at_once_are_one(tare: Tare, name: str) -> None:
    tare("create", "--name", name, *NONE, IMAGE, *FOREVER).good()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: tare("start", name), range(4)))
    assert tare("top", name).good().count("sleep") == 1


# --- networks and volumes


def test_the_default_network_is_a_bridge_and_is_given_back(tare: Tare, name: str) -> None:
    tare("run", "-d", "--name", name, "-p", "127.0.0.1::80", IMAGE, *FOREVER).good()
    address = tare("inspect", "-f", "{{.NetworkSettings.IPAddress}}", name).good()
    assert address in tare("exec", name, "cat", "/etc/hosts").good()
    assert tare("port", name, "80").good().startswith("127.0.0.1:")
    assert tare("run", "--rm", "--network", f"container:{name}", IMAGE, "cat", "/etc/hosts").good().count(address) == 1
    tare("stop", "-t", "0", name).good()
    until(lambda: tare.residents() == [])
    assert json.loads(tare("network", "inspect", "bridge").good())[0].get("Containers", {}) in ({}, [])
    tare("start", name).good()


def test_volumes_without_a_name_go_with_rm(tare: Tare) -> None:
    tare.run("-v", "/data", IMAGE, "touch", "/data/x").good()
    assert tare("volume", "ls", "-q").good() == ""


def test_a_named_volume_stays(tare: Tare) -> None:
    tare.run("-v", "kept:/data", IMAGE, "sh", "-c", "echo x > /data/x").good()
    assert tare.run("-v", "kept:/data:ro", IMAGE, "cat", "/data/x").good() == "x"
    tare("volume", "rm", "kept").good()

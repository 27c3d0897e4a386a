"""Every command on a living container: stop and kill, rm, exec, logs and events, inspect. Needs root."""

from __future__ import annotations

import json

from tests.host.life import FOREVER, IMAGE, NONE, TICKING, Tare, killed, name, tare, until

__all__ = ["name", "tare"]  # fixtures


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
    until(lambda: tare("logs", name).out == tare("logs", name).out)  # what it said before is written down
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
    script = "echo two >&2; echo one; until test -e /go; do sleep 0.01; done; echo three"
    tare.up("--name", name, IMAGE, "sh", "-c", script)
    until(lambda: tare("logs", name).out == "one\n")
    tare("exec", name, "touch", "/go").good()
    until(lambda: tare("logs", name).out == "one\nthree\n")
    assert tare("logs", name).err == "two\n"
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

"""`tare oci` with bundles written by hand: the life cycle, every refusal, hooks, crashes, commands on a running one.

`test_oci_process` has terminals, `run` and `exec`, and what a program inside sees.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.bundles import Change, OciRuntime
from tests.host.oci import (
    Bundle,
    await_stopped,
    bundle,
    ended,
    groups,
    name,
    namespace,
    refused,
    rootfs,
    sleeper,
    subreaper,
    tare,
)

__all__ = ["bundle", "rootfs", "sleeper", "subreaper", "tare"]  # fixtures
pytestmark = pytest.mark.usefixtures("root_user")


@pytest.mark.usefixtures("subreaper")
def test_container_is_created_started_and_inherited_by_the_caller(
    tare: OciRuntime, bundle: Bundle, tmp_path: Path
) -> None:
    where, container = bundle("sh", "-c", "echo ran; exit 7"), name(tmp_path)
    tare.create(container, where, "--pid-file", str(tmp_path / "pid"))
    state = tare.state(container)
    pid = int((tmp_path / "pid").read_text())
    assert (state["status"], state["pid"], state["bundle"]) == ("created", pid, str(where))
    assert (where / "output").read_text() == ""
    tare("start", container)
    assert ended(pid) == 7
    assert (where / "output").read_text() == "ran\n"
    assert tare.state(container)["status"] == "stopped"
    assert container in tare("list").stdout
    tare("delete", container)
    assert "does not exist" in tare("state", container, check=False).stderr


def test_a_container_gets_at_no_program_of_the_host(tare: OciRuntime, bundle: Bundle, tmp_path: Path) -> None:
    container, written = name(tmp_path), bundle("true")
    tare.create(container, written)
    program = Path(f"/proc/{tare.state(container)['pid']}/exe").readlink()
    assert str(program).startswith("/memfd:")


def test_running_container_refuses_what_the_specification_refuses(
    tare: OciRuntime, bundle: Bundle, tmp_path: Path
) -> None:
    where, container = bundle("sleep", "600"), name(tmp_path)
    assert "not stopped" in refused(tare, "delete", created(tare, where, container))
    tare("start", container)
    assert tare.state(container)["status"] == "running"
    assert "already exists" in tare.create(container, where, check=False)
    assert "running" in refused(tare, "start", container)
    assert "not stopped: running" in refused(tare, "delete", container)
    assert "cannot resume" in refused(tare, "resume", container)
    assert tare.state(container)["status"] == "running"
    tare("kill", container, "KILL")
    await_stopped(tare, container)
    assert "container not running" in refused(tare, "kill", container)
    assert "stopped" in refused(tare, "start", container)
    assert "stopped" in refused(tare, "exec", container, "true")
    tare("delete", container)


def created(tare: OciRuntime, where: Path, container: str) -> str:
    tare.create(container, where)
    return container


BAD: dict[str, tuple[Change, str]] = {
    "no args": (lambda config: config["process"].update(args=[]), "args"),
    "relative cwd": (lambda config: config["process"].update(cwd="x"), "process.cwd"),
    "wrong type": (lambda config: config.update(hostname=7), "hostname"),
    "no root": (lambda config: config["root"].update(path="absent"), "root.path"),
    "bad namespace": (lambda config: config["linux"]["namespaces"].append({"type": "what"}), "namespaces"),
    "no such group": (lambda config: config["linux"].update(cgroupsPath="../up"), "cgroupsPath"),
    "terminal": (lambda config: config["process"].update(terminal=True), "console socket"),
    "mount": (
        lambda config: config["mounts"].append({"destination": "/x", "type": "bind", "source": "/absent/source"}),
        "absent/source",
    ),
    "program": (lambda config: config["process"].update(args=["nope"]), 'exec: "nope": executable file not found'),
    "path": (lambda config: config["process"].update(args=["/nope"]), 'exec: "/nope": no such file or directory'),
    "no program": (
        lambda config: config["process"].update(args=["/etc/passwd"]),
        'exec: "/etc/passwd": permission denied',
    ),
    "namespace path": (
        lambda config: config["linux"]["namespaces"][1].update(path="/absent/ns"),
        "/absent/ns",
    ),
}


@pytest.mark.parametrize("fault", BAD)
def test_what_cannot_be_created_is_named_and_leaves_nothing(
    fault: str, tare: OciRuntime, bundle: Bundle, tmp_path: Path
) -> None:
    change, words = BAD[fault]
    container = name(tmp_path)
    said = tare.create(container, bundle("true", change=change), check=False)
    assert words in said
    assert said.count("\n") == 1
    assert tare("list", "--quiet").stdout == ""
    assert not groups(container)


HOOK = """#!/bin/sh
printf '%s %s %s\\n' "$1" "$(readlink /proc/self/ns/mnt)" "$(cat)" >> "$2"
"""


def test_every_hook_runs_at_its_point_in_its_namespace(tare: OciRuntime, bundle: Bundle, tmp_path: Path) -> None:
    script, log = tmp_path / "hook", tmp_path / "shared/log"
    script.write_text(HOOK)
    script.chmod(0o755)
    log.parent.mkdir()

    def change(config: dict[str, Any]) -> None:
        inside = {"destination": "/tmp", "type": "bind", "source": str(tmp_path / "shared"), "options": ["rbind", "rw"]}
        config["mounts"].append(inside)
        (tmp_path / "shared/hook").write_text(HOOK)
        (tmp_path / "shared/hook").chmod(0o755)
        points = ("prestart", "createRuntime", "createContainer", "poststart", "poststop")
        env = ["PATH=/usr/bin:/bin"]
        config["hooks"] = {
            point: [{"path": str(script), "args": ["hook", point, str(log)], "env": env}] for point in points
        }
        config["hooks"]["startContainer"] = [
            {"path": "/tmp/hook", "args": ["hook", "startContainer", "/tmp/log"], "env": env}
        ]

    where, container = bundle("sleep", "600", change=change), name(tmp_path)
    tare.create(container, where)
    pid = tare.state(container)["pid"]
    own, theirs = namespace("self", "mnt"), namespace(pid, "mnt")
    said = [line.split(" ", 2) for line in log.read_text().splitlines()]
    assert [line[0] for line in said] == ["prestart", "createRuntime", "createContainer"]
    assert [line[1] == own for line in said] == [True, True, False]
    states = [json.loads(line[2]) for line in said]
    assert [(state["status"], state["id"]) for state in states] == [("creating", container)] * 3
    assert [state["pid"] for state in states[:2]] == [pid, pid]
    assert states[0]["bundle"] == str(where)
    tare("start", container)
    said = [line.split(" ", 2) for line in log.read_text().splitlines()][3:]
    assert [(line[0], line[1]) for line in said] == [("startContainer", theirs), ("poststart", own)]
    states = [json.loads(line[2]) for line in said]
    assert [(state["status"], state["pid"]) for state in states] == [("created", 1), ("running", pid)]
    tare("delete", "--force", container)
    last = log.read_text().splitlines()[-1].split(" ", 2)
    assert (last[0], last[1]) == ("poststop", own)
    assert json.loads(last[2])["status"] == "stopped"


@pytest.mark.parametrize("point", ["prestart", "createRuntime", "createContainer"])
def test_failing_hook_of_create_undoes_it(point: str, tare: OciRuntime, bundle: Bundle, tmp_path: Path) -> None:
    poststop = tmp_path / "poststop"

    def change(config: dict[str, Any]) -> None:
        config["hooks"] = {
            point: [{"path": "/bin/false"}],
            "poststop": [{"path": "/bin/sh", "args": ["sh", "-c", f"cat > {poststop}"], "env": ["PATH=/usr/bin:/bin"]}],
        }

    container = name(tmp_path)
    said = tare.create(container, bundle("true", change=change), check=False)
    assert f"{point} hook #0" in said
    assert json.loads(poststop.read_text())["id"] == container
    assert tare("list", "--quiet").stdout == ""


def test_failing_start_container_hook_fails_the_start(tare: OciRuntime, bundle: Bundle, tmp_path: Path) -> None:
    def change(config: dict[str, Any]) -> None:
        config["hooks"] = {"startContainer": [{"path": "/bin/false"}]}

    where, container = bundle("echo", "ran", change=change), name(tmp_path)
    tare.create(container, where)
    assert "startContainer hook #0" in refused(tare, "start", container)
    await_stopped(tare, container)
    assert (where / "output").read_text() == ""
    tare("delete", container)


def test_create_that_is_killed_half_way_is_deleted_by_force(tare: OciRuntime, bundle: Bundle, tmp_path: Path) -> None:
    fifo = tmp_path / "reached"
    os.mkfifo(fifo)

    def change(config: dict[str, Any]) -> None:
        words = ["sh", "-c", f"echo > {fifo}; exec sleep 600"]
        config["hooks"] = {"createRuntime": [{"path": "/bin/sh", "args": words, "env": ["PATH=/usr/bin:/bin"]}]}

    container = name(tmp_path)
    tare.made.add(container)
    command = tare.command("create", "--bundle", str(bundle("true", change=change)), container)
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, process_group=0) as create:
        fifo.read_text()
        assert tare.state(container)["status"] in ("creating", "created")
        os.killpg(create.pid, signal.SIGKILL)
    assert groups(container)
    tare("delete", "--force", container)
    assert tare("list", "--quiet").stdout == ""
    assert not groups(container)


def test_pause_resume_ps_update_and_events(tare: OciRuntime, sleeper: str) -> None:
    pid = tare.state(sleeper)["pid"]
    assert json.loads(tare("ps", "--format", "json", sleeper).stdout) == [pid]
    assert tare("ps", sleeper).stdout.splitlines()[1].split()[1] == str(pid)
    tare("pause", sleeper)
    assert tare.state(sleeper)["status"] == "paused"
    assert "paused" in refused(tare, "exec", sleeper, "true")
    tare("resume", sleeper)
    assert tare.state(sleeper)["status"] == "running"
    tare("update", "--memory", "64m", "--pids-limit", "17", sleeper)
    stats = json.loads(tare("events", "--stats", sleeper).stdout)
    assert stats["data"]["memory"]["usage"]["limit"] == 64 << 20
    assert stats["data"]["pids"] == {"current": 1, "limit": 17}
    assert stats["data"]["cpu"]["usage"]["total"] > 0
    tare("pause", sleeper)
    tare("kill", sleeper, "KILL")
    await_stopped(tare, sleeper)


def test_forced_delete_takes_a_paused_container(tare: OciRuntime, sleeper: str) -> None:
    tare("pause", sleeper)
    tare("delete", "--force", sleeper)
    assert not groups(sleeper)

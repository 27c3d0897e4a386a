"""The process of a container on a real kernel: what it is, has, may do, and how it begins and ends. Needs root."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import select
import stat
import struct
import termios
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runtime.container.config import (
    Capabilities,
    Config,
    ConsoleSize,
    Hook,
    Hooks,
    IoPriority,
    Personality,
    Process,
    Rlimit,
    User,
)
from runtime.container.options import IdRange
from runtime.container.plan import Place, container_plan, exec_plan
from runtime.container.spawning import outcome, release, spawn
from runtime.errors import TareError
from tests.conftest import skip_or_fail
from tests.launches import TIMEOUT_S, Launches, Output


def process(config: Config, **changes: Any) -> Config:
    assert config.process is not None
    return replace(config, process=replace(config.process, **changes))


def status(launches: Launches, config_changes: dict[str, Any], **options: Any) -> dict[str, str]:
    config = process(launches.config("cat", "/proc/self/status", **options), **config_changes)
    return dict(line.split(":\t", 1) for line in launches.output(config).splitlines() if ":\t" in line)


def sh(launches: Launches, script: str, **changes: Any) -> list[str]:
    return launches.output(process(launches.config("/bin/sh", "-c", script), **changes)).split()


def test_users_groups_and_umask_are_as_asked(launches: Launches) -> None:
    user = User(uid=1234, gid=2345, umask=0o27, additional_gids=(10, 11))
    assert sh(launches, "id -u; id -g; id -G; umask", user=user) == ["1234", "2345", "2345", "10", "11", "0027"]


def test_all_five_capability_sets_are_as_asked(launches: Launches) -> None:
    sets = Capabilities(
        bounding=("CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW"),
        effective=("CAP_NET_RAW",),
        permitted=("CAP_NET_RAW", "CAP_KILL"),
        inheritable=("CAP_NET_RAW",),
        ambient=("CAP_NET_RAW",),
    )
    found = status(launches, {"capabilities": sets, "user": User(uid=1000, gid=1000)})
    assert {name: int(found[f"Cap{name}"], 16) for name in ("Bnd", "Eff", "Prm", "Inh", "Amb")} == {
        "Bnd": 1 | 1 << 5 | 1 << 13,
        "Eff": 1 << 13,
        "Prm": 1 << 13,
        "Inh": 1 << 13,
        "Amb": 1 << 13,
    }


@pytest.mark.parametrize("no_new_privileges", [False, True])
@pytest.mark.parametrize("uid", [0, 1000])
def test_the_filter_is_there_with_and_without_no_new_privileges(
    launches: Launches, no_new_privileges: bool, uid: int
) -> None:
    found = status(launches, {"no_new_privileges": no_new_privileges, "user": User(uid=uid, gid=uid)})
    assert (found["Seccomp"], found["NoNewPrivs"]) == ("2", str(int(no_new_privileges)))


def test_limits_priority_and_score_are_as_asked(launches: Launches) -> None:
    said = sh(
        launches,
        "ulimit -n; ulimit -Hn; ulimit -c; cat /proc/self/oom_score_adj",
        rlimits=(Rlimit(type="RLIMIT_NOFILE", soft=100, hard=200), Rlimit(type="RLIMIT_CORE", soft=0, hard=0)),
        oom_score_adj=321,
    )
    assert said == ["100", "200", "0", "321"]
    config = process(launches.config("sleep", "300"), io_priority=IoPriority(cls="IOPRIO_CLASS_IDLE", priority=0))
    assert launches.start(config).alive()


def test_a_32_bit_personality_shows_in_the_machines_name(launches: Launches) -> None:
    base = launches.config("uname", "-m")
    if launches.output(base).strip() != "x86_64":
        skip_or_fail("no such personality here")
    old = replace(base, linux=replace(base.linux, personality=Personality(domain="LINUX32")))
    assert launches.output(old).strip() == "i686"


def test_the_session_keyring_is_not_the_hosts(launches: Launches) -> None:
    config = launches.config("cat", "/proc/keys", masked_paths=(), seccomp_unconfined=True)
    if not Path("/proc/keys").exists():
        skip_or_fail("no keyrings in this kernel")
    assert "_ses" in launches.output(config)


def test_a_working_directory_is_made_and_entered(launches: Launches) -> None:
    assert sh(launches, "pwd", cwd="/new/deep") == ["/new/deep"]


@pytest.mark.parametrize(("argv", "code"), [("absent", 127), ("/etc/passwd", 126), ("/etc", 126), ("/absent/x", 127)])
@pytest.mark.parametrize("held", [False, True])
def test_what_cannot_be_executed_has_its_exit_code(
    launches: Launches, tmp_path: Path, argv: str, code: int, held: bool
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(TareError, match=argv) as caught:
        launches.start(launches.config(argv), launches.place(hold=fifo if held else None))
    assert caught.value.exit_code == code


def test_a_held_program_begins_when_it_is_released(launches: Launches, tmp_path: Path) -> None:
    fifo, seen = tmp_path / "fifo", []
    os.mkfifo(fifo)

    def look(pid: int) -> None:
        seen.append(Path(f"/proc/{pid}/root/etc/os-release").read_text())
        seen.append(Path(f"/proc/{pid}/comm").read_text())
        release(str(fifo))

    config = launches.config("/bin/echo", "begun")
    assert launches.output(config, launches.place(hold=fifo), prepare=look).strip() == "begun"
    assert "bookworm" in seen[0]
    assert seen[1].strip() != "echo"


def test_the_parent_may_look_in_before_the_root_is_exchanged(launches: Launches) -> None:
    seen: list[str] = []

    def look(pid: int) -> None:
        seen.append(str(Path(f"/proc/{pid}/ns/net").readlink()))

    said = launches.output(launches.config("readlink", "/proc/self/ns/net"), launches.place(waits=True), prepare=look)
    assert said.split() == seen


def test_what_the_parent_raises_meanwhile_ends_the_child(launches: Launches) -> None:
    pids: list[int] = []

    def fail(pid: int) -> None:
        pids.append(pid)
        raise ValueError("no network")

    with pytest.raises(ValueError, match="no network"):
        launches.start(launches.config("true"), launches.place(waits=True), prepare=fail)
    pidfd = _open(pids[0])
    if pidfd is not None:
        assert select.select([pidfd], [], [], TIMEOUT_S)[0]
        os.close(pidfd)


def _open(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def test_a_lean_process_can_do_without_the_launcher(launches: Launches) -> None:
    """As `tare oci` does: clone, hear, wait."""
    config = launches.config("/bin/sh", "-c", "exit 7")
    spawned = spawn(container_plan(config, launches.place(), launches.facts, seccomp=None).flat())
    said = outcome(spawned)
    assert (said.failure, said.waits, said.console) == (None, "", -1)
    ended = os.waitid(os.P_PIDFD, spawned.pidfd, os.WEXITED)
    assert ended is not None
    assert ended.si_status == 7
    os.close(said.root)
    os.close(spawned.pidfd)


def test_hooks_run_inside_before_the_program(launches: Launches, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    outside = Hook(path="/bin/sh", args=("sh", "-c", f"cat > {mark}; ls $0/etc/os-release >> {mark}", "ROOT"))
    inside = Hook(path="/bin/sh", args=("sh", "-c", "cat > /started; pwd >> /started"), env=("PATH=/bin",))
    place = launches.place()
    assert place.rootfs is not None
    root = str(place.rootfs.instance / "upper")
    outside = replace(outside, args=(*outside.args[:-1], root), env=("PATH=/bin",))
    base = launches.config("/bin/cat", "/started")
    config = replace(
        base,
        root=replace(base.root, path=root),
        hooks=Hooks(create_container=(outside,), start_container=(inside,)),
    )
    with Output() as output:
        plan = container_plan(
            config, place, launches.facts, seccomp=None, streams=((0, 1),), state=b'{"status":"creating"}'
        )
        told, place_inside = output.of(launches.launch(plan, [output.descriptor])).rsplit("}", 1)
    assert (json.loads(told + "}"), place_inside.strip()) == ({"status": "created"}, "/")
    assert mark.read_text() == f'{{"status":"creating"}}{root}/etc/os-release\n'


def test_a_hook_that_fails_ends_the_launch(launches: Launches) -> None:
    hook = Hook(path="/bin/sh", args=("sh", "-c", "echo sorry; exit 4"))
    with pytest.raises(TareError, match=r"startContainer hook #0 /bin/sh.*exit status 4.*sorry"):
        launches.start(replace(launches.config("true"), hooks=Hooks(start_container=(hook,))))


# Terminals


class Screen:
    """The master's end of a terminal."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def read(self, until: str) -> str:
        """What appears until `until` does, or the other end is gone."""
        text = ""
        while until not in text:
            if not select.select([self.descriptor], [], [], TIMEOUT_S)[0]:
                pytest.fail(f"only {text!r} appeared")
            try:
                text += os.read(self.descriptor, 4096).decode().replace("\r", "")
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                break
        return text

    def type(self, text: str) -> None:
        os.write(self.descriptor, text.encode())


@pytest.fixture
def screens(launches: Launches) -> Iterator[Any]:
    opened: list[int] = []

    def start(script: str, **options: Any) -> Screen:
        config = launches.config(
            "/bin/sh", "-c", script, tty=True, console_size=ConsoleSize(height=33, width=77), **options
        )
        child = launches.start(config)
        opened.append(child.console)
        return Screen(child.console)

    yield start
    for descriptor in opened:
        os.close(descriptor)


@pytest.mark.parametrize("users", [None, IdRange(host_id=200000)])
def test_a_terminal_is_the_programs_own(screens: Any, users: IdRange | None) -> None:
    screen = screens("tty; stty size; echo x > /dev/console; echo y > /dev/tty; echo end", id_range=users)
    assert screen.read("end\n").split() == ["/dev/pts/0", "33", "77", "x", "y", "end"]


def test_it_echoes_interrupts_and_is_resized(screens: Any) -> None:
    screen = screens("trap 'echo caught; stty size; exit' INT; echo ready; while :; do sleep 0.05; done")
    screen.read("ready\n")
    fcntl.ioctl(screen.descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", 44, 55, 0, 0))
    screen.type("\x03")
    assert "44 55" in screen.read("44 55")


def test_it_belongs_to_the_user(launches: Launches, screens: Any) -> None:
    assert screens("stat -c %u /dev/pts/0; echo end", user="33").read("end\n").split() == ["33", "end"]


def test_a_further_process_has_one_of_its_own(launches: Launches) -> None:
    config = launches.config("sleep", "300")
    child = launches.start(config)
    assert config.process is not None
    wanted: Process = replace(config.process, args=("/bin/sh", "-c", "tty; echo end"), terminal=True)
    further = launches.launch(exec_plan(config, wanted, child.pid, Place(), launches.facts, seccomp=None))
    screen = Screen(further.console)
    assert screen.read("end\n").split() == ["/dev/pts/0", "end"]
    assert stat.S_ISCHR(os.fstat(screen.descriptor).st_mode)
    os.close(screen.descriptor)

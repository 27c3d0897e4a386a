"""What a hostile container tries on the host that runs it, and is refused. Needs root."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from runtime.container.afterwards import settle_by_id
from runtime.container.config import Rlimit
from runtime.container.namespaces import foreign
from runtime.container.options import IdRange
from runtime.container.plan import Place, exec_plan
from runtime.container.spawning import Flat, outcome, spawn
from runtime.container.steps import JoinNamespaces
from runtime.driver import Host
from runtime.errors import TareError
from runtime.ledger import process_start
from runtime.linux import syscalls
from tests.host.life import IMAGE, NONE, Tare, rooted
from tests.launches import Launches, Output

HOST_NULL = Path("/dev/null")


@pytest.mark.parametrize("options", [{}, {"id_range": IdRange(host_id=1 << 20)}], ids=["root", "userns"])
def test_what_hides_a_file_is_not_the_hosts_to_change(launches: Launches, options: dict[str, Any]) -> None:
    before = HOST_NULL.stat()
    script = "for f in /proc/keys /proc/timer_list /etc/os-release; do chmod 667 $f; chown 1:1 $f; touch -d @1 $f; done"
    masked = ("/proc/keys", "/proc/timer_list", "/etc/os-release")
    try:
        launches.sh(f"({script}) 2>/dev/null; true", masked_paths=masked, **options)
        after = HOST_NULL.stat()
    finally:
        HOST_NULL.chmod(before.st_mode & 0o7777)
        os.chown(HOST_NULL, before.st_uid, before.st_gid)
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)


def test_no_link_of_an_image_makes_directories_on_the_host(launches: Launches, tmp_path: Path) -> None:
    """Where the root's own mount has no parent, `..` of a directory below it is the host's root."""
    victim, layer = tmp_path / "victim", tmp_path / "layer"
    victim.mkdir()
    (layer / "sys").mkdir(parents=True)
    (layer / "bin").mkdir()
    (layer / "sys/fs").symlink_to(f"/bin/../..{victim}")
    base = launches.config("/bin/true")
    config = replace(base, mounts=tuple(mount for mount in base.mounts if mount.destination != "/sys"))
    place = launches.place(cgroup_mounts=(("memory", "memory"),))
    assert place.rootfs is not None
    place = replace(place, rootfs=replace(place.rootfs, layers=(place.rootfs.layers[0], layer)))
    with pytest.raises(TareError):
        launches.start(config, place)
    assert not list(victim.iterdir())


def test_the_hosts_interrupts_are_not_to_be_watched(launches: Launches) -> None:
    """Their times tell of keystrokes and packets: https://github.com/moby/moby/security/advisories/GHSA-6fw5-f8r9-fgfm."""
    assert launches.sh("cat /proc/interrupts") == ""


# Calls that lead out of a container or deep into the kernel, by their x86-64 numbers; all arguments are 0.
_CALLS = {
    "unshare": 272,
    "setns": 308,
    "clone3": 435,
    "mount": 165,
    "umount2": 166,
    "pivot_root": 155,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "mount_setattr": 442,
    "open_by_handle_at": 304,
    "io_uring_setup": 425,
    "bpf": 321,
    "perf_event_open": 298,
    "userfaultfd": 323,
    "kexec_load": 246,
    "kexec_file_load": 320,
    "init_module": 175,
    "finit_module": 313,
    "delete_module": 176,
    "add_key": 248,
    "request_key": 249,
    "keyctl": 250,
    "swapon": 167,
    "reboot": 169,
    "iopl": 172,
    "settimeofday": 164,
    "acct": 163,
    "quotactl": 179,
    "syslog": 103,
    "kcmp": 312,
    "fanotify_init": 300,
    "x32 getpid": 0x40000000 + 39,
}
_CALL_ALL = f"""
import ctypes, errno
call = ctypes.CDLL(None, use_errno=True).syscall
for name, number in {_CALLS!r}.items():
    said = call(number, 0, 0, 0, 0, 0, 0)
    print(name, "done" if said >= 0 else errno.errorcode[ctypes.get_errno()], sep="=")
"""
_OPEN_ALL = """
import os, stat
disks = [(stat.S_IFBLK, major) for major in (8, 253, 254, 259)]
for kind, major in (*disks, (stat.S_IFCHR, 10)):
    try:
        os.mknod("/node", kind | 0o666, os.makedev(major, 1))
        os.open("/node", os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        print("refused" if error.errno == 1 else error)
    else:
        print("opened")
    if os.path.lexists("/node"):
        os.unlink("/node")
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are x86-64's")
@pytest.mark.parametrize("options", [{}, {"id_range": IdRange(host_id=1 << 20)}], ids=["root", "userns"])
def test_what_reaches_beyond_a_container_is_refused(launches: Launches, options: dict[str, Any]) -> None:
    config = launches.config("python3", "-c", _CALL_ALL, **options)
    said = dict(line.split("=") for line in launches.output(config).splitlines())
    assert said == {name: "ENOSYS" if name in ("clone3", "x32 getpid") else "EPERM" for name in _CALLS}


def test_no_disk_of_the_host_is_opened_through_a_node_of_ones_own(bench_host: Host) -> None:
    with rooted(bench_host) as tare:
        said = tare.run(IMAGE, "python3", "-c", _OPEN_ALL).good()
    assert said.split() == ["refused"] * 5


def test_a_further_process_is_as_confined_as_the_first_whoever_it_is(bench_host: Host) -> None:
    script = "grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status; ls /proc/self/fd"
    with rooted(bench_host) as tare:
        first = tare.run(IMAGE, "sh", "-c", script).good()
        name = tare.up("-u", "33", IMAGE, "sleep", "300")
        assert tare("exec", "-u", "0", name, "sh", "-c", script).good() == first
        user = tare("exec", name, "sh", "-c", script).good()
    assert "CapEff:\t0000000000000000" in user
    assert "CapPrm:\t0000000000000000" in user
    assert "Seccomp:\t2" in user


@dataclass
class _TellPlace:
    """In how many PID namespaces the child has a number, and whether the file is in its root."""

    output: int
    file: bytes

    def describe(self) -> str:
        return "tell"

    def execute(self) -> None:
        with open("/proc/self/status", "rb") as status:  # noqa: PTH123
            numbers = next(line for line in status if line.startswith(b"NSpid:")).split()[1:]
        os.write(self.output, b"%d %d\n" % (len(numbers), os.path.exists(self.file)))  # noqa: PTH110


def test_who_joins_a_container_is_seen_there_only_when_nothing_of_the_host_is_left(launches: Launches) -> None:
    """With CAP_SYS_PTRACE, /proc/PID/root of one that still had the host's root would lead there."""
    config = launches.config("sleep", "300", cap_add=("SYS_PTRACE",))
    running = launches.start(config)
    start = process_start(running.pid)
    join = JoinNamespaces(foreign(running.pid), running.pid, start or 0)
    nested = len(_numbers("self"))
    with Output() as output:
        told = _TellPlace(1, os.fsencode(__file__))
        spawned = spawn(Flat((told, join, told), streams=((0, 1),), target=running.pid), [output.descriptor])
        said = outcome(spawned)
        assert said.failure is None
        os.waitid(os.P_PIDFD, spawned.pidfd, os.WEXITED)
        for descriptor in (spawned.pidfd, said.root):
            os.close(descriptor)
        assert output.text().splitlines() == [f"{nested} 1", "1 0"]  # the container's /proc counts from there
    running.kill(signal.SIGKILL)


def _numbers(pid: str) -> list[str]:
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("NSpid:"))
    return line.split()[1:]


def test_another_process_with_the_number_of_one_that_ended_is_not_joined(launches: Launches) -> None:
    config = launches.config("true")
    assert config.process is not None
    own = os.getpid()
    plan = exec_plan(config, config.process, own, Place(), launches.facts, seccomp=None, start=1)
    with pytest.raises(TareError, match="does not run any more"):
        launches.launch(plan)


@pytest.mark.parametrize("options", [{}, {"id_range": IdRange(host_id=1 << 20)}], ids=["root", "userns"])
def test_who_joins_a_pid_namespace_still_becomes_a_container(launches: Launches, options: dict[str, Any]) -> None:
    running = launches.start(launches.config("sleep", "300", **options))
    said = launches.sh("cat /proc/1/comm; ls /proc/self/fd | wc -l", pid=f"/proc/{running.pid}/ns/pid")
    assert said.split() == ["sleep", "4"]
    running.kill(signal.SIGKILL)


@pytest.fixture
def full(bench_host: Host, tmp_path: Path) -> Iterator[tuple[Tare, Path]]:
    """`tare` on a disk of its own, and a file that fills it."""
    syscalls.mount(b"tmpfs", os.fsencode(tmp_path), b"tmpfs", 0, b"size=1m,nr_inodes=2000")
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/images").symlink_to(bench_host.root / "images")
    tare, filling = Tare(tmp_path), tmp_path / "filling"
    with suppress(OSError), filling.open("wb", buffering=0) as file:
        while file.write(b"x" * 4096):
            pass
    try:
        yield tare, filling
        tare.close()
    finally:
        syscalls.umount2(os.fsencode(tmp_path), syscalls.MNT_DETACH)


@pytest.mark.parametrize(
    "words",
    [
        ("run", "--rm", *NONE, IMAGE, "true"),
        ("run", "-d", *NONE, "-v", "data:/etc", IMAGE, "true"),
        ("create", *NONE, IMAGE, "true"),
        ("volume", "create", "data"),
    ],
    ids=" ".join,
)
def test_on_a_full_disk_a_line_says_so_and_nothing_half_made_is_left(
    full: tuple[Tare, Path], words: tuple[str, ...]
) -> None:
    tare, filling = full
    said = tare(*words)
    assert said.code in (1, 125)
    assert "no space left" in said.err
    assert len(said.err.splitlines()) == 1
    assert tare("ps", "-aq").good() == tare("volume", "ls", "-q").good() == ""
    assert tare.residents() == []
    filling.unlink()
    assert tare("clean").good() == "nothing to clean"


def test_whoever_gives_back_for_the_keeper_makes_no_file_for_everybody(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        settle_by_id(str(tmp_path / "lib"), str(tmp_path / "run"), "0" * 64)
        assert os.umask(0) == 0o022
    finally:
        os.umask(before)


def test_a_limit_above_the_hosts_own_is_refused_in_words(launches: Launches) -> None:
    config = launches.config("true")
    assert config.process is not None
    limits = (Rlimit(type="RLIMIT_NOFILE", soft=2**40, hard=2**40),)
    with pytest.raises(TareError, match="not allowed to raise maximum limit") as caught:
        launches.start(replace(config, process=replace(config.process, rlimits=limits)))
    assert "ValueError" not in str(caught.value)

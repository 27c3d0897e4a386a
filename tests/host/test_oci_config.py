"""Every field of a configuration's process and linux has the effect in a container that the specification says.

Each case changes one field of Docker's default container and looks inside, before and after: both must differ.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.container import decode, defaults, storage
from runtime.container.client import LauncherClient
from runtime.container.options import IdRange, Options
from runtime.container.plan import HostFacts, Place, Rootfs, container_plan
from runtime.driver import Host
from runtime.errors import TareError
from runtime.images.store import ImageStore
from runtime.linux import capabilities, seccomp
from runtime.spec import ImageRef
from tests.conftest import skip_or_fail

pytestmark = pytest.mark.usefixtures("root_user")
TIMEOUT_S = 30.0
Run = Callable[[dict[str, Any]], str]


@pytest.fixture(scope="module")
def launcher() -> Iterator[LauncherClient]:
    client = LauncherClient()
    yield client
    client.close()


@pytest.fixture
def run(bench_host: Host, launcher: LauncherClient, tmp_path: Path) -> Iterator[Run]:
    """Run a configuration to its end: what it printed, its exit code in a last line of its own."""
    image = ImageStore(bench_host.root).resolve(ImageRef.parse("tare/debian:bookworm"))
    skeleton = Path(storage.skeleton(str(bench_host.root)))
    layers = (skeleton, *(layer.directory for layer in image.layers))
    made: list[Path] = []

    def run(document: dict[str, Any]) -> str:
        directory = tmp_path / str(len(made))
        made.append(directory)
        storage.make(str(directory))
        config = decode.parse(document)
        filtered = config.linux.seccomp
        plan = container_plan(
            config,
            Place(rootfs=Rootfs(layers, directory), die_with_launcher=True),
            HostFacts.gather(),
            seccomp=None if filtered is None else seccomp.compile_profile(filtered),
            seccomp_flags=0 if filtered is None else seccomp.flags(filtered),
            streams=((0, 1), (0, 2)),
        )
        reading, writing = os.pipe()
        with os.fdopen(reading, "rb") as output:
            try:
                child = launcher.launch(plan, [writing], TIMEOUT_S)
            finally:
                os.close(writing)
            printed = output.read().decode()
            assert child.wait(TIMEOUT_S)
            child.close()
        return f"{printed}{child.exit_code}"

    yield run
    for directory in made:
        storage.remove(str(directory))


def document(script: str, **options: Any) -> dict[str, Any]:
    """Docker's default container, running a shell script."""
    words = Options(argv=("sh", "-c", script), container_id="0123456789ab" * 5, **options)
    return decode.document(defaults.build({}, words))


def changed(document: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    """With one thing set, or taken away (None); a list's place is its number, "+" its end."""
    copy = json.loads(json.dumps(document))
    place: Any = copy
    *outer, last = path.removesuffix("]").replace("[", ".").split(".")
    for word in outer:
        place = place[int(word)] if isinstance(place, list) else place.setdefault(word, {})
    if last == "+":
        place.append(value)
    elif value is None:
        del place[last]
    else:
        place[int(last) if isinstance(place, list) else last] = value
    return copy  # type: ignore[no-any-return]


CAPS = "grep -E '^Cap(Inh|Prm|Eff|Bnd|Amb)' /proc/self/status | tr -s '\\t\\n' ' '"
ONE = {"bounding": ["CAP_CHOWN", "CAP_FUTURE"], "effective": ["CAP_CHOWN"], "permitted": ["CAP_CHOWN"]}
AMBIENT = {name: ["CAP_CHOWN"] for name in ("bounding", "effective", "permitted", "inheritable", "ambient")}


def mount(destination: str, kind: str | None, source: str, *options: str) -> dict[str, Any]:
    return {"destination": destination, "source": source, "options": list(options)} | ({"type": kind} if kind else {})


CASES = [
    ("process.args", ["echo", "a b", "c"], "true", "a b c"),
    ("process.cwd", "/usr/bin", "pwd", "/usr/bin"),
    ("process.env", ["A=1=2", "PATH=/bin"], 'echo "$A $HOME"', "1=2 /root"),
    ("process.user.uid", 65534, "id -u", "65534"),
    ("process.user.gid", 7, "id -g", "7"),
    ("process.user.umask", 0o077, "umask", "0077"),
    ("process.user.additionalGids", [5, 6], "id -G", "0 5 6"),
    ("process.capabilities", ONE, CAPS, "Prm: 0000000000000001 CapEff: 0000000000000001 CapBnd: 0000000000000001"),
    ("process.capabilities", AMBIENT, CAPS, "CapInh: 0000000000000001 CapPrm: 0000000000000001"),
    ("process.rlimits", [{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 99}], "ulimit -Sn; ulimit -Hn", "77\n99"),
    ("process.rlimits", [{"type": "RLIMIT_CPU", "soft": 777, "hard": 2**64 - 1}], "ulimit -t", "777"),
    ("process.noNewPrivileges", True, "grep NoNewPrivs /proc/self/status", "NoNewPrivs:\t1"),
    ("process.oomScoreAdj", 321, "cat /proc/self/oom_score_adj", "321"),
    ("process.ioPriority", {"class": "IOPRIO_CLASS_BE", "priority": 6}, "ionice -p $$", "best-effort: prio 6"),
    ("root.readonly", True, "touch /x && echo made", "Read-only file system"),
    ("hostname", "other", "hostname; cat /proc/sys/kernel/hostname", "other\nother"),
    ("domainname", "example", "cat /proc/sys/kernel/domainname", "example"),
    ("mounts[+]", mount("/mnt", "tmpfs", "tmpfs", "size=1m", "mode=0711"), "stat -c %a /mnt", "711"),
    ("mounts[+]", mount("/mnt/a/b", "tmpfs", "tmpfs"), "ls /mnt/a", "b"),
    ("mounts[+]", mount("/mnt", None, "/usr/share", "rbind", "ro"), "touch /mnt/x", "Read-only file system"),
    ("mounts[+]", mount("/etc/hostname", "bind", "/proc/version", "bind"), "cut -d' ' -f1 /etc/hostname", "Linux"),
    ("mounts[+]", mount("/tmp", "tmpfs", "x", "noexec", "nosuid", "nodev"), "grep ' /tmp ' /proc/mounts", "noexec"),
    ("linux.sysctl", {"kernel.shmmax": "12345"}, "cat /proc/sys/kernel/shmmax", "12345"),
    ("linux.sysctl", {"net/ipv4/ip_default_ttl": "77"}, "cat /proc/sys/net/ipv4/ip_default_ttl", "77"),
    ("linux.maskedPaths", ["/etc/passwd", "/nowhere"], "test -s /etc/passwd || echo hidden", "hidden"),
    ("linux.maskedPaths", ["/usr/share"], 'test "$(ls -A /usr/share)" || echo hidden', "hidden"),
    ("linux.maskedPaths", ["/etc"], 'test "$(head -c1 /proc/timer_list)" && echo visible', "visible"),
    ("linux.readonlyPaths", ["/var", "/nowhere"], "touch /var/x", "Read-only file system"),
    ("linux.readonlyPaths", [], "echo 5 > /proc/sys/kernel/shmmni && cat /proc/sys/kernel/shmmni", "5\n\n"),
    ("linux.personality", {"domain": "LINUX32"}, "uname -m", "i686"),
    ("linux.rootfsPropagation", "shared", "grep ' / / ' /proc/self/mountinfo", "shared:"),
    ("linux.rootfsPropagation", "unbindable", "grep ' / / ' /proc/self/mountinfo", "unbindable"),
    ("linux.seccomp", None, "grep Seccomp: /proc/self/status", "Seccomp:\t0"),
    (
        "linux.seccomp",
        {
            "defaultAction": "SCMP_ACT_ALLOW",
            "flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"],
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}],
        },
        "mkdir /tmp/new",
        "No space left on device",
    ),
    (
        "linux.devices",
        [{"type": "c", "path": "/dev/nought", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 3, "gid": 4}],
        "stat -c '%F %a %u %g %t:%T' /dev/nought; head -c1 /dev/nought | od -An -tx1",
        "character special file 640 3 4 1:5\n 00",
    ),
    ("linux.devices", [{"type": "p", "path": "/dev/pipe"}], "test -p /dev/pipe && echo pipe", "pipe"),
]


@pytest.mark.parametrize(("path", "value", "script", "expected"), CASES, ids=lambda value: str(value)[:32])
def test_a_field_has_its_effect(run: Run, path: str, value: object, script: str, expected: str) -> None:
    plain = document(f"({script}) 2>&1; echo")
    before = run(plain)
    assert expected not in before
    assert expected in run(changed(plain, path, value))


@pytest.mark.parametrize(
    ("kind", "name"),
    [("ipc", "ipc"), ("uts", "uts"), ("network", "net"), ("pid", "pid"), ("cgroup", "cgroup"), ("mount", "mnt")],
)
def test_a_namespace_is_made_shared_or_joined(run: Run, kind: str, name: str) -> None:
    plain = document(f"readlink /proc/self/ns/{name}", cgroupns="private")
    host = str(Path(f"/proc/self/ns/{name}").readlink())
    assert host not in run(plain)
    if kind == "mount":
        return  # never shared: `decode` refuses it
    without = [space for space in plain["linux"]["namespaces"] if space["type"] != kind]
    shared = changed(plain, "linux.namespaces", without)
    shared["linux"].pop("sysctl", None)
    if kind == "uts":
        shared.pop("hostname")
    if kind in ("network", "ipc"):
        shared["mounts"] = [one for one in shared["mounts"] if one["destination"] != "/dev/mqueue"]
    assert host in run(shared)
    joining = changed(shared, "linux.namespaces", [*without, {"type": kind, "path": f"/proc/{os.getpid()}/ns/{name}"}])
    assert host in run(joining)


def test_a_time_namespace_sets_the_clocks(run: Run) -> None:
    plain = document("cut -d. -f1 /proc/uptime; grep -c 86400 /proc/self/timens_offsets")
    shifted = changed(plain, "linux.namespaces[+]", {"type": "time"})
    shifted["linux"]["timeOffsets"] = {"boottime": {"secs": 86400}, "monotonic": {"secs": 86400}}
    if not Path("/proc/self/ns/time").exists():
        skip_or_fail("the kernel has no time namespaces")
    before, after = (int(run(each).split("\n")[0]) for each in (plain, shifted))
    assert after - before >= 86400


def test_a_user_namespace_maps_its_ids(run: Run) -> None:
    script = "cat /proc/self/uid_map; id -u; stat -c %u /etc/passwd; touch /x && stat -c %u /x"
    plain = document(script, id_range=IdRange(host_id=200000))
    first, *rest = run(plain).split("\n")
    assert first.split() == ["0", "200000", "65536"]
    assert rest == ["0", "0", "0", "0"]


def test_a_device_of_the_host_cannot_be_made_without_the_capability(run: Run) -> None:
    script = "mknod /tmp/node c 1 3 && echo made"
    assert "made" in run(document(script))
    assert "Operation not permitted" in run(document(script, cap_drop=("MKNOD",)))


@pytest.mark.parametrize(
    ("args", "code"),
    [(["nowhere"], 127), (["/etc/passwd"], 126), (["/etc"], 126), (["/nowhere"], 127)],
)
def test_a_program_that_cannot_run_is_dockers_code(run: Run, args: list[str], code: int) -> None:
    with pytest.raises(TareError) as caught:
        run(changed(document("true"), "process.args", args))
    assert caught.value.exit_code == code


def test_a_privileged_container_is_unconfined(run: Run) -> None:
    script = f"{CAPS}; grep Seccomp: /proc/self/status; mount -t tmpfs x /mnt && echo mounted"
    printed = run(document(script, privileged=True, held_capabilities=capabilities.held()))
    assert "Seccomp:\t0" in printed
    assert "mounted" in printed

"""Namespaces: for each kind, whether what is done on one side of the boundary is seen on the other, both ways.

Not for what leaks through the kernel beside the namespaces (load, memory), nor for what may be done (capabilities).
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from runtime.errors import TareError
from runtime.instance import Instance
from workloads.base import Context, Invalid, Stage, Workload
from workloads.honesty import GRACE_S
from workloads.metric import Better, Metric, Sample

SEPARATED = Metric("namespaces.separated", "bool", Better.HIGHER, "1: what was done on one side was not seen across")
KINDS = ("mount", "uts", "ipc", "pid", "net", "user", "cgroup", "time")
MADE = ("mount", "ipc", "pid", "net", "user")  # the kinds for which the beacon does something
LINKS = {"mount": "mnt"}  # names of /proc/PID/ns that differ from ours
INWARD, OUTWARD = "inward", "outward"
LIFE_S = 60

# Holds one stimulus a kind until FILE goes, its time is over or (WATCH) its parent does: a command line, an abstract
# socket, a message queue, a mount named NONCE where that is allowed, a process of user UID. Takes all of it back;
# FILE.d goes last.
BEACON = r"""
use strict; use Socket;
my ($file, $nonce, $key, $uid, $seconds, $watch) = @ARGV;
my $parent = getppid;
my $queue = msgget($key, 03600); defined $queue or die "msgget: $!\n";
socket(my $socket, AF_UNIX, SOCK_STREAM, 0) or die "socket: $!\n";
bind($socket, pack_sockaddr_un("\0$nonce")) && listen($socket, 1) or die "bind: $!\n";
mkdir "$file.d", 0700 or die "mkdir: $!\n";
open STDERR, ">", "/dev/null";
my $mounted = system("mount", "-t", "tmpfs", "-o", "size=4k", $nonce, "$file.d") == 0 ? 1 : 0;
my $holder = $$;
pipe(my $reader, my $writer);
my $child = fork; defined $child or die "fork: $!\n";
if ($child == 0) {
  ($<, $>) = ($uid, $uid); syswrite $writer, "1";
  select(undef, undef, undef, 0.05) while getppid == $holder;
  exit;
}
sysread $reader, my $byte, 1;
open my $ready, ">", "$file.new" or die "open: $!\n";
print $ready "mounted $mounted\n"; close $ready; rename "$file.new", $file;
my $end = time + $seconds;
select(undef, undef, undef, 0.02) while -e $file && time < $end && (!$watch || getppid == $parent);
kill "KILL", $child; waitpid $child, 0;
msgctl($queue, 0, 0);
system("umount", "$file.d") if $mounted;
unlink $file; rmdir "$file.d";
"""
AWAIT = 'n=0; until [ -s "$1" ] || [ $n -gt 1500 ]; do sleep 0.02; n=$((n + 1)); done; cat "$1"'
STOP = 'rm -f "$1"'
# The nonce comes in two words and goes to grep through a pipe: no command line of the look itself may hold it.
LOOK = r"""
nonce="$1$2"
has() { if printf '%s\n' "$nonce" | grep -qsaFf - "$@"; then echo 1; else echo 0; fi; }
say() { if grep -qs "$@"; then echo 1; else echo 0; fi; }
echo "pid $(has /proc/[0-9]*/cmdline)"
echo "net $(has /proc/net/unix)"
echo "mount $(has /proc/self/mountinfo)"
echo "ipc $(say "^ *$3 " /proc/sysvipc/msg)"
echo "user $(say "^Uid:[[:space:]]*$4[[:space:]]" /proc/[0-9]*/status)"
echo "boot $(cat /proc/sys/kernel/random/boot_id)"
echo "name $(uname -n)"
for kind in mnt uts ipc pid net user cgroup time; do echo "link-$kind $(readlink /proc/self/ns/$kind)"; done
sed 's/^/path /; s/^path [0-9]*:[^:]*:/path /' /proc/self/cgroup
sed 's/^/line /' /proc/self/mountinfo
"""


class Namespaces(Workload):
    """One stimulus a kind and direction: `inward` it is made on the host and looked for inside, `outward` the reverse.

    Made: a process (pid), an abstract socket (net), a message queue (ipc), a mount, a process of another user (user).
    Each must first be seen on its own side, or the look is blind and the measurement Invalid. What cannot be made
    without changing the host is a standing fact: its name (uts), the host's name for the instance's control group
    (cgroup), the instance's own mounts where it may not mount. Where there is neither, `identity` says: the same
    kernel (boot id) and the same namespace (/proc/self/ns) are one. `method` tells which it was.
    """

    name = "namespaces"
    stage = Stage.SESSION
    metrics = (SEPARATED,)

    def measure(self, context: Context) -> Iterator[Sample]:
        """Yield one sample a kind and direction. Raises TareError where a side takes no stimulus, Invalid if blind."""
        instance, rng = context.shared, context.rng
        signal = Signal(f"tare-{os.urandom(8).hex()}", rng.randrange(1 << 20, 1 << 30), rng.randrange(200_000, 1 << 20))
        context.say("outside, seen from inside")
        with outside_beacon(context.driver.host.run, signal):
            here, there = outside_look(signal), inside_look(instance, signal)
        _demand_sight(here, [kind for kind in MADE if kind != "user"], "the host")
        names = host_cgroups(instance)
        yield from _samples(INWARD, {kind: inward(kind, here, there, names) for kind in KINDS})
        context.say("inside, seen from outside")
        with inside_beacon(instance, signal) as mounted:
            there, here = inside_look(instance, signal), outside_look(signal)
        _demand_sight(there, [kind for kind in MADE if kind != "mount" or mounted], "the instance")
        yield from _samples(OUTWARD, {kind: outward(kind, here, there, mounted) for kind in KINDS})


@dataclass(frozen=True, slots=True)
class Signal:
    """What a beacon shows: a word nobody else uses, a System V key, a user id."""

    nonce: str
    key: int
    uid: int

    def beacon_words(self, directory: str, *, watch: bool) -> tuple[str, ...]:
        """The beacon's arguments; its file lies in `directory`."""
        return (f"{directory}/{self.nonce}", self.nonce, str(self.key), str(self.uid), str(LIFE_S), str(int(watch)))

    def look_argv(self) -> tuple[str, ...]:
        """The look for it."""
        half = len(self.nonce) // 2
        words = (self.nonce[:half], self.nonce[half:], str(self.key), str(self.uid))
        return ("/bin/sh", "-c", LOOK, "look", *words)


@dataclass(frozen=True, slots=True)
class View:
    """What one side sees: which stimuli, and who it is itself."""

    seen: dict[str, bool]
    facts: dict[str, str]
    cgroups: frozenset[str] = field(default_factory=frozenset)
    mounts: frozenset[str] = field(default_factory=frozenset)

    def same(self, kind: str, other: View) -> bool:
        """Whether both sides are in one namespace of that kind, by the kernel's own names for it."""
        link = f"link-{LINKS.get(kind, kind)}"
        return self.facts["boot"] == other.facts["boot"] and self.facts.get(link) == other.facts.get(link)


def parse(output: bytes) -> View:
    """Read what a look printed. Raises Invalid when something is missing."""
    lines = [line.partition(" ")[::2] for line in output.decode(errors="replace").splitlines()]
    facts = {name: value for name, value in lines if name not in ("path", "line")}
    if missing := [name for name in (*MADE, "boot", "name") if not facts.get(name)]:
        raise Invalid("namespaces", f"a look did not tell {', '.join(missing)}")
    return View(
        {kind: facts[kind] == "1" for kind in MADE},
        facts,
        frozenset(value for name, value in lines if name == "path"),
        frozenset(value for name, value in lines if name == "line"),
    )


def inward(kind: str, here: View, there: View, names: frozenset[str]) -> tuple[bool, str]:
    """(separated, by which method) of what the host shows and the instance may see.

    `names` are the host's for the instance's control groups.
    """
    if kind in MADE and kind != "user":
        return not there.seen[kind], "made"
    if kind == "uts":
        return here.facts["name"] != there.facts["name"] or not here.same(kind, there), "standing"
    if kind == "cgroup" and names:
        return not names & there.cgroups, "standing"
    return not here.same(kind, there), "identity"


def outward(kind: str, here: View, there: View, mounted: bool) -> tuple[bool, str]:
    """(separated, by which method) of what the instance shows and the host may see."""
    if kind in MADE and (kind != "mount" or mounted):
        return not here.seen[kind], "made"
    if kind == "mount":
        return not here.mounts & there.mounts, "standing"
    if kind == "uts":
        return here.facts["name"] != there.facts["name"] or not here.same(kind, there), "standing"
    return not here.same(kind, there), "identity"


def _samples(direction: str, found: dict[str, tuple[bool, str]]) -> Iterator[Sample]:
    for kind, (separated, method) in found.items():
        labels = {"namespace": kind, "direction": direction, "method": method}
        yield Sample(SEPARATED.name, float(separated), labels=labels)


def _demand_sight(view: View, kinds: Sequence[str], side: str) -> None:
    if blind := [kind for kind in kinds if not view.seen[kind]]:
        raise Invalid("namespaces", f"{side} does not see its own {', '.join(blind)}: the look is blind")


def host_cgroups(instance: Instance, proc: Path = Path("/proc")) -> frozenset[str]:
    """The control groups of the instance's processes as the host names them; the root, which names nobody, left out."""
    found = set()
    for pid in instance.host_pids()[:1]:
        try:
            lines = (proc / str(pid) / "cgroup").read_text().splitlines()
        except OSError:
            continue
        found |= {line.split(":", 2)[2] for line in lines}
    return frozenset(found - {"/"})


def inside_look(instance: Instance, signal: Signal) -> View:
    """What the instance sees."""
    return parse(instance.exec(signal.look_argv(), GRACE_S).check().stdout)


@contextmanager
def inside_beacon(instance: Instance, signal: Signal) -> Iterator[bool]:
    """The beacon inside; yields whether it was allowed to mount. A command of its own: none outlives another."""
    words = signal.beacon_words("/tmp", watch=False)  # noqa: S108 - inside the instance
    with ThreadPoolExecutor(1, "beacon") as pool:
        beacon = pool.submit(instance.exec, ("perl", "-e", BEACON, *words), LIFE_S + GRACE_S)
        said = instance.exec(("/bin/sh", "-c", AWAIT, "await", words[0]), GRACE_S)
        if said.exit_code != 0:
            beacon.result().check()
            raise Invalid("namespaces", "the beacon inside never showed")
        try:
            yield said.stdout.split() == [b"mounted", b"1"]
        finally:
            instance.exec(("/bin/sh", "-c", STOP, "stop", words[0]), GRACE_S).check()
            beacon.result().check()


def outside_look(signal: Signal) -> View:
    """What this process's side sees, by the same look."""
    return parse(subprocess.run(signal.look_argv(), capture_output=True, timeout=GRACE_S, check=True).stdout)


@contextmanager
def outside_beacon(directory: Path, signal: Signal) -> Iterator[None]:
    """The beacon on the host; it ends with this process, whatever ends it. Raises TareError where it cannot be."""
    directory.mkdir(parents=True, exist_ok=True)
    words = signal.beacon_words(str(directory), watch=True)
    marker, last = Path(words[0]), Path(f"{words[0]}.d")
    argv = ("perl", "-e", BEACON, *words)
    try:
        beacon = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    except OSError as error:
        raise TareError("namespaces", f"perl does not run: {error}", "install perl") from error
    with beacon:
        try:
            _until(lambda: marker.exists() or beacon.poll() is not None)
            if beacon.poll() is not None or not marker.exists():
                said = beacon.stderr.read().decode(errors="replace") if beacon.stderr else ""
                raise TareError("namespaces", f"the host's stimuli failed: {said.strip()}", "run it as root")
            if marker.read_text().split() != ["mounted", "1"]:
                raise TareError("namespaces", "the host did not let a file system be mounted", "run it as root")
            yield
        finally:
            marker.unlink(missing_ok=True)
            beacon.wait(GRACE_S)
    if last.exists():
        raise TareError("namespaces", f"{last} is left behind", f"run: umount {last}; rmdir {last}")


def _until(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + GRACE_S
    while not condition() and time.monotonic() < ends:
        time.sleep(0.01)

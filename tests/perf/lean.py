"""A lean process that creates, runs, reaps and removes one container for every line it reads. Answers nanoseconds.

Started by test_launch.py as `python -I -S lean.py SOURCE ROOTFS STATE FILTER [RUN]`. With RUN, a directory for what
the network notes, each container gets a place on a bridge with NAT, which is there: to make one takes a library that
`-S` hides.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, sys.argv[1])

from runtime.cgroups.detect import detect, open_cgroup
from runtime.container import storage
from runtime.container.defaults import build
from runtime.container.options import Options
from runtime.container.plan import HostFacts, Place, Rootfs, Template
from runtime.container.spawning import get_ready, outcome, spawn
from runtime.linux.capabilities import BEYOND_DEFAULT
from runtime.spec import Limits

LIMITS = Limits(memory_bytes=256 << 20, pids=100)
HIERARCHIES = detect()
SKELETON = Path(storage.skeleton(str(Path(sys.argv[3]).parent)))
ROOTFS, STATE = Path(sys.argv[2]), Path(sys.argv[3])
CONFIG = build({}, Options(argv=("/bin/true",), no_new_privileges=True), layers=(ROOTFS,))
TEMPLATE = Template(CONFIG, HostFacts.gather(given_up=BEYOND_DEFAULT), seccomp=Path(sys.argv[4]).read_bytes())
NETWORKS = None
if len(sys.argv) > 5:  # a process that needs no network does not import it
    from runtime.container.connecting import connected
    from runtime.network.network import Networks

    NETWORKS = Networks(Path(sys.argv[5]), Path(sys.argv[5]))


def once(name: str) -> int:
    """Nanoseconds from nothing to nothing. The overlay's last reference is dropped after that."""
    begin = time.monotonic_ns()
    group = open_cgroup(name, LIMITS, guard_devices=True, hierarchies=HIERARCHIES)
    group.create()
    group.apply(LIMITS)
    directory = f"{STATE}/{name}"
    storage.make(directory)
    place = Place(
        rootfs=Rootfs((SKELETON, ROOTFS), Path(directory)),
        join_files=group.join_files(),
        cgroup=group.clone_into(),
        cgroup_mounts=group.mounts_inside(),
        files=(("/etc/hostname", f"{name}\n"), ("/etc/hosts", "127.0.0.1\tlocalhost\n")),
        die_with_launcher=True,
    )
    plan = TEMPLATE.at(place, hostname=name)
    attachment = NETWORKS.connect(name, lambda *_: None) if NETWORKS else None
    if attachment is not None:
        plan = connected(plan, attachment)
    spawned = spawn(plan.flat())
    # What was said on the way is still there at the end: no need to wake up for it.
    ended = os.waitid(os.P_PIDFD, spawned.pidfd, os.WEXITED)
    said = outcome(spawned)
    os.close(spawned.pidfd)
    if NETWORKS is not None and attachment is not None:
        NETWORKS.disconnect(name, attachment.network, attachment.address)
    group.remove()
    storage.remove(directory)
    elapsed = time.monotonic_ns() - begin
    if said.failure is not None or ended is None or ended.si_status != 0:
        raise SystemExit(f"{said.failure or ended}")
    os.close(said.root)
    return elapsed


if __name__ == "__main__":
    get_ready(BEYOND_DEFAULT)
    gc.disable()
    gc.freeze()
    for line in sys.stdin:
        os.write(1, b"%d\n" % once(line.strip()))

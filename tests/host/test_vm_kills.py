"""Whoever launches machines, killed at any moment: `tare clean` gives the host back, and a second one finds nothing."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.driver import Host
from runtime.ledger import Ledger, Resource
from runtime.linux.pidfd import Pidfd
from runtime.network import links
from runtime.vm import sweep
from tests.host.life import IMAGE, ROOT, Tare, await_no_keeper, keepers_of_machines, killed, rooted_for_machines

KILLS = 6
PATIENCE_S = 180.0
# Launches two machines with all that a machine can have, and gives them up; says when it begins and when it has ended.
LAUNCHER = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from runtime.driver import Host
from runtime.drivers.libvirt import MicrovmDriver
from runtime.spec import ImageRef, InstanceSpec, Limits, NetworkMode, NetworkSpec
driver = MicrovmDriver(Host(root=Path(sys.argv[1]), run=Path(sys.argv[2])))
network = NetworkSpec(mode=NetworkMode.BRIDGE)
prepared = driver.prepare(InstanceSpec(image=ImageRef.parse(sys.argv[3]), limits=Limits(cpus=1), network=network))
def live(_):
    with driver.launch(prepared) as guest:
        guest.wait_ready(180)
print("begun", flush=True)
with ThreadPoolExecutor(2) as pool:
    list(pool.map(live, range(2)))
driver.close()
print("ended", flush=True)
"""


@pytest.fixture(scope="module")
def tare(bench_host: Host) -> Iterator[Tare]:
    with rooted_for_machines(bench_host) as tare:
        yield tare


@pytest.fixture(scope="module")
def life_s(tare: Tare) -> float:
    """How long the launcher takes when nobody kills it."""
    process = launcher(tare)
    begun = time.monotonic()
    assert process.stdout is not None
    assert process.stdout.readline() == b"ended\n"
    taken_s = time.monotonic() - begun
    process.communicate(timeout=PATIENCE_S)
    assert traces(tare.host, ()) == []
    return taken_s


def launcher(tare: Tare) -> subprocess.Popen[bytes]:
    """Begins to launch as this returns."""
    host = tare.host
    process = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(host.root), str(host.run), IMAGE],
        cwd=ROOT,
        env=tare.environment,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"begun\n"
    return process


def noted(host: Host) -> tuple[Resource, ...]:
    """What the pages say may be there."""
    ledger = Ledger(host.run)
    return tuple(one for name in ledger.instances() for one in ledger.resources(name) or ())


def traces(host: Host, resources: tuple[Resource, ...]) -> list[str]:
    """What there is of machines, by the pages' words and by a look at every place."""
    paths = [one.value for one in resources if one.kind in ("dir", "cgroup") and Path(one.value).exists()]
    taps = [one.value for one in resources if one.kind == "link" and links.index_of(one.value) is not None]
    places = ("instances", "guests")
    files = [str(path) for place in places for path in (host.root / place).glob("*")]
    live = ("vm", "instances", "libvirt")
    files += [str(path) for place in live for path in (host.run / place).glob("*")]
    return paths + taps + files + [f"QEMU {pid}" for pid, _, _ in sweep.qemus(host)]


def assert_cleaned(tare: Tare, resources: tuple[Resource, ...], when: str) -> None:
    said = tare("clean")
    assert (said.code, said.err) == (0, ""), when
    assert traces(tare.host, resources) == [], when
    assert tare("clean").good() == "nothing to clean", when


@pytest.mark.parametrize("moment", range(KILLS))
def test_a_killed_launcher_leaves_what_clean_removes(tare: Tare, life_s: float, moment: int) -> None:
    delay_s = random.uniform(moment, moment + 1) / KILLS * life_s  # random, yet in every part of its life
    process = launcher(tare)
    time.sleep(delay_s)
    killed(process)
    resources = noted(tare.host)
    assert_cleaned(tare, resources, f"killed after {delay_s:.3f} of {life_s:.3f} s")


@pytest.mark.parametrize("moment", range(KILLS))
def test_a_killed_run_and_its_killed_keeper_leave_what_clean_removes(tare: Tare, life_s: float, moment: int) -> None:
    delay_s = random.uniform(moment, moment + 1) / KILLS * life_s
    process = tare.begin("vm", "run", "-d", "--micro", "--network", "bridge", IMAGE)
    time.sleep(delay_s)
    killed(process)
    for pid in keepers_of_machines(tare.host):
        with Pidfd.of(pid) as keeper:
            keeper.signal(signal.SIGKILL)
            assert keeper.wait(PATIENCE_S)
    resources = noted(tare.host)
    assert_cleaned(tare, resources, f"killed after {delay_s:.3f} of {life_s:.3f} s")
    assert tare("vm", "ls", "-aq").good() == ""


def test_a_killed_run_alone_leaves_a_machine_that_its_keeper_keeps(tare: Tare) -> None:
    process = tare.begin("vm", "run", "-d", "--micro", "--name", "kept", IMAGE)
    while not list((tare.host.root / "guests").glob("*/guest.json")):
        assert process.poll() is None or tare("vm", "ls", "-q").good()
        time.sleep(0.01)
    killed(process)
    assert json.loads(tare("vm", "ls", "--json").good())[0]["status"] == "running"
    tare("vm", "exec", "kept", "true").good()
    assert "left alone" in tare("clean").good()
    tare("vm", "rm", "-f", "kept").good()
    await_no_keeper(tare.host)
    assert traces(tare.host, ()) == []

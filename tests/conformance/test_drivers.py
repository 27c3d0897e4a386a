"""What every driver must do, whatever it launches: the same checks on each, on the bench image.

A new driver is held to this without a line changed here. One that cannot work on this host is skipped
with its own reason; where nothing may be skipped, only one that says of itself that a host may be without it.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runtime.driver import Driver, Host, drivers
from runtime.errors import TareError
from runtime.instance import ExecResult, Instance
from runtime.ledger import process_start
from runtime.linux import procfs
from runtime.spec import ImageRef, InstanceSpec, Limits, Ready
from tests.conftest import skip_or_fail
from tests.host.life import until

IMAGE = ImageRef.parse("tare/debian:bookworm")
SPEC = InstanceSpec(image=IMAGE, limits=Limits(cpus=1.0, memory_bytes=512 << 20))
# For what must work at any moment of an instance's life: half a machine's boot is spared.
EARLY = dataclasses.replace(SPEC, ready=Ready.USERLAND)
READY_S = 180.0  # a VM under software emulation on a busy host
EXEC_S = 60.0

OWNER = """
import sys, time
from pathlib import Path
from runtime.driver import Host, find_driver
from runtime.spec import ImageRef, InstanceSpec, Limits, Ready
driver = find_driver(sys.argv[1])(Host(root=Path(sys.argv[2]), run=Path(sys.argv[3])))
instance = driver.launch(driver.prepare(InstanceSpec(image=ImageRef.parse(sys.argv[4]), ready=Ready.USERLAND)))
instance.wait_ready(float(sys.argv[5]))
print(instance.id, *instance.host_pids(), flush=True)
time.sleep(600)
"""


# Another driver's machine with a limit that lies elsewhere: how it bears a bad end is that one's to show.
LIMITS_ALONE = ("vm-vcpus",)
DRIVERS = sorted(drivers(), key=lambda name: (name in LIMITS_ALONE, name))
whole = pytest.mark.parametrize(
    "driver", [name for name in DRIVERS if name not in LIMITS_ALONE], indirect=True, scope="module"
)


@pytest.fixture(scope="module", params=DRIVERS)
def driver(request: pytest.FixtureRequest, bench_host: Host) -> Iterator[Driver]:
    driver = drivers()[request.param](bench_host)
    available = driver.probe()
    if not available.usable:
        driver.close()
        if driver.optional:
            pytest.skip(f"{driver.name}: {available.reason}")
        skip_or_fail(f"{driver.name}: {available.reason}")
    yield driver
    driver.close()


@pytest.fixture
def early(driver: Driver) -> Iterator[Instance]:
    """A fresh one, up to its userland."""
    with driver.launch(driver.prepare(EARLY)) as instance:
        instance.wait_ready(READY_S)
        yield instance


@pytest.fixture(scope="module")
def instance(driver: Driver) -> Iterator[Instance]:
    """One ready instance for all checks that leave it as it was, and the last that closes it."""
    with driver.launch(driver.prepare(SPEC)) as instance:
        instance.wait_ready(READY_S)
        yield instance


def in_thread(call: Callable[[], ExecResult]) -> tuple[threading.Thread, list[ExecResult]]:
    results: list[ExecResult] = []
    thread = threading.Thread(target=lambda: results.append(call()))
    thread.start()
    return thread, results


def cgroups(instance_id: str) -> list[Path]:
    """Every control group on this host that carries the instance's id."""
    return [path for path in Path("/sys/fs/cgroup").rglob(f"*{instance_id}*") if path.is_dir()]


def running(pid: int, start: int | None) -> bool:
    return process_start(pid) == start and procfs.state(pid) not in (None, "Z", "X")


def test_probe_tells_facts_beside_the_figures(driver: Driver) -> None:
    available = driver.probe()
    assert available.usable
    assert available.facts


def test_phases_are_in_order(instance: Instance) -> None:
    names = [name for name, _ in instance.timeline.events()]
    assert [name for name in names if name in ("request", "spawned", "userland", "ready")] == [
        "request",
        "spawned",
        "userland",
        "ready",
    ]


def test_output_error_output_and_exit_code_come_back(instance: Instance) -> None:
    result = instance.exec(["/bin/sh", "-c", "echo out; echo err >&2; exit 3"], EXEC_S)
    assert (result.stdout, result.stderr, result.exit_code) == (b"out\n", b"err\n", 3)
    assert result.elapsed_ns > 0


def test_a_signal_is_128_and_its_number(instance: Instance) -> None:
    assert instance.exec(["/bin/sh", "-c", "kill -TERM $$"], EXEC_S).exit_code == 128 + signal.SIGTERM


def test_a_command_that_does_not_exist_is_127(instance: Instance) -> None:
    assert instance.exec(["/does/not/exist"], EXEC_S).exit_code == 127


def test_what_cannot_be_executed_is_126(instance: Instance) -> None:
    assert instance.exec(["/etc/passwd"], EXEC_S).exit_code == 126


def test_a_bare_name_is_found_on_the_path(instance: Instance) -> None:
    assert instance.exec(["true"], EXEC_S).exit_code == 0


def test_it_runs_the_images_files(instance: Instance) -> None:
    release = instance.exec(["cat", "/etc/os-release"], EXEC_S).check().stdout
    assert b"bookworm" in release


def test_files_can_be_written_where_programs_expect_it(instance: Instance) -> None:
    script = "set -e; for d in /tmp /var/tmp /run; do echo x > $d/tare-x; rm $d/tare-x; done"
    instance.exec(["/bin/sh", "-c", script], EXEC_S).check()


def test_a_command_that_takes_too_long_is_killed_and_the_instance_lives_on(instance: Instance) -> None:
    with pytest.raises(TareError, match="not done after"):
        instance.exec(["sleep", "600"], 0.5)
    assert instance.exec(["true"], EXEC_S).exit_code == 0


def test_large_output_arrives_whole(instance: Instance) -> None:
    result = instance.exec(["head", "-c", "5000000", "/dev/zero"], EXEC_S).check()
    assert result.stdout == bytes(5_000_000)


def test_commands_run_at_once_and_do_not_mix(instance: Instance) -> None:
    calls = [
        in_thread(lambda n=n: instance.exec(["/bin/sh", "-c", f"sleep 0.2; echo {n}; exit {n}"], EXEC_S))  # type: ignore[misc]
        for n in range(8)
    ]
    for number, (thread, results) in enumerate(calls):
        thread.join()
        assert [(result.stdout, result.exit_code) for result in results] == [(b"%d\n" % number, number)]


def test_usage_is_plausible_and_never_shrinks(instance: Instance) -> None:
    before = instance.usage()
    instance.exec(["timeout", "0.5", "/bin/sh", "-c", "while :; do :; done"], EXEC_S)
    after = instance.usage()
    assert before.cpu_ns is not None
    assert after.cpu_ns is not None
    assert after.cpu_ns - before.cpu_ns > 50_000_000
    assert after.memory_bytes
    assert after.memory_bytes < 4 << 30
    assert after.pids
    for name in ("io_read_bytes", "io_write_bytes"):
        first, last = getattr(before, name), getattr(after, name)
        assert first is None or last >= first


def test_its_bytes_lie_where_it_says(instance: Instance) -> None:
    paths = instance.disk_paths()
    assert paths.shared
    assert all(path.exists() for path in (*paths.shared, *paths.exclusive))


def test_every_limit_reads_back(instance: Instance) -> None:
    assert [reading for reading in instance.limit_readings() if not reading.holds] == []


def test_its_processes_run(instance: Instance) -> None:
    assert instance.alive()
    assert all(procfs.state(pid) is not None for pid in instance.host_pids())


def test_pausing_stops_it_and_resuming_continues_it(instance: Instance) -> None:
    idle_ns = cpu_ns(instance)
    burn = "until [ -e /tmp/over ]; do :; done; rm /tmp/over"
    thread, results = in_thread(lambda: instance.exec(["/bin/sh", "-c", burn], EXEC_S))
    while cpu_ns(instance) - idle_ns < 50_000_000:
        assert thread.is_alive()
    instance.pause()
    try:
        before, begun_ns = cpu_ns(instance), time.monotonic_ns()
        second, answers = in_thread(lambda: instance.exec(["touch", "/tmp/over"], EXEC_S))
        second.join(0.7)
        used, wall_ns = cpu_ns(instance) - before, time.monotonic_ns() - begun_ns
        assert (results, answers) == ([], [])
        assert used < 0.05 * wall_ns
    finally:
        instance.resume()
    thread.join()
    second.join()
    assert [done.exit_code for done in (*answers, *results)] == [0, 0]


def cpu_ns(instance: Instance) -> int:
    used = instance.usage().cpu_ns
    assert used is not None
    return used


def test_pausing_twice_and_resuming_twice_is_no_error(instance: Instance) -> None:
    instance.pause()
    instance.pause()
    instance.resume()
    instance.resume()
    assert instance.exec(["true"], EXEC_S).exit_code == 0


def test_closing_leaves_nothing_and_may_be_repeated(driver: Driver, instance: Instance) -> None:
    """The last that has this one."""
    pids = {pid: process_start(pid) for pid in instance.host_pids()}
    exclusive = instance.disk_paths().exclusive
    assert pids
    instance.close()
    instance.close()
    assert not any(running(pid, start) for pid, start in pids.items())
    assert not any(path.exists() for path in exclusive)
    assert not list((driver.host.run / "instances").glob(f"{instance.id}*"))
    assert cgroups(instance.id) == []
    assert instance.id not in Path("/proc/self/mountinfo").read_text()
    assert [line for line in driver.leftovers() if instance.id in line] == []
    assert not instance.alive()
    names = [name for name, _ in instance.timeline.events()]
    assert names.index("stopped") < names.index("removed")


@whole
def test_a_paused_instance_can_be_closed(early: Instance) -> None:
    pids = {pid: process_start(pid) for pid in early.host_pids()}
    early.pause()
    early.close()
    assert not any(running(pid, start) for pid, start in pids.items())
    assert cgroups(early.id) == []


@whole
def test_killed_from_outside_it_says_so_and_closes_cleanly(early: Instance) -> None:
    for pid in early.host_pids():
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(TareError, match=r"\S"):
        early.exec(["sleep", "60"], EXEC_S)
    until(lambda: not early.alive())  # the channel breaks a little before the last process has ended
    early.close()
    assert not any(path.exists() for path in early.disk_paths().exclusive)


def test_what_a_killed_owner_leaves_is_named_and_swept(driver: Driver) -> None:
    host = driver.host
    arguments = [driver.name, str(host.root), str(host.run), str(IMAGE), str(READY_S)]
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, *arguments], stdout=subprocess.PIPE, cwd=root, text=True
    ) as owner:
        assert owner.stdout is not None
        words = owner.stdout.readline().split()
        assert words, "the owner launched nothing"
        pids = {int(word): process_start(int(word)) for word in words[1:]}
        assert [line for line in driver.leftovers() if words[0] in line] == []
        owner.kill()
    assert [line for line in driver.leftovers() if words[0] in line]
    assert [line for line in driver.sweep() if words[0] in line]
    assert [line for line in driver.leftovers() if words[0] in line] == []
    assert not any(running(pid, start) for pid, start in pids.items())
    assert cgroups(words[0]) == []
    assert not list((host.root / "instances").glob(f"{words[0]}*"))
    assert not list((host.run / "instances").glob(f"{words[0]}*"))

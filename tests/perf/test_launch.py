"""What launching a container costs, beside runc and unshare in the same interleaved run. Asserts no speed.

`tox -e perf` prints our times; the ratios stand in each benchmark's `extra_info`.
"""

from __future__ import annotations

import itertools
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from runtime.driver import Host
from runtime.drivers.container import ContainerDriver
from runtime.images.store import ImageStore
from runtime.ledger import new_id
from runtime.linux.seccomp import default_program
from runtime.network.network import Networks
from runtime.spec import ImageRef, InstanceSpec, Limits, Ready
from tests.conftest import skip_or_fail

ROUNDS = 40
THREADS, LAUNCHES = 4, 200
IMAGE = ImageRef.parse("tare/debian:bookworm")
LIMITS = Limits(memory_bytes=256 << 20, pids=100)
NAMESPACES = ("mount", "uts", "ipc", "net", "pid", "cgroup")


@pytest.fixture
def rootfs(bench_host: Host) -> Path:
    return ImageStore(bench_host.root).resolve(IMAGE).layers[0].directory


@pytest.fixture
def others(rootfs: Path, tmp_path: Path) -> dict[str, Callable[[], None]]:
    """The yardsticks: each creates, runs /bin/true, reaps and removes."""
    if shutil.which("runc") is None:
        skip_or_fail("runc is not installed")
    subprocess.run(["runc", "spec", "--bundle", tmp_path], check=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config["process"].update(terminal=False, args=["/bin/true"])
    config["root"] = {"path": str(rootfs), "readonly": True}
    config["linux"]["namespaces"] = [{"type": "network" if name == "net" else name} for name in NAMESPACES]
    config["linux"]["resources"].update(memory={"limit": LIMITS.memory_bytes}, pids={"limit": LIMITS.pids})
    (tmp_path / "config.json").write_text(json.dumps(config))

    def runc() -> None:
        command = ["runc", "--root", str(tmp_path / "runc"), "run", "--bundle", str(tmp_path), new_id()]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)

    def unshare() -> None:
        flags = [f"--{name}" for name in NAMESPACES]
        subprocess.run(["unshare", *flags, "--fork", "/bin/true"], check=True)

    def true() -> None:
        subprocess.run(["/bin/true"], check=True)

    return {"runc": runc, "unshare": unshare, "true": true}


class Interleaved:
    """Runs every yardstick once before each of our rounds, and compares medians at the end."""

    def __init__(self, others: dict[str, Callable[[], None]]) -> None:
        self._others = others
        self._times: dict[str, list[float]] = {name: [] for name in others}
        self.ours: list[float] = []

    def setup(self) -> None:
        for name, run in self._others.items():
            begin = time.perf_counter()
            run()
            self._times[name].append(time.perf_counter() - begin)

    def report(self, benchmark: Any) -> None:
        ours = statistics.median(self.ours)
        benchmark.extra_info["ours_ms"] = round(ours * 1e3, 3)
        for name, times in self._times.items():
            median = statistics.median(times)
            benchmark.extra_info[f"{name}_ms"] = round(median * 1e3, 3)
            benchmark.extra_info[f"ratio_to_{name}"] = round(ours / median, 3)
        print({key: benchmark.extra_info[key] for key in sorted(benchmark.extra_info)})  # noqa: T201


@contextmanager
def kept_bridge(directory: Path) -> Iterator[None]:
    """A bridge that is there, as after the first container, and gone when we leave."""
    networks = Networks(directory, directory)
    try:
        place = networks.connect("first", lambda *_: None)
        yield
        networks.disconnect(place.owner, place.network, place.address)
    finally:
        networks.retire()
        networks.close()


@pytest.fixture
def lean(
    request: pytest.FixtureRequest, rootfs: Path, bench_host: Host, tmp_path: Path
) -> Iterator[Callable[[], float]]:
    """A full cycle in a lean process, in seconds by its own clock; `bridge` as parameter: on one."""
    (tmp_path / "filter").write_bytes(default_program())
    state = bench_host.root / "instances"
    state.mkdir(parents=True, exist_ok=True)
    source = Path(__file__).resolve().parents[2]
    script = Path(__file__).with_name("lean.py")
    command = [sys.executable, "-I", "-S", *map(str, (script, source, rootfs, state, tmp_path / "filter"))]
    if request.param == "bridge":
        command.append(str(tmp_path / "run"))
    with (
        kept_bridge(tmp_path / "run") if request.param == "bridge" else nullcontext(),
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None

        def once() -> float:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(f"{new_id()}\n")
            return int(process.stdout.readline()) / 1e9

        yield once
        process.stdin.close()


@pytest.mark.parametrize("lean", ["none", "bridge"], indirect=True)
def test_full_cycle_from_a_lean_process(
    benchmark: Any, others: dict[str, Callable[[], None]], lean: Callable[[], float]
) -> None:
    run = Interleaved(others)
    benchmark.pedantic(lambda: run.ours.append(lean()), setup=run.setup, rounds=ROUNDS, warmup_rounds=2)
    run.report(benchmark)


def test_full_cycle_through_the_driver(benchmark: Any, others: dict[str, Callable[[], None]], bench_host: Host) -> None:
    driver = ContainerDriver(bench_host)
    prepared = driver.prepare(InstanceSpec(image=IMAGE, argv=("/bin/true",), ready=Ready.USERLAND, limits=LIMITS))
    run = Interleaved(others)

    def cycle() -> None:
        begin = time.perf_counter()
        with driver.launch(prepared) as instance:
            instance.wait_ended(30)  # type: ignore[attr-defined]
        run.ours.append(time.perf_counter() - begin)

    benchmark.pedantic(cycle, setup=run.setup, rounds=ROUNDS, warmup_rounds=2)
    driver.close()
    run.report(benchmark)


def test_launch_to_userland_of_the_agent(benchmark: Any, bench_host: Host) -> None:
    driver = ContainerDriver(bench_host)
    prepared = driver.prepare(InstanceSpec(image=IMAGE, ready=Ready.USERLAND, limits=LIMITS))
    phases: dict[str, list[float]] = {}
    names = ("request", "spawned", "userland", "stopped", "removed")

    def cycle() -> None:
        with driver.launch(prepared) as instance:
            instance.wait_ready(30)
        for first, last in itertools.pairwise(names):
            phases.setdefault(f"{first}_{last}_ms", []).append((instance.timeline.between_ns(first, last) or 0) / 1e6)

    benchmark.pedantic(cycle, rounds=ROUNDS, warmup_rounds=2)
    driver.close()
    benchmark.extra_info.update({name: round(statistics.median(times), 3) for name, times in phases.items()})
    print(benchmark.extra_info)  # noqa: T201


def test_launches_per_second(benchmark: Any, bench_host: Host) -> None:
    driver = ContainerDriver(bench_host)
    prepared = driver.prepare(InstanceSpec(image=IMAGE, argv=("/bin/true",), ready=Ready.USERLAND, limits=LIMITS))

    def cycle(_: int) -> None:
        with driver.launch(prepared) as instance:
            instance.wait_ended(30)  # type: ignore[attr-defined]

    with ThreadPoolExecutor(THREADS) as pool:
        benchmark.pedantic(lambda: list(pool.map(cycle, range(LAUNCHES))), rounds=5, warmup_rounds=1)
    driver.close()
    rate = LAUNCHES / benchmark.stats.stats.median if benchmark.stats else 0.0
    benchmark.extra_info.update(threads=THREADS, launches_per_s=round(rate))
    print(benchmark.extra_info)  # noqa: T201

"""What `tare run` costs as a command, beside `docker run` in the same interleaved run. Asserts no speed."""

from __future__ import annotations

import itertools
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.driver import Host
from runtime.images.store import ImageStore
from runtime.spec import ImageRef
from tests.engines import docker_engine

ROUNDS = 30
IMAGE = "tare/debian:bookworm"
TARE = Path(sys.executable).with_name("tare")


@pytest.fixture(scope="module")
def commands(bench_host: Host) -> Iterator[dict[str, Callable[[], None]]]:
    rootfs = ImageStore(bench_host.root).resolve(ImageRef.parse(IMAGE)).layers[0].directory
    directory = Path(tempfile.mkdtemp(prefix="tare-perf-", dir="/var/tmp"))
    try:
        with docker_engine(directory) as engine:
            engine.load_rootfs(rootfs, "debian")

            def runner(command: list[str]) -> Callable[[], None]:
                def once() -> None:
                    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)

                return once

            ours = [str(TARE), "--root", str(bench_host.root.parent), "run", "--rm", "--network", "none", IMAGE, "true"]
            yield {
                "docker": runner(engine.command("run", "--rm", "--network", "none", "debian", "true")),
                "tare": runner(ours),
            }
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def test_run_as_a_command(benchmark: Any, commands: dict[str, Callable[[], None]]) -> None:
    times: dict[str, list[float]] = {name: [] for name in commands}

    def cycle() -> None:
        for name, run in commands.items():
            begin = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - begin)

    benchmark.pedantic(cycle, rounds=ROUNDS, warmup_rounds=2)
    medians = {name: statistics.median(samples[2:]) for name, samples in times.items()}
    benchmark.extra_info.update({f"{name}_ms": round(median * 1e3, 1) for name, median in medians.items()})
    benchmark.extra_info["tare_to_docker"] = round(medians["tare"] / medians["docker"], 3)
    pairs = zip(times["tare"][2:], times["docker"][2:], strict=True)
    benchmark.extra_info["pairs_below_half"] = sum(ours <= theirs / 2 for ours, theirs in itertools.islice(pairs, 99))
    print(dict(benchmark.extra_info))  # noqa: T201

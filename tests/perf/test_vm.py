"""What virtual machines cost: libvirt beside the same QEMU without it, one kind beside the other, many at once.

Interleaved; asserts no speed. `tox -e perf` prints the ratios, which stand in each benchmark's `extra_info`.
"""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import theilslopes

from runtime.channel import Channel
from runtime.driver import Driver, Host, Prepared, drivers
from runtime.instance import Timeline
from runtime.spec import ImageRef, InstanceSpec, Limits, Ready
from runtime.vm.domain import MIB
from runtime.vm.guest import Guest
from runtime.vm.plan import overhead_bytes
from tests.conftest import skip_or_fail

IMAGE = ImageRef.parse("tare/debian:bookworm")
SPEC = InstanceSpec(image=IMAGE, ready=Ready.SERVICE)
READY_S = 300.0
ROUNDS, SLOW_ROUNDS, MANY = 7, 3, 20


@pytest.fixture
def prepared(bench_host: Host) -> Iterator[dict[str, tuple[Driver, Prepared]]]:
    """Every driver of virtual machines that works here, with a guest that lies ready."""
    with ExitStack() as stack:
        found: dict[str, tuple[Driver, Prepared]] = {}
        for name in ("microvm", "vm", "microvm-restore"):
            if name not in drivers():
                continue
            driver = drivers()[name](bench_host)
            stack.callback(driver.close)
            if not (available := driver.probe()).usable:
                skip_or_fail(f"{name}: {available.reason}")
            found[name] = (driver, driver.prepare(SPEC))
        yield found


def booted_s(driver: Driver, prepared: Prepared, event: str) -> float:
    """Seconds from the request to `event`, by the host's clock."""
    with driver.launch(prepared) as guest:
        guest.wait_ready(READY_S)
        return (guest.timeline.between_ns("request", event) or 0) / 1e9


def test_libvirt_beside_the_same_qemu_without_it(
    benchmark: Any, prepared: dict[str, tuple[Driver, Prepared]], bench_host: Host, tmp_path: Path
) -> None:
    driver, ready = prepared["microvm"]
    through: list[float] = []
    without: list[float] = []

    def once() -> None:
        with driver.launch(ready) as guest:
            assert isinstance(guest, Guest)
            guest.wait_ready(READY_S)
            # Both make an overlay first: it is libvirt that is to be seen.
            through.append((guest.timeline.between_ns("disk", "userland") or 0) / 1e9)
            line = Path(f"/proc/{guest.host_pids()[0]}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
        without.append(directly(list(map(os.fsdecode, line)), guest, bench_host, tmp_path))

    benchmark.pedantic(once, rounds=ROUNDS, warmup_rounds=1)
    tell(benchmark, "libvirt", through[1:], "qemu_directly", without[1:])


def directly(line: Sequence[str], guest: Guest, host: Host, scratch: Path) -> float:
    """Seconds from starting QEMU by `line` to its guest's first user instruction, on an overlay and sockets of ours.

    Left out is what only libvirt needs: its monitor, its key, and to wait for its word.
    """
    words: list[str] = []
    for option, value in options(line):
        if option != "-S" and not any(word in value for word in ("masterKey0", "charmonitor")):
            words += [option] if value == "" else [option, value]
    for own in (host.run / "vm" / guest.id, host.root / "instances" / guest.id):
        words = [word.replace(str(own), str(scratch)) for word in words]
    overlay = scratch / "disk.qcow2"
    base = guest.plan.base
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", overlay], check=True)
    timeline = Timeline()
    with ExitStack() as stack:
        listening = []
        for name in ("agent", "console"):
            sock = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            sock.bind(str(scratch / name))
            stack.callback((scratch / name).unlink)
            sock.listen(1)
            listening.append(sock)
        timeline.stamp("request")
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL)
        try:
            channel = Channel(listening[0].accept()[0], timeline, lambda: "")
            stack.callback(channel.close)
            stack.enter_context(listening[1].accept()[0])
            channel.wait("userland", READY_S)
        finally:
            process.kill()
            process.wait()
            overlay.unlink()
    return (timeline.between_ns("request", "userland") or 0) / 1e9


def options(line: Sequence[str]) -> Iterator[tuple[str, str]]:
    """QEMU's program and options, each with its value, which is empty where it has none."""
    at = 0
    while at < len(line):
        alone = at == 0 or at + 1 == len(line) or line[at + 1].startswith("-")
        yield line[at], "" if alone else line[at + 1]
        at += 1 if alone else 2


@pytest.mark.parametrize("other", ["vm", "microvm-restore"])
def test_one_kind_beside_the_other(benchmark: Any, prepared: dict[str, tuple[Driver, Prepared]], other: str) -> None:
    if other not in prepared:
        skip_or_fail(f"there is no driver {other}")
    light: list[float] = []
    beside: list[float] = []

    def once() -> None:
        light.append(booted_s(*prepared["microvm"], "ready"))
        beside.append(booted_s(*prepared[other], "ready"))

    benchmark.pedantic(once, rounds=SLOW_ROUNDS)
    tell(benchmark, other, beside, "microvm", light)


def test_many_at_once_and_what_each_holds(benchmark: Any, prepared: dict[str, tuple[Driver, Prepared]]) -> None:
    """Guests of 128 MiB; host memory by PSS, and by the slope of what the host has left over their number."""
    driver = prepared["microvm"][0]
    limits = Limits(memory_bytes=128 * MIB + overhead_bytes("tcg"))
    ready = driver.prepare(InstanceSpec(image=IMAGE, ready=Ready.SERVICE, limits=limits))
    took: list[float] = []
    with ExitStack() as stack:

        def launched(_: int) -> Guest:
            guest = driver.launch(ready)
            assert isinstance(guest, Guest)
            stack.callback(guest.close)
            guest.wait_ready(READY_S)
            return guest

        def all_at_once() -> list[Guest]:
            begin = time.monotonic()
            with ThreadPoolExecutor(MANY) as pool:
                guests = list(pool.map(launched, range(MANY)))
            took.append(time.monotonic() - begin)
            return guests

        guests = benchmark.pedantic(all_at_once, rounds=1)
        pss = [(guest.usage().pss_bytes or 0) / MIB for guest in guests]
        left: list[tuple[float, float]] = [(MANY, available_mib())]
        for number, guest in enumerate(guests, start=1):
            guest.close()
            left.append((MANY - number, available_mib()))
    slope = theilslopes([mib for _, mib in left], [count for count, _ in left]).slope
    benchmark.extra_info.update(
        guests=MANY, all_ready_s=round(took[0], 1), pss_mib=round(statistics.mean(pss)), slope_mib=-round(slope)
    )
    print(benchmark.extra_info)  # noqa: T201


def available_mib() -> float:
    """The host's MemAvailable."""
    rows = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return int(rows["MemAvailable"].split()[0]) / 1024


def tell(benchmark: Any, ours: str, our_s: list[float], other: str, other_s: list[float]) -> None:
    """Medians and their ratio."""
    mine, theirs = statistics.median(our_s), statistics.median(other_s)
    benchmark.extra_info.update({f"{ours}_s": round(mine, 3), f"{other}_s": round(theirs, 3), "n": len(our_s)})
    benchmark.extra_info[f"{ours}_to_{other}"] = round(mine / theirs, 3)
    print({key: benchmark.extra_info[key] for key in sorted(benchmark.extra_info)})  # noqa: T201

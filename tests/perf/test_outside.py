"""Tare's figures beside the same measured from outside, interleaved in one run. Asserts only that both make sense.

What is outside knows nothing of Tare's clocks, parsers and estimates: hyperfine around `runc run` and `docker run`,
/proc/meminfo before and after so many instances, fio and iperf3 by hand, the CPU time of a QEMU. Printed are both
medians with their intervals over the blocks, what lies between them, and whether the intervals meet: inside, or
outside. docs/method.md says what each includes.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import time
from pathlib import Path

from harness.bench import IMAGE
from runtime.container.flat import flat
from runtime.driver import Host
from runtime.drivers.container import ContainerDriver
from runtime.drivers.libvirt import MicrovmDriver
from runtime.drivers.native import NativeDriver
from runtime.images.store import ImageStore
from runtime.instance import Instance
from runtime.ledger import new_id
from runtime.spec import InstanceSpec, NetworkMode, NetworkSpec
from tests.perf.outside import SPEC, Pair, demand, in_turns, measured, opened, ready, show
from workloads import density, hostview, idle, network, overhead_disk

NETWORK_BLOCKS = 12
IDLE_BLOCKS, IDLE_S = 8, 8  # of accounts in steps of 10 ms
CROWDS, CROWD = 7, 300  # of instances whose memory is looked at
DISK_BLOCKS, DISK_S, FILE_MIB = 10, 0.3, 64


def meminfo() -> dict[str, int]:
    """What another program reads there, in bytes."""
    words = subprocess.run(["cat", "/proc/meminfo"], check=True, capture_output=True, text=True).stdout.splitlines()
    return {line.split()[0].rstrip(":"): int(line.split()[1]) << 10 for line in words}


def test_the_memory_of_an_instance_beside_meminfo(bench_host: Host) -> None:
    slopes, sets, taken, mapped = list[float](), list[float](), list[float](), list[float]()
    with hostview.many_open_files(), opened(ContainerDriver, bench_host) as (driver, prepared):
        for crowd in range(1 + CROWDS):
            seen: list[dict[str, int]] = []
            begun = 0

            def launch(spec: InstanceSpec | None = None) -> Instance:
                """The ramp's next, with a look from outside before the first and after the last."""
                nonlocal begun
                if begun == 0:
                    seen.append(meminfo())  # noqa: B023 - called within this turn
                begun += 1
                instance = ready(driver, prepared)
                if begun == CROWD:
                    seen.append(meminfo())  # noqa: B023
                return instance

            found = measured(density.Density(), driver, prepared, None, launch=launch, cap=CROWD, time_s=60, idle_s=0.1)
            before, after = seen
            if crowd:  # the first fills caches that the later ones find
                slopes.extend(found[density.MARGINAL.name])
                sets.append(statistics.mean(found[density.PSS.name]))
                taken.append((before["MemAvailable"] - after["MemAvailable"]) / CROWD)
                mapped.append(sum(after[name] - before[name] for name in ("AnonPages", "Mapped")) / CROWD)
    show(
        Pair("density.marginal_memory[container] and MemAvailable", "B", slopes, taken),
        Pair("density.pss_per_instance[container] and AnonPages + Mapped", "B", sets, mapped),
    )


# In a mount namespace of its own: the image's tree with a writable /var/tmp. $1 and $2 are tree and scratch.
CHROOT = """
mount --bind "$2" "$1/var/tmp"
for each in proc sys dev; do mount --rbind "/$each" "$1/$each"; done
tree=$1; shift 2
exec chroot "$tree" "$@"
"""


def image_tree(host: Host) -> Path:
    return flat([layer.directory for layer in ImageStore(host.root).resolve(IMAGE).layers], host.root / "flat")


def by_chroot(tree: Path, scratch: Path) -> list[str]:
    return ["unshare", "--mount", "sh", "-ec", CHROOT, "sh", str(tree), str(scratch)]


def test_the_disk_of_native_beside_fio_by_hand(bench_host: Host, tmp_path: Path) -> None:
    patterns = {each.metric.name: each for each in overhead_disk.PATTERNS}
    ours: dict[str, list[float]] = {name: [] for name in patterns}
    by_fio: dict[str, list[float]] = {name: [] for name in patterns}
    tree = image_tree(bench_host)
    scratch = bench_host.root / "scratch" / new_id()  # on the file system that instances have theirs on

    def fio(*words: str) -> dict[str, float]:
        """What fio says of its one job, both ways together: the other way has moved nothing."""
        command = [*by_chroot(tree, scratch), "fio", "--name=hand"]
        file = ["--filename=/var/tmp/hand", f"--size={FILE_MIB}M", "--ioengine=psync", "--output-format=json"]
        done = subprocess.run([*command, *file, *words], check=True, capture_output=True, text=True)
        (job,) = json.loads(done.stdout)["jobs"]
        assert job["error"] == 0
        return {word: job["read"][word] + job["write"][word] for word in ("bw_bytes", "iops")}

    with opened(NativeDriver, bench_host) as (driver, prepared):

        def by_tare() -> None:
            with ready(driver, prepared) as instance:
                found = measured(
                    overhead_disk.OverheadDisk(), driver, prepared, instance, seconds=DISK_S, size_mib=FILE_MIB
                )
            for name, (value,) in found.items():
                ours[name].append(value)

        def by_hand() -> None:
            scratch.mkdir(parents=True)
            try:
                fio("--rw=write", "--bs=1M", "--end_fsync=1")
                for name, each in patterns.items():
                    way = "--fsync=1" if each.flush else "--direct=1"
                    timed = ("--time_based", f"--runtime={round(DISK_S * 1000)}ms")
                    told = fio(f"--rw={each.rw}", f"--bs={each.block}", way, *timed)
                    by_fio[name].append(told["bw_bytes" if each.bandwidth else "iops"])
            finally:
                shutil.rmtree(scratch)

        in_turns(DISK_BLOCKS, by_tare, by_hand)
    show(
        *(
            Pair(f"{name}[native] and fio under chroot", each.metric.unit, ours[name], by_fio[name])
            for name, each in patterns.items()
        )
    )


def test_the_network_of_a_container_beside_iperf3_by_hand(bench_host: Host, tmp_path: Path) -> None:
    """By hand: the server under chroot in the host's network, the client in a container's, entered from outside."""
    demand("nsenter", "ip")
    figures = (network.THROUGHPUT, network.HOST_THROUGHPUT)
    ours: dict[str, list[float]] = {each.name: [] for each in figures}
    by_iperf3: dict[str, list[float]] = {each.name: [] for each in figures}
    tree = image_tree(bench_host)

    def inside(instance: Instance) -> list[str]:
        return ["nsenter", f"--target={instance.host_pids()[0]}"]

    def gateway(instance: Instance) -> str:
        words = [*inside(instance), "--net", "ip", "-4", "-o", "route", "show", "default"]
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()[2]

    def stream(instance: Instance, address: str) -> float:
        """Bytes a second as the client's own report has them received."""
        port = str(network.free_port())
        server = [*by_chroot(tree, tmp_path), "iperf3", "--server", "--one-off", "--forceflush", "--port", port]
        with subprocess.Popen(server, stdout=subprocess.PIPE) as serving:
            try:
                assert serving.stdout is not None
                serving.stdout.read(1)  # its banner: it listens
                client = [*inside(instance), "--all", "iperf3", "--client", address, "--port", port]
                done = subprocess.run([*client, "--time=1", "--json"], check=True, capture_output=True)
            finally:
                serving.kill()
        told: float = json.loads(done.stdout)["end"]["sum_received"]["bits_per_second"]
        return told / 8

    with opened(NativeDriver, bench_host) as native, opened(ContainerDriver, bench_host) as (driver, prepared):

        def launch(spec: InstanceSpec = SPEC) -> Instance:
            return ready(driver, driver.prepare(spec))

        def by_tare() -> None:
            found = measured(network.Network(), driver, prepared, None, launch, lambda: ready(*native), small_s=0.1)
            for each in figures:
                ours[each.name] += found[each.name]

        def by_hand() -> None:
            for each, mode in zip(figures, (NetworkMode.BRIDGE, NetworkMode.HOST), strict=True):
                with launch(dataclasses.replace(SPEC, network=NetworkSpec(mode=mode))) as instance:
                    address = gateway(instance) if mode is NetworkMode.BRIDGE else network.LOOPBACK
                    by_iperf3[each.name].append(stream(instance, address))

        in_turns(NETWORK_BLOCKS, by_tare, by_hand)
    show(
        *(
            Pair(f"{each.name}[container] and iperf3 by nsenter", each.unit, ours[each.name], by_iperf3[each.name])
            for each in figures
        )
    )


def test_the_idle_cpu_of_a_machine_beside_its_process(bench_host: Host) -> None:
    """By hand: utime and stime of its QEMU in /proc/PID/stat, before and after a sleep as long."""
    ours, by_stat = list[float](), list[float]()
    with opened(MicrovmDriver, bench_host) as (driver, prepared), ready(driver, prepared) as machine:
        tick_s = 1 / os.sysconf("SC_CLK_TCK")

        def used() -> float:
            """CPU seconds of all its processes."""
            files = [f"/proc/{pid}/stat" for pid in machine.host_pids()]
            lines = subprocess.run(["cat", *files], check=True, capture_output=True, text=True).stdout.splitlines()
            return tick_s * sum(sum(map(int, line[line.rindex(")") :].split()[12:14])) for line in lines)

        def by_tare() -> None:
            ours.extend(measured(idle.Idle(), driver, prepared, machine, seconds=IDLE_S)[idle.CPU.name])

        def by_hand() -> None:
            before, began = used(), time.monotonic()
            subprocess.run(["sleep", str(IDLE_S)], check=True)
            by_stat.append((used() - before) / (time.monotonic() - began))

        in_turns(IDLE_BLOCKS, by_tare, by_hand)
    show(Pair("idle.cpu[microvm] and utime + stime of QEMU", idle.CPU.unit, ours, by_stat))

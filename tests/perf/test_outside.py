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
import random
import shlex
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from harness.bench import IMAGE
from harness.intervals import Interval, median_interval
from harness.profiles import PROFILES
from runtime.cgroups.paths import PARENT
from runtime.container.dockerd import Engine, answers
from runtime.container.flat import flat
from runtime.driver import Driver, Host, Prepared
from runtime.drivers.container import ContainerDriver
from runtime.drivers.docker import DEFAULT_SOCKET, DockerDriver, PreparedDocker
from runtime.drivers.libvirt import MicrovmDriver
from runtime.drivers.native import NativeDriver
from runtime.drivers.oci import RuncDriver
from runtime.images.store import ImageStore
from runtime.instance import Instance, Timeline
from runtime.ledger import new_id
from runtime.spec import InstanceSpec, NetworkMode, NetworkSpec, Ready
from tests.conftest import skip_or_fail
from workloads import density, hostview, idle, network, overhead_disk, startup
from workloads.base import Context, Workload
from workloads.metric import Phase

SPEC = InstanceSpec(image=IMAGE, limits=PROFILES["standard"].limits)
BLOCKS, RUNS = 20, 3  # of startup: a block's figure is the median of its runs, after a warm-up
DOCKER_BLOCKS = 12
NETWORK_BLOCKS = 12
IDLE_BLOCKS, IDLE_S = 8, 8  # of accounts in steps of 10 ms
CROWDS, CROWD = 7, 300  # of instances whose memory is looked at
DISK_BLOCKS, DISK_S, FILE_MIB = 10, 0.3, 64


@dataclass(frozen=True)
class Pair:
    """One figure by Tare and from outside, a number a block each."""

    what: str
    unit: str
    tare: Sequence[float]
    outside: Sequence[float]

    def line(self) -> str:
        """Both sides, what lies between them as a share of what is outside, and whether they agree."""
        tare, outside = interval(self.tare), interval(self.outside)
        assert tare.high > 0
        assert outside.high > 0
        apart = interval(
            [(mine - theirs) / outside.estimate for mine, theirs in zip(self.tare, self.outside, strict=True)]
        )
        return (
            f"{self.what}: Tare {text(tare)}, outside {text(outside)} {self.unit}, n {tare.n}, "
            f"apart {apart.estimate:+.1%} [{apart.low:+.1%}, {apart.high:+.1%}]: "
            f"{'inside' if tare.low <= outside.high and outside.low <= tare.high else 'outside'}"
        )


def interval(values: Sequence[float]) -> Interval:
    found = median_interval(values)
    assert found is not None
    return found


def text(one: Interval) -> str:
    return f"{one.estimate:.4g} [{one.low:.4g}, {one.high:.4g}]"


def show(*pairs: Pair) -> None:
    print("", *(pair.line() for pair in pairs), sep="\n")  # noqa: T201


def ready(driver: Driver, prepared: Prepared) -> Instance:
    instance = driver.launch(prepared)
    try:
        instance.wait_ready(30)
    except BaseException:
        instance.close()
        raise
    return instance


def no_peer() -> NoReturn:
    raise AssertionError("this workload has no peer")


def measured(
    workload: Workload,
    driver: Driver,
    prepared: Prepared,
    instance: Instance | None,
    launch: Callable[..., Instance] | None = None,
    peer: Callable[[], Instance] = no_peer,
    **params: float,
) -> dict[str, list[float]]:
    """The workload's own samples, warm-up left out, by metric."""
    context = Context(
        driver=driver,
        prepared=prepared,
        launch=launch or (lambda spec=None: ready(driver, prepared)),
        peer=peer,
        params=params,
        instance=instance,
    )
    found: dict[str, list[float]] = {}
    for sample in workload.measure(context):
        if sample.phase is Phase.MEASURE:
            found.setdefault(sample.metric, []).append(sample.value)
    return found


def in_turns(blocks: int, *sides: Callable[[], None]) -> None:
    """Every side once a block, in an order of its own."""
    rng = random.Random(1)
    for _ in range(blocks):
        for side in rng.sample(sides, len(sides)):
            side()


@contextmanager
def opened(kind: type[Driver], host: Host) -> Iterator[tuple[Driver, Prepared]]:
    driver = kind(host)
    try:
        found = driver.probe()
        if not found.usable:
            skip_or_fail(f"{driver.name}: {found.reason}")
        yield driver, driver.prepare(SPEC)
    finally:
        driver.close()


def demand(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            skip_or_fail(f"{program} is not installed")


@dataclass(frozen=True)
class ByHand:
    """What a user has who runs the container of a driver of runc's by hand: its bundle, and words of a shell's."""

    bundle: Path
    name: str
    overlay: str

    @property
    def mount(self) -> str:
        return shlex.join(["mount", "-t", "overlay", "overlay", "-o", self.overlay, str(self.bundle / "rootfs")])

    @property
    def unmount(self) -> str:
        return shlex.join(["umount", str(self.bundle / "rootfs")])

    @property
    def run(self) -> str:
        return self._runc("run", "--bundle", str(self.bundle), self.name)

    @property
    def delete(self) -> str:
        return self._runc("delete", "--force", self.name)

    def _runc(self, *words: str) -> str:
        return shlex.join(["runc", "--root", str(self.bundle.parent / "state"), *words])


def bundle_by_hand(host: Host, driver: Driver, prepared: Prepared, directory: Path) -> ByHand:
    """The bundle of a live instance of runc's, for /bin/true, with a name and a writable layer of its own."""
    name, bundle = new_id(), directory / "bundle"
    with ready(driver, prepared) as instance:
        live = host.run / "oci" / instance.id
        text = (live / "config.json").read_text().replace(instance.id, name)
        options = next(
            fields[-1]
            for fields in map(str.split, Path("/proc/self/mountinfo").read_text().splitlines())
            if fields[4] == str(live / "rootfs")
        )
    lower = next(word for word in options.split(",") if word.startswith("lowerdir="))
    for each in ("rootfs", "upper", "work"):
        (bundle / each).mkdir(parents=True)
    config = json.loads(text)
    config["process"] |= {"args": ["/bin/true"], "terminal": False}
    config["root"]["path"] = "rootfs"
    assert config["linux"]["cgroupsPath"] == f"/{PARENT}/{name}"
    (bundle / "config.json").write_text(json.dumps(config))
    return ByHand(bundle, name, f"{lower},upperdir={bundle / 'upper'},workdir={bundle / 'work'}")


def hyperfine(command: str, export: Path, *, before: str = "true", after: str = "true") -> float:
    """The median of its runs in seconds, by hyperfine without a shell of its own; `before` and `after` each, untimed.

    A command that is several is one shell's.
    """
    words = ["hyperfine", "--shell=none", "--style=none", "--warmup=1", f"--runs={RUNS}", f"--export-json={export}"]
    done = subprocess.run([*words, f"--prepare={before}", command], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    subprocess.run(shlex.split(after), check=True)
    (result,) = json.loads(export.read_text())["results"]
    times: list[float] = result["times"]
    assert len(times) == RUNS
    return statistics.median(times)


def shell(*commands: str) -> str:
    """One shell that carries out all of them, itself becoming the last."""
    *first, last = commands
    return shlex.join(["sh", "-c", " && ".join([*first, f"exec {last}"])])


def test_the_startup_of_runc_beside_hyperfine(bench_host: Host, tmp_path: Path) -> None:
    demand("runc", "hyperfine", "mount", "umount")
    userland, on_root, whole = list[float](), list[float](), list[float]()
    ran, mounted, removed, deleted = list[float](), list[float](), list[float](), list[float]()
    export = tmp_path / "hyperfine.json"
    with opened(RuncDriver, bench_host) as (driver, prepared):
        hand = bundle_by_hand(bench_host, driver, prepared, tmp_path)
        at_once = driver.prepare(dataclasses.replace(SPEC, ready=Ready.USERLAND))

        def by_tare() -> None:
            timelines: list[Timeline] = []

            def launch(spec: InstanceSpec | None = None) -> Instance:
                instance = ready(driver, prepared)
                timelines.append(instance.timeline)
                return instance

            with launch() as instance:
                found = measured(startup.Startup(), driver, prepared, instance, launch, repeats=RUNS)
            userland.append(statistics.median(found[startup.USERLAND.name]))
            on_root.append(middle(timelines[1:], "disk", "userland"))

        def by_tare_to_the_end() -> None:
            timelines: list[Timeline] = []
            for _ in range(1 + RUNS):
                with ready(driver, at_once) as instance:
                    timelines.append(instance.timeline)
            whole.append(middle(timelines[1:], "request", "removed"))

        def by_run() -> None:
            mount()
            ran.append(hyperfine(hand.run, export, before=shell(hand.unmount, hand.mount), after=hand.unmount))

        def by_mount_and_run() -> None:
            mount()  # for the first to undo
            timed = shell(hand.mount, hand.run)
            mounted.append(hyperfine(timed, export, before=hand.unmount, after=hand.unmount))

        def by_run_and_unmount() -> None:
            removed.append(hyperfine(shell(hand.mount, hand.run, hand.unmount), export))

        def by_run_and_delete() -> None:
            deleted.append(hyperfine(shell(hand.mount, hand.run, hand.delete, hand.unmount), export))

        def mount() -> None:
            subprocess.run(shlex.split(hand.mount), check=True)

        try:
            in_turns(
                BLOCKS, by_tare, by_tare_to_the_end, by_run, by_mount_and_run, by_run_and_unmount, by_run_and_delete
            )
        finally:
            for last in (hand.delete, hand.unmount):
                subprocess.run(shlex.split(last), check=False, capture_output=True)
    show(
        Pair("startup.userland[runc] and `runc run` on a root just mounted", "s", userland, ran),
        Pair("the same from the root's being there", "s", on_root, ran),
        Pair("startup.userland[runc] and `mount && runc run`", "s", userland, mounted),
        Pair("request to removed[runc] and `mount && runc run && umount`", "s", whole, removed),
        Pair("the same and `mount && runc run && runc delete && umount`", "s", whole, deleted),
    )


def middle(timelines: Sequence[Timeline], first: str, last: str) -> float:
    """The median of what lies between two events, in seconds."""
    found = [timeline.between_ns(first, last) for timeline in timelines]
    return statistics.median(elapsed_ns / 1e9 for elapsed_ns in found if elapsed_ns is not None)


def test_the_startup_of_docker_beside_its_client(bench_host: Host, tmp_path: Path) -> None:
    demand("docker", "curl", "hyperfine")
    if "DOCKER_HOST" in os.environ:
        skip_or_fail("DOCKER_HOST is set: by hand it is not")
    userland, whole, asked, ran = list[float](), list[float](), list[float](), list[float]()
    export, channel, body, name = tmp_path / "hyperfine.json", tmp_path / "channel", tmp_path / "body.json", new_id()
    channel.touch()
    with opened(DockerDriver, bench_host) as (driver, prepared):
        assert isinstance(prepared, PreparedDocker)
        place = DEFAULT_SOCKET if answers(DEFAULT_SOCKET) else Engine(bench_host, driver.name).socket
        bind = f"{channel}:/run/tare-channel"  # a file for a socket
        settings = {**prepared.settings, "Binds": [*prepared.settings["Binds"], bind]}
        wanted = {"Image": prepared.image_id, "Entrypoint": ["/bin/true"], "HostConfig": settings}
        body.write_text(json.dumps(wanted))
        curl = ["curl", "--silent", "--show-error", "--unix-socket", str(place), "--output", str(tmp_path / "answer")]
        at = "http://docker/containers"
        json_body = ["--header", "Content-Type: application/json", "--data", f"@{body}"]
        created = shlex.join([*curl, "--fail", *json_body, f"{at}/create?name={name}"])
        started = shlex.join([*curl, "--fail", "--request", "POST", f"{at}/{name}/start"])
        removed = shlex.join([*curl, "--request", "DELETE", f"{at}/{name}?force=1"])
        limits = SPEC.limits
        assert limits.memory_bytes is not None
        assert limits.swap_bytes is not None
        client = shlex.join(
            [
                *("docker", f"--host=unix://{place}", "run", "--rm", "--network=none", f"--volume={bind}"),
                *("--security-opt=no-new-privileges", "--cgroupns=private", f"--cpus={limits.cpus}"),
                *(f"--memory={limits.memory_bytes}", f"--memory-swap={limits.memory_bytes + limits.swap_bytes}"),
                *(f"--pids-limit={limits.pids}", "--entrypoint=/bin/true", prepared.image_id),
            ]
        )
        at_once = driver.prepare(dataclasses.replace(SPEC, ready=Ready.USERLAND))

        def by_tare() -> None:
            timelines: list[Timeline] = []
            for _ in range(1 + RUNS):
                with ready(driver, at_once) as instance:
                    timelines.append(instance.timeline)
            userland.append(middle(timelines[1:], "request", "userland"))
            whole.append(middle(timelines[1:], "request", "removed"))

        def by_asking() -> None:
            asked.append(hyperfine(shell(created, started), export, before=removed, after=removed))

        def by_client() -> None:
            ran.append(hyperfine(client, export))

        try:
            in_turns(DOCKER_BLOCKS, by_tare, by_asking, by_client)
        finally:
            subprocess.run(shlex.split(removed), check=False, capture_output=True)
    show(
        Pair("startup.userland[docker] and POST create && POST start by curl", "s", userland, asked),
        Pair("request to removed[docker] and `docker run --rm` of true", "s", whole, ran),
    )


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

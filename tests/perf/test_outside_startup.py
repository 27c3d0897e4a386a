"""Startup and whole lives of runc's and Docker's containers beside hyperfine. As `test_outside`, which says how."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import statistics
import subprocess
from dataclasses import dataclass
from pathlib import Path

from runtime.cgroups.paths import PARENT
from runtime.container.dockerd import Engine, answers
from runtime.driver import Driver, Host, Prepared
from runtime.drivers.docker import DEFAULT_SOCKET, DockerDriver, PreparedDocker
from runtime.drivers.oci import RuncDriver
from runtime.instance import Instance, Timeline
from runtime.ledger import new_id
from runtime.spec import InstanceSpec, Ready
from tests.conftest import skip_or_fail
from tests.perf.outside import RUNS, SPEC, Pair, demand, in_turns, lives, measured, middle, opened, ready, show
from workloads import startup

BLOCKS, DOCKER_BLOCKS = 20, 12


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
            whole.append(middle(lives(driver, at_once), "request", "removed"))

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
            timelines = lives(driver, at_once)
            userland.append(middle(timelines, "request", "userland"))
            whole.append(middle(timelines, "request", "removed"))

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

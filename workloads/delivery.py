"""Delivery: bytes and seconds until a host that has the image has a change of one file too, and what that takes."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from runtime.driver import Kind
from runtime.errors import TareError
from runtime.instance import Instance
from runtime.scratch import scratch
from workloads.base import Context, Invalid, Stage, Workload
from workloads.footprint import TIMEOUT_S, settled
from workloads.metric import Better, Metric, Sample
from workloads.tools.registry import Registry, serving

BYTES = Metric("delivery.bytes", "B", Better.LOWER, "bytes sent to the registry for a change of one file of 1 MiB")
SECONDS = Metric("delivery.seconds", "s", Better.LOWER, "from the change to a receiver that can launch it")
STORED = Metric("delivery.stored", "B", Better.LOWER, "blocks that the changed image takes beside the one it came from")
CHANGE_BYTES = 1 << 20
PATH = "/var/tmp/tare-change"  # noqa: S108 - inside the instance, on its own writable root


class Delivery(Workload):
    """A file of 1 MiB is written in a fresh instance, which is then frozen and sent through a registry on loopback.

    Once in every form that the driver knows (label `way`): a container's writable layer; a virtual machine's whole
    disk, and only the clusters that differ from its base. The steps are pack, push, pull, unpack (label `step`);
    their sum, `total`, is the figure. The receiver has the unchanged image. The content is random, so nothing of
    it is saved by compression, which the disks have and the layer has not. A booted machine has also written
    what its boot writes: that is part of its change.
    """

    name = "delivery"
    stage = Stage.OWN
    metrics = (BYTES, SECONDS, STORED)
    kinds = frozenset({Kind.CONTAINER, Kind.VM})

    def measure(self, context: Context) -> Iterator[Sample]:
        """Yield bytes, seconds and blocks for each way. Raises TareError where there is no registry."""
        driver = context.driver
        if not driver.ways:
            raise TareError("delivery", f"driver {driver.name} sends nothing on", "leave it out")
        with scratch(driver.host.root) as directory, serving(directory) as registry, context.launch() as instance:
            _change(instance)
            instance.pause()
            try:
                for number, way in enumerate(driver.ways):
                    context.say(way)
                    yield from _deliver(context, instance, registry, way, directory / str(number))
            finally:
                instance.resume()


def _change(instance: Instance) -> None:
    argv = ("dd", "if=/dev/urandom", f"of={PATH}", "bs=1M", f"count={CHANGE_BYTES >> 20}", "conv=fsync")
    instance.exec(argv, TIMEOUT_S).check()
    instance.exec(("sync",), TIMEOUT_S).check()


def _deliver(context: Context, instance: Instance, registry: Registry, way: str, place: Path) -> Iterator[Sample]:
    """One way from the frozen instance to a launchable image in the directory `place`."""
    place.mkdir()
    parcel, arrived, target = place / "parcel", place / "arrived", place / "image"
    stamps = [time.monotonic_ns()]
    context.driver.pack(instance, way, parcel)
    stamps.append(time.monotonic_ns())
    sent_bytes = registry.put(parcel, place.name)
    stamps.append(time.monotonic_ns())
    registry.get(place.name, arrived)
    stamps.append(time.monotonic_ns())
    context.driver.unpack(way, arrived, target)
    stamps.append(time.monotonic_ns())
    if sent_bytes < CHANGE_BYTES:
        raise Invalid("delivery", f"{sent_bytes} B cannot hold a change of {CHANGE_BYTES} B: it was not flushed")
    yield Sample(BYTES.name, sent_bytes, labels={"way": way})
    yield Sample(STORED.name, settled([target]).allocated, labels={"way": way})
    yield Sample(SECONDS.name, (stamps[-1] - stamps[0]) / 1e9, labels={"way": way, "step": "total"})
    for step, begin, end in zip(("pack", "push", "pull", "unpack"), stamps, stamps[1:], strict=False):
        yield Sample(SECONDS.name, (end - begin) / 1e9, labels={"way": way, "step": step})
    shutil.rmtree(place)

"""Control groups for tests of limits, and processes that join them by themselves. No tests here."""

from __future__ import annotations

import mmap
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from runtime.cgroups.cgroup import Cgroup
from runtime.cgroups.detect import detect, io_device, open_cgroup
from runtime.cgroups.resources import Resources
from runtime.errors import TareError
from runtime.ledger import new_id
from tests.conftest import skip_or_fail

MIB = 1 << 20
DISK = io_device(Path("/var/tmp"))
MAJOR, MINOR = (int(part) for part in (DISK or "0:0").split(":"))
Make = Callable[..., Cgroup]


@pytest.fixture
def make(root_user: None) -> Iterator[Make]:
    """Makes groups with limits; afterwards none is left."""
    made: list[Cgroup] = []

    def create(resources: Resources, **options: object) -> Cgroup:
        group = open_cgroup(new_id(), resources, **options)  # type: ignore[arg-type]
        made.append(group)
        try:
            group.create()
        except TareError:
            assert not group.exists()
            raise
        group.apply(resources)
        return group

    try:
        detect()
        open_cgroup(new_id())
    except TareError as error:
        skip_or_fail(str(error))
    yield create
    for group in made:
        group.remove()
        assert not group.exists()


class Inside:
    """A child in the group that runs `work` and exits with what that returns."""

    def __init__(self, group: Cgroup, work: Callable[[], int]) -> None:
        self.pid = os.fork()
        if self.pid == 0:
            code = 99
            with suppress(BaseException):
                group.add_pid(os.getpid())
                code = work()
            os._exit(code)

    def wait(self) -> int:
        """The exit code, or minus the signal."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def inside(group: Cgroup, work: Callable[[], int]) -> int:
    return Inside(group, work).wait()


def spin(seconds: float) -> int:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass
    return 0


def hold(size_bytes: int) -> int:
    """Fill so much and wait to be killed."""
    area = mmap.mmap(-1, size_bytes or 1, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for at in range(0, size_bytes, mmap.PAGESIZE):
        area[at] = 1
    signal.pause()
    return len(area)


def unless_refused(make: Make, resources: Resources, name: str) -> Cgroup | None:
    """The group, or None where this host refuses the limit by its name."""
    try:
        return make(resources)
    except TareError as error:
        if f"limit {name}" not in str(error):
            raise
        return None

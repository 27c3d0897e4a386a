"""The stand-in host that the tests of this directory share, booted once."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.driver import Host
from runtime.drivers.libvirt import VmDriver
from runtime.errors import TareError
from tests.conftest import skip_or_fail
from tests.guest.standin import StandIn, booted


@pytest.fixture(scope="session")
def standin(bench_host: Host) -> Iterator[StandIn]:
    if not (found := VmDriver(bench_host).probe()).usable:
        skip_or_fail(f"no virtual machines: {found.reason}")
    with tempfile.TemporaryDirectory(prefix="standin-", dir=bench_host.root.parent) as scratch:
        try:
            with booted(bench_host, Path(scratch)) as machine:
                yield machine
        except TareError as error:
            pytest.fail(str(error))

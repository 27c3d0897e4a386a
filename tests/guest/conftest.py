"""The stand-in host that the tests of this directory share, booted once."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
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
    with tempfile.TemporaryDirectory(prefix="standin-", dir=bench_host.root.parent) as scratch, ExitStack() as stack:
        try:
            machine = stack.enter_context(booted(bench_host, Path(scratch)))
        except TareError as error:
            print(f"\nonce more, as emulated firmware stands still at times: {error}")  # noqa: T201
            machine = stack.enter_context(booted(bench_host, Path(scratch)))
        yield machine

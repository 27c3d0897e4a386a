"""A driver as a module of tests wants it: what it cannot do here skips them, and it is closed. No tests here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import TypeVar

import pytest

from runtime.driver import Driver, Host, find_driver
from runtime.vm import accelerator
from tests.conftest import skip_or_fail

D = TypeVar("D", bound=Driver)


@contextmanager
def usable(driver: D) -> Iterator[D]:
    """`driver`, closed at the end; where this host cannot have it, the test is skipped for the driver's reason."""
    with closing(driver):
        available = driver.probe()
        if not available.usable:
            skip_or_fail(f"{driver.name}: {available.reason}")
        yield driver


@contextmanager
def emulated(make: Callable[[Host], D], host: Host) -> Iterator[D]:
    """The same of virtual machines that are emulated, whatever the host has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(accelerator.VARIABLE, "tcg")
        with usable(make(host)) as driver:
            yield driver


@pytest.fixture(scope="module")
def container(bench_host: Host) -> Iterator[Driver]:
    with usable(find_driver("container")(bench_host)) as driver:
        yield driver


@pytest.fixture(scope="module")
def native(bench_host: Host) -> Iterator[Driver]:
    with usable(find_driver("native")(bench_host)) as driver:
        yield driver

"""A driver as a module of tests wants it: what it cannot do here skips them, and it is closed. No tests here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from typing import TypeVar

import pytest

from runtime.driver import Driver, Host, find_driver
from runtime.instance import Instance
from runtime.spec import InstanceSpec
from runtime.vm import accelerator
from tests.conftest import skip_or_fail

D = TypeVar("D", bound=Driver)
Launch = Callable[..., Instance]


@contextmanager
def usable(driver: D) -> Iterator[D]:
    """`driver`, closed at the end; where this host cannot have it, the test is skipped for the driver's reason."""
    with closing(driver):
        available = driver.probe()
        if not available.usable:
            skip_or_fail(f"{driver.name}: {available.reason}")
        yield driver


@contextmanager
def launching(driver: Driver, spec: InstanceSpec, ready_s: float = 30) -> Iterator[Launch]:
    """Launches ready instances of `spec` with whatever changes are asked for; all are closed at the end."""
    with ExitStack() as stack:

        def launch(**changes: object) -> Instance:
            instance = stack.enter_context(driver.launch(driver.prepare(replace(spec, **changes))))  # type: ignore[arg-type]
            instance.wait_ready(ready_s)
            return instance

        yield launch


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

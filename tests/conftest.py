"""Fixtures and rules for all tests: a privileged test probes by doing, and skips with its reason."""

from __future__ import annotations

import os
import signal
from typing import NoReturn

import pytest
from hypothesis import settings

pytest_plugins = ["tests.fixtures"]

# A shared host stalls at times: no deadline. CI must say the same of the same commit; local runs keep exploring.
settings.register_profile("tare", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "tare")


def pytest_configure() -> None:
    """Whoever starts us in the background has us ignore Ctrl-C, and every child that a test then interrupts by it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those of a libvirt daemon first: once its embedded driver is in this process, that takes every qemu: URI."""
    items.sort(key=lambda item: item.path.name != "test_vm_system.py")


def skip_or_fail(reason: str) -> NoReturn:
    """Skip the running test for `reason`; fail instead where TARE_MUST_WORK=1 says that nothing may be skipped."""
    if os.environ.get("TARE_MUST_WORK") == "1":
        pytest.fail(f"skipped under TARE_MUST_WORK=1: {reason}")
    pytest.skip(reason)


@pytest.fixture
def root_user() -> None:
    """Require root."""
    if os.geteuid() != 0:
        skip_or_fail("needs root")

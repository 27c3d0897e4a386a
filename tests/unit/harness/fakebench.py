"""A pytest plugin for a process of its own: registers fake drivers, so that the whole front runs without a host.

Loaded with `-p tests.unit.harness.fakebench`. What the fakes do comes from $FAKE_BENCH, JSON: by driver
name, fields of `Behaviour`.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from typing import Any

import pytest

import runtime.drivers
from harness import bench, cli, environment, possible, profiles
from harness.assignment import Observer
from harness.profiles import Entry, Profile
from runtime.driver import Host, Kind
from tests import fakes
from tests.unit.harness.engine import tiny_profile
from workloads.base import all_workloads


def quick(rare: tuple[str, ...] = ()) -> Profile:
    """Two blocks of what is instant on fakes."""
    names = ("startup", "teardown", "overhead_cpu", "overhead_disk", "footprint")
    entries = {name: Entry(params={"seconds": 0.01}, expect_s=0.1) for name in names}
    idle = {name: Entry(drivers=()) for name in all_workloads() if name not in names}
    entries["overhead_cpu"] = replace(entries["overhead_cpu"], rare=rare)
    return tiny_profile(name="quick", entries=entries | idle, drivers=("native", "container"))


def install(patch: pytest.MonkeyPatch) -> None:
    """Make `tare bench` and its pytest front run on fakes until `patch` is undone."""
    told: dict[str, dict[str, Any]] = json.loads(os.environ.get("FAKE_BENCH", "{}"))
    patch.setattr(runtime.drivers, "__path__", [])  # the real ones are not looked for
    for name, kind in (("native", Kind.NATIVE), ("container", Kind.CONTAINER)):
        fakes.register(patch, name, kind, fakes.Behaviour(jitter=0.05, **told.get(name, {})))
    patch.setattr(os, "geteuid", lambda: 0)
    patch.setattr(possible, "BURST_S", math.inf)  # a fake's seconds of work take no time
    patch.setattr(profiles, "PROFILES", {"quick": quick()})
    patch.setattr(bench, "ready_image", image)
    patch.setattr(environment, "capture", lambda: {"cpu": {"model": "fake"}})
    patch.setattr(cli, "report", report)


def image(host: Host, observer: Observer, *, machine: bool) -> dict[str, str]:
    return {"tare/debian:bookworm": "sha256:" + "0" * 64}


def report(directory: object) -> int:
    print(f"REPORT OF {directory}")  # noqa: T201 - stands for what the report prints
    return 0


def pytest_addoption(parser: pytest.Parser) -> None:
    """The earliest hook: before the front decides what it could measure."""
    install(pytest.MonkeyPatch())

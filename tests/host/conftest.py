"""Fixtures of the tests that need root."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from runtime.driver import Host
from runtime.images.store import ImageStore
from tests.launches import IMAGE, Launches


@pytest.fixture(scope="module")
def launches(bench_host: Host) -> Iterator[Launches]:
    """Containers straight from configurations, for one module of tests."""
    layers = tuple(layer.directory for layer in ImageStore(bench_host.root).resolve(IMAGE).layers)
    directory = bench_host.root / "instances"
    directory.mkdir(parents=True, exist_ok=True)
    made = Launches(directory, layers)
    yield made
    made.close()

"""The host that host and conformance tests run on: a state root that keeps its images between runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtime.driver import Host
from runtime.errors import TareError
from runtime.images import recipe
from runtime.images.store import ImageStore
from tests.conftest import skip_or_fail


@pytest.fixture(scope="session")
def bench_host() -> Host:
    """A Host below $TARE_TEST_ROOT (/var/tmp/tare-tests) on which `tare build` has been done; needs root.

    The first run on a machine takes about a minute, later ones nothing: the images stay there.
    """
    if os.geteuid() != 0:
        skip_or_fail("needs root")
    root = Path(os.environ.get("TARE_TEST_ROOT", "/var/tmp/tare-tests"))
    host = Host(root=root / "lib", run=root / "run")
    try:
        recipe.build(ImageStore(host.root), recipe.load("debian"))
    except TareError as error:
        skip_or_fail(f"no bench image: {error}")
    return host

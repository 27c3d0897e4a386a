"""libvirt's own mock hypervisor, for tests that need no root and no QEMU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.driver import Host
from runtime.vm.connection import Connection, connect
from runtime.vm.uri import VARIABLE


@pytest.fixture
def tests_libvirt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Connection]:
    """A connection to test:///default, which holds one running domain called `test`."""
    pytest.importorskip("libvirt")
    monkeypatch.setenv(VARIABLE, "test:///default")
    connection = connect(Host(root=tmp_path / "lib", run=tmp_path / "run"))
    yield connection
    connection.release()

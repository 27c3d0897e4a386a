"""On test:///default, libvirt's mock hypervisor: no root, no QEMU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.driver import Host
from runtime.errors import TareError
from runtime.ledger import process_start
from runtime.vm import connection as module
from runtime.vm.connection import URI_VARIABLE, Connection, connect


def test_import_and_drivers_need_no_libvirt() -> None:
    code = "import sys; sys.modules['libvirt'] = None; import runtime.drivers.libvirt as d; print(d.VmDriver.name)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "vm\n"


def test_missing_libvirt_is_explained() -> None:
    code = (
        "import sys; sys.modules['libvirt'] = None\n"
        "from runtime.vm.connection import import_libvirt\n"
        "from runtime.errors import TareError\n"
        "try: import_libvirt()\n"
        "except TareError as error: print(error.what, '/', error.do)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "libvirt / run ./bootstrap to install it\n"


def test_unreachable_uri_is_explained_and_prints_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("libvirt")
    monkeypatch.setenv(URI_VARIABLE, "nosuch:///thing")
    with pytest.raises(TareError, match="connection to nosuch:///thing") as caught:
        connect(Host(root=tmp_path, run=tmp_path))
    assert URI_VARIABLE in caught.value.do
    assert capfd.readouterr().err == ""
    assert module._open is None


def test_drivers_share_one_connection_and_the_last_closes_it(tests_libvirt: Connection, tmp_path: Path) -> None:
    again = connect(Host(root=tmp_path, run=tmp_path))
    assert again is tests_libvirt
    again.release()
    assert tests_libvirt.handle.isAlive()


def test_domains_are_found_by_name(tests_libvirt: Connection) -> None:
    assert tests_libvirt.names() == ["test"]
    assert tests_libvirt.find("test").name() == "test"  # type: ignore[union-attr]
    assert tests_libvirt.find("tare-000000000000") is None


def test_libvirts_errors_become_ours(tests_libvirt: Connection) -> None:
    with pytest.raises(TareError, match="my domain: Domain not found"), tests_libvirt.explained("my domain"):
        tests_libvirt.handle.lookupByName("nosuch")


def test_facts_tell_the_version(tests_libvirt: Connection) -> None:
    facts = tests_libvirt.facts()
    assert facts["uri"] == "test:///default"
    assert facts["libvirt"].count(".") == 2


def test_embedded_root_is_this_process_own_and_shares_the_cache(tmp_path: Path) -> None:
    host = Host(root=tmp_path / "lib", run=tmp_path / "r")
    if len(str(host.run)) > 50:
        host = Host(root=host.root, run=Path("/tmp") / f"tare-{os.getpid()}")
    try:
        root = module._embedded_root(host)
        assert root.name == f"{os.getpid()}-{process_start(os.getpid())}"
        assert "cgroup_controllers = []" in (root / "etc/qemu.conf").read_text()
        assert (root / "cache").resolve() == (host.root / "cache/libvirt").resolve()
        assert module._embedded_root(host) == root
    finally:
        subprocess.run(["rm", "-r", str(host.run)], check=True)


def test_state_directory_too_deep_for_sockets_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    host = Host(root=tmp_path / "lib", run=tmp_path / ("x" * 60))
    with pytest.raises(TareError, match="sockets below"):
        module._embedded_root(host)
    assert list(tmp_path.iterdir()) == []

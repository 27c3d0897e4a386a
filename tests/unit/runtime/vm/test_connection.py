"""On test:///default, libvirt's mock hypervisor: no root, no QEMU."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from runtime.driver import Host
from runtime.errors import TareError, UsageError
from runtime.ledger import process_start
from runtime.vm import connection as module
from runtime.vm.connection import Connection, connect
from runtime.vm.uri import VARIABLE


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
    monkeypatch.setenv(VARIABLE, f"qemu:///system?socket={tmp_path}/none")
    with pytest.raises(TareError, match=r"connection to qemu:///system: Failed to connect socket to .*No such file"):
        connect(Host(root=tmp_path / "lib", run=tmp_path / "run"))
    assert capfd.readouterr().err == ""
    assert module._open is None
    assert threads() == []
    assert list(tmp_path.iterdir()) == []


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("tare-libvirt")]


def test_a_uri_of_no_use_is_refused_before_anything_is_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(VARIABLE, "qemu+ssh://elsewhere/system")
    with pytest.raises(UsageError, match="leads to another host"):
        connect(Host(root=tmp_path / "lib", run=tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []


def test_nothing_of_libvirt_runs_once_the_last_has_let_go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("libvirt")
    monkeypatch.setenv(VARIABLE, "test:///default")
    for _ in range(3):
        connection = connect(Host(root=tmp_path, run=tmp_path))
        assert threads() == ["tare-libvirt"]
        assert connection.names() == ["test"]
        connection.release()
        assert threads() == []


def test_a_domain_destroyed_by_another_connection_is_heard_of(tests_libvirt: Connection) -> None:
    watch = tests_libvirt.watch("test", lambda _: None)
    try:
        tests_libvirt.libvirt.open("test:///default").lookupByName("test").destroy()
        assert watch.ended.wait(60)
        assert watch.end == "it was destroyed through libvirt"
    finally:
        tests_libvirt.find("test").create()  # type: ignore[union-attr]
        tests_libvirt.forget("test")


def test_a_name_in_use_is_told_with_what_to_do(tests_libvirt: Connection) -> None:
    xml = "<domain type='test'><name>test</name><memory>8192</memory><os><type>hvm</type></os></domain>"
    with pytest.raises(TareError, match=r"already .*choose another name"), tests_libvirt.explained("machine test"):
        tests_libvirt.handle.createXML(xml, 0)


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
    assert facts["hypervisor"] == "TEST"


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

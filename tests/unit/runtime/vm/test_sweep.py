"""On a recorded /proc: nothing here starts or kills a process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtime.driver import Host
from runtime.ledger import Ledger, process_start
from runtime.vm import sweep

ONE, TWO, LIVE = "tare-000000000001", "tare-000000000002", "tare-00000000000f"


class Scene:
    """A state directory and a /proc in which QEMUs run."""

    def __init__(self, directory: Path) -> None:
        self.host = Host(root=directory / "lib", run=directory / "run")
        self.proc = directory / "proc"
        self.proc.mkdir()

    def qemu(self, pid: int, instance_id: str, *words: str, run: Path | None = None) -> None:
        (self.proc / str(pid)).mkdir()
        agent = f"socket,path={(run or self.host.run) / 'vm' / instance_id}/agent"
        line = ["qemu", "-name", f"guest={instance_id},debug-threads=on", *words, "-chardev", agent, ""]
        (self.proc / str(pid) / "cmdline").write_bytes("\0".join(line).encode())

    def page(self, instance_id: str, driver: str, *, dead: bool) -> None:
        entry = Ledger(self.host.run).open(instance_id, driver)
        for directory in (self.host.root / "instances" / instance_id, self.host.run / "vm" / instance_id):
            directory.mkdir(parents=True)
            entry.note("dir", str(directory))
        entry.close(gone=False)
        if dead:
            path = self.host.run / "instances" / f"{instance_id}.jsonl"
            path.write_text(path.read_text().replace(f'"pid": {os.getpid()}', '"pid": 4194305'))

    def found(self, driver: str) -> list[str]:
        return [str(entry) for entry in sweep.find(self.host, driver, self.proc)]


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_a_clean_host_has_nothing(scene: Scene) -> None:
    assert scene.found("vm") == []


def test_a_dead_owners_machine_is_found_process_first_page_last(scene: Scene) -> None:
    scene.page(ONE, "vm", dead=True)
    scene.qemu(70, ONE)
    assert scene.found("vm") == [
        f"process 70 of {ONE}",
        f"dir {scene.host.root}/instances/{ONE}",
        f"dir {scene.host.run}/vm/{ONE}",
        f"page {ONE}",
    ]
    assert scene.found("microvm") == []


def test_a_living_owners_machine_is_left_alone(scene: Scene) -> None:
    scene.page(LIVE, "vm", dead=False)
    for name in ("disk.qcow2", "variables.fd"):
        (scene.host.root / "instances" / LIVE / name).touch()
    scene.qemu(70, LIVE)
    assert scene.found("vm") == []


def test_a_qemu_without_a_page_is_found_by_the_driver_that_starts_such(scene: Scene) -> None:
    scene.qemu(70, ONE, "-kernel", "/vmlinuz")
    scene.qemu(71, TWO)
    assert scene.found("microvm") == [f"process 70 of {ONE}"]
    assert scene.found("vm") == [f"process 71 of {TWO}"]


def test_other_qemus_and_other_state_directories_are_none_of_ours(scene: Scene) -> None:
    scene.qemu(70, ONE, run=Path("/elsewhere"))
    scene.qemu(71, "web-server")
    (scene.proc / "72").mkdir()
    assert scene.found("vm") == []


def test_disks_of_before_a_reboot_are_found_without_a_page(scene: Scene) -> None:
    for instance_id, names in ((ONE, ["disk.qcow2", "variables.fd"]), (TWO, ["disk.qcow2"]), (LIVE, ["upper"])):
        directory = scene.host.root / "instances" / instance_id
        directory.mkdir(parents=True)
        for name in names:
            (directory / name).touch()
    assert scene.found("vm") == [f"dir {scene.host.root}/instances/{ONE}"]
    assert scene.found("microvm") == [f"dir {scene.host.root}/instances/{TWO}"]


def test_an_embedded_libvirts_directory_lives_as_long_as_its_process(scene: Scene) -> None:
    mine = f"{os.getpid()}-{process_start(os.getpid())}"
    for name in (mine, f"{os.getpid()}-1", "4194305-77"):
        (scene.host.run / "libvirt" / name).mkdir(parents=True)
    dead = [path.name for path in sweep.dead_roots(scene.host)]
    assert sorted(dead) == sorted(["4194305-77", f"{os.getpid()}-1"])


def test_removing_strikes_the_page_and_says_what_went(scene: Scene) -> None:
    scene.page(ONE, "vm", dead=True)
    (scene.host.root / "instances" / ONE / "disk.qcow2").touch()
    removed = sweep.remove(scene.host, "vm")
    assert f"page {ONE}" in removed
    assert not (scene.host.root / "instances" / ONE).exists()
    assert sweep.find(scene.host, "vm") == []

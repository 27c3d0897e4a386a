"""What containers change, take in, give out and leave behind, by `tare run` and the commands for files. Needs root."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.driver import Host
from tests.host.life import IMAGE, Tare, rooted

MADE = "made-by-tests:1"
IDLE = ("sh", "-c", "echo ready; exec sleep 1000")


@pytest.fixture(scope="module")
def tare(bench_host: Host) -> Iterator[Tare]:
    with rooted(bench_host) as tare:
        yield tare
        tare("rmi", MADE)


@pytest.fixture(params=["host", "auto"])
def box(tare: Tare, request: pytest.FixtureRequest) -> Iterator[str]:
    """A running container, with ids of its own or the host's, and a volume."""
    tare.up("--name", "box", "--userns", request.param, "-v", "kept:/usr/share/base-files", IMAGE, *IDLE)
    yield "box"
    tare("rm", "-f", "-v", "box")
    tare("volume", "rm", "-f", "kept")


def test_files_belong_to_the_containers_own_root(tare: Tare, box: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("of the host")
    os.chown(tmp_path / "file", 1000, 1001)
    tare("cp", f"{tmp_path}/file", "box:/etc/plain").good()
    tare("cp", "-a", f"{tmp_path}/file", "box:/etc/same").good()
    said = tare("exec", box, "stat", "-c", "%u:%g", "/etc/plain", "/etc/same").good()
    assert said.split() == ["0:0", "1000:1001"]
    tare("cp", "-a", "box:/etc/same", f"{tmp_path}/back").good()
    assert ((tmp_path / "back").stat().st_uid, (tmp_path / "back").stat().st_gid) == (1000, 1001)


def test_what_is_copied_while_it_does_not_run_is_there_when_it_does(tare: Tare, box: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("of the host")
    tare("stop", "-t", "0", box).good()
    for target in ("/etc/plain", "/usr/share/base-files/plain"):
        tare("cp", f"{tmp_path}/file", f"box:{target}").good()
    tare("start", box).good()
    said = tare("exec", box, "stat", "-c", "%u:%g", "/etc/plain", "/usr/share/base-files/plain").good()
    assert said.split() == ["0:0", "0:0"]


def test_a_fresh_volume_has_what_the_image_had_and_outlives_the_container(tare: Tare, box: str) -> None:
    tare("exec", box, "sh", "-c", "stat -c %u /usr/share/base-files/motd && echo x > /usr/share/base-files/new").good()
    assert "in use by container" in tare("volume", "rm", "kept").err
    tare("rm", "-f", box).good()
    again = tare.run("-v", "kept:/mnt:ro", IMAGE, "sh", "-c", "cat /mnt/new; ls /mnt; touch /mnt/y")
    assert again.out.startswith("x\n")
    assert "motd" in again.out.split()
    assert "Read-only file system" in again.err


def test_an_image_committed_while_it_runs_holds_what_was_changed(tare: Tare, box: str) -> None:
    tare("exec", box, "sh", "-c", "echo x > /root/new; rm /etc/issue; rm -r /etc/skel; mkdir /etc/skel").good()
    assert tare("diff", box).good().splitlines() == [
        *("C /etc", "D /etc/issue", "C /etc/skel"),
        *(f"D /etc/skel/{name}" for name in (".bash_logout", ".bashrc", ".profile")),
        *("C /root", "A /root/new"),
    ]
    tare("commit", "-c", 'CMD ["cat", "/root/new"]', box, MADE).good()
    assert tare.state(box)["Status"] == "running"
    assert tare.run(MADE).out == "x\n"
    assert tare.run(MADE, "sh", "-c", "ls -A /etc/skel; ls /etc/issue").out == ""
    assert tare.run(MADE, "stat", "-c", "%u", "/root/new").out == "0\n"


def test_a_volume_without_a_name_goes_with_its_container(tare: Tare) -> None:
    tare.run("-v", "/data", IMAGE, "touch", "/data/x")
    assert tare("volume", "ls", "-q").good() == ""
    tare.up("--name", "other", "-v", "/data", IMAGE, *IDLE)
    assert len(tare("volume", "ls", "-q").good().split()) == 1
    tare("rm", "-f", "-v", "other").good()
    assert tare("volume", "ls", "-q").good() == ""

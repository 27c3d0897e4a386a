"""Which program of the host may be a container's init, and how it is put before the container's own."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import pytest

from runtime.container import inits
from runtime.container.config import Config, Process, Root
from runtime.errors import UsageError

LOAD, INTERPRETER = 1, 3


def elf(path: Path, *kinds: int, bits: int = 2, cut: int = 0) -> Path:
    """A program with segments of these kinds, as far as its head says."""
    size = 56
    head = struct.pack("<4sBB10xHHIQQQIHHH", b"\x7fELF", bits, 1, 2, 62, 1, 0, 64, 0, 0, 64, size, len(kinds))
    table = b"".join(struct.pack("<I", kind).ljust(size, b"\0") for kind in kinds)
    data = head.ljust(64, b"\0") + table
    path.write_bytes(data[: len(data) - cut])
    path.chmod(0o755)
    return path


def test_a_program_that_asks_for_a_linker_is_not_static(tmp_path: Path) -> None:
    assert inits.is_static(str(elf(tmp_path / "a", LOAD, LOAD)))
    assert not inits.is_static(str(elf(tmp_path / "b", LOAD, INTERPRETER, LOAD)))
    assert not inits.is_static(sys.executable)


def test_what_is_no_whole_program_is_not_static(tmp_path: Path) -> None:
    (tmp_path / "script").write_text("#!/bin/sh\n" + "#" * 100)
    (tmp_path / "empty").touch()
    for path in (
        tmp_path / "script",
        tmp_path / "empty",
        elf(tmp_path / "none"),
        elf(tmp_path / "cut", LOAD, LOAD, cut=60),
        elf(tmp_path / "narrow", LOAD, bits=1),
    ):
        assert not inits.is_static(str(path)), path


def test_the_first_that_needs_no_libraries_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=r"--init: none of docker-init, .* \(install the package tini"):
        inits.find()
    elf(tmp_path / "docker-init", INTERPRETER)
    elf(tmp_path / "tini", LOAD)
    assert inits.find() == str(tmp_path / "tini")
    (tmp_path / "catatonit").symlink_to(elf(tmp_path / "real", LOAD))
    assert inits.find() == str(tmp_path / "real")


def test_it_comes_before_the_program_and_is_read_only() -> None:
    process = Process(args=("sh", "-c", "true"), cwd="/")
    config = inits.put_before(Config(oci_version="1.0.2", root=Root(path="rootfs"), process=process), "/usr/bin/x")
    assert config.process is not None
    assert config.process.args == ("/dev/init", "--", "sh", "-c", "true")
    assert (config.mounts[-1].source, config.mounts[-1].destination) == ("/usr/bin/x", "/dev/init")
    assert {"bind", "ro"} <= set(config.mounts[-1].options)

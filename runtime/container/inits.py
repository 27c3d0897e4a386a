"""An init of the host's as a container's process 1, as `--init` asks for: found, and put before the program.

It passes signals on, and reaps whatever loses its parent. Not a program of ours: one that reaps is on most hosts.
"""

from __future__ import annotations

import os
import shutil
import struct
from dataclasses import replace
from typing import Final

from runtime.container.config import Config, MountPoint
from runtime.errors import UsageError

PLACE: Final = "/dev/init"
"""Where it is inside: on a file system of the container's own, so that neither layer nor volume gets a file."""
NAMES: Final = ("docker-init", "tini-static", "catatonit", "tini")
"""All take the program's words after `--`."""
# The head of an ELF file, as elf(5) has it.
_HEADER: Final = struct.Struct("<4sBB10xHHIQQQIHHH")
_ELF64, _LITTLE, _PT_INTERP = 2, 1, 3


def find() -> str:
    """The first on PATH that needs no libraries, as those of the image may be others. Raises UsageError."""
    for name in NAMES:
        path = shutil.which(name)
        if path is not None and is_static(path):
            return os.path.realpath(path)
    why = f"none of {', '.join(NAMES)} on PATH that needs no libraries"
    raise UsageError("--init", why, "install the package tini or catatonit")


def is_static(path: str) -> bool:
    """Whether it is a program that asks for no dynamic linker."""
    with open(path, "rb") as file:  # noqa: PTH123 - what `which` says is a string
        head = file.read(_HEADER.size)
        if len(head) < _HEADER.size:
            return False
        magic, bits, order, _, _, _, _, offset, _, _, _, size, count = _HEADER.unpack(head)
        if (magic, bits, order) != (b"\x7fELF", _ELF64, _LITTLE) or not size * count:
            return False
        file.seek(offset)
        table = file.read(size * count)
    return len(table) == size * count and all(
        struct.unpack_from("<I", table, at)[0] != _PT_INTERP for at in range(0, len(table), size)
    )


def put_before(config: Config, init: str) -> Config:
    """The configuration with `init`, a program of the host, in front of its own."""
    assert config.process is not None  # checked when it was created
    mount = MountPoint(destination=PLACE, type="bind", source=init, options=("bind", "ro", "nosuid", "nodev"))
    process = replace(config.process, args=(PLACE, "--", *config.process.args))
    return replace(config, mounts=(*config.mounts, mount), process=process)

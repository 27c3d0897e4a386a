"""The microvm's initramfs: the few kernel modules it needs and one static program, as a cpio archive.

Not Debian's initramfs, which the ordinary virtual machine boots. Format: newc, from the kernel's
Documentation/driver-api/early-userspace/buffer-format.rst. Uncompressed: 1 MiB is unpacked faster than
it is decompressed.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from runtime.errors import TareError

# What reaches the disk and the agent's port; the file system is built into Debian's cloud kernel.
MODULES = ("virtio_pci", "virtio_blk", "virtio_console")

# Loaded only where there is a network card: a machine without one need not wait for it.
NETWORK_MODULES = ("virtio_net",)


def module_files(modules: Path, wanted: Sequence[str] = MODULES) -> list[Path]:
    """The module files to load, dependencies first; what is built into the kernel needs none.

    `modules` is a /lib/modules/VERSION directory. Raises TareError for a module the kernel does not have.
    """
    needs = dict(_dependencies((modules / "modules.dep").read_text()))
    builtin = {_module_name(line) for line in (modules / "modules.builtin").read_text().split()}
    path_of = {_module_name(path): path for path in needs}
    ordered: list[str] = []

    def visit(path: str) -> None:
        for needed in needs[path]:
            visit(needed)
        if path not in ordered:
            ordered.append(path)

    for name in wanted:
        if name in path_of:
            visit(path_of[name])
        elif name not in builtin:
            raise TareError(f"kernel {modules.name}", f"it has no module {name}", "choose another kernel in the recipe")
    return [modules / path for path in ordered]


def initramfs(init: bytes, modules: Sequence[Path], network: Sequence[Path] = ()) -> bytes:
    """A cpio archive with `init` as /init, a console, and the modules as /modules/NN-name.ko in loading order.

    `network` are those that a network card needs beside them, likewise below /network.
    """
    entries = [
        _entry("dev", stat.S_IFDIR | 0o755),
        _entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
        _entry("init", stat.S_IFREG | 0o755, init),
        _entry("modules", stat.S_IFDIR | 0o755),
        *(
            _entry(f"modules/{number:02}-{path.name}", stat.S_IFREG | 0o644, path.read_bytes())
            for number, path in enumerate(modules)
        ),
        _entry("network", stat.S_IFDIR | 0o755),
        *(
            _entry(f"network/{number:02}-{path.name}", stat.S_IFREG | 0o644, path.read_bytes())
            for number, path in enumerate(network)
        ),
        _entry("TRAILER!!!", 0),
    ]
    return b"".join(entries)


def _entry(name: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)) -> bytes:
    raw_name = name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(mode) else 1
    header = (0, mode, 0, 0, links, 0, len(content), 0, 0, *device, len(raw_name), 0)
    return _padded(b"070701" + b"".join(b"%08x" % field for field in header) + raw_name) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


def _module_name(path: str) -> str:
    return path.rpartition("/")[2].partition(".ko")[0].replace("-", "_")


def _dependencies(text: str) -> Iterator[tuple[str, list[str]]]:
    """(module path, paths it needs) from modules.dep, both relative to its directory."""
    for line in text.splitlines():
        path, _, needed = line.partition(":")
        yield path, needed.split()

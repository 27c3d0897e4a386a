"""The programs that take part in a run: runtimes, emulators, libraries, and Tare itself.

Versions and digests only; no paths. Whether a driver can use them is the driver's own probe's business.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from runtime.command import run
from runtime.errors import TareError
from runtime.vm.connection import import_libvirt

PROGRAMS = (
    "qemu-system-x86_64", "qemu-system-aarch64",
    "runc", "crun", "youki", "runsc", "docker", "dockerd", "containerd", "podman",
)  # fmt: skip
LIBRARIES = ("numpy", "pandas", "pyroute2", "pytest", "pytest-benchmark", "scipy")


def collect_programs(names: Iterable[str] = PROGRAMS) -> dict[str, Any]:
    """Version and SHA-256 of each runtime found on PATH, and libvirt's version: they change under one's hands."""
    found: dict[str, Any] = {}
    for name in names:
        path = shutil.which(name)
        if path is not None:
            facts = {"version": _first_line([path, "--version"]), "sha256": _digest(Path(path))}
            found[name] = {key: value for key, value in facts.items() if value}
    try:
        number = import_libvirt().getVersion()
    except TareError:
        return found
    return found | {"libvirt": {"version": f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"}}


def _first_line(argv: list[str], cwd: Path | None = None) -> str | None:
    try:
        output = run(argv, timeout_s=10.0, cwd=cwd).stdout.decode(errors="replace")
    except TareError:
        return None
    return next(iter(output.splitlines()), "").strip() or None


def _digest(path: Path) -> str | None:
    try:
        with path.open("rb") as program:
            return hashlib.file_digest(program, "sha256").hexdigest()
    except OSError:
        return None


def collect_tare() -> dict[str, Any]:
    """This program: version, the commit it was checked out at (`-dirty` if changed since), Python, libraries."""
    checkout = Path(__file__).resolve().parents[1]
    described = ["git", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=40"]
    found = {
        "version": _version("tare"),
        "commit": _first_line(described, checkout) if (checkout / ".git").exists() else None,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "libraries": {name: version for name in LIBRARIES if (version := _version(name))},
    }
    return {name: value for name, value in found.items() if value}


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None

"""Named volumes: directories that outlive containers, and which containers use them.

Below `<root>/volumes/`: `<name>/_data` (what is mounted), `<name>/volume.json`, `.lock`. Who uses a volume is not
written down here: the containers' own configurations say it, so that a crash cannot make the two disagree. Not for the
flags that ask for volumes (`mountflags`).
"""

from __future__ import annotations

import json
import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from runtime.container.rootdir import opened_layers
from runtime.errors import TareError, UsageError
from runtime.files.copying import TreeSink, copy, tree_entries
from runtime.images.layout import room_for, write_durably
from runtime.images.store import remove_tree
from runtime.linux import flock
from runtime.linux.inside import open_inside

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{1,254}")
_DATA, _FACTS = "_data", "volume.json"
_COPYING = "copying"  # beside the data while the image's content is being put into it
_LOCK = ".lock"


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """One volume. `created_at` is UTC, ISO 8601; `anonymous` says that nobody gave it its name."""

    name: str
    directory: Path
    created_at: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    anonymous: bool = False

    @property
    def data(self) -> Path:
        """The directory that containers get."""
        return self.directory / _DATA

    def document(self) -> dict[str, Any]:
        """As Docker's `volume inspect` has it."""
        return {
            "CreatedAt": self.created_at,
            "Driver": "local",
            "Labels": dict(self.labels),
            "Mountpoint": str(self.data),
            "Name": self.name,
            "Options": {},
            "Scope": "local",
        }


class VolumeStore:
    """The volumes below `root` (a `Host.root`). Construction touches nothing."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.directory = root / "volumes"
        self._unclaimed: list[Volume] = []

    # --- reading

    def all(self) -> list[Volume]:
        """Every volume, by name."""
        found = []
        for name in sorted(os.listdir(self.directory)) if self.directory.is_dir() else ():  # noqa: PTH208
            with suppress(TareError):
                found.append(self.find(name))
        return found

    def find(self, name: str) -> Volume:
        """The volume of this name. Raises TareError when there is none."""
        if _NAME.fullmatch(name):
            with suppress(FileNotFoundError, ValueError):
                facts = json.loads((self.directory / name / _FACTS).read_bytes())
                return Volume(
                    name=name,
                    directory=self.directory / name,
                    created_at=facts["created_at"],
                    labels=facts["labels"],
                    anonymous=facts["anonymous"],
                )
        raise TareError(f"volume {name}", "no such volume", "see: tare volume ls")

    def users(self) -> dict[str, list[str]]:
        """The ids of the containers that mount each volume, running or not, by the volume's name."""
        base, used = f"{self.directory}/", dict[str, list[str]]()
        for document in sorted((self._root / "containers").glob("*/config.json")):
            with suppress(FileNotFoundError, ValueError):
                sources = {
                    str(mount.get("source", "")) for mount in json.loads(document.read_bytes()).get("mounts", ())
                }
                for source in sorted(sources):
                    if source.startswith(base):
                        used.setdefault(source.removeprefix(base).partition("/")[0], []).append(document.parent.name)
        return used

    # --- changing

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the volumes still: whoever makes a container holds this from `ensure` until its configuration lies.

        If that fails, the volumes without a name that were made for it are removed.
        """
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        with flock.held(self.directory / _LOCK):
            self._unclaimed = []
            try:
                yield
            except BaseException:
                for volume in self._unclaimed:
                    self._drop(volume)
                raise

    def create(self, name: str | None = None, labels: Mapping[str, str] | None = None) -> Volume:
        """Make a volume, with a random name if none is given; one that is there already is returned as it is."""
        with self.held():
            return self.ensure(name, labels)

    def ensure(self, name: str | None = None, labels: Mapping[str, str] | None = None) -> Volume:
        """`create` for a caller that holds the volumes."""
        if name is not None:
            check_name(name)
            with suppress(TareError):
                return self.find(name)
        chosen = name or secrets.token_hex(32)
        partial, final = self.directory / f".{chosen}", self.directory / chosen
        remove_tree(partial)
        try:
            with room_for(f"volume {chosen}", self.directory):
                self._make(partial, final, labels, anonymous=name is None)
        except BaseException:
            remove_tree(partial)
            raise
        volume = self.find(chosen)
        if volume.anonymous:
            self._unclaimed.append(volume)
        return volume

    @staticmethod
    def _make(partial: Path, final: Path, labels: Mapping[str, str] | None, *, anonymous: bool) -> None:
        (partial / _DATA).mkdir(parents=True, mode=0o755)
        partial.chmod(0o700)
        facts = {
            "created_at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "labels": dict(labels or {}),
            "anonymous": anonymous,
        }
        write_durably(partial / _FACTS, json.dumps(facts).encode())
        partial.rename(final)

    def populate(self, volume: Volume, layers: Sequence[Path], target: str) -> bool:
        """Give an empty volume what the image (`layers`, topmost last) has at `target`, as Docker does.

        The directory's own mode and owner come with it. What a crash cuts short is done by the next container that
        mounts the volume. Returns whether anything was copied. The caller holds the volumes.
        """
        mark = volume.directory / _COPYING
        if any(volume.data.iterdir()) and not mark.exists():
            return False
        with room_for(f"volume {volume.name}", self.directory):
            return _fill(volume.data, layers, target, mark)

    def remove(self, name: str) -> None:
        """Remove a volume with all in it. Raises TareError while a container uses it, or when there is none."""
        with self.held():
            volume = self.find(name)
            users = self.users().get(name)
            if users:
                ids = ", ".join(user[:12] for user in users)
                raise TareError(f"volume {name}", f"in use by container {ids}", "remove that first: tare rm")
            self._drop(volume)

    def _drop(self, volume: Volume) -> None:
        doomed = self.directory / f".{volume.name}"
        remove_tree(doomed)
        volume.directory.rename(doomed)
        remove_tree(doomed)

    def sweep(self) -> list[str]:
        """Remove what a crash left half-made or half-removed; says what went."""
        if not self.directory.is_dir():
            return []
        with self.held():
            doomed = [
                path for path in sorted(self.directory.iterdir()) if path.name.startswith(".") and path.name != _LOCK
            ]
            for path in doomed:
                remove_tree(path)
        return [f"volume {path}" for path in doomed]


def check_name(name: str) -> None:
    """Raise UsageError unless a volume may be called so."""
    if _NAME.fullmatch(name) is None:
        raise UsageError(f"volume name {name!r}", "not a name", "use letters, digits, dots, dashes, at least two")


def _fill(data: Path, layers: Sequence[Path], target: str, mark: Path) -> bool:
    with opened_layers(layers) as root:
        try:
            source = open_inside(root, target, os.O_PATH)
        except (FileNotFoundError, NotADirectoryError):
            return False
        try:
            if not stat.S_ISDIR(os.fstat(source).st_mode):
                return False
            mark.touch()
            _pour(source, data)
            mark.unlink()
        finally:
            os.close(source)
    return True


def _pour(source: int, data: Path) -> None:
    info = os.fstat(source)
    descriptor = os.open(data, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        copy(tree_entries(source), TreeSink(descriptor), name="")
        os.fchown(descriptor, info.st_uid, info.st_gid)
        os.fchmod(descriptor, stat.S_IMODE(info.st_mode))
        os.utime(descriptor, ns=(info.st_atime_ns, info.st_mtime_ns))
    finally:
        os.close(descriptor)

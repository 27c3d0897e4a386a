"""What images this host has: OCI blobs, their unpacked layers, the machines made from them.

Below `<root>/images/`: an OCI layout, `layers/<hex>/fs` (read-only lower directories, shared by every
instance), `machines/<hex>/` (VM disks), `partial/` (what is being made: renamed when whole, swept by
`tare clean`). Everything that changes the store holds one lock; reading needs none. Not for making
images (`recipe.py`) nor for moving them between hosts.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from runtime.command import run
from runtime.errors import TareError
from runtime.images import disk
from runtime.images.disk import Machine
from runtime.images.layers import Bounds, unpack
from runtime.images.layout import CONFIG, LAYER_TAR, MANIFEST, Layout, hex_of, manifest, room_for
from runtime.spec import ImageRef

# In a container image's configuration: the image whose layers, a superset of its own, make its virtual machine.
MACHINE_LABEL = "org.tare.machine"
MACHINE_BYTES_LABEL = "org.tare.machine.disk-bytes"


@dataclass(frozen=True, slots=True)
class Layer:
    """One unpacked layer: its diff id, and the directory to use as an overlay's lower directory."""

    digest: str
    directory: Path


@dataclass(frozen=True, slots=True)
class Image:
    """An image ready to launch; `layers[-1]` is the topmost, `digest` its manifest's, `config` as in the OCI."""

    ref: ImageRef
    digest: str
    layers: tuple[Layer, ...]
    config: dict[str, Any]

    @property
    def labels(self) -> dict[str, str]:
        """The configuration's labels."""
        return dict(self.config.get("config", {}).get("Labels") or {})


class ImageStore:
    """The images below `root` (a `Host.root`). Construction touches nothing."""

    def __init__(self, root: Path) -> None:
        self.directory = root / "images"
        self.layout = Layout(self.directory)
        self._guard = threading.RLock()
        self._depth = 0

    # --- reading

    def resolve(self, ref: ImageRef) -> Image:
        """The image `ref` means. Raises TareError when it is not here or incomplete."""
        wanted = str(ImageRef(name=ref.name, tag=ref.tag, registry=ref.registry))
        digest = self.layout.references().get(wanted)
        if digest is None or ref.digest not in (None, digest):
            raise TareError(f"image {ref}", "not on this host", "make it with: tare build")
        document = self.layout.get(digest)
        config = self.layout.get(str(document["config"]["digest"]))
        layers = tuple(self._layer(diff_id) for diff_id in config["rootfs"]["diff_ids"])
        missing = next((layer for layer in layers if not layer.directory.is_dir()), None)
        if missing is not None:
            raise TareError(
                f"image {ref}", f"layer {missing.digest} is missing", "make it again with: tare build --force"
            )
        return Image(ImageRef.parse(wanted), digest, layers, config)

    def images(self) -> list[Image]:
        """Every image, sorted by reference."""
        return [self.resolve(ImageRef.parse(name)) for name in self.layout.references()]

    def machine(self, ref: ImageRef, say: Callable[[str], None] = lambda text: None) -> Machine:
        """The virtual machine of image `ref`: its own, or the one its label names. Built when first asked for.

        Building takes some seconds and no mounts or loop devices; it is cached by the layers' digests.
        """
        image = self.resolve(ref)
        label = image.labels.get(MACHINE_LABEL)
        if label is not None:
            image = self.resolve(ImageRef.parse(label))
        directory, digest = self._machine_directory(image)
        if not directory.is_dir():
            with self.exclusive(), self.partial() as work:
                if not directory.is_dir():  # another process may have built it while this one waited
                    say(f"making the virtual machine's disk from {image.ref} (about 10 s)")
                    with room_for(f"machine of {ref}", self.directory):
                        disk.build([layer.directory for layer in image.layers], work, digest, self._disk_bytes(image))
                    self._keep(work / "machine", directory)
        return Machine.at(directory, digest)

    def machine_if_built(self, image: Image) -> Machine | None:
        """The machine made from exactly this image's layers, if there is one already."""
        directory, digest = self._machine_directory(image)
        return Machine.at(directory, digest) if directory.is_dir() else None

    # --- changing

    @contextmanager
    def exclusive(self, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Hold the store's lock, across processes and threads; `waiting` is called if somebody else has it."""
        with self._guard:
            if self._depth:
                yield
                return
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)  # setuid files of images lie below
            fd = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    waiting()
                    fcntl.flock(fd, fcntl.LOCK_EX)
                self._depth = 1
                yield
            finally:
                self._depth = 0
                os.close(fd)

    @contextmanager
    def partial(self) -> Iterator[Path]:
        """A fresh directory for something half-made; gone at the end, whatever happens."""
        work = self.directory / "partial" / secrets.token_hex(6)
        work.mkdir(parents=True, mode=0o700)
        try:
            yield work
        finally:
            remove_tree(work)

    def put_layer(
        self,
        archive: Path,
        *,
        digest: str | None = None,
        diff_id: str | None = None,
        media_type: str = LAYER_TAR,
        bounds: Bounds = Bounds(),  # noqa: B008 - frozen
    ) -> Layer:
        """Unpack `archive`, which becomes the blob (it is moved, so it lies on the store's disk); return its layer.

        Raises TareError, with nothing left behind, when it is hostile, damaged, too large for the disk,
        or not what `digest` (of the archive) and `diff_id` (of its content) promise.
        """
        with self.exclusive(), self.partial() as work, room_for(f"layer {digest or archive.name}", self.directory):
            self.layout.create()
            (work / "fs").mkdir(mode=0o755)
            with archive.open("rb") as blob:
                found_digest, found_diff_id = unpack(blob, work / "fs", media_type=media_type, bounds=bounds)
            for promised, found, what in ((digest, found_digest, "content"), (diff_id, found_diff_id, "diff id")):
                if promised is not None and promised != found:
                    raise TareError(f"layer {promised}", f"its {what} is {found}", "it is damaged: get it again")
            layer = self._layer(found_diff_id)
            if not layer.directory.exists():
                (work / "layer").mkdir(mode=0o700)
                (work / "fs").rename(work / "layer" / "fs")
                self._keep(work / "layer", layer.directory.parent)
            archive.replace(self.layout.blob(found_digest))
            return layer

    def add(
        self,
        ref: ImageRef,
        layers: Sequence[Layer],
        *,
        labels: Mapping[str, str],
        epoch_s: int = 0,
        history: Sequence[str] = (),
    ) -> Image:
        """Make `ref` an image of these layers, lowest first; their blobs are uncompressed and already here."""
        created = datetime.fromtimestamp(epoch_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        config = {
            "architecture": "amd64",
            "os": "linux",
            "created": created,
            "config": {
                "Cmd": ["/bin/sh"],
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                "Labels": dict(labels),
            },
            "rootfs": {"type": "layers", "diff_ids": [layer.digest for layer in layers]},
            "history": [{"created": created, "created_by": line} for line in history],
        }
        with self.exclusive():
            self.layout.create()
            blobs = [
                {"mediaType": LAYER_TAR, "digest": layer.digest, "size": self.layout.blob(layer.digest).stat().st_size}
                for layer in layers
            ]
            document = manifest(self.layout.put(config, CONFIG), blobs)
            self.layout.name(str(ref), self.layout.put(document, MANIFEST))
        return self.resolve(ref)

    def remove(self, ref: ImageRef) -> None:
        """Forget `ref`; its layers stay until a sweep. Raises TareError when there is no such image."""
        with self.exclusive():
            if str(ref) not in self.layout.references():
                raise TareError(f"image {ref}", "not on this host", "see: tare images")
            self.layout.name(str(ref), None)

    def sweep(self, *, unneeded: bool) -> list[str]:
        """Remove what builds that died left half-made; if `unneeded`, also data that no image needs. Says what went.

        `unneeded` data may still carry a running instance: the caller knows that there is none. Does
        nothing while another process changes the store.
        """
        if not self.directory.is_dir():
            return []
        fd = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            doomed = self._below("partial") + (self._unneeded() if unneeded else [])
            for path in doomed:
                remove_tree(path)
            return [f"image data {path}" for path in doomed]
        except BlockingIOError:
            return []
        finally:
            os.close(fd)

    def _unneeded(self) -> list[Path]:
        kept: set[Path] = set()
        for image in self.images():
            document = self.layout.get(image.digest)
            blobs = (image.digest, document["config"]["digest"], *(layer["digest"] for layer in document["layers"]))
            kept |= {self.layout.blob(str(digest)) for digest in blobs}
            kept |= {layer.directory.parent for layer in image.layers}
            kept |= {self._machine_directory(image)[0]}
        candidates = [*self._below("blobs/sha256"), *self._below("layers"), *self._below("machines")]
        return [path for path in candidates if path not in kept]

    def _layer(self, diff_id: str) -> Layer:
        return Layer(diff_id, self.directory / "layers" / hex_of(diff_id) / "fs")

    def _below(self, name: str) -> list[Path]:
        directory = self.directory / name
        return sorted(directory.iterdir()) if directory.is_dir() else []

    def _keep(self, made: Path, final: Path) -> None:
        """Give a finished directory its name, its content being on the disk before."""
        run(["sync", "--file-system", str(made)], timeout_s=600)
        final.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        made.rename(final)

    def _machine_directory(self, image: Image) -> tuple[Path, str]:
        digest = disk.digest(tuple(layer.digest for layer in image.layers), self._disk_bytes(image))
        return self.directory / "machines" / hex_of(digest), digest

    def _disk_bytes(self, image: Image) -> int:
        return int(image.labels.get(MACHINE_BYTES_LABEL, disk.DEFAULT_BYTES))


def remove_tree(path: Path) -> None:
    """Remove a file or a directory tree, if it exists.

    Raises TareError, having removed nothing, when something is mounted in it: following a bind mount
    downwards would remove the host's own files.
    """
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    real = os.path.realpath(path)
    mounted = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    inside = next((point for point in mounted if point == real or point.startswith(f"{real}/")), None)
    if inside is not None:
        raise TareError(f"directory {path}", f"{inside} is mounted", f"umount {inside}, then: tare clean")
    for attempt in range(5):
        try:
            shutil.rmtree(path)
            return
        except FileNotFoundError:
            return
        except OSError as error:  # a build just killed may have made one more file
            if error.errno != errno.ENOTEMPTY or attempt == 4:
                raise


def tree_bytes(path: Path) -> tuple[int, int]:
    """Logical and allocated bytes of a file or of everything in a directory; a hard-linked file counts once."""
    logical = allocated = 0
    seen: set[tuple[int, int]] = set()
    for directory, _, files in os.walk(path) if path.is_dir() else [(str(path.parent), [], [path.name])]:
        for name in (".", *files) if path.is_dir() else files:
            info = os.lstat(os.path.join(directory, name))  # noqa: PTH118 - 15,000 files
            if (info.st_dev, info.st_ino) not in seen:
                seen.add((info.st_dev, info.st_ino))
                logical += info.st_size
                allocated += info.st_blocks * 512
    return logical, allocated


def fingerprint(*parts: bytes) -> str:
    """A digest of several byte strings, their borders included: what a cached build was made from."""
    return hashlib.sha256(b"".join(len(part).to_bytes(8, "big") + part for part in parts)).hexdigest()

"""What images this host has: OCI blobs, their unpacked layers, the machines made from them.

Below `<root>/images/`: an OCI layout, `layers/<hex>/fs` (read-only lower directories, shared by every
instance), `machines/<hex>/` (VM disks), `partial/` (what is being made: renamed when whole, swept by
`tare clean`). What changes names or takes data away holds one lock; unpacking and reading need none. Not
for making images (`recipe.py`), moving them between hosts (`registry.py`, `archives.py`) or removing (`collect.py`).
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from runtime.errors import TareError, UsageError
from runtime.images import collect
from runtime.images.layout import (
    CONFIG,
    LAYER_TAR,
    MANIFEST,
    Descriptor,
    Layout,
    architecture,
    chain_ids,
    hex_of,
    manifest,
    room_for,
)
from runtime.images.reference import familiar
from runtime.images.trees import fingerprint, remove_tree, tree_bytes
from runtime.images.workshop import Workshop
from runtime.record import ordered_record
from runtime.spec import ImageRef

if TYPE_CHECKING:  # what reads layers and makes disks is loaded where that is done: looking up an image is not it
    from runtime.images.disk import Machine
    from runtime.images.layers import Bounds

__all__ = ["Image", "ImageStore", "Layer", "Made", "fingerprint", "remove_tree", "tree_bytes"]

# In a container image's configuration: the image whose layers, a superset of its own, make its virtual machine.
MACHINE_LABEL = "org.tare.machine"
MACHINE_BYTES_LABEL = "org.tare.machine.disk-bytes"
_ID = re.compile(r"(?:sha256:)?[0-9a-f]{4,64}")
_AGAIN = "get it again with: tare pull or tare build --force"


@ordered_record
class Layer:
    """One unpacked layer: its diff id, and the directory to use as an overlay's lower directory."""

    digest: str
    directory: Path


@ordered_record
class Image:
    """An image ready to launch; `layers[-1]` is the topmost, `digest` its manifest's, `config` as in the OCI.

    `id` is what Docker calls the image's: its configuration's digest. Several names may have one id.
    """

    ref: ImageRef
    digest: str
    layers: tuple[Layer, ...]
    config: dict[str, Any]
    id: str = ""

    @property
    def labels(self) -> dict[str, str]:
        """The configuration's labels."""
        return dict((self.config.get("config") or {}).get("Labels") or {})


@ordered_record
class Made:
    """A layer unpacked and not yet in the store: `directory` becomes its own there, `archive` its blob."""

    directory: Path
    archive: Path
    digest: str
    diff_id: str


class ImageStore(Workshop):
    """The images below `root` (a `Host.root`). Construction touches nothing."""

    def __init__(self, root: Path) -> None:
        super().__init__(root / "images")
        self.root = root
        self.layout = Layout(self.directory)

    # --- reading

    def resolve(self, ref: ImageRef) -> Image:
        """The image `ref` means. Raises TareError when it is not here or incomplete."""
        ref = familiar(ref)
        for name, entry in self.layout.entries().items():
            named = ImageRef.parse(name)
            same = (named.registry, named.name) == (ref.registry, ref.name)
            if same and (name == str(ref) if ref.digest is None else ref.digest in collect.digests_of(entry)):
                return self._image(named, str(entry["digest"]))
        raise TareError(f"image {ref}", "not on this host", "get it with tare pull, or make it with: tare build")

    def find(self, text: str) -> Image:
        """The image that a user means: a name, an id or the beginning of one, a digest.

        Raises TareError when there is none, UsageError when there are several.
        """
        if not text.startswith("sha256:"):
            ref = ImageRef.parse(text)
            try:
                return self.resolve(ref)
            except TareError as error:
                if error.why != "not on this host" or _ID.fullmatch(text) is None:
                    raise
        matches = [image for image in self.images() if _is_meant(text, image)]
        if not matches:
            raise TareError(f"image {text}", "not on this host", "see: tare images")
        if len({image.id for image in matches}) > 1:
            raise UsageError(f"image {text}", "several images begin like this", "give more of the id")
        return matches[0]

    def images(self) -> list[Image]:
        """Every image that is whole, sorted by reference; `layout.references` names the others as well."""
        found = []
        for name, digest in self.layout.references().items():
            with suppress(TareError):
                found.append(self._image(ImageRef.parse(name), digest))
        return found

    def machine(self, ref: ImageRef, say: Callable[[str], None] = lambda text: None) -> Machine:
        """The virtual machine of image `ref`: its own, or the one its label names. Built when first asked for.

        Building takes some seconds and no mounts or loop devices; it is cached by the layers' digests.
        """
        image = self.resolve(ref)
        label = image.labels.get(MACHINE_LABEL)
        if label is not None:
            image = self.resolve(ImageRef.parse(label))
        from runtime.images import disk

        directory, digest = self.machine_directory(image)
        if not directory.is_dir():
            with self.exclusive(), self.partial() as work:
                if not directory.is_dir():  # another process may have built it while this one waited
                    say(f"making the virtual machine's disk from {image.ref} (about 10 s)")
                    with room_for(f"machine of {ref}", self.directory):
                        disk.build([layer.directory for layer in image.layers], work, digest, _disk_bytes(image))
                    self._sync()
                    _place(work / "machine", directory)
        return disk.Machine.at(directory, digest)

    def machine_if_built(self, image: Image) -> Machine | None:
        """The machine made from exactly this image's layers, if there is one already."""
        from runtime.images.disk import Machine

        directory, digest = self.machine_directory(image)
        return Machine.at(directory, digest) if directory.is_dir() else None

    def machine_directory(self, image: Image) -> tuple[Path, str]:
        """Where the machine of exactly these layers lies or would lie, and its digest."""
        from runtime.images import disk

        digest = disk.digest(tuple(layer.digest for layer in image.layers), _disk_bytes(image))
        return self.directory / "machines" / hex_of(digest), digest

    def layers(self, diff_ids: Sequence[str]) -> tuple[Layer, ...]:
        """The layers with these diff ids, lowest first, each in the variant that fits on those before it."""
        found = []
        for diff_id, chain_id in zip(diff_ids, chain_ids(diff_ids), strict=True):
            variant = self._layer_directory(chain_id) / "fs"
            fits = chain_id != diff_id and variant.is_dir()
            found.append(Layer(diff_id, variant if fits else self._layer_directory(diff_id) / "fs"))
        return tuple(found)

    def media_type(self, image: Image) -> str:
        """What the image's manifest is: its own word, else what the index says; its name may be gone meanwhile."""
        said = self.layout.get(image.digest).get("mediaType") or self.layout.entries().get(str(image.ref), {}).get(
            "mediaType"
        )
        return str(said or MANIFEST)

    # --- changing

    def put_layer(
        self,
        archive: Path,
        *,
        digest: str | None = None,
        diff_id: str | None = None,
        media_type: str = LAYER_TAR,
        bounds: Bounds | None = None,
    ) -> Layer:
        """Unpack `archive`, which becomes the blob (it is moved, so it lies on the store's disk); return its layer.

        Raises TareError, with nothing left behind, when it is hostile, damaged, too large for the disk,
        or not what `digest` (of the archive) and `diff_id` (of its content) promise.
        """
        with self.partial() as work:
            made = self.unpack_layer(
                archive, work / "layer", digest=digest, diff_id=diff_id, media_type=media_type, bounds=bounds
            )
            with self.exclusive():
                self._keep([made])
        return Layer(made.diff_id, self._layer_directory(made.diff_id) / "fs")

    def unpack_layer(
        self,
        archive: Path,
        directory: Path,
        *,
        digest: str | None = None,
        diff_id: str | None = None,
        media_type: str = LAYER_TAR,
        bounds: Bounds | None = None,
    ) -> Made:
        """Unpack `archive` into the fresh `directory`, in a partial one; `admit` or `put_layer` keeps it.

        Raises TareError when it is hostile, damaged, too large for the disk, or not what is promised.
        """
        from runtime.images.layers import Bounds, unpack

        with room_for(f"layer {digest or archive.name}", self.directory):
            directory.mkdir(mode=0o700)
            (directory / "fs").mkdir(mode=0o755)
            with self._opened(archive, digest) as blob:
                found = unpack(blob, directory / "fs", media_type=media_type, bounds=bounds or Bounds())
            for promised, seen, what in ((digest, found.digest, "content"), (diff_id, found.diff_id, "diff id")):
                if promised is not None and promised != seen:
                    raise TareError(f"layer {promised}", f"its {what} is {seen}", "it is damaged: get it again")
            if found.implied:
                (directory / "implied").write_text(json.dumps(found.implied))
            return Made(directory, archive, found.digest, found.diff_id)

    def admit(
        self,
        ref: ImageRef,
        document: bytes,
        media_type: str,
        config: bytes,
        made: Sequence[Made] = (),
        *,
        also_digest: str | None = None,
    ) -> Image:
        """Let `ref` mean the image of this manifest and configuration, whose new layers are `made`.

        The bytes are kept as they are; `also_digest` is a further digest the image is known by (an index's).
        Raises TareError when a layer that the manifest names is neither `made` nor here.
        """
        with self.exclusive(), room_for(f"image {ref}", self.directory):
            self._keep(made)
            parsed = json.loads(document)
            missing = [layer["digest"] for layer in parsed["layers"] if not self.layout.blob(layer["digest"]).exists()]
            diff_ids = json.loads(config)["rootfs"]["diff_ids"]
            missing += [layer.digest for layer in self.layers(diff_ids) if not layer.directory.is_dir()]
            if missing:
                raise TareError(f"image {ref}", f"layer {missing[0]} went away meanwhile", "try again")
            self._fit(diff_ids)
            self.layout.put_bytes(config, CONFIG)
            self.layout.name(str(familiar(ref)), self.layout.put_bytes(document, media_type), also_digest=also_digest)
        return self.resolve(ref)

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
            "architecture": architecture(),
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
            blobs = [self._blob_descriptor(layer.digest) for layer in layers]
            return self.compose(ref, config, blobs)

    def compose(
        self, ref: ImageRef, config: Mapping[str, Any], blobs: Sequence[Descriptor], *, made: Sequence[Made] = ()
    ) -> Image:
        """Make `ref` an image of this configuration and these layers' blobs, all of them `made` or here."""
        with self.exclusive(), room_for(f"image {ref}", self.directory):
            self._keep(made)
            document = manifest(self.layout.put(config, CONFIG), blobs)
            self._fit(config["rootfs"]["diff_ids"])
            self.layout.name(str(familiar(ref)), self.layout.put(document, MANIFEST))
        return self.resolve(ref)

    def tag(self, image: Image, ref: ImageRef) -> None:
        """Give `image` a further name. Raises UsageError for a name with a digest, which only content has."""
        if ref.digest is not None:
            raise UsageError(f"image {ref}", "a tag cannot have a digest", "use NAME[:TAG]")
        with self.exclusive(), room_for(f"image {ref}", self.directory):
            entry = self.layout.entries().get(str(image.ref))
            if entry is None or entry.get("digest") != image.digest:
                raise TareError(f"image {image.ref}", "not on this host", "see: tare images")
            self.layout.name(str(familiar(ref)), {key: entry[key] for key in ("mediaType", "digest", "size")})

    def remove(self, ref: ImageRef) -> None:
        """Forget `ref`; its layers stay until a sweep. Raises TareError when there is no such image."""
        with self.exclusive(), room_for(f"image {ref}", self.directory):
            name = str(familiar(ref))
            if name not in self.layout.entries():
                raise TareError(f"image {ref}", "not on this host", "see: tare images")
            self.layout.forget(name)

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
            gone = collect.sweep_partial(self.directory)
            if unneeded:
                gone += collect.collect(self)
            return [f"image data {path}" for path in gone]
        except BlockingIOError:
            return []
        finally:
            os.close(fd)

    def holds(self, digest: str, diff_id: str) -> bool:
        """Whether the blob `digest` is here, and is known to unpack to the layer `diff_id`, which is here as well.

        That both are here is not enough: a configuration could claim any layer of this host for its image's.
        """
        directory = self._layer_directory(diff_id)
        if not ((directory / "fs").is_dir() and self.layout.blob(digest).exists()):
            return False
        return digest == diff_id or (directory / f"from-{hex_of(digest)}").exists()

    def implied(self, diff_id: str) -> list[str]:
        """The directories that the layer takes for granted."""
        try:
            return list(json.loads((self._layer_directory(diff_id) / "implied").read_text()))
        except FileNotFoundError:
            return []

    def _fit(self, diff_ids: Sequence[str]) -> None:
        """Make the variants of layers that need one on the layers below them."""
        from runtime.images import adapt

        for number, (diff_id, chain_id) in enumerate(zip(diff_ids, chain_ids(diff_ids), strict=True)):
            implied = self.implied(diff_id) if number else []
            lower = [layer.directory for layer in self.layers(diff_ids[:number])]
            variant = self._layer_directory(chain_id)
            if variant.is_dir() or not adapt.needed(implied, lower):
                continue
            with self.partial() as work:
                (work / "layer").mkdir(mode=0o700)
                adapt.adapt(self._layer_directory(diff_id) / "fs", implied, lower, work / "layer" / "fs")
                self._sync()
                _place(work / "layer", variant)

    def _keep(self, made: Sequence[Made]) -> None:
        """Give finished layers and their blobs their names, their content being on the disk before."""
        self.layout.create()
        if made:
            self._sync()
        for layer in made:
            if not self._layer_directory(layer.diff_id).exists():
                _place(layer.directory, self._layer_directory(layer.diff_id))
            if layer.digest != layer.diff_id:
                (self._layer_directory(layer.diff_id) / f"from-{hex_of(layer.digest)}").touch()
            try:
                layer.archive.replace(self.layout.blob(layer.digest))
            except FileNotFoundError:
                if not self.layout.blob(layer.digest).exists():  # else another process was faster with the same file
                    raise

    def _opened(self, archive: Path, digest: str | None) -> IO[bytes]:
        """The archive, or the blob that another process has made of it meanwhile."""
        try:
            return archive.open("rb")
        except FileNotFoundError:
            if digest is None:
                raise
            return self.layout.blob(digest).open("rb")

    def _image(self, ref: ImageRef, digest: str) -> Image:
        document = self.layout.get(digest)
        config = self.layout.get(str(document["config"]["digest"]))
        layers = self.layers(config["rootfs"]["diff_ids"])
        missing = next((layer for layer in layers if not layer.directory.is_dir()), None)
        if missing is not None:
            raise TareError(f"image {ref}", f"layer {missing.digest} is missing", _AGAIN)
        return Image(ref, digest, layers, config, str(document["config"]["digest"]))

    def _blob_descriptor(self, digest: str) -> Descriptor:
        return {"mediaType": LAYER_TAR, "digest": digest, "size": self.layout.blob(digest).stat().st_size}

    def _layer_directory(self, digest: str) -> Path:
        return self.directory / "layers" / hex_of(digest)

    def _sync(self) -> None:
        from runtime.command import run

        run(["sync", "--file-system", str(self.directory)], timeout_s=600)


def _is_meant(text: str, image: Image) -> bool:
    wanted = text.removeprefix("sha256:")
    return hex_of(image.id).startswith(wanted) or hex_of(image.digest).startswith(wanted)


def _place(made: Path, final: Path) -> None:
    final.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    made.rename(final)


def _disk_bytes(image: Image) -> int:
    from runtime.images.disk import DEFAULT_BYTES

    said = image.labels.get(MACHINE_BYTES_LABEL, "")
    # A stranger's image may say anything, and must not keep the store from being swept.
    return int(said) if said.isascii() and said.isdigit() and len(said) < 16 else DEFAULT_BYTES

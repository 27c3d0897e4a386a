"""Images written into one archive, for other hosts and other tools. Not for reading one (`archives.py`).

`oci` keeps every byte, and so every digest; a manifest.json beside the layout lets engines before 25 load it.
`docker` is what `docker save` of those engines writes: plain layers, an image's id stays, its digest does not.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from runtime.errors import TareError
from runtime.images.layout import COMPRESSION, INDEX, hex_of, room_for
from runtime.images.progress import Say, silent
from runtime.images.store import Image, ImageStore
from runtime.images.stream import CHUNK_BYTES, Feed, RefusedError

FORMATS = ("oci", "docker")
_LIMIT_BYTES = 1 << 50
_REF_NAME = "org.opencontainers.image.ref.name"
_IMAGE_NAME = "io.containerd.image.name"


def save(
    store: ImageStore, images: Sequence[Image], target: IO[bytes], *, form: str = "oci", say: Say = silent
) -> None:
    """Write `images` to `target`, which need not be seekable.

    Raises TareError when a blob in the store is not what its digest says; what is written then is no archive.
    """
    with tarfile.open(fileobj=target, mode="w|", format=tarfile.PAX_FORMAT, bufsize=1 << 20) as tar:
        saving = _Saving(store, tar, say)
        if form == "oci":
            saving.oci(images)
        else:
            saving.docker(images)


class _Saving:
    """One archive being written; what several images share is written once."""

    def __init__(self, store: ImageStore, tar: tarfile.TarFile, say: Say) -> None:
        self._store, self._tar, self._say = store, tar, say
        self._written: set[str] = set()

    def oci(self, images: Sequence[Image]) -> None:
        """An OCI layout, as Docker 25 and later save as well."""
        entries, listed = [], []
        self._bytes("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        for image in images:
            document = self._store.layout.get(image.digest)
            for blob in (*document["layers"], document["config"]):
                self._blob(blob["digest"])
            self._blob(image.digest)
            kind = self._store.media_type(image)
            size_bytes = self._store.layout.blob(image.digest).stat().st_size
            names = {_REF_NAME: str(image.ref), _IMAGE_NAME: str(image.ref)}
            entries.append({"mediaType": kind, "digest": image.digest, "size": size_bytes, "annotations": names})
            layers = [_blob_name(layer["digest"]) for layer in document["layers"]]
            listed.append(_listed(image, _blob_name(image.id), layers))
        self._json("index.json", {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries})
        self._json("manifest.json", listed)

    def docker(self, images: Sequence[Image]) -> None:
        """A docker-archive: configurations, plain layers, manifest.json and repositories."""
        listed: list[dict[str, Any]] = []
        repositories: dict[str, dict[str, str]] = {}
        for image in images:
            document = self._store.layout.get(image.digest)
            for layer, described in zip(document["layers"], image.layers, strict=True):
                self._plain_layer(layer["digest"], COMPRESSION[layer["mediaType"]], described.digest)
            config = f"{hex_of(image.id)}.json"
            if config not in self._written:
                self._bytes(config, self._store.layout.blob(image.id).read_bytes())
            layers = [f"{hex_of(layer.digest)}/layer.tar" for layer in image.layers]
            listed.append(_listed(image, config, layers))
            name, _, tag = _tag(image).rpartition(":")
            if image.layers:
                repositories.setdefault(name, {})[tag] = hex_of(image.layers[-1].digest)
        self._json("manifest.json", listed)
        self._json("repositories", repositories)

    def _plain_layer(self, digest: str, compression: str, diff_id: str) -> None:
        name = f"{hex_of(diff_id)}/layer.tar"
        if name in self._written:
            return
        self._say(f"writing layer {diff_id[:19]}")
        path = self._store.layout.blob(digest)
        if not compression:
            with path.open("rb") as source:
                self._file(name, source, path.stat().st_size)
            return
        with self._store.partial() as work, room_for("saving images", self._store.directory):
            _decompress(path, compression, work / "layer.tar", diff_id)
            with (work / "layer.tar").open("rb") as source:
                self._file(name, source, (work / "layer.tar").stat().st_size)

    def _blob(self, digest: str) -> None:
        path = self._store.layout.blob(digest)
        name = _blob_name(digest)
        if name not in self._written:
            try:
                with path.open("rb") as source:
                    self._file(name, source, path.stat().st_size)
            except FileNotFoundError:
                raise TareError(f"blob {digest}", "missing from the store", "get the image again") from None

    def _json(self, name: str, value: object) -> None:
        self._bytes(name, json.dumps(value, sort_keys=True, separators=(",", ":")).encode())

    def _bytes(self, name: str, data: bytes) -> None:
        self._file(name, io.BytesIO(data), len(data))

    def _file(self, name: str, source: IO[bytes], size_bytes: int) -> None:
        self._written.add(name)
        member = tarfile.TarInfo(name)
        member.size, member.mode = size_bytes, 0o644
        self._tar.addfile(member, source)


def _decompress(path: Path, compression: str, target: Path, diff_id: str) -> None:
    """Write the content of a blob. Raises TareError when it is not the layer it is taken for."""
    try:
        with path.open("rb") as blob, Feed(blob, compression, _LIMIT_BYTES) as feed, target.open("wb") as plain:
            while part := feed.some(CHUNK_BYTES):
                plain.write(part)
            found = feed.digests()[1]
    except RefusedError as error:
        raise TareError(f"layer {diff_id}", str(error), "get the image again") from error
    if found != diff_id:
        raise TareError(f"layer {diff_id}", f"its content is {found}", "get the image again")


def _listed(image: Image, config: str, layers: Sequence[str]) -> dict[str, Any]:
    """An image's entry in manifest.json."""
    return {"Config": config, "RepoTags": [_tag(image)], "Layers": list(layers)}


def _tag(image: Image) -> str:
    """The image's name without a digest, as engines want it."""
    return str(image.ref).partition("@")[0]


def _blob_name(digest: str) -> str:
    return f"blobs/sha256/{hex_of(digest)}"

"""Images out of files and into files: OCI archives and layouts, docker-archives of old and new engines.

Loading believes nothing: every digest is computed, every member comes through the layer unpacker. Not for
root file systems without a configuration (`authoring.py`). Formats: OCI image-spec 1.1, image-layout.md;
`docker save` as engines since 1.10 write it (manifest.json), including the layout that those since 25 add.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from runtime.errors import TareError
from runtime.images.bundle import ARCHIVE_BYTES, Bundle, document, opened
from runtime.images.layout import (
    CONFIG,
    DOCKER_INDEX,
    GZIP,
    INDEX,
    LAYER_GZIP,
    LAYER_TAR,
    LAYER_ZSTD,
    MANIFEST,
    ZSTD,
    Descriptor,
    digest_of,
    hex_of,
    manifest,
    room_for,
)
from runtime.images.progress import Say, silent
from runtime.images.pull import Platform
from runtime.images.registry import checked_config, checked_manifest, parse_object
from runtime.images.store import Image, ImageStore, Made
from runtime.images.stream import CHUNK_BYTES, compression_of
from runtime.spec import ImageRef

_LAYER_TYPES = {"": LAYER_TAR, GZIP: LAYER_GZIP, ZSTD: LAYER_ZSTD}
_REF_NAME = "org.opencontainers.image.ref.name"
_IMAGE_NAME = "io.containerd.image.name"
_WHAT = "archive of images"
_DAMAGED = "the archive is damaged: make it again"


def load(
    store: ImageStore,
    source: Path | IO[bytes],
    *,
    ref: ImageRef | None = None,
    say: Say = silent,
    limit_bytes: int = ARCHIVE_BYTES,
) -> list[Image]:
    """Take in every image of an archive (a file, an OCI layout's directory, or a stream); return them, named.

    An image that the archive gives no name takes `ref`, or `sha256` and the beginning of its id. Raises TareError
    when it is damaged, hostile, no archive of images or, decompressed, more than `limit_bytes`; images before the
    bad one may have come in.
    """
    with (
        store.partial() as work,
        room_for("loading images", store.directory),
        opened(source, work, limit_bytes) as bundle,
    ):
        loading = _Loading(store, bundle, work, ref, say)
        if bundle.has("index.json"):  # first: beside a layout, manifest.json says the same and knows no digests
            return loading.layout(parse_object(document(bundle, "index.json"), _WHAT))
        if bundle.has("manifest.json"):
            return loading.docker(_list(bundle, "manifest.json"))
        if bundle.has("repositories"):
            raise TareError(_WHAT, "written by an engine before 1.10, without digests", "save it with a newer one")
        raise TareError(_WHAT, "neither a manifest.json nor an index.json", "use tare import for a root file system")


def _list(bundle: Bundle, name: str) -> list[dict[str, Any]]:
    try:
        entries = json.loads(document(bundle, name))
    except (ValueError, RecursionError) as error:
        raise TareError(_WHAT, f"{name} is not JSON: {error}", _DAMAGED) from error
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise TareError(_WHAT, f"{name} lists no images", _DAMAGED)
    return entries


class _Loading:
    """One archive being taken in; layers that several images share are unpacked once."""

    def __init__(self, store: ImageStore, bundle: Bundle, work: Path, ref: ImageRef | None, say: Say) -> None:
        self._store, self._bundle, self._work, self._ref, self._say = store, bundle, work, ref, say
        self._done: dict[str, Descriptor] = {}  # by the member's name and its diff id: layers that are in the store
        self._number = 0

    # --- docker-archive

    def docker(self, entries: Sequence[dict[str, Any]]) -> list[Image]:
        """The images of a manifest.json."""
        return [image for entry in entries for image in self._docker_image(entry)]

    def _docker_image(self, entry: dict[str, Any]) -> list[Image]:
        config_name, members, tags = entry.get("Config"), entry.get("Layers") or [], entry.get("RepoTags") or []
        if not isinstance(config_name, str) or not all(isinstance(name, str) for name in (*members, *tags)):
            raise TareError(_WHAT, "manifest.json is incomplete", _DAMAGED)
        data = document(self._bundle, config_name)
        promised = config_name.rpartition("/")[2].removesuffix(".json")
        if len(promised) == 64 and f"sha256:{promised}" != digest_of(data):
            raise TareError(_WHAT, f"configuration {config_name[:90]} is {digest_of(data)}", _DAMAGED)
        diff_ids = checked_config(data, len(members), _WHAT)["rootfs"]["diff_ids"]
        made: list[Made] = []
        layers = [self._member(*pair, made) for pair in zip(members, diff_ids, strict=True)]
        config = {"mediaType": CONFIG, "digest": digest_of(data), "size": len(data)}
        text = json.dumps(manifest(config, layers), sort_keys=True, separators=(",", ":")).encode()
        return self._admit(self._names(tags, digest_of(data)), text, MANIFEST, data, made)

    def _member(self, name: str, diff_id: str, made: list[Made]) -> Descriptor:
        """A layer by its member's name; whatever it is compressed with, `diff_id` is what it must contain."""
        key = f"{name} {diff_id}"  # another image may say that the same bytes are another layer: to be refused
        if key not in self._done:
            path, compression = self._copied(name)
            layer = self._unpack(path, _LAYER_TYPES[compression], None, diff_id)
            made.append(layer)
            kind = _LAYER_TYPES[compression]
            self._done[key] = {"mediaType": kind, "digest": layer.digest, "size": path.stat().st_size}
        return self._done[key]

    # --- OCI

    def layout(self, index: dict[str, Any]) -> list[Image]:
        """The images of an OCI layout's index that run here."""
        images = []
        for entry in self._entries(index):
            annotations = entry.get("annotations") or {}
            found = self._oci_image(entry, depth=0)
            if found is not None:
                text, kind, config, made = found
                said = annotations.get(_IMAGE_NAME) or annotations.get(_REF_NAME)
                config_digest = parse_object(text, _WHAT)["config"]["digest"]
                images += self._admit(self._names([said] if said else [], config_digest), text, kind, config, made)
        if not images:
            raise TareError(_WHAT, f"no image for {Platform.here()} in it", "is it for another machine?")
        return images

    def _entries(self, index: dict[str, Any]) -> list[dict[str, Any]]:
        entries = index.get("manifests")
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise TareError(_WHAT, "its index lists no images", _DAMAGED)
        return entries

    def _oci_image(self, entry: dict[str, Any], depth: int) -> tuple[bytes, str, bytes, list[Made]] | None:
        """(manifest, its type, configuration, layers) behind an entry; None when it is not for this platform."""
        platform = entry.get("platform")
        if isinstance(platform, dict) and not Platform.here().fits(platform):
            return None
        text = self._blob(str(entry.get("digest")))
        parsed = parse_object(text, _WHAT)
        if "manifests" in parsed and parsed.get("mediaType", INDEX) in (INDEX, DOCKER_INDEX) and depth < 3:
            inner = (self._oci_image(inner, depth + 1) for inner in self._entries(parsed))
            return next((found for found in inner if found is not None), None)
        config_descriptor, layers = checked_manifest(parsed, _WHAT)
        config = self._blob(config_descriptor["digest"])
        diff_ids = checked_config(config, len(layers), _WHAT)["rootfs"]["diff_ids"]
        made = []
        for layer, diff_id in zip(layers, diff_ids, strict=True):
            key = f"{layer['digest']} {diff_id}"
            if key not in self._done:
                path, _ = self._copied(_blob_name(layer["digest"]))
                made.append(self._unpack(path, layer["mediaType"], layer["digest"], diff_id))
                self._done[key] = layer
        return text, str(parsed.get("mediaType") or MANIFEST), config, made

    def _blob(self, digest: str) -> bytes:
        data = document(self._bundle, _blob_name(digest))
        if digest_of(data) != digest:
            raise TareError(_WHAT, f"blob {digest} is {digest_of(data)}", _DAMAGED)
        return data

    # --- both

    def _copied(self, name: str) -> tuple[Path, str]:
        """A member as a file beside the store, and what it is compressed with."""
        self._number += 1
        path = self._work / f"{self._number}.blob"
        with self._bundle.open(name) as source, path.open("wb") as target:
            head = source.read(CHUNK_BYTES)
            target.write(head)
            shutil.copyfileobj(source, target, CHUNK_BYTES)
        return path, compression_of(head)

    def _unpack(self, path: Path, media_type: str, digest: str | None, diff_id: str) -> Made:
        self._say(f"unpacking layer {diff_id[:19]}, {path.stat().st_size / 2**20:.1f} MiB")
        directory = self._work / f"{self._number}.layer"
        return self._store.unpack_layer(path, directory, digest=digest, diff_id=diff_id, media_type=media_type)

    def _names(self, said: Sequence[str], image_id: str) -> list[ImageRef]:
        if self._ref is not None:
            return [self._ref]
        refs = [ImageRef.parse(name if "/" in name or ":" in name else f"loaded:{name}") for name in said]
        return refs or [ImageRef(name="sha256", tag=hex_of(image_id)[:12])]

    def _admit(
        self, refs: Sequence[ImageRef], text: bytes, kind: str, config: bytes, made: Sequence[Made]
    ) -> list[Image]:
        first = self._store.admit(refs[0], text, kind, config, made)
        for ref in refs[1:]:
            self._store.tag(first, ref)
        return [self._store.resolve(ref) for ref in refs]


def _blob_name(digest: str) -> str:
    return f"blobs/sha256/{hex_of(digest)}"

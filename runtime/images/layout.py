"""The OCI image layout on disk: content-addressed blobs, an index of references, and the documents between.

Knows nothing of file systems inside layers (`layers.py`) nor of where they are unpacked (`store.py`).
Format: OCI image-spec 1.1, image-layout.md, manifest.md, config.md.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runtime.errors import TareError

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER_TAR = "application/vnd.oci.image.layer.v1.tar"
LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
LAYER_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"

# How the bytes of a layer are compressed, by its media type.
GZIP, ZSTD = "gzip", "zstd"
COMPRESSION = {
    LAYER_TAR: "",
    LAYER_GZIP: GZIP,
    LAYER_ZSTD: ZSTD,
    "application/vnd.oci.image.layer.nondistributable.v1.tar": "",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip": GZIP,
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd": ZSTD,
    "application/vnd.docker.image.rootfs.diff.tar": "",
    DOCKER_LAYER: GZIP,
    "application/vnd.docker.image.rootfs.diff.tar.zstd": ZSTD,
    "application/vnd.docker.image.rootfs.foreign.diff.tar": "",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip": GZIP,
}

ALSO_DIGEST = "org.tare.index.digest"
_REF_NAME = "org.opencontainers.image.ref.name"
_RESERVE_BYTES = 64 << 10  # room for an index when there is no other
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_DOCUMENT_BYTES = 4 << 20  # what the specification asks a registry to accept at least; ours are under 2 KiB

Descriptor = dict[str, Any]


def hex_of(digest: str) -> str:
    """The 64 hex digits of a `sha256:…` digest; raises TareError for anything else, as it becomes a file name."""
    if _DIGEST.fullmatch(digest) is None:
        raise TareError(f"digest {digest[:80]!r}", "not a sha256 digest", "the image is damaged: build it again")
    return digest.removeprefix("sha256:")


def digest_of(data: bytes) -> str:
    """The `sha256:…` digest of `data`."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def architecture() -> str:
    """This machine's architecture, in the words of the specification."""
    machine = os.uname().machine
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)


def chain_ids(diff_ids: Sequence[str]) -> list[str]:
    """For each layer the digest that stands for it and all below it (OCI image-spec, config.md, ChainID)."""
    chain: list[str] = []
    for diff_id in diff_ids:
        chain.append(digest_of(f"{chain[-1]} {diff_id}".encode()) if chain else diff_id)
    return chain


def is_full(error: BaseException | None) -> bool:
    """Whether an error says that a disk, or what somebody may use of it, is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def room_for(what: str, where: Path) -> Iterator[None]:
    """Turn a full disk, met anywhere inside, into a sentence."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        raise TareError(what, f"no space left below {where}", "free some, or move the state with --root DIR") from error


def write_durably(path: Path, data: bytes) -> None:
    """Replace `path` by `data` so that a crash leaves the old content or the new, never a part."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with fresh.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


class Layout:
    """One OCI image layout. Writers hold the store's lock; readers need none, as every file appears whole."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def create(self) -> None:
        """Make the directories and the marker file, where they are missing."""
        (self.directory / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
        reserve = self.directory / "reserve"
        if not reserve.exists():
            reserve.write_bytes(os.urandom(_RESERVE_BYTES))  # zeros may take no room
        marker = self.directory / "oci-layout"
        if not marker.exists():
            write_durably(marker, b'{"imageLayoutVersion":"1.0.0"}')

    def blob(self, digest: str) -> Path:
        """Where the blob with this digest lies or would lie."""
        return self.directory / "blobs" / "sha256" / hex_of(digest)

    def put(self, document: object, media_type: str) -> Descriptor:
        """Store a JSON document in its canonical form and return its descriptor."""
        return self.put_bytes(json.dumps(document, sort_keys=True, separators=(",", ":")).encode(), media_type)

    def put_bytes(self, data: bytes, media_type: str) -> Descriptor:
        """Store a document as it is and return its descriptor."""
        digest = digest_of(data)
        if not self.blob(digest).exists():
            write_durably(self.blob(digest), data)
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    def get(self, digest: str) -> dict[str, Any]:
        """The JSON document with this digest, verified.

        Raises TareError when it is missing, oversized, not what its digest says, or no JSON object.
        """
        damaged = "the image is damaged: build it again"
        try:
            with self.blob(digest).open("rb") as file:
                data = file.read(_DOCUMENT_BYTES + 1)
        except FileNotFoundError:
            raise TareError(f"blob {digest}", "missing from the store", damaged) from None
        if len(data) > _DOCUMENT_BYTES or digest_of(data) != digest:
            raise TareError(f"blob {digest}", "its content is not what its digest says", damaged)
        return _object(data, f"blob {digest}")

    def manifests(self) -> list[Descriptor]:
        """The index: a descriptor per reference. Empty when nothing was ever stored."""
        try:
            data = (self.directory / "index.json").read_bytes()
        except FileNotFoundError:
            return []
        found = _object(data, f"index {self.directory / 'index.json'}").get("manifests", [])
        return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []

    def entries(self) -> dict[str, Descriptor]:
        """The index's descriptor by reference name, sorted by name."""
        named = ((entry.get("annotations", {}).get(_REF_NAME), entry) for entry in self.manifests())
        return dict(sorted((str(name), entry) for name, entry in named if name and entry.get("digest")))

    def references(self) -> dict[str, str]:
        """Manifest digest by reference name, sorted by name."""
        return {name: str(entry["digest"]) for name, entry in self.entries().items()}

    def forget(self, reference: str) -> None:
        """Let `reference` mean nothing any more, on a full disk as well: that is when people remove images."""
        try:
            self.name(reference, None)
        except OSError as error:
            if not is_full(error):
                raise
            (self.directory / "reserve").unlink(missing_ok=True)  # `create` makes it anew
            self.name(reference, None)

    def name(self, reference: str, descriptor: Descriptor | None, *, also_digest: str | None = None) -> None:
        """Let `reference` mean this manifest from now on; None forgets the reference.

        `also_digest` is noted as a further digest of the same image, the index's that it was chosen from.
        """
        kept = [entry for entry in self.manifests() if entry.get("annotations", {}).get(_REF_NAME) != reference]
        if descriptor is not None:
            also = {ALSO_DIGEST: also_digest} if also_digest else {}
            kept.append({**descriptor, "annotations": {_REF_NAME: reference, **also}})
        kept.sort(key=lambda entry: str(entry.get("annotations")))
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": kept}
        write_durably(self.directory / "index.json", json.dumps(index, sort_keys=True, indent=1).encode())


def manifest(config: Descriptor, layers: Sequence[Descriptor]) -> dict[str, Any]:
    """An image manifest document."""
    return {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": list(layers)}


def _object(data: bytes, what: str) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except ValueError as error:
        raise TareError(what, f"not JSON: {error}", "the image is damaged: build it again") from error
    if not isinstance(document, dict):
        raise TareError(what, "not a JSON object", "the image is damaged: build it again")
    return document

"""One repository of a registry: its documents, its blobs to read, and what is already there.

Every byte is checked against size and digest before it is believed. Not for what pulling and pushing whole
images takes (`pull.py`, `push.py`). Formats: OCI distribution-spec 1.1; Docker registry v2, schema 2.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from runtime.errors import TareError, printable
from runtime.images.layout import (
    COMPRESSION,
    CONFIG,
    DOCKER_CONFIG,
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    INDEX,
    MANIFEST,
    Descriptor,
    digest_of,
    hex_of,
)
from runtime.images.transport import BROKEN, Body, Transport

DOCUMENT_BYTES = 4 << 20  # what the specification asks a registry to accept at least
_SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1"
_ACCEPT = f"{INDEX}, {DOCKER_INDEX}, {MANIFEST}, {DOCKER_MANIFEST}"
_DAMAGED = "the registry is damaged or lying: do not use it"


@dataclass(frozen=True, slots=True)
class Document:
    """A manifest or an index: its bytes as they were, what they are, and their digest."""

    data: bytes
    media_type: str
    digest: str

    @property
    def is_index(self) -> bool:
        """Whether it lists manifests of several platforms."""
        return self.media_type in (INDEX, DOCKER_INDEX)

    def parsed(self) -> dict[str, Any]:
        """The document. Raises TareError when it is no JSON object."""
        return parse_object(self.data, f"manifest {self.digest}")


class Repository:
    """A repository's name at a registry."""

    def __init__(self, transport: Transport, name: str, *, actions: str = "pull") -> None:
        self.transport, self.name = transport, name
        self.scope = f"repository:{name}:{actions}"

    def __str__(self) -> str:
        return f"{self.transport.registry}/{self.name}"

    def document(self, reference: str) -> Document:
        """The manifest or index with this tag or digest.

        Raises TareError when there is none, it is too large, of a kind that is not supported, or not what a
        digest (ours or the registry's own header) says.
        """
        what = f"image {self}{'@' if reference.startswith('sha256:') else ':'}{reference}"
        with self.ask("GET", f"manifests/{reference}", headers={"Accept": _ACCEPT}) as response:
            self._expect(response, what, 200)
            data = _read(response, what, DOCUMENT_BYTES)
            header = response.headers.get("Docker-Content-Digest")
            media_type = response.headers.get_content_type()
        digest = digest_of(data)
        promised = reference if reference.startswith("sha256:") else header
        if promised is not None and promised.startswith("sha256:") and promised != digest:
            raise TareError(what, f"its content is {digest}, not {promised}", _DAMAGED)
        return Document(data, _kind(parse_object(data, what), media_type, what), digest)

    def small_blob(self, descriptor: Descriptor, what: str) -> bytes:
        """A whole blob of at most DOCUMENT_BYTES. Raises TareError when it is not what the descriptor says."""
        size_bytes = descriptor["size"]
        if size_bytes > DOCUMENT_BYTES:
            raise TareError(what, f"{size_bytes} bytes are too many", _DAMAGED)
        for attempt in range(self.transport.access.attempts):
            try:
                with self.blob(descriptor["digest"]) as response:
                    self._expect(response, what, 200)
                    data = response.read(size_bytes + 1)
                break
            except BROKEN as error:
                if attempt == self.transport.access.attempts - 1:
                    raise TareError(what, f"the connection breaks: {error}", "try again later") from error
        if len(data) != size_bytes or digest_of(data) != descriptor["digest"]:
            raise TareError(what, f"its content is {digest_of(data)}, not what its manifest says", _DAMAGED)
        return data

    @contextmanager
    def blob(self, digest: str, offset: int = 0) -> Iterator[http.client.HTTPResponse]:
        """The response to a request for a blob, from `offset` on if the registry can (status 206)."""
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        with self.ask("GET", f"blobs/sha256:{hex_of(digest)}", headers=headers) as response:
            yield response

    @contextmanager
    def ask(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None, body: Body = None
    ) -> Iterator[http.client.HTTPResponse]:
        """A request about this repository; `path` is below it, or a whole URL that the registry gave."""
        url = path if "//" in path or path.startswith("/") else f"/v2/{quote(self.name)}/{path}"
        with self.transport.request(method, url, self.scope, headers=headers, body=body) as response:
            yield response

    def _expect(self, response: http.client.HTTPResponse, what: str, *statuses: int) -> None:
        expect(response, what, *statuses)


def expect(response: http.client.HTTPResponse, what: str, *statuses: int) -> None:
    """Raise TareError, with the registry's own words, for a status that is not wanted."""
    if response.status in statuses:
        return
    try:
        said = _words(response.read(4096))
    except BROKEN:
        said = ""
    if response.status == 404:
        raise TareError(what, f"the registry does not have it{said}", "is the name right?")
    if response.status in (401, 403):
        raise TareError(what, f"access denied{said}", "give --creds USER:PASSWORD of somebody who may")
    raise TareError(what, f"the registry answered {response.status} {response.reason}{said}", "try again later")


def parse_object(data: bytes, what: str) -> dict[str, Any]:
    """A JSON object. Raises TareError for anything else."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise TareError(what, f"not JSON: {error}", _DAMAGED) from error
    if not isinstance(document, dict):
        raise TareError(what, "not a JSON object", _DAMAGED)
    return document


def checked_manifest(document: Mapping[str, Any], what: str) -> tuple[Descriptor, list[Descriptor]]:
    """(configuration, layers) of an image's manifest.

    Raises TareError when a part is missing, of a wrong type, of a kind that is not supported, or no image's.
    """
    config, layers = document.get("config"), document.get("layers")
    if not isinstance(layers, list) or len(layers) > 1000:
        raise TareError(what, "its manifest has no list of layers", _DAMAGED)
    descriptors = [_descriptor(entry, what) for entry in (config, *layers)]
    if descriptors[0]["mediaType"] not in (CONFIG, DOCKER_CONFIG):
        why = f"it is no image but {descriptors[0]['mediaType'][:120]}"
        raise TareError(what, why, "only images can be run")
    for layer in descriptors[1:]:
        if layer["mediaType"] not in COMPRESSION:
            raise TareError(what, f"layers of type {layer['mediaType'][:120]!r} are not supported", "use tar layers")
    return descriptors[0], descriptors[1:]


def checked_config(data: bytes, layers: int, what: str) -> dict[str, Any]:
    """An image's configuration. Raises TareError when it does not fit a manifest of so many layers."""
    document = parse_object(data, what)
    rootfs = document.get("rootfs")
    diff_ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if not isinstance(diff_ids, list) or not all(isinstance(digest, str) for digest in diff_ids):
        raise TareError(what, "its configuration names no layers", _DAMAGED)
    if len(diff_ids) != layers:
        why = f"its configuration names {len(diff_ids)} layers, its manifest {layers}"
        raise TareError(what, why, _DAMAGED)
    for digest in diff_ids:
        hex_of(digest)
    wrong = _wrong_field(document)
    if wrong is not None:
        raise TareError(what, f"its configuration's {wrong} is of a wrong type", _DAMAGED)
    return document


def _wrong_field(document: Mapping[str, Any]) -> str | None:
    """The first field of a configuration that is there and not of its type (OCI image-spec, config.md)."""
    config, history = document.get("config"), document.get("history")
    if not isinstance(config, dict | None):
        return "config"
    if history is not None and not (isinstance(history, list) and all(isinstance(entry, dict) for entry in history)):
        return "history"
    if not all(isinstance(document.get(name), str | None) for name in ("os", "architecture", "variant", "created")):
        return "platform"
    for name, value in (config or {}).items():
        if value is None:
            continue
        if name in ("Env", "Cmd", "Entrypoint"):
            right = isinstance(value, list) and all(isinstance(word, str) for word in value)
        elif name in ("User", "WorkingDir", "StopSignal"):
            right = isinstance(value, str)
        elif name in ("Labels", "Volumes", "ExposedPorts"):
            right = isinstance(value, dict)
        else:
            continue
        if name == "Labels":
            right = right and all(isinstance(word, str) for word in value.values())
        if not right:
            return f"config.{name}"
    return None


def _descriptor(entry: object, what: str) -> Descriptor:
    if not isinstance(entry, dict):
        raise TareError(what, "its manifest is incomplete", _DAMAGED)
    media_type, digest, size_bytes = entry.get("mediaType"), entry.get("digest"), entry.get("size")
    if not (isinstance(media_type, str) and isinstance(digest, str) and isinstance(size_bytes, int)):
        raise TareError(what, "its manifest is incomplete", _DAMAGED)
    if isinstance(size_bytes, bool) or not 0 <= size_bytes < 1 << 50:
        raise TareError(what, "its manifest gives an impossible size", _DAMAGED)
    hex_of(digest)
    return entry


def _kind(document: Mapping[str, Any], header: str, what: str) -> str:
    """What a document is: its own word, else the header's. Raises TareError for what is not supported."""
    if document.get("schemaVersion") == 1 or header.startswith(_SCHEMA_1):
        raise TareError(
            what, "a manifest of schema 1, which is obsolete and insecure", "push it again with a newer tool"
        )
    said = document.get("mediaType")
    kind = said if isinstance(said, str) and said else header
    if isinstance(said, str) and said != header and header in (INDEX, DOCKER_INDEX, MANIFEST, DOCKER_MANIFEST):
        raise TareError(what, f"it is sent as {header} and says it is {said[:120]}", _DAMAGED)
    if kind not in (INDEX, DOCKER_INDEX, MANIFEST, DOCKER_MANIFEST):
        raise TareError(what, f"manifests of type {kind[:120]!r} are not supported", "use an OCI or a Docker image")
    if ("manifests" in document) == ("layers" in document):  # a document that can be read two ways is a trick
        raise TareError(what, "its manifest is neither an image's nor an index", _DAMAGED)
    return kind


def _read(response: http.client.HTTPResponse, what: str, limit_bytes: int) -> bytes:
    try:
        data = response.read(limit_bytes + 1)
    except BROKEN as error:
        raise TareError(what, f"the connection broke: {error}", "try again") from error
    if len(data) > limit_bytes:
        raise TareError(what, f"more than {limit_bytes >> 20} MiB", _DAMAGED)
    return data


def _words(body: bytes) -> str:
    """What a registry's error says, for people."""
    try:
        errors = json.loads(body)["errors"]
        words = "; ".join(str(error.get("message") or error.get("code")) for error in errors)
    except (ValueError, KeyError, TypeError, AttributeError):
        return ""
    return f": {printable(words)[:200]}" if words else ""

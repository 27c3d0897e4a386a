"""An image from the store to a registry: blobs that are missing there, mounted or uploaded, then the manifest.

The bytes are the store's own, so digests stay. Not for how a registry is spoken to (`registry.py`, `transport.py`).
"""

from __future__ import annotations

import http.client
import io
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlencode, urljoin

from runtime.errors import TareError
from runtime.images.layout import Descriptor
from runtime.images.progress import Progress, Say, silent
from runtime.images.reference import repository
from runtime.images.registry import Repository, expect
from runtime.images.store import Image, ImageStore
from runtime.images.transport import BROKEN, Access, Transport
from runtime.spec import ImageRef

CHUNK_BYTES = 32 << 20
_UPLOADS = 3
_RANGE = re.compile(r"(?:bytes=)?0-(\d+)")
_LIED = "the registry is damaged or lying: do not use it"


def push(store: ImageStore, image: Image, ref: ImageRef, access: Access | None = None, *, say: Say = silent) -> str:
    """Give the registry that `ref` names `image` under that name; return its digest.

    Raises TareError when the registry cannot be reached, refuses, or answers with another digest.
    """
    registry, name = repository(ref)
    with Transport(registry, access or Access()) as transport:
        return _push(store, image, ref, Repository(transport, name, actions="pull,push"), say)


def _push(store: ImageStore, image: Image, ref: ImageRef, target: Repository, say: Say) -> str:
    document = store.layout.get(image.digest)
    blobs = {blob["digest"]: blob for blob in (*document["layers"], document["config"])}
    progress = Progress(str(ref), sum(blob["size"] for blob in blobs.values()), say)
    pushing = _Push(store, target, progress)
    with ThreadPoolExecutor(_UPLOADS, "upload") as uploads:
        list(uploads.map(pushing.blob, blobs.values()))
    what = f"image {ref}"
    data = store.layout.blob(image.digest).read_bytes()
    headers = {"Content-Type": store.media_type(image)}
    with target.ask("PUT", f"manifests/{ref.tag}", headers=headers, body=data) as response:
        expect(response, what, 201, 200, 202)
        answered = response.headers.get("Docker-Content-Digest", image.digest)
    if answered != image.digest:
        raise TareError(what, f"the registry took it for {answered}", _LIED)
    say(f"{ref}: {pushing.sent_bytes / 2**20:.1f} MiB sent, digest {image.digest}")
    return image.digest


class _Push:
    """The blobs of one image on their way."""

    def __init__(self, store: ImageStore, target: Repository, progress: Progress) -> None:
        self._store, self._target, self._progress = store, target, progress
        self.sent_bytes = 0

    def blob(self, descriptor: Descriptor) -> None:
        """Let the registry have a blob, by the cheapest way that works."""
        digest, size_bytes = str(descriptor["digest"]), int(descriptor["size"])
        what = f"blob {digest[:19]} to {self._target}"
        with self._target.ask("HEAD", f"blobs/{digest}") as response:
            if response.status == 200:
                self._progress.had(size_bytes)
                return
            if response.status != 404:
                expect(response, what, 200)
        place = self._begin(digest, what)
        if place is None:
            self._progress.had(size_bytes)
            return
        path = self._store.layout.blob(digest)
        if size_bytes <= CHUNK_BYTES:
            self._finish(place, digest, what, path, size_bytes)
        else:
            self._finish(self._chunks(place, path, size_bytes, what), digest, what, None, 0)
        self.sent_bytes += size_bytes

    def _begin(self, digest: str, what: str) -> str | None:
        """Where to upload to; None when the registry had the blob in a repository next door and took it."""
        query: dict[str, str] = {}
        neighbour = self._neighbour(digest)
        if neighbour is not None:
            query = {"mount": digest, "from": neighbour}
        path = "blobs/uploads/" + (f"?{urlencode(query)}" if query else "")
        with self._target.ask("POST", path, headers={"Content-Length": "0"}) as response:
            expect(response, what, 201, 202)
            return None if response.status == 201 and query else self._place(response, "", what)

    def _neighbour(self, digest: str) -> str | None:
        """Another repository of this registry that one of our images with this blob is named after."""
        for name, entry in self._store.layout.entries().items():
            registry, repository_name = repository(ImageRef.parse(name))
            if registry != self._target.transport.registry or repository_name == self._target.name:
                continue
            document: dict[str, Any] = self._store.layout.get(str(entry["digest"]))
            if any(layer["digest"] == digest for layer in document["layers"]):
                return repository_name
        return None

    def _chunks(self, place: str, path: Path, size_bytes: int, what: str) -> str:
        """Upload in pieces, each tried again from where the registry says it is; return where to finish."""
        offset, tries = 0, 0
        while offset < size_bytes:
            length = min(CHUNK_BYTES, size_bytes - offset)
            headers = {
                "Content-Type": "application/octet-stream",
                "Content-Length": str(length),
                "Content-Range": f"{offset}-{offset + length - 1}",
            }
            try:
                with self._target.ask("PATCH", place, headers=headers, body=_part(path, offset, length)) as response:
                    if response.status == 202:
                        place, offset, tries = self._place(response, place, what), offset + length, 0
                        self._progress.add(length)
                        continue
                    if response.status != 416:
                        expect(response, what, 202)
            except BROKEN as error:
                if tries >= self._target.transport.access.attempts:
                    raise TareError(what, f"the connection breaks: {error}", "try again later") from error
            tries += 1
            if tries > self._target.transport.access.attempts:
                raise TareError(what, "the registry takes no part of it", "try again later")
            place, offset = self._status(place, what)
        return place

    def _status(self, place: str, what: str) -> tuple[str, int]:
        """(where to go on, how many bytes the registry has)."""
        with self._target.ask("GET", place) as response:
            expect(response, what, 204)
            match = _RANGE.fullmatch(response.headers.get("Range", ""))
            end = int(match.group(1)) if match else 0
            return self._place(response, place, what), end + 1 if end else 0

    def _finish(self, place: str, digest: str, what: str, path: Path | None, size_bytes: int) -> None:
        """Close the upload, with the whole content if `path` is given."""
        url = f"{place}{'&' if '?' in place else '?'}{urlencode({'digest': digest})}"
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size_bytes)}
        body = _part(path, 0, size_bytes) if path is not None else None
        with self._target.ask("PUT", url, headers=headers, body=body) as response:
            expect(response, what, 201, 204)
            answered = response.headers.get("Docker-Content-Digest", digest)
        if answered != digest:
            raise TareError(what, f"the registry took it for {answered}", _LIED)
        self._progress.add(size_bytes)

    def _place(self, response: http.client.HTTPResponse, before: str, what: str) -> str:
        place = response.headers.get("Location")
        if not place and not before:
            raise TareError(what, "the registry does not say where to upload to", "it does not speak the protocol")
        return urljoin(urljoin(self._target.transport.base, before), place) if place else before


def _part(path: Path, offset: int, length: int) -> Any:
    """A body that can be sent more than once: `length` bytes of the file from `offset`."""

    def opened() -> IO[bytes]:
        return _Part(path, offset, length)  # type: ignore[return-value]

    return opened


class _Part(io.RawIOBase):
    """A part of a file, as a stream."""

    def __init__(self, path: Path, offset: int, length: int) -> None:
        super().__init__()
        self._file, self._left = path.open("rb"), length
        self._file.seek(offset)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(data)
        return data

    def close(self) -> None:
        self._file.close()
        super().close()

    def __iter__(self) -> Iterator[bytes]:
        while data := self.read(1 << 18):
            yield data

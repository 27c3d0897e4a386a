"""An image from a registry into the store: the right platform's, layers in parallel, resumed where a crash stopped it.

Bytes are checked against size and digest as they arrive, and again as they are unpacked. Not for how a registry
is spoken to (`registry.py`, `transport.py`).
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.errors import TareError, UsageError
from runtime.images.arrival import Arrival, arrival
from runtime.images.layout import Descriptor, architecture, hex_of, is_full, room_for
from runtime.images.progress import Progress, Say, silent
from runtime.images.reference import familiar, repository
from runtime.images.registry import Document, Repository, checked_config, checked_manifest, expect
from runtime.images.store import Image, ImageStore, Made
from runtime.images.transport import BROKEN, Access, Transport
from runtime.spec import ImageRef

_DOWNLOADS, _UNPACKERS = 3, 2
_CHUNK_BYTES = 1 << 18
_LIED = "the registry is damaged or lying: do not use it"
_RANGE = re.compile(r"bytes (\d+)-\d+/(?:\d+|\*)")


@dataclass(frozen=True, slots=True)
class Platform:
    """What an image must run on."""

    os: str = "linux"
    architecture: str = ""
    variant: str = ""

    @classmethod
    def parse(cls, text: str) -> Platform:
        """`OS/ARCHITECTURE[/VARIANT]`. Raises UsageError for anything else."""
        parts = text.split("/")
        if not 2 <= len(parts) <= 3 or not all(parts):
            raise UsageError(f"platform {text!r}", "not a platform", "write it like linux/amd64")
        return cls(*parts)

    @classmethod
    def here(cls) -> Platform:
        """This machine's."""
        return cls("linux", architecture())

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)

    def fits(self, described: Mapping[str, Any]) -> bool:
        """Whether an image so described runs here; what it leaves open, fits."""
        same = (described.get("os"), described.get("architecture")) == (self.os, self.architecture)
        return same and (not self.variant or described.get("variant") in (None, "", self.variant))


def pull(
    store: ImageStore,
    ref: ImageRef,
    access: Access | None = None,
    *,
    platform: Platform | None = None,
    say: Say = silent,
) -> Image:
    """Bring the image that `ref` means at its registry into the store, and let `ref` mean it here.

    What is here already is not fetched again. Raises TareError, with nothing named and only verified parts or
    parts to resume left behind, when the registry does not have it, lies, or cannot be reached.
    """
    registry, name = repository(ref)
    with Transport(registry, access or Access()) as transport:
        source = Repository(transport, name)
        wanted = platform or Platform.here()
        top = source.document(ref.digest or ref.tag)
        chosen = _chosen(source, top, wanted, ref)
        also = top.digest if top.digest != chosen.digest else None
        for last in (False, False, True):
            try:
                return _Pull(store, source, ref, wanted, say).fetch(chosen, also)
            except TareError as error:
                # Somebody removed what we counted on, or a crash lost bytes of what we took up.
                if last or not (isinstance(error, _LostError) or "went away meanwhile" in error.why):
                    raise
    raise AssertionError("unreachable")


def pull_if_missing(
    store: ImageStore,
    text: str,
    when: str = "missing",
    access: Access | None = None,
    *,
    platform: Platform | None = None,
    say: Say = silent,
) -> Image:
    """The image that a user of `tare run` means by `text`; `when` to pull it is `missing`, `always` or `never`."""
    if when == "always":
        return pull(store, ImageRef.parse(text), access, platform=platform, say=say)
    try:
        return store.find(text)
    except TareError as error:
        if when == "never" or error.why != "not on this host":
            raise
    say(f"image {text} is not on this host: pulling it")
    return pull(store, ImageRef.parse(text), access, platform=platform, say=say)


def _chosen(source: Repository, top: Document, wanted: Platform, ref: ImageRef, depth: int = 0) -> Document:
    """The manifest for our platform. Raises TareError when an index has none, with what it has."""
    if not top.is_index:
        return top
    entries = top.parsed().get("manifests")
    entries = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    entries = [entry for entry in entries if isinstance(entry.get("platform") or {}, dict)]
    fitting = [entry for entry in entries if wanted.fits(entry.get("platform") or {})]
    if not fitting and len(entries) == 1 and not entries[0].get("platform"):
        fitting = entries
    if not fitting or depth > 1:
        platforms = {_platform(entry.get("platform") or {}) for entry in entries} - {"", "unknown/unknown"}
        what = ", ".join(sorted(platforms)) or "nothing"
        raise TareError(f"image {ref}", f"not for {wanted}; it has {what}", "choose one with --platform")
    digest = f"sha256:{hex_of(str(fitting[0].get('digest')))}"  # a tag here would be followed without any promise
    return _chosen(source, source.document(digest), wanted, ref, depth + 1)


def _platform(described: Mapping[str, Any]) -> str:
    return "/".join(str(described[key]) for key in ("os", "architecture", "variant") if described.get(key))


class _LostError(TareError):
    """What an earlier pull left is not what had arrived then: it must come again, and nobody lied."""


class _Pull:
    """One image being fetched."""

    def __init__(self, store: ImageStore, source: Repository, ref: ImageRef, wanted: Platform, say: Say) -> None:
        self._store, self._source, self._ref, self._wanted, self._say = store, source, ref, wanted, say
        self._what = f"image {ref}"
        self._stop = threading.Event()

    def fetch(self, document: Document, also: str | None) -> Image:
        """Fetch what is missing and let the name mean it."""
        config_descriptor, layers = checked_manifest(document.parsed(), self._what)
        data = self._source.small_blob(config_descriptor, f"configuration of {self._what}")
        config = checked_config(data, len(layers), self._what)
        described = {"os": "linux", "architecture": self._wanted.architecture, **config}
        if not self._wanted.fits(described):
            why = f"it is for {_platform(config)}, not {self._wanted}"
            raise TareError(self._what, why, "choose another with --platform")
        diff_ids = config["rootfs"]["diff_ids"]
        missing = self._missing(layers, diff_ids)
        progress = Progress(str(self._ref), sum(layer["size"] for layer, _ in missing), self._say)
        with self._store.partial() as work, ExitStack() as held, room_for(self._what, self._store.directory):
            made = self._fetch_layers(missing, work, held, progress)
            image = self._store.admit(self._ref, document.data, document.media_type, data, made, also_digest=also)
        fetched = sum(layer["size"] for layer, _ in missing) / 2**20
        self._say(f"{familiar(self._ref)}: {len(missing)} of {len(layers)} layers fetched, {fetched:.1f} MiB")
        return image

    def _missing(self, layers: Sequence[Descriptor], diff_ids: Sequence[str]) -> list[tuple[Descriptor, str]]:
        """The layers to fetch with their diff ids, each once."""
        wanted: dict[str, tuple[Descriptor, str]] = {}
        for layer, diff_id in zip(layers, diff_ids, strict=True):
            if self._store.holds(layer["digest"], diff_id):
                with suppress(FileNotFoundError):
                    if self._store.layout.blob(layer["digest"]).stat().st_size == layer["size"]:
                        continue
            if wanted.setdefault(layer["digest"], (layer, diff_id))[1] != diff_id:
                raise TareError(self._what, f"layer {layer['digest']} cannot be two", "the image is damaged")
        return list(wanted.values())

    def _fetch_layers(
        self, missing: Sequence[tuple[Descriptor, str]], work: Path, held: ExitStack, progress: Progress
    ) -> list[Made]:
        """Download and unpack side by side; the first failure stops the rest."""
        if not missing:
            return []
        guard, arrivals = threading.Lock(), list[Arrival]()
        with (
            ThreadPoolExecutor(_DOWNLOADS, "download") as downloads,
            ThreadPoolExecutor(_UNPACKERS, "unpack") as unpackers,
        ):

            def one(number: int, layer: Descriptor, diff_id: str) -> Future[Made]:
                file = arrival(self._store.directory, layer["digest"], layer["size"])
                entered = file.__enter__()
                with guard:
                    held.push(file)
                    arrivals.append(entered)
                found = entered.complete
                if found:
                    progress.had(layer["size"])
                else:
                    self._download(layer, entered, progress)
                    entered.share()
                return unpackers.submit(self._unpack, layer, diff_id, entered, work / str(number), found)

            try:
                arriving = [downloads.submit(one, number, *entry) for number, entry in enumerate(missing)]
                _all_of(arriving)
                unpacking = [future.result() for future in arriving]
                _all_of(unpacking)
                return [future.result() for future in unpacking]
            except BaseException as error:
                self._stop.set()
                downloads.shutdown(wait=True, cancel_futures=True)
                unpackers.shutdown(wait=True, cancel_futures=True)
                if is_full(error) or is_full(error.__cause__):  # then nothing to resume is worth its room
                    for file in arrivals:
                        file.path.unlink(missing_ok=True)
                raise

    def _unpack(self, layer: Descriptor, diff_id: str, file: Arrival, directory: Path, found: bool) -> Made:
        if self._stop.is_set():
            raise TareError(self._what, "stopped")
        try:
            return self._store.unpack_layer(
                file.path, directory, digest=layer["digest"], diff_id=diff_id, media_type=layer["mediaType"]
            )
        except TareError as error:
            file.path.unlink(missing_ok=True)  # what is complete and wrong must not be taken up again
            if found and _digest_of(file.fd) != layer["digest"]:
                raise _LostError(error.what, error.why, error.do) from error
            raise

    def _download(self, layer: Descriptor, file: Arrival, progress: Progress) -> None:
        """Fill the file, from where it ends; retried as long as something arrives."""
        what = f"layer {layer['digest'][:19]} of {self._what}"
        hashing = _Hashing(file)
        taken_up = file.here_bytes > 0
        progress.had(file.here_bytes)
        tries, furthest_bytes = 0, file.here_bytes
        while not file.complete:
            try:
                self._some(layer["digest"], file, hashing, progress, what)
                reason = "the registry sent less than its manifest says"
            except BROKEN as error:
                if isinstance(error, OSError) and error.errno is not None and _is_ours(error):
                    raise
                reason = str(error) or type(error).__name__
            if self._stop.is_set():
                raise TareError(what, "stopped")
            if file.here_bytes == file.size_bytes:
                break
            # Only new ground counts: a registry that starts again and again and breaks at one place gets nowhere.
            tries = 0 if file.here_bytes > furthest_bytes else tries + 1
            furthest_bytes = max(furthest_bytes, file.here_bytes)
            if tries >= self._source.transport.access.attempts:
                why = f"it ends at {furthest_bytes} of {file.size_bytes} bytes: {reason}"
                raise TareError(what, why, "try again: what has arrived is kept")
            self._source.transport.access.wait(0.1 * 2**tries)
        if hashing.digest() != layer["digest"]:
            os.ftruncate(file.fd, 0)
            why = f"its content is {hashing.digest()}, not what its manifest says"
            raise (_LostError if taken_up else TareError)(what, why, _LIED)

    def _some(self, digest: str, file: Arrival, hashing: _Hashing, progress: Progress, what: str) -> None:
        """One request's worth. Raises TareError when more arrives than may; what BROKEN lists when it breaks."""
        offset = file.here_bytes
        with self._source.blob(digest, offset) as response:
            expect(response, what, 200, 206, 416)
            place = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if offset and (response.status != 206 or place is None or int(place.group(1)) != offset):
                progress.add(-offset)  # the registry cannot resume: from the beginning
                os.ftruncate(file.fd, 0)
                hashing.restart()
                if response.status != 200:
                    return
            while data := response.read(_CHUNK_BYTES):
                if file.here_bytes + len(data) > file.size_bytes:
                    os.ftruncate(file.fd, 0)
                    raise TareError(
                        what, "more than its manifest says", "the registry is damaged or lying: do not use it"
                    )
                hashing.write(data)
                progress.add(len(data))
                if self._stop.is_set():
                    return


class _Hashing:
    """Appends to an arriving blob and keeps its digest; what was there already is read once."""

    def __init__(self, file: Arrival) -> None:
        self._file, self._hash = file, hashlib.sha256()
        if file.here_bytes > file.size_bytes:
            os.ftruncate(file.fd, 0)
        os.lseek(file.fd, 0, os.SEEK_SET)
        while data := os.read(file.fd, 1 << 20):
            self._hash.update(data)

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._file.fd, view) :]
        self._hash.update(data)

    def restart(self) -> None:
        os.lseek(self._file.fd, 0, os.SEEK_SET)
        self._hash = hashlib.sha256()

    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"


def _digest_of(fd: int) -> str:
    """The digest of a whole file."""
    found, at = hashlib.sha256(), 0
    while data := os.pread(fd, 1 << 20, at):
        found.update(data)
        at += len(data)
    return f"sha256:{found.hexdigest()}"


def _all_of(futures: Sequence[Future[Any]]) -> None:
    """Wait for all, or raise what the first failing one raised."""
    done, _ = wait(futures, return_when=FIRST_EXCEPTION)
    for future in done:
        future.result()


def _is_ours(error: OSError) -> bool:
    """Whether an error is our disk's, not the connection's."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG)

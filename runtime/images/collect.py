"""What of the store's data nobody needs any more, and removing images by name or id.

Needed is what a name leads to, and what a container was made from, even if its image's name is gone.
Callers hold the store's lock. Not for the drivers' live instances: a caller that knows of some collects nothing.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.errors import TareError, UsageError
from runtime.images.layout import ALSO_DIGEST, Descriptor, chain_ids, hex_of
from runtime.images.reference import familiar
from runtime.images.trees import remove_tree
from runtime.spec import ImageRef

if TYPE_CHECKING:
    from runtime.images.store import Image, ImageStore

_HEX = re.compile(r"\b[0-9a-f]{64}\b")


def digests_of(entry: Descriptor) -> tuple[str, ...]:
    """The digests an entry of the index is known by: its own, and that of the index it was chosen from."""
    also = entry.get("annotations", {}).get(ALSO_DIGEST)
    return (str(entry["digest"]), *((str(also),) if also else ()))


@contextmanager
def partial_guard(directory: Path) -> Iterator[None]:
    """Keep a sweep away while something is made in `partial/` and not yet locked by its maker."""
    (directory / "partial").mkdir(parents=True, exist_ok=True, mode=0o700)
    directory.chmod(0o700)  # setuid files of images lie below
    fd = os.open(directory / "partial.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


@contextmanager
def download(directory: Path, digest: str) -> Iterator[Path]:
    """The file where the blob `digest` arrives, locked: a second one who wants it waits for the first.

    What an earlier, interrupted download left is in it. The file stays unless whoever got it moved it.
    """
    path = directory / "partial" / f"blob-{hex_of(digest)}"
    while True:
        with partial_guard(directory):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                if os.path.samestat(path.lstat(), os.fstat(fd)):
                    yield path
                    return
        finally:
            os.close(fd)


def sweep_partial(directory: Path) -> list[Path]:
    """Remove what nobody is making any more."""
    gone = []
    for path in _below(directory, "partial"):
        with partial_guard(directory), suppress(FileNotFoundError):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove_tree(path)
                gone.append(path)
            except BlockingIOError:
                pass
            finally:
                os.close(fd)
    return gone


def in_use(root: Path) -> set[str]:
    """The digests (64 hex digits) that the state of any container names: of images, layers and configurations."""
    found: set[str] = set()
    for state in root.glob("containers/*/*.json"):
        with suppress(FileNotFoundError):
            found |= set(_HEX.findall(state.read_text(errors="replace")))
    return found


def collect(store: ImageStore) -> list[Path]:
    """Remove blobs, layers, machines and flat trees that neither a name nor a container needs; say which."""
    kept = _kept(store)
    candidates = [path for name in ("blobs/sha256", "layers", "machines") for path in _below(store.directory, name)]
    doomed = [path for path in candidates if path not in kept]
    flat = store.root / "flat"
    doomed += [path for path in _below(store.root, "flat") if flat.is_dir() and path not in kept]
    for path in doomed:
        remove_tree(path)
    return doomed


def _kept(store: ImageStore) -> set[Path]:
    used = in_use(store.root)
    roots = {hex_of(digest) for digest in store.layout.references().values()}
    for number in used:  # an image whose name is gone lives on in its containers
        blob = store.layout.blob(f"sha256:{number}")
        if blob.is_file() and blob.stat().st_size < 1 << 20 and _manifest(store, number) is not None:
            roots.add(number)
    kept = {store.directory / "layers" / number for number in used}
    for number in roots:
        kept |= _closure(store, number)
    for name in store.layout.references():
        with suppress(TareError):  # one that is incomplete keeps no machine
            kept.add(store.machine_directory(store.resolve(ImageRef.parse(name)))[0])
    return kept


def _closure(store: ImageStore, number: str) -> set[Path]:
    """All that the image with this manifest needs."""
    document = _manifest(store, number)
    if document is None:
        return {store.layout.blob(f"sha256:{number}")}
    blobs = (f"sha256:{number}", document["config"]["digest"], *(layer["digest"] for layer in document["layers"]))
    kept = {store.layout.blob(str(digest)) for digest in blobs}
    try:
        diff_ids = store.layout.get(str(document["config"]["digest"]))["rootfs"]["diff_ids"]
    except TareError:
        return kept
    kept |= {store.directory / "layers" / hex_of(digest) for digest in (*diff_ids, *chain_ids(diff_ids))}
    layers = store.layers(diff_ids)
    named = "\n".join(str(layer.directory) for layer in layers)
    kept.add(store.root / "flat" / hashlib.sha256(named.encode()).hexdigest()[:32])  # as the native driver names it
    return kept


def _manifest(store: ImageStore, number: str) -> dict[str, Any] | None:
    with suppress(TareError):
        document = store.layout.get(f"sha256:{number}")
        if isinstance(document.get("config"), dict) and isinstance(document.get("layers"), list):
            return document
    return None


def remove_image(store: ImageStore, text: str, *, force: bool, keep_data: bool = False) -> list[str]:
    """Forget the image a user means, and remove its data unless another name or a container needs it.

    By id or digest, all its names go, which needs `force` if there are several. Returns a line for each thing done;
    `keep_data` only forgets. Raises TareError when a container uses the image, unless `force`.
    """
    with store.exclusive():
        image = store.find(text)
        by_name = not _HEX.search(text) and _named(store, text)
        twins = [other.ref for other in store.images() if other.id == image.id]
        doomed = [image.ref] if by_name else twins
        if len(doomed) > 1 and not force:
            names = ", ".join(map(str, doomed))
            raise UsageError(
                f"image {text}", f"it has several names: {names}", "remove them one by one, or use --force"
            )
        last = len(doomed) == len(twins)
        user = _user(store, image) if last else None
        if user is not None and not force:
            do = f"remove the container first (tare rm {user}), or use --force"
            raise TareError(f"image {text}", f"container {user} uses it", do)
        lines = []
        for ref in doomed:
            store.remove(ref)
            lines.append(f"untagged {ref}")
        if not keep_data:
            collect(store)
            if last and not store.layout.blob(image.digest).exists():
                lines.append(f"deleted {image.id}")
        return lines


def _named(store: ImageStore, text: str) -> bool:
    """Whether `text` is one of the images' names, not a part of its id."""
    return not text.startswith("sha256:") and str(familiar(ImageRef.parse(text))) in store.layout.entries()


def _user(store: ImageStore, image: Image) -> str | None:
    """The id of a container made from `image`, if there is one."""
    theirs = {hex_of(image.id), hex_of(image.digest)}
    for state in sorted(store.root.glob("containers/*/container.json")):
        with suppress(FileNotFoundError):
            if theirs & set(_HEX.findall(state.read_text(errors="replace"))):
                return state.parent.name[:12]
    return None


def _below(directory: Path, name: str) -> list[Path]:
    return sorted((directory / name).iterdir()) if (directory / name).is_dir() else []

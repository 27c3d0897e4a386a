"""What of the store's data nobody needs any more, and removing images by name or id.

Needed is what a name leads to, and what a container was made from, even if its image's name is gone.
Callers hold the store's lock. Drivers hold the store's data while they have an image prepared: then nothing is
collected; a caller that knows of live instances left by others does not ask.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.errors import TareError, UsageError
from runtime.images.layout import ALSO_DIGEST, Descriptor, chain_ids, hex_of
from runtime.images.reference import familiar
from runtime.images.trees import refuse_mounts, remove_tree
from runtime.images.workshop import partial_guard
from runtime.spec import ImageRef

if TYPE_CHECKING:
    from runtime.images.store import ImageStore

_HEX = re.compile(r"\b[0-9a-f]{64}\b")


def digests_of(entry: Descriptor) -> tuple[str, ...]:
    """The digests an entry of the index is known by: its own, and that of the index it was chosen from."""
    also = entry.get("annotations", {}).get(ALSO_DIGEST)
    return (str(entry["digest"]), *((str(also),) if also else ()))


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
    """Remove blobs, layers, machines and flat trees that neither a name nor a container needs; say which.

    None while somebody uses the store's data without a container's state that says so: a driver.
    What goes loses its name as a whole first: a layer half removed must never be taken for one.
    """
    with store.partial() as work, store.unused() as free:
        doomed = _doomed(store) if free else []
        for number, path in enumerate(doomed):
            refuse_mounts(path)
            path.rename(work / str(number))
    return doomed


def _doomed(store: ImageStore) -> list[Path]:
    kept = _kept(store)
    candidates = [path for name in ("blobs/sha256", "layers", "machines") for path in _below(store.directory, name)]
    doomed = [path for path in candidates if path not in kept]
    flat = store.root / "flat"
    return doomed + [path for path in _below(store.root, "flat") if flat.is_dir() and path not in kept]


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
        known = _known(store)
        ref, digest, image_id = _meant(store, known, text)
        twins = [name for name, (_, other) in known.items() if other == image_id]
        doomed = twins if ref is None else [ref]
        if len(doomed) > 1 and not force:
            do = "remove them one by one, or use --force"
            raise UsageError(f"image {text}", f"it has several names: {', '.join(doomed)}", do)
        last = len(doomed) == len(twins)
        user = _user(store, {hex_of(image_id), hex_of(digest)}) if last else None
        if user is not None and not force:
            do = f"remove the container first (tare rm {user}), or use --force"
            raise TareError(f"image {text}", f"container {user} uses it", do)
        for name in doomed:
            store.remove(ImageRef.parse(name))
        lines = [f"untagged {name}" for name in doomed]
        if not keep_data:
            collect(store)
            if last and not store.layout.blob(digest).exists():
                lines.append(f"deleted {image_id}")
        return lines


def _known(store: ImageStore) -> dict[str, tuple[str, str]]:
    """(manifest digest, id) by name; an image whose manifest is damaged has its digest for an id."""
    found = {}
    for name, digest in store.layout.references().items():
        document = _manifest(store, hex_of(digest))
        found[name] = (digest, str(document["config"]["digest"]) if document else digest)
    return found


def _meant(store: ImageStore, known: Mapping[str, tuple[str, str]], text: str) -> tuple[str | None, str, str]:
    """(the name, if `text` is one and not an id; manifest digest; id), also of an image that is not whole."""
    if not text.startswith("sha256:"):
        name = str(familiar(ImageRef.parse(text)))
        if name in known:
            return (name, *known[name])
    image = store.find(text)
    return str(image.ref) if "@" in text else None, image.digest, image.id


def _user(store: ImageStore, numbers: set[str]) -> str | None:
    """The id of a container whose state names one of these digests, if there is one."""
    for state in sorted(store.root.glob("containers/*/container.json")):
        with suppress(FileNotFoundError):
            if numbers & set(_HEX.findall(state.read_text(errors="replace"))):
                return state.parent.name[:12]
    return None


def _below(directory: Path, name: str) -> list[Path]:
    return sorted((directory / name).iterdir()) if (directory / name).is_dir() else []

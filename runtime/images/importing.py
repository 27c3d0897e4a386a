"""A root file system's archive made an image. Not for archives of images (`archives.py`) nor recipes (`recipe.py`).

Format: OCI image-spec 1.1, config.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from runtime.errors import TareError
from runtime.images.bundle import ARCHIVE_BYTES
from runtime.images.commit import changed
from runtime.images.layout import GZIP, LAYER_GZIP, LAYER_TAR, LAYER_ZSTD, ZSTD, architecture, room_for
from runtime.images.store import Image, ImageStore
from runtime.images.stream import CHUNK_BYTES, compression_of
from runtime.spec import ImageRef

_TYPES = {"": LAYER_TAR, GZIP: LAYER_GZIP, ZSTD: LAYER_ZSTD}
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def import_tar(
    store: ImageStore,
    source: Path | IO[bytes],
    ref: ImageRef,
    *,
    changes: Sequence[str] = (),
    message: str = "",
) -> Image:
    """Make `ref` an image whose only layer is the archive of a root file system, compressed or not.

    Raises TareError when it is damaged or hostile, UsageError for a bad change, both before anything is named.
    """
    settings = changed({"Env": [_PATH]}, changes)
    with store.partial() as work, ExitStack() as stack:
        archive = work / "rootfs.tar"
        with room_for(f"importing {ref}", store.directory):
            try:
                stream = stack.enter_context(source.open("rb")) if isinstance(source, Path) else source
            except OSError as error:
                raise TareError(
                    f"archive {source}", error.strerror or "cannot be read", "is the path right?"
                ) from error
            with archive.open("wb") as copy:
                head = data = stream.read(CHUNK_BYTES)
                left_bytes = ARCHIVE_BYTES
                while data:
                    left_bytes -= copy.write(data)
                    if left_bytes < 0:
                        raise TareError(f"importing {ref}", f"more than {ARCHIVE_BYTES >> 30} GiB", "import less")
                    data = stream.read(CHUNK_BYTES)
        kind, size_bytes = _TYPES[compression_of(head)], archive.stat().st_size
        made = store.unpack_layer(archive, work / "layer", media_type=kind)
        config = _configuration(settings, made.diff_id, message or "imported")
        return store.compose(ref, config, [{"mediaType": kind, "digest": made.digest, "size": size_bytes}], made=[made])


def _configuration(settings: dict[str, Any], diff_id: str, message: str) -> dict[str, Any]:
    created = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "architecture": architecture(),
        "os": "linux",
        "created": created,
        "config": settings,
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [{"created": created, "created_by": "tare import", "comment": message}],
    }

"""An image of several layers as one plain directory tree, made of hard links: no copy, and no overlay to pass through.

For the native baseline only. Read-only by use: what is written to a linked file would change the layer.
"""

from __future__ import annotations

import hashlib
import secrets
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from runtime.images.merging import merge


def flat(layers: Sequence[Path], cache: Path) -> Path:
    """The tree of `layers` (topmost last), from `cache` or made there; a single layer is its own tree.

    `cache` must lie on the layers' file system. Made under another name and renamed when whole.
    """
    if len(layers) == 1:
        return layers[0]
    final = cache / hashlib.sha256("\n".join(str(layer) for layer in layers).encode()).hexdigest()[:32]
    if not final.is_dir():
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial = cache / f"partial-{secrets.token_hex(6)}"
        try:
            merge(layers, partial)
            with suppress(OSError):  # somebody else was faster: theirs is as good
                partial.rename(final)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return final

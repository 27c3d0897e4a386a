"""The image store of the commands that look into it, refused in one sentence to users who may not."""

from __future__ import annotations

import os

from runtime.driver import host_from_env
from runtime.errors import TareError
from runtime.images.store import ImageStore


def image_store() -> ImageStore:
    """The host's. Raises TareError when this user may not look into it."""
    store = ImageStore(host_from_env().root)
    if store.directory.exists() and not os.access(store.directory, os.R_OK | os.W_OK | os.X_OK):
        raise TareError(f"images below {store.directory}", "only root may use them", "run it as root")
    return store

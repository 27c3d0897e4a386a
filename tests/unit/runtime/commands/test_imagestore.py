"""Who may not look into the images is told so; where there are none yet, nothing is in the way."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.commands.imagestore import image_store
from runtime.errors import TareError


def test_a_store_of_anothers_is_refused_and_one_that_is_not_there_is_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TARE_ROOT", str(tmp_path))
    monkeypatch.setattr("os.access", lambda *_: False)  # as for a user, whoever runs this
    store = image_store()
    assert store.images() == []
    store.directory.mkdir(parents=True)
    with pytest.raises(TareError, match="only root may use them"):
        image_store()

"""Names without a registry mean Docker Hub's, as everywhere."""

from __future__ import annotations

import pytest

from runtime.images.reference import familiar, repository
from runtime.spec import ImageRef


@pytest.mark.parametrize(
    ("text", "name", "place"),
    [
        ("debian:12", "debian:12", ("registry-1.docker.io", "library/debian")),
        ("docker.io/library/debian", "debian:latest", ("registry-1.docker.io", "library/debian")),
        ("index.docker.io/me/it:1", "me/it:1", ("registry-1.docker.io", "me/it")),
        ("library/debian", "debian:latest", ("registry-1.docker.io", "library/debian")),
        ("docker.io/library/a/b", "library/a/b:latest", ("registry-1.docker.io", "library/a/b")),
        ("localhost:5000/library/x", "localhost:5000/library/x:latest", ("localhost:5000", "library/x")),
    ],
)
def test_a_name_here_and_there(text: str, name: str, place: tuple[str, str]) -> None:
    ref = ImageRef.parse(text)
    assert str(familiar(ref)) == name
    assert repository(ref) == place

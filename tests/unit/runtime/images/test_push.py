"""Pushing sends what is missing and nothing else, whole or in pieces, and believes no wrong answer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.errors import TareError
from runtime.images import push as module
from runtime.images.auth import Credentials
from runtime.images.pull import pull
from runtime.images.push import push
from runtime.images.store import Image, ImageStore
from runtime.images.transport import Access
from runtime.spec import ImageRef
from tests.unit.runtime.images.registries import FakeRegistry, serving, sha256
from tests.unit.runtime.images.trees import archive, member

QUICK = Access(attempts=3, wait=lambda seconds: None)


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with serving() as found:
        yield found


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "root")


@pytest.fixture
def image(store: ImageStore, tmp_path: Path) -> Image:
    layers = []
    for number in range(2):
        path = tmp_path / f"{number}.tar"
        path.write_bytes(archive([member(f"file{number}", os.urandom(100_000))]).getvalue())
        layers.append(store.put_layer(path))
    return store.add(ImageRef.parse("test/image:1"), layers, labels={})


def named(registry: FakeRegistry, name: str = "a/b:1") -> ImageRef:
    return ImageRef.parse(f"{registry.host}/{name}")


def test_a_pushed_image_pulls_back_the_same(
    store: ImageStore, image: Image, registry: FakeRegistry, tmp_path: Path
) -> None:
    assert push(store, image, named(registry), QUICK) == image.digest
    there = pull(ImageStore(tmp_path / "other"), named(registry), QUICK)
    assert (there.digest, there.id) == (image.digest, image.id)
    assert (there.layers[1].directory / "file1").read_bytes() == (image.layers[1].directory / "file1").read_bytes()


def test_what_is_there_is_not_sent_again(store: ImageStore, image: Image, registry: FakeRegistry) -> None:
    push(store, image, named(registry), QUICK)
    registry.requests.clear()
    push(store, image, named(registry, "a/b:2"), QUICK)
    assert registry.asked("POST", "uploads") == []
    assert len(registry.asked("PUT", "manifests/2")) == 1


def test_a_layer_of_a_neighbour_is_mounted(store: ImageStore, image: Image, registry: FakeRegistry) -> None:
    push(store, image, named(registry, "neighbour"), QUICK)
    store.tag(image, named(registry, "neighbour"))
    registry.requests.clear()

    class Hidden(dict[str, bytes]):  # a repository does not see another one's blobs, but mounts them
        def get(self, key: str, default: object = None) -> None:  # type: ignore[override]
            return None

    registry.blobs = Hidden(registry.blobs)
    push(store, image, named(registry, "new"), QUICK)
    mounts = [path for verb, path, _ in registry.requests if verb == "POST" and "from=neighbour" in path]
    assert len(mounts) == 2
    assert len(registry.asked("PUT", "uploads")) == 1, "only the configuration"


def test_a_large_blob_goes_in_pieces_and_goes_on_where_it_broke(
    store: ImageStore, image: Image, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", 30_000)
    registry.fail_first = {"/blobs/uploads/": 2}
    push(store, image, named(registry), QUICK)
    assert {sha256(data) for data in registry.blobs.values()} == set(registry.blobs)
    ranges = [headers["Content-Range"] for headers in registry.asked("PATCH", "uploads")]
    assert "0-29999" in ranges
    assert "30000-59999" in ranges


def test_an_answer_with_another_digest_is_not_believed(store: ImageStore, image: Image, registry: FakeRegistry) -> None:
    registry.answer_digest = sha256(b"other")
    with pytest.raises(TareError, match="took it for"):
        push(store, image, named(registry), QUICK)


def test_pushing_asks_for_the_right_to_push(store: ImageStore, image: Image, registry: FakeRegistry) -> None:
    registry.token, registry.basic = "token", "user:pass"
    push(store, image, named(registry), Access(credentials=Credentials("user", "pass")))
    with pytest.raises(TareError, match="--creds"):
        push(store, image, named(registry), QUICK)


def test_a_damaged_blob_is_refused_by_the_registry(store: ImageStore, image: Image, registry: FakeRegistry) -> None:
    blob = store.layout.blob(image.layers[0].digest)
    blob.write_bytes(b"x" * blob.stat().st_size)
    with pytest.raises(TareError, match=r"400.*DIGEST_INVALID"):
        push(store, image, named(registry), QUICK)

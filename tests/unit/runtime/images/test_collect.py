"""Nothing goes that a name or a container needs, and nothing stays that none does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runtime.container.flat import flat
from runtime.errors import TareError, UsageError
from runtime.images.collect import remove_image
from runtime.images.store import Image, ImageStore, remove_tree
from runtime.spec import ImageRef
from tests.unit.runtime.images.trees import archive, member


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "root")


def image(store: ImageStore, name: str, *contents: bytes) -> Image:
    layers = []
    for content in contents:
        path = store.root.parent / "layer.tar"
        path.write_bytes(archive([member("file", content)]).getvalue())
        layers.append(store.put_layer(path))
    return store.add(ImageRef.parse(name), layers, labels={})


def container(store: ImageStore, found: Image, name: str = "c" * 64) -> Path:
    directory = store.root / "containers" / name
    directory.mkdir(parents=True)
    state = {"image": {"digest": found.digest}, "layers": [str(layer.directory) for layer in found.layers]}
    (directory / "container.json").write_text(json.dumps(state))
    return directory


def counts(store: ImageStore) -> tuple[int, int]:
    return tuple(len(list((store.directory / name).iterdir())) for name in ("layers", "blobs/sha256"))  # type: ignore[return-value]


def test_a_shared_layer_stays(store: ImageStore) -> None:
    image(store, "one", b"shared", b"1")
    two = image(store, "two", b"shared", b"2")
    assert remove_image(store, "one", force=False)[0] == "untagged one:latest"
    assert counts(store) == (2, 4)
    assert store.resolve(two.ref) == two
    assert remove_image(store, two.id[7:20], force=False)[-1] == f"deleted {two.id}"
    assert counts(store) == (0, 0)


def test_a_further_name_keeps_the_data(store: ImageStore) -> None:
    found = image(store, "one", b"1")
    store.tag(found, ImageRef.parse("reg:5000/other:2"))
    with pytest.raises(UsageError, match=r"several names: one:latest, reg:5000/other:2"):
        remove_image(store, found.digest, force=False)
    assert remove_image(store, "one", force=False) == ["untagged one:latest"]
    assert counts(store) == (1, 3)
    assert remove_image(store, found.id, force=True) == ["untagged reg:5000/other:2", f"deleted {found.id}"]


def test_an_image_of_a_container_is_refused_and_when_forced_keeps_its_data(store: ImageStore) -> None:
    found = image(store, "one", b"1", b"2")
    directory = container(store, found)
    with pytest.raises(TareError, match=r"container cccccccccccc uses it.*tare rm"):
        remove_image(store, "one", force=False)
    assert remove_image(store, "one", force=True) == ["untagged one:latest"]
    assert all((layer.directory / "file").exists() for layer in found.layers)
    assert store.sweep(unneeded=True) == []
    (directory / "container.json").unlink()
    assert len(store.sweep(unneeded=True)) == 6


def test_an_unknown_or_ambiguous_image_is_refused(store: ImageStore) -> None:
    with pytest.raises(TareError, match="not on this host"):
        remove_image(store, "none", force=True)
    for number in range(2):
        image(store, f"name{number}", b"%d" % number)
    with pytest.raises(TareError, match="not on this host"):
        store.find(store.images()[0].id[7:9])  # too short to be an id
    with pytest.raises(UsageError, match="several images"):
        store.find("sha256:")


def test_flat_trees_of_images_that_are_gone_go_too(store: ImageStore) -> None:
    layers = [layer.directory for layer in image(store, "one", b"1", b"2").layers]
    tree = flat(layers, store.root / "flat")
    (store.root / "flat" / "other").mkdir()
    store.sweep(unneeded=True)
    assert [path.name for path in (store.root / "flat").iterdir()] == [tree.name]


def test_what_somebody_makes_is_not_swept(store: ImageStore) -> None:
    with store.partial() as work, store.partial() as dead:
        (store.directory / "partial" / "blob-left").write_bytes(b"1")
        gone = store.sweep(unneeded=True)
        assert [line.rpartition("/")[2] for line in gone] == ["blob-left"]
        assert work.is_dir()
        assert dead.is_dir()


def test_an_image_that_is_not_whole_can_be_removed_and_hides_no_other(store: ImageStore) -> None:
    broken, whole = image(store, "broken", b"1"), image(store, "whole", b"2")
    remove_tree(broken.layers[0].directory)
    assert store.images() == [whole]
    assert remove_image(store, "broken", force=False)[0] == "untagged broken:latest"
    store.layout.blob(whole.digest).write_bytes(b"damaged")
    assert remove_image(store, "whole", force=False)[0] == "untagged whole:latest"
    assert counts(store) == (0, 0)


def test_a_name_with_its_digest_is_a_name(store: ImageStore) -> None:
    found = image(store, "one", b"1")
    store.tag(found, ImageRef.parse("two"))
    assert remove_image(store, f"one@{found.digest}", force=False) == ["untagged one:latest"]


def test_data_that_somebody_uses_stays_until_it_is_let_go(store: ImageStore) -> None:
    """What a driver has prepared is in no container's state."""
    found = image(store, "one", b"1")
    with ImageStore(store.root).using():
        assert remove_image(store, "one", force=False) == ["untagged one:latest"]
        assert store.sweep(unneeded=True) == []
        assert all((layer.directory / "file").exists() for layer in found.layers)
    assert len(store.sweep(unneeded=True)) == 4
    assert counts(store) == (0, 0)


def test_a_removal_that_dies_leaves_no_half_layer(store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer that has its name and not its files would be taken for whole when the image comes again."""
    found = image(store, "one", b"1")
    blob = store.layout.blob(found.layers[0].digest).read_bytes()
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        remove_image(store, "one", force=False)
    monkeypatch.undo()
    assert not found.layers[0].directory.exists()
    assert len(store.sweep(unneeded=True)) == 1
    (store.root.parent / "layer.tar").write_bytes(blob)
    assert (store.put_layer(store.root.parent / "layer.tar").directory / "file").read_bytes() == b"1"

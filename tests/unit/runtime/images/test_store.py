"""The store keeps what is whole and true, and leaves nothing of the rest."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import TareError
from runtime.images.layout import write_durably
from runtime.images.store import ImageStore, Layer, remove_tree, tree_bytes
from runtime.spec import ImageRef
from tests.unit.runtime.images.trees import archive, grow, member

REF = ImageRef.parse("test/image:1")


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "root")


def put(store: ImageStore, scratch: Path, content: bytes = b"data", **promises: Any) -> Layer:
    path = scratch / "layer.tar"
    path.write_bytes(archive([member("file", content)]).getvalue())
    return store.put_layer(path, **promises)


def remains(store: ImageStore) -> list[str]:
    return [
        str(path.relative_to(store.directory))
        for name in ("partial", "layers", "blobs/sha256")
        if (store.directory / name).is_dir()
        for path in (store.directory / name).iterdir()
    ]


def test_an_added_image_resolves_with_its_layers_in_order(store: ImageStore, tmp_path: Path) -> None:
    layers = [put(store, tmp_path, b"1"), put(store, tmp_path, b"2")]
    added = store.add(REF, layers, labels={"key": "value"}, history=["one", "two"])
    found = ImageStore(tmp_path / "root").resolve(REF)
    assert found == added
    assert [(layer.directory / "file").read_bytes() for layer in found.layers] == [b"1", b"2"]
    assert found.labels == {"key": "value"}
    assert store.resolve(ImageRef.parse(f"test/image:1@{found.digest}")) == found
    assert store.images() == [found]


def test_an_unknown_image_names_the_command_that_makes_it(store: ImageStore) -> None:
    with pytest.raises(TareError, match="tare build"):
        store.resolve(REF)
    assert not store.directory.exists(), "asking must not make anything"


def test_a_digest_that_is_not_the_images_is_not_found(store: ImageStore, tmp_path: Path) -> None:
    store.add(REF, [put(store, tmp_path)], labels={})
    with pytest.raises(TareError, match="not on this host"):
        store.resolve(ImageRef.parse(f"test/image:1@sha256:{'0' * 64}"))


@pytest.mark.parametrize("promise", ["digest", "diff_id"])
def test_a_lying_digest_is_refused_and_leaves_nothing(store: ImageStore, tmp_path: Path, promise: str) -> None:
    with pytest.raises(TareError, match="damaged"):
        put(store, tmp_path, b"data", **{promise: f"sha256:{'0' * 64}"})
    assert remains(store) == []


def test_a_true_digest_is_accepted_and_a_second_time_changes_nothing(store: ImageStore, tmp_path: Path) -> None:
    digest = "sha256:" + hashlib.sha256(archive([member("file", b"data")]).getvalue()).hexdigest()
    first = put(store, tmp_path, digest=digest, diff_id=digest)
    assert first.digest == digest
    assert put(store, tmp_path) == first
    assert len(remains(store)) == 2


def test_a_hostile_layer_leaves_nothing(store: ImageStore, tmp_path: Path) -> None:
    path = tmp_path / "layer.tar"
    path.write_bytes(archive([member("good", b"1"), member("../bad", b"2")]).getvalue())
    with pytest.raises(TareError, match="leaves the layer"):
        store.put_layer(path)
    assert remains(store) == []


def test_a_full_disk_is_a_sentence_and_leaves_nothing(
    store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(blob: object, target: Path, **options: object) -> tuple[str, str]:
        (target / "half").write_bytes(b"made")
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    monkeypatch.setattr("runtime.images.layers.unpack", no_space)
    with pytest.raises(TareError, match=r"no space left below .*--root"):
        put(store, tmp_path)
    assert remains(store) == []


def test_a_tampered_document_is_refused(store: ImageStore, tmp_path: Path) -> None:
    image = store.add(REF, [put(store, tmp_path)], labels={})
    store.layout.blob(image.digest).write_text("{}")
    with pytest.raises(TareError, match="not what its digest says"):
        store.resolve(REF)


def test_a_missing_layer_says_to_build_again(store: ImageStore, tmp_path: Path) -> None:
    layer = put(store, tmp_path)
    store.add(REF, [layer], labels={})
    remove_tree(layer.directory)
    with pytest.raises(TareError, match="--force"):
        store.resolve(REF)


def test_a_sweep_removes_only_what_no_image_needs(store: ImageStore, tmp_path: Path) -> None:
    kept, dropped = put(store, tmp_path, b"kept"), put(store, tmp_path, b"dropped")
    store.add(REF, [kept], labels={})
    (store.directory / "partial" / "dead").mkdir(parents=True)
    assert len(store.sweep(unneeded=False)) == 1
    assert dropped.directory.is_dir()
    assert len(store.sweep(unneeded=True)) == 2
    assert not dropped.directory.exists()
    assert store.resolve(REF).layers == (kept,)
    assert store.sweep(unneeded=True) == []


def test_a_removed_image_is_forgotten(store: ImageStore, tmp_path: Path) -> None:
    store.add(REF, [put(store, tmp_path)], labels={})
    store.remove(REF)
    assert store.images() == []
    with pytest.raises(TareError, match="not on this host"):
        store.remove(REF)


def test_a_sweep_leaves_a_running_build_alone(store: ImageStore, tmp_path: Path) -> None:
    (store.directory / "partial" / "busy").mkdir(parents=True)
    fd = os.open(store.directory / "lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        assert store.sweep(unneeded=True) == []
    finally:
        os.close(fd)
    assert (store.directory / "partial" / "busy").is_dir()


def test_a_second_writer_waits_for_the_first(tmp_path: Path) -> None:
    first, second = ImageStore(tmp_path), ImageStore(tmp_path)
    order: list[str] = []
    waiting = threading.Event()

    def other() -> None:
        with second.exclusive(waiting.set):
            order.append("second")

    with first.exclusive(), first.exclusive():
        thread = threading.Thread(target=other)
        thread.start()
        assert waiting.wait(10)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_a_tree_with_a_mount_in_it_is_not_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = grow(tmp_path / "tree", {"proc": {}, "file": b""})
    line = f"36 35 98:0 / {tree.resolve()}/proc rw,noatime - ext4 /dev/root rw\n"
    real = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda self, *rest: line if self.name == "mountinfo" else real(self, *rest))
    with pytest.raises(TareError, match="umount"):
        remove_tree(tree)
    assert (tree / "file").exists()


def test_bytes_count_a_hard_linked_file_once(tmp_path: Path) -> None:
    tree = grow(tmp_path / "tree", {"a": b"x" * 5000})
    alone = tree_bytes(tree)
    os.link(tree / "a", tree / "b")
    assert tree_bytes(tree)[1] == alone[1]
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as file:
        file.truncate(1 << 30)
    assert tree_bytes(sparse) == (1 << 30, 0)


def test_an_image_can_be_removed_when_the_disk_is_full(store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    path = store.root.parent / "layer.tar"
    path.write_bytes(archive([member("file", b"1")]).getvalue())
    image = store.add(ImageRef.parse("one"), [store.put_layer(path)], labels={})
    reserve = store.directory / "reserve"
    assert reserve.stat().st_blocks * 512 >= 64 << 10

    def full(path: Path, data: bytes) -> None:
        if reserve.exists():
            raise OSError(errno.ENOSPC, "full")
        write_durably(path, data)

    monkeypatch.setattr("runtime.images.layout.write_durably", full)
    with pytest.raises(TareError, match="no space left"):
        store.tag(image, ImageRef.parse("two"))
    store.remove(image.ref)
    assert store.layout.references() == {}
    store.layout.create()
    assert reserve.exists()


def test_what_is_being_removed_counts_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tree_bytes(tmp_path / "gone") == (0, 0)
    tree = grow(tmp_path / "tree", {"file": b"1"})
    monkeypatch.setattr("os.walk", lambda path: [(str(path), [], ["file", "just removed"])])
    assert tree_bytes(tree)[0] == tree.stat().st_size + 1

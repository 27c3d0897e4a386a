"""Archives of images, of every kind that is written, come in as they are, and hostile ones not at all."""

from __future__ import annotations

import gzip
import io
import json
import resource
import tarfile
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import TareError
from runtime.images.archives import load
from runtime.images.importing import import_tar
from runtime.images.saving import save
from runtime.images.store import Image, ImageStore
from runtime.spec import ImageRef
from tests.unit.runtime.images.registries import FakeRegistry, serving, sha256
from tests.unit.runtime.images.trees import archive, member

LAYER = archive([member("file", b"content")]).getvalue()
UPPER = archive([member("upper", b"2")]).getvalue()


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "root")


def tar(files: Mapping[str, bytes | str]) -> bytes:
    """A tar of files; a string is a symbolic link."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as target:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                target.addfile(info)
            else:
                info.size = len(content)
                target.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def config_of(*layers: bytes, **more: Any) -> bytes:
    rootfs = {"type": "layers", "diff_ids": [sha256(layer) for layer in layers]}
    return json.dumps({"os": "linux", "rootfs": rootfs, "config": {}, **more}).encode()


def docker_archive(**changes: Any) -> dict[str, bytes | str]:
    """What engines before 25 write: the second image's first layer is a link to the first image's."""
    one, two = config_of(LAYER), config_of(LAYER, UPPER)
    listed = [
        {"Config": f"{sha256(one)[7:]}.json", "RepoTags": ["one:1", "reg:5000/again:2"], "Layers": ["a/layer.tar"]},
        {"Config": f"{sha256(two)[7:]}.json", "RepoTags": None, "Layers": ["b/layer.tar", "c/layer.tar"]},
    ]
    return {
        f"{sha256(one)[7:]}.json": one,
        f"{sha256(two)[7:]}.json": two,
        "a/VERSION": b"1.0",
        "a/layer.tar": LAYER,
        "b/layer.tar": "../a/layer.tar",
        "c/layer.tar": UPPER,
        "manifest.json": json.dumps(listed).encode(),
        **changes,
    }


def loaded(store: ImageStore, files: Mapping[str, bytes | str]) -> list[Image]:
    return load(store, io.BytesIO(tar(files)))


def test_a_docker_archive_keeps_ids_and_names(store: ImageStore) -> None:
    images = loaded(store, docker_archive())
    assert [str(image.ref) for image in images[:2]] == ["one:1", "reg:5000/again:2"]
    assert images[0].id == images[1].id == sha256(config_of(LAYER))
    assert str(images[2].ref) == f"sha256:{images[2].id[7:19]}"
    assert store.find(str(images[2].ref)).id == images[2].id
    assert (images[2].layers[0].directory / "file").read_bytes() == b"content"
    assert (images[2].layers[1].directory / "upper").exists()
    assert list((store.directory / "partial").iterdir()) == []


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress])
def test_a_compressed_archive_and_compressed_layers(store: ImageStore, compress: Any) -> None:
    whole = tar(docker_archive(**{"a/layer.tar": compress(LAYER)}))
    images = load(store, io.BytesIO(compress(whole)))
    assert (images[0].layers[0].directory / "file").read_bytes() == b"content"


def test_a_file_and_a_name_for_it(store: ImageStore, tmp_path: Path) -> None:
    path = tmp_path / "archive.tar"
    files = docker_archive()
    files["manifest.json"] = json.dumps(json.loads(files["manifest.json"])[1:]).encode()
    path.write_bytes(tar(files))
    (image,) = load(store, path, ref=ImageRef.parse("mine:3"))
    assert str(image.ref) == "mine:3"
    with pytest.raises(TareError, match="No such file"):
        load(store, tmp_path / "none")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"manifest.json": b"{"}, "not JSON"),
        ({"manifest.json": b"[]"}, "lists no images"),
        ({"manifest.json": b'[{"Layers": []}]'}, "incomplete"),
        ({"manifest.json": b'[{"Config": "../../etc/passwd", "Layers": []}]'}, "leaves the archive"),
        ({"manifest.json": b'[{"Config": "none.json", "Layers": []}]'}, "missing"),
        ({f"{sha256(config_of(LAYER))[7:]}.json": b"{}"}, "configuration"),
        ({"a/layer.tar": UPPER}, "diff id"),
        ({"a/layer.tar": LAYER[:700]}, "damaged"),
        ({"b/layer.tar": "../b/layer.tar"}, "missing"),
        ({"b/layer.tar": "../../../etc/passwd"}, "leaves the archive"),
        ({"b/layer.tar": "/etc/passwd"}, "leaves the archive"),
        ({"../evil": b"1"}, "leaves the archive"),
        ({"manifest.json": b" " * (5 << 20)}, "more than 4 MiB"),
    ],
)
def test_hostile_docker_archives_are_refused(store: ImageStore, changes: dict[str, Any], why: str) -> None:
    with pytest.raises(TareError, match=why):
        loaded(store, docker_archive(**changes))
    assert list((store.directory / "partial").iterdir()) == []
    assert not any(image.ref.name == "sha256" for image in store.images())


def test_what_is_no_archive_of_images_says_so(store: ImageStore, tmp_path: Path) -> None:
    for data, why in ((b"", "not a tar"), (b"x" * 600, "not a tar"), (tar({"repositories": b"{}"}), "before 1.10")):
        with pytest.raises(TareError, match=why):
            load(store, io.BytesIO(data))
    with pytest.raises(TareError, match="tare import"):
        loaded(store, {"etc/passwd": b""})
    with pytest.raises(TareError, match=r"ends too early|not a tar|is no gzip"):
        load(store, io.BytesIO(gzip.compress(tar(docker_archive()))[:-300]))


def fetched(store: ImageStore, registry: FakeRegistry) -> Image:
    """An image of two layers, gzip, from a registry."""
    from runtime.images.pull import pull

    registry.add_image("img", [[member("file", b"content")], [member("upper", b"2")]])
    return pull(store, ImageRef.parse(f"{registry.host}/img"))


@pytest.mark.parametrize("form", ["oci", "docker"])
def test_what_is_saved_is_loaded(store: ImageStore, tmp_path: Path, form: str) -> None:
    with serving() as registry:
        image = fetched(store, registry)
    store.tag(image, ImageRef.parse("other:2"))
    stream = io.BytesIO()
    save(store, [image, store.find("other:2")], stream, form=form)
    other = ImageStore(tmp_path / "other")
    stream.seek(0)
    back = load(other, stream)
    assert {str(found.ref) for found in back} == {str(image.ref), "other:2"}
    assert {found.id for found in back} == {image.id}
    assert ({found.digest for found in back} == {image.digest}) == (form == "oci")
    assert (back[0].layers[1].directory / "upper").read_bytes() == b"2"
    if form == "oci":
        layout = tmp_path / "layout"
        with tarfile.open(fileobj=io.BytesIO(stream.getvalue())) as whole:
            assert len(whole.getnames()) == len(set(whole.getnames()))
            whole.extractall(layout)
        (layout / "manifest.json").unlink()
        again = load(ImageStore(tmp_path / "third"), layout)
        assert {found.digest for found in again} == {image.digest}


def test_a_saved_blob_that_is_damaged_is_not_written(store: ImageStore) -> None:
    with serving() as registry:
        image = fetched(store, registry)
    blob = store.layout.blob(store.layout.get(image.digest)["layers"][0]["digest"])
    blob.write_bytes(gzip.compress(b"something else"))
    with pytest.raises(TareError, match="its content is"):
        save(store, [image], io.BytesIO(), form="docker")


def test_an_image_that_loses_its_name_while_it_is_saved_is_saved(store: ImageStore) -> None:
    found = load(store, io.BytesIO(tar(docker_archive())))
    store.remove(found[0].ref)
    target = io.BytesIO()
    save(store, found[:1], target)
    target.seek(0)
    assert [image.digest for image in load(ImageStore(store.root / "other"), target)] == [found[0].digest]


def test_an_archive_that_grows_without_end_stops_at_the_bound(store: ImageStore) -> None:
    bomb = gzip.compress(tar({"manifest.json": b"[]", "zeros": bytes(8 << 20)}))
    with pytest.raises(TareError, match="larger than the bound"):
        load(store, io.BytesIO(bomb), limit_bytes=1 << 20)
    assert list((store.directory / "partial").iterdir()) == []


def test_an_archives_headers_are_not_read_into_memory(store: ImageStore, tmp_path: Path) -> None:
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 1 << 30
    with (tmp_path / "archive.tar").open("wb") as file:
        file.write(header.tobuf(tarfile.GNU_FORMAT))
        file.truncate(2 << 30)
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(TareError, match="impossible size"):
        load(store, tmp_path / "archive.tar")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 256 << 10


def test_a_layout_with_links_in_it_reads_nothing_else(store: ImageStore, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    (layout / "blobs").mkdir(parents=True)
    secret = tmp_path / "secret"
    secret.mkdir()
    data = config_of()
    (secret / sha256(data)[7:]).write_bytes(data)
    (layout / "blobs/sha256").symlink_to(secret)
    entry = {"mediaType": "x", "digest": sha256(data), "size": len(data)}
    (layout / "index.json").write_text(json.dumps({"manifests": [entry]}))
    with pytest.raises(TareError, match="missing"):
        load(store, layout)


@pytest.mark.parametrize("compress", [bytes, gzip.compress, zstandard.compress])
def test_a_root_file_system_becomes_an_image(store: ImageStore, compress: Any) -> None:
    changes = ['CMD ["sh", "-c", "true"]', "ENV A=1 B=2", "WORKDIR /srv", "LABEL who=me"]
    image = import_tar(store, io.BytesIO(compress(LAYER)), ImageRef.parse("rootfs"), changes=changes, message="why")
    config = image.config["config"]
    assert (config["Cmd"], config["WorkingDir"], image.labels) == (["sh", "-c", "true"], "/srv", {"who": "me"})
    assert config["Env"][1:] == ["A=1", "B=2"]
    assert image.config["history"][0]["comment"] == "why"
    assert (image.layers[0].directory / "file").read_bytes() == b"content"
    assert store.resolve(image.ref) == image


def test_a_bad_root_file_system_or_change_makes_no_image(store: ImageStore) -> None:
    for data, changes in ((LAYER[:700], []), (LAYER, ["FROM x"]), (archive([member("../x")]).getvalue(), [])):
        with pytest.raises(TareError):
            import_tar(store, io.BytesIO(data), ImageRef.parse("rootfs"), changes=changes)
    assert store.images() == []


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 20_000), st.binary(min_size=1, max_size=700))
def test_any_damage_is_refused_or_harmless(at: int, noise: bytes) -> None:
    whole = bytearray(tar(docker_archive()))
    whole[at % len(whole) : at % len(whole) + len(noise)] = noise
    with tempfile.TemporaryDirectory() as scratch:
        store = ImageStore(Path(scratch) / "root")
        with suppress(TareError):
            for image in load(store, io.BytesIO(bytes(whole))):
                assert store.resolve(image.ref) == image
        assert [path.name for path in Path(scratch).iterdir()] == ["root"]

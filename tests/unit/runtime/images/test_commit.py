"""A writable layer becomes an image layer that hides what it hid, and nothing else of the image changes."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import TareError, UsageError
from runtime.images.commit import changed, commit, configuration
from runtime.images.store import Image, ImageStore
from runtime.spec import ImageRef
from tests.conftest import skip_or_fail
from tests.unit.runtime.images.trees import archive, grow, member

BASE, MADE = ImageRef.parse("test/base:1"), ImageRef.parse("test/made:1")


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "root")


@pytest.fixture
def base(store: ImageStore, tmp_path: Path) -> Image:
    path = tmp_path / "layer.tar"
    path.write_bytes(archive([member("file", b"of the image")]).getvalue())
    return store.add(BASE, [store.put_layer(path)], labels={"kept": "yes"}, history=["first"])


@pytest.fixture
def upper(tmp_path: Path) -> Path:
    """As overlayfs leaves it: a new file, two names of one, a whiteout, an opaque directory."""
    upper = grow(tmp_path / "upper", {"new": b"1", "dir": {"inner": b"2"}})
    os.link(upper / "new", upper / "same")
    try:
        os.mknod(upper / "file", stat.S_IFCHR, 0)
        os.setxattr(upper / "dir", "trusted.overlay.opaque", b"y")
    except PermissionError:
        skip_or_fail("needs root")
    return upper


def test_the_new_image_has_one_layer_more_and_hides_what_was_hidden(
    store: ImageStore, base: Image, upper: Path
) -> None:
    made = commit(store, base.digest, upper, MADE, settings={"Cmd": ["x"]}, author="me", message="why", created_by="x")
    assert made == store.resolve(MADE)
    assert made.layers[:-1] == base.layers
    layer = made.layers[-1].directory
    assert (layer / "new").read_bytes() == b"1"
    assert (layer / "new").stat().st_ino == (layer / "same").stat().st_ino
    assert (layer / "file").lstat().st_rdev == 0
    assert stat.S_ISCHR((layer / "file").lstat().st_mode)
    assert os.getxattr(layer / "dir", "trusted.overlay.opaque") == b"y"
    assert (layer / "dir/inner").read_bytes() == b"2"
    assert made.config["config"] == {"Cmd": ["x"]}
    assert made.config["author"] == "me"
    assert [step.get("comment") for step in made.config["history"]] == [None, "why"]
    assert store.resolve(BASE) == base


def test_the_same_layer_twice_is_stored_once(store: ImageStore, base: Image, upper: Path) -> None:
    one = commit(store, base.digest, upper, MADE, settings={})
    two = commit(store, base.digest, upper, ImageRef.parse("test/again:1"), settings={})
    assert one.layers == two.layers


def test_an_image_of_a_base_that_is_gone_is_not_made(store: ImageStore, base: Image, upper: Path) -> None:
    store.remove(BASE)
    store.sweep(unneeded=True)
    with pytest.raises(TareError, match="missing from the store"):
        commit(store, base.digest, upper, MADE, settings={})
    assert store.images() == []


def test_a_name_that_would_hide_a_file_is_refused(store: ImageStore, base: Image, upper: Path) -> None:
    (upper / "dir/.wh.inner").touch()
    with pytest.raises(TareError, match=r"/dir/\.wh\.inner would hide"):
        commit(store, base.digest, upper, MADE, settings={})
    assert [image.ref for image in store.images()] == [BASE]
    assert list((store.directory / "partial").iterdir()) == []


def test_the_configuration_is_found_by_the_manifest(store: ImageStore, base: Image) -> None:
    assert configuration(store, base.digest) == base.config


@pytest.mark.parametrize(
    ("instruction", "wanted"),
    [
        ("CMD echo a b", {"Cmd": ["/bin/sh", "-c", "echo a b"]}),
        ('cmd ["echo", "a b"]', {"Cmd": ["echo", "a b"]}),
        ('ENTRYPOINT ["/x"]', {"Entrypoint": ["/x"]}),
        ('ENV A=1 C="x y"', {"Env": ["A=1", "B=2", "C=x y"]}),
        ("ENV A one two", {"Env": ["A=one two", "B=2"]}),
        ("LABEL a=b", {"Labels": {"a": "b"}}),
        ("EXPOSE 80 53/udp", {"ExposedPorts": {"80/tcp": {}, "53/udp": {}}}),
        ("VOLUME /a /b", {"Volumes": {"/a": {}, "/b": {}}}),
        ("USER 1:2", {"User": "1:2"}),
        ("WORKDIR sub", {"WorkingDir": "/w/sub"}),
        ("WORKDIR /sub", {"WorkingDir": "/sub"}),
        ("STOPSIGNAL SIGINT", {"StopSignal": "SIGINT"}),
    ],
)
def test_an_instruction_changes_what_it_names(instruction: str, wanted: dict[str, Any]) -> None:
    before: dict[str, Any] = {"Env": ["A=0", "B=2"], "WorkingDir": "/w"}
    assert changed(before, [instruction]) == before | wanted
    assert before == {"Env": ["A=0", "B=2"], "WorkingDir": "/w"}


@pytest.mark.parametrize(
    "instruction", ["", "RUN x", "CMD", "CMD [1]", 'CMD ["a"', "ENV =x", "ENV A=1 B", "EXPOSE http", "VOLUME rel"]
)
def test_a_wrong_instruction_is_refused_by_itself(instruction: str) -> None:
    with pytest.raises(UsageError, match="change"):
        changed({}, ["USER 1", instruction])

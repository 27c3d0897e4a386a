"""Named volumes on a temporary state root."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from runtime.container.volumes import Volume, VolumeStore
from runtime.errors import TareError, UsageError


def used_by(root: Path, container: str, source: Path) -> None:
    """A container's configuration that mounts `source`."""
    directory = root / "containers" / container
    directory.mkdir(parents=True)
    mounts = [{"destination": "/d", "source": str(source)}, {"destination": "/proc", "source": "proc"}]
    (directory / "config.json").write_text(json.dumps({"mounts": mounts}))


def test_a_volume_keeps_its_name_labels_and_content(tmp_path: Path) -> None:
    store = VolumeStore(tmp_path)
    made = store.create("data", {"a": "b"})
    (made.data / "file").write_text("x")
    assert store.create("data", {"other": ""}) == made
    assert store.find("data") == made
    assert (made.data / "file").read_text() == "x"
    assert made.document()["Mountpoint"] == str(tmp_path / "volumes/data/_data")
    assert not made.anonymous


def test_a_volume_without_a_name_gets_one_of_64_digits(tmp_path: Path) -> None:
    store = VolumeStore(tmp_path)
    made = store.create()
    assert made.anonymous
    assert len(made.name) == 64
    assert store.all() == [made]


def test_volumes_without_a_name_go_when_what_they_were_made_for_fails(tmp_path: Path) -> None:
    store = VolumeStore(tmp_path)
    kept = store.create().name

    def fail() -> None:
        with store.held():
            store.ensure("data")
            store.ensure()
            raise TareError("container", "its name is taken", "choose another")

    with pytest.raises(TareError):
        fail()
    assert sorted(volume.name for volume in store.all()) == sorted((kept, "data"))


@pytest.mark.parametrize("name", ["", "a", ".hidden", "../up", "a/b", "x" * 300, "lo ck"])
def test_a_name_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    store = VolumeStore(tmp_path)
    with pytest.raises(UsageError):
        store.create(name)
    with pytest.raises(TareError):
        store.find(name)
    assert store.all() == []


def test_a_volume_in_use_is_not_removed(tmp_path: Path) -> None:
    store = VolumeStore(tmp_path)
    made = store.create("data")
    store.create("data2")
    used_by(tmp_path, "c" * 64, made.data)
    with pytest.raises(TareError, match=f"in use by container {'c' * 12} "):
        store.remove("data")
    store.remove("data2")
    assert [volume.name for volume in store.all()] == ["data"]


def test_what_a_crash_left_half_made_or_half_removed_is_swept(tmp_path: Path) -> None:
    store = VolumeStore(tmp_path)
    kept = store.create("kept")
    (store.directory / ".half/_data").mkdir(parents=True)
    assert store.all() == [kept]
    assert store.sweep() == [f"volume {store.directory}/.half"]
    assert store.sweep() == []
    assert store.all() == [kept]


def test_one_name_made_many_times_at_once_is_one_volume(tmp_path: Path) -> None:
    store = VolumeStore(tmp_path)
    made: list[Volume] = []
    threads = [threading.Thread(target=lambda: made.append(store.create("same"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 8
    assert set(map(str, made)) == {str(store.find("same"))}


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    """An image of one layer with something at /srv."""
    layer = tmp_path / "layer"
    (layer / "srv/deep").mkdir(parents=True)
    (layer / "srv").chmod(0o1750)
    (layer / "srv/deep/file").write_text("from the image")
    os.link(layer / "srv/deep/file", layer / "srv/same")
    (layer / "srv/link").symlink_to("/etc/passwd")
    return layer


def test_an_empty_volume_gets_what_the_image_has_there(tmp_path: Path, layer: Path) -> None:
    store = VolumeStore(tmp_path)
    made = store.create("data")
    assert store.populate(made, [layer], "/srv")
    assert (made.data / "deep/file").read_text() == "from the image"
    assert (made.data / "same").stat().st_ino == (made.data / "deep/file").stat().st_ino
    assert (made.data / "link").readlink() == Path("/etc/passwd")
    assert made.data.stat().st_mode == (layer / "srv").stat().st_mode
    assert {path.name for path in made.directory.iterdir()} == {"_data", "volume.json"}


def test_a_volume_with_content_keeps_to_it(tmp_path: Path, layer: Path) -> None:
    store = VolumeStore(tmp_path)
    made = store.create("data")
    (made.data / "mine").touch()
    assert not store.populate(made, [layer], "/srv")
    assert [path.name for path in made.data.iterdir()] == ["mine"]


def test_a_copy_cut_short_is_done_again(tmp_path: Path, layer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = VolumeStore(tmp_path)
    made = store.create("data")
    monkeypatch.setattr(os, "symlink", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        store.populate(made, [layer], "/srv")
    assert (made.data / "deep/file").exists()
    monkeypatch.undo()
    assert store.populate(made, [layer], "/srv")
    assert (made.data / "link").is_symlink()
    assert not store.populate(made, [layer], "/srv")


@pytest.mark.parametrize("target", ["/absent", "/srv/same", "/srv/same/x"])
def test_where_the_image_has_no_directory_the_volume_stays_empty(tmp_path: Path, layer: Path, target: str) -> None:
    store = VolumeStore(tmp_path)
    made = store.create("data")
    assert not store.populate(made, [layer], target)
    assert list(made.data.iterdir()) == []


def test_a_link_in_the_image_leads_nowhere_outside_it(tmp_path: Path, layer: Path) -> None:
    (layer / "out").symlink_to(tmp_path / "secret")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/key").write_text("host")
    store = VolumeStore(tmp_path)
    made = store.create("data")
    assert not store.populate(made, [layer], "/out")
    assert list(made.data.iterdir()) == []

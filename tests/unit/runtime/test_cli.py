"""`tare images` and `tare clean`: what they print, and that one broken driver does not stop the others."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from runtime import cli
from runtime.driver import Driver, Host
from runtime.errors import TareError, UsageError
from runtime.images import recipe
from runtime.images.disk import Machine
from runtime.images.store import ImageStore
from runtime.ledger import Ledger, boot_id
from runtime.linux import seccomp
from runtime.linux.profile import Seccomp
from runtime.spec import ImageRef
from runtime.tuning import NOTE
from tests.unit.runtime.images.trees import archive, member


class Tidy:
    """A driver that finds one thing to remove, once."""

    left: list[str]

    def __init__(self, host: Host) -> None:
        self.host = host

    def sweep(self) -> list[str]:
        found, Tidy.left = Tidy.left, []
        return found

    def close(self) -> None:
        pass


class Broken(Tidy):
    def sweep(self) -> list[str]:
        raise ImportError("no module named libvirt")


@pytest.fixture(autouse=True)
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setenv("TARE_ROOT", str(tmp_path))
    found: dict[str, type[Driver]] = {"broken": Broken, "tidy": Tidy}  # type: ignore[dict-item] # only what clean uses
    monkeypatch.setattr(cli, "drivers", lambda: found)
    Tidy.left = []
    return Host(root=tmp_path / "lib", run=tmp_path / "run")


def call(*words: str) -> str:
    command = {"images": cli.images, "clean": cli.clean}[words[0]]
    result = CliRunner().invoke(command, words[1:], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def add_image(host: Host, scratch: Path, labels: dict[str, str] | None = None) -> None:
    store = ImageStore(host.root)
    path = scratch / "layer.tar"
    path.write_bytes(archive([member("file", b"x" * 5000)]).getvalue())
    store.add(ImageRef.parse("test/image:1"), [store.put_layer(path)], labels=labels or {})


def test_clean_says_when_there_is_nothing(host: Host) -> None:
    assert call("clean") == "nothing to clean\n"
    assert json.loads(call("clean", "--json")) == {"removed": [], "live": [], "failed": []}
    assert not host.root.exists(), "cleaning must not make anything"


def test_clean_puts_back_what_a_killed_run_tuned_and_names_what_it_cannot(host: Host, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("one", "two")]
    paths[0].write_text("during")
    changes = [{"name": path.name, "path": str(path), "before": "before", "during": "during"} for path in paths]
    host.run.mkdir()
    (host.run / NOTE).write_text(json.dumps({"boot": boot_id(), "changes": changes}))
    said = call("clean")
    assert "removed the tuning of one: before" in said
    assert "not removed: the tuning of two: [Errno 2]" in said
    assert paths[0].read_text() == "before"
    paths[1].write_text("during")
    assert call("clean") == "removed the tuning of two: before\n"
    (host.run / NOTE).write_text("damaged")
    assert "not removed: note" in call("clean")


def test_a_broken_driver_does_not_stop_the_others() -> None:
    Tidy.left = ["cgroup tare/tare-1"]
    assert call("clean") == "removed cgroup tare/tare-1\n"


def test_a_broken_driver_is_named_when_it_left_something(host: Host) -> None:
    page = host.run / "instances" / "tare-0123456789ab.jsonl"
    page.parent.mkdir(parents=True)
    page.write_text('{"driver": "broken", "pid": 1, "start": 0, "boot": "another"}\n')
    assert "broken: no module named libvirt" in call("clean")


def test_live_instances_are_left_alone_and_keep_image_data(host: Host, tmp_path: Path) -> None:
    add_image(host, tmp_path)
    ImageStore(host.root).remove(ImageRef.parse("test/image:1"))
    entry = Ledger(host.run).open("tare-0123456789ab", "tidy")
    assert "left alone tare-0123456789ab: its owner, process" in call("clean")
    entry.close(gone=True)
    assert call("clean").count("removed image data") == 4  # layer directory and blob, configuration, manifest
    assert call("clean") == "nothing to clean\n"


def test_clean_forgets_compiled_filters_unless_an_instance_lives(host: Host) -> None:
    kept = [seccomp_file(place) for place in (host.run, host.root)]
    entry = Ledger(host.run).open("tare-0123456789ab", "tidy")
    call("clean")
    assert all(path.exists() for path in kept)
    entry.close(gone=True)
    assert call("clean") == "nothing to clean\n"
    assert not any(path.parent.exists() for path in kept)


def seccomp_file(place: Path) -> Path:
    seccomp.cached.cache_clear()
    seccomp.cached(Seccomp(default_action="SCMP_ACT_ALLOW"), place / "seccomp")
    (path,) = (place / "seccomp").iterdir()
    return path


def test_images_lists_sizes(host: Host, tmp_path: Path) -> None:
    assert call("images") == "no images (make them with tare build, or get some with tare pull)\n"
    add_image(host, tmp_path)
    assert "test/image:1" in call("images")
    (row,) = json.loads(call("images", "--json"))
    assert row["ref"] == "test/image:1"
    assert row["logical_bytes"] > 5000
    assert row["allocated_bytes"] % 512 == 0
    assert len(row["layers"]) == 1
    assert row["machine"] is None


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ((), True),
        (("test/image",), True),
        (("test/image:1",), True),
        (("test/*",), True),
        (("test/image:2",), False),
        (("--filter", "reference=*:1"), True),
        (("--filter", "label=a"), True),
        (("--filter", "label=a=b"), True),
        (("--filter", "label=a=c"), False),
        (("--filter", "dangling=true"), False),
    ],
)
def test_images_lists_those_that_are_asked_for(host: Host, tmp_path: Path, words: tuple[str, ...], shown: bool) -> None:
    add_image(host, tmp_path, {"a": "b"})
    found = call("images", *words, "--format", "{{.Repository}} {{.Tag}} {{.CreatedSince}}")
    assert found.startswith("test/image 1 ") == shown
    assert (len(call("images", "-q", *words)) == 13) == shown


def test_images_refuses_a_filter_that_is_none(host: Host) -> None:
    with pytest.raises(UsageError, match="--filter colour=red"):
        call("images", "--filter", "colour=red")


@pytest.mark.parametrize("command", [cli.images, cli.clean, cli.build])
def test_a_user_who_may_not_look_is_told(host: Host, monkeypatch: pytest.MonkeyPatch, command: click.Command) -> None:
    (host.root / "images").mkdir(parents=True)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(TareError, match="as root"):
        CliRunner().invoke(command, [], catch_exceptions=False)


def test_building_needs_root(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(TareError, match="needs root"):
        CliRunner().invoke(cli.build, [], catch_exceptions=False)
    assert not host.root.exists()


def test_build_prints_what_was_built(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_image(host, tmp_path)
    image = ImageStore(host.root).resolve(ImageRef.parse("test/image:1"))
    directory = tmp_path / "machine"
    directory.mkdir()
    (directory / "disk.raw").touch()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(recipe, "build", lambda store, source, **options: (image, image))
    monkeypatch.setattr(ImageStore, "machine", lambda *rest: Machine.at(directory, "sha256:machine"))
    monkeypatch.setattr(ImageStore, "machine_if_built", lambda *rest: Machine.at(directory, "sha256:machine"))
    result = CliRunner().invoke(cli.build, [], catch_exceptions=False)
    assert result.output.splitlines()[-1] == f"test/image:1 {image.digest} machine sha256:machine"
    rows = json.loads(CliRunner().invoke(cli.build, ["--json"], catch_exceptions=False).output)
    assert [row["ref"] for row in rows] == ["test/image:1"] * 2
    assert rows[0]["machine"] == {"logical_bytes": 0, "allocated_bytes": 0}

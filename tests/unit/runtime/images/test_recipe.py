"""A recipe is checked before anything is done, and nothing is built twice."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from runtime.errors import TareError, UsageError
from runtime.images import recipe as recipes
from runtime.images.recipe import Recipe, build, load
from runtime.images.store import MACHINE_LABEL, ImageStore
from tests.unit.runtime.images.trees import grow


def test_the_shipped_recipe_is_valid_and_names_the_bench_images() -> None:
    recipe = load("debian")
    assert (recipe.image, recipe.machine_image) == ("tare/debian:bookworm", "tare/debian-vm:bookworm")
    assert {"sysbench", "fio", "iperf3", "stress-ng"} <= set(recipe.base.packages)


def test_an_unknown_recipe_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="choose from debian"):
        load("plan9")


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ('suite = "bookworm"', 'suit = "bookworm"', "unknown key recipe.suit"),
        ('variant = "minbase"', "", "variant"),
        ('packages = ["sysbench"', 'packages = [1, "sysbench"', "no list of strings|mixed"),
        ("[guest", "[[guest", "."),
        ('image = "tare/debian:bookworm"', 'image = "Tare"', "lower case"),
        ('disk_bytes = "4g"', 'disk_bytes = "big"', "not a number"),
        ("[base]", "[base", "."),
    ],
)
def test_a_wrong_recipe_is_a_usage_error(tmp_path: Path, old: str, new: str, why: str) -> None:
    path = tmp_path / "mine.toml"
    text = load("debian").source.decode()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(UsageError, match=why):
        load(str(path))


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """The shipped recipe with the outside world replaced: two small trees and a program that is only text."""

    def bootstrap(recipe: Recipe, work: Path) -> None:
        grow(work / "base", {"usr": {"bin": {"fio": b"fio"}}, "proc": {"leak": b""}})
        grow(work / "full", {"usr": {"bin": {"fio": b"fio"}}, "proc": {}, "boot": {"vmlinuz-1": b"kernel"}})
        runs.append("bootstrap")

    def compile_static(source: Path, program: Path) -> None:
        program.write_bytes(source.read_bytes())
        runs.append(f"compile {source.name}")

    runs.clear()
    sources = grow(
        tmp_path / "guest", {"agent.c": b"int main;", "configure.h": b"", "files.h": b"", "gauge.c": b"int gauge;"}
    )
    monkeypatch.setattr(recipes, "GUEST_SOURCES", sources)
    monkeypatch.setattr(recipes, "_bootstrap", bootstrap)
    monkeypatch.setattr(recipes, "compile_static", compile_static)
    return load("debian")


runs: list[str] = []
COMPILED = ["compile agent.c", "compile gauge.c"]


def test_both_images_share_their_lowest_layer(recipe: Recipe, tmp_path: Path) -> None:
    image, machine = build(ImageStore(tmp_path), recipe)
    assert image.layers[0] == machine.layers[0]
    assert image.layers[-1] == machine.layers[-1]
    assert image.labels[MACHINE_LABEL] == str(machine.ref)
    middle = machine.layers[1].directory
    assert [str(path.relative_to(middle)) for path in middle.rglob("*")] == ["boot", "boot/vmlinuz-1"]
    assert not (image.layers[0].directory / "proc/leak").exists()
    assert (image.layers[1].directory / "usr/lib/tare/agent").stat().st_mode & 0o777 == 0o755


def test_nothing_is_built_again_unless_asked(recipe: Recipe, tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    first = build(store, recipe)
    assert build(store, recipe) == first
    assert runs == [*COMPILED, "bootstrap"]
    assert build(store, recipe, force=True) == first, "the same sources give the same digests"
    assert runs == [*COMPILED, "bootstrap"] * 2


def test_a_new_agent_alone_does_not_bootstrap_again(recipe: Recipe, tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    first, _ = build(store, recipe)
    (tmp_path / "guest/agent.c").write_text("int changed;")
    second, _ = build(store, recipe)
    assert runs == [*COMPILED, "bootstrap", *COMPILED]
    assert second.layers[0] == first.layers[0]
    assert second.layers[1] != first.layers[1]


@pytest.mark.parametrize("name", ["configure.h", "files.h", "gauge.c"])
def test_what_the_agent_includes_and_the_gauge_count_as_sources(recipe: Recipe, tmp_path: Path, name: str) -> None:
    store = ImageStore(tmp_path)
    build(store, recipe)
    (tmp_path / "guest" / name).write_text("int changed;")
    build(store, recipe)
    assert runs == [*COMPILED, "bootstrap", *COMPILED]


def test_a_failed_bootstrap_shows_the_end_of_its_log(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bootstrap(recipe: Recipe, work: Path) -> None:
        log = work / "bootstrap.log"
        log.write_text("I: fine\nE: no such suite\n")
        with recipes._log_explains(log, recipe):
            raise TareError("command mmdebstrap", "exit 25")

    monkeypatch.setattr(recipes, "_bootstrap", bootstrap)
    with pytest.raises(TareError, match=r"E: no such suite .*build\.log"):
        build(ImageStore(tmp_path), recipe)
    assert list((tmp_path / "images/partial").iterdir()) == []
    assert "no such suite" in (tmp_path / "images/build.log").read_text()


def test_too_little_space_is_said_before_the_long_step(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipes, "_NEEDED_BYTES", 1 << 60)
    with pytest.raises(TareError, match="MiB free"):
        build(ImageStore(tmp_path), recipe)
    assert "bootstrap" not in runs


def test_a_missing_tool_names_the_script_that_installs_it(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(TareError, match=r"mmdebstrap is not installed .*bootstrap"):
        build(ImageStore(tmp_path), recipe)


def test_a_missing_agent_source_is_said(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "guest/agent.c").unlink()
    with pytest.raises(TareError, match="no such file"):
        build(ImageStore(tmp_path), replace(recipe))

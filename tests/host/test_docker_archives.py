"""Images travel between a real Docker engine and Tare, both ways, and are the same on both sides."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from runtime.command import run
from runtime.driver import Host
from runtime.images.archives import load
from runtime.images.merging import merge
from runtime.images.recipe import compile_static
from runtime.images.saving import save
from runtime.images.store import ImageStore
from runtime.spec import ImageRef
from tests.engines import DockerEngine, docker_engine
from tests.host.life import NONE, Tare

# Changes its root file system in every way a layer can say.
_PROGRAM = r"""
#include <stdio.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>
int main(int argc, char **argv) {
    if (argc < 2) { puts("hello from inside"); return 0; }
    unlink("/dir/gone"); unlink("/all/one"); rmdir("/all"); mkdir("/all", 0750);
    FILE *file = fopen("/all/new", "w"); fputs("new", file); fclose(file);
    chown("/all/new", 12, 34); chmod("/dir/kept", 04711); symlink("../x", "/dir/soft"); link("/all/new", "/dir/twin");
    mkfifo("/fifo", 0600); fclose(fopen("/holes", "w")); return truncate("/holes", 1 << 20);
}
"""
NAME = "round/trip:1"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerEngine]:
    with TemporaryDirectory(prefix="t-", dir="/var/tmp") as directory, docker_engine(Path(directory)) as found:
        scratch = tmp_path_factory.mktemp("rootfs")
        root = scratch / "root"
        for name in ("dir", "all"):
            (root / name).mkdir(parents=True)
        (scratch / "program.c").write_text(_PROGRAM)
        compile_static(scratch / "program.c", root / "program")
        for name in ("dir/gone", "dir/kept", "all/one"):
            (root / name).write_text(name)
        found.load_rootfs(root, "base:1")
        found.docker("run", "--name", "changed", "--network", "none", "base:1", "/program", "change")
        found.docker("commit", "--change", 'CMD ["/program"]', "changed", NAME)
        yield found


@pytest.fixture(scope="module")
def saved(engine: DockerEngine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "images.tar"
    engine.docker("save", "--output", str(path), "base:1", NAME)
    return path


def image_id(engine: DockerEngine, name: str) -> str:
    return engine.docker("image", "inspect", "--format", "{{.Id}}", name).stdout.strip()


def test_what_the_engine_saves_is_loaded_as_it_is(engine: DockerEngine, saved: Path, tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    images = {str(image.ref): image for image in load(store, saved)}
    assert {name: image.id for name, image in images.items()} == {
        name: image_id(engine, name) for name in ("base:1", NAME)
    }
    assert len(images[NAME].layers) == 2
    assert images[NAME].layers[0] == images["base:1"].layers[0]
    merge([layer.directory for layer in images[NAME].layers], tmp_path / "merged")
    engine.docker("create", "--name", "look", NAME)
    exported = _export(engine, "look")
    ours = {path.relative_to(tmp_path / "merged"): path for path in (tmp_path / "merged").rglob("*")}
    with tarfile.open(fileobj=io.BytesIO(exported)) as tar:
        theirs = {Path(member.name): member for member in tar}
    mounted = {"dev", "proc", "sys", "etc", ".dockerenv"}  # what the engine puts into every container
    assert {str(path) for path in theirs if path.parts[0] not in mounted} == {str(path) for path in ours}
    for path, mine in ours.items():
        info, member = mine.lstat(), theirs[path]
        if not member.islnk():
            assert (info.st_mode & 0o7777, info.st_uid, info.st_gid) == (
                member.mode & 0o7777,
                member.uid,
                member.gid,
            ), path
    assert (tmp_path / "merged/all/new").samefile(tmp_path / "merged/dir/twin")
    assert not (tmp_path / "merged/all/one").exists()


def _export(engine: DockerEngine, name: str) -> bytes:
    return subprocess.run(engine.command("export", name), check=True, capture_output=True).stdout


@pytest.mark.parametrize("form", ["oci", "docker"])
def test_what_we_save_the_engine_loads_and_runs(engine: DockerEngine, saved: Path, tmp_path: Path, form: str) -> None:
    store = ImageStore(tmp_path / "root")
    load(store, saved)
    image = store.find(NAME)
    store.tag(image, ImageRef.parse(f"back/{form}:1"))
    path = tmp_path / "ours.tar"
    with path.open("wb") as file:
        save(store, [store.find(f"back/{form}:1")], file, form=form)
    engine.docker("load", "--input", str(path))
    assert image_id(engine, f"back/{form}:1") == image.id
    said = engine.docker("run", "--rm", "--network", "none", f"back/{form}:1").stdout
    assert said == "hello from inside\n"


def test_the_engine_loads_an_image_of_ours_that_it_never_saw(engine: DockerEngine, tmp_path: Path) -> None:
    """Compressed layers come in through the layout and the manifest beside it, without the engine's history."""
    (tmp_path / "program.c").write_text(_PROGRAM)
    (tmp_path / "rootfs").mkdir()
    compile_static(tmp_path / "program.c", tmp_path / "rootfs/program")
    run(["tar", "-C", str(tmp_path / "rootfs"), "-czf", str(tmp_path / "rootfs.tar.gz"), "."], timeout_s=60)
    (tmp_path / "state").mkdir()
    tare = Tare(tmp_path / "state")
    tare("import", "--change", 'CMD ["/program"]', str(tmp_path / "rootfs.tar.gz"), "fresh:2").good()
    for form in ("oci", "docker"):
        tare("save", "--format", form, "--output", str(tmp_path / "out.tar"), "fresh:2").good()
        engine.docker("load", "--input", str(tmp_path / "out.tar"))
        assert engine.docker("run", "--rm", "--network", "none", "fresh:2").stdout == "hello from inside\n"
        engine.docker("rmi", "fresh:2")


def test_load_run_save_and_back(engine: DockerEngine, saved: Path, tmp_path: Path, root_user: None) -> None:
    """The whole way, with the commands a user types: the engine's image runs here, and what ran goes back."""
    with TemporaryDirectory(prefix="t-", dir="/var/tmp") as directory:
        tare = Tare(Path(directory))
        try:
            tare("load", "--quiet", "--input", str(saved)).good()
            assert tare("run", "--rm", *NONE, NAME).good() == "hello from inside"
            tare("run", "--name", "again", *NONE, "base:1", "/program", "change").good()
            tare("commit", "--change", 'CMD ["/program"]', "again", "ours:1").good()
            refused = tare("rmi", "base:1")
            assert refused.code == 1
            assert "uses it" in refused.err
            tare("save", "--format", "docker", "--output", f"{directory}/ours.tar", "ours:1").good()
            tare("rm", "again").good()
            assert "deleted" in tare("rmi", "base:1", NAME, "ours:1").good()
            assert json.loads(tare("images", "--json").good()) == []
        finally:
            tare.close()
        engine.docker("load", "--input", f"{directory}/ours.tar")
    assert engine.docker("run", "--rm", "--network", "none", "ours:1").stdout == "hello from inside\n"
    engine.docker("create", "--name", "ours-look", "ours:1")
    with tarfile.open(fileobj=io.BytesIO(_export(engine, "ours-look"))) as tar:
        names = {member.name.rstrip("/"): member for member in tar}
    assert {"all/new", "dir/twin", "dir/soft", "fifo"} <= set(names)
    assert not {"all/one", "dir/gone"} & set(names)
    assert names["holes"].size == 1 << 20
    assert (names["all/new"].uid, names["dir/kept"].mode & 0o7777) == (12, 0o4711)


def test_a_bench_image_runs_in_the_engine(bench_host: Host, engine: DockerEngine, tmp_path: Path) -> None:
    """An image of several hundred megabytes through a pipe, as `tare save | docker load` does."""
    store = ImageStore(bench_host.root)
    with subprocess.Popen(engine.command("load"), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as loading:
        assert loading.stdin is not None
        save(store, [store.find("tare/debian:bookworm")], loading.stdin)
        loading.stdin.close()
        assert loading.wait(120) == 0
    command = ("run", "--rm", "--network", "none", "tare/debian:bookworm", "/bin/cat", "/etc/os-release")
    assert "bookworm" in engine.docker(*command).stdout

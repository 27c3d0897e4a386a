"""`cp` and `diff` beside a real Docker engine's: the same wishes, the same outcome."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest

from runtime.container.changes import changes
from runtime.errors import TareError
from runtime.files.copying import TreeSink, copy, tree_entries
from runtime.files.placing import Side, destination, source
from tests.engines import DockerEngine, docker_engine

PROGRAMS = ("sh", "mkdir", "rm", "mv", "touch", "ln", "chmod", "cp", "cat")
CHANGES = """
echo x >> /etc/passwd
rm /etc/gone
echo new > /etc/new
chmod 700 /srv/kept
touch /srv/deep/file
rm -r /srv/tree
rm -r /srv/again && mkdir /srv/again && echo y > /srv/again/other
mkdir -p /made/of/many
echo a > /made/of/many/parts
mkdir /away && rm -r /away
rm /srv/link && ln -s /elsewhere /srv/link
mv /srv/moved /srv/renamed
cat /srv/read > /dev/null
rm /srv/file && mkdir /srv/file && echo z > /srv/file/inner
rm -r /srv/dir && echo z > /srv/dir
"""


def _rootfs(root: Path) -> None:
    """A shell and a few programs with their libraries, and files to change."""
    for name in PROGRAMS:
        program = Path(shutil.which(name) or "").resolve()
        _take(root, program, Path("/bin") / name)
        for word in subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout.split():
            if word.startswith("/"):
                _take(root, Path(word).resolve(), Path(word))
    for name in ("etc/passwd", "etc/gone", "srv/deep/file", "srv/kept", "srv/tree/a/b", "srv/again/old", "srv/moved"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("of the image")
    for name in ("srv/read", "srv/file", "srv/dir/inner"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("of the image")
    (root / "srv/link").symlink_to("/nowhere")
    for path in root.rglob("*"):  # layers keep whole seconds, within which Docker takes a touched file for the same
        os.utime(path, (1e9, 1e9), follow_symlinks=False)


def _take(root: Path, path: Path, name: Path) -> None:
    target = root / name.relative_to("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        shutil.copy2(path, target)


@pytest.fixture(scope="module")
def engine() -> Iterator[DockerEngine]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with tempfile.TemporaryDirectory(prefix="tare-", dir="/var/tmp") as directory:  # short: it holds sockets
        base = Path(directory)
        _rootfs(base / "rootfs")
        with docker_engine(base / "docker") as engine:
            engine.load_rootfs(base / "rootfs", "small")
            yield engine


def test_changes_are_those_that_docker_lists(engine: DockerEngine) -> None:
    engine.docker("run", "--network", "none", "--name", "changed", "small", "/bin/sh", "-ec", CHANGES)
    data = json.loads(engine.docker("inspect", "changed").stdout)[0]["GraphDriver"]["Data"]
    layers = [Path(layer) for layer in reversed(data["LowerDir"].split(":"))]
    ours = [str(change) for change in changes(Path(data["UpperDir"]), layers)]
    assert sorted(ours) == sorted(engine.docker("diff", "changed").stdout.splitlines())


HOST = {"file": "f", "dir/one": "1", "dir/sub/two": "2"}
INSIDE = {"have/": "", "have/kept": "k", "there": "old", "in/sub/x": "x"}
LINKS = {"tofile": "there", "todir": "/have", "tonothing": "/have/fresh", "dir2/sub": "/have"}
COPIES = [
    ("file", "/new"),
    ("file", "/new/"),
    ("file", "/have"),
    ("file", "have/"),
    ("file", "/have/."),
    ("file", "/there"),
    ("file", "/there/"),
    ("file", "/absent/new"),
    ("file", "/tofile"),
    ("file", "/todir"),
    ("file", "/todir/x"),
    ("file", "/tonothing"),
    ("file", "/../../up"),
    ("file", "/"),
    ("dir", "/new"),
    ("dir", "/new/"),
    ("dir", "/have"),
    ("dir/", "/have"),
    ("dir/.", "/have"),
    ("dir/.", "/new"),
    ("dir", "/there"),
    ("dir", "/absent/new"),
    ("dir", "/todir"),
    ("dir", "/"),
    ("dir/.", "/"),
    ("absent", "/have"),
]


def _plant(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir(exist_ok=True)
        else:
            path.write_text(text)


@pytest.fixture
def trees(tmp_path: Path) -> tuple[Path, Path]:
    """The host's files, and a container's root."""
    _plant(tmp_path / "host", HOST)
    _plant(tmp_path / "root", INSIDE)
    (tmp_path / "root/dir2").mkdir()
    for name, target in LINKS.items():
        (tmp_path / "root" / name).symlink_to(target)
    return tmp_path / "host", tmp_path / "root"


def _listed(tar: tarfile.TarFile) -> dict[str, object]:
    found: dict[str, object] = {}
    for member in tar:
        name = member.name.removeprefix("./").rstrip("/")
        content = tar.extractfile(member) if member.isreg() else None
        found[name] = member.linkname or (content.read() if content else "directory")
    return {
        name: what
        for name, what in found.items()
        if name.split("/")[0] not in ("", ".dockerenv", "dev", "etc", "proc", "sys")
    }


@pytest.mark.parametrize(("path", "target"), COPIES)
def test_a_copy_ends_as_dockers_does(engine: DockerEngine, trees: tuple[Path, Path], path: str, target: str) -> None:
    host, root = trees
    engine.load_rootfs(root, "copies")
    container = engine.docker("create", "copies", "/none").stdout.strip()
    theirs = engine.docker("cp", f"{host}/{path}", f"{container}:{target}", check=False).returncode
    archive = subprocess.run(engine.command("export", container), capture_output=True, check=True).stdout
    engine.docker("rm", container)
    ours = _copied(root, f"{host}/{path}", target)
    with BytesIO() as out, tarfile.open(fileobj=out, mode="w") as mine:
        mine.add(root, "")
        mine.close()
        out.seek(0)
        with tarfile.open(fileobj=out) as one, tarfile.open(fileobj=BytesIO(archive)) as two:
            assert _listed(one) == _listed(two)
    assert ours == (theirs == 0)


def _copied(root: Path, path: str, target: str) -> bool:
    descriptor = os.open(root, os.O_RDONLY)
    try:
        with source(Side(), path) as what, destination(Side(descriptor), target, what) as where:
            copy(tree_entries(what.descriptor), TreeSink(where.directory), name=where.name)
    except TareError:
        return False
    finally:
        os.close(descriptor)
    return True

"""`tare cp`, `tare diff` and volumes on real overlays: of a container that does not run, and of one that does."""

from __future__ import annotations

import io
import json
import os
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from runtime.container.rootdir import opened_layers
from runtime.container.state import RUN, Record, StateDirectory, write_json
from runtime.container.volumes import VolumeStore
from runtime.errors import TareError
from runtime.images.pack import pack
from runtime.images.store import ImageStore
from runtime.ledger import boot_id, process_start
from runtime.linux.inside import open_inside
from runtime.spec import ImageRef
from tare import tare
from tests.conftest import skip_or_fail

# Mounts its root as a container has it and waits there; the words are overlay options, root, volume and its target.
INIT = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def mount(source, target, kind, flags, data=None):
    if libc.mount(source, target, kind, flags, data):
        raise OSError(ctypes.get_errno(), "mount", target)
options, root, source, target = map(os.fsencode, sys.argv[1:])
if libc.unshare(0x20000):
    raise OSError(ctypes.get_errno(), "unshare")
mount(None, b"/", None, 0x4000 | 1 << 18)
mount(b"overlay", root, b"overlay", 0, options)
mount(b"proc", root + b"/proc", b"proc", 0)
mount(source, root + target, None, 0x1000)
os.chroot(root)
os.chdir("/")
print("there", flush=True)
sys.stdin.read()
"""


@dataclass
class Made:
    """A container written down by hand: its state root, its name, and its directories."""

    root: Path
    record: Record
    layer: Path
    volume: Path

    @property
    def upper(self) -> Path:
        return self.record.directory / "upper"

    def tare(self, *words: str, stdin: bytes = b"") -> Result:
        return CliRunner().invoke(tare, ["--root", str(self.root), *words], input=stdin)

    def ok(self, *words: str, stdin: bytes = b"") -> bytes:
        result = self.tare(*words, stdin=stdin)
        assert result.exception is None, (result.exception, result.stderr)
        return result.stdout_bytes


def _image(layer: Path) -> None:
    for name in ("etc", "proc", "srv/deep", "tmp"):
        (layer / name).mkdir(parents=True)
    (layer / "etc/passwd").write_text("root:x:0:0::/:\n")
    (layer / "etc/gone").write_text("x")
    (layer / "srv/deep/file").write_text("of the image")
    (layer / "etc/escape").symlink_to("/" + "../" * 20 + "tmp")


@pytest.fixture
def made(tmp_path: Path, root_user: None, monkeypatch: pytest.MonkeyPatch) -> Made:
    """A container that was never started, with a volume at /data."""
    monkeypatch.setenv("TARE_ROOT", str(tmp_path))  # so that the command's own setting of it ends with the test
    _image(tmp_path / "grown")
    store = ImageStore(tmp_path / "lib")
    with (tmp_path / "layer.tar").open("wb") as archive:
        pack(tmp_path / "grown", archive, epoch_s=1_000_000_000)
    image = store.add(ImageRef.parse("test/base:1"), [store.put_layer(tmp_path / "layer.tar")], labels={"a": "b"})
    layer = image.layers[0].directory
    volume = VolumeStore(tmp_path / "lib").create("vol").data
    state = StateDirectory(tmp_path / "lib")
    record = Record(
        id=state.draw_id(),
        name="box",
        directory=Path(),
        image=str(image.ref),
        image_digest=image.digest,
        layers=(str(layer),),
        argv=("true",),
        created_at="2026-01-01T00:00:00Z",
    )
    mounts = [{"destination": "/data", "type": "bind", "source": str(volume), "options": ["rbind", "rw"]}]
    process = {"args": ["/bin/x", "1"], "env": ["A=1", "HOSTNAME=box"], "cwd": "/srv"}
    record = state.create(record, {"root": {"path": "/"}, "mounts": mounts, "process": process})
    return Made(tmp_path, record, layer, volume)


@pytest.fixture
def start(made: Made) -> Iterator[Callable[[], None]]:
    """Let the container run."""
    running: list[subprocess.Popen[bytes]] = []

    def act() -> None:
        (made.upper / "data").mkdir(exist_ok=True)
        options = f"lowerdir={made.layer},upperdir={made.upper},workdir={made.record.directory}/work"
        argv = [sys.executable, "-c", INIT, options, str(made.upper), str(made.volume), "/data"]
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        running.append(process)
        assert process.stdout is not None
        assert process.stderr is not None
        if process.stdout.readline() != b"there\n":
            skip_or_fail(process.stderr.read().decode())
        run = {"pid": process.pid, "start": process_start(process.pid), "boot": boot_id(), "started_at": "now"}
        write_json(made.record.directory / RUN, run)

    yield act
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture(params=["stopped", "running"])
def box(request: pytest.FixtureRequest, made: Made, start: Callable[[], None]) -> Made:
    """The container in either state."""
    if request.param == "running":
        start()
    return made


def test_files_go_in_and_come_out_as_they_were(box: Made, tmp_path: Path) -> None:
    (tmp_path / "host").write_text("from the host")
    os.chown(tmp_path / "host", 1234, 1235)
    box.ok("cp", f"{tmp_path}/host", "box:/etc/new")
    box.ok("cp", "-a", f"{tmp_path}/host", "box:/etc/same")
    assert (box.upper / "etc/new").read_text() == "from the host"
    assert [(box.upper / name).stat().st_uid for name in ("etc/new", "etc/same")] == [0, 1234]
    box.ok("cp", "box:/etc/same", f"{tmp_path}/out")
    box.ok("cp", "-a", "box:etc/same", f"{tmp_path}/kept")
    assert (tmp_path / "out").read_text() == "from the host"
    assert [(tmp_path / name).stat().st_gid for name in ("out", "kept")] == [0, 1235]
    box.ok("cp", "box:/srv", f"{tmp_path}/tree")
    assert (tmp_path / "tree/deep/file").read_text() == "of the image"


def test_a_volume_is_part_of_what_is_copied(box: Made, tmp_path: Path) -> None:
    (box.volume / "inside").write_text("kept")
    box.ok("cp", "box:/data/inside", f"{tmp_path}/out")
    box.ok("cp", f"{tmp_path}/out", "box:/data/again")
    assert (box.volume / "again").read_text() == "kept"
    assert not (box.upper / "data/again").exists()


def test_tar_streams_go_both_ways(box: Made) -> None:
    archive = box.ok("cp", "box:/srv/deep", "-")
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        assert tar.getnames() == ["deep", "deep/file"]
    box.ok("cp", "-", "box:/tmp", stdin=archive)
    assert (box.upper / "tmp/deep/file").read_text() == "of the image"


def test_a_link_inside_never_leads_to_the_host(box: Made, tmp_path: Path) -> None:
    (tmp_path / "host").write_text("x")
    (box.upper / "key").symlink_to(tmp_path / "host")
    result = box.tare("cp", "-L", "box:/key", f"{tmp_path}/stolen")
    assert "no such file" in str(result.exception)
    box.ok("cp", f"{tmp_path}/host", "box:/etc/escape/marker-of-tare-test")
    assert not Path("/tmp/marker-of-tare-test").exists()
    assert (box.upper / "tmp/marker-of-tare-test").exists()


def test_nothing_stays_mounted(box: Made, tmp_path: Path) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    box.ok("cp", "box:/etc", f"{tmp_path}/out")
    box.tare("cp", "box:/absent", f"{tmp_path}/out")
    assert Path("/proc/self/mountinfo").read_text() == before


def test_changes_are_listed(box: Made, tmp_path: Path) -> None:
    (tmp_path / "host").write_text("x")
    assert [line for line in box.ok("diff", "box").splitlines() if line != b"A /data"] == []
    box.ok("cp", f"{tmp_path}/host", "box:/etc/passwd")
    box.ok("cp", f"{tmp_path}/host", "box:/fresh")
    lines = box.ok("diff", "box").decode().splitlines()
    assert [line for line in lines if line != "A /data"] == ["C /etc", "C /etc/passwd", "A /fresh"]
    assert {"Path": "/fresh", "Kind": "A"} in json.loads(box.ok("diff", "--json", "box"))


def test_a_commit_is_what_the_container_is(made: Made, tmp_path: Path) -> None:
    (tmp_path / "host").write_text("x")
    made.ok("cp", f"{tmp_path}/host", "box:/etc/new")
    (made.upper / "etc/gone").unlink(missing_ok=True)
    os.mknod(made.upper / "etc/gone", stat.S_IFCHR, 0)
    said = made.ok("commit", "-a", "me", "-m", "why", "-c", "ENV B=2", "box", "test/made").decode().strip()
    image = ImageStore(made.root / "lib").resolve(ImageRef.parse("test/made"))
    assert said == image.id
    assert image.config["config"] == {
        "Cmd": ["/bin/x", "1"],
        "Env": ["A=1", "B=2"],
        "Labels": {"a": "b"},
        "WorkingDir": "/srv",
    }
    with opened_layers([layer.directory for layer in image.layers]) as root:
        etc = open_inside(root, "/etc", os.O_RDONLY)
        assert sorted(os.listdir(etc)) == ["escape", "new", "passwd"]  # noqa: PTH208 - a descriptor
        os.close(etc)


def test_a_commit_that_is_refused_makes_no_image(made: Made) -> None:
    for words in (["-c", "RUN x", "box", "test/made"], ["box", "Not A Name"], ["absent", "test/made"]):
        assert isinstance(made.tare("commit", *words).exception, TareError)
    assert [str(image.ref) for image in ImageStore(made.root / "lib").images()] == ["test/base:1"]


def test_the_kernels_own_files_are_not_copied(made: Made, start: Callable[[], None], tmp_path: Path) -> None:
    start()
    result = made.tare("cp", "box:/proc/version", f"{tmp_path}/out")
    assert "holds no files" in str(result.exception)
    made.ok("cp", "box:/", f"{tmp_path}/all")
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == ["data", "etc", "proc", "srv", "tmp"]
    assert list((tmp_path / "all/proc").iterdir()) == []


def test_a_process_with_the_number_of_one_that_ended_is_not_entered(
    made: Made, start: Callable[[], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start()
    monkeypatch.setattr("runtime.container.rootdir.process_start", lambda pid: 1)
    assert "just ended" in str(made.tare("cp", "box:/etc", f"{tmp_path}/out").exception)
    assert not (tmp_path / "out").exists()


def test_a_read_only_root_takes_nothing_but_its_mounts_do(made: Made, tmp_path: Path) -> None:
    (tmp_path / "host").write_text("x")
    document = StateDirectory(tmp_path / "lib").document(made.record.id)
    StateDirectory(tmp_path / "lib").rewrite(made.record, {**document, "root": {"path": "/", "readonly": True}})
    (made.volume / "out").symlink_to("/etc")
    for target in ("/etc/x", "/data/out/x"):
        assert "read-only" in str(made.tare("cp", f"{tmp_path}/host", f"box:{target}").exception)
    made.ok("cp", f"{tmp_path}/host", "box:/data/x")
    assert (made.volume / "x").exists()


def test_a_volume_is_in_use_as_long_as_its_container_is_there(made: Made) -> None:
    assert made.ok("volume", "ls", "-q", "-f", "dangling=true") == b""
    assert "in use by container" in made.tare("volume", "rm", "vol").stderr
    assert b"reclaimed space: 0 B" in made.ok("volume", "prune", "-a", "-f")
    StateDirectory(made.root / "lib").remove(made.record)
    assert made.ok("volume", "ls", "-q", "-f", "dangling=true") == b"vol\n"
    assert made.ok("volume", "rm", "vol") == b"vol\n"
    assert not made.volume.exists()

"""The built bench image on a real host: shared files, a sound disk, a full disk, an interrupted build."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.command import run
from runtime.driver import Host
from runtime.errors import TareError
from runtime.images import recipe
from runtime.images.layers import xattrs
from runtime.images.merging import merge
from runtime.images.store import ImageStore, tree_bytes
from runtime.spec import ImageRef
from tests.conftest import skip_or_fail
from tests.host.life import until
from tests.unit.runtime.images.trees import archive, member

IMAGE = ImageRef.parse("tare/debian:bookworm")
MACHINE = ImageRef.parse("tare/debian-vm:bookworm")
ROOT_OFFSET = "?offset=68157440"


def test_container_and_machine_share_their_files(bench_host: Host) -> None:
    store = ImageStore(bench_host.root)
    image, machine = store.resolve(IMAGE), store.resolve(MACHINE)
    assert {layer.digest for layer in image.layers} < {layer.digest for layer in machine.layers}
    tools = ("usr/bin/sysbench", "usr/bin/fio", "usr/bin/iperf3", "usr/bin/stress-ng")
    assert all((image.layers[0].directory / tool).exists() for tool in tools)
    changed = [tool for tool in tools if (machine.layers[1].directory / tool).exists()]
    assert changed == [], "the machine's layer must not replace what is measured"


def test_agent_runs_without_any_library(bench_host: Host) -> None:
    agent = ImageStore(bench_host.root).resolve(IMAGE).layers[-1].directory / "usr/lib/tare/agent"
    assert b"INTERP" not in run(["readelf", "--program-headers", str(agent)], timeout_s=10).stdout


def test_machine_disk_is_sound_and_holds_the_layers(bench_host: Host, tmp_path: Path) -> None:
    store = ImageStore(bench_host.root)
    machine = store.machine(IMAGE)
    check = run(["e2fsck", "-f", "-n", f"{machine.disk}{ROOT_OFFSET}"], timeout_s=120)
    assert b"Pass 5" in check.stdout
    names = run(["mdir", "-b", "-/", "-i", f"{machine.disk}@@1M", "::/"], timeout_s=10).stdout.decode().split()
    assert {"::/EFI/BOOT/BOOTX64.EFI", "::/vmlinuz", "::/initrd.img", "::/loader/entries/tare.conf"} <= set(names)
    for path in ("usr/bin/fio", "usr/lib/tare/agent", "etc/passwd"):
        copy = tmp_path / "copy"
        dump = ["debugfs", "-R", f"dump /{path} {copy}", f"{machine.disk}{ROOT_OFFSET}"]
        run(dump, timeout_s=30)
        layers = store.resolve(MACHINE).layers
        source = next(layer.directory / path for layer in reversed(layers) if (layer.directory / path).exists())
        assert copy.read_bytes() == source.read_bytes()


def test_machine_disk_allocates_little_more_than_its_files(bench_host: Host) -> None:
    store = ImageStore(bench_host.root)
    files = sum(tree_bytes(layer.directory)[1] for layer in store.resolve(MACHINE).layers)
    logical, allocated = tree_bytes(store.machine(IMAGE).disk)
    assert allocated < files * 1.2 < logical


def test_merged_layers_equal_the_kernels_overlay(bench_host: Host, tmp_path: Path) -> None:
    """The machine's tree is what overlayfs shows of the same layers: the container's view."""
    store = ImageStore(bench_host.root)
    layers = [layer.directory for layer in store.resolve(MACHINE).layers]
    lower = ":".join(str(layer) for layer in reversed(layers))
    script = (
        f'mount -t overlay overlay -o ro,lowerdir={lower} "$1" && cd "$1" && '
        "find . -printf '%p %y %m %U %G %l %T@\\n' | sort"
    )
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", str(tmp_path)]
    overlay = run(command, timeout_s=60).stdout
    with store.exclusive(), store.partial() as work:
        merge(layers, work / "tree")
        show = ["sh", "-c", "find . -printf '%p %y %m %U %G %l %T@\\n' | sort"]
        merged = run(show, cwd=work / "tree", timeout_s=60).stdout
    assert merged == overlay


@pytest.fixture
def small_disk(root_user: None, tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    where = tmp_path / "small"
    where.mkdir()
    try:
        run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(where)], timeout_s=10)
    except TareError as error:
        skip_or_fail(f"cannot mount a tmpfs: {error}")
    try:
        yield where
    finally:
        run(["umount", str(where)], timeout_s=10)


def test_a_layer_too_large_for_the_disk_leaves_nothing(small_disk: Path) -> None:
    path = small_disk / "layer.tar"
    path.write_bytes(archive([member(str(number), os.urandom(1 << 20)) for number in range(5)]).getvalue())
    with pytest.raises(TareError, match="no space left"):
        ImageStore(small_disk).put_layer(path)
    path.unlink()
    assert tree_bytes(small_disk / "images")[0] < 10_000


def test_a_build_without_room_is_refused_at_once(small_disk: Path) -> None:
    with pytest.raises(TareError, match="MiB free"):
        recipe.build(ImageStore(small_disk), recipe.load("debian"))
    assert list((small_disk / "images/partial").iterdir()) == []


def test_a_killed_build_leaves_no_process_and_is_swept(root_user: None, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from runtime.images import recipe, store;"
        "say = lambda text: print(text, flush=True);"
        "recipe.build(store.ImageStore(Path(sys.argv[1])), recipe.load('debian'), say=say)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        if not any("mmdebstrap" in line for line in process.stdout):
            skip_or_fail("the build did not get to mmdebstrap")
        log = _wait_for_log(tmp_path, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    # Whoever still had the log open would be alive: only then does this read return at the end for good.
    until(lambda: not [fd for fd in Path("/proc").glob("[0-9]*/fd/1") if _target(fd) == str(log)])
    assert len(ImageStore(tmp_path).sweep(unneeded=True)) >= 1
    assert tree_bytes(tmp_path / "images")[0] < 10_000_000
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


def _wait_for_log(root: Path, process: subprocess.Popen[str]) -> Path:
    while True:
        written = [log for log in root.glob("images/partial/*/bootstrap.log") if log.stat().st_size]
        if written:
            return written[0]
        if process.poll() is not None:
            skip_or_fail("the build ended before mmdebstrap said anything")


def _target(fd: Path) -> str:
    try:
        return str(fd.readlink())
    except OSError:
        return ""


def test_attributes_of_unpacked_files_are_harmless(bench_host: Host) -> None:
    base = ImageStore(bench_host.root).resolve(IMAGE).layers[0].directory
    found = {name for path in base.rglob("*") for name, _ in xattrs(path)}
    assert found <= {"security.capability"}

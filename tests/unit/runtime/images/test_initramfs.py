"""The microvm's initramfs holds the right modules in the right order, in a form cpio can read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from runtime.command import run
from runtime.errors import TareError
from runtime.images.initramfs import initramfs, module_files
from tests.conftest import skip_or_fail
from tests.unit.runtime.images.trees import grow

DEPENDENCIES = b"""\
kernel/virtio/virtio.ko: kernel/virtio/virtio_ring.ko
kernel/virtio/virtio_ring.ko:
kernel/block/virtio_blk.ko: kernel/virtio/virtio.ko kernel/virtio/virtio_ring.ko
kernel/char/virtio-console.ko: kernel/virtio/virtio.ko kernel/virtio/virtio_ring.ko
"""


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    builtin = b"kernel/fs/ext4/ext4.ko\n"
    return grow(tmp_path / "6.1.0", {"modules.dep": DEPENDENCIES, "modules.builtin": builtin})


def test_dependencies_come_first_and_once(modules: Path) -> None:
    found = module_files(modules, ("virtio_blk", "virtio_console", "ext4"))
    assert [path.name for path in found] == ["virtio_ring.ko", "virtio.ko", "virtio_blk.ko", "virtio-console.ko"]


def test_a_missing_module_is_named(modules: Path) -> None:
    with pytest.raises(TareError, match="no module btrfs"):
        module_files(modules, ("btrfs",))


def test_cpio_reads_the_archive(tmp_path: Path) -> None:
    if shutil.which("cpio") is None:
        skip_or_fail("needs cpio")
    module = tmp_path / "a.ko"
    module.write_bytes(b"module")
    archive = initramfs(b"#!init", [module], [module])
    listing = run(["cpio", "--list", "--quiet"], input=archive, timeout_s=10).stdout.decode().split()
    assert listing == ["dev", "dev/console", "init", "modules", "modules/00-a.ko", "network", "network/00-a.ko"]
    content = run(["cpio", "--to-stdout", "--quiet", "-i", "init"], input=archive, timeout_s=10).stdout
    assert content == b"#!init"

"""A cloud image as distributions publish them, made here: Debian with cloud-init, which knows nothing of Tare.

None can be downloaded where these tests run. Kept between runs below the tests' own root, like the bench image.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from unittest import mock

from runtime.command import run
from runtime.images import disk, recipe
from runtime.images.store import ImageStore

DISK_BYTES = 3 << 30
_COMMAND_LINE = "root=LABEL=tare-root rw console=ttyS0 quiet"
_PACKAGES = (
    *("linux-image-cloud-amd64", "initramfs-tools", "zstd", "systemd-sysv", "udev", "kmod", "dbus"),
    *("systemd-boot-efi", "cloud-init", "iproute2"),
)
_MODULES = "virtio_pci\nvirtio_blk\n"
# What a published image has done before it is published; the network is left to cloud-init.
_FINISH = """\
set -e
rm -f "$1/etc/hostname" "$1/etc/resolv.conf"
: > "$1/etc/machine-id"
printf 'LABEL=tare-root / ext4 errors=remount-ro 0 0\\n' > "$1/etc/fstab"
chroot "$1" systemctl enable systemd-networkd.service
chroot "$1" systemctl mask systemd-networkd-wait-online.service apt-daily.timer apt-daily-upgrade.timer
"""


def cloud_image(store: ImageStore) -> Path:
    """The qcow2 file, below the store's directory; made if it is not there (about 90 s). Needs root.

    Raises TareError when a tool fails.
    """
    made_from = hashlib.sha256(Path(__file__).read_bytes() + Path(disk.__file__).read_bytes()).hexdigest()[:12]
    final = store.root / "cloud-tests" / f"{made_from}.qcow2"
    with store.exclusive():
        if not final.exists():
            with store.partial() as work:
                _build(work)
                shutil.rmtree(final.parent, ignore_errors=True)
                final.parent.mkdir(mode=0o700)
                (work / "cloud.qcow2").rename(final)
    return final


def _build(work: Path) -> None:
    (work / "finish").write_text(_FINISH)
    etc, share = '"$1/etc/initramfs-tools/conf.d"', '"$1/usr/share/initramfs-tools/modules.d"'
    setup = f"mkdir -p {etc} && echo MODULES=list > {etc}/cloud"
    modules = f"mkdir -p {share} && cp {work}/modules {share}/cloud"
    (work / "modules").write_text(_MODULES)
    command = [
        *("setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
        *("mmdebstrap", "--mode=root", "--format=directory", "--variant=minbase"),
        *("--include", ",".join(_PACKAGES)),
        *(f"--dpkgopt={option}" for option in recipe.load("debian").dpkg_options),
        *(f"--setup-hook={setup}", f"--setup-hook={modules}", f'--customize-hook=sh {work}/finish "$1"'),
        *("bookworm", str(work / "tree-made")),
        *((mirror,) if (mirror := os.environ.get("TARE_MIRROR")) else ()),
    ]
    environment = {**os.environ, "LC_ALL": "C", "TMPDIR": str(work)}
    run(command, timeout_s=1800, env=environment)
    with mock.patch.object(disk, "_FIRMWARE_CMDLINE", _COMMAND_LINE):
        disk.build([work / "tree-made"], work, "cloud", DISK_BYTES)
    raw = work / "machine" / "disk.raw"
    run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(work / "cloud.qcow2")], timeout_s=600)

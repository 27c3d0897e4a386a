"""A virtual machine's place on a bridge: the tap that QEMU opens, in the role of a container's veth pair.

It is persistent: made before QEMU runs, so that libvirt needs to configure nothing, and removed by its maker.
Not for addresses and ports, which a machine gets as a container does (`Networks.connect`).
"""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path
from typing import Final

from runtime.errors import TareError
from runtime.linux.netlink import Netlink, message, number
from runtime.network import links
from runtime.network.attachment import Attachment

DEVICE = Path("/dev/net/tun")
# linux/if_tun.h
_TUNSETIFF: Final = 0x400454CA
_TUNSETPERSIST: Final = 0x400454CB
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR, _IFF_TUN_EXCL = 0x0002, 0x1000, 0x4000, 0x8000


def make(attachment: Attachment) -> None:
    """Make the tap `attachment.interface` on its bridge, up. Raises TareError and leaves nothing.

    Packets carry virtio's header, so that checksums and segments are left to the host.
    """
    name = attachment.interface
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR | _IFF_TUN_EXCL
    try:
        descriptor = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise TareError("network of a virtual machine", f"{DEVICE}: {error.strerror}", "modprobe tun") from error
    try:
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("=16sH22x", name.encode(), flags))
        with Netlink() as wire:
            size = message(links.RTM_NEWLINK, 0, links.named(name) + number(links.IFLA_MTU, attachment.mtu))
            wire.ask([size, *attachment.pair.rest], f"tap {name}")
        fcntl.ioctl(descriptor, _TUNSETPERSIST, 1)  # last: until then it goes with the descriptor
    except OSError as error:
        raise TareError("network of a virtual machine", f"tap {name}: {error}", "see: tare doctor") from error
    finally:
        os.close(descriptor)


def remove(attachment: Attachment) -> None:
    """Remove it; absent is no error. Whoever has it open keeps a descriptor that leads nowhere."""
    links.remove(attachment.interface)

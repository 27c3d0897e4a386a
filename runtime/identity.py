"""Who and where a guest is, as a value and as the payload of the agent's configure frame. Pure.

Not how a guest gets there: an address, a tap and a name are its driver's to choose (`runtime.vm.wiring`).
"""

from __future__ import annotations

import os

from runtime.errors import TareError
from runtime.record import ordered_record, record


@ordered_record
class Place:
    """A guest's place in a network. All of it goes to its one Ethernet interface, whatever that had before."""

    address: str
    prefix_bits: int
    gateway: str
    mac: str
    gateway_mac: str
    mtu: int


@record
class Identity:
    """What a guest is told about itself; of what is None or empty it keeps what it has.

    `machine_id` is 32 hexadecimal digits, `files` are (absolute path inside, text), replaced as a whole.
    """

    hostname: str | None = None
    place: Place | None = None
    machine_id: str | None = None
    files: tuple[tuple[str, str], ...] = ()


def encode_configure(identity: Identity, *, time_ns: int | None = None, entropy: bytes = b"") -> bytes:
    """The payload of a configure frame. `time_ns` sets the guest's clock, `entropy` its random numbers apart.

    Raises TareError for what the agent could not tell apart: a NUL byte, a file without an absolute path.
    """
    words: list[tuple[str, str]] = []
    if identity.place is not None:
        place = identity.place
        words += [("address", f"{place.address}/{place.prefix_bits}"), ("gateway", place.gateway), ("mac", place.mac)]
        words += [("gateway-mac", place.gateway_mac), ("mtu", str(place.mtu))]
    if identity.hostname is not None:
        words += [("hostname", identity.hostname), ("/etc/hostname", f"{identity.hostname}\n")]
    if identity.machine_id is not None:
        words.append(("/etc/machine-id", f"{identity.machine_id}\n"))
    for path, text in identity.files:
        if not path.startswith("/") or "=" in path:
            raise TareError(f"file {path!r} for the guest", "not an absolute path without '='", "name another")
        words.append((path, text))
    if time_ns is not None:
        words.append(("time", str(time_ns)))
    if entropy:
        words.append(("entropy", entropy.hex()))
    if any("\0" in word for pair in words for word in pair):
        raise TareError("configuration of the guest", "it holds a NUL byte", "remove it")
    return b"".join(os.fsencode(f"{key}={value}") + b"\0" for key, value in words)

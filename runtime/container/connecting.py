# ruff: noqa: D102
# Step explains describe() and execute() once for all.
"""The step by which a child takes its place in a network. How the other end comes to be is `runtime.network`'s."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from runtime.network import inside


@dataclass(frozen=True, slots=True)
class Interface:
    """Wait for link `name`, which the parent makes (`Flat.links`), and set it up, and `lo`.

    Addresses are the kernel's four bytes; `hardware` is the MAC address of the gateway.
    """

    name: str
    address: bytes
    prefix_bits: int
    gateway: bytes
    hardware: bytes

    def describe(self) -> str:
        address, gateway = (socket.inet_ntoa(packed) for packed in (self.address, self.gateway))
        return f"bring up lo, and {self.name} with {address}/{self.prefix_bits} by way of {gateway}"

    def execute(self) -> None:
        inside.set_up(self.name, self.address, self.prefix_bits, self.gateway, self.hardware)

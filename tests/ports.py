"""Ports for tests that must name one before they bind it. No tests here."""

from __future__ import annotations

import random
import socket
from pathlib import Path

_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST = 10_000


def free_port(count: int = 1) -> int:
    """The first of `count` ports in a row that nobody uses.

    None of those that the kernel gives to whoever binds or connects without naming one: nobody takes it meanwhile.
    """
    end = int(_RANGE.read_text().split()[0])
    while True:
        first = random.randrange(_LOWEST, end - count)
        try:
            for number in range(first, first + count):
                socket.create_server(("", number)).close()
        except OSError:
            continue
        return first

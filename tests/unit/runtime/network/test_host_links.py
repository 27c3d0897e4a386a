"""Asking about the host's links: one socket whoever asks, errors that say about what, and nothing loaded too early."""

from __future__ import annotations

import asyncio
import errno
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from runtime.errors import TareError
from runtime.network import host_links
from runtime.network.host_links import HostLinks
from runtime.network.subnet import Route

LOOPBACK = 1


@pytest.fixture
def links() -> Iterator[HostLinks]:
    one = HostLinks()
    yield one
    one.close()


def sockets() -> set[str]:
    found = (str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink())
    return {target for target in found if target.startswith("socket:")}


def test_one_socket_serves_every_thread_and_a_running_loop(links: HostLinks) -> None:
    mtu = links.mtu_of(LOOPBACK)
    assert mtu > 0
    opened = sockets()

    async def ask() -> int:
        return links.mtu_of(LOOPBACK)

    assert asyncio.run(ask()) == mtu
    with ThreadPoolExecutor(3) as pool:
        assert set(pool.map(links.mtu_of, [LOOPBACK] * 12)) == {mtu}
    assert sockets() == opened


def test_closing_gives_all_back_and_the_next_request_opens_again(links: HostLinks) -> None:
    before = sockets()
    for _ in range(2):
        assert links.routes() == links.routes()
        links.close()
        assert sockets() == before
    links.close()


def test_what_the_kernel_refuses_says_about_what(links: HostLinks) -> None:
    with pytest.raises(OSError, match="link 1073741824: No such device") as caught:
        links.mtu_of(1 << 30)
    assert caught.value.errno == errno.ENODEV
    assert links.mtu_of(LOOPBACK) > 0, "and the socket is as good as before"


def test_links_that_are_not_there_are_removed_without_asking(links: HostLinks) -> None:
    before = sockets()
    links.remove(["ve-no-such"])
    assert sockets() == before


def test_a_thread_elsewhere_is_refused(links: HostLinks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_links.Path, "readlink", lambda path: path.parts[2])  # type: ignore[attr-defined]
    with pytest.raises(TareError, match="entered another network namespace"):
        links.routes()


class Told(dict[str, object]):
    """What pyroute2 tells: fields by subscript, attributes by `get`."""


def test_routes_and_bridges_as_they_are_told() -> None:
    assert host_links.route_of(Told(dst_len=0, oif=4)) == Route(0, 0, 4)
    assert host_links.route_of(Told(dst="10.87.0.0", dst_len=22, oif=7)) == Route(0x0A570000, 22, 7)
    assert host_links.route_of(Told(dst="192.0.2.0", dst_len=24)) == Route(0xC0000200, 24, 0)
    bridge = host_links.bridge_of(Told(ifname="docker0", index=3, mtu=1400, flags=0x1003))
    assert (bridge.name, bridge.index, bridge.alias, bridge.mtu, bridge.up) == ("docker0", 3, "", 1400, True)
    assert host_links.bridge_of(Told(ifname="tare0", index=4, mtu=1, flags=2, ifalias="tare t /r")).alias == "tare t /r"


def test_networks_are_imported_without_pyroute2() -> None:
    source = "import sys; import runtime.network.network; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert not {"pyroute2", "runtime.network.host_links", "asyncio", "concurrent.futures"} & set(done.stdout.split())

"""The host's bridges, addresses and routes, asked and changed through pyroute2. Containers' own pairs are `links`'.

pyroute2 takes a fifth of a second to import and is loaded by the first request: a container whose bridge is there makes
none. An IPRoute belongs to the thread it was opened in: from another one it silently opens a second socket, in *that*
thread's network namespace, and inside a running event loop it cannot be called at all. So there is one, in a thread of
its own, from the first request until `close`.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar

from runtime.errors import TareError
from runtime.network.links import index_of
from runtime.network.subnet import Route
from runtime.record import record

_REMOVED_GROUP: Final = 0x7A12E  # the kernel's group of links that are being removed
_MAIN_TABLE: Final = 254
# linux/if_link.h: a link so marked gets no IPv6 address of its own accord.
_NO_IPV6: Final = {"attrs": [("AF_INET6", {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", 1)]})]}
_T = TypeVar("_T")


@record
class Bridge:
    """A bridge of the host, whosever it is. `alias` is "" where it has none."""

    name: str
    index: int
    alias: str
    mtu: int
    up: bool


class HostLinks:
    """Links of the network namespace this process began in. Thread-safe. Every request raises OSError."""

    def __init__(self) -> None:
        self._opening = threading.Lock()
        self._thread: ThreadPoolExecutor | None = None
        self._socket: Any = None

    def close(self) -> None:
        """Give socket and thread back; the next request opens them again."""
        with self._opening:
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.submit(self._close).result()
            thread.shutdown()

    def routes(self) -> list[Route]:
        """The IPv4 routes of the main table; the default route has the prefix 0."""
        return self._ask(
            "reading the routes",
            lambda route: [route_of(each) for each in route.get_routes(family=socket.AF_INET, table=_MAIN_TABLE)],
        )

    def bridges(self) -> list[Bridge]:
        """Every bridge there is."""
        return self._ask("listing bridges", lambda route: [bridge_of(each) for each in route.get_links(kind="bridge")])

    def bridge(self, index: int) -> Bridge:
        """One bridge."""
        return self._ask(f"link {index}", lambda route: bridge_of(next(iter(route.get_links(index)))))

    def ports_of(self, index: int) -> list[str]:
        """The names of the links on a bridge."""
        return self._ask(
            f"ports of link {index}",
            lambda route: [str(each.get("ifname")) for each in route.get_links(master=index)],
        )

    def mtu_of(self, index: int) -> int:
        """The MTU of a link."""
        return self._ask(f"link {index}", lambda route: int(next(iter(route.get_links(index))).get("mtu")))

    def addresses_of(self, index: int) -> list[str]:
        """The IPv4 addresses of a link, each with its prefix."""
        return self._ask(
            f"addresses of link {index}",
            lambda route: [
                f"{each.get('local')}/{each['prefixlen']}"
                for each in route.get_addr(family=socket.AF_INET, index=index)
            ],
        )

    def make_bridge(self, name: str, hardware: str) -> int:
        """A new bridge's index. It looks out for no multicast, which takes the longer the more ports it has."""

        def make(route: Any) -> int:
            route.link("add", ifname=name, kind="bridge", address=hardware, br_mcast_snooping=0)
            return int(route.link_lookup(ifname=name)[0])

        return self._ask(f"making bridge {name}", make)

    def bring_up(self, index: int, address: str, prefix_bits: int, mtu: int, alias: str) -> None:
        """Give a bridge its address, and its MTU by name: otherwise it looks at every port at each change. Then up."""

        def bring(route: Any) -> None:
            route.link("set", index=index, IFLA_AF_SPEC=_NO_IPV6)
            route.link("set", index=index, mtu=mtu, ifalias=alias)
            route.addr("replace", index=index, address=address, prefixlen=prefix_bits)
            route.link("set", index=index, state="up")

        self._ask(f"bringing up the bridge of {address}", bring)

    def remove(self, names: Sequence[str]) -> None:
        """Remove links; absent is no error. All go at once, as a group: one by one each waits for the kernel."""
        present = [name for name in names if index_of(name) is not None]
        if present:
            self._ask("removing links", lambda route: _remove(route, present))

    def _ask(self, about: str, work: Callable[[Any], _T]) -> _T:
        return self._opened().submit(self._carry_out, about, work).result()

    def _opened(self) -> ThreadPoolExecutor:
        with self._opening:
            if self._thread is None:
                _refuse_elsewhere()
                self._thread = ThreadPoolExecutor(1, "tare-links")
            return self._thread

    def _carry_out(self, about: str, work: Callable[[Any], _T]) -> _T:
        """In the thread: open the socket if this is the first request, and do it."""
        from pyroute2 import IPRoute
        from pyroute2.netlink.exceptions import NetlinkError

        if self._socket is None:
            self._socket = IPRoute(groups=0)  # no news: nobody would read them
        try:
            return work(self._socket)
        except NetlinkError as error:
            raise OSError(error.code, f"{about}: {os.strerror(error.code)}") from error

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def route_of(message: Any) -> Route:
    """A route as pyroute2 tells of it."""
    destination = socket.inet_aton(message.get("dst") or "0.0.0.0")  # noqa: S104 - the network, not a socket's address
    return Route(int.from_bytes(destination), message["dst_len"], message.get("oif") or 0)


def bridge_of(message: Any) -> Bridge:
    """A bridge as pyroute2 tells of it."""
    return Bridge(
        name=message.get("ifname"),
        index=message["index"],
        alias=message.get("ifalias") or "",
        mtu=message.get("mtu"),
        up=bool(message["flags"] & 1),
    )


def _remove(route: Any, names: Sequence[str]) -> None:
    from pyroute2.netlink.exceptions import NetlinkError

    for name in names:
        with suppress(NetlinkError):
            route.link("set", ifname=name, group=_REMOVED_GROUP)
    try:
        route.link("del", group=_REMOVED_GROUP)
    except NetlinkError as error:
        if error.code != errno.ENODEV:  # the kernel was faster
            raise


def _refuse_elsewhere() -> None:
    """A new thread is in its maker's network namespace, which must be the one that this process works in."""
    places = [Path(f"/proc/{who}/ns/net").readlink() for who in ("self", "thread-self")]
    if places[0] != places[1]:
        raise TareError("networks", "this thread has entered another network namespace", "use a thread of the host's")

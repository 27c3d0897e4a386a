"""Instances on bridges, NAT and published ports on a real kernel, the world outside being a namespace of ours.

`test_network_bridges` has networks without instances. Needs root.
"""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.driver import Host
from runtime.drivers.container import ContainerDriver
from runtime.errors import TareError, UsageError
from runtime.ledger import Ledger
from runtime.network.definitions import DEFAULT
from runtime.spec import NetworkMode, NetworkSpec
from tests.conftest import skip_or_fail
from tests.host.drivers import Launch
from tests.host.life import IMAGE, rooted, until
from tests.host.network import (
    OUTSIDE,
    SPEC,
    UPSTREAM,
    address_of,
    ask,
    driver,
    inside,
    launch,
    links,
    outside,
    serve,
)
from tests.ports import free_port

__all__ = ["driver", "launch", "outside", "serve"]  # fixtures


def test_instances_reach_the_gateway_and_each_other(launch: Launch, serve: Callable[..., None]) -> None:
    one, other = launch(), launch()
    serve(7000, *inside(one))
    assert ask(address_of(one), 7000, *inside(other)) == address_of(other)
    gateway = subprocess.run([*inside(one), "ip", "route"], capture_output=True, text=True, check=True).stdout.split()[
        2
    ]
    port = free_port()
    serve(port)
    assert ask(gateway, port, *inside(other)) == address_of(other)


def test_an_instance_has_lo_eth0_and_no_ipv6_address(launch: Launch) -> None:
    shown = subprocess.run(
        [*inside(launch()), "ip", "-o", "addr", "show"], capture_output=True, text=True, check=True
    ).stdout
    assert {line.split()[1] for line in shown.splitlines()} == {"lo", "eth0"}
    assert [line for line in shown.splitlines() if "eth0" in line and "inet6" in line] == []


# A router advertisement of a link's own, to all nodes: what CAP_NET_RAW suffices for.
ROUTER = """
import socket, struct
link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
link.bind(("eth0", 0))
mac = link.getsockname()[4]
source, nodes = (socket.inet_pton(socket.AF_INET6, text) for text in ("fe80::bad", "ff02::1"))
words = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0) + struct.pack("!BB6s", 1, 1, mac)
total = sum(struct.unpack("!32H", source + nodes + struct.pack("!IHBB", len(words), 0, 0, 58) + words))
while total >> 16:
    total = (total >> 16) + (total & 0xFFFF)
words = words[:2] + struct.pack("!H", ~total & 0xFFFF) + words[4:]
header = struct.pack("!IHBB", 6 << 28, len(words), 58, 255) + source + nodes
link.send(b"\\x33\\x33\\0\\0\\0\\1" + mac + b"\\x86\\xdd" + header + words)
"""


def test_no_instance_becomes_the_router_of_the_host_or_of_a_neighbour(launch: Launch) -> None:
    if not Path("/proc/net/if_inet6").exists():
        skip_or_fail("no IPv6 here")
    hostile, neighbour = launch(), launch()
    subprocess.run([*inside(hostile), sys.executable, "-c", ROUTER], check=True)
    for before in ([], inside(neighbour)):
        words = [*before, "ip", "-6", "route", "show", "default"]
        routes = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        assert "fe80::bad" not in routes, before


def test_the_world_outside_sees_the_host(launch: Launch, outside: int, serve: Callable[..., None]) -> None:
    serve(7001, "nsenter", "-t", str(outside), "-n")
    assert ask(OUTSIDE, 7001, *inside(launch())) == UPSTREAM


def test_a_published_port_is_reached_from_outside_from_loopback_and_from_a_neighbour(
    launch: Launch, outside: int, serve: Callable[..., None]
) -> None:
    port = free_port()
    server = launch(network=NetworkSpec(mode=NetworkMode.BRIDGE, ports=((port, 80),)))
    neighbour = launch()
    serve(80, *inside(server))
    assert ask(UPSTREAM, port, "nsenter", "-t", str(outside), "-n") == OUTSIDE
    assert ask("127.0.0.1", port)
    assert ask(UPSTREAM, port)
    assert ask(UPSTREAM, port, *inside(neighbour))
    assert ask(UPSTREAM, port, *inside(server)), "not even by itself"


def test_what_is_not_published_is_not_reached_from_outside(
    launch: Launch, outside: int, serve: Callable[..., None]
) -> None:
    server = launch()
    serve(7002, *inside(server))
    assert ask(address_of(server), 7002)
    assert ask(address_of(server), 7002, "nsenter", "-t", str(outside), "-n", timeout_s=1) == ""


def test_an_instance_does_not_reach_the_host_s_loopback(launch: Launch, serve: Callable[..., None]) -> None:
    instance = launch()
    port = free_port()
    serve(port)
    words = [*inside(instance), "ip", "route"]
    gateway = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()[2]
    assert ask(gateway, port, *inside(instance))
    # What root of a hostile container could do, had it more capabilities than it has.
    localnet = "open('/proc/sys/net/ipv4/conf/all/route_localnet', 'w').write('1')"
    for command in (
        [sys.executable, "-c", localnet],
        ["ip", "addr", "flush", "dev", "lo"],
        ["ip", "route", "add", "127.0.0.0/8", "via", gateway],
    ):
        subprocess.run([*inside(instance), *command], check=True)
    assert ask("127.0.0.1", port, *inside(instance), timeout_s=1) == ""


def test_an_instance_joins_another_s_network(launch: Launch, serve: Callable[..., None]) -> None:
    owner = launch()
    guest = launch(network=NetworkSpec(mode=NetworkMode.CONTAINER, container=owner.id))
    namespaces = {Path(f"/proc/{each.host_pids()[0]}/ns/net").readlink() for each in (owner, guest)}
    assert len(namespaces) == 1
    serve(7004, *inside(owner))
    assert ask("127.0.0.1", 7004, *inside(guest)) == "127.0.0.1"


def test_who_joins_nobody_is_told_so(driver: ContainerDriver) -> None:
    network = NetworkSpec(mode=NetworkMode.CONTAINER, container="tare-000000000000")
    with pytest.raises(UsageError, match="no such instance runs"):
        driver.prepare(dataclasses.replace(SPEC, network=network))


def test_a_port_that_is_taken_is_refused_and_nothing_remains(
    driver: ContainerDriver, launch: Launch, serve: Callable[..., None]
) -> None:
    port = free_port()
    network = NetworkSpec(mode=NetworkMode.BRIDGE, ports=((port, 80),))
    launch(network=network)
    default = driver.networks.definitions.demand(DEFAULT)
    before, leases = links(), driver.networks.leases(default)
    with pytest.raises(TareError, match=f"{port}/tcp: another container has published it"):
        driver.launch(driver.prepare(dataclasses.replace(SPEC, network=network)))
    assert (links() - before, driver.networks.leases(default)) == (set(), leases)
    other = free_port()
    serve(other)
    network = NetworkSpec(mode=NetworkMode.BRIDGE, ports=((other, 80),))
    with pytest.raises(TareError, match=f"{other}/tcp: a process of the host uses it"):
        driver.launch(driver.prepare(dataclasses.replace(SPEC, network=network)))
    assert (links() - before, driver.networks.leases(default)) == (set(), leases)


def test_closing_gives_the_address_and_the_port_back_and_the_link_goes(driver: ContainerDriver, launch: Launch) -> None:
    port = free_port()
    network = NetworkSpec(mode=NetworkMode.BRIDGE, ports=((port, 80),))
    before = links()
    with driver.launch(driver.prepare(dataclasses.replace(SPEC, network=network))) as instance:
        instance.wait_ready(30)
        address = address_of(instance)
        assert len(links() - before) in (1, 2)  # the link, and perhaps the bridge
    leases = driver.networks.leases(driver.networks.definitions.demand(DEFAULT))
    assert address not in dict(leases)
    assert driver.networks.published() == []
    until(lambda: not [name for name in links() - before if name.startswith("ve")])


def test_thirty_instances_have_thirty_addresses(launch: Launch, serve: Callable[..., None]) -> None:
    instances = [launch() for _ in range(30)]
    assert len({address_of(instance) for instance in instances}) == 30
    serve(7005, *inside(instances[0]))
    answers = [ask(address_of(instances[0]), 7005, *inside(instance)) for instance in instances[1:]]
    assert answers == [address_of(instance) for instance in instances[1:]]


def test_ids_of_its_own_and_a_place_on_a_bridge(bench_host: Host, serve: Callable[..., None]) -> None:
    """A network namespace that belongs to the container's user namespace: its own child sets up its end of the pair."""
    with rooted(bench_host) as tare:
        port, inner = free_port(), 7006
        words = ("--userns", "auto", "-p", f"127.0.0.1:{port}:{inner}", IMAGE, "sleep", "1000")
        tare("run", "-d", "--name", "own", *words).good()
        state = tare.state("own")
        address = tare("inspect", "-f", "{{.NetworkSettings.IPAddress}}", "own").good()
        assert int(Path(f"/proc/{state['Pid']}/uid_map").read_text().split()[1]) >= 1 << 30
        reach = ["nsenter", "-t", str(state["Pid"]), "-n"]
        shown = subprocess.run([*reach, "ip", "-j", "addr"], capture_output=True, text=True, check=True).stdout
        inside = {link["ifname"]: [each["local"] for each in link["addr_info"]] for link in json.loads(shown)}
        assert (set(inside), inside["lo"][0], inside["eth0"]) == ({"lo", "eth0"}, "127.0.0.1", [address])
        serve(inner, *reach)
        assert ask(address, inner), "from the host"
        assert ask("127.0.0.1", port), "by its published port"
        gateway = subprocess.run([*reach, "ip", "route"], capture_output=True, text=True, check=True).stdout.split()[2]
        outer = free_port()
        serve(outer)
        assert ask(gateway, outer, *reach) == address
        tare("rm", "-f", "own").good()
        network = json.loads(tare("network", "inspect", "bridge").good())[0]
        assert network["Containers"] == {}
        (link,) = network["Links"].values()
        assert link["Addresses"] == [f"{gateway}/22"], "the bridge stays, as Docker's does"
        assert link["Up"]
        tare("clean").good()
        assert not set(network["Links"]) & links()


def test_a_launcher_that_was_killed_leaves_nothing_once_swept(bench_host: Host) -> None:
    """An owner that dies at once, with an instance that runs on a bridge with a published port."""
    port = free_port()
    source = f"""
import os, sys
from pathlib import Path
from runtime.driver import Host
from runtime.drivers.container import ContainerDriver
from runtime.spec import *
driver = ContainerDriver(Host(root=Path({str(bench_host.root)!r}), run=Path({str(bench_host.run)!r})))
network = NetworkSpec(mode=NetworkMode.BRIDGE, ports=(({port}, 80),))
spec = InstanceSpec(image=ImageRef.parse("tare/debian:bookworm"), network=network)
instance = driver.launch(driver.prepare(spec))
print(instance.id, flush=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    instance_id = done.stdout.strip()
    noted = {resource.kind: resource.value for resource in Ledger(bench_host.run).resources(instance_id) or ()}
    assert {"lease", "link", "port"} <= set(noted)
    sweeper = ContainerDriver(bench_host)
    try:
        found = [line for line in sweeper.leftovers() if line.startswith(instance_id)]
        assert any(": lease" in line for line in found)
        assert any(f": port 0.0.0.0:{port}" in line for line in found)
        sweeper.sweep()
        assert sweeper.leftovers() == []
        assert port not in {published.host_port for published, _ in sweeper.networks.published()}
        default = sweeper.networks.definitions.demand(DEFAULT)
        assert instance_id not in [owner for _, owner in sweeper.networks.leases(default)]
    finally:
        sweeper.close()
    assert noted["link"] not in links()

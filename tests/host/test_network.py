"""Bridges, NAT and published ports on a real kernel, the world outside being a namespace of ours. Needs root."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from runtime.driver import Host
from runtime.drivers.container import ContainerDriver
from runtime.errors import TareError, UsageError
from runtime.instance import Instance
from runtime.ledger import Ledger, new_id
from runtime.linux import syscalls
from runtime.network.definitions import DEFAULT
from runtime.network.host_links import HostLinks
from runtime.network.network import Networks
from runtime.network.ports import Port
from runtime.spec import ImageRef, InstanceSpec, NetworkMode, NetworkSpec
from tests.conftest import skip_or_fail
from tests.host.life import IMAGE, rooted

SPEC = InstanceSpec(image=ImageRef.parse("tare/debian:bookworm"), network=NetworkSpec(mode=NetworkMode.BRIDGE))
OUTSIDE, UPSTREAM = "198.51.100.2", "198.51.100.1"
TIMEOUT_S = 20
# A server that answers every connection with the address it came from.
SERVER = """
import socket, sys
listener = socket.create_server(("0.0.0.0", int(sys.argv[1])))
print("listening", flush=True)
while True:
    connection, peer = listener.accept()
    connection.sendall(peer[0].encode())
    connection.close()
"""
CLIENT = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), float(sys.argv[3])) as connection:
    print(connection.recv(100).decode())
"""
FIREWALL = """
import json, subprocess, sys
from runtime.network import forwarding
seen = []
for step in (lambda _: None, forwarding.admit, forwarding.admit, forwarding.dismiss):
    step("tare")
    listed = subprocess.run([sys.argv[1], "-w", "-S"], capture_output=True, text=True, check=True).stdout
    seen.append(listed.splitlines())
print(json.dumps(seen))
"""
CLONE_NEWNET = 0x40000000
Launch = Callable[..., Instance]


@pytest.fixture(scope="module")
def driver(bench_host: Host) -> Iterator[ContainerDriver]:
    for tool in ("nft", "ip", "nsenter"):
        if shutil.which(tool) is None:
            skip_or_fail(f"no {tool} on PATH")
    driver = ContainerDriver(bench_host)
    yield driver
    driver.close()


@pytest.fixture
def launch(driver: ContainerDriver) -> Iterator[Launch]:
    made: list[Instance] = []

    def start(network: NetworkSpec = SPEC.network) -> Instance:
        made.append(driver.launch(driver.prepare(dataclasses.replace(SPEC, network=network))))
        made[-1].wait_ready(30)
        return made[-1]

    yield start
    for instance in made:
        instance.close()


@pytest.fixture
def networks(root_user: None) -> Iterator[Networks]:
    """The networks of an empty state root."""
    with tempfile.TemporaryDirectory() as directory:
        one = Networks(Path(directory) / "lib", Path(directory) / "run")
        yield one
        for network in one.definitions.all():
            for address, owner in one.leases(network):
                one.disconnect(owner, network.name, address)
        one.retire()
        one.close()


@pytest.fixture(scope="module")
def outside(driver: ContainerDriver) -> Iterator[int]:
    """A network namespace beyond the host, joined to it by a link as another machine would be: a pid in it."""
    with subprocess.Popen(["unshare", "--net", "sleep", "600"]) as holder:
        try:
            wait_until(lambda: own_namespace(holder.pid))
            for command in (
                f"ip link add tare-up type veth peer name world netns {holder.pid}",
                f"ip addr add {UPSTREAM}/30 dev tare-up",
                "ip link set tare-up up",
                f"nsenter -t {holder.pid} -n ip addr add {OUTSIDE}/30 dev world",
                f"nsenter -t {holder.pid} -n ip link set world up",
                f"nsenter -t {holder.pid} -n ip route add default via {UPSTREAM}",
            ):
                subprocess.run(command.split(), check=True)
            yield holder.pid
        finally:
            subprocess.run(["ip", "link", "del", "tare-up"], check=False)
            holder.kill()


@pytest.fixture
def serve() -> Iterator[Callable[..., None]]:
    """Start the answering server with a command in front, wait until it listens."""
    running: list[subprocess.Popen[bytes]] = []

    def start(port: int, *before: str) -> None:
        server = subprocess.Popen([*before, sys.executable, "-c", SERVER, str(port)], stdout=subprocess.PIPE)
        running.append(server)
        assert server.stdout is not None
        assert server.stdout.readline() == b"listening\n"

    yield start
    for server in running:
        server.kill()
        server.communicate()


def own_namespace(pid: int) -> bool:
    return Path(f"/proc/{pid}/ns/net").readlink() != Path("/proc/self/ns/net").readlink()


def wait_until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not true():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.005)


def inside(instance: Instance) -> list[str]:
    """The words that run a host's program in the instance's network."""
    return ["nsenter", "-t", str(instance.host_pids()[0]), "-n"]


def ask(address: str, port: int, *before: str, timeout_s: float = 5) -> str:
    """What the server at `address` says to a client that runs behind `before`; "" when it cannot be reached."""
    command = [*before, sys.executable, "-c", CLIENT, address, str(port), str(timeout_s)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def address_of(instance: Instance) -> str:
    result = instance.exec(["/bin/sh", "-c", "tail -n 1 /etc/hosts"], TIMEOUT_S)
    return result.stdout.decode().split()[0]


def links() -> set[str]:
    return {name for _, name in socket.if_nameindex()}


def free_port() -> int:
    with socket.create_server(("", 0)) as listener:
        return int(listener.getsockname()[1])


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
    server = launch(NetworkSpec(mode=NetworkMode.BRIDGE, ports=((port, 80),)))
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
    serve(7003)
    words = [*inside(instance), "ip", "route"]
    gateway = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()[2]
    assert ask(gateway, 7003, *inside(instance))
    # What root of a hostile container could do, had it more capabilities than it has.
    localnet = "open('/proc/sys/net/ipv4/conf/all/route_localnet', 'w').write('1')"
    for command in (
        [sys.executable, "-c", localnet],
        ["ip", "addr", "flush", "dev", "lo"],
        ["ip", "route", "add", "127.0.0.0/8", "via", gateway],
    ):
        subprocess.run([*inside(instance), *command], check=True)
    assert ask("127.0.0.1", 7003, *inside(instance), timeout_s=1) == ""


def test_an_instance_joins_another_s_network(launch: Launch, serve: Callable[..., None]) -> None:
    owner = launch()
    guest = launch(NetworkSpec(mode=NetworkMode.CONTAINER, container=owner.id))
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
    launch(network)
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
    wait_until(lambda: not [name for name in links() - before if name.startswith("ve")])


def test_thirty_instances_have_thirty_addresses(launch: Launch, serve: Callable[..., None]) -> None:
    instances = [launch() for _ in range(30)]
    assert len({address_of(instance) for instance in instances}) == 30
    serve(7005, *inside(instances[0]))
    answers = [ask(address_of(instances[0]), 7005, *inside(instance)) for instance in instances[1:]]
    assert answers == [address_of(instance) for instance in instances[1:]]


def test_when_the_last_is_gone_the_host_is_as_before(networks: Networks) -> None:
    before = links()
    forward = Path("/proc/sys/net/ipv4/ip_forward").read_text()
    attachment = networks.connect(new_id(), lambda *_: None)
    assert len(links() - before) == 1
    assert networks.retire() == [], "while an address is taken"
    networks.disconnect(attachment.owner, attachment.network, attachment.address)
    assert len(networks.retire()) == 2
    assert not links() - before
    assert (
        networks.definitions.table
        not in subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout
    )
    assert Path("/proc/sys/net/ipv4/ip_forward").read_text() == forward
    assert networks.retire() == []


def test_a_bridge_is_as_quiet_as_it_was_asked_to_be(networks: Networks) -> None:
    attachment = networks.connect(new_id(), lambda *_: None)
    words = ["ip", "-d", "-j", "addr", "show", attachment.bridge]
    (shown,) = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    assert shown["linkinfo"]["info_data"]["mcast_snooping"] == 0
    assert [(each["local"], each["prefixlen"]) for each in shown["addr_info"]] == [(attachment.gateway, 22)]
    assert shown["ifalias"].split() == ["tare", networks.definitions.table, str(networks.definitions.root)]
    assert "UP" in shown["flags"]
    assert shown["address"] == f"02:54:{socket.inet_aton(attachment.gateway).hex(':')}"


def test_who_finds_the_bridge_there_loads_no_library_for_links(networks: Networks) -> None:
    networks.connect("first", lambda *_: None)
    source = f"""
import sys
from pathlib import Path
from runtime.network.network import Networks
networks = Networks(Path({str(networks.definitions.root)!r}), Path({str(networks.definitions.root.parent / "run")!r}))
noted = []
networks.connect("second", lambda *words: noted.append(words))
networks.sweep("second", noted)
networks.close()
print(len(noted), *sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("2 ")
    assert not {"pyroute2", "asyncio", "runtime.network.host_links"} & set(done.stdout.split())


def test_a_thread_that_went_elsewhere_cannot_touch_what_is_there(networks: Networks) -> None:
    """A socket made there would make our bridge in that namespace; one that was made here shows what is here."""

    def elsewhere(ask: Callable[[], object]) -> object:
        syscalls.unshare(CLONE_NEWNET)
        return ask()

    def connect() -> str:
        return networks.connect(new_id(), lambda *_: None).bridge

    with ThreadPoolExecutor(1) as thread, pytest.raises(TareError, match="entered another network namespace"):
        thread.submit(elsewhere, connect).result(TIMEOUT_S)
    bridge = connect()
    host = HostLinks()
    try:
        host.routes()
        with ThreadPoolExecutor(1) as thread:
            found = thread.submit(elsewhere, host.bridges).result(TIMEOUT_S)
    finally:
        host.close()
    assert isinstance(found, list)
    assert bridge in {each.name for each in found}


def test_an_exhausted_pool_is_refused_and_nothing_remains(networks: Networks) -> None:
    networks.create("tiny", "203.0.113.0/30")
    networks.connect("first", lambda *_: None, network="tiny")
    before = links()
    with pytest.raises(TareError, match=r"203\.0\.113\.0/30: all 1 addresses are taken"):
        networks.connect("second", lambda *_: None, network="tiny")
    assert not links() - before
    with pytest.raises(UsageError, match="1 containers use it"):
        networks.remove("tiny")


def test_a_full_bridge_is_followed_by_another(networks: Networks) -> None:
    networks.create("wide", "203.0.112.0/21")
    bridges = {networks.connect(f"o{number}", lambda *_: None, network="wide").bridge for number in range(1022)}
    assert sorted(bridges) == networks.bridges(networks.definitions.demand("wide"))
    assert len(bridges) == 2


def test_processes_that_connect_at_once_get_different_addresses(networks: Networks) -> None:
    """Also the default network is chosen, and its bridge made, only once."""
    source = f"""
import os
from pathlib import Path
from runtime.network.network import Networks
networks = Networks(Path({str(networks.definitions.root)!r}), Path({str(networks.definitions.root.parent / "run")!r}))
for number in range(20):
    print(networks.connect(f"{{os.getpid()}}-{{number}}", lambda *_: None).address)
"""
    running = [subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, text=True) for _ in range(6)]
    said = [process.communicate(timeout=60)[0].split() for process in running]
    assert [len(addresses) for addresses in said] == [20] * 6
    assert len({address for addresses in said for address in addresses}) == 120
    assert len(networks.bridges(networks.definitions.demand(DEFAULT))) == 1


def test_two_state_roots_choose_different_subnets(networks: Networks) -> None:
    with tempfile.TemporaryDirectory() as directory:
        other = Networks(Path(directory) / "lib", Path(directory) / "run")
        try:
            places = [each.connect("owner", lambda *_: None) for each in (networks, other)]
            assert len({place.gateway for place in places}) == 2
            assert len({place.bridge for place in places}) == 2
            other.disconnect("owner", DEFAULT, places[1].address)
        finally:
            other.retire()
            other.close()


def test_an_address_whose_owner_nobody_knows_is_reclaimed(networks: Networks) -> None:
    networks.connect("lost" * 20, lambda *_: None)
    kept = networks.connect("kept" * 20, lambda *_: None)
    assert networks.reclaim(lambda: ["kept" * 20]) == [f"{'lost' * 8}: address on network bridge"]
    network = networks.definitions.demand(DEFAULT)
    assert networks.leases(network) == [(kept.address, "kept" * 8)]
    assert networks.reclaim(lambda: ["kept" * 20]) == []


def test_bridges_of_a_state_root_that_was_deleted_are_found_and_removed(networks: Networks) -> None:
    with tempfile.TemporaryDirectory() as directory:
        lost = Networks(Path(directory) / "lib", Path(directory) / "run")
        bridge = lost.connect("owner", lambda *_: None).bridge
        lost.close()
        subprocess.run(f"ip link add tare-port master {bridge} type veth peer name tare-peer".split(), check=True)
        assert not any(bridge in line for line in networks.remove_orphans())
    assert any(bridge in line for line in networks.remove_orphans())
    assert not {bridge, "tare-port", "tare-peer"} & links()


def test_rules_that_somebody_flushed_are_there_again_with_the_next(networks: Networks) -> None:
    networks.connect("first", lambda *_: None)
    table = networks.definitions.table
    subprocess.run(["nft", "delete", "table", "inet", table], check=True)
    networks.connect("second", lambda *_: None, ports=[Port(0, 80, "tcp", "127.0.0.1")])
    assert len(networks.published()) == 1


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


@pytest.mark.parametrize(
    ("setup", "chain"),
    [
        (["-P FORWARD DROP"], "FORWARD"),
        (["-P FORWARD DROP", "-N DOCKER-USER", "-I FORWARD -j DOCKER-USER"], "DOCKER-USER"),
        (["-P FORWARD ACCEPT"], None),
    ],
)
@pytest.mark.parametrize("tool", ["iptables-nft", "iptables-legacy"])
def test_a_firewall_that_drops_lets_bridges_pass_while_they_are_there(
    root_user: None, tool: str, setup: list[str], chain: str | None
) -> None:
    if shutil.which(tool) is None:
        skip_or_fail(f"no {tool} on PATH")
    prepare = "\n".join(f"{tool} -w {words}" for words in setup)
    script = f"set -e\n{prepare}\n{sys.executable} -c '{FIREWALL}' {tool}"
    done = subprocess.run(["unshare", "--net", "sh", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    before, during, again, after = json.loads(done.stdout)
    rules = [f"-A {chain} -{way} tare+ -j ACCEPT" for way in "oi"] if chain else []
    assert [rule for rule in during if rule not in before] == rules
    assert again == during
    assert after == before

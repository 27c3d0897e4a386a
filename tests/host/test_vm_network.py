"""Guests on the containers' bridges: both ways, names, ports; and what a failure or a crash leaves: nothing."""

from __future__ import annotations

import dataclasses
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runtime.channel import Channel
from runtime.driver import Host
from runtime.drivers.container import ContainerDriver
from runtime.drivers.libvirt import MicrovmDriver
from runtime.errors import TareError
from runtime.identity import Identity, Place
from runtime.instance import Instance
from runtime.ledger import Ledger
from runtime.network import taps
from runtime.network.attachment import link_name
from runtime.network.definitions import DEFAULT
from runtime.network.network import Networks
from runtime.network.subnet import hardware
from runtime.spec import InstanceSpec, NetworkMode, NetworkSpec
from runtime.vm.guest import Guest
from runtime.vm.wiring import Wiring
from tests.host.drivers import usable
from tests.host.network import OUTSIDE, UPSTREAM, address_of, ask, driver, inside, links, outside, serve
from tests.host.test_vm import IMAGE, READY_S
from tests.ports import free_port

__all__ = ["driver", "outside", "serve"]  # fixtures
BRIDGE = NetworkSpec(mode=NetworkMode.BRIDGE)
SPEC = InstanceSpec(image=IMAGE, network=BRIDGE)
# Says to everybody where he comes from; its parent ends as soon as it listens, in a session of its own.
PERL_SERVER = """
use IO::Socket::INET; use POSIX;
my $listener = IO::Socket::INET->new(LocalPort => shift, Listen => 9, ReuseAddr => 1) or die $!;
pipe(my $read, my $write); my $child = fork;
if ($child) { close $write; <$read>; exit }
POSIX::setsid(); close $read; close $write; close STDOUT; close STDERR;
while (my $one = $listener->accept) { print $one $one->peerhost; close $one }
"""
BASH_CLIENT = 'exec 3<>"/dev/tcp/$1/$2" && cat <&3'
TABLES = "cat /proc/net/route /proc/net/if_inet6 /proc/net/arp; cat /etc/resolv.conf"
OWNER = """
import sys, time
from pathlib import Path
from runtime.driver import Host
from runtime.drivers.libvirt import MicrovmDriver
from runtime.spec import ImageRef, InstanceSpec, NetworkMode, NetworkSpec, Ready
driver = MicrovmDriver(Host(root=Path(sys.argv[1]), run=Path(sys.argv[2])))
network = NetworkSpec(mode=NetworkMode.BRIDGE, ports=((int(sys.argv[4]), 80),))
spec = InstanceSpec(image=ImageRef.parse(sys.argv[3]), ready=Ready.SPAWNED, network=network)
print(driver.launch(driver.prepare(spec)).id, flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def microvm(bench_host: Host, driver: ContainerDriver) -> Iterator[MicrovmDriver]:
    with usable(MicrovmDriver(bench_host)) as microvm:
        yield microvm


@pytest.fixture(scope="module")
def guest(microvm: MicrovmDriver) -> Iterator[Guest]:
    """A guest with port 80 published; `published` says where."""
    network = NetworkSpec(mode=NetworkMode.BRIDGE, ports=((free_port(), 80),))
    spec = dataclasses.replace(SPEC, network=network, hostname="web.example")
    with microvm.launch(microvm.prepare(spec)) as guest:
        guest.wait_ready(READY_S)
        for port in ("80", "7000"):
            guest.exec(["perl", "-e", PERL_SERVER, port], 60).check()
        yield guest


@pytest.fixture
def container(driver: ContainerDriver) -> Iterator[Instance]:
    with driver.launch(driver.prepare(SPEC)) as instance:
        instance.wait_ready(30)
        yield instance


def asked(guest: Instance, address: str, port: int) -> str:
    """What the server at `address` says to the guest."""
    return guest.exec(["bash", "-c", BASH_CLIENT, "-", address, str(port)], 60).stdout.decode()


def published(guest: Guest) -> int:
    return guest._plan.spec.network.ports[0][0]


def gateway(host: Host) -> str:
    """The address of the default network's first bridge."""
    networks = Networks(host.root, host.run)
    try:
        seen = networks.seen(networks.definitions.demand(DEFAULT))
        return next(address for _, listed in seen for address in listed).partition("/")[0]
    finally:
        networks.close()


def networks_are_clean(host: Host, owners_before: set[str], links_before: set[str]) -> None:
    """No tap, address or port beyond those that were there before."""
    networks = Networks(host.root, host.run)
    try:
        owners = [owner for each in networks.definitions.all() for _, owner in networks.leases(each)]
        assert set(owners) <= owners_before
        assert links() <= links_before
        assert all(address in holders(networks) for _, address in networks.published())
    finally:
        networks.close()


def holders(networks: Networks) -> set[str]:
    return {address for each in networks.definitions.all() for address, _ in networks.leases(each)}


def test_a_guest_has_one_card_its_name_and_nothing_of_ipv6(guest: Guest) -> None:
    assert guest.address == address_of(guest)
    names = guest.exec(["ls", "/sys/class/net"], 60).stdout.split()
    assert len(names) == 2
    assert guest.exec(["hostname"], 60).stdout == b"web.example\n"
    assert guest.exec(["cat", "/etc/hostname"], 60).stdout == b"web.example\n"
    shown = guest.exec(["sh", "-c", TABLES], 60).stdout.decode()
    assert "fe80" not in shown
    assert "nameserver " in shown
    mac = guest.exec(["sh", "-c", "cat /sys/class/net/e*/address"], 60).stdout.decode().strip()
    assert mac == hardware(socket.inet_aton(guest.address)).hex(":")
    assert "0x6" in shown, "the gateway is no permanent neighbour"


def test_container_and_guest_reach_each_other_with_their_own_addresses(
    guest: Guest, container: Instance, serve: Callable[..., None]
) -> None:
    assert guest.address is not None
    assert ask(guest.address, 7000, *inside(container)) == address_of(container)
    serve(7001, *inside(container))
    assert asked(guest, address_of(container), 7001) == guest.address


def test_two_guests_reach_each_other_and_the_host(
    guest: Guest, microvm: MicrovmDriver, serve: Callable[..., None]
) -> None:
    before = links()
    with microvm.launch(microvm.prepare(SPEC)) as other:
        other.wait_ready(READY_S)
        assert guest.address is not None
        assert other.address not in (None, guest.address)
        assert asked(other, guest.address, 7000) == other.address
        assert other.exec(["hostname"], 60).stdout.decode().strip() == other.id
        port = free_port()
        serve(port)
        assert asked(other, gateway(microvm.host), port) == other.address
    assert microvm.leftovers() == []
    networks_are_clean(microvm.host, {guest.id}, before)


def test_the_world_outside_sees_the_host_and_reaches_what_is_published_only(
    guest: Guest, container: Instance, outside: int, serve: Callable[..., None]
) -> None:
    world = ("nsenter", "-t", str(outside), "-n")
    serve(7002, *world)
    assert asked(guest, OUTSIDE, 7002) == UPSTREAM
    port = published(guest)
    assert ask(UPSTREAM, port, *world) == OUTSIDE
    assert ask("127.0.0.1", port)
    assert ask(UPSTREAM, port, *inside(container))
    assert asked(guest, UPSTREAM, port), "not even by itself"
    assert guest.address is not None
    assert ask(guest.address, 7000, *world, timeout_s=1) == ""


def test_a_guest_without_a_network_has_no_card_but_may_have_a_name(microvm: MicrovmDriver) -> None:
    spec = dataclasses.replace(SPEC, network=NetworkSpec(), hostname="alone")
    with microvm.launch(microvm.prepare(spec)) as guest:
        guest.wait_ready(READY_S)
        assert guest.address is None
        assert guest.exec(["ls", "/sys/class/net"], 60).stdout == b"lo\n"
        assert guest.exec(["grep", "-c", "^virtio_net", "/proc/modules"], 60).stdout == b"0\n"
        assert guest.exec(["hostname"], 60).stdout == b"alone\n"
        assert b"127.0.1.1\talone\n" in guest.exec(["cat", "/etc/hosts"], 60).stdout


def test_a_running_guest_moves_to_another_address(microvm: MicrovmDriver, container: Instance) -> None:
    """As one from a saved state does: address, MAC, name, machine id, time and entropy, and nothing of the old."""
    with microvm.launch(microvm.prepare(SPEC)) as guest:
        guest.wait_ready(READY_S)
        guest.exec(["perl", "-e", PERL_SERVER, "7003"], 60).check()
        old = guest.address
        assert old is not None
        assert isinstance(guest._channel, Channel)
        router = socket.inet_aton(gateway(microvm.host))
        packed = (int.from_bytes(router) + 900).to_bytes(4)
        new = socket.inet_ntoa(packed)
        mtu = int(Path(f"/sys/class/net/{link_name(guest.id)}/mtu").read_text())
        place = Place(new, 22, socket.inet_ntoa(router), hardware(packed).hex(":"), hardware(router).hex(":"), mtu)
        identity = Identity(hostname="moved", place=place, machine_id="ab" * 16)
        guest.exec(["date", "-s", "2001-01-01"], 60).check()
        for _ in range(2):
            guest._channel.configure(identity, renew=True)
        assert ask(new, 7003, *inside(container)) == address_of(container)
        assert ask(old, 7003, *inside(container), timeout_s=1) == ""
        assert guest.exec(["cat", "/etc/machine-id"], 60).stdout == b"ab" * 16 + b"\n"
        assert guest.exec(["hostname"], 60).stdout == b"moved\n"
        assert int(guest.exec(["date", "+%Y"], 60).stdout) > 2020


def test_a_port_that_is_taken_is_refused_and_nothing_remains(microvm: MicrovmDriver, guest: Guest) -> None:
    network = NetworkSpec(mode=NetworkMode.BRIDGE, ports=((published(guest), 80),))
    before = links()
    with pytest.raises(TareError, match="another container has published it"):
        microvm.launch(microvm.prepare(dataclasses.replace(SPEC, network=network)))
    networks_are_clean(microvm.host, {guest.id}, before)
    assert microvm.leftovers() == []


def test_an_exhausted_pool_is_refused_and_nothing_remains(
    microvm: MicrovmDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TARE_SUBNET", "203.0.113.0/30")
    host = Host(root=tmp_path / "lib", run=tmp_path / "run")
    ledger = Ledger(host.run)
    entries = [ledger.open(f"tare-00000000000{number}", "microvm") for number in range(2)]
    wired = Wiring.open(entries[0], host, SPEC, entries[0].id)
    before = links()
    with pytest.raises(TareError, match="all 1 addresses are taken"):
        Wiring.open(entries[1], host, SPEC, entries[1].id)
    assert links() == before
    assert len(wired.left()) == 2
    wired.close()
    wired.close()
    assert wired.left() == []
    for entry in entries:
        entry.close(gone=True)
    networks = Networks(host.root, host.run)
    networks.retire()
    networks.close()


def test_a_host_without_taps_says_so_and_gives_the_address_back(
    microvm: MicrovmDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(taps, "DEVICE", tmp_path / "no-tun")
    before = links()
    with pytest.raises(TareError, match="no-tun: No such file or directory"):
        microvm.launch(microvm.prepare(SPEC))
    assert {name for name in links() - before if name.startswith("ve")} == set()
    assert microvm.leftovers() == []


def test_a_killed_owner_s_tap_address_and_port_are_swept(microvm: MicrovmDriver) -> None:
    host, port = microvm.host, free_port()
    command = [sys.executable, "-c", OWNER, str(host.root), str(host.run), str(IMAGE), str(port)]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        instance_id = owner.stdout.readline().strip()
        assert link_name(instance_id) in links()
        owner.send_signal(signal.SIGKILL)
    kinds = {line.split()[0] for line in microvm.leftovers()}
    assert {"process", "link", "lease", "port", "dir", "page"} <= kinds
    removed = microvm.sweep()
    assert [line for line in removed if line == f"link {link_name(instance_id)}"]
    assert link_name(instance_id) not in links()
    networks = Networks(host.root, host.run)
    assert all(port != one.host_port for one, _ in networks.published())
    assert not networks.holds(instance_id, "lease", DEFAULT)
    networks.close()
    assert microvm.leftovers() == []

"""Networks without instances: bridges, pools of addresses, rules and firewalls on a real kernel. Needs root."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from runtime.errors import TareError, UsageError
from runtime.ledger import new_id
from runtime.linux import syscalls
from runtime.network.definitions import DEFAULT
from runtime.network.host_links import HostLinks
from runtime.network.network import Networks
from runtime.network.ports import Port
from tests.conftest import skip_or_fail
from tests.host.network import TIMEOUT_S, links

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

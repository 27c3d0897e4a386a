"""`tare network create|ls|inspect|rm`, with the words of `docker network`.

Only words and tables; the work is done by `runtime.network`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from runtime.commands.several import each
from runtime.driver import host_from_env
from runtime.errors import TareError, UsageError
from runtime.network.definitions import DEFAULT, Network
from runtime.network.network import Networks
from runtime.network.subnet import shown

_BUILT_IN = ((DEFAULT, "bridge"), ("host", "host"), ("none", "null"))


@click.group()
def network() -> None:
    """Manage the bridge networks that containers are connected to with --network NAME."""


@network.command()
@click.argument("name")
@click.option("--subnet", metavar="A.B.C.D/N", help="Its addresses; without it a range that the host does not use.")
@click.option("-d", "--driver", default="bridge", metavar="NAME", help="Only `bridge` is there.")
def create(name: str, subnet: str | None, driver: str) -> None:
    """Make a network called NAME. Its bridge comes with its first container."""
    if driver != "bridge":
        raise UsageError(f"network driver {driver}", "no such driver", "use bridge")
    with _networks() as networks:
        click.echo(networks.create(name, subnet).name)


@network.command("ls")
@click.option("-q", "--quiet", is_flag=True, help="Names only.")
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
def ls(quiet: bool, as_json: bool) -> None:
    """List the networks. The default one gets its subnet when the first container needs it."""
    with _networks() as networks:
        found = [_described(networks, each) for each in networks.definitions.all()]
    built_in: list[dict[str, Any]] = [
        {"Name": name, "Driver": driver, "Subnet": None, "Containers": {}} for name, driver in _BUILT_IN
    ]
    rows = found + [row for row in built_in if row["Name"] not in {each["Name"] for each in found}]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    if not quiet:
        click.echo(f"{'NAME':20} {'DRIVER':8} {'SUBNET':18} {'CONTAINERS':>10}")
    for row in rows:
        line = f"{row['Name']:20} {row['Driver']:8} {row['Subnet'] or '-':18} {len(row['Containers']):>10}"
        click.echo(row["Name"] if quiet else line)


@network.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
def inspect(names: Sequence[str]) -> None:
    """Print what is known of networks, as JSON."""
    with _networks() as networks:
        wanted = [networks.definitions.demand(name) for name in names]
        found = [{**_described(networks, one), "Links": _links(networks, one)} for one in wanted]
    click.echo(json.dumps(found, indent=4))


@network.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
def rm(names: Sequence[str]) -> int:
    """Remove networks. One that a container uses stays."""
    with _networks() as networks:
        return each(names, networks.remove)


@contextmanager
def _networks() -> Iterator[Networks]:
    if os.geteuid() != 0:
        raise TareError("networks", "only root may look at them and change them", "run it as root")
    host = host_from_env()
    networks = Networks(host.root, host.run)
    try:
        yield networks
    finally:
        networks.close()


def _described(networks: Networks, one: Network) -> dict[str, Any]:
    """A network in the shape of Docker's answer, as far as it applies."""
    published: dict[str, list[str]] = {}
    for port, address in networks.published():
        published.setdefault(address, []).append(str(port))
    leases = networks.leases(one)
    gateways = {one.subnet.place(_packed(address))[0] for address, _ in leases} | {0}
    return {
        "Name": one.name,
        "Driver": "bridge",
        "Default": one.name == DEFAULT,
        "Subnet": str(one.subnet),
        "Gateways": [shown(one.subnet.gateway(segment)) for segment in sorted(gateways)],
        "Bridges": networks.bridges(one),
        "Containers": {
            owner: {"IPv4Address": address, "Ports": published.get(address, [])} for address, owner in leases
        },
    }


def _links(networks: Networks, one: Network) -> dict[str, dict[str, Any]]:
    """The network's bridges as the kernel has them."""
    return {
        bridge.name: {"Addresses": addresses, "MTU": bridge.mtu, "Up": bridge.up}
        for bridge, addresses in networks.seen(one)
    }


def _packed(address: str) -> bytes:
    return bytes(int(part) for part in address.split("."))

"""Containers on bridges, a world outside, and who asks and answers there, for tests of networks. No tests here."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runtime.driver import Host
from runtime.drivers.container import ContainerDriver
from runtime.instance import Instance
from runtime.spec import ImageRef, InstanceSpec, NetworkMode, NetworkSpec
from tests.conftest import skip_or_fail
from tests.host.drivers import Launch, launching
from tests.host.life import IMAGE, until

SPEC = InstanceSpec(image=ImageRef.parse(IMAGE), network=NetworkSpec(mode=NetworkMode.BRIDGE))
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
    with launching(driver, SPEC) as launch:
        yield launch


@pytest.fixture(scope="module")
def outside(driver: ContainerDriver) -> Iterator[int]:
    """A network namespace beyond the host, joined to it by a link as another machine would be: a pid in it."""
    with subprocess.Popen(["unshare", "--net", "sleep", "600"]) as holder:
        try:
            until(lambda: own_namespace(holder.pid))
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

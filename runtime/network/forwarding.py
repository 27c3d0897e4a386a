"""What must be so on the host that its packets may pass to and from bridges: sysctls, and other people's firewalls.

Everything here is for the whole host (its network namespace), changed as little as possible, and undone
by `leave` where that takes nothing from anybody else.
"""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Final

from runtime.command import run
from runtime.errors import TareError

TIMEOUT_S: Final = 30.0
_IP_FORWARD: Final = "sys/net/ipv4/ip_forward"
_TABLES: Final = ("iptables-nft", "iptables-legacy")
_DOCKER_CHAIN: Final = "DOCKER-USER"  # Docker leaves it to others, and looks at it first


def enter(state: Path, proc: Path = Path("/proc")) -> None:
    """Let the host forward. What was before is written to `state` first, for `leave`."""
    knob = proc / _IP_FORWARD
    before = knob.read_text().strip()
    if before == "0":
        state.write_text(before)
        try:
            knob.write_text("1")
        except OSError as error:
            raise TareError(f"writing {knob}", str(error.strerror), "use --network none or host") from error


def leave(state: Path, needed: bool, proc: Path = Path("/proc")) -> None:
    """Forbid forwarding again if `enter` allowed it; where it is `needed` by others by now, it stays."""
    if state.exists():
        if not needed:
            (proc / _IP_FORWARD).write_text(state.read_text())
        state.unlink()


def route_loopback(bridge: str, proc: Path = Path("/proc")) -> None:
    """Let what the host sends to 127.0.0.1 leave by `bridge` when a published port leads there."""
    (proc / "sys/net/ipv4/conf" / bridge / "route_localnet").write_text("1")


def ignore_routers(bridge: str, proc: Path = Path("/proc")) -> None:
    """Let no container be the host's way to the IPv6 world by saying that it is a router."""
    knob = proc / "sys/net/ipv6/conf" / bridge / "accept_ra"
    with suppress(FileNotFoundError):  # a kernel without IPv6
        knob.write_text("0")


def admit(stem: str) -> list[str]:
    """Where iptables drops what is forwarded (Docker and ufw do that), let our bridges pass. Returns what was done.

    The rules go to the chain that Docker reserves for others, or else to the head of FORWARD, as Docker's own do.
    """
    done = []
    for tool in _used():
        chain = _dropping(tool)
        if chain:
            for way in ("-i", "-o"):
                rule = [way, f"{stem}+", "-j", "ACCEPT"]
                if not _succeeds([tool, "-w", "-C", chain, *rule]):
                    run([tool, "-w", "-I", chain, *rule], timeout_s=TIMEOUT_S)
                    done.append(f"{tool} -I {chain} {' '.join(rule)}")
    return done


def dismiss(stem: str) -> None:
    """Take back what `admit` did."""
    for tool in _used():
        for chain in (_DOCKER_CHAIN, "FORWARD"):
            for way in ("-i", "-o"):
                rule = [way, f"{stem}+", "-j", "ACCEPT"]
                if _succeeds([tool, "-w", "-C", chain, *rule]):
                    run([tool, "-w", "-D", chain, *rule], timeout_s=TIMEOUT_S)


def obstacles(table: str) -> list[str]:
    """The nftables chains, ours and iptables' aside, that drop by default what is forwarded: a sentence each."""
    found = []
    with suppress(TareError, ValueError):
        listed = json.loads(run(["nft", "-j", "list", "chains"], timeout_s=TIMEOUT_S).stdout)
        for chain in (item["chain"] for item in listed["nftables"] if "chain" in item):
            ours = chain["table"] == table or (chain["table"], chain["name"]) == ("filter", "FORWARD")
            if chain.get("hook") == "forward" and chain.get("policy") == "drop" and not ours:
                where = f"{chain['family']} {chain['table']} {chain['name']}"
                found.append(f"nftables chain {where} drops what is forwarded and must let bridges tare* pass")
    return found


def _used(proc: Path = Path("/proc")) -> list[str]:
    """The iptables programs worth asking: to ask the old one would make its tables, so only if there are any."""
    tools = [tool for tool in _TABLES if shutil.which(tool)]
    names = proc / "net/ip_tables_names"
    legacy = names.exists() and "filter" in names.read_text().split()
    return [tool for tool in tools if tool != "iptables-legacy" or legacy]


def _dropping(tool: str) -> str | None:
    """The chain to put our rules into, if FORWARD drops by default."""
    try:
        listed = run([tool, "-w", "-S", "FORWARD"], timeout_s=TIMEOUT_S).stdout.decode().splitlines()
    except TareError:
        return None
    if "-P FORWARD DROP" not in listed:
        return None
    return _DOCKER_CHAIN if f"-A FORWARD -j {_DOCKER_CHAIN}" in listed else "FORWARD"


def _succeeds(argv: list[str]) -> bool:
    try:
        run(argv, timeout_s=TIMEOUT_S)
    except TareError:
        return False
    return True

"""The files that tell a container its own name and whom to ask for others. Pure.

Names of other containers are not resolved: each knows its own and what the host's resolvers know.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

_LOCAL: Final = (
    "127.0.0.1\tlocalhost\n"
    "::1\tlocalhost ip6-localhost ip6-loopback\n"
    "fe00::\tip6-localnet\n"
    "ff02::1\tip6-allnodes\n"
    "ff02::2\tip6-allrouters\n"
)
# Docker's, for a host that resolves names itself and does not say whom it asks.
_PUBLIC: Final = ("8.8.8.8", "8.8.4.4")
_RESOLVED: Final = "run/systemd/resolve/resolv.conf"


def hosts_file(hostname: str, address: str | None, extra: Sequence[tuple[str, str]] = ()) -> str:
    """An /etc/hosts: localhost, the container (at `address` or 127.0.1.1), and `extra` as (name, address)."""
    own = f"{address or '127.0.1.1'}\t{hostname}\n"
    return _LOCAL + own + "".join(f"{where}\t{name}\n" for name, where in extra)


def resolv_conf(host: str, servers: Sequence[str] = (), search: Sequence[str] = (), options: Sequence[str] = ()) -> str:
    """An /etc/resolv.conf: the host's, without servers on its own loopback, which a container cannot reach.

    `servers`, `search` and `options` replace what the host says. Where no server is left, public ones
    are named, as Docker does.
    """
    lines = [line.split() for line in host.splitlines() if line.strip() and line[0] not in "#;"]
    found = [words[1] for words in lines if words[0] == "nameserver" and len(words) > 1]
    usable = [server for server in found if not (server.startswith("127.") or server == "::1")]
    said = {words[0]: words[1:] for words in lines if words[0] in ("search", "domain", "options")}
    searched = list(search) or said.get("search") or said.get("domain") or []
    chosen = list(options) or said.get("options") or []
    text = "".join(f"nameserver {server}\n" for server in servers or usable or _PUBLIC)
    if searched and searched != ["."]:
        text += f"search {' '.join(searched)}\n"
    return text + (f"options {' '.join(chosen)}\n" if chosen else "")


def host_resolv_conf(root: Path = Path("/")) -> str:
    """What the host's resolv.conf says; where that only names systemd-resolved, what resolved itself uses."""
    text = _read(root / "etc/resolv.conf")
    if "nameserver 127.0.0.53" in text:
        return _read(root / _RESOLVED) or text
    return text


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""

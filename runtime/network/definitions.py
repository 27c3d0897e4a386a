"""The networks of a state root: their names, subnets, and what their bridges are called. One small file each."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from runtime.errors import TareError, UsageError
from runtime.network.subnet import Route, Subnet
from runtime.record import ordered_record

DEFAULT: Final = "bridge"
SUBNET_VARIABLE: Final = "TARE_SUBNET"
_RESERVED: Final = ("none", "host", "default", "container")
_NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}")
_STATE: Final = Path("/var/lib/tare")
# Not 10.88/16, which podman's network has without asking, nor 172.17/16, which is Docker's.
_CANDIDATES: Final = tuple(
    [f"10.{number}.0.0/16" for number in range(87, 63, -1)]
    + [f"172.{number}.0.0/16" for number in range(31, 19, -1)]
    + [f"192.168.{number}.0/20" for number in range(240, 95, -16)]
)


@ordered_record
class Network:
    """A bridge network. `automatic`: nobody asked for this very subnet. Bridges are `stem` and a number."""

    name: str
    subnet: Subnet
    stem: str
    automatic: bool

    def bridge(self, segment: int) -> str:
        """The bridge of a segment."""
        return f"{self.stem}{segment}"


class Definitions:
    """The files below `<root>/networks`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._directory = root / "networks"

    @property
    def table(self) -> str:
        """The nftables table of this state root."""
        return self._stem(DEFAULT)

    def find(self, name: str) -> Network | None:
        """The network called `name`."""
        if not _NAME.fullmatch(name):
            return None
        try:
            words = json.loads((self._directory / f"{name}.json").read_text())
            return Network(name, Subnet.parse(str(words["subnet"])), self._stem(name), bool(words["automatic"]))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, UsageError) as error:
            raise TareError(f"network {name}", f"its file is broken: {error}", f"remove {self._directory}") from error

    def demand(self, name: str) -> Network:
        """The network called `name`. Raises UsageError when there is none."""
        network = self.find(name)
        if network is None:
            raise UsageError(f"network {name!r}", "no such network", "see: tare network ls")
        return network

    def all(self) -> list[Network]:
        """Every network, by name."""
        names = sorted(path.stem for path in self._directory.glob("*.json")) if self._directory.is_dir() else []
        return [network for network in map(self.find, names) if network is not None]

    def create(self, name: str, subnet: Subnet | None, routes: Iterable[Route]) -> Network:
        """Write down a new network. `routes` are the host's: a subnet that is given must not overlap one.

        Without a subnet, the first candidate that overlaps neither a route nor another network is taken.
        """
        if not _NAME.fullmatch(name) or name in _RESERVED:
            raise UsageError(f"network {name!r}", "not a name for a network", "use letters, digits, dots and dashes")
        if self.find(name) is not None:
            raise UsageError(f"network {name!r}", "it exists already", "choose another name")
        return self.save(name, subnet, routes)

    def save(self, name: str, subnet: Subnet | None, routes: Iterable[Route]) -> Network:
        """Like `create`, also over what was there."""
        others = [network.subnet for network in self.all() if network.name != name]
        busy = [(route.network, route.prefix_bits) for route in routes if route.prefix_bits]
        busy += [(other.base, other.prefix_bits) for other in others]
        chosen = subnet or next(
            (each for each in map(Subnet.parse, _CANDIDATES) if not any(each.overlaps(*one) for one in busy)), None
        )
        if chosen is None:
            raise TareError(
                "choosing a subnet", "every candidate overlaps one of the host's routes", f"set {SUBNET_VARIABLE}"
            )
        clash = next((one for one in busy if chosen.overlaps(*one)), None)
        if clash is not None:
            raise UsageError(
                f"subnet {chosen}", f"it overlaps {Subnet(*clash)}, which this host uses", "choose another subnet"
            )
        self._write(name, {"subnet": str(chosen), "automatic": subnet is None})
        return Network(name, chosen, self._stem(name), subnet is None)

    def remove(self, name: str) -> None:
        """Forget a network."""
        (self._directory / f"{name}.json").unlink(missing_ok=True)

    def _write(self, name: str, words: dict[str, object]) -> None:
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial = self._directory / f".{name}-{os.urandom(4).hex()}"
        try:
            partial.write_text(json.dumps(words))
            os.replace(partial, self._directory / f"{name}.json")  # noqa: PTH105 - one call, atomic
        finally:
            partial.unlink(missing_ok=True)

    def _stem(self, name: str) -> str:
        """What tells this network's devices from all others on the host: state roots do not know of each other."""
        if name == DEFAULT and self.root == _STATE:
            return "tare"
        import hashlib  # not cheap, and not needed by whoever uses the default root and network

        return "ta" + hashlib.sha256(f"{self.root}:{name}".encode()).hexdigest()[:6] + "n"

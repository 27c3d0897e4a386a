"""iperf3 3.12: command lines and what its JSON says. Not what the figures mean; workloads decide that."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from workloads.base import Invalid
from workloads.tools.totals import possible

PROBE = ("iperf3", "--version")
# `$0` is the port, `$1` the same in hexadecimal. The server has left the command's process group once it listens.
_SERVE = """
iperf3 --server --one-off --daemon --port "$0"
until grep -q ":$1 [0-9A-F]*:0000 0A " /proc/net/tcp /proc/net/tcp6; do sleep 0.02; done
"""


@dataclass(frozen=True, slots=True)
class Stream:
    """`bytes` that the other end received, and the seconds of the sender's clock it took."""

    bytes: int
    elapsed_s: float


def server_argv(port: int) -> tuple[str, ...]:
    """Leave a server for one client in the background, on every address; ends when it listens."""
    return ("/bin/sh", "-ec", _SERVE, str(port), f"{port:04X}")


def client_argv(address: str, port: int, seconds: float) -> tuple[str, ...]:
    """Send one TCP stream for `seconds`: whole ones, at least one."""
    return ("iperf3", "--client", address, "--port", str(port), "--time", str(max(1, round(seconds))), "--json")


def parse(output: bytes) -> Stream:
    """Read a client's report. Raises Invalid when it is none, says an error, or nothing was received."""
    text = output.decode(errors="replace")
    try:
        report: dict[str, Any] = json.loads(text)
        if "error" in report:
            raise Invalid("iperf3", str(report["error"]))
        end = report["end"]
        stream = Stream(int(end["sum_received"]["bytes"]), float(end["sum_sent"]["seconds"]))
    except (ValueError, KeyError, TypeError, OverflowError) as problem:
        raise Invalid("iperf3", f"no report in its output: {text.strip()[-200:] or 'it said nothing'}") from problem
    if not possible(stream.bytes, stream.elapsed_s):
        raise Invalid("iperf3", "nothing was received")
    return stream

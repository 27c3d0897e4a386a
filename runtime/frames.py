"""The frames that the host and the guest agent exchange (`runtime/guest/agent.c` documents them), as bytes.

Not who says what when: that is `channel`.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from runtime.errors import TareError

PORT_NAME = "org.tare.agent"
PAYLOAD_MAX = 1 << 20  # bytes of one frame, either way
_HEADER = struct.Struct("<BII")
_MORE = struct.Struct("<BHHI")
_TERMINAL, _INPUT = 1, 2
_FROM_GUEST = frozenset(b"UAR!OEXPCI")


@dataclass(frozen=True, slots=True)
class Streams:
    """What a command has beside its output: input, a terminal of (rows, columns).

    With `window_bytes` it waits, as at a full pipe, while so much of its output has not been granted (0: never).
    """

    input: bool = False
    terminal: tuple[int, int] | None = None
    window_bytes: int = 0


def encode(kind: str, frame_id: int, payload: bytes = b"") -> bytes:
    """One frame for the agent. Raises TareError if `payload` exceeds PAYLOAD_MAX."""
    if len(payload) > PAYLOAD_MAX:
        raise TareError("request to the guest agent", f"{len(payload)} bytes", f"at most {PAYLOAD_MAX} are possible")
    return _HEADER.pack(ord(kind), frame_id, len(payload)) + payload


def encode_exec(argv: Sequence[str], env: Mapping[str, str]) -> bytes:
    """The payload of an execute frame. Raises TareError for an empty command or a NUL byte."""
    words = [*argv, *(f"{name}={value}" for name, value in env.items())]
    if not argv or any("\0" in word for word in words):
        raise TareError("command", "it is empty or holds a NUL byte", "give a program and its arguments")
    return struct.pack("<I", len(argv)) + b"".join(os.fsencode(word) + b"\0" for word in words)


def encode_more(argv: Sequence[str], env: Mapping[str, str], streams: Streams) -> bytes:
    """The payload of an execute frame for a command with input, a terminal, or output that waits for its taker."""
    rows, columns = streams.terminal or (0, 0)
    flags = (_TERMINAL if streams.terminal is not None else 0) | (_INPUT if streams.input else 0)
    return _MORE.pack(flags, rows, columns, streams.window_bytes) + encode_exec(argv, env)


class Decoder:
    """Cuts the agent's byte stream into frames, however it was split on the way."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes | memoryview) -> Iterator[tuple[str, int, bytes]]:
        """Every frame that `data` completes, as (kind, id, payload). Raises ValueError at a malformed one."""
        self._rest += data
        at = 0
        while len(self._rest) - at >= _HEADER.size:
            kind, frame_id, length = _HEADER.unpack_from(self._rest, at)
            if kind not in _FROM_GUEST or length > PAYLOAD_MAX:
                raise ValueError(f"type {kind} with {length} bytes")
            end = at + _HEADER.size + length
            if len(self._rest) < end:
                break
            with memoryview(self._rest) as view:
                payload = bytes(view[at + _HEADER.size : end])
            at = end
            yield chr(kind), frame_id, payload
        del self._rest[:at]

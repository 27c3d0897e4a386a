# ruff: noqa: PTH104, PTH118, PTH123
"""What happens to containers, a JSON line each in a bounded file: what `tare events` shows. Lean.

Telling is best effort and never in the way: a full disk loses events, not containers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Final

from runtime.container.logs import now

NAME: Final = "events.jsonl"
MAX_BYTES: Final = 4 << 20


def append(directory: str, action: str, container_id: str, attributes: Mapping[str, str]) -> None:
    """Write down that `action` (create, start, die…) has happened to a container."""
    line = {"time": now(), "Type": "container", "Action": action, "id": container_id, "attributes": dict(attributes)}
    path = os.path.join(directory, NAME)
    with suppress(OSError):
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, json.dumps(line).encode() + b"\n")
            if os.fstat(descriptor).st_size > MAX_BYTES:
                os.rename(path, f"{path}.1")
        finally:
            os.close(descriptor)


def read(directory: str, since: str = "", until: str = "") -> Iterator[dict[str, Any]]:
    """The events kept, oldest first, from `since` to `until` (ISO times, UTC)."""
    for name in (f"{NAME}.1", NAME):
        with suppress(FileNotFoundError), open(os.path.join(directory, name), "rb") as file:
            for row in file:
                event = _parsed(row)
                if event is not None and event["time"] >= since and (not until or event["time"] <= until):
                    yield event


def follow(directory: str, changed: Callable[[], bool], since: str = "", until: str = "") -> Iterator[dict[str, Any]]:
    """As `read`, and then each new one whenever `changed()`, which waits, says True; until it says False."""
    last = since
    seen: set[str] = set()  # of one nanosecond there may be several
    more = True
    while more:
        for event in read(directory, last, until):
            key = json.dumps(event)
            if key not in seen:
                if event["time"] != last:
                    seen.clear()
                    last = event["time"]
                seen.add(key)
                yield event
        more = changed()


def _parsed(row: bytes) -> dict[str, Any] | None:
    try:
        event: dict[str, Any] = json.loads(row)
    except ValueError:
        return None
    return event if {"time", "Action", "id"} <= event.keys() else None

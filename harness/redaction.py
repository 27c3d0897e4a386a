"""Keeps identifiers out of what a run records: names, serial numbers, addresses, secrets on a command line."""

from __future__ import annotations

import re
from collections.abc import Iterable

HIDDEN = "[hidden]"

_SECRET = re.compile(
    r"(?i)^([\w.-]*(?:serial|host|machine.?id|token|passw|secret|key|user|domain|server|url|addr|(?<![a-z])mac(?![a-z])|uuid|^ip)[\w.-]*=).+"
)
_ADDRESS = re.compile(
    r"(?i)\b[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\b"  # UUID
    r"|\b(?:[0-9a-f]{2}[:-]){5}[0-9a-f]{2}\b"  # MAC address
    r"|\b\d{1,3}(?:\.\d{1,3}){3}\b"  # IPv4
    r"|(?<![\w:])(?=[0-9a-f:]*::|(?:[0-9a-f]{1,4}:){7})[0-9a-f]{0,4}(?::[0-9a-f]{0,4}){2,7}(?![\w:])"  # IPv6
    r"|\b[0-9a-f]{32,}\b"  # machine id, digest
)


def redact(text: str, names: Iterable[str] = ()) -> str:
    """`text` with identifiers hidden: the given `names`, UUIDs, addresses, and values whose key says what they are."""
    for name in filter(None, names):
        text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", HIDDEN, text)
    words, hide_next = [], False
    for word in text.split(" "):
        hidden = HIDDEN if hide_next else _ADDRESS.sub(HIDDEN, _SECRET.sub(rf"\1{HIDDEN}", word))
        hide_next = word.startswith("--") and _SECRET.match(f"{word[2:]}=x") is not None
        words.append(hidden)
    return " ".join(words)

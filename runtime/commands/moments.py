"""Times and counts as a command line has them: `10m`, `2024-05-01T12:00:00Z`."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime

from runtime.errors import UsageError

_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?")
_STEPS = ((86400 * 365, "year"), (86400 * 30, "month"), (86400 * 7, "week"), (86400, "day"), (3600, "hour"))


def moment(flag: str, text: str | None) -> str:
    """A time as logs and events carry it: UTC, ISO 8601, nanoseconds; "" for none. Raises UsageError.

    `text` is such a time, seconds since 1970, or how long ago.
    """
    if text is None:
        return ""
    match = _DURATION.fullmatch(text)
    if match is not None and text:
        days, hours, minutes, seconds = (float(part or 0) for part in match.groups())
        return _shown(time.time() - (days * 86400 + hours * 3600 + minutes * 60 + seconds))
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return _shown(float(text))
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{flag} {text!r}", "not a time", "write 10m, or 2024-05-01T12:00:00Z") from None
    if parsed.tzinfo is None:
        parsed = parsed.astimezone()
    fraction = re.search(r"\.(\d{1,9})", text)  # more digits than datetime keeps
    digits = (fraction[1] if fraction else "").ljust(9, "0")
    return parsed.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{digits}Z"


def _shown(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f") + "000Z"


def count(flag: str, text: str) -> int:
    """A number that is not negative. Raises UsageError."""
    if not text.isascii() or not text.isdigit():
        raise UsageError(f"{flag} {text!r}", "not a number", "give one, or all")
    return int(text)


def seconds_since(text: str) -> float:
    """How long ago a time of ours is."""
    parsed = datetime.fromisoformat(text[:19] + "+00:00")
    return max(0.0, time.time() - parsed.timestamp())


def lasting(seconds: float) -> str:
    """A duration in words, as Docker puts it: `About a minute`, `3 hours`."""
    if seconds < 1:
        return "Less than a second"
    if seconds < 60:
        return f"{int(seconds)} second{'s' if int(seconds) != 1 else ''}"
    if seconds < 120:
        return "About a minute"
    if seconds < 3600:
        return f"{int(seconds // 60)} minutes"
    if seconds < 7200:
        return "About an hour"
    for length, name in _STEPS:
        if seconds >= 2 * length:
            return f"{int(seconds // length)} {name}s"
    return f"{int(seconds // 3600)} hours"


def ago(text: str) -> str:
    """How long ago a time of ours is, in words."""
    return f"{lasting(seconds_since(text))} ago"


def shortened(text: str, most: int) -> str:
    """Cut to `most` characters, the last an ellipsis."""
    return text if len(text) <= most else text[: most - 1] + "…"

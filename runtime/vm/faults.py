"""libvirt's errors in our words: why, and what to do, by its error codes.

Codes: libvirt.org/html/libvirt-virterror.html. Not when they are raised: that is `connection`.
"""

from __future__ import annotations

import re
from typing import Any

_NAMES_ARE_TAKEN = "choose another name, or remove that machine"
_NOT_ALLOWED = "run it as root"
_NOT_POSSIBLE = "this libvirt or QEMU cannot do that; see: tare doctor"
_NOT_UNDERSTOOD = "--debug shows what was asked of it"
_IS_LOST = "start libvirt's daemon again"
_DO = {
    "VIR_ERR_NO_CONNECT": "install libvirt's driver for QEMU with ./bootstrap",
    "VIR_ERR_AUTH_FAILED": _NOT_ALLOWED,
    "VIR_ERR_AUTH_CANCELLED": _NOT_ALLOWED,
    "VIR_ERR_AUTH_UNAVAILABLE": _NOT_ALLOWED,
    "VIR_ERR_ACCESS_DENIED": _NOT_ALLOWED,
    "VIR_ERR_OPERATION_DENIED": _NOT_ALLOWED,
    "VIR_ERR_NO_SUPPORT": _NOT_POSSIBLE,
    "VIR_ERR_CONFIG_UNSUPPORTED": _NOT_POSSIBLE,
    "VIR_ERR_ARGUMENT_UNSUPPORTED": _NOT_POSSIBLE,
    "VIR_ERR_OPERATION_UNSUPPORTED": _NOT_POSSIBLE,
    "VIR_ERR_INVALID_ARG": _NOT_UNDERSTOOD,
    "VIR_ERR_XML_ERROR": _NOT_UNDERSTOOD,
    "VIR_ERR_XML_DETAIL": _NOT_UNDERSTOOD,
    "VIR_ERR_XML_INVALID_SCHEMA": _NOT_UNDERSTOOD,
    "VIR_ERR_DOM_EXIST": _NAMES_ARE_TAKEN,
    "VIR_ERR_NO_DOMAIN": "see: tare vm ls",
    "VIR_ERR_INVALID_CONN": _IS_LOST,
    "VIR_ERR_RPC": _IS_LOST,
    "VIR_ERR_RESOURCE_BUSY": "try again",
    "VIR_ERR_OPERATION_TIMEOUT": "try again",
    "VIR_ERR_NO_MEMORY": "free some memory",
}
_TAKEN = re.compile(r"already (exists|defined|active)|is already")
_LOST = re.compile(r"socket is closed|[Cc]onnection (reset|refused)|keepalive")
_DENIED = re.compile(r"[Pp]ermission denied|authentication")
# libvirt quotes QEMU with the time at which it spoke, and what it thinks of itself.
_NOISE = re.compile(r"(^|(?<= ))(\d{4}-\d\d-\d\dT[\d:.]+Z? |internal error: )")


def fault(libvirt: Any, error: Any, do: str = "") -> tuple[str, str]:
    """Why, in one line, and what to do: by the error's code, or else what the caller thinks, `do`."""
    why = _NOISE.sub("", " ".join(str(error).split()))
    code = error.get_error_code()
    known = next((text for name, text in _DO.items() if getattr(libvirt, name, None) == code), None)
    if known is None:
        words = ((_TAKEN, _NAMES_ARE_TAKEN), (_LOST, _IS_LOST), (_DENIED, _NOT_ALLOWED))
        known = next((text for pattern, text in words if pattern.search(why)), None)
    return why, known or do

"""Which libvirt is meant: the URI that the user gives, judged before anything is opened.

Disks, sockets and control groups are this host's, so whoever starts QEMU must be on it as well.
"""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from runtime.errors import UsageError

VARIABLE = "TARE_LIBVIRT_URI"
EMBEDDED = "qemu:///embed"
"""QEMU driven inside this process: no daemon, nothing to install as a service."""
_DO = f"give {EMBEDDED}, qemu:///system or nothing"


def chosen() -> str:
    """What TARE_LIBVIRT_URI says, which `tare --connect URI` sets, or EMBEDDED. Raises UsageError for one of no use."""
    return checked(os.environ.get(VARIABLE) or EMBEDDED)


def checked(uri: str) -> str:
    """`uri` if a libvirt on this host can be meant by it, with QEMU behind it or libvirt's mock of a hypervisor.

    Forms: libvirt.org/uri.html. Raises UsageError.
    """
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        raise _refused(uri, str(error)) from error
    driver, _, transport = parts.scheme.partition("+")
    if not driver:
        raise _refused(uri, "it does not begin with a driver")
    if driver == "test" and not transport:
        return uri
    if driver != "qemu":
        raise _refused(uri, f"its driver {driver} is not QEMU")
    if parts.netloc or transport not in ("", "unix"):
        raise _refused(uri, "it leads to another host, but disks, sockets and control groups are on this one")
    if parts.path not in ("/embed", "/system", "/session"):
        raise _refused(uri, f"QEMU's driver knows no {parts.path or '/'}")
    if parts.path == "/embed" and (transport or parts.query):
        raise _refused(uri, "the embedded driver's directory is ours to choose")
    return uri


def shown(uri: str) -> str:
    """Without its parameters, which differ from process to process."""
    return uri.partition("?")[0]


def _refused(uri: str, why: str) -> UsageError:
    return UsageError(f"libvirt URI {uri}", why, _DO)

"""libvirt's codes and texts, as they were met, in our words. No libvirt is asked."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from runtime.vm.faults import fault

LIBVIRT = SimpleNamespace(VIR_ERR_NO_CONNECT=5, VIR_ERR_AUTH_FAILED=45, VIR_ERR_DOM_EXIST=28, VIR_ERR_NO_DOMAIN=42)
INTERNAL, OPERATION_FAILED, SYSTEM = 1, 9, 38


class Error(Exception):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.get_error_code = lambda: code


@pytest.mark.parametrize(
    ("code", "text", "do"),
    [
        (5, "no connection driver available for qemu:///system", "install libvirt's driver for QEMU with ./bootstrap"),
        (45, "authentication failed: access denied by policy", "run it as root"),
        (28, "domain web", "choose another name, or remove that machine"),
        (42, "Domain not found: no domain with matching name 'web'", "see: tare vm ls"),
        (OPERATION_FAILED, "operation failed: domain 'web' already exists with uuid 1-2", "choose another name"),
        (SYSTEM, "Failed to connect socket to '/run/libvirt/libvirt-sock': Permission denied", "run it as root"),
        (INTERNAL, "internal error: client socket is closed", "start libvirt's daemon again"),
        (SYSTEM, "Failed to connect socket to '/run/libvirt/libvirt-sock': No such file or directory", "the caller's"),
    ],
)
def test_the_code_or_the_words_tell_what_to_do(code: int, text: str, do: str) -> None:
    assert fault(LIBVIRT, Error(code, text), "the caller's")[1].startswith(do)


def test_qemu_is_quoted_in_one_line_without_the_time_at_which_it_spoke() -> None:
    text = (
        "internal error: process exited while connecting to monitor: 2026-11-24T10:20:30.123456Z qemu-system-x86_64: "
        "-m 1T: cannot set up guest memory\n2026-11-24T10:20:30.123456Z qemu-system-x86_64: exit"
    )
    qemu = "qemu-system-x86_64: -m 1T: cannot set up guest memory qemu-system-x86_64: exit"
    assert fault(LIBVIRT, Error(INTERNAL, text)) == (f"process exited while connecting to monitor: {qemu}", "")

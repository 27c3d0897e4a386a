"""Which URIs are taken, and why others are not."""

from __future__ import annotations

import pytest

from runtime.errors import UsageError
from runtime.vm.uri import EMBEDDED, VARIABLE, checked, chosen, shown


@pytest.mark.parametrize(
    "uri",
    [
        "qemu:///embed",
        "qemu:///system",
        "qemu:///session",
        "qemu:///system?socket=/run/other/libvirt-sock",
        "qemu+unix:///system?socket=/run/other/libvirt-sock",
        "test:///default",
    ],
)
def test_a_libvirt_of_this_host_is_taken_as_it_is(uri: str) -> None:
    assert checked(uri) == uri


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("qemu+ssh://root@far.example/system", "leads to another host"),
        ("qemu://far.example/system", "leads to another host"),
        ("qemu+tcp:///system", "leads to another host"),
        ("xen:///system", "its driver xen is not QEMU"),
        ("test+ssh:///default", "its driver test is not QEMU"),
        ("nosuch:///thing", "its driver nosuch is not QEMU"),
        ("system", "does not begin with a driver"),
        ("qemu:///sytem", "knows no /sytem"),
        ("qemu:", "knows no /"),
        ("qemu://[/system", "Invalid IPv6 URL"),
        ("qemu:///embed?root=/tmp/x", "ours to choose"),
        ("qemu+unix:///embed", "ours to choose"),
    ],
)
def test_what_is_of_no_use_is_refused_with_its_reason(uri: str, why: str) -> None:
    with pytest.raises(UsageError, match=why) as caught:
        checked(uri)
    assert "qemu:///system" in caught.value.do


def test_the_embedded_driver_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert chosen() == EMBEDDED
    monkeypatch.setenv(VARIABLE, "")
    assert chosen() == EMBEDDED
    monkeypatch.setenv(VARIABLE, "qemu:///system")
    assert chosen() == "qemu:///system"


def test_parameters_are_not_shown() -> None:
    assert shown("qemu:///embed?root=/run/x") == "qemu:///embed"

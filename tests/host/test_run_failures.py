"""What a `tare run` that fails leaves: nothing. Needs root."""

from __future__ import annotations

import pytest

from tests.host.life import IMAGE, Tare, name, tare

__all__ = ["name", "tare"]  # fixtures
pytestmark = pytest.mark.usefixtures("root_user")


FAULTS = [("-u", "nobody-here"), ("-w", "relative"), ("--tmpfs", "/data"), ("--name", "taken")]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_container_that_is_not_made_leaves_no_volume(tare: Tare, fault: tuple[str, str]) -> None:
    if fault[0] == "--name":
        tare("create", "--name", "taken", "--network", "none", IMAGE, "true").good()
    said = tare.run("-v", "/data", *fault, IMAGE, "true")
    assert said.code == 125
    assert tare("volume", "ls", "-q").good() == ""
    tare("rm", "-f", "taken")

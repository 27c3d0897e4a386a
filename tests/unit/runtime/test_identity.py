"""What a guest is told about itself, as the words that its agent reads."""

from __future__ import annotations

import pytest

from runtime.errors import TareError
from runtime.identity import Identity, Place, encode_configure

PLACE = Place("10.87.0.2", 22, "10.87.0.1", "02:54:0a:57:00:02", "02:54:0a:57:00:01", 1500)


def test_nothing_is_said_of_what_stays_as_it_is() -> None:
    assert encode_configure(Identity()) == b""


def test_every_word_ends_in_nul_and_the_name_is_also_a_file() -> None:
    identity = Identity(hostname="web", place=PLACE, machine_id="a" * 32, files=(("/etc/hosts", "1 x\n2 y\n"),))
    words = encode_configure(identity, time_ns=7, entropy=b"\x01\xff").split(b"\0")
    assert words == [
        b"address=10.87.0.2/22",
        b"gateway=10.87.0.1",
        b"mac=02:54:0a:57:00:02",
        b"gateway-mac=02:54:0a:57:00:01",
        b"mtu=1500",
        b"hostname=web",
        b"/etc/hostname=web\n",
        b"/etc/machine-id=" + b"a" * 32 + b"\n",
        b"/etc/hosts=1 x\n2 y\n",
        b"time=7",
        b"entropy=01ff",
        b"",
    ]


@pytest.mark.parametrize("file", [("hosts", ""), ("/a=b", ""), ("/a", "x\0mtu=1")])
def test_what_could_be_taken_for_another_word_is_refused(file: tuple[str, str]) -> None:
    with pytest.raises(TareError, match=r"absolute path|NUL byte"):
        encode_configure(Identity(files=(file,)))

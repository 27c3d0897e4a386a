"""What the guest agent does with a configuration, by its own code, in a network and a name of a process's own."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from runtime import command
from runtime.identity import Identity, Place, encode_configure
from tests.agent import SOURCE
from tests.conftest import skip_or_fail

PLACE = Place("10.87.0.2", 22, "10.87.0.1", "02:54:0a:57:00:02", "02:54:0a:57:00:01", 1400)
OTHER = Place("10.87.5.9", 24, "10.87.5.1", "02:54:0a:57:05:09", "02:54:0a:57:05:01", 1300)
# Carries out the payload in each file that it is given, and says what came of it.
CARRIER = """
#include "configure.h"
int main(int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		static char payload[1 << 20];
		FILE *file = fopen(argv[i], "re");
		size_t length = fread(payload, 1, sizeof payload, file);
		const char *why = configure(payload, length);
		fclose(file);
		if (why)
			return puts(why), 1;
	}
	return 0;
}
"""
SHOWN = "ip -br link show eth0; ip -o -4 addr show eth0; ip route; ip neigh; ip -6 addr show eth0; hostname"


@pytest.fixture(scope="module")
def carrier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("carrier")
    if subprocess.run(["unshare", "--net", "--uts", "ip", "link"], capture_output=True, check=False).returncode != 0:
        skip_or_fail("cannot make network and host name namespaces, or no ip")
    (directory / "carrier.c").write_text(CARRIER)
    flags = ["-O2", "-Wall", "-Wextra", "-Werror", "-Wno-unused-function", "-std=gnu11", "-D_GNU_SOURCE"]
    flags += ["-I", str(SOURCE.parent)]
    command.run(["gcc", *flags, str(directory / "carrier.c"), "-o", str(directory / "carrier")], timeout_s=120)
    return directory / "carrier"


def carried(carrier: Path, tmp_path: Path, *payloads: bytes, before: str = "true") -> str:
    """The carrier's complaint and what `ip` shows afterwards."""
    for number, payload in enumerate(payloads):
        (tmp_path / f"payload{number}").write_bytes(payload)
    words = " ".join(str(tmp_path / f"payload{number}") for number in range(len(payloads)))
    script = f"ip link add peer type veth peer name eth0; ip link set peer up; {before}; {carrier} {words}; {SHOWN}"
    done = subprocess.run(
        ["unshare", "--net", "--uts", "sh", "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout


def has_place(shown: str, place: Place) -> None:
    assert f"{place.mac} " in shown
    assert f"inet {place.address}/{place.prefix_bits} brd " in shown
    assert f"default via {place.gateway} dev eth0" in shown
    assert f"{place.gateway} dev eth0 lladdr {place.gateway_mac} PERMANENT" in shown
    assert "inet6" not in shown


def test_an_interface_gets_its_place_and_the_machine_its_name(carrier: Path, tmp_path: Path) -> None:
    payload = encode_configure(Identity(place=PLACE)) + b"hostname=web\0"
    shown = carried(carrier, tmp_path, payload)
    has_place(shown, PLACE)
    assert shown.splitlines()[-1] == "web"


def test_a_later_place_leaves_nothing_of_the_earlier(carrier: Path, tmp_path: Path) -> None:
    first, second = (encode_configure(Identity(place=place)) for place in (PLACE, OTHER))
    shown = carried(carrier, tmp_path, first, first, second)
    has_place(shown, OTHER)
    for trace in (PLACE.address, PLACE.gateway + " ", PLACE.mac, PLACE.gateway_mac):
        assert trace not in shown


def test_who_has_its_place_is_not_taken_down(carrier: Path, tmp_path: Path) -> None:
    """Whoever manages the link there, as in a cloud image, would see it go, and take its address away."""
    payload = encode_configure(Identity(place=PLACE))
    (tmp_path / "first").write_bytes(payload)
    neighbour = str(ip_address(PLACE.gateway) + 7)  # the kernel forgets it with the link
    before = f"{carrier} {tmp_path}/first; ip neigh replace {neighbour} lladdr {PLACE.mac} dev eth0"
    shown = carried(carrier, tmp_path, payload, before=before)
    has_place(shown, PLACE)
    assert f"{neighbour} dev eth0" in shown


def test_a_gateway_that_cannot_be_reached_yet_is_tried_again(carrier: Path, tmp_path: Path) -> None:
    """As when whoever manages the link is about to put the address back."""
    far = replace(PLACE, gateway="198.51.100.1")
    later = f"(sleep 0.3; ip route add {far.gateway} dev eth0) &"
    shown = carried(carrier, tmp_path, encode_configure(Identity(place=far)), before=f"{{ {later} }}")
    has_place(shown, far)


def test_files_are_replaced_as_a_whole_and_keep_their_mode(carrier: Path, tmp_path: Path) -> None:
    old, new = tmp_path / "machine-id", tmp_path / "hosts"
    old.write_text("something longer than that\n")
    old.chmod(0o444)
    carried(carrier, tmp_path, encode_configure(Identity(files=((str(old), "short\n"), (str(new), "")))))
    assert (old.read_text(), old.stat().st_mode & 0o777) == ("short\n", 0o444)
    assert (new.read_text(), new.stat().st_mode & 0o777) == ("", 0o644)
    assert list(tmp_path.glob("*.tare-new")) == []


def test_a_file_that_is_a_mount_of_its_own_is_written_into(carrier: Path, tmp_path: Path) -> None:
    there, shown = tmp_path / "there", tmp_path / "shown"
    there.write_text("something longer than that\n")
    shown.write_text("")
    mount = f"unshare --mount sh -c 'mount --bind {there} {shown}; {carrier} {tmp_path}/payload0'"
    carried(carrier, tmp_path, encode_configure(Identity(files=((str(shown), "short\n"),))), before=mount)
    assert there.read_text() == "short\n"


def test_entropy_is_taken(carrier: Path, tmp_path: Path) -> None:
    assert not carried(carrier, tmp_path, encode_configure(Identity(), entropy=bytes(64))).startswith("entropy")


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (b"hostname=x", "the last word has no end"),
        (b"hostname\0", "a word has no value"),
        (b"colour=blue\0", "cannot read colour"),
        (b"mtu=1500\0", "half a place in a network"),
        (b"address=10.0.0.1/33\0", "cannot read address"),
        (b"address=10.0.0.1\0", "cannot read address"),
        (b"mac=02:54:0a:57:00\0", "cannot read mac"),
        (b"mtu=70000\0", "cannot read mtu"),
        (b"time=soon\0", "time: Invalid argument"),
        (b"time=\0", "time: Invalid argument"),
        (b"entropy=" + b"00" * 300 + b"\0", "entropy: "),
        (b"/no/such/directory=x\0", "/no/such/directory: No such file or directory"),
        (b"hostname=" + b"x" * 99 + b"\0", "host name: Invalid argument"),
        (b"/" + b"x" * 5000 + b"=\0", "File name too long"),
    ],
)
def test_what_cannot_be_done_is_said(carrier: Path, tmp_path: Path, payload: bytes, why: str) -> None:
    assert why in carried(carrier, tmp_path, payload).splitlines()[0]


def test_a_machine_without_a_card_says_so(carrier: Path, tmp_path: Path) -> None:
    shown = carried(carrier, tmp_path, encode_configure(Identity(place=PLACE)), before="ip link del eth0")
    assert shown.splitlines()[0] == "no network interface"

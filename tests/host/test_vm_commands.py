"""`tare vm` as a user calls it, on a state root of its own: output, codes, a killed keeper's end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator

import pytest

from runtime.commands.vmcontact import reach
from runtime.driver import Host
from runtime.network.ports import ANY
from tests.host.life import IMAGE, Tare, rooted_for_machines
from tests.host.test_vm_network import PERL_SERVER
from tests.ports import free_port

TIMEOUT_S = 180.0
RUN = ("vm", "run", "--micro")


@pytest.fixture
def tare(bench_host: Host) -> Iterator[Tare]:
    with rooted_for_machines(bench_host) as tare:
        yield tare


def test_command_in_a_guest_gives_its_output_and_code_and_leaves_nothing(tare: Tare) -> None:
    process = tare.begin(*RUN, "--rm", IMAGE, "sh", "-c", "echo out; echo err >&2; exit 7")
    out, err = process.communicate(timeout=TIMEOUT_S)
    assert (out, err, process.returncode) == (b"out\n", b"err\n", 7)
    assert json.loads(tare("vm", "ls", "-a", "--json").good()) == []
    assert not list((tare.root / "lib/instances").glob("*"))


def test_killed_keeper_leaves_a_lost_guest_that_clean_removes(tare: Tare) -> None:
    process = tare.begin(*RUN, "-d", "--name", "one", IMAGE)
    process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0
    taken = tare(*RUN, "-d", "--name", "one", IMAGE)
    assert (taken.code, "taken" in taken.err) == (125, True)
    contact = reach(tare.host)
    assert contact is not None
    with contact:
        os.kill(contact.keeper_pid, signal.SIGKILL)
        assert contact.fileno() >= 0
    assert tare("vm", "exec", "one", "true").code == 125
    (row,) = json.loads(tare("vm", "ls", "--json").good())
    assert row["status"] == "lost"
    assert tare("clean").code == 0
    assert json.loads(tare("vm", "ls", "-a", "--json").good()) == []
    assert not list((tare.root / "lib/instances").glob("*"))


def test_a_guest_whose_qemu_is_killed_has_ended_as_killed(tare: Tare) -> None:
    tare(*RUN, "-d", "--name", "four", IMAGE).good()
    (seen,) = json.loads(tare("vm", "inspect", "four").good())
    os.kill(seen["pids"][0], signal.SIGKILL)
    assert tare("vm", "wait", "four").good() == "137"
    (row,) = json.loads(tare("vm", "ls", "-a", "--json").good())
    assert (row["exit_code"], "killed" in row["error"]) == (137, True)


def test_a_guest_that_powers_off_has_ended_well(tare: Tare) -> None:
    tare(*RUN, "-d", "--name", "five", IMAGE).good()
    tare("vm", "exec", "five", "sh", "-c", "echo o > /proc/sysrq-trigger")
    assert tare("vm", "wait", "five").good() == "0"
    (row,) = json.loads(tare("vm", "ls", "-a", "--json").good())
    assert (row["exit_code"], row["error"]) == (0, "")


def test_interrupt_in_the_foreground_ends_the_guest(tare: Tare) -> None:
    # A shell that waits for another program would put the signal off until that ends.
    program = ("sh", "-c", "echo up; exec sleep 1000")
    process = tare.begin(*RUN, "--rm", "--name", "two", IMAGE, *program, stdin=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130
    while json.loads(tare("vm", "ls", "--json").good()):  # the keeper ends it still
        pass
    assert json.loads(tare("vm", "ls", "-a", "--json").good()) == []
    assert not list((tare.root / "lib/instances").glob("*"))


@pytest.mark.parametrize(
    "words",
    [
        ("-p", "80", IMAGE),
        ("--network", "bridge", "-p", "8000-8005:80-84", IMAGE),
        ("--network", "bridge", "-p", "8000-8005:80-85", "-p", "8003:1", IMAGE),
        ("--network", "host", IMAGE),
        ("--cpus", "many", IMAGE),
        ("-it", IMAGE, "sh"),
        ("-m", "10m", IMAGE, "true"),
        ("nosuch:image", "true"),
    ],
)
def test_bad_requests_are_refused_in_one_line(tare: Tare, words: tuple[str, ...]) -> None:
    said = tare(*RUN, *words)
    assert said.code == 125
    assert len(said.err.splitlines()) == 1
    assert json.loads(tare("vm", "ls", "-a", "--json").good()) == []


def test_ranges_of_ports_lead_to_the_guest(tare: Tare) -> None:
    first, datagrams = free_port(3), free_port()
    published = ("-p", f"{first}-{first + 2}:7000-7002", "-p", f"127.0.0.1:{datagrams}:53/udp", "-p", "80")
    tare(*RUN, "-d", "--name", "three", "--network", "bridge", *published, IMAGE).good()
    found = [tuple(port) for port in json.loads(tare("vm", "port", "three", "--json").good())]
    assert {(ANY, first + place, 7000 + place, "tcp") for place in range(3)} < set(found)
    assert ("127.0.0.1", datagrams, 53, "udp") in found
    assert [outside > 0 for _, outside, inside, _ in found if inside == 80] == [True]
    (row,) = [line for line in tare("vm", "ls").good().splitlines() if "three" in line]
    assert f"{ANY}:{first}-{first + 2}->7000-7002/tcp" in row
    tare("vm", "exec", "three", "perl", "-e", PERL_SERVER, "7002").good()  # returns when it listens
    with socket.create_connection(("127.0.0.1", first + 2), TIMEOUT_S) as connection:
        assert connection.recv(100)
    tare("vm", "rm", "-f", "three").good()

"""Containers through everybody's crashes and many calls at once, with their networks and volumes. Needs root."""

from __future__ import annotations

import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from runtime.ledger import process_start
from tests.host.life import FOREVER, IMAGE, NONE, TICKING, Tare, conversation, heard, killed, name, tare, until

__all__ = ["name", "tare"]  # fixtures


# --- crashes


def test_a_client_killed_leaves_its_container(tare: Tare, name: str) -> None:
    process = tare.begin("run", "--name", name, *NONE, IMAGE, *TICKING)
    assert process.stdout is not None
    process.stdout.readline()
    killed(process)
    assert tare.state(name)["Running"]
    tare("stop", "-t", "0", name).good()
    assert tare.state(name)["ExitCode"] == 137


def test_a_client_killed_does_not_keep_rm_from_happening(tare: Tare, name: str) -> None:
    process = tare.begin("run", "--rm", "--name", name, *NONE, IMAGE, *TICKING)
    assert process.stdout is not None
    process.stdout.readline()
    killed(process)
    tare("kill", name).good()
    until(lambda: tare("inspect", name).code == 1)
    until(lambda: tare.residents() == [])


def test_a_keeper_killed_takes_its_containers_along_and_all_know(tare: Tare, name: str) -> None:
    tare.up("--name", name, IMAGE, *FOREVER)
    other = tare.begin("run", "--rm", *NONE, IMAGE, *TICKING)
    assert other.stdout is not None
    other.stdout.readline()
    pid = tare.state(name)["Pid"]
    waiting = tare.begin("wait", name)
    os.kill(tare.keeper(), signal.SIGKILL)
    until(lambda: not Path(f"/proc/{pid}").exists())
    assert other.wait(60) == 137
    assert waiting.communicate(timeout=60)[0].strip() == b"137"
    found = tare.state(name)
    assert (found["Status"], found["ExitCode"]) == ("exited", 137)
    assert "nobody saw" in found["Error"]
    assert "Exited (137)" in tare("ps", "-a").good()
    tare("clean").good()
    assert tare.residents() == []
    assert tare("ps", "-aq").good() == tare("ps", "-aq", "-f", f"name={name}").good()
    tare("start", name).good()
    assert tare.state(name)["Running"]


def test_create_interrupted_leaves_nothing_that_clean_does_not_remove(tare: Tare) -> None:
    for delay_s in (0.05, 0.1, 0.15, 0.2, 0.25, 0.3):
        process = tare.begin("run", "-d", *NONE, IMAGE, "true")
        time.sleep(delay_s)  # anywhere in its short life
        killed(process)
    until(lambda: not (tare.host.run / "keeper.sock").exists())  # to ask it would be to keep it
    tare("clean").good()
    assert tare.residents() == []
    for identity in tare("ps", "-aq").good().split():
        tare("rm", "-f", identity).good()
    assert {path.name for path in (tare.host.root / "containers").iterdir()} <= {"names", "names.lock", "ids.lock"}
    assert list((tare.host.root / "containers/names").iterdir()) == []


def test_a_keeper_survives_the_terminal_it_was_started_from(tare: Tare, name: str) -> None:
    process, master = conversation(tare, "run", "-d", "--name", name, *NONE, IMAGE, *FOREVER)
    heard(master, b"\n")
    os.close(master)
    process.wait(60)
    assert tare.state(name)["Running"]


def test_the_keeper_ends_with_the_last_container(tare: Tare, name: str) -> None:
    tare.up("--name", name, IMAGE, *FOREVER)
    keeper = tare.keeper()
    assert keeper > 0
    tare("rm", "-f", name).good()
    until(lambda: process_start(keeper) is None)  # to ask it would be to keep it


def test_twenty_at_once(tare: Tare) -> None:
    def one(number: int) -> tuple[int, str]:
        said = tare.run(IMAGE, "sh", "-c", f"echo {number}; exit {number}")
        return said.code, said.out.strip()

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(one, range(20)))
    assert found == [(number, str(number)) for number in range(20)]
    assert tare.residents() == []


def test_two_starts_at_once_are_one(tare: Tare, name: str) -> None:
    tare("create", "--name", name, *NONE, IMAGE, *FOREVER).good()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: tare("start", name), range(4)))
    assert tare("top", name).good().count("sleep") == 1


# --- networks and volumes


def test_the_default_network_is_a_bridge_and_is_given_back(tare: Tare, name: str) -> None:
    tare("run", "-d", "--name", name, "-p", "127.0.0.1::80", IMAGE, *FOREVER).good()
    address = tare("inspect", "-f", "{{.NetworkSettings.IPAddress}}", name).good()
    assert address in tare("exec", name, "cat", "/etc/hosts").good()
    assert tare("port", name, "80").good().startswith("127.0.0.1:")
    assert tare("run", "--rm", "--network", f"container:{name}", IMAGE, "cat", "/etc/hosts").good().count(address) == 1
    tare("stop", "-t", "0", name).good()
    until(lambda: tare.residents() == [])
    assert json.loads(tare("network", "inspect", "bridge").good())[0].get("Containers", {}) in ({}, [])
    tare("start", name).good()


def test_volumes_without_a_name_go_with_rm(tare: Tare) -> None:
    tare.run("-v", "/data", IMAGE, "touch", "/data/x").good()
    assert tare("volume", "ls", "-q").good() == ""


def test_a_named_volume_stays(tare: Tare) -> None:
    tare.run("-v", "kept:/data", IMAGE, "sh", "-c", "echo x > /data/x").good()
    assert tare.run("-v", "kept:/data:ro", IMAGE, "cat", "/data/x").good() == "x"
    tare("volume", "rm", "kept").good()

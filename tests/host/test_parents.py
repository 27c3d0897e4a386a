"""`tare clean` beside launches: what is above their control groups goes and comes, and no launch fails of it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from runtime.cgroups import parents
from runtime.cgroups.detect import open_cgroup
from runtime.ledger import new_id
from runtime.spec import Limits
from tests.host.life import IMAGE, Tare, tare

__all__ = ["tare"]  # a fixture
MAKERS = 4
EACH = 60


def test_groups_are_made_while_those_above_are_removed(root_user: None) -> None:
    over, rounds = threading.Event(), 0

    def make(_: int) -> None:
        for _ in range(EACH):
            group = open_cgroup(new_id(), wanted := Limits(cpuset="0", pids=100), guard_devices=True)
            group.create()
            try:
                group.apply(wanted)
                assert all(reading.holds for reading in group.readings(wanted))
            finally:
                group.remove()

    def retire() -> None:
        nonlocal rounds
        while not over.is_set():
            rounds += len(parents.retire())

    sweeper = threading.Thread(target=retire)
    sweeper.start()
    try:
        for _ in range(5):  # until they have met
            with ThreadPoolExecutor(MAKERS) as pool:
                list(pool.map(make, range(MAKERS)))
            if rounds:
                break
    finally:
        over.set()
        sweeper.join()
    assert rounds > 0, "nothing was removed in between"


def test_containers_run_while_others_clean(tare: Tare) -> None:
    over = threading.Event()
    failed: list[str] = []

    def clean() -> None:
        while not over.is_set():
            said = tare("clean")
            failed.extend([said.err] if said.code or said.err else [])

    cleaners = [threading.Thread(target=clean) for _ in range(2)]
    for cleaner in cleaners:
        cleaner.start()
    try:
        with ThreadPoolExecutor(3) as pool:
            said = list(pool.map(lambda number: tare.run(IMAGE, "echo", str(number)), range(24)))
    finally:
        over.set()
        for cleaner in cleaners:
            cleaner.join()
    assert [(one.code, one.out, one.err) for one in said] == [(0, f"{number}\n", "") for number in range(24)]
    assert failed == []
    assert tare.residents() == []

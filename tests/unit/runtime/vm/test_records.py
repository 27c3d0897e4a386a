"""Records of guests: written whole or not at all, and swept when nobody keeps them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtime.driver import Host
from runtime.ledger import Ledger
from runtime.vm.records import LOST, Record, Records, own_keeper


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(root=tmp_path / "lib", run=tmp_path / "run")


def record(name: str, **changes: object) -> Record:
    return Record(id=f"tare-{name}", name=name, image="i", driver="vm", keeper=own_keeper(), **changes)  # type: ignore[arg-type]


def test_a_record_without_room_leaves_nothing_and_a_former_one_as_it_was(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = Records(host)
    records.write(record("one"))

    def full(self: Path, *_: object) -> None:
        self.touch()
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "write_text", full)
    for name in ("one", "two"):
        with pytest.raises(OSError, match="No space left"):
            records.write(record(name, status="paused"))
    assert [(found.name, found.status) for found in records.all()] == [("one", "running")]
    assert [path.name for path in records.base.iterdir()] == ["tare-one"]
    assert [path.name for path in (records.base / "tare-one").iterdir()] == ["guest.json"]


def test_sweep_takes_the_lost_and_what_has_no_record_and_leaves_what_is_kept(host: Host) -> None:
    records = Records(host)
    pid, start, boot = own_keeper()
    records.write(record("kept"))
    records.write(Record(id="tare-lost", name="lost", image="i", driver="vm", keeper=(pid, start + 1, boot)))
    assert [found.status for found in records.all() if found.name == "lost"] == [LOST]
    (records.base / "tare-torn").mkdir()
    (records.base / "tare-begun").mkdir()
    entry = Ledger(host.run).open("tare-begun", "vm")  # its keeper is about to write
    removed = records.sweep()
    entry.close(gone=True)
    assert [line.split("/")[-1] for line in removed] == [
        "record of virtual machine lost, whose keeper is dead",
        "tare-torn",
    ]
    assert sorted(path.name for path in records.base.iterdir()) == ["tare-begun", "tare-kept"]

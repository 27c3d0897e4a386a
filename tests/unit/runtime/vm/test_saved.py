"""Saved states: libvirt's header, the key, and that nobody removes or sees what another uses or writes."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from runtime.errors import TareError
from runtime.vm.saved import KEPT, SavedStates, header, key, state_offset

XML = "<domain>ä</domain>"


def _save(state: Path, disk: Path) -> None:
    state.write_bytes(header(XML) + b"memory")
    disk.write_bytes(b"disk")


def _require_intact(states: SavedStates) -> None:
    with states.using("one") as saved:
        assert saved is not None
        saved.require_intact()


def _names(root: Path) -> set[str]:
    return {path.name for path in (root / "cache/saved").iterdir()}


def test_the_header_is_libvirts() -> None:
    made = header(XML)
    magic, version, length, running, compression, cookie = struct.unpack_from("=16s5I", made)
    assert (magic, version, running, compression, cookie) == (b"LibvirtQemudSave", 2, 1, 0, 0)
    assert made[92:] == XML.encode() + b"\0"
    assert length == len(made) - 92
    assert state_offset(made) == len(made)


@pytest.mark.parametrize(
    "head",
    [
        header(XML)[:91],
        header(XML).replace(b"LibvirtQemudSave", b"LibvirtQemudPart"),
        header(XML)[:16] + struct.pack("=I", 3) + header(XML)[20:],
        header(XML)[:28] + struct.pack("=I", 1) + header(XML)[32:],
    ],
    ids=["short", "unfinished", "version", "compressed"],
)
def test_another_header_is_refused(head: bytes) -> None:
    with pytest.raises(TareError, match="saved state"):
        state_offset(head)


def test_the_key_tells_every_part_and_no_order() -> None:
    parts = {"xml": "a", "qemu": "b"}
    assert key(parts) == key({"qemu": "b", "xml": "a"})
    assert len({key(parts), key({**parts, "qemu": "c"}), key({**parts, "kernel": ""}), key({"qemu": "a"})}) == 4


def test_what_was_saved_is_found_whole(tmp_path: Path) -> None:
    states = SavedStates(tmp_path)
    with states.using("one") as nothing:
        assert nothing is None
    states.make("one", _save)
    with states.using("one") as saved:
        assert saved is not None
        saved.require_intact()
        assert saved.state.read_bytes()[saved.offset :] == b"memory"
        assert saved.disk.read_bytes() == b"disk"


def test_what_another_made_is_not_made_again(tmp_path: Path) -> None:
    states = SavedStates(tmp_path)
    states.make("one", _save)
    states.make("one", lambda state, disk: pytest.fail("made twice"))


@pytest.mark.parametrize("harm", ["flipped", "cut", "state", "disk", "record"])
def test_a_corrupt_state_is_refused_by_name_and_made_anew(tmp_path: Path, harm: str) -> None:
    states = SavedStates(tmp_path)
    states.make("one", _save)
    home = tmp_path / "cache/saved/one"
    whole = (home / "state").read_bytes()
    match harm:
        case "flipped":
            (home / "state").write_bytes(whole[:-1] + b"Y")
        case "cut":
            (home / "state").write_bytes(whole[:-1])
        case "state":
            (home / "state").unlink()
        case "disk":
            (home / "disk.qcow2").unlink()
        case _:
            (home / "record.json").write_text("[]")
    with pytest.raises(TareError, match="saved state one"):
        _require_intact(states)
    assert states.remove("one")
    states.make("one", _save)
    _require_intact(states)


def test_what_is_used_is_not_removed(tmp_path: Path) -> None:
    states = SavedStates(tmp_path)
    states.make("one", _save)
    with states.using("one"), states.using("one"):
        assert not SavedStates(tmp_path).remove("one")
    assert SavedStates(tmp_path).remove("one")
    assert not states.remove("one")


def test_the_oldest_go(tmp_path: Path) -> None:
    states = SavedStates(tmp_path)
    states.make("used", _save)
    with states.using("used"):
        for number in range(KEPT + 1):
            states.make(f"s{number}", _save)
        assert _names(tmp_path) == {"used", *(f"s{number}" for number in range(1, KEPT + 1))}


def test_a_failed_save_leaves_nothing(tmp_path: Path) -> None:
    def fail(state: Path, disk: Path) -> None:
        state.write_bytes(b"half")
        raise TareError("save", "failed")

    with pytest.raises(TareError, match="save: failed"):
        SavedStates(tmp_path).make("one", fail)
    assert not _names(tmp_path)


def test_a_save_without_memory_is_none(tmp_path: Path) -> None:
    with pytest.raises(TareError, match="holds no memory"):
        SavedStates(tmp_path).make("one", lambda state, disk: _ignore(state.write_bytes(header(XML))))
    assert not _names(tmp_path)


def _ignore(_: int) -> None:
    """For a lambda that is to return nothing."""


def test_half_written_ones_are_swept_but_not_a_living_makers(tmp_path: Path) -> None:
    states = SavedStates(tmp_path)
    assert states.sweep() == []
    half = tmp_path / "cache/saved/one.half"
    half.mkdir(parents=True)
    assert states.sweep() == [str(half)]
    assert not _names(tmp_path)

    def save(state: Path, disk: Path) -> None:
        _save(state, disk)
        assert SavedStates(tmp_path).sweep() == []

    states.make("one", save)
    assert _names(tmp_path) == {"one"}

"""The address pool: nobody gets what somebody has, whatever order, crash or restart comes between."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import TareError
from runtime.network.pool import Pool
from runtime.network.subnet import Subnet, shown

SMALL = Subnet.parse("10.9.8.0/29")  # five addresses
LARGE = Subnet.parse("10.9.0.0/21")  # two segments


def pool(path: Path, subnet: Subnet = SMALL, boot: str = "boot") -> Pool:
    return Pool(path / "pool", subnet, boot)


def test_addresses_begin_behind_the_gateway_and_end_before_broadcast(tmp_path: Path) -> None:
    with pool(tmp_path) as one:
        taken = [shown(one.take(f"o{number}").address) for number in range(5)]
    assert taken == [f"10.9.8.{number}" for number in range(2, 7)]


def test_an_exhausted_pool_says_so_and_still_works_after(tmp_path: Path) -> None:
    with pool(tmp_path) as one:
        addresses = [one.take(f"o{number}").address for number in range(5)]
        with pytest.raises(TareError, match=r"10\.9\.8\.0/29: all 5 addresses are taken"):
            one.take("late")
        assert one.free("o3", addresses[3])
        assert one.take("late").address == addresses[3]


def test_a_full_disk_leaves_no_pool_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", refuse)
    with pytest.raises(OSError, match="No space"):
        pool(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_freed_address_comes_last(tmp_path: Path) -> None:
    with pool(tmp_path) as one:
        first = one.take("a").address
        one.free("a", first)
        others = [one.take("b").address for _ in range(4)]
        assert first not in others
        again = one.take("c")
        assert (again.address, again.former) == (first, "a")


def test_only_its_owner_frees_an_address_and_only_once(tmp_path: Path) -> None:
    with pool(tmp_path) as one:
        address = one.take("a").address
        assert not one.free("b", address)
        assert one.free("a", address)
        assert not one.free("a", address)


def test_release_frees_all_that_an_owner_has(tmp_path: Path) -> None:
    with pool(tmp_path) as one:
        mine = [one.take("a").address, one.take("b").address, one.take("a").address]
        assert one.release("a") == [mine[0], mine[2]]
        assert one.leases() == [("10.9.8.3", "b")]


def test_what_is_taken_survives_its_process_but_not_the_boot(tmp_path: Path) -> None:
    with pool(tmp_path) as one:
        one.take("a")
    with pool(tmp_path) as again:
        assert again.leases() == [("10.9.8.2", "a")]
    with pool(tmp_path, boot="next") as later:
        assert later.leases() == []


@pytest.mark.parametrize("size", [0, 7, 64, 1000])
def test_a_file_torn_at_its_birth_is_begun_again(tmp_path: Path, size: int) -> None:
    (tmp_path / "pool").write_bytes(b"\xff" * size)
    with pool(tmp_path) as one:
        assert one.leases() == []
        assert shown(one.take("a").address) == "10.9.8.2"


def test_a_full_segment_is_followed_by_the_next_and_filled_first_when_it_has_room(tmp_path: Path) -> None:
    with pool(tmp_path, LARGE) as one:
        taken = [one.take("a") for _ in range(1021)]
        assert {each.segment for each in taken} == {0}
        overflow = one.take("b")
        assert (overflow.segment, shown(overflow.address)) == (1, "10.9.4.2")
        one.free("a", taken[500].address)
        assert one.take("c").address == taken[500].address


def test_a_crash_before_the_bit_leaves_the_address_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = pool(tmp_path)
    write = os.pwrite

    def die(fd: int, data: bytes, offset: int) -> int:
        if len(data) == 1:
            raise KeyboardInterrupt
        return write(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", die)
    with pytest.raises(KeyboardInterrupt):
        one.take("dead")
    monkeypatch.undo()
    with pool(tmp_path) as again:
        assert again.leases() == []
        assert len({again.take("x").address for _ in range(5)}) == 5


def test_taking_one_of_many_reads_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pool(tmp_path, LARGE) as one:
        for _ in range(1000):
            one.take("a")
        read: list[int] = []
        real = os.pread

        def count(fd: int, size: int, offset: int) -> bytes:
            read.append(size)
            return real(fd, size, offset)

        monkeypatch.setattr(os, "pread", count)
        one.take("b")
        assert sum(read) < 300


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=30))
def test_it_agrees_with_a_dictionary(tmp_path_factory: pytest.TempPathFactory, moves: list[tuple[str, bool]]) -> None:
    held: dict[bytes, str] = {}
    with pool(tmp_path_factory.mktemp("pool")) as one:
        for owner, takes in moves:
            mine = [address for address, name in held.items() if name == owner]
            if takes and len(held) < SMALL.capacity:
                address = one.take(owner).address
                assert address not in held
                held[address] = owner
            elif not takes and mine:
                assert one.free(owner, mine[0])
                del held[mine[0]]
        assert dict(one.leases()) == {shown(address): owner for address, owner in held.items()}

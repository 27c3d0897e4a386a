"""Who connects is accepted while something else goes on; who never does is not waited for."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from runtime.vm.sockets import accepting, listening, peer_pid


def connected(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(str(path))
    return sock


def test_who_connects_within_is_there_at_the_end_and_was_seen(tmp_path: Path) -> None:
    seen: list[str] = []
    with listening(tmp_path / "s") as listener:
        with accepting(listener, lambda: seen.append("seen")) as came, connected(tmp_path / "s"):
            pass
        with came[0] as ours:
            assert (seen, peer_pid(ours)) == (["seen"], os.getpid())


def test_a_failure_waits_for_nobody(tmp_path: Path) -> None:
    with (
        listening(tmp_path / "s") as listener,
        pytest.raises(ValueError, match="failed"),
        accepting(listener, lambda: None) as came,
    ):
        raise ValueError("failed")
    assert came == []


def test_a_failure_hangs_up_on_who_came(tmp_path: Path) -> None:
    def fail(came: list[socket.socket]) -> None:
        while not came:
            pass
        raise ValueError("failed")

    with listening(tmp_path / "s") as listener, connected(tmp_path / "s") as theirs:
        with pytest.raises(ValueError, match="failed"), accepting(listener, lambda: None) as came:
            fail(came)
        theirs.settimeout(10)
        assert theirs.recv(1) == b""

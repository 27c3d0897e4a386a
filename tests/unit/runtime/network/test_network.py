"""Networks where nothing was ever connected: asking costs nothing and makes nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtime.network.network import Networks


@pytest.mark.parametrize("uid", [0, 1000])
def test_a_state_root_without_networks_holds_nothing_and_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uid: int
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    networks = Networks(tmp_path / "lib", tmp_path / "run")
    assert (networks.published(), networks.traces(), networks.retire()) == ([], [], [])
    assert networks.reclaim(lambda: ["x"]) == []
    networks.sweep("x", [("cgroup", "x"), ("pid", "1:2")])
    assert not networks.holds("x", "cgroup", "x")
    networks.close()
    assert list(tmp_path.iterdir()) == []


def test_who_is_not_root_is_not_stopped_by_root_s_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run/network").mkdir(parents=True)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    networks = Networks(tmp_path / "lib", tmp_path / "run")
    assert (networks.published(), networks.traces(), networks.retire()) == ([], [], [])
    assert list((tmp_path / "run/network").iterdir()) == []

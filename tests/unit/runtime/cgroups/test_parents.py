"""The groups above the instances' own, on trees of plain directories."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.cgroups import v1_devices
from runtime.cgroups.detect import Hierarchies
from runtime.cgroups.parents import retire
from runtime.errors import TareError


def test_what_is_empty_goes_and_what_is_not_stays(tmp_path: Path) -> None:
    for path in (
        "cpu/tare",
        "devices/tare/@usual",
        "devices/tare/@usual.12",
        "cpuset/tare.77",
        "memory/tare/tare-0123456789ab",
        "memory/tare.slice",
        "memory/tarelike",
        "unified/tare",
    ):
        (tmp_path / path).mkdir(parents=True)
    mounts = {name: tmp_path / name for name in ("cpu", "devices", "cpuset", "memory")}
    removed = retire(Hierarchies(v1=mounts | {"cpuacct": mounts["cpu"]}, v2=tmp_path / "unified"))
    assert sorted(path.removeprefix(f"{tmp_path}/") for path in removed) == [
        "cpu/tare",
        "cpuset/tare.77",
        "devices/tare",
        "devices/tare/@usual",
        "devices/tare/@usual.12",
        "unified/tare",
    ]
    assert sorted(path.name for path in (tmp_path / "memory").iterdir()) == ["tare", "tare.slice", "tarelike"]
    assert (tmp_path / "memory/tare/tare-0123456789ab").is_dir()


@pytest.mark.parametrize(("goes", "told"), [(True, FileNotFoundError), (False, TareError)])
def test_a_group_that_went_while_it_was_made_is_no_host_without_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, goes: bool, told: type[Exception]
) -> None:
    def write(path: Path, _: str) -> None:
        if goes:
            path.parent.rmdir()
        path.read_bytes()

    monkeypatch.setattr(v1_devices, "write", write)
    with pytest.raises(told):
        v1_devices.make_guarded(tmp_path / "tare/@usual")
    assert list((tmp_path / "tare").iterdir()) == []

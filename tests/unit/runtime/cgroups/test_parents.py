"""The groups above the instances' own, on trees of plain directories."""

from __future__ import annotations

from pathlib import Path

from runtime.cgroups.detect import Hierarchies
from runtime.cgroups.parents import retire


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

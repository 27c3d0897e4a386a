"""What counts as a change that does not stay with its instance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from runtime.instance import ExecResult
from tests.fakes import Behaviour, FakeInstance
from tests.unit.workloads.visits import visit
from workloads.layers import Layers, fingerprint


def found(directory: Path, behaviour: Behaviour | None = None) -> dict[str, tuple[float, str]]:
    context, _ = visit(directory, behaviour, shared=False)
    return {sample.labels["where"]: (sample.value, sample.labels["outcome"]) for sample in Layers().measure(context)}


def test_nothing_could_be_changed_and_nothing_was(tmp_path: Path) -> None:
    assert found(tmp_path) == {"beside": (1.0, "refused"), "image": (1.0, "refused")}


def test_a_change_that_the_other_instance_sees_is_told(tmp_path: Path) -> None:
    spoilt: list[str] = []

    def reply(instance: FakeInstance, argv: Sequence[str]) -> ExecResult:
        if "spoil" in argv:
            spoilt.append(instance.id)
            return ExecResult(tuple(argv), 0, b"written\nremoved\n", b"", 1)
        return ExecResult(tuple(argv), 0, b"another" if spoilt else b"as it was", b"", 1)

    assert found(tmp_path, Behaviour(reply=reply)) == {
        "beside": (0.0, "written removed"),
        "image": (1.0, "written removed"),
    }


def test_an_image_that_changed_on_the_host_is_told(tmp_path: Path) -> None:
    def reply(instance: FakeInstance, argv: Sequence[str]) -> None:
        if "spoil" in argv:
            (instance.driver.host.root / "image/layer").write_bytes(b"spoilt")

    assert found(tmp_path, Behaviour(reply=reply))["image"][0] == 0.0


def test_fingerprint_goes_down_and_takes_files_as_they_come(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/c").write_text("1")
    (tmp_path / "disk").write_text("2")
    names = {Path(path).name for path, _, _ in fingerprint([tmp_path / "a", tmp_path / "disk"])}
    assert names == {"a", "c", "disk"}

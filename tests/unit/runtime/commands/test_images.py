"""The commands that move images, as a user types them, against a registry in this process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import tare
from runtime.errors import UsageError
from tests.unit.runtime.images.registries import FakeRegistry, serving
from tests.unit.runtime.images.trees import archive, member

HISTORY = [
    {"created": "2024-01-01T00:00:00Z", "created_by": "COPY one"},
    {"created": "2024-01-02T00:00:00Z", "created_by": "ENV A=1", "empty_layer": True},
    {"created": "2024-01-03T00:00:00Z", "created_by": "COPY two", "comment": "why"},
]


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRegistry]:
    monkeypatch.setenv("TARE_ROOT", str(tmp_path / "state"))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "none"))
    monkeypatch.setattr("os.geteuid", lambda: 0)
    with serving() as found:
        found.add_image("a/b", [[member("one", b"1")], [member("two", b"2")]], history=HISTORY)
        yield found


@pytest.fixture
def say(capfd: pytest.CaptureFixture[str]) -> object:
    def call(*words: str, code: int = 0) -> str:
        with pytest.raises(SystemExit) as ended:
            tare.main(list(words))
        out, err = capfd.readouterr()
        assert ended.value.code == code, err
        return out if code == 0 else err

    return call


def test_an_images_whole_life(registry: FakeRegistry, say: object, tmp_path: Path) -> None:
    assert callable(say)
    name = f"{registry.host}/a/b"
    digest = say("pull", "--quiet", name).strip()
    assert digest.startswith("sha256:")
    say("tag", name, "mine:1")
    rows = json.loads(say("history", "--json", "mine:1"))
    assert [row["created_by"] for row in rows] == ["COPY two", "ENV A=1", "COPY one"]
    assert [bool(row["layer"]) for row in rows] == [True, False, True]
    assert say("history", "mine:1").splitlines()[1].endswith("COPY two # why")
    assert say("push", "--quiet", "mine:1", f"{registry.host}/copy:2").strip() == digest
    assert f"copy/{digest}" in registry.manifests
    say("save", "--output", str(tmp_path / "saved.tar"), "mine:1")
    assert [path.name for path in tmp_path.iterdir() if "saved" in path.name] == ["saved.tar"]
    assert say("rmi", "--force", digest).splitlines()[-1].startswith("deleted sha256:")
    again = say("load", "--quiet", "--input", str(tmp_path / "saved.tar"), "--tag", "again")
    assert again == f"again:latest {digest}\n"


def test_import_takes_a_dockerfiles_words(registry: FakeRegistry, say: object, tmp_path: Path) -> None:
    assert callable(say)
    (tmp_path / "rootfs.tar").write_bytes(archive([member("etc/x")]).getvalue())
    assert say("import", "-c", "USER 7", str(tmp_path / "rootfs.tar"), "r:1").startswith("r:1 sha256:")
    assert "not one of" in say("import", "-c", "FROM x", str(tmp_path / "rootfs.tar"), "r:2", code=2)


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        (("pull", "UPPER"), 2, "not an image name"),
        (("pull", "--creds", "user", "x"), 2, "not a user and a password"),
        (("pull", "--platform", "amd64", "x"), 2, "not a platform"),
        (("pull", "127.0.0.1:1/x"), 1, "Connection refused"),
        (("rmi", "none"), 1, "not on this host"),
        (("tag", "none", "x"), 1, "not on this host"),
        (("save", "none"), 1, "not on this host"),
        (("load", "--input", "/nonexistent"), 1, "No such file"),
    ],
)
def test_mistakes_are_one_line(
    registry: FakeRegistry, say: object, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], code: int, why: str
) -> None:
    assert callable(say)
    monkeypatch.setattr("runtime.images.transport._pause_s", lambda attempt, retry_after: 0.0)
    line = say(*words, code=code)
    assert why in line
    assert line.count("\n") == 1
    assert line.startswith("tare: ")


def test_a_name_with_a_digest_is_no_tag(registry: FakeRegistry, say: object) -> None:
    assert callable(say)
    say("pull", "--quiet", f"{registry.host}/a/b")
    words = ("tag", f"{registry.host}/a/b", f"x@sha256:{'0' * 64}")
    assert "cannot have a digest" in say(*words, code=UsageError.exit_code)

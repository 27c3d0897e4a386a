"""The lines of `tare diff`, from upper directories as overlayfs leaves them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from runtime.container.changes import changes
from tests.conftest import skip_or_fail

NOW = 1_700_000_000


def tree(root: Path, entries: dict[str, str | None]) -> Path:
    """Make files by path and content; None is a whiteout, `name/` a directory (`opaque` if it says so)."""
    root.mkdir(parents=True, exist_ok=True)
    for name, content in entries.items():
        path = root / name.rstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            os.mknod(path, stat.S_IFCHR, 0)
        elif name.endswith("/"):
            path.mkdir(exist_ok=True)
            if content == "opaque":
                os.setxattr(path, "trusted.overlay.opaque", b"y")
        elif content.startswith("->"):
            path.symlink_to(content[2:])
        else:
            path.write_text(content)
        os.utime(path, (NOW, NOW), follow_symlinks=False)
    return root


def said(tmp_path: Path, upper: dict[str, str | None], *layers: dict[str, str | None]) -> list[str]:
    try:
        below = [tree(tmp_path / f"layer{number}", entries) for number, entries in enumerate(layers)]
        return [str(change) for change in changes(tree(tmp_path / "upper", upper), below)]
    except PermissionError:
        skip_or_fail("needs root for whiteouts")


@pytest.mark.parametrize(
    ("upper", "layers", "wanted"),
    [
        ({}, [{"a": "1"}], []),
        ({"a": "1"}, [{}], ["A /a"]),
        ({"d/a": "1"}, [{}], ["A /d", "A /d/a"]),
        ({"a": "12"}, [{"a": "1"}], ["C /a"]),
        ({"a": "1"}, [{"a": "1"}], []),
        ({"etc/a": "12"}, [{"etc/a": "1", "etc/b": "2"}], ["C /etc", "C /etc/a"]),
        ({"etc/": ""}, [{"etc/a": "1"}], []),
        ({"a": None}, [{"a": "1"}], ["D /a"]),
        ({"d": None}, [{"d/a": "1"}], ["D /d"]),
        ({"a": None}, [{}], []),
        ({"d/": "opaque", "d/new": "1"}, [{"d/old": "1"}], ["C /d", "A /d/new", "D /d/old"]),
        ({"d/": "opaque", "d/old": "1"}, [{"d/old": "1"}], []),
        ({"a": "new"}, [{"a": "old"}, {"a": None}], ["A /a"]),
        ({"d/x": "1"}, [{"d/x": "1"}, {"d/": "opaque"}], ["C /d", "A /d/x"]),
        ({"a/": "", "a/b": "1"}, [{"a": "file"}], ["C /a", "A /a/b"]),
        ({"a": "file"}, [{"a/b": "1"}], ["C /a"]),
        ({"l": "->there"}, [{"l": "->here"}], ["C /l"]),
        ({"l": "->here"}, [{"l": "->here"}], []),
        ({"d/a": "1"}, [{"e/a": "1", "d": "->e"}], ["C /d", "A /d/a"]),
    ],
)
def test_changes_are_said_as_docker_says_them(
    tmp_path: Path, upper: dict[str, str | None], layers: list[dict[str, str | None]], wanted: list[str]
) -> None:
    assert said(tmp_path, upper, *layers) == wanted


def test_a_change_of_mode_or_time_alone_is_one(tmp_path: Path) -> None:
    layer, upper = tree(tmp_path / "layer", {"a": "1", "b": "1"}), tree(tmp_path / "upper", {"a": "1", "b": "1"})
    (upper / "a").chmod(0o600)
    os.utime(upper / "b", (NOW, NOW + 1))
    assert [str(change) for change in changes(upper, [layer])] == ["C /a", "C /b"]

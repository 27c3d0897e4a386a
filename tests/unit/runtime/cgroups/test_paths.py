"""Where callers want their groups."""

from __future__ import annotations

import pytest

from runtime.cgroups.detect import Hierarchies, open_cgroup
from runtime.cgroups.paths import path_of
from runtime.errors import UsageError


@pytest.mark.parametrize(
    ("said", "path"),
    [
        (None, "tare/ID"),
        ("", "tare/ID"),
        ("/docker/ID", "docker/ID"),
        ("/ID", "ID"),
        ("pod/ID", "pod/ID"),
        ("system.slice:docker:ID", "system.slice/docker-ID.scope"),
        ("user-1000.slice:libpod:ID", "user.slice/user-1000.slice/libpod-ID.scope"),
        (":docker:ID", "system.slice/docker-ID.scope"),
        ("-.slice:docker:ID", "docker-ID.scope"),
        ("system.slice::ID", "system.slice/ID.scope"),
        ("a.slice::b.slice", "a.slice/b.slice"),
        ("/odd:name:here", "odd:name:here"),
    ],
)
def test_a_path_as_callers_write_it(said: str | None, path: str) -> None:
    assert str(path_of(said, "ID")) == path


@pytest.mark.parametrize(
    "said", ["/", "/../x", "a/../../b", "system:docker:ID", "a--b.slice:x:y", "a.slice:x:", "/a\nb"]
)
def test_a_path_that_leads_elsewhere_is_refused(said: str) -> None:
    with pytest.raises(UsageError, match=r"linux\.cgroupsPath"):
        path_of(said, "ID")


@pytest.mark.parametrize("said", ["/docker/ID", "a.slice/b", "a.slice:b/c:d"])
def test_where_systemd_is_meant_nothing_else_is_taken(said: str) -> None:
    with pytest.raises(UsageError, match="not slice:prefix:name"):
        path_of(said, "ID", systemd=True)


@pytest.mark.parametrize(
    ("parent", "directory"), [("docker", "docker/ID"), ("/a/b.slice", "a/b.slice/ID"), (".", "ID")]
)
def test_a_parent_may_be_nested(tmp_path_factory: pytest.TempPathFactory, parent: str, directory: str) -> None:
    mount = tmp_path_factory.mktemp("mount")
    group = open_cgroup("ID", hierarchies=Hierarchies({}, mount, frozenset({"cpu", "memory", "pids"})), parent=parent)
    assert group.directories() == (mount / directory,)


def test_a_parent_outside_is_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    mount = tmp_path_factory.mktemp("mount")
    found = Hierarchies({}, mount, frozenset({"cpu", "memory", "pids"}))
    with pytest.raises(UsageError, match="not a path inside"):
        open_cgroup("ID", hierarchies=found, parent="../x")

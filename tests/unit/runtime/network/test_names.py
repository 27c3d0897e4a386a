"""/etc/hosts and /etc/resolv.conf as a container gets them."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.network.names import host_resolv_conf, hosts_file, resolv_conf


def test_a_container_knows_its_own_name() -> None:
    text = hosts_file("web", "10.87.0.2", [("db", "10.87.0.3")])
    assert text.startswith("127.0.0.1\tlocalhost\n")
    assert text.endswith("10.87.0.2\tweb\n10.87.0.3\tdb\n")
    assert "127.0.1.1\tweb\n" in hosts_file("web", None)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("nameserver 192.0.2.1\n", "nameserver 192.0.2.1\n"),
        ("# a\n; b\n\nnameserver 127.0.0.53\nnameserver 192.0.2.1\n", "nameserver 192.0.2.1\n"),
        ("nameserver 127.0.0.1\nnameserver ::1\n", "nameserver 8.8.8.8\nnameserver 8.8.4.4\n"),
        ("", "nameserver 8.8.8.8\nnameserver 8.8.4.4\n"),
        ("nameserver\n", "nameserver 8.8.8.8\nnameserver 8.8.4.4\n"),
        ("nameserver 192.0.2.1\nsearch a.example b.example\noptions ndots:2\n",
         "nameserver 192.0.2.1\nsearch a.example b.example\noptions ndots:2\n"),
        ("nameserver 192.0.2.1\ndomain a.example\n", "nameserver 192.0.2.1\nsearch a.example\n"),
        ("nameserver 192.0.2.1\nsearch .\n", "nameserver 192.0.2.1\n"),
    ],
)  # fmt: skip
def test_resolvers_that_a_container_cannot_reach_are_left_out(host: str, expected: str) -> None:
    assert resolv_conf(host) == expected


def test_what_the_user_says_replaces_what_the_host_says() -> None:
    host = "nameserver 192.0.2.1\nsearch a.example\noptions ndots:2\n"
    assert resolv_conf(host, ["192.0.2.9"], ["b.example"], ["rotate"]) == (
        "nameserver 192.0.2.9\nsearch b.example\noptions rotate\n"
    )


def test_behind_systemd_resolved_its_own_servers_are_found(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    assert host_resolv_conf(tmp_path) == ""
    (tmp_path / "etc/resolv.conf").write_text("nameserver 127.0.0.53\n")
    assert host_resolv_conf(tmp_path) == "nameserver 127.0.0.53\n"
    (tmp_path / "run/systemd/resolve").mkdir(parents=True)
    (tmp_path / "run/systemd/resolve/resolv.conf").write_text("nameserver 192.0.2.7\n")
    assert host_resolv_conf(tmp_path) == "nameserver 192.0.2.7\n"

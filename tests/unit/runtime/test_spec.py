"""What a spec accepts, and what it refuses before any driver sees it."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import UsageError
from runtime.spec import (
    ImageRef,
    InstanceSpec,
    Limits,
    Mount,
    MountKind,
    NetworkMode,
    NetworkSpec,
    Ready,
    parse_cpuset,
    parse_size,
)

IMAGE = ImageRef("tare/debian", "bookworm")
DIGEST = "sha256:" + "0123456789abcdef" * 4


def looks_like_a_registry(name: str) -> bool:
    head, slash, _ = name.partition("/")
    return bool(slash) and ("." in head or head == "localhost")


COMPONENT = st.from_regex(r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*", fullmatch=True)
NAMES = st.lists(COMPONENT, min_size=1, max_size=3).map("/".join).filter(lambda name: len(name) < 256)
REGISTRIES = st.sampled_from(["localhost", "localhost:5000", "registry.example", "10.0.0.1:80"])
WHERE = st.tuples(NAMES, REGISTRIES) | st.tuples(NAMES.filter(lambda name: not looks_like_a_registry(name)), st.none())
REFERENCES = st.builds(
    lambda where, tag, digest: ImageRef(name=where[0], registry=where[1], tag=tag, digest=digest),
    where=WHERE,
    tag=st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True),
    digest=st.none() | st.just(DIGEST),
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("1b", 1),
        ("64k", 65536),
        ("64K", 65536),
        ("512m", 512 << 20),
        ("512MB", 512 << 20),
        ("512 MiB", 512 << 20),
        ("1.5g", 3 << 29),
        ("2T", 2 << 40),
        (" 7m ", 7 << 20),
    ],
)
def test_size_is_read_as_docker_writes_it(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "m", "-1", "1x", "1.m", ".5g", "1e3", "1 2", "0x10", "1kk", "infinity"])
def test_size_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not a number with an optional unit"):
        parse_size(text)


@pytest.mark.parametrize("text", ["9" * 400, "8388608t", "9223372036854775808"])
def test_size_beyond_the_kernels_counters_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="more than the kernel can count"):
        parse_size(text)


@given(st.integers(0, 2**22), st.sampled_from("bkmgt"))
def test_whole_sizes_are_exact(number: int, unit: str) -> None:
    assert parse_size(f"{number}{unit}") == number * 1024 ** "bkmgt".index(unit)


@given(st.text(max_size=12))
def test_size_parser_knows_only_sizes_and_usage_errors(text: str) -> None:
    with contextlib.suppress(UsageError):
        assert parse_size(text) >= 0


@pytest.mark.parametrize(
    ("text", "cpus"), [("0", {0}), ("0-2,5", {0, 1, 2, 5}), ("3,1,1-2", {1, 2, 3}), ("8191", {8191})]
)
def test_cpuset_is_read_as_the_kernel_writes_it(text: str, cpus: set[int]) -> None:
    assert parse_cpuset(text) == cpus


@pytest.mark.parametrize("text", ["", ",", "1-", "-1", "1,,2", "2-1", "a", "0-99999999", "1 2", "1-2-3"])
def test_cpuset_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"^cpuset"):
        parse_cpuset(text)


@given(st.sets(st.integers(0, 8191), min_size=1, max_size=30))
def test_cpuset_round_trips(cpus: set[int]) -> None:
    assert parse_cpuset(",".join(map(str, cpus))) == cpus


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("debian", ImageRef("debian")),
        ("tare/debian:bookworm", IMAGE),
        ("localhost/x", ImageRef("x", registry="localhost")),
        ("localhost:5000/a/b:1", ImageRef("a/b", "1", "localhost:5000")),
        ("docker.io/library/debian", ImageRef("library/debian", registry="docker.io")),
        (f"debian@{DIGEST}", ImageRef("debian", digest=DIGEST)),
        (f"r.example:80/d:t@{DIGEST}", ImageRef("d", "t", "r.example:80", DIGEST)),
        ("host:5000", ImageRef("host", "5000")),
    ],
)
def test_reference_is_split_by_the_grammar(text: str, reference: ImageRef) -> None:
    assert ImageRef.parse(text) == reference


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Debian",
        "a//b",
        "/a",
        "a/",
        "a:",
        "a:.t",
        "a:" + "t" * 129,
        "a@sha256:12",
        f"a@{DIGEST.upper()}",
        "a b",
        "-a",
        "a..b",
        "host_x.y:1/a",
        "localhost/",
        "a" * 256,
        "a:t:u",
    ],
)
def test_reference_that_breaks_the_grammar_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"^image"):
        ImageRef.parse(text)


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "0.0/0"},
        {"name": "A"},
        {"name": "a", "tag": ""},
        {"name": "a", "registry": "x/y"},
        {"name": "a", "digest": "d"},
    ],
)
def test_reference_made_by_hand_is_held_to_the_grammar(fields: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=r"^image"):
        ImageRef(**fields)


@given(REFERENCES)
def test_reference_round_trips(reference: ImageRef) -> None:
    assert ImageRef.parse(str(reference)) == reference


@given(st.text(max_size=40))
def test_reference_parser_knows_only_references_and_usage_errors(text: str) -> None:
    try:
        reference = ImageRef.parse(text)
    except UsageError:
        return
    assert ImageRef.parse(str(reference)) == reference


@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"cpus": 0.01, "cpu_weight": 1, "cpuset": "0", "memory_bytes": 4 << 20, "pids": 1},
        {"memory_bytes": 8 << 20, "memory_low_bytes": 8 << 20, "swap_bytes": 0},
        {"memory_low_bytes": 1},
        {"cpu_weight": 10000, "io_weight": 10000, "io_read_bps": 1, "io_write_bps": 1},
    ],
)
def test_limits_at_their_bounds_are_accepted(limits: dict[str, Any]) -> None:
    made = Limits(**limits)
    assert {name: getattr(made, name) for name in limits} == limits


@pytest.mark.parametrize(
    ("limits", "why"),
    [
        ({"cpus": 0}, "between 0.01 and 8192"),
        ({"cpus": float("nan")}, "between 0.01 and 8192"),
        ({"cpu_weight": 0}, "between 1 and 10000"),
        ({"io_weight": 10001}, "between 1 and 10000"),
        ({"cpuset": "2-1"}, "not a range"),
        ({"memory_bytes": (4 << 20) - 1}, "at least 4 MiB"),
        ({"memory_bytes": 8 << 20, "memory_low_bytes": (8 << 20) + 1}, "not exceed the memory limit"),
        ({"memory_low_bytes": -1}, "not exceed"),
        ({"memory_bytes": 8 << 20, "swap_bytes": -1}, "not be negative"),
        ({"swap_bytes": 0}, "needs a memory limit"),
        ({"pids": 0}, "at least 1"),
        ({"io_read_bps": 0}, "at least 1"),
        ({"io_write_bps": -5}, "at least 1"),
    ],
)
def test_limits_out_of_bounds_are_refused(limits: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        Limits(**limits)


@pytest.mark.parametrize(
    "network",
    [
        {},
        {"mode": NetworkMode.HOST},
        {"mode": NetworkMode.CONTAINER, "container": "tare-1"},
        {"mode": NetworkMode.BRIDGE, "ports": ((1, 65535),)},
        {"mode": NetworkMode.BRIDGE, "ports": ((0, 53, "udp", "127.0.0.1"),)},
    ],
)
def test_networks_that_make_sense_are_accepted(network: dict[str, Any]) -> None:
    made = NetworkSpec(**network)
    assert {name: getattr(made, name) for name in network} == network


@pytest.mark.parametrize(
    ("network", "why"),
    [
        ({"mode": NetworkMode.CONTAINER}, "names a container"),
        ({"mode": NetworkMode.HOST, "container": "tare-1"}, "names a container"),
        ({"mode": NetworkMode.HOST, "ports": ((80, 80),)}, "on a bridge only"),
        ({"mode": NetworkMode.BRIDGE, "ports": ((-1, 80),)}, "between 1 and 65535"),
        ({"mode": NetworkMode.BRIDGE, "ports": ((80, 65536),)}, "between 1 and 65535"),
        ({"mode": NetworkMode.BRIDGE, "ports": ((80, 0),)}, "between 1 and 65535"),
    ],
)
def test_networks_that_make_none_are_refused(network: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        NetworkSpec(**network)


@pytest.mark.parametrize(
    ("kind", "target", "source", "why"),
    [
        (MountKind.BIND, "data", "/srv", "absolute path"),
        (MountKind.BIND, "/", "/srv", "absolute path"),
        (MountKind.BIND, "/a/../b", "/srv", "absolute path"),
        (MountKind.BIND, "/data", "", "wrong source"),
        (MountKind.VOLUME, "/data", "", "wrong source"),
        (MountKind.TMPFS, "/tmp", "/srv", "wrong source"),
    ],
)
def test_mounts_that_make_no_sense_are_refused(kind: MountKind, target: str, source: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        Mount(kind=kind, target=target, source=source)


@pytest.mark.parametrize(("kind", "source"), [(MountKind.BIND, "/srv"), (MountKind.VOLUME, "v"), (MountKind.TMPFS, "")])
def test_mounts_that_make_sense_are_accepted(kind: MountKind, source: str) -> None:
    assert Mount(kind=kind, target="/data", source=source).source == source


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"env": (("", "x"),)}, "not a variable"),
        ({"env": (("A=B", "x"),)}, "not a variable"),
        ({"env": (("A", "x\0"),)}, "not a variable"),
        ({"argv": ("a\0b",), "ready": Ready.SPAWNED}, "NUL byte"),
        ({"hostname": ""}, "not a host name"),
        ({"hostname": "-a"}, "not a host name"),
        ({"hostname": "a_b"}, "not a host name"),
        ({"hostname": "a" * 64}, "not a host name"),
        ({"hostname": "a.b." + "c" * 61}, "not a host name"),
        ({"argv": ("sh",)}, "only the guest agent"),
    ],
)
def test_specs_that_no_driver_could_carry_out_are_refused(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        InstanceSpec(image=IMAGE, **fields)


def test_spec_is_frozen_hashable_and_defaults_to_the_agent() -> None:
    spec = InstanceSpec(image=IMAGE, env=(("A", ""),), hostname="a-1.example")
    assert (spec.argv, spec.ready, spec.network.mode) == ((), Ready.SERVICE, NetworkMode.NONE)
    assert hash(spec) == hash(dataclasses.replace(spec))
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.hostname = "b"  # type: ignore[misc]
    assert InstanceSpec(image=IMAGE, argv=("sh",), ready=Ready.USERLAND).argv == ("sh",)


@given(st.one_of(st.text(max_size=70), st.from_regex(r"[a-z-]{1,20}(\.[a-z-]{1,20}){0,3}", fullmatch=True)))
def test_accepted_host_names_are_what_the_kernel_and_dns_take(name: str) -> None:
    try:
        InstanceSpec(image=IMAGE, hostname=name)
    except UsageError:
        return
    assert 1 <= len(name.encode()) <= 64
    assert all(0 < len(label) < 64 and label.strip("-") == label for label in name.split("."))

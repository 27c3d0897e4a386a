"""What Docker's users do and no other test does: single streams attached, ports published all, generated files copied.

Needs root.
"""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest

from runtime.cgroups.detect import detect
from tests.conftest import skip_or_fail
from tests.host.life import FOREVER, IMAGE, NONE, Tare, name, tare

__all__ = ["name", "tare"]  # fixtures
pytestmark = pytest.mark.usefixtures("root_user")


@pytest.mark.parametrize("stream", ["stdout", "stderr", "stdin"])
@pytest.mark.parametrize("terminal", [(), ("-t",)])
def test_only_the_streams_asked_for_are_attached(tare: Tare, stream: str, terminal: tuple[str, ...]) -> None:
    said = tare.run("-a", stream, *terminal, IMAGE, "sh", "-c", "echo out; echo err >&2; exit 3")
    assert said.code == 3
    assert ("out" in said.out) == (stream == "stdout")
    assert ("err" in said.err) == (stream == "stderr" and not terminal)


def test_the_files_that_a_container_is_given_can_be_copied_out(tare: Tare, name: str, tmp_path: Path) -> None:
    tare.up("--name", name, "-h", "box", IMAGE, *FOREVER)
    for file in ("hostname", "hosts"):
        tare("cp", f"{name}:/etc/{file}", str(tmp_path / file)).good()
        assert "box" in (tmp_path / file).read_text()
    tare("cp", f"{name}:/etc", str(tmp_path / "all")).good()
    assert (tmp_path / "all/hostname").read_text() == "box\n"
    archive = subprocess.run(
        tare.argv("cp", f"{name}:/etc/hosts", "-"), capture_output=True, check=True, env=tare.environment
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as read:
        assert read.getnames() == ["hosts"]
    refused = tare("cp", f"{name}:/proc/version", str(tmp_path / "version"))
    assert "holds no files" in refused.err


def test_every_exposed_port_is_published(tare: Tare, name: str) -> None:
    tare("run", "-d", "--name", name, "-P", "--expose", "80-81", "--expose", "53/udp", IMAGE, *FOREVER).good()
    found = dict(line.split(" -> 0.0.0.0:") for line in tare("port", name).good().splitlines())
    assert sorted(found) == ["53/udp", "80/tcp", "81/tcp"]
    assert all(int(number) > 1023 for number in found.values())


def test_the_host_has_a_name_inside(tare: Tare) -> None:
    routes = """awk '$2 == "00000000" {print $3}' /proc/net/route"""
    script = f"grep host.docker.internal /etc/hosts; {routes}"
    lines = tare("run", "--rm", "--add-host", "host.docker.internal:host-gateway", IMAGE, "sh", "-c", script).good()
    address = lines.split()[0]
    assert address.count(".") == 3
    packed = "".join(f"{int(part):02X}" for part in reversed(address.split(".")))
    assert lines.split()[-1] == packed


def test_search_domains_and_options_are_the_container_s(tare: Tare) -> None:
    words = ("--dns", "10.9.8.7", "--dns-search", "a.example", "--dns-option", "ndots:3")
    text = tare.run(*words, IMAGE, "cat", "/etc/resolv.conf").good()
    assert text.split("\n") == ["nameserver 10.9.8.7", "search a.example", "options ndots:3"]


def test_listings_have_the_form_that_is_asked_for(tare: Tare, name: str) -> None:
    tare.up("--name", name, "-l", "a=b", IMAGE, *FOREVER)
    assert tare("ps", "--format", '{{.Names}} {{.Label "a"}}', "-f", f"name={name}").good() == f"{name} b"
    template = '{{.State.Running}} {{index .Config.Labels "a"}} '
    template += "{{range $k, $v := .NetworkSettings.Networks}}{{$k}}{{end}}"
    assert tare("inspect", "-f", template, name).good() == "true b none"
    assert tare("stats", "--no-stream", "--format", "{{.Name}}", name).good() == name
    assert "B (virtual " in tare("ps", "-s", "-f", f"name={name}").good()


@pytest.mark.parametrize(("words", "both"), [((), 128 << 20), (("--memory-swap", "-1"), -1)])
def test_a_limit_of_memory_bounds_swap_as_well(tare: Tare, name: str, words: tuple[str, ...], both: int) -> None:
    hierarchies = detect()
    if "memory" in hierarchies.v1 and not (hierarchies.v1["memory"] / "memory.memsw.limit_in_bytes").exists():
        skip_or_fail("this kernel does not count swap")
    tare("create", "--name", name, *NONE, "-m", "64m", *words, IMAGE, "true").good()
    found = tare("inspect", "-f", "{{.HostConfig.Memory}} {{.HostConfig.MemorySwap}}", name).good()
    assert found == f"{64 << 20} {both}"
    tare("start", "-a", name).good()

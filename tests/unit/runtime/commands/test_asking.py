"""The options of run and create: each known to click, what they ask for, and the refusal of what does not work."""

from __future__ import annotations

from typing import Any

import click
import pytest
from click.testing import CliRunner

from runtime.cgroups.resources import Memory
from runtime.commands import asking
from runtime.container.options import HOST, PRIVATE, SHM_BYTES
from runtime.container.wanted import Wanted, join, joined
from runtime.errors import TareError, UsageError
from runtime.images.pull import Platform


def asked(*words: str) -> Wanted:
    """What these words ask for."""
    found: list[Wanted] = []

    @click.command(context_settings={"allow_interspersed_args": False, "help_option_names": ["--help"]})
    @asking.options
    @click.argument("image")
    @click.argument("argv", nargs=-1, type=click.UNPROCESSED)
    def command(given: dict[str, Any], image: str, argv: tuple[str, ...]) -> None:
        found.append(asking.wanted(given, image, argv))

    result = CliRunner().invoke(command, words, standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return found[0]


def test_defaults_are_docker_s() -> None:
    wanted = asked("debian")
    assert (wanted.image, wanted.options.argv, wanted.pull) == ("debian", (), "missing")
    assert (wanted.settings.network, wanted.options.network, wanted.options.pid) == ("bridge", PRIVATE, PRIVATE)
    assert (wanted.settings.stop_timeout_s, wanted.settings.log_bytes, wanted.settings.log_files) == (10, 10 << 20, 3)


def test_the_command_s_options_are_its_own() -> None:
    assert asked("-i", "debian", "ls", "-l", "--rm").options.argv == ("ls", "-l", "--rm")


def test_h_is_the_hostname() -> None:
    assert asked("-h", "box", "debian").options.hostname == "box"


def test_everything_at_once() -> None:
    wanted = asked(
        *("--name", "web", "-e", "A=1", "-l", "x=y", "-w", "/srv", "-u", "1:2", "--entrypoint", "sh", "-it", "--rm"),
        *("--cap-drop", "ALL", "--cap-add", "chown", "--security-opt", "no-new-privileges", "--read-only"),
        *("--tmpfs", "/tmp", "-v", "data:/data:ro", "--mount", "type=bind,source=/srv,target=/srv"),
        *("-p", "127.0.0.1:80:8080", "--stop-signal", "QUIT", "--stop-timeout", "3", "--pid", "host"),
        *("--sysctl", "net.core.somaxconn=10", "--shm-size", "1m", "--log-opt", "max-size=1m", "--ipc", "container:db"),
        "debian",
    )
    options, settings = wanted.options, wanted.settings
    assert (options.env, options.cwd, options.user, options.entrypoint) == (("A=1",), "/srv", "1:2", ("sh",))
    assert (options.cap_add, options.cap_drop, options.no_new_privileges) == (("chown",), ("ALL",), True)
    assert (options.read_only, options.tty, options.pid, options.ipc) == (True, True, HOST, "container:db")
    assert (options.sysctls, options.shm_bytes) == ({"net.core.somaxconn": "10"}, 1 << 20)
    assert (settings.stdin_open, settings.auto_remove, settings.labels) == (True, True, {"x": "y"})
    assert (settings.ports, settings.stop_signal, settings.stop_timeout_s) == ((("127.0.0.1", 80, 8080, "tcp"),), 3, 3)
    assert settings.log_bytes == 1 << 20
    assert [mount.target for mount in wanted.mounts] == ["/data", "/srv", "/tmp"]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--init", "--pid", "host"), "--init"),
        (("--gpus", "all"), "--gpus"),
        (("--link", "x"), "--link"),
        (("--health-cmd", "true"), "--health-cmd"),
        (("--health-interval", "1s"), "--health-interval"),
        (("--cpu-rt-runtime", "1"), "--cpu-rt-runtime"),
        (("--platform", "linux/s390x"), "--platform linux/s390x: this host runs"),
        (("--platform", "x"), "platform 'x'"),
        (("--network", "none", "-P"), "--publish-all"),
        (("--expose", "80:80"), "--expose 80:80"),
        (("--annotation", "=1"), "--annotation"),
        (("--restart", "sometimes"), "--restart sometimes"),
        (("--log-driver", "syslog"), "--log-driver syslog"),
        (("--log-opt", "x=1"), "--log-opt x"),
        (("--security-opt", "apparmor=docker-default"), "apparmor"),
        (("--security-opt", "seccomp"), "seccomp"),
        (("--network", "container:"), "--network"),
        (("--network", "none", "-p", "80:80"), "-p 80:80"),
        (("-p", "x"), "port 'x'"),
        (("--pid", "private"), "--pid private"),
        (("--ipc", "none"), "--ipc none"),
        (("--cgroupns", "container:x"), "--cgroupns"),
        (("--userns", "x"), "--userns x"),
        (("--pull", "x"), "--pull x"),
        (("--sysctl", "=1"), "--sysctl"),
        (("--label", "=1"), "--label"),
        (("--expose", "x"), "--expose"),
        (("--add-host", "x"), "--add-host"),
        (("--add-host", "x:bad"), "--add-host 'bad': not an IP address"),
        (("--network", "none", "--add-host", "x:host-gateway"), "no gateway"),
        (("--dns", "bad"), "--dns 'bad': not an IP address"),
        (("--oom-score-adj", "2000"), "--oom-score-adj 2000"),
        (("--stop-timeout", "x"), "--stop-timeout"),
    ],
)
def test_what_does_not_work_is_refused_by_name(words: tuple[str, ...], complaint: str) -> None:
    with pytest.raises(TareError, match=complaint):
        asked(*words, "debian")


def test_what_docker_s_users_add_without_a_thought_is_understood() -> None:
    wanted = asked(
        *("--platform", str(Platform.here()), "--no-healthcheck", "-P", "--expose", "8000-8001/udp", "--expose", "80"),
        *("--dns-search", "a.example", "--dns-option", "ndots:2", "--annotation", "a=b", "--oom-kill-disable"),
        "debian",
    )
    settings, options = wanted.settings, wanted.options
    assert (wanted.publish_all, settings.exposed) == (True, ("8000/udp", "8001/udp", "80/tcp"))
    assert (settings.dns_search, settings.dns_options) == (("a.example",), ("ndots:2",))
    assert options.annotations == {"a": "b"}
    assert asked("--shm-size", "0", "debian").options.shm_bytes == SHM_BYTES
    hosts = asked("--add-host", "a=10.0.0.2", "--add-host", "b:::1", "debian").settings.extra_hosts
    assert hosts == ("a:10.0.0.2", "b:::1")
    assert options.resources.memory == Memory(disable_oom_killer=True)


def test_an_existing_cidfile_is_refused(tmp_path: Any) -> None:
    file = tmp_path / "id"
    asking.check_cidfile(str(file))
    asking.write_cidfile(str(file), "1234")
    assert file.read_text() == "1234"
    with pytest.raises(UsageError, match="it exists"):
        asking.check_cidfile(str(file))


def test_another_container_s_namespaces_are_found_at_the_start() -> None:
    document = {"linux": {"namespaces": [{"type": "network", "path": join("abc", "ns/net")}, {"type": "pid"}]}}
    found = joined(document, {"abc": 7}.__getitem__)
    assert found == {"linux": {"namespaces": [{"type": "network", "path": "/proc/7/ns/net"}, {"type": "pid"}]}}

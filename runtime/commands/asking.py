"""The options of `tare run` and `tare create`, in Docker's words, and what they ask for as `Wanted`.

Whatever does not work here is refused by its name, never passed over.
"""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click

from runtime.cgroups.resources import Resources
from runtime.commands import wishes
from runtime.container import devices
from runtime.container.options import HOST, PRIVATE, SHM_BYTES, Options
from runtime.container.state import Settings
from runtime.container.wanted import CONTAINER, GATEWAY, Wanted
from runtime.errors import TareError, UsageError

_Command = TypeVar("_Command", bound=Callable[..., Any])
_MANY, _ONE, _FLAG = "many", "one", "flag"

# Names, what kind of value, and the help. A value's meaning is `wanted`'s to read, so that its refusal names the flag.
_OPTIONS: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (("--name",), _ONE, "Call it so."),
    (("-h", "--hostname"), _ONE, "Its host name (its id)."),
    (("--domainname",), _ONE, "Its NIS domain name."),
    (("-e", "--env"), _MANY, "Set NAME=VALUE; NAME alone takes the value it has here."),
    (("--env-file",), _MANY, "Set what the lines of FILE say."),
    (("-l", "--label"), _MANY, "Label it KEY=VALUE."),
    (("--annotation",), _MANY, "Put KEY=VALUE into its OCI configuration."),
    (("--label-file",), _MANY, "Label it with the lines of FILE."),
    (("-w", "--workdir"), _ONE, "Working directory inside."),
    (("-u", "--user"), _ONE, "UID[:GID] or names of the image."),
    (("--group-add",), _MANY, "A further group."),
    (("--entrypoint",), _ONE, "Instead of the image's entry point."),
    (("-i", "--interactive"), _FLAG, "Keep its input open."),
    (("-t", "--tty"), _FLAG, "Give it a terminal."),
    (("--rm",), _FLAG, "Remove it at its end."),
    (("--init",), _FLAG, "Put an init of the host before it, which passes signals on and reaps."),
    (("--read-only",), _FLAG, "Make its root file system read-only."),
    (("--privileged",), _FLAG, "Take the confinement away."),
    (("--cpus",), _ONE, "CPUs worth of time, such as 1.5."),
    (("-c", "--cpu-shares"), _ONE, "CPU weight; 1024 is one part."),
    (("--cpu-period",), _ONE, "CFS period in µs."),
    (("--cpu-quota",), _ONE, "CFS quota in µs."),
    (("--cpuset-cpus",), _ONE, "CPUs it may use, such as 0-2,5."),
    (("--cpuset-mems",), _ONE, "Memory nodes it may use."),
    (("-m", "--memory"), _ONE, "Memory limit, such as 512m."),
    (("--memory-swap",), _ONE, "Limit of memory and swap together; -1 is none."),
    (("--memory-reservation",), _ONE, "Soft memory limit."),
    (("--memory-swappiness",), _ONE, "0 to 100."),
    (("--pids-limit",), _ONE, "At most so many tasks; -1 is no limit."),
    (("--blkio-weight",), _ONE, "Block I/O weight, 10 to 1000."),
    (("--blkio-weight-device",), _MANY, "DEVICE:WEIGHT."),
    (("--device-read-bps",), _MANY, "DEVICE:RATE in bytes a second."),
    (("--device-write-bps",), _MANY, "DEVICE:RATE in bytes a second."),
    (("--device-read-iops",), _MANY, "DEVICE:RATE in operations a second."),
    (("--device-write-iops",), _MANY, "DEVICE:RATE in operations a second."),
    (("--network", "--net"), _ONE, "bridge, none, host or container:NAME."),
    (("-p", "--publish"), _MANY, "Publish [[IP:]HOST:]PORT[/udp]; HOST and PORT may be ranges, 8000-8005:80-85."),
    (("-P", "--publish-all"), _FLAG, "Publish every port that the image or --expose names, on any that are free."),
    (("--expose",), _MANY, "Note that PORT, or a range of them, is used."),
    (("--dns",), _MANY, "A name server."),
    (("--dns-search",), _MANY, "A domain to look names up in; . is none."),
    (("--dns-option",), _MANY, "An option of resolv.conf(5)."),
    (("--add-host",), _MANY, "HOST:IP for /etc/hosts; host-gateway is the IP of this host."),
    (("-v", "--volume"), _MANY, "Mount [SOURCE:]TARGET[:ro]."),
    (("--mount",), _MANY, "Mount type=bind|volume|tmpfs,source=…,target=…."),
    (("--tmpfs",), _MANY, "Mount memory at TARGET[:OPTIONS]."),
    (("--device",), _MANY, "Give it a device of the host: HOST[:INSIDE][:rwm]."),
    (("--device-cgroup-rule",), _MANY, "Allow devices: 'c 10:200 rwm'."),
    (("--cap-add",), _MANY, "Add a capability, or ALL."),
    (("--cap-drop",), _MANY, "Drop a capability, or ALL."),
    (("--security-opt",), _MANY, "seccomp=FILE|unconfined, no-new-privileges, systempaths=unconfined."),
    (("--userns",), _ONE, "host, or auto for ids of its own."),
    (("--pid",), _ONE, "host or container:NAME."),
    (("--ipc",), _ONE, "private, host or container:NAME (with a /dev/shm of its own)."),
    (("--uts",), _ONE, "host or container:NAME."),
    (("--cgroupns",), _ONE, "private or host."),
    (("--sysctl",), _MANY, "NAME=VALUE."),
    (("--ulimit",), _MANY, "NAME=SOFT[:HARD]."),
    (("--shm-size",), _ONE, "Size of /dev/shm (64m)."),
    (("--oom-score-adj",), _ONE, "-1000 to 1000."),
    (("--oom-kill-disable",), _FLAG, "At its memory limit let it wait, not be killed (cgroup v1)."),
    (("--stop-signal",), _ONE, "What asks it to end (SIGTERM)."),
    (("--stop-timeout",), _ONE, "Seconds until it is killed (10)."),
    (("--restart",), _ONE, "Start it again when it ends: no, on-failure[:N], always or unless-stopped."),
    (("--log-driver",), _ONE, "Only json-file."),
    (("--log-opt",), _MANY, "max-size=SIZE, max-file=N."),
    (("--pull",), _ONE, "missing, always or never."),
    (("--platform",), _ONE, "OS/ARCH; only this host's can run."),
    (("--no-healthcheck",), _FLAG, "As without: nothing checks the health of containers."),
    (("-q", "--quiet"), _FLAG, "Say nothing while pulling."),
    (("--cidfile",), _ONE, "Write its id to FILE, which must not exist."),
)
# Those that `update` has, too.
_UPDATED = {
    *("--cpus", "--cpu-shares", "--cpu-period", "--cpu-quota", "--cpuset-cpus", "--cpuset-mems", "--memory"),
    *("--memory-swap", "--memory-reservation", "--pids-limit", "--blkio-weight", "--restart"),
}
# Known to Docker, without an effect here that could be honest.
_REFUSED = {
    **dict.fromkeys(
        (
            *("--health-cmd", "--health-interval", "--health-retries", "--health-timeout"),
            *("--health-start-period", "--health-start-interval"),
        ),
        "nothing checks the health of containers",
    ),
    **dict.fromkeys(("--cpu-rt-period", "--cpu-rt-runtime"), "real-time budgets are for OCI configurations: tare oci"),
    "--link-local-ip": "addresses come from a pool",
    "--ip6": "networks are IPv4",
    "--volume-driver": "volumes are directories of this host",
    "--gpus": "devices are given one by one, with --device",
    "--link": "containers are found by their addresses",
    "--volumes-from": "name the volumes, with -v",
    "--runtime": "there is one runtime; for others: tare bench --drivers",
    "--mac-address": "the address is chosen from the container's IP address",
    "--ip": "addresses come from a pool",
    "--network-alias": "there is no name server for containers",
    "--isolation": "there is one way",
    "--cgroup-parent": "all groups lie below one parent",
    "--kernel-memory": "the kernel has given it up",
    "--storage-opt": "writable layers have no quota",
}


def options(command: _Command) -> _Command:
    """Declare all of them; the command gets them as one mapping, `given`, by their long names."""

    @functools.wraps(command)
    def call(**values: Any) -> Any:
        known = {_variable(names): values.pop(_variable(names)) for names, _, _ in _OPTIONS}
        return command(given=known, **values)

    for names, kind, text in reversed(_OPTIONS):
        words = {_FLAG: {"is_flag": True}, _MANY: {"multiple": True}, _ONE: {}}[kind]
        call = click.option(*names, _variable(names), help=text, **words)(call)  # type: ignore[arg-type]
    for name, why in _REFUSED.items():
        refuse = functools.partial(_refuse, name, why)
        call = click.option(name, expose_value=False, hidden=True, callback=refuse)(call)
    return call  # type: ignore[return-value]


def update_options(command: _Command) -> _Command:
    """Declare those that a container can be changed by; the command gets them as `options` gives them."""
    chosen = [option for option in _OPTIONS if _UPDATED & set(option[0])]

    @functools.wraps(command)
    def call(**values: Any) -> Any:
        given = {_variable(names): () if kind == _MANY else None for names, kind, _ in _OPTIONS}
        return command(
            given=given | {_variable(names): values.pop(_variable(names)) for names, _, _ in chosen}, **values
        )

    for names, _, text in reversed(chosen):
        call = click.option(*names, _variable(names), help=text)(call)
    return call  # type: ignore[return-value]


def _variable(names: Sequence[str]) -> str:
    long = next(name for name in names if name.startswith("--"))
    return long.removeprefix("--").replace("-", "_")


def _refuse(name: str, why: str, _context: click.Context, _parameter: click.Parameter, value: object) -> None:
    if value:
        raise UsageError(f"option {name}", "not supported", why)


def wanted(given: dict[str, Any], image: str, argv: Sequence[str]) -> Wanted:
    """What the options ask for. Raises UsageError naming the first that makes no sense."""
    network = _network(given["network"])
    security = _security(given)
    ports = _ports(given["publish"], network)
    if given["log_driver"] not in (None, "json-file"):
        raise UsageError(f"--log-driver {given['log_driver']}", "not supported", "use json-file")
    if given["pull"] not in (None, "missing", "always", "never"):
        raise UsageError(f"--pull {given['pull']}", "not known", "use missing, always or never")
    _check_platform(given["platform"])
    return Wanted(
        image=image,
        options=replace(security, **_process(given, argv), **_place(given, network)),
        settings=_settings(given, network, ports),
        name=given["name"] or "",
        mounts=_mounts(given),
        pull=given["pull"] or "missing",
        quiet=given["quiet"],
        auto_ids=_auto_ids(given["userns"]),
        publish_all=_publish_all(given, network),
    )


def _mounts(given: dict[str, Any]) -> tuple[Any, ...]:
    if not (given["volume"] or given["mount"] or given["tmpfs"]):
        return ()
    from runtime.container.mountflags import parse_mount, parse_tmpfs, parse_volume

    return (
        *(parse_volume(text) for text in given["volume"]),
        *(parse_mount(text) for text in given["mount"]),
        *(parse_tmpfs(text) for text in given["tmpfs"]),
    )


def _process(given: dict[str, Any], argv: Sequence[str]) -> dict[str, Any]:
    words = [line for path in given["env_file"] for line in wishes.words_of_file("--env-file", path)]
    entrypoint = given["entrypoint"]
    adjustment = given["oom_score_adj"]
    return {
        "argv": tuple(argv),
        "entrypoint": None if entrypoint is None else (entrypoint,),
        "env": wishes.environment([*words, *given["env"]]),
        "cwd": given["workdir"],
        "user": given["user"],
        "groups": given["group_add"],
        "tty": given["tty"],
        "cap_add": given["cap_add"],
        "cap_drop": given["cap_drop"],
        "privileged": given["privileged"],
        "host_devices": devices.host_devices() if given["privileged"] else (),
        "rlimits": tuple(wishes.ulimit(text) for text in given["ulimit"]),
        "oom_score_adj": None if adjustment is None else wishes.whole("--oom-score-adj", adjustment, -1000, 1000),
    }


def _place(given: dict[str, Any], network: str) -> dict[str, Any]:
    return {
        "hostname": given["hostname"] or (os.uname().nodename if network == HOST else None),
        "domainname": given["domainname"],
        "labels": _labels(given),
        "annotations": dict(wishes.pair("--annotation", text) for text in given["annotation"]),
        "read_only": given["read_only"],
        "shm_bytes": wishes.size("--shm-size", given["shm_size"] or "0") or SHM_BYTES,
        "devices": tuple(grant for text in given["device"] for grant in devices.grants(text)),
        "device_rules": tuple(wishes.device_rule(text) for text in given["device_cgroup_rule"]),
        "resources": resources(given),
        "network": network if network == HOST or network.startswith(CONTAINER) else PRIVATE,
        "pid": _namespace("--pid", given["pid"], (HOST,)),
        "ipc": _namespace("--ipc", given["ipc"], (HOST, PRIVATE, "shareable")),
        "uts": _namespace("--uts", given["uts"], (HOST,)),
        "cgroupns": _namespace("--cgroupns", given["cgroupns"], (HOST, PRIVATE), joins=False),
        "sysctls": dict(wishes.pair("--sysctl", text) for text in given["sysctl"]),
    }


def resources(given: dict[str, Any]) -> Resources:
    """The limits asked for. Raises UsageError."""
    rates = [(f"--{name}", given[name.replace("-", "_")]) for name in _RATES]
    return wishes.resources(
        wishes.memory(
            given["memory"],
            given["memory_swap"],
            given["memory_reservation"],
            given["memory_swappiness"],
            kills=not given["oom_kill_disable"],
        ),
        wishes.cpu(
            given["cpus"],
            given["cpu_shares"],
            given["cpu_period"],
            given["cpu_quota"],
            given["cpuset_cpus"],
            given["cpuset_mems"],
        ),
        wishes.block_io(given["blkio_weight"], given["blkio_weight_device"], rates),
        given["pids_limit"],
    )


_RATES = ("device-read-bps", "device-write-bps", "device-read-iops", "device-write-iops")


def _settings(given: dict[str, Any], network: str, ports: tuple[tuple[str, int, int, str], ...]) -> Settings:
    timeout = given["stop_timeout"]
    defaults = Settings()
    log_bytes, log_files = _log(given["log_opt"], defaults)
    policy, most = wishes.restart(given["restart"], given["rm"])
    return Settings(
        terminal=given["tty"],
        stdin_open=given["interactive"],
        auto_remove=given["rm"],
        init=_init(given),
        restart=policy,
        restart_most=most,
        network=network,
        ports=ports,
        exposed=tuple(port for text in given["expose"] for port in _exposed(text)),
        labels=_labels(given),
        stop_signal=wishes.signal_number(given["stop_signal"]) if given["stop_signal"] else 0,
        stop_timeout_s=defaults.stop_timeout_s
        if timeout is None
        else wishes.whole("--stop-timeout", timeout, -1, 86400),
        log_bytes=log_bytes,
        log_files=log_files,
        privileged=given["privileged"],
        binds=given["volume"],
        dns=tuple(_address("--dns", text) for text in given["dns"]),
        dns_search=given["dns_search"],
        dns_options=given["dns_option"],
        extra_hosts=tuple(_host(text, network) for text in given["add_host"]),
    )


def _init(given: dict[str, Any]) -> str:
    if not given["init"]:
        return ""
    if given["pid"]:
        raise UsageError("--init", f"its process 1 is another one with --pid {given['pid']}", "leave one out")
    from runtime.container.inits import find

    return find()


def _network(text: str | None) -> str:
    if text in (None, "default", "bridge"):
        return "bridge"
    if text in ("none", HOST) or (text.startswith(CONTAINER) and text != CONTAINER):
        return text
    from runtime.driver import host_from_env
    from runtime.network.definitions import Definitions

    if Definitions(host_from_env().root).find(text) is None:
        raise UsageError(f"--network {text}", "no such network", "use bridge, none, host, container:NAME or make it")
    return text


def _namespace(flag: str, text: str | None, modes: Sequence[str], *, joins: bool = True) -> str:
    if not text:
        return PRIVATE
    if text in modes:
        return HOST if text == HOST else PRIVATE
    if joins and text.startswith(CONTAINER) and text != CONTAINER:
        return text
    raise UsageError(f"{flag} {text}", "not known", f"use {', '.join(modes)}{' or container:NAME' if joins else ''}")


def _auto_ids(text: str | None) -> bool:
    if text not in (None, "", "host", "auto"):
        raise UsageError(f"--userns {text}", "not known", "use host or auto")
    return text == "auto"


def _ports(texts: Sequence[str], network: str) -> tuple[tuple[str, int, int, str], ...]:
    if not texts:
        return ()
    from runtime.network.ports import parse_all

    if network != "bridge":
        raise UsageError(f"-p {texts[0]}", f"ports are published on a bridge, not with --network {network}")
    return tuple((port.host, port.host_port, port.port, port.protocol) for port in parse_all(texts))


def _publish_all(given: dict[str, Any], network: str) -> bool:
    if given["publish_all"] and network in ("none", HOST):
        raise UsageError("--publish-all", f"ports are published on a bridge, not with --network {network}")
    return bool(given["publish_all"])


def _exposed(text: str) -> Iterator[str]:
    from runtime.network.ports import parse

    if ":" in text:
        raise UsageError(f"--expose {text}", "names ports of the container alone", "publish them with -p")
    try:
        ports = parse(text)
    except UsageError as error:
        raise UsageError(f"--expose {text}", error.why, "write PORT[/udp]") from None
    for port in ports:
        yield f"{port.port}/{port.protocol}"


def _check_platform(text: str | None) -> None:
    """Raise UsageError unless this host can run it."""
    if not text:
        return
    from runtime.images.pull import Platform

    wanted, here = Platform.parse(text), Platform.here()
    if not wanted.fits({"os": here.os, "architecture": here.architecture}):
        raise UsageError(f"--platform {text}", f"this host runs {here}", "leave it out")


def _host(text: str, network: str) -> str:
    """`HOST:IP`, or `HOST=IP`; the gateway's address, `host-gateway`, is known at the start."""
    name, sign, address = text.partition("=" if "=" in text else ":")
    if not sign or not name or not address:
        raise UsageError(f"--add-host {text!r}", "not HOST:IP", "write it like db:10.0.0.2")
    if address != GATEWAY:
        _address("--add-host", address.removeprefix("[").removesuffix("]"))
    elif network in ("none", HOST) or network.startswith(CONTAINER):
        raise UsageError(f"--add-host {text}", f"there is no gateway with --network {network}", "give an address")
    return f"{name}:{address}"


def _address(flag: str, text: str) -> str:
    """An address of IPv4 or IPv6 as it stands. Raises UsageError."""
    for family in (socket.AF_INET, socket.AF_INET6):
        with suppress(OSError, ValueError):
            socket.inet_pton(family, text)
            return text
    raise UsageError(f"{flag} {text!r}", "not an IP address", "write it like 10.0.0.2")


def _labels(given: dict[str, Any]) -> dict[str, str]:
    words = [line for path in given["label_file"] for line in wishes.words_of_file("--label-file", path)]
    return dict(wishes.pair("--label", word) for word in (*words, *given["label"]))


def _log(texts: Sequence[str], defaults: Settings) -> tuple[int, int]:
    log_bytes, files = defaults.log_bytes, defaults.log_files
    for text in texts:
        key, value = wishes.pair("--log-opt", text)
        if key == "max-size":
            log_bytes = wishes.size("--log-opt max-size", value, least=4096)
        elif key == "max-file":
            files = wishes.whole("--log-opt max-file", value, 1, 1000)
        else:
            raise UsageError(f"--log-opt {key}", "not known", "use max-size and max-file")
    return log_bytes, files


def _security(given: dict[str, Any]) -> Options:
    """The options with what `--security-opt` says, and nothing else."""
    found: dict[str, Any] = {}
    for text in given["security_opt"]:
        key, equals, value = text.partition("=") if "=" in text else text.partition(":")
        if key == "no-new-privileges" and value in ("", "true", "false"):
            found["no_new_privileges"] = value != "false"
        elif key == "seccomp" and value == "unconfined":
            found["seccomp_unconfined"] = True
        elif key == "seccomp" and equals and value != "builtin":
            found["seccomp"] = _profile(value, given)
        elif key == "systempaths" and value == "unconfined":
            found["masked_paths"] = found["readonly_paths"] = ()
        elif (key, value) not in (("seccomp", "builtin"), ("apparmor", "unconfined"), ("label", "disable")):
            raise UsageError(
                f"--security-opt {text}",
                "not supported",
                "use seccomp=FILE|unconfined, no-new-privileges or systempaths=unconfined",
            )
    return Options(**found)


def _profile(path: str, given: dict[str, Any]) -> Any:
    from runtime.container import profiles
    from runtime.linux import capabilities

    held = (
        capabilities.everything() if given["privileged"] else capabilities.choose(given["cap_add"], given["cap_drop"])
    )
    return profiles.load(Path(path), held)


def write_cidfile(path: str | None, container_id: str) -> None:
    """Put the id where `--cidfile` says."""
    if path:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise TareError(
                f"--cidfile {path}", error.strerror or str(error), "name a file that is not there"
            ) from None
        with os.fdopen(descriptor, "w") as file:
            file.write(container_id)


def check_cidfile(path: str | None) -> None:
    """Raise UsageError when it is there already: before anything is made."""
    if path and Path(path).exists():
        raise UsageError(f"--cidfile {path}", "it exists", "remove it, or name another")

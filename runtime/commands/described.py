"""Containers as Docker describes them: a row of `ps`, the document of `inspect`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from runtime.commands import listing, moments
from runtime.container.lifecycle import Containers
from runtime.container.logs import NAME
from runtime.container.state import LOGS, UNKNOWN_CODE, Record

_NEVER = "0001-01-01T00:00:00Z"
HEADS = {
    "ID": "CONTAINER ID",
    "Image": "IMAGE",
    "Command": "COMMAND",
    "CreatedAt": "CREATED AT",
    "RunningFor": "CREATED",
    "Status": "STATUS",
    "State": "STATE",
    "Ports": "PORTS",
    "Names": "NAMES",
    "Size": "SIZE",
    "Labels": "LABELS",
    "Mounts": "MOUNTS",
    "LocalVolumes": "LOCAL VOLUMES",
    "Networks": "NETWORKS",
}
"""The columns of `ps`, by their names in a template."""


def listed(record: Record) -> dict[str, Any]:
    """One row of `ps`, whole."""
    return {
        "ID": record.id,
        "Names": record.name,
        "Image": record.image,
        "Command": " ".join(record.argv),
        "CreatedAt": record.created_at,
        "State": record.status,
        "Status": status_line(record),
        "ExitCode": exit_code(record),
        "Ports": ports_line(record),
        "Labels": dict(record.settings.labels),
        "Networks": record.settings.network,
    }


def row(containers: Containers, record: Record, *, whole: bool = False, size: bool = False) -> dict[str, Any]:
    """One row of `ps` by the names of its columns, cut short unless `whole`; the size is looked up where asked for."""
    words = listed(record)
    mounts = [_mount(mount) for mount in containers.state.document(record.id).get("mounts", ()) if _is_bind(mount)]
    names = [mount.get("Name", mount["Source"]) for mount in mounts]
    labels, label = listing.labels(record.settings.labels)
    command = words["Command"] if whole else moments.shortened(words["Command"], 20)
    return {
        **words,
        "ID": record.id if whole else record.short_id,
        "Command": f'"{command}"',
        "RunningFor": moments.ago(record.created_at),
        "Size": _size_line(record) if size else "N/A",
        "Labels": labels,
        "Label": label,
        "Mounts": ",".join(name if whole else moments.shortened(name, 15) for name in names),
        "LocalVolumes": str(sum("Name" in mount for mount in mounts)),
    }


def sizes(record: Record) -> tuple[int, int]:
    """Bytes that a container has written, and those together with its image's."""
    from runtime.images.store import tree_bytes

    own = tree_bytes(record.directory / "upper")[0]
    return own, own + sum(tree_bytes(Path(layer))[0] for layer in record.layers)


def _size_line(record: Record) -> str:
    own, whole = map(listing.human, sizes(record))
    return f"{own} (virtual {whole})"


def exit_code(record: Record) -> int:
    """Of the last end; 137 when nobody saw it."""
    if record.status == "exited" and record.run is not None and record.run.exit_code is None:
        return UNKNOWN_CODE
    return 0 if record.running else record.exit_code


def status_line(record: Record) -> str:
    """As in Docker's STATUS column."""
    run = record.run
    if run is None or record.status == "created":
        return "Created"
    if record.running:
        up = f"Up {moments.lasting(moments.seconds_since(run.started_at))}"
        return up + (" (Paused)" if record.status == "paused" else "")
    when = f" {moments.ago(run.finished_at)}" if run.finished_at else ""
    if record.restarting:
        return f"Restarting ({exit_code(record)}){when}"
    return f"Exited ({exit_code(record)}){when}"


def ports_line(record: Record) -> str:
    """As in Docker's PORTS column."""
    if not record.running or record.run is None:
        return ""
    found = record.run.facts.get("ports", ())
    published = {f"{inside}/{protocol}" for _, _, inside, protocol in found}
    return ", ".join((*_ranges(found), *(port for port in record.settings.exposed if port not in published)))


def _ranges(found: Sequence[tuple[str, int, int, str]]) -> list[str]:
    if not found:
        return []
    from runtime.network.ports import Port, ranges

    return ranges(Port(outside, inside, protocol, host) for host, outside, inside, protocol in found)


def _bindings(found: Iterable[tuple[str, int, int, str]]) -> dict[str, Any]:
    """By the container's port, which may be published several times."""
    bindings: dict[str, Any] = {}
    for host, outside, inside, protocol in found:
        bindings.setdefault(f"{inside}/{protocol}", []).append({"HostIp": host, "HostPort": str(outside)})
    return bindings


def container_document(containers: Containers, record: Record) -> dict[str, Any]:
    """Everything that is known, in the shape of Docker's `inspect`."""
    document = containers.state.document(record.id)
    process = document.get("process", {})
    argv = list(record.argv)
    return {
        "Id": record.id,
        "Created": record.created_at,
        "Path": argv[0] if argv else "",
        "Args": argv[1:],
        "State": _state(record),
        "Image": record.image_digest,
        "Name": f"/{record.name}",
        "RestartCount": record.run.restarts if record.run is not None else 0,
        "Driver": "overlay",
        "Platform": "linux",
        "LogPath": str(record.directory / LOGS / NAME),
        "HostConfig": _host_config(record, document),
        "GraphDriver": {
            "Name": "overlay",
            "Data": {
                "LowerDir": ":".join(reversed(record.layers)),
                "UpperDir": str(record.directory / "upper"),
                "WorkDir": str(record.directory / "work"),
            },
        },
        "Mounts": [_mount(mount) for mount in document.get("mounts", ()) if _is_bind(mount)],
        "Config": {
            "Hostname": document.get("hostname", ""),
            "User": _user(process),
            "Tty": record.settings.terminal,
            "OpenStdin": record.settings.stdin_open,
            "Env": process.get("env", []),
            "Cmd": argv,
            "Entrypoint": list(record.settings.entrypoint) or None,
            "Image": record.image,
            "WorkingDir": process.get("cwd", "/"),
            "Labels": dict(record.settings.labels),
            "ExposedPorts": {port: {} for port in record.settings.exposed},
            "StopSignal": str(record.settings.stop_signal),
            "StopTimeout": record.settings.stop_timeout_s,
        },
        "NetworkSettings": _network(record),
    }


def _state(record: Record) -> dict[str, Any]:
    run = record.run
    return {
        "Status": record.status,
        "Running": record.running or record.restarting,
        "Paused": record.status == "paused",
        "Restarting": record.restarting,
        "OOMKilled": run is not None and run.oom_killed,
        "Dead": False,
        "Pid": record.pid,
        "ExitCode": exit_code(record),
        "Error": "" if run is None else run.error,
        "StartedAt": (run.started_at if run is not None else "") or _NEVER,
        "FinishedAt": (run.finished_at if run is not None else "") or _NEVER,
    }


def _host_config(record: Record, document: dict[str, Any]) -> dict[str, Any]:
    linux, process, settings = document.get("linux", {}), document.get("process", {}), record.settings
    resources = linux.get("resources", {})
    cpu, memory, block_io = (resources.get(name, {}) for name in ("cpu", "memory", "blockIO"))
    return {
        "Binds": list(settings.binds) or None,
        "NetworkMode": settings.network,
        "PortBindings": _bindings(settings.ports),
        "AutoRemove": settings.auto_remove,
        "Privileged": settings.privileged,
        "ReadonlyRootfs": bool(document.get("root", {}).get("readonly")),
        "LogConfig": {
            "Type": "json-file",
            "Config": {"max-size": str(settings.log_bytes), "max-file": str(settings.log_files)},
        },
        "Init": bool(settings.init),
        "RestartPolicy": {"Name": settings.restart, "MaximumRetryCount": settings.restart_most},
        "Capabilities": process.get("capabilities", {}).get("bounding", []),
        "OomScoreAdj": process.get("oomScoreAdj", 0),
        "NoNewPrivileges": bool(process.get("noNewPrivileges")),
        "Memory": memory.get("limit", 0),
        "MemorySwap": memory.get("swap", 0),
        "MemoryReservation": memory.get("reservation", 0),
        "CpuShares": cpu.get("shares", 0),
        "CpuPeriod": cpu.get("period", 0),
        "CpuQuota": cpu.get("quota", 0),
        "CpusetCpus": cpu.get("cpus", ""),
        "CpusetMems": cpu.get("mems", ""),
        "PidsLimit": resources.get("pids", {}).get("limit"),
        "BlkioWeight": block_io.get("weight", 0),
        "Ulimits": [
            {"Name": limit["type"].removeprefix("RLIMIT_").lower(), "Soft": limit["soft"], "Hard": limit["hard"]}
            for limit in process.get("rlimits", ())
        ],
        "Sysctls": linux.get("sysctl", {}),
        "MaskedPaths": linux.get("maskedPaths", []),
        "ReadonlyPaths": linux.get("readonlyPaths", []),
        "UsernsMode": "auto" if linux.get("uidMappings") else "host",
    }


def _user(process: dict[str, Any]) -> str:
    user = process.get("user", {})
    return f"{user.get('uid', 0)}:{user.get('gid', 0)}"


def _is_bind(mount: dict[str, Any]) -> bool:
    return bool(mount.get("type") == "bind")


def _mount(mount: dict[str, Any]) -> dict[str, Any]:
    options = mount.get("options", [])
    source = mount.get("source", "")
    parts = source.split("/")
    volume = parts[-2] if parts[-1:] == ["_data"] and "volumes" in parts else ""
    return {
        "Type": "volume" if volume else "bind",
        **({"Name": volume} if volume else {}),
        "Source": source,
        "Destination": mount["destination"],
        "Mode": "ro" if "ro" in options else "",
        "RW": "ro" not in options,
        "Propagation": next((word for word in options if word.endswith(("private", "shared", "slave"))), ""),
    }


def _network(record: Record) -> dict[str, Any]:
    facts = record.run.facts if record.run is not None and record.running else {}
    ports = dict.fromkeys(record.settings.exposed) | _bindings(facts.get("ports", ()))
    one = {
        "NetworkID": facts.get("network", record.settings.network),
        "IPAddress": facts.get("address", ""),
        "IPPrefixLen": facts.get("prefix_bits", 0),
        "Gateway": facts.get("gateway", ""),
        "MacAddress": facts.get("mac_address", ""),
        "Interface": facts.get("interface", ""),
        "Bridge": facts.get("bridge", ""),
    }
    return {**one, "Ports": ports, "Networks": {one["NetworkID"]: one}}

"""What is asked of a Docker engine on this host, through docker-py, which is loaded with the first question.

Whatever an engine does wrong, or answers that makes no sense, is a TareError. Not which engine that is, nor what is
timed: that is the driver's.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from runtime.cgroups.detect import io_device
from runtime.cgroups.weights import bfq_weight, cpu_shares
from runtime.errors import TareError, printable
from runtime.images.store import Image, ImageStore
from runtime.instance import DiskPaths
from runtime.spec import InstanceSpec, MountKind

REQUEST_TIMEOUT_S = 60.0
_SHOWN_MAX = 400  # bytes of what an engine says that are shown


def installed() -> bool:
    """Whether docker-py is: it comes with an extra."""
    return find_spec("docker") is not None


class DockerApi:
    """The engine that listens at `path`; its containers go by their names."""

    def __init__(self, path: Path) -> None:
        import docker

        with _explained("docker connect"):
            self._client = docker.APIClient(base_url=f"unix://{path}", version="auto", timeout=REQUEST_TIMEOUT_S)

    def close(self) -> None:
        """Give its connections up."""
        self._client.close()

    # --- the engine

    def facts(self) -> dict[str, str]:
        """Its versions and its ways."""
        with _explained("docker version"):
            version, info = self._client.version(), self._client.info()
            parts = {part["Name"]: part["Version"] for part in version.get("Components", ())}
            return {
                "version": f"Docker {version['Version']}, API {version['ApiVersion']}",
                "runtime": f"{info['DefaultRuntime']}, {', '.join(f'{name} {parts[name]}' for name in sorted(parts))}",
                "cgroups": f"cgroup v{info.get('CgroupVersion', '1')}, {info['CgroupDriver']} driver",
                "root file system": str(info["Driver"]),
            }

    def data(self) -> Path:
        """Where it keeps images and containers."""
        with _explained("docker info"):
            return Path(self._client.info()["DockerRootDir"])

    def load(self, store: ImageStore, image: Image) -> bool:
        """Give it the image, unless it has got it: whether it had to be."""
        import docker.errors

        from runtime.images.saving import save

        with _explained("docker load"):
            try:
                self._client.inspect_image(image.id)
            except docker.errors.ImageNotFound:
                pass
            else:
                return False
            reading, writing = os.pipe()
            problems: list[Exception] = []

            def write() -> None:
                try:
                    with os.fdopen(writing, "wb") as target:
                        save(store, [image], target, form="docker")
                except (TareError, OSError) as error:
                    problems.append(error)

            writer = threading.Thread(target=write, name="tare-docker-load", daemon=True)
            writer.start()
            with os.fdopen(reading, "rb") as source:
                said = [line for line in self._client.load_image(source, quiet=True) or () if "error" in line]
            writer.join()
            if said or problems:
                raise TareError(f"loading {image.ref} into docker", printable(str([*said, *problems][0])))
            self._client.inspect_image(image.id)
        return True

    def unload(self, image_id: str) -> None:
        """Take an image from it."""
        with _explained("docker image remove"):
            self._client.remove_image(image_id, force=True)

    def labelled(self, label: str, value: str) -> list[str]:
        """The containers, running or not, that bear a label."""
        with _explained("docker list"):
            rows = self._client.containers(all=True, filters={"label": f"{label}={value}"})
            return [row["Names"][0].removeprefix("/") for row in rows]

    # --- a container

    def settings(self, spec: InstanceSpec, data: Path) -> dict[str, Any]:
        """Docker's default ones with the limits, network and mounts of `spec`, as `create` takes them."""
        limits = spec.limits
        swap = None if limits.memory_bytes is None else -1
        if limits.memory_bytes is not None and limits.swap_bytes is not None:
            swap = limits.memory_bytes + limits.swap_bytes
        temporary = (mount for mount in spec.mounts if mount.kind is MountKind.TMPFS)
        config = self._client.create_host_config(
            network_mode=str(spec.network.mode),
            security_opt=["no-new-privileges"],
            cgroupns="private",
            cpu_shares=None if limits.cpu_weight is None else cpu_shares(limits.cpu_weight),
            cpuset_cpus=limits.cpuset,
            mem_limit=limits.memory_bytes,
            mem_reservation=limits.memory_low_bytes,
            memswap_limit=swap,
            pids_limit=limits.pids,
            blkio_weight=None if limits.io_weight is None else bfq_weight(limits.io_weight),
            nano_cpus=None if limits.cpus is None else round(limits.cpus * 1e9),
            tmpfs={mount.target: "ro" if mount.read_only else "" for mount in temporary},
        )
        config["Binds"] = [
            f"{Path(mount.source).resolve()}:{mount.target}:{'ro' if mount.read_only else 'rw'}"
            for mount in spec.mounts
            if mount.kind is MountKind.BIND
        ]
        for name, rate in (("BlkioDeviceReadBps", limits.io_read_bps), ("BlkioDeviceWriteBps", limits.io_write_bps)):
            if rate is not None:
                config[name] = [{"Path": _device(data), "Rate": rate}]
        return dict(config)

    def create(
        self,
        name: str,
        image_id: str,
        argv: Sequence[str],
        *,
        hostname: str | None,
        env: Mapping[str, str],
        labels: Mapping[str, str],
        settings: Mapping[str, Any],
    ) -> None:
        """Make one of an image, to run `argv`. Raises TareError also when it would leave a setting out."""
        with _explained("docker create"):
            answer = self._client.create_container(
                image_id,
                list(argv[1:]),
                entrypoint=[argv[0]],
                name=name,
                hostname=hostname,
                environment=dict(env),
                labels=dict(labels),
                host_config=dict(settings),
            )
            warnings = answer.get("Warnings") or []
        if warnings:  # that is how it says that it leaves a limit out
            raise TareError("docker create", printable("; ".join(map(str, warnings))), "leave that limit out")

    def start(self, name: str) -> None:
        """Start it; returns when the engine says that it has."""
        with _explained("docker start"):
            self._client.start(name)

    def runs(self, name: str) -> bool:
        """Whether the engine says that it does."""
        with _explained("docker inspect"):
            return bool(self._client.inspect_container(name)["State"]["Running"])

    def inspect(self, name: str) -> tuple[int, DiskPaths]:
        """Its process, and where its layers lie, as the engine's storage driver says."""
        with _explained("docker inspect"):
            found = self._client.inspect_container(name)
            return int(found["State"]["Pid"]), _disk(found)

    def freeze(self, name: str, frozen: bool) -> None:
        """Have all its processes stand still, or go on."""
        with _explained("docker pause" if frozen else "docker unpause"):
            (self._client.pause if frozen else self._client.unpause)(name)

    def tail(self, name: str) -> str:
        """The end of what it has printed."""
        try:
            with _explained("docker logs"):
                return printable(self._client.logs(name, tail=10).decode(errors="replace").strip()[-_SHOWN_MAX:])
        except TareError:
            return ""

    def remove(self, name: str) -> None:
        """Remove it, running or not. Raises TareError when it is still there afterwards."""
        import docker.errors

        with _explained("docker remove"):
            try:
                self._client.remove_container(name, v=True, force=True)
                self._client.inspect_container(name)
            except docker.errors.NotFound:
                return
        raise TareError("docker remove", "it said success and the container is still there")


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Whatever goes wrong between us and the engine, or makes no sense in its answer, as a TareError."""
    import docker.errors
    import requests.exceptions

    try:
        yield
    except (docker.errors.DockerException, requests.exceptions.RequestException, OSError) as error:
        raise TareError(what, printable(str(getattr(error, "explanation", None) or error))[:_SHOWN_MAX]) from error
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise TareError(what, f"an answer that is none of Docker's: {error!r}"[:_SHOWN_MAX]) from error


def _device(data: Path) -> str:
    """The disk below the engine's data, as it wants it named."""
    number = io_device(data)
    if number is None:
        raise TareError("limit io", "the engine's data lie on no block device", "leave it out")
    lines = (Path("/sys/dev/block") / number / "uevent").read_text().splitlines()
    return "/dev/" + next(line.partition("=")[2] for line in lines if line.startswith("DEVNAME="))


def _disk(found: Mapping[str, Any]) -> DiskPaths:
    data = (found.get("GraphDriver") or {}).get("Data") or {}
    if "LowerDir" not in data:
        return DiskPaths()
    # The lowest of a container's own layers holds its mount points, made for it alone.
    own = Path(data["UpperDir"]).parent
    lower = [Path(path).parent for path in data["LowerDir"].split(":")]
    initial = [path for path in lower if path.name == f"{own.name}-init"]
    return DiskPaths(shared=tuple(path for path in lower if path not in initial), exclusive=(own, *initial))

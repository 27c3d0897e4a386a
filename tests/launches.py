"""Containers straight from a configuration, launched without cgroups or a driver: what host tests of plans share."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from runtime.container import defaults, storage
from runtime.container.client import Child, LauncherClient
from runtime.container.config import Config, Process
from runtime.container.options import Options
from runtime.container.plan import HostFacts, Place, Plan, Rootfs, container_plan, exec_plan
from runtime.linux.seccomp import default_program
from runtime.spec import ImageRef

IMAGE = ImageRef.parse("tare/debian:bookworm")
TIMEOUT_S = 30


@dataclass
class Launches:
    """Launches containers of one image; everything they left is given back by `close`."""

    directory: Path
    layers: tuple[Path, ...]
    client: LauncherClient = field(default_factory=LauncherClient)
    facts: HostFacts = field(default_factory=HostFacts.gather)
    _children: list[Child] = field(default_factory=list)
    _directories: list[Path] = field(default_factory=list)

    def place(self, **changes: Any) -> Place:
        """A fresh writable layer over the image."""
        directory = self.directory / secrets.token_hex(6)
        storage.make(str(directory))
        self._directories.append(directory)
        skeleton = Path(storage.skeleton(str(self.directory)))
        return replace(Place(rootfs=Rootfs((skeleton, *self.layers), directory), die_with_launcher=True), **changes)

    def config(self, *argv: str, **options: Any) -> Config:
        """Docker's default container of `argv`, or what is asked for."""
        return defaults.build({}, Options(argv=argv, **options), layers=self.layers)

    def start(self, config: Config, place: Place | None = None, output: int = -1, **launch: Any) -> Child:
        """Launch; both output streams go to `output`, if given."""
        streams = ((0, 1), (0, 2)) if output >= 0 else ()
        seccomp = None if config.linux.seccomp is None else default_program()
        plan = container_plan(config, place or self.place(), self.facts, seccomp=seccomp, streams=streams)
        return self.launch(plan, [output] if output >= 0 else [], **launch)

    def launch(self, plan: Plan, descriptors: Sequence[int] = (), **launch: Any) -> Child:
        """Any plan."""
        child = self.client.launch(plan, descriptors, TIMEOUT_S, **launch)
        self._children.append(child)
        return child

    def output(self, config: Config, place: Place | None = None, **launch: Any) -> str:
        """What it prints until it ends; its exit code must be 0 and its words are the failure otherwise."""
        with Output() as output:
            child = self.start(config, place, output.descriptor, **launch)
            return output.of(child)

    def sh(self, script: str, **options: Any) -> str:
        """What a script prints."""
        return self.output(self.config("/bin/sh", "-c", script, **options)).strip()

    def exec(self, config: Config, child: Child, *argv: str, **changes: Any) -> str:
        """What a further process prints."""
        assert config.process is not None
        process: Process = replace(config.process, args=argv, **changes)
        with Output() as output:
            plan = exec_plan(
                config,
                process,
                child.pid,
                Place(),
                self.facts,
                seccomp=None if config.linux.seccomp is None else default_program(),
                streams=((0, 1), (0, 2)),
            )
            return output.of(self.launch(plan, [output.descriptor])).strip()

    def close(self) -> None:
        """Kill, reap, remove."""
        for child in self._children:
            child.kill(9)
            child.wait(TIMEOUT_S)
            child.close()
        self.client.close()
        for directory in self._directories:
            storage.remove(str(directory))


class Output:
    """A file in memory that a child writes to."""

    def __enter__(self) -> Self:
        self.descriptor = os.memfd_create("output")
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)

    def text(self) -> str:
        """What was written until now."""
        return os.pread(self.descriptor, 1 << 20, 0).decode()

    def of(self, child: Child) -> str:
        """What `child` wrote until its end, which must be a good one."""
        assert child.wait(TIMEOUT_S), "it does not end"
        assert child.exit_code == 0, f"{child.exit_code}: {self.text()}"
        return self.text()

"""Bundles for an OCI runtime, and a runtime's command line, for tests that run real containers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runtime.container.oci_documents import example
from runtime.driver import Host
from runtime.images.store import ImageStore
from runtime.spec import ImageRef

TIMEOUT_S = 60.0
TARE = (sys.executable, "-c", "from runtime.commands.ocimain import entry; entry()")
Change = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class OciRuntime:
    """One runtime's program with a state directory of its own."""

    root: Path
    program: Sequence[str] = TARE
    made: set[str] = field(default_factory=set)

    def command(self, *words: str) -> list[str]:
        """The argv of one of its commands."""
        return [*self.program, "--root", str(self.root), *words]

    def __call__(
        self, *words: str, check: bool = True, timeout_s: float = TIMEOUT_S
    ) -> subprocess.CompletedProcess[str]:
        """Run one command. What it leaves running must not hold the pipes: output of containers goes to files."""
        if words[0] in ("create", "run"):
            self.made.add(words[-1])
        done = subprocess.run(
            self.command(*words),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{' '.join(words)}: exit {done.returncode}: {done.stderr or done.stdout}")
        return done

    def create(self, container_id: str, bundle: Path, *flags: str, check: bool = True) -> str:
        """`create`, the container's output in the bundle's `output`: what it said on standard error."""
        self.made.add(container_id)
        with (bundle / "output").open("ab") as output, (bundle / "errors").open("w+b") as errors:
            code = subprocess.run(
                self.command("create", "--bundle", str(bundle), *flags, container_id),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                timeout=TIMEOUT_S,
                check=False,
            ).returncode
        said = (bundle / "errors").read_text()
        if check and code != 0:
            raise AssertionError(f"create {container_id}: exit {code}: {said}")
        return said

    def state(self, container_id: str) -> dict[str, Any]:
        """The container's state."""
        document = json.loads(self("state", container_id).stdout)
        assert isinstance(document, dict)
        return document

    def remove_all(self) -> None:
        """Delete every container that was made here, whatever state it is in."""
        for container_id in self.made:
            self("delete", "--force", container_id, check=False)


def image_tree(host: Host, reference: str, cache: Path) -> Path:
    """The files of an image as one plain tree, hard links to its layers: to be used read-only."""
    from runtime.container.flat import flat

    image = ImageStore(host.root).resolve(ImageRef.parse(reference))
    return flat([layer.directory for layer in image.layers], cache)


def write_bundle(directory: Path, rootfs: Path, *args: str, change: Change | None = None) -> Path:
    """A bundle that runs `args` in `rootfs` (read-only) without a terminal; `change` may alter its configuration."""
    config: dict[str, Any] = deepcopy(example())
    config["root"] = {"path": str(rootfs), "readonly": True}
    config["process"]["terminal"] = False
    config["process"]["args"] = list(args)
    if change is not None:
        change(config)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    return directory

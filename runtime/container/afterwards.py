"""What a keeper has done after a container's end, as it takes more than a keeper has: each a process of its own."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from runtime.container.lifecycle import Containers
from runtime.driver import Host
from runtime.errors import TareError


def settle_by_id(root: str, run: str, container_id: str) -> None:
    """For a container that nobody waits for: give its host resources back, remove it if asked."""
    os.umask(0o022)  # the keeper has none
    containers = Containers(Host(Path(root), Path(run)))
    with suppress(TareError):
        record = containers.settle(containers.state.find(container_id))
        if record.settings.auto_remove and not record.running:
            containers.remove(record, volumes=True)


def start_again_by_id(root: str, run: str, container_id: str) -> None:
    """Start a container that has ended, as its restart policy says; why that failed is for the keeper to write down."""
    os.umask(0o022)  # the keeper has none
    containers = Containers(Host(Path(root), Path(run)))
    record = containers.state.find(container_id)
    try:
        contact, running = containers.start(record, again=True)
    except (TareError, OSError) as error:
        containers.give_up(record, f"not started again: {error}")
        return
    running.close()
    contact.close()

"""From a plan with a network namespace of its own to one that is connected: the last word before a launch.

`Networks.connect` has taken the address; nothing here touches the host.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from runtime.container.plan import Part, Plan
from runtime.container.stepping import Step
from runtime.container.steps import Interface, LoopbackUp
from runtime.linux.syscalls import CLONE_NEWNET
from runtime.network.attachment import Attachment


def connected(plan: Plan, attachment: Attachment) -> Plan:
    """`plan`, its child taking the place in the network that `attachment` says where it would only bring up `lo`.

    Raises ValueError when it would not even do that: it has no network namespace of its own.
    """
    interface = Interface(*attachment.step_values)
    parts = tuple(part for old in plan.parts for part in _replaced(old, interface))
    if interface not in parts:
        raise ValueError("a plan without a network namespace of its own cannot be connected")
    return dataclasses.replace(plan, parts=parts, links=attachment.links)


def joined(plan: Plan, namespace: Path) -> Plan:
    """`plan`, its child born in the network namespace of another instead of one of its own."""
    entered = (*plan.enter, (str(namespace), CLONE_NEWNET))
    return dataclasses.replace(plan, namespaces=plan.namespaces & ~CLONE_NEWNET, enter=entered)


def _replaced(part: Step | Part, interface: Interface) -> Iterator[Step | Part]:
    """A shared part that holds the step comes apart: what lies around it stays shared only by luck."""
    if isinstance(part, LoopbackUp):
        yield interface
    elif isinstance(part, Part) and any(isinstance(step, LoopbackUp) for step in part.steps):
        yield from (interface if isinstance(step, LoopbackUp) else step for step in part.steps)
    else:
        yield part

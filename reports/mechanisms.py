"""Rules for the claims about what containers are made of: one function a claim, beside those of `rules`.

These claims speak of containers alone: the virtual machine's figures stand beside and do not decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from reports.claims import CONTAINER, Claim, Contrast, Estimate, Evidence, Row, Ruling
from reports.frame import Message
from reports.rules import rule, settle

NAMESPACES = ("mount", "uts", "ipc", "pid", "net", "user", "cgroup")  # the claim's seven; time came later


def separated(evidence: Evidence, metric: str, label: str, direction: str) -> dict[str, bool]:
    """Kind → whether every look of this direction found it separated, for the kinds that were probed."""
    found: dict[str, bool] = {}
    for _, value, labels in evidence.frame.values(metric, label, direction=direction):
        kind = labels.get("namespace", "")
        found[kind] = found.get(kind, True) and value == 1
    return found


def _count(evidence: Evidence, metric: str, label: str) -> Estimate:
    estimate = evidence.estimate(metric, label)
    if estimate.value is None:
        return estimate
    kinds = separated(evidence, metric, label, "inward")
    value = float(sum(kinds.get(kind, False) for kind in NAMESPACES))
    note = Message("note.of", {"total": len(NAMESPACES)})
    return replace(estimate, unit="count", value=value, interval=None, note=note)


@rule
def namespaces(evidence: Evidence, claim: Claim) -> Row:
    """Nothing that was done outside was seen inside a container, by any of the seven kinds."""
    metric = claim.metrics[0]
    container, vm = ([_count(evidence, metric, label) for label in side] for side in evidence.sides(claim))
    kinds = separated(evidence, metric, CONTAINER, "inward")
    apart = [kind for kind in NAMESPACES if kinds.get(kind)]
    shared = [kind for kind in NAMESPACES if not kinds.get(kind)]
    if not shared:
        ruled = Ruling.CONFIRMED, Message("half.namespaces.all")
    elif apart:
        names: dict[str, object] = {"names": ", ".join(apart), "rest": ", ".join(shared)}
        ruled = Ruling.QUALIFIED, Message("half.namespaces.some", names)
    else:
        ruled = Ruling.REFUTED, Message("half.namespaces.none")
    return _settled(evidence, claim, container, vm, ruled)


def _settled(
    evidence: Evidence, claim: Claim, container: Sequence[Estimate], vm: Sequence[Estimate],
    ruled: tuple[Ruling, Message], contrast: Contrast | None = None,
) -> Row:  # fmt: skip
    """As `settle`, with the container's figure alone deciding."""
    return settle(evidence, claim, container, vm, ruled, contrast or Contrast(unit="×"), deciding=container[:1])

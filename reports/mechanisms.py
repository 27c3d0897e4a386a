"""Rules for the claims about what containers are made of: one function a claim, beside those of `rules`.

These claims speak of containers alone: the virtual machine's figures stand beside and do not decide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from reports.claims import CONTAINER, Claim, Contrast, Estimate, Evidence, Row, Ruling
from reports.frame import Message
from reports.rules import rule, settle, short_names
from reports.units import human

NAMESPACES = ("mount", "uts", "ipc", "pid", "net", "user", "cgroup")  # the claim's seven; time came later
LAYER, WHOLE, CHANGED = "layer", "whole disk", "changed clusters"  # the ways of a delivery


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


def _fulfilled(evidence: Evidence, metrics: Sequence[str], label: str) -> list[str]:
    """Which yes-or-no metrics were measured and said yes in every block."""
    found = {metric: evidence.frame.blocks(metric, label).values() for metric in metrics}
    return [metric for metric, values in found.items() if values and all(value == 1 for value in values)]


@rule
def network(evidence: Evidence, claim: Claim) -> Row:
    """A container has addresses of its own, and its host reaches it over the bridge and through NAT."""
    asked = claim.metrics[:3]

    def count(label: str) -> Estimate:
        estimate = evidence.estimate(asked[0], label)
        if estimate.value is None:
            return estimate
        note = Message("note.of", {"total": len(asked)})
        value = float(len(_fulfilled(evidence, asked, label)))
        return replace(estimate, unit="count", value=value, interval=None, note=note)

    container, vm = ([count(label) for label in side] for side in evidence.sides(claim))
    yes = _fulfilled(evidence, asked, CONTAINER)
    no = [metric for metric in asked if metric not in yes]
    if not no:
        ruled = Ruling.CONFIRMED, Message("half.network.all")
    elif yes:
        names: dict[str, object] = {"names": short_names(yes), "rest": short_names(no)}
        ruled = Ruling.QUALIFIED, Message("half.network.some", names)
    else:
        ruled = Ruling.REFUTED, Message("half.network.none")
    return _settled(evidence, claim, container, vm, ruled)


def _settled(
    evidence: Evidence, claim: Claim, container: Sequence[Estimate], vm: Sequence[Estimate],
    ruled: tuple[Ruling, Message], contrast: Contrast | None = None,
) -> Row:  # fmt: skip
    """As `settle`, with the container's figure alone deciding."""
    return settle(evidence, claim, container, vm, ruled, contrast or Contrast(unit="×"), deciding=container[:1])


@rule
def layers(evidence: Evidence, claim: Claim) -> Row:
    """Changes stay with their instance, and neither a further instance nor a changed image takes much of an image."""
    image, marginal, stored, apart, copied = claim.metrics[:5]
    container, vm = ([evidence.estimate(marginal, label) for label in side] for side in evidence.sides(claim))
    first = evidence.estimate(image, CONTAINER).value
    parts = {"instance": container[0].value, "image": evidence.estimate(stored, CONTAINER, way=LAYER).value}
    seen = [labels for _, value, labels in evidence.frame.values(apart, CONTAINER) if value != 1]
    kept = evidence.frame.values(apart, CONTAINER)
    missing = [name for name, value in parts.items() if value is None] + ["layers.apart"] * (not kept)
    values: dict[str, object] = {name: percent(value, first) for name, value in parts.items() if value is not None}
    if first is None or missing:
        ruled = Ruling.UNMEASURABLE, Message("half.layers.open", {"missing": ", ".join(missing) or image})
    elif seen:
        ruled = Ruling.REFUTED, Message("half.layers.seen")
    elif max(value for value in parts.values() if value is not None) <= claim.limits["share"] * first:
        byte = evidence.estimate(copied, CONTAINER).value
        dearer = {} if byte is None else {"byte": human(byte, "B")}
        ruled = Ruling.CONFIRMED, Message("half.layers.thin_byte" if dearer else "half.layers.thin", values | dearer)
    else:
        ruled = Ruling.REFUTED, Message("half.layers.thick", values)
    return _settled(evidence, claim, container, vm, ruled)


def percent(value: float, whole: float | None) -> str:
    """`value` as a share of `whole`, in words."""
    return human(value / whole, "1") if whole else "?"


@rule
def delivery(evidence: Evidence, claim: Claim) -> Row:
    """A layer is a small part of the disk that would have to travel, and arrives sooner."""
    metric, seconds = claim.metrics[:2]
    containers, vms = evidence.sides(claim)
    container = [evidence.estimate(metric, label, way=LAYER) for label in containers]
    vm = [_whole_disk(evidence, metric, label) for label in vms]
    layer, whole = container[0].value, vm[0].value
    changed = evidence.estimate(metric, vm[0].label, way=CHANGED).value
    times = [
        evidence.estimate(seconds, label, way=way, step="total").value
        for label, way in ((CONTAINER, LAYER), (vm[0].label, WHOLE))
    ]
    contrast = Contrast(unit="×")
    if layer is None or whole is None or None in times:
        ruled = Ruling.UNMEASURABLE, Message("half.delivery.open")
    else:
        contrast = Contrast(unit="×", value=whole / layer, n=min(container[0].n, vm[0].n))
        ruled = _incremental(layer, whole, changed, sooner=times[0] < times[1], share=claim.limits["share"])  # type: ignore[operator]
    return settle(evidence, claim, container, vm, ruled, contrast)


def _incremental(
    layer: float, whole: float, changed: float | None, *, sooner: bool, share: float
) -> tuple[Ruling, Message]:
    if layer > share * whole:
        return Ruling.REFUTED, Message("half.delivery.large", {"share": percent(layer, whole)})
    if not sooner:
        return Ruling.QUALIFIED, Message("half.delivery.later")
    if changed is not None and changed <= share * whole:
        return Ruling.QUALIFIED, Message("half.delivery.both", {"changed": human(changed, "B")})
    return Ruling.CONFIRMED, Message("half.delivery.layer", {"share": percent(layer, whole)})


def _whole_disk(evidence: Evidence, metric: str, label: str) -> Estimate:
    return replace(evidence.estimate(metric, label, way=WHOLE), note=Message("note.whole_disk"))


def functions(evidence: Evidence, claim: Claim, label: str) -> dict[str, bool | None]:
    """Limit, prioritise, account, freeze → whether it holds by the claim's bounds; None where a figure is missing."""
    bounds = claim.limits

    def within(metric: str, low: float, high: float) -> bool | None:
        values = [value for _, value, _ in evidence.frame.values(metric, label)]
        return all(low <= value <= high for value in values) if values else None

    judged = {
        "limit": [
            *(within(f"enforcement.{bite}", 1, 1) for bite in ("cpu_bites", "memory_bites", "pids_bite")),
            within("enforcement.io_overrun", 0, 1 + bounds["limit"]),
        ],
        "prioritise": [within("controls.share_error", -bounds["share"], bounds["share"])],
        "account": [within("controls.accounted", 1 - bounds["account"], 1 + bounds["account"])],
        "freeze": [within("controls.frozen_cpu", 0, bounds["frozen"]), within("controls.thawed_cpu", 0.1, math.inf)],
    }
    return {name: False if False in parts else None if None in parts else True for name, parts in judged.items()}


def _working(evidence: Evidence, claim: Claim, label: str) -> Estimate:
    estimate = evidence.estimate(claim.metrics[0], label)
    if estimate.value is None:
        return estimate
    holding = [name for name, holds in functions(evidence, claim, label).items() if holds]
    return replace(
        estimate, unit="count", value=float(len(holding)), interval=None, note=Message("note.of", {"total": 4})
    )


@rule
def cgroups_do(evidence: Evidence, claim: Claim) -> Row:
    """Each of the four functions keeps within its bound."""
    container, vm = ([_working(evidence, claim, label) for label in side] for side in evidence.sides(claim))
    judged = functions(evidence, claim, CONTAINER)
    good, bad, unknown = (
        ", ".join(name for name, holds in judged.items() if holds is wanted) for wanted in (True, False, None)
    )
    if not bad and not unknown:
        ruled = Ruling.CONFIRMED, Message("half.cgroups.all")
    elif bad and good:
        ruled = Ruling.QUALIFIED, Message("half.cgroups.some", {"good": good, "bad": bad})
    elif bad and not unknown:
        ruled = Ruling.REFUTED, Message("half.cgroups.none")
    else:
        ruled = Ruling.UNMEASURABLE, Message("half.cgroups.open", {"unknown": unknown})
    return _settled(evidence, claim, container, vm, ruled)


@rule
def max_only(evidence: Evidence, claim: Claim) -> Row:
    """Beside hogs an unguarded container loses, and no guard keeps its share: then control groups only cap."""
    metric, bar = claim.metrics[0], claim.limits["kept"]
    container, vm = ([_unguarded(evidence, metric, label) for label in side] for side in evidence.sides(claim))
    kept: dict[str, float] = {}
    rounds = evidence.frame.values(metric, CONTAINER)
    busiest = max((float(labels.get("others", 0)) for _, _, labels in rounds), default=0.0)
    for _, value, labels in rounds:
        guard = labels.get("guard", "")
        kept[guard] = min(value, kept.get(guard, value))
    good = [f"{guard} ({human(kept[guard], '1')})" for guard in kept if guard != "none" and kept[guard] >= bar]
    bad = [f"{guard} ({human(kept[guard], '1')})" for guard in kept if guard != "none" and kept[guard] < bar]
    values: dict[str, object] = {"good": ", ".join(good), "bad": ", ".join(bad)}
    if busiest > claim.limits["others"]:
        ruled = Ruling.UNMEASURABLE, Message("half.guards.busy", {"cpus": f"{busiest:.1f}"})
    elif kept.get("none", 1.0) >= bar:
        ruled = Ruling.UNMEASURABLE, Message("half.guards.idle")
    elif good and not bad:
        ruled = Ruling.REFUTED, Message("half.guards.all", values)
    elif good:
        ruled = Ruling.QUALIFIED, Message("half.guards.some", values)
    else:
        ruled = Ruling.CONFIRMED, Message("half.guards.none", values)
    return _settled(evidence, claim, container, vm, ruled)


def _unguarded(evidence: Evidence, metric: str, label: str) -> Estimate:
    return replace(evidence.estimate(metric, label, guard="none"), note=Message("note.unguarded"))

"""Plans that get a place in a network."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.container.connecting import connected, joined
from runtime.container.plan import Part, Plan
from runtime.container.stepping import Step
from runtime.container.steps import Hostname, Interface, LoopbackUp
from runtime.network import links
from runtime.network.attachment import Attachment
from runtime.network.subnet import hardware

ADDRESS, GATEWAY = bytes([10, 87, 0, 2]), bytes([10, 87, 0, 1])
ATTACHMENT = Attachment(
    owner="tare-0",
    network="bridge",
    packed_address=ADDRESS,
    packed_gateway=GATEWAY,
    prefix_bits=22,
    bridge="tare0",
    interface="ve0",
    pair=links.pair("ve0", 7, ADDRESS, 1500, hardware(ADDRESS)),
    mtu=1500,
)
INTERFACE = Interface("eth0", ADDRESS, 22, GATEWAY, hardware(GATEWAY))
BEFORE, AFTER = Hostname(b"before"), Hostname(b"after")


@pytest.mark.parametrize(
    "parts",
    [(BEFORE, LoopbackUp(), AFTER), (Part((BEFORE, LoopbackUp())), AFTER), (BEFORE, Part((LoopbackUp(), AFTER)))],
)
def test_the_interface_comes_where_only_lo_would_have_come_up(parts: tuple[Step | Part, ...]) -> None:
    plan = connected(Plan(0x40000000, parts), ATTACHMENT)
    assert plan.steps == (BEFORE, INTERFACE, AFTER)
    assert plan.flat().links == ATTACHMENT.links
    assert (ATTACHMENT.address, ATTACHMENT.gateway) == ("10.87.0.2", "10.87.0.1")


def test_parts_that_have_nothing_to_do_with_it_stay_shared() -> None:
    shared = Part((BEFORE,))
    assert connected(Plan(0x40000000, (shared, LoopbackUp())), ATTACHMENT).parts[0] is shared


def test_a_plan_in_somebody_else_s_network_is_not_connected() -> None:
    with pytest.raises(ValueError, match="no"):
        connected(Plan(0, (BEFORE, AFTER)), ATTACHMENT)


def test_a_plan_that_joins_has_no_namespace_of_its_own_and_is_born_in_the_other_s() -> None:
    plan = joined(Plan(0x40000000 | 0x20000, (LoopbackUp(),)), Path("/proc/7/ns/net"))
    assert plan.namespaces == 0x20000
    assert plan.enter == (("/proc/7/ns/net", 0x40000000),)

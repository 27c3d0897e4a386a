"""The packet filter's rules as text. What they do is seen on a real kernel in tests/host."""

from __future__ import annotations

from runtime.network import nat
from runtime.network.ports import Port
from runtime.network.subnet import Subnet

ONE, TWO = Subnet.parse("10.87.0.0/16"), Subnet.parse("10.9.8.0/29")


def test_each_network_hears_its_own_and_no_other() -> None:
    lines = nat.ruleset("t", {"tare": ONE, "tanet": TWO}).splitlines()
    forward = [line.removeprefix("add rule inet t forward ") for line in lines if " rule inet t forward " in line]
    assert forward == [
        "ip daddr @subnets ct state established,related accept",
        "ip daddr @subnets ct status dnat accept",
        'iifname "tare*" ip daddr 10.87.0.0/16 accept',
        'iifname "tanet*" ip daddr 10.9.8.0/29 accept',
        "ip daddr @subnets drop",
    ]
    assert "add element inet t subnets { 10.87.0.0/16, 10.9.8.0/29 }" in lines


def test_only_the_host_itself_reaches_loopback_by_way_of_a_bridge() -> None:
    text = nat.ruleset("t", {"tare": ONE})
    assert 'add rule inet t loopback iifname "tare*" ip daddr 127.0.0.0/8 drop\n' in text


def test_the_rules_can_be_applied_again_and_leave_ports_alone() -> None:
    lines = nat.ruleset("t", {"tare": ONE}).splitlines()
    assert not any("flush map" in line or line.startswith(("delete", "create")) for line in lines)
    for chain in ("prerouting", "output", "postrouting", "forward", "loopback"):
        flushed = lines.index(f"flush chain inet t {chain}")
        assert all(at > flushed for at, line in enumerate(lines) if line.startswith(f"add rule inet t {chain} "))


def test_a_port_goes_into_the_map_of_its_host_address() -> None:
    ports = [Port(8080, 80), Port(53, 5353, "udp", "127.0.0.1")]
    assert nat.publish("t", "10.87.0.2", ports).splitlines() == [
        "create element inet t everywhere { tcp . 8080 : 10.87.0.2 . 80 }",
        "create element inet t addressed { 127.0.0.1 . udp . 53 : 10.87.0.2 . 5353 }",
    ]
    assert nat.withdraw("t", ports).splitlines() == [
        "delete element inet t everywhere { tcp . 8080 }",
        "delete element inet t addressed { 127.0.0.1 . udp . 53 }",
    ]

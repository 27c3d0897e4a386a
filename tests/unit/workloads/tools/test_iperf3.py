"""iperf3's command lines, and its report as recorded from iperf 3.12."""

from __future__ import annotations

from pathlib import Path

import pytest

from workloads.base import Invalid
from workloads.tools import iperf3

DATA = Path(__file__).parents[3] / "data/tools"


def test_report_gives_what_was_received_over_the_senders_time() -> None:
    stream = iperf3.parse((DATA / "iperf3-client.json").read_bytes())
    assert (stream.bytes, stream.elapsed_s) == (2452226048, 1.000181)


def test_error_of_the_tool_is_invalid_and_said() -> None:
    with pytest.raises(Invalid, match="Connection refused"):
        iperf3.parse((DATA / "iperf3-refused.json").read_bytes())


@pytest.mark.parametrize("output", [b"", b"iperf3: error", b"{}", b"[]", b'{"end": {"sum_received": {}}}'])
def test_output_without_a_report_is_invalid(output: bytes) -> None:
    with pytest.raises(Invalid, match="no report"):
        iperf3.parse(output)


def test_nothing_received_is_invalid() -> None:
    sums = b'{"bytes": 0, "seconds": 1.0}'
    with pytest.raises(Invalid, match="nothing was received"):
        iperf3.parse(b'{"end": {"sum_sent": %s, "sum_received": %s}}' % (sums, sums))


def test_time_is_whole_seconds_and_the_server_serves_one_client_in_the_background() -> None:
    assert iperf3.client_argv("10.0.0.1", 5201, 0.2)[-3:] == ("--time", "1", "--json")
    assert iperf3.client_argv("10.0.0.1", 5201, 2.4)[-2] == "2"
    *_, script, decimal, hexadecimal = iperf3.server_argv(5201)
    assert "--one-off --daemon" in script
    assert (decimal, hexadecimal) == ("5201", "1451")

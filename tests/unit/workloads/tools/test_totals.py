"""What a tool says it did is work that can be, or it is no figure: no zero, nothing negative, nothing without end."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from workloads.base import Invalid
from workloads.tools import fio, gauge, iperf3, stress_ng, sysbench

DATA = Path(__file__).parents[3] / "data" / "tools"
NO_TOTALS = ("0", "-1", "NaN", "Infinity", "-Infinity", "1e999", '"many"', "null", "10,5", "9" * 400)
NO_TEXTS = ("0", "-1", "nan", "inf", "1e999", "1.2.3", "10,5", "", "9" * 400)


def reports() -> Iterator[tuple[str, Callable[[bytes], object], str, tuple[str, ...], tuple[str, ...]]]:
    """A tool, its parser, what it said, what stands before each of its totals, and what must not stand there."""
    job = {"jobs": [{"error": 0, "write": {"io_bytes": 4096, "total_ios": 2, "runtime": 1500}}]}
    places = ('"io_bytes": ', '"total_ios": ', '"runtime": ')
    yield "fio", lambda text: fio.parse(text, "write"), json.dumps(job), places, NO_TOTALS
    stream = {"end": {"sum_received": {"bytes": 5}, "sum_sent": {"seconds": 1.5}}}
    yield "iperf3", iperf3.parse, json.dumps(stream), ('"bytes": ', '"seconds": '), NO_TOTALS
    yield "gauge", gauge.parse, '{"work": 5, "elapsed_s": 1.5}', ('"work": ', '"elapsed_s": '), NO_TOTALS
    cpu = (DATA / "sysbench-cpu.txt").read_text()
    yield "sysbench", sysbench.parse, cpu, ("total number of events: +", "total time: +"), NO_TEXTS
    hog = "stress-ng: metrc: [1] cpu 100 2.50 4.99 0.00 40.00 20.04\n"
    yield "stress-ng", stress_ng.parse, hog, ("cpu ", "cpu 100 "), NO_TEXTS


CASES = [
    pytest.param(parse, text, before, total, id=f"{tool}-{before.strip()}-{total[:9]}")
    for tool, parse, text, places, totals in reports()
    for before in places
    for total in totals
]


@pytest.mark.parametrize(("parse", "text", "before", "total"), CASES)
def test_totals_that_cannot_be_are_invalid(
    parse: Callable[[bytes], object], text: str, before: str, total: str
) -> None:
    parse(text.encode())
    damaged, found = re.subn(rf"({before})[0-9.]+", lambda match: match[1] + total, text, count=1)
    assert found == 1
    with pytest.raises(Invalid):
        parse(damaged.encode())

"""stress-ng's command lines, and its report as recorded from stress-ng 0.15.06."""

from __future__ import annotations

from pathlib import Path

import pytest

from workloads.base import Invalid
from workloads.tools import stress_ng

DATA = Path(__file__).parents[3] / "data/tools"


def test_metrics_give_operations_and_wall_time() -> None:
    assert stress_ng.parse((DATA / "stress-ng-cpu.stderr").read_bytes()) == stress_ng.Stress(ops=1656, elapsed_s=0.90)
    assert stress_ng.parse((DATA / "stress-ng-hdd.stderr").read_bytes()) == stress_ng.Stress(ops=13724, elapsed_s=2.01)


@pytest.mark.parametrize(
    ("output", "why"),
    [
        (b"", "it said nothing"),
        (b"aborting: temp-path '/nonexist' must be readable and writeable\n", "temp-path"),
        (b"stress-ng: metrc: [9] cpu   0  0.50  0.0  0.0  0.0  0.0\n", "nothing"),
    ],
)
def test_output_without_stress_is_invalid(output: bytes, why: str) -> None:
    with pytest.raises(Invalid, match=why):
        stress_ng.parse(output)


def test_commands_end_by_themselves_in_the_end() -> None:
    assert stress_ng.cpu_argv(4, 2.5, directory="/var/tmp")[:5] == ("stress-ng", "--cpu", "4", "--timeout", "3")
    argv = stress_ng.fsync_argv(2, 10, directory="/var/tmp", file_mib=16)
    assert argv[argv.index("--hdd-bytes") + 1] == "16M"
    assert argv[argv.index("--temp-path") + 1] == "/var/tmp"

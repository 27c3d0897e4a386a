"""The registry of workloads, subpackages included."""

from __future__ import annotations

import subprocess
import sys

import pytest

from runtime.errors import UsageError
from workloads.base import find_workload


def test_workloads_of_subpackages_are_found_by_a_process_that_knows_none() -> None:
    code = "from workloads.base import all_workloads; print(all_workloads()['leakage'].__module__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "workloads.isolation.leakage\n"


def test_unknown_workload_is_refused_with_the_known_names() -> None:
    with pytest.raises(UsageError, match=r"no such workload.*startup"):
        find_workload("startop")

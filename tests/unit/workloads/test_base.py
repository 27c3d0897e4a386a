"""The registry of workloads, subpackages included."""

from __future__ import annotations

import pytest

from runtime.errors import UsageError
from workloads.base import all_workloads, find_workload


def test_workloads_of_subpackages_are_found() -> None:
    assert all_workloads()["leakage"].__module__ == "workloads.isolation.leakage"


def test_unknown_workload_is_refused_with_the_known_names() -> None:
    with pytest.raises(UsageError, match=r"no such workload.*startup"):
        find_workload("startop")

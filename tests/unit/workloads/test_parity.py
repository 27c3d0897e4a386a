"""The parity script: its output read, and run for real in a plain shell on this host."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from runtime.errors import TareError
from runtime.instance import ExecResult
from tests.fakes import Behaviour, FakeInstance
from tests.unit.workloads.visits import visit
from workloads import parity


def answering(stdout: bytes, exit_code: int = 0) -> Behaviour:
    def reply(instance: FakeInstance, argv: Sequence[str]) -> ExecResult:
        return ExecResult(tuple(argv), exit_code, stdout, b"no shell here", 1)

    return Behaviour(reply=reply)


def test_facts_are_read_line_by_line_and_absent_ones_are_absent(tmp_path: Path) -> None:
    context, _ = visit(tmp_path, answering(b"cpus=2\nroot_mount=overlay rw,lowerdir=a:b\nswap=\nnoise\nx==y\n"))
    assert parity.describe(context.shared) == {"cpus": "2", "root_mount": "overlay rw,lowerdir=a:b", "x": "=y"}


def test_script_that_fails_is_an_error(tmp_path: Path) -> None:
    context, _ = visit(tmp_path, answering(b"", 127))
    with pytest.raises(TareError, match="no shell here"):
        parity.describe(context.shared)


def test_script_describes_this_host_in_a_plain_shell(tmp_path: Path) -> None:
    def run_here(instance: FakeInstance, argv: Sequence[str]) -> ExecResult:
        done = subprocess.run(argv, capture_output=True, timeout=30, check=False)
        return ExecResult(tuple(argv), done.returncode, done.stdout, done.stderr, 1)

    context, _ = visit(tmp_path, Behaviour(reply=run_here))
    facts = parity.describe(context.shared)
    assert facts["kernel"] == os.uname().release
    assert facts["cpus"] == str(len(os.sched_getaffinity(0)))
    assert int(facts["memory_total_kib"]) > 0
    assert {"cpu_flags", "root_type", "machine", "open_files"} <= set(facts)

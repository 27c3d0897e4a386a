"""What pulling and unpacking an image costs, beside skopeo and umoci in the same interleaved run. Asserts no speed.

Times and ratios stand in the benchmark's `extra_info`. All are whole commands, and every round begins with nothing
but the registry's own copy.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from runtime.command import run
from runtime.driver import Host
from tests.conftest import skip_or_fail
from tests.engines import registry

ROUNDS = 5
ROOT = Path(__file__).resolve().parents[2]
IMAGE = "tare/debian:bookworm"


@pytest.fixture
def server(bench_host: Host, tmp_path: Path) -> Iterator[str]:
    """A registry with the bench image, its layers compressed as other tools push them."""
    for program in ("skopeo", "umoci"):
        if shutil.which(program) is None:
            skip_or_fail(f"{program} is not installed")
    with registry(tmp_path / "registry") as host:
        store = bench_host.root / "images"
        how = ("--dest-tls-verify=false", "--dest-compress-format", "gzip", "--dest-compress")
        run(["skopeo", "copy", *how, f"oci:{store}:{IMAGE}", f"docker://{host}/{IMAGE}"], timeout_s=300)
        yield host


def test_pull_and_unpack(benchmark: Any, server: str, tmp_path: Path) -> None:
    name, places = f"{server}/{IMAGE}", [tmp_path / name for name in ("tare", "oci", "umoci")]
    ours_s, theirs_s = list[float](), list[float]()

    def cold() -> None:
        for directory in places:
            shutil.rmtree(directory, ignore_errors=True)
        run(["sync", "--file-system", str(tmp_path)], timeout_s=300)  # what one wrote must not burden the next

    def theirs() -> None:
        cold()
        begin = time.perf_counter()
        copy = ["skopeo", "copy", "--quiet", "--src-tls-verify=false", f"docker://{name}", f"oci:{tmp_path}/oci:x"]
        subprocess.run(copy, check=True)
        unpack = ["umoci", "unpack", "--image", f"{tmp_path}/oci:x", str(tmp_path / "umoci")]
        subprocess.run(unpack, check=True, capture_output=True)
        theirs_s.append(time.perf_counter() - begin)
        cold()

    def ours() -> None:
        begin = time.perf_counter()
        command = [sys.executable, str(ROOT / "tare.py"), "pull", "--quiet", name]
        subprocess.run(
            command, check=True, capture_output=True, env={**os.environ, "TARE_ROOT": str(tmp_path / "tare")}
        )
        ours_s.append(time.perf_counter() - begin)

    benchmark.pedantic(ours, setup=theirs, rounds=ROUNDS)
    theirs()
    # Each of ours lies between two of theirs: what the host did meanwhile slowed both.
    ratios = [2 * ours / sum(around) for ours, around in zip(ours_s, pairwise(theirs_s), strict=True)]
    benchmark.extra_info["tare_s"] = round(statistics.median(ours_s), 3)
    benchmark.extra_info["skopeo_umoci_s"] = round(statistics.median(theirs_s), 3)
    benchmark.extra_info["ratio_to_skopeo_umoci"] = round(statistics.median(ratios), 3)
    benchmark.extra_info["ratios"] = [round(ratio, 3) for ratio in ratios]
    print({key: benchmark.extra_info[key] for key in sorted(benchmark.extra_info)})  # noqa: T201

"""What pulling and unpacking an image costs, beside skopeo and umoci in the same interleaved run. Asserts no speed.

Times and ratios stand in the benchmark's `extra_info`. Every round begins with nothing but the registry's own copy.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.command import run
from runtime.driver import Host
from runtime.images.pull import pull
from runtime.images.store import ImageStore
from runtime.spec import ImageRef
from tests.conftest import skip_or_fail
from tests.engines import registry

ROUNDS = 3
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
    name, times = f"{server}/{IMAGE}", {"tare": list[float](), "skopeo_umoci": list[float]()}

    def settled() -> None:
        for directory in ("tare", "oci", "umoci"):
            shutil.rmtree(tmp_path / directory, ignore_errors=True)
        run(["sync", "--file-system", str(tmp_path)], timeout_s=300)  # what one wrote must not burden the next

    def others() -> None:
        settled()
        begin = time.perf_counter()
        copy = ["skopeo", "copy", "--quiet", "--src-tls-verify=false", f"docker://{name}", f"oci:{tmp_path}/oci:x"]
        subprocess.run(copy, check=True)
        unpack = ["umoci", "unpack", "--image", f"{tmp_path}/oci:x", str(tmp_path / "umoci")]
        subprocess.run(unpack, check=True, capture_output=True)
        times["skopeo_umoci"].append(time.perf_counter() - begin)
        settled()

    def ours() -> None:
        begin = time.perf_counter()
        pull(ImageStore(tmp_path / "tare"), ImageRef.parse(name))
        times["tare"].append(time.perf_counter() - begin)

    benchmark.pedantic(ours, setup=others, rounds=ROUNDS)
    medians = {key: statistics.median(values) for key, values in times.items()}
    benchmark.extra_info.update({f"{key}_s": round(value, 3) for key, value in medians.items()})
    benchmark.extra_info["ratio_to_skopeo_umoci"] = round(medians["tare"] / medians["skopeo_umoci"], 3)
    print({key: benchmark.extra_info[key] for key in sorted(benchmark.extra_info)})  # noqa: T201

"""`tare bench --tune` on this host's own kernel: one setting really changed, its owner killed, and put back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import tune
from runtime import tuning

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
TUNE_AND_DIE = """
import os, signal
from harness import tune
from runtime.driver import host_from_env
with tune.tuned(host_from_env().run) as told:
    print(told, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def untuned() -> Iterator[None]:
    """A host whose huge pages are as the doctor does not want them."""
    before = tuning.reading(HUGE_PAGES)
    HUGE_PAGES.write_text("always")
    try:
        yield
    finally:
        HUGE_PAGES.write_text(before)


@pytest.mark.usefixtures("untuned")
def test_what_a_killed_process_changed_is_put_back_by_clean(tmp_path: Path) -> None:
    assert "huge pages" in {each.name for each in tune.plan()}
    environment = {**os.environ, "TARE_ROOT": str(tmp_path)}
    died = subprocess.run(
        [sys.executable, "-c", TUNE_AND_DIE], env=environment, capture_output=True, text=True, check=False
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert "'huge pages': 'always → madvise'" in died.stdout
    assert tuning.reading(HUGE_PAGES) == "madvise"
    doctor = subprocess.run(
        [sys.executable, "-m", "tare", "doctor"], env=environment, capture_output=True, text=True, check=False
    )
    assert "a killed run has left changed huge pages: always → madvise" in " ".join(doctor.stdout.split())
    cleaned = subprocess.run(
        [sys.executable, "-m", "tare", "clean"], env=environment, capture_output=True, text=True, check=True
    )
    assert "removed the tuning of huge pages: always" in cleaned.stdout
    assert tuning.reading(HUGE_PAGES) == "always"
    assert tuning.note(tmp_path / "run") is None

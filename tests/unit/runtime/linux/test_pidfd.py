"""A process held by a descriptor."""

from __future__ import annotations

import signal
import subprocess

import pytest

from runtime.linux.pidfd import Pidfd


def test_the_end_is_seen_and_later_signals_are_harmless() -> None:
    with subprocess.Popen(["sleep", "60"]) as process, Pidfd.of(process.pid) as pidfd:
        assert not pidfd.wait(0)
        pidfd.signal(signal.SIGKILL)
        assert pidfd.wait(10)
        process.wait()
        pidfd.signal(signal.SIGKILL)
        pidfd.close()
        pidfd.close()


def test_no_such_process() -> None:
    with pytest.raises(ProcessLookupError):
        Pidfd.of(2**22 - 1)

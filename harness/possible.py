"""Whether an instance can have done what its CPU account says: not more than its limit and the time allow.

An account, a limit or a clock that is wrong shows here, whatever the workload; one that is only a little off does not.
"""

from __future__ import annotations

import os
import time

from runtime.driver import Kind
from workloads.base import Context, Invalid

FACTOR = 1.5  # a machine whose limit is on its vCPUs alone spends some beside them
BURST_S = 0.2  # two of the scheduler's periods, in which a quota may be had at once


class Account:
    """The CPU account of a context's shared instance from now on."""

    def __init__(self, context: Context) -> None:
        self._context = context
        limit = context.prepared.spec.limits.cpus
        self._cpus = limit if limit and context.driver.kind is not Kind.NATIVE else float(os.cpu_count() or 1)
        self._cpu_ns, self._at_ns = self._read()

    def _read(self) -> tuple[int | None, int]:
        """None where there is no instance (any more) or no account."""
        instance = self._context.instance
        return instance.usage().cpu_ns if instance and instance.alive() else None, time.monotonic_ns()

    def demand_possible(self) -> None:
        """Raise Invalid when more than 1.5 × its CPUs × the time, and a burst, has gone by."""
        cpu_ns, at_ns = self._read()
        if cpu_ns is None or self._cpu_ns is None:
            return
        used_s, elapsed_s = (cpu_ns - self._cpu_ns) / 1e9, (at_ns - self._at_ns) / 1e9
        if used_s > FACTOR * self._cpus * elapsed_s + BURST_S:
            raise Invalid("work", f"{used_s:.2f} s of CPU in {elapsed_s:.2f} s, where it may use {self._cpus:g} CPUs")

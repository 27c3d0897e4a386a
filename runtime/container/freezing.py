"""Pausing and resuming, for every instance whose processes are stopped and continued from outside.

Only that it happens once each; how it is done is each driver's. Not for virtual machines, whose vCPUs stop instead.
"""

from __future__ import annotations

from abc import abstractmethod

from runtime.instance import Instance


class Freezable(Instance):
    """An instance that is paused by freezing its processes."""

    _paused = False

    def pause(self) -> None:
        """Freeze; a second time does nothing."""
        if not self._paused:
            self._freeze(True)
            self._paused = True

    def resume(self) -> None:
        """Thaw; a second time does nothing."""
        if self._paused:
            self._freeze(False)
            self._paused = False

    @abstractmethod
    def _freeze(self, frozen: bool) -> None:
        """Stop or continue every process. Raises TareError, and then it counts as what it was."""

"""Pausing and resuming, each once; what a driver does for it is recorded."""

from __future__ import annotations

import pytest

from runtime.container.freezing import Freezable
from runtime.errors import TareError


class Recorded(Freezable):
    """Fails as often as it is told to."""

    def __init__(self) -> None:
        self.asked: list[bool] = []
        self.failures = 0

    def _freeze(self, frozen: bool) -> None:
        self.asked.append(frozen)
        if self.failures:
            self.failures -= 1
            raise TareError("freeze", "refused")


Recorded.__abstractmethods__ = frozenset()


@pytest.fixture
def instance() -> Recorded:
    return Recorded()  # type: ignore[abstract]  # all the rest is not asked for here


def test_what_is_paused_is_not_paused_again_and_what_runs_is_not_resumed(instance: Recorded) -> None:
    instance.resume()
    instance.pause()
    instance.pause()
    instance.resume()
    instance.resume()
    assert instance.asked == [True, False]


def test_a_pause_that_failed_can_be_tried_again_and_leaves_nothing_to_resume(instance: Recorded) -> None:
    instance.failures = 1
    with pytest.raises(TareError, match="refused"):
        instance.pause()
    instance.resume()
    instance.pause()
    assert instance.asked == [True, True]


def test_a_resumption_that_failed_can_be_tried_again(instance: Recorded) -> None:
    instance.pause()
    instance.failures = 1
    with pytest.raises(TareError, match="refused"):
        instance.resume()
    instance.resume()
    assert instance.asked == [True, False, False]

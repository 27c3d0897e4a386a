"""Which containers the keeper has started again after their end, and when, as `--restart` says. Lean.

Nobody polls: the keeper's loop waits. A start needs what a keeper lacks (addresses, control groups, a plan), so a
program of ours is run that asks for it as any command does. Who waits is known to the keeper alone, and dies with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

from runtime.container.kept import Session
from runtime.container.loop import Loop

NO, ON_FAILURE, ALWAYS, UNLESS_STOPPED = "no", "on-failure", "always", "unless-stopped"
FIRST_DELAY_S: Final = 0.1
LONGEST_DELAY_S: Final = 60.0
PROVEN_S: Final = 10.0
"""After so long a life the next delay is the first one again."""


def is_due(policy: tuple[str, int], code: int, restarts: int) -> bool:
    """Whether what ended with `code`, after so many restarts, is to be started again."""
    name, most = policy
    if name == ON_FAILURE:
        return code != 0 and (most == 0 or restarts < most)
    return name != NO


def next_delay_s(last_s: float, lived_s: float) -> float:
    """After `last_s`, which is 0 for a first restart, and a life of `lived_s`."""
    if not last_s or lived_s >= PROVEN_S:
        return FIRST_DELAY_S
    return min(last_s * 2, LONGEST_DELAY_S)


class Ended(Protocol):
    """What is needed of a container that waits."""

    id: str

    @property
    def finished_at(self) -> str:
        """When it ended."""

    def start_again(self, done: Callable[[], None]) -> None:
        """Run the program that does it; `done` is called at its end."""

    def stay_ended(self, why: str) -> None:
        """Write down that it is not started again, and why if that is a failure."""

    def end_of(self, session: Session) -> None:
        """Tell a session how it ended."""


class Waiting:
    """One that is to be started again; `followers` go on with its next life."""

    def __init__(self, container: Ended, delay_s: float) -> None:
        self.container = container
        self.delay_s = delay_s
        self.followers: list[Session] = []


class Restarts:
    """All that wait. `idle` is called when one has given up."""

    def __init__(self, loop: Loop, idle: Callable[[], None]) -> None:
        self._loop = loop
        self._idle = idle
        self._waiting: dict[str, Waiting] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def find(self, container_id: str) -> Waiting | None:
        """The one that waits under this id."""
        return self._waiting.get(container_id)

    def enter(self, container: Ended, delay_s: float) -> None:
        """It waits from now on, but for nothing before `begin`."""
        self._waiting[container.id] = Waiting(container, delay_s)

    def begin(self, container: Ended, followers: Sequence[Session]) -> bool:
        """Its end is complete: let its delay begin. Whether it waits at all, with `followers`."""
        waiting = self._waiting.get(container.id)
        if waiting is None or waiting.container is not container:
            return False
        waiting.followers += followers
        self._loop.after(waiting.delay_s, lambda: self._start(waiting))
        return True

    def take(self, container_id: str) -> Waiting | None:
        """It is being started: it does not wait any more."""
        return self._waiting.pop(container_id, None)

    def forgo(self, container_id: str, why: str = "") -> None:
        """It is not started again; one that does not wait is no error."""
        waiting = self.take(container_id)
        if waiting is not None:
            waiting.container.stay_ended(why)
            for session in waiting.followers:
                waiting.container.end_of(session)
            self._idle()

    def fail(self, container_id: str, finished_at: str, why: str) -> None:
        """It could not be started after the end at `finished_at`; if it has run since, that is no matter any more."""
        waiting = self._waiting.get(container_id)
        if waiting is not None and waiting.container.finished_at == finished_at:
            self.forgo(container_id, why)

    def _start(self, waiting: Waiting) -> None:
        if self._is_current(waiting):
            try:
                waiting.container.start_again(lambda: self._started(waiting))
            except OSError as error:
                self.forgo(waiting.container.id, f"not started again: {error}")

    def _started(self, waiting: Waiting) -> None:
        """The program has ended; it waits still if that has done nothing."""
        if self._is_current(waiting):
            self.forgo(waiting.container.id, "not started again: what was to do it has ended")

    def _is_current(self, waiting: Waiting) -> bool:
        return self._waiting.get(waiting.container.id) is waiting

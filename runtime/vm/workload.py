"""The main program of a guest, where its spec names one: begun once the guest can, and the guest ends with it.

As a container's: its exit code is the instance's, and nothing else is run beside it. The agent runs it, because a
guest's first process is its init. Not what a guest without a program does (`guest`).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress

from runtime.channel import Channel
from runtime.errors import TareError
from runtime.vm.attached import environment

BOOT_TIMEOUT_S = 600.0
OUTPUT_KEPT_BYTES = 1 << 20


class Workload:
    """Runs `argv` over `channel` as soon as the guest is ready, then has the guest power off."""

    def __init__(self, channel: Channel, argv: Sequence[str], env: Mapping[str, str]) -> None:
        self.exit_code: int | None = None
        self._channel = channel
        self._argv = tuple(argv)
        self._env = environment(env, terminal=False)
        self._output = bytearray()
        self._error: TareError | None = None
        self._begun = threading.Event()
        self._ended = threading.Event()
        threading.Thread(target=self._run, name="tare-workload", daemon=True).start()

    def wait_begun(self, timeout_s: float) -> bool:
        """Whether it has begun in time. Raises TareError when the guest is lost before."""
        begun = self._begun.wait(timeout_s)
        if self._error is not None:
            raise TareError(self._error.what, self._error.why, self._error.do)
        return begun

    def wait_ended(self, timeout_s: float) -> int | None:
        """Its exit code (128 + signal); None when it runs still. Raises TareError when the guest is lost before."""
        self._ended.wait(timeout_s)
        if self._error is not None:
            raise TareError(self._error.what, self._error.why, self._error.do)
        return self.exit_code

    def output(self) -> bytes:
        """What it has printed, the latest MiB of it."""
        return bytes(self._output[-OUTPUT_KEPT_BYTES:])

    def _run(self) -> None:
        try:
            self._channel.wait("ready", BOOT_TIMEOUT_S)
            with self._channel.running(self._argv, self._keep, env=self._env) as command:
                self._begun.set()
                self.exit_code = command.wait()
        except TareError as error:
            self._error = error
        finally:
            self._begun.set()
            self._ended.set()
            with suppress(TareError):
                self._channel.stop()

    def _keep(self, _stream: int, data: bytes) -> None:
        self._output += data
        if len(self._output) > 2 * OUTPUT_KEPT_BYTES:
            del self._output[:-OUTPUT_KEPT_BYTES]

"""The real guest agent for tests: built from its source, started on a socketpair."""

from __future__ import annotations

import select
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from runtime import command
from runtime.channel import Channel
from runtime.instance import Timeline
from tests.conftest import skip_or_fail

SOURCE = Path(__file__).parents[1] / "runtime/guest/agent.c"


def build(directory: Path) -> Path:
    """The agent, compiled as an image's recipe does."""
    if shutil.which("gcc") is None:
        skip_or_fail("needs gcc")
    flags = ["-O2", "-static", "-Wall", "-Wextra", "-Werror", "-std=gnu11"]
    command.run(["gcc", *flags, str(SOURCE), "-o", str(directory / "agent")], timeout_s=120)
    return directory / "agent"


class Agent:
    """A running agent and the host's raw end of its channel, `sock`; a context manager that ends both."""

    def __init__(self, program: Path, *options: str, wrapper: Sequence[str] = (), env: dict[str, str] | None = None):
        self.sock, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [*wrapper, str(program), "--fd", str(theirs.fileno()), *options],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=env,
                restore_signals=False,  # so that the interpreter's ignored SIGPIPE reaches the agent
            )
        self.channel: Channel | None = None

    def talk(self) -> Channel:
        """A Channel over `sock`, once the service answers."""
        self.channel = Channel(self.sock, Timeline())
        self.channel.wait("ready", 20)
        return self.channel

    def end(self) -> tuple[int, str]:
        """The exit code and error output, once it has ended by itself."""
        _, stderr = self.process.communicate(timeout=20)
        return self.process.returncode, stderr.decode()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.channel is not None:
            self.channel.close()
        self.sock.close()
        try:
            self.process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise


def gone(pidfd: int, timeout_s: float = 20) -> bool:
    """Whether the process ends within `timeout_s`, by the kernel's own word."""
    return bool(select.select([pidfd], [], [], timeout_s)[0])

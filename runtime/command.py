"""The one way to run an outside program: a list of words, a time-out, and an error that can be pasted into a shell.

Not for what runs inside instances (that is `Instance.exec`) and never in a timed interval.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import TareError, printable


@dataclass(frozen=True, slots=True)
class CompletedCommand:
    """What a program that succeeded printed."""

    stdout: bytes
    stderr: bytes


def run(
    argv: Sequence[str],
    *,
    timeout_s: float,
    input: bytes | None = None,  # noqa: A002 - subprocess's name
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> CompletedCommand:
    """Run `argv` and return its output.

    Raises TareError when the program is missing, fails, or is not done after `timeout_s` (it and its
    process group are killed then), with the whole command and the end of its stderr.
    """
    command = shlex.join(argv)
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
            cwd=cwd,
            process_group=0,
        )
    except OSError as error:
        raise TareError(
            f"command {command}", f"{argv[0]}: {error.strerror}", "run ./bootstrap to install it"
        ) from error
    with process:
        try:
            stdout, stderr = process.communicate(input, timeout_s)
        except BaseException as error:
            _kill_group(process)
            if isinstance(error, subprocess.TimeoutExpired):
                raise TareError(f"command {command}", f"not done after {timeout_s:g} s") from error
            raise
    if process.returncode != 0:
        tail = stderr.decode(errors="replace").strip()[-600:] or "it said nothing"
        raise TareError(f"command {command}", f"exit {process.returncode}: {tail}")
    return CompletedCommand(stdout, stderr)


def program_facts(path: Path) -> dict[str, str]:
    """Which program that is: where, what it says of its version, the digest of its file. Raises TareError, OSError."""
    said = run([str(path), "--version"], timeout_s=20).stdout.decode(errors="replace").splitlines()
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"program": str(path), "version": printable(said[0]) if said else "it does not say", "sha256": digest}


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        process.kill()

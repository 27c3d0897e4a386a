# ruff: noqa: T201, PTH123
# Printing is what it is for; pathlib is too dear for a command that an engine runs four times a container.
"""Where `tare oci` says what went wrong: standard error, and the log file that engines read."""

from __future__ import annotations

import json
import sys

from runtime.commands.goflags import Values


class Log:
    """What engines read of errors: `--log FILE`, one line a message, as text or as JSON."""

    def __init__(self, common: Values) -> None:
        self._path = common.text("log")
        self._json = common.text("log-format", "text") == "json"

    def error(self, text: str) -> None:
        """Note an error, and say it on standard error."""
        print(f"tare: {text}", file=sys.stderr)
        self._write("error", text)

    def warning(self, text: str) -> None:
        """Note what failed without being an error; said on standard error where there is no log."""
        if not self._path:
            print(f"tare: warning: {text}", file=sys.stderr)
        self._write("warning", text)

    def _write(self, level: str, text: str) -> None:
        if not self._path:
            return
        from time import gmtime, strftime

        now = strftime("%Y-%m-%dT%H:%M:%SZ", gmtime())
        words = {"level": level, "msg": text, "time": now}
        line = json.dumps(words) if self._json else f"time={json.dumps(now)} level={level} msg={json.dumps(text)}"
        try:
            with open(self._path, "a") as file:
                file.write(f"{line}\n")
        except OSError as error:
            print(f"tare: log file {self._path}: {error.strerror}", file=sys.stderr)

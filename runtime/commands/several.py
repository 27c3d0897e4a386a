"""One act on every name that a command was given: what fails is said, and does not keep the others from it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import click

from runtime.errors import TareError


def each(names: Sequence[str], do: Callable[[str], str | None]) -> int:
    """Do it for every name, print what comes of it (or the name), and go on when one fails: the exit code."""
    code = 0
    for name in names:
        try:
            click.echo(do(name) or name)
        except TareError as error:
            if os.environ.get("TARE_DEBUG"):
                raise
            click.echo(f"tare: {error}", err=True)
            code = 1
    return code

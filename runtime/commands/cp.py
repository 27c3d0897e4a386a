"""What `tare cp` and `tare vm cp` have in common: their words, which side is this host, who owns what is copied out.

Not how anything is copied: each command hands over its two ways.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import click

from runtime.errors import UsageError


def cp_command(
    metavar: str,
    kind: str,
    summary: str,
    out: Callable[[str, str, str, bool, bool], None],
    into: Callable[[str, str, str, bool, bool], None],
) -> click.Command:
    """The command for what is called `kind` in errors and `metavar` in help.

    `out(name, path, target, archive, follow)` copies to this host, `into(path, name, target, archive, follow)` from it.
    """

    @click.command("cp", help=f"{summary} A `-` is a tar archive on stdin or stdout.")
    @click.argument("source_path", metavar=f"[{metavar}:]SOURCE|-")
    @click.argument("target_path", metavar=f"[{metavar}:]TARGET|-")
    @click.option(
        "-a", "--archive", is_flag=True, help="Keep owners; otherwise root inside, or the user here, gets them."
    )
    @click.option("-L", "--follow-link", is_flag=True, help="Copy what a link in SOURCE leads to, not the link.")
    @click.option("-q", "--quiet", is_flag=True, expose_value=False, help="Say nothing; cp says nothing anyway.")
    def cp(source_path: str, target_path: str, archive: bool, follow_link: bool) -> None:
        come, go = (_inside(path, metavar, kind) for path in (source_path, target_path))
        if come is not None and go is None:
            out(*come, target_path, archive, follow_link)
        elif go is not None and come is None:
            into(source_path, *go, archive, follow_link)
        else:
            why = f"both are in {kind}s" if come else f"neither is in a {kind}"
            raise UsageError(f"copy {source_path} to {target_path}", why, f"use {metavar}:PATH for one of them")

    return cp


def mine(_uid: int, _gid: int) -> tuple[int, int]:
    """Without -a, whoever copies owns what is copied out."""
    return os.geteuid(), os.getegid()


def _inside(text: str, metavar: str, kind: str) -> tuple[str, str] | None:
    """Split NAME:PATH; None for a path of this host (with a colon in it only after a slash or a dot)."""
    name, colon, path = text.partition(":")
    if not colon or text.startswith(("/", ".")) or "/" in name:
        return None
    if not name or not path:
        raise UsageError(f"copy of {text!r}", f"not a {kind} and a path", f"use {metavar}:PATH")
    return name, path

"""The process of `exec`: the container's own, with other words, user, directory and variables over it."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass, replace
from pathlib import Path

from runtime.container.config import Capabilities, Config, Process, User
from runtime.container.state import Record
from runtime.container.users import identify
from runtime.errors import UsageError
from runtime.linux import capabilities


@dataclass(frozen=True, slots=True, kw_only=True)
class Further:
    """What is asked for; None is the container's own."""

    argv: tuple[str, ...]
    env: tuple[str, ...] = ()
    cwd: str | None = None
    user: str | None = None
    terminal: bool = False
    privileged: bool = False


def process_of(config: Config, record: Record, further: Further, last_capability: int) -> Process:
    """The process to run. Users are looked up in the container's files as they are now. Raises TareError."""
    base = config.process or Process()
    if not further.argv:
        raise UsageError("exec", "no command", "name one")
    if further.cwd is not None and not further.cwd.startswith("/"):
        raise UsageError(f"working directory {further.cwd!r}", "not an absolute path", "begin it with /")
    env = dict(word.partition("=")[::2] for word in base.env)
    if further.terminal:
        env.setdefault("TERM", "xterm")
    user = base.user
    if further.user is not None:
        layers = (*(Path(layer) for layer in record.layers), record.directory / "upper")
        identity = identify(layers, further.user)
        user = User(
            uid=identity.uid,
            gid=identity.gid,
            umask=base.user.umask,
            additional_gids=(identity.gid, *identity.groups),
        )
        env["HOME"] = identity.home
    for word in further.env:
        key, equals, value = word.partition("=")
        if equals:
            env[key] = value
        else:
            env.pop(key, None)
    return replace(
        base,
        args=further.argv,
        env=tuple(f"{key}={value}" for key, value in env.items()),
        cwd=posixpath.normpath(further.cwd or base.cwd),
        terminal=further.terminal,
        console_size=None,
        user=user,
        capabilities=_capabilities(base, user, further, last_capability),
    )


def _capabilities(base: Process, user: User, further: Further, last: int) -> Capabilities | None:
    """As the container's; a user who is not root holds none, and root all of the bounding set."""
    if further.privileged:
        bounding = capabilities.everything(last)
    elif base.capabilities is None:
        return None
    else:
        bounding = base.capabilities.bounding
    held = bounding if user.uid == 0 else ()
    return Capabilities(bounding=bounding, effective=held, permitted=held)

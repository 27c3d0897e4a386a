"""Users and groups by name, from the /etc/passwd and /etc/group of an image's layers; never the host's.

Names are Docker's: `USER[:GROUP]`, each a name or a number. The layers are read as overlayfs would show them, component
by component through descriptors, so that no link leads out of the image. What is mounted over them is not seen.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from runtime.errors import TareError
from runtime.record import record

ACCOUNTS = "/etc/passwd"
GROUP = "/etc/group"
LARGEST_BYTES = 4 << 20
_HIGHEST = 2**31 - 1
_LINKS = 40
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_OPAQUE = "trusted.overlay.opaque"


@record
class Identity:
    """Who a process is inside the container. `groups` are the additional ones, the first one not among them."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    home: str = "/"


@record
class _Account:
    name: str
    uid: int
    gid: int
    home: str


@record
class _Group:
    name: str
    gid: int
    members: tuple[str, ...]


def identify(layers: Sequence[Path], user: str = "", groups: Sequence[str] = ()) -> Identity:
    """The identity that `user` names ("" is uid 0), with `groups` beside those it is a member of.

    `layers` are directories, topmost last. A name must be there, a number need not. Raises TareError.
    """
    name, _, group_name = user.partition(":")
    account = _account(_accounts(layers), name)
    known = _groups(layers)
    if group_name:
        gid = _gid(known, group_name)
        member_of: Sequence[int] = ()
    else:
        gid = account.gid
        member_of = [group.gid for group in known if account.name and account.name in group.members]
    more = [_gid(known, group) for group in groups]
    others = tuple(dict.fromkeys(number for number in (*member_of, *more) if number != gid))
    return Identity(uid=account.uid, gid=gid, groups=others, home=account.home or "/")


def read_file(layers: Sequence[Path], path: str) -> bytes | None:
    """A regular file of the image, at most LARGEST_BYTES of it; None when there is none. Raises TareError for loops."""
    for _ in range(_LINKS):
        found = _look(layers, path)
        if not isinstance(found, str):
            return found
        path = found
    raise TareError(f"{path} of the image", os.strerror(errno.ELOOP), "use another image")


def _account(accounts: Iterator[_Account], name: str) -> _Account:
    """The first one of this name or number; a number alone if none has it."""
    number = _number(name or "0", "user")
    for account in accounts:
        if account.name == name or account.uid == number:
            return account
    if number is None:
        raise TareError(
            f"user {name!r}", f"no matching entry in the image's {ACCOUNTS}", "use a number or another name"
        )
    return _Account(name="", uid=number, gid=0, home="/root" if number == 0 else "/")


def _gid(groups: Sequence[_Group], name: str) -> int:
    number = _number(name, "group")
    for group in groups:
        if group.name == name or group.gid == number:
            return group.gid
    if number is None:
        raise _unknown("group", name, GROUP)
    return number


def _unknown(what: str, name: str, file: str) -> TareError:
    return TareError(f"{what} {name!r}", f"no matching entry in the image's {file}", "use a number or another name")


def _number(text: str, what: str) -> int | None:
    """The id that `text` is, None if it is a name. Raises TareError for ids beyond Docker's."""
    if not (text.isascii() and text.isdigit()):
        return None
    if len(text) > 10 or int(text) > _HIGHEST:
        raise TareError(f"{what} {text[:40]}", f"ids are in the range 0-{_HIGHEST}", "use a smaller number")
    return int(text)


def _accounts(layers: Sequence[Path]) -> Iterator[_Account]:
    for name, _, uid, gid, _, home in _lines(layers, ACCOUNTS, 6):
        if _is_id(uid) and _is_id(gid):
            yield _Account(name=name, uid=int(uid), gid=int(gid), home=home)


def _groups(layers: Sequence[Path]) -> tuple[_Group, ...]:
    return tuple(
        _Group(name=name, gid=int(gid), members=tuple(members.split(",")))
        for name, _, gid, members in _lines(layers, GROUP, 4)
        if _is_id(gid)
    )


def _is_id(text: str) -> bool:
    """A line whose id is no number is passed over: taking it for 0, as some do, would make its owner root."""
    return text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= _HIGHEST


def _lines(layers: Sequence[Path], path: str, fields: int) -> Iterator[list[str]]:
    content = read_file(layers, path) or b""
    for line in content.decode(errors="surrogateescape").split("\n"):
        words = line.strip().split(":")
        if len(words) >= fields - 1 and words[0]:
            yield [*words, ""][:fields]


def _look(layers: Sequence[Path], path: str) -> bytes | str | None:
    """The content of a file, another path when a link is met on the way, None when there is nothing to read."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    with ExitStack() as stack:
        trail = [_open_layers(layers, stack)]
        for index, part in enumerate(parts):
            if part == "..":
                trail = trail[:-1] or trail
                continue
            found = _step(trail[-1], part, stack)
            if isinstance(found, int):
                return _content(found) if index == len(parts) - 1 else None
            if isinstance(found, str):
                # "..": what came before it is a real directory by now, so that taking the words away is right
                base = "" if found.startswith("/") else "/".join(_walked(parts[:index]))
                return "/".join(("", base, found, *parts[index + 1 :]))
            if not found:
                return None
            trail.append(found)
    return None


def _walked(parts: Sequence[str]) -> list[str]:
    """Components without `..`."""
    walked: list[str] = []
    for part in parts:
        if part == "..":
            walked = walked[:-1]
        else:
            walked.append(part)
    return walked


def _open_layers(layers: Sequence[Path], stack: ExitStack) -> tuple[int, ...]:
    return tuple(_kept(os.open(layer, _DIRECTORY), stack) for layer in reversed(layers))


def _kept(descriptor: int, stack: ExitStack) -> int:
    stack.callback(os.close, descriptor)
    return descriptor


def _step(directories: Sequence[int], name: str, stack: ExitStack) -> tuple[int, ...] | int | str:
    """One component down, from the topmost of merged directories.

    Merged directories again (none where there is nothing), a file's descriptor, or a link's target.
    """
    merged: list[int] = []
    for directory in directories:
        try:
            mode = os.stat(name, dir_fd=directory, follow_symlinks=False)
            if stat.S_ISDIR(mode.st_mode):
                merged.append(_kept(os.open(name, _DIRECTORY, dir_fd=directory), stack))
                if _is_opaque(merged[-1]):
                    break
                continue
            if merged:
                break
            if stat.S_ISLNK(mode.st_mode):
                return os.readlink(name, dir_fd=directory)
            if stat.S_ISREG(mode.st_mode):
                return _kept(os.open(name, _FILE, dir_fd=directory), stack)
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENOTDIR, errno.EINVAL, errno.ENAMETOOLONG):
                raise
        break  # a whiteout, or what has changed its kind while it was looked at
    return tuple(merged)


def _is_opaque(directory: int) -> bool:
    try:
        return os.getxattr(directory, _OPAQUE) == b"y"
    except OSError:
        return False


def _content(descriptor: int) -> bytes | None:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        return None
    with os.fdopen(os.dup(descriptor), "rb") as file:
        return file.read(LARGEST_BYTES)

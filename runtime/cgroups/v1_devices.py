"""The device rules of a cgroup v1 group in its control files, and the group whose children inherit the usual ones.

What the rules mean is `devices`.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from runtime.cgroups.controls import lacking
from runtime.cgroups.devices import USUAL, v1_lists
from runtime.cgroups.files import whole, write, write_lines
from runtime.cgroups.resources import DeviceRule
from runtime.errors import TareError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

GUARDED: Final = "@usual"
"""The group below our own parent, in the hierarchy of devices alone, whose groups have the usual rules.

A group is made with the rules of the one above, and to write them is a dozen calls. No container is named like that.
"""


def set_rules(directory: Path, rules: tuple[DeviceRule, ...]) -> None:
    """Make `rules` those of the group. Raises TareError."""
    default, exceptions = v1_lists(rules)
    begin, then = ("allow", "deny") if default else ("deny", "allow")
    try:
        write(directory / f"devices.{begin}", "a")
        if exceptions:
            write_lines(directory / f"devices.{then}", exceptions)
    except FileNotFoundError as error:
        raise lacking("devices", Path(error.filename).name) from error
    except PermissionError as error:
        raise TareError(
            "limit devices", f"{directory.parent} allows less than is asked", "ask less, or open that group first"
        ) from error


def make_guarded(directory: Path) -> None:
    """The group that hands the usual rules down. Raises TareError, FileNotFoundError when it goes meanwhile."""
    directory.parent.mkdir(0o755, parents=True, exist_ok=True)
    with whole(directory) as partial:
        try:
            set_rules(partial, USUAL)
        except TareError:
            if partial.is_dir():
                raise
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(partial)) from None

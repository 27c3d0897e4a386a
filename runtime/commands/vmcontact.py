"""The command's end of the keeper of guests: starts it when there is none, asks it, passes on what it answers."""

from __future__ import annotations

import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from runtime.container.contact import Contact, connect, failure
from runtime.driver import Host
from runtime.errors import TareError
from runtime.ledger import make_directory
from runtime.vm.keeperplace import directory
from runtime.vm.records import LOST, Record

_SOURCE = str(Path(__file__).resolve().parents[2])
_BOOT = (
    "import sys; sys.path.insert(0, sys.argv[1]); from runtime.vm.keeper import main; main(sys.argv[2], sys.argv[3])"
)
_ATTEMPTS = 5


class VmContact(Contact):
    """A connection to the keeper of guests."""

    keeper = "keeper of virtual machines"
    lost = "run: tare clean"

    def hang_up(self) -> None:
        """Let another thread that is at it see the end."""
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def heard(self, *expected: str) -> tuple[Any, ...]:
        """The next words, which begin with one of `expected`. Raises the TareError that the keeper tells of."""
        words, _ = self.hear()
        if (failed := failure(words)) is not None:
            raise failed
        if not words or words[0] not in expected:
            raise TareError(self.keeper, f"it says {words[:1]!r}", "stop all that it keeps, then try again")
        return words


def reach(host: Host) -> VmContact | None:
    """A connection to the keeper there is, or None."""
    found = connect(directory(host), VmContact)
    assert found is None or isinstance(found, VmContact)
    return found


def reached(host: Host, record: Record) -> VmContact:
    """A connection to the keeper of a guest that runs. Raises TareError when it does not."""
    contact = reach(host) if record.running else None
    if contact is None:
        why = "its keeper was killed" if record.status == LOST else "it does not run"
        raise TareError(f"virtual machine {record.name}", why, "see: tare vm ls -a")
    return contact


def summon(host: Host) -> VmContact:
    """A connection to the keeper, which is started if need be. Raises TareError when it does not come."""
    where = directory(host)
    for _ in range(_ATTEMPTS):
        contact = reach(host)
        if contact is not None:
            return contact
        with _log(where) as log:
            keeper = subprocess.Popen(
                [sys.executable, "-I", "-c", _BOOT, _SOURCE, str(host.root), str(host.run)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        assert keeper.stdout is not None
        with keeper.stdout as said:
            said.read()  # its end says that somebody listens
    raise TareError(VmContact.keeper, "it does not start", f"see {where / 'keeper.log'}")


def _log(where: Path) -> IO[bytes]:
    """The keeper's log, opened; `tare clean` may remove its directory at any time before."""
    while True:
        make_directory(where)
        with suppress(FileNotFoundError):
            return (where / "keeper.log").open("ab")

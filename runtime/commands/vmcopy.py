"""`tare vm cp`: files between this host and a guest that runs, by the rules of `tare cp`.

Only words, paths and pipes: entries are `runtime.vm.files`' business, what paths mean is `runtime.files.placing`'s.
"""

from __future__ import annotations

import itertools
import os
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import BinaryIO, Self

from runtime.commands.cp import cp_command, mine
from runtime.commands.vmcontact import reached
from runtime.container.contact import Ended
from runtime.driver import Host, host_from_env
from runtime.errors import TareError, printable
from runtime.files.copying import Entry, Owner, Sink, TreeSink, copy, same_owner, tree_entries
from runtime.files.placing import Side, destination, place, source, thing
from runtime.files.tarring import TarSink, tar_entries
from runtime.vm import files
from runtime.vm.records import Record, Records

_COMPLAINT_BYTES = 4096
_ANSWER_BYTES = 8192


def _copy_out(name: str, path: str, target: str, archive: bool, follow: bool) -> None:
    host, label = host_from_env(), f"{name}:"
    command = files.send(files.absolute(path), follow=follow)
    with ExitStack() as stack, Inside(host, Records(host).find(name), command, f"{label}{path}") as inside:
        rest = files.entries(inside.output)
        first = next(rest, None)
        if first is None or first.path:
            raise TareError(f"{label}{path}", "the guest sends something else", "try again")
        found: Iterator[Entry] = itertools.chain([first], rest)
        what = thing(path, directory=stat.S_ISDIR(first.mode))
        sink: Sink
        if target == "-":
            sink, goal = TarSink(sys.stdout.buffer), "" if what.pour else what.name
        else:
            where = stack.enter_context(destination(Side(), target, what))
            sink, goal = TreeSink(where.directory), where.name
            free = os.fstatvfs(where.directory)
            found = files.for_host(found, f"{label}{path}", free.f_bavail * free.f_frsize, owned=archive)
        owner: Owner = same_owner if archive or target == "-" else mine
        copy(found, sink, name=goal, owner=owner)
        sys.stdout.flush()


def _copy_in(path: str, name: str, target: str, archive: bool, follow: bool) -> None:
    host, label = host_from_env(), f"{name}:"
    record = Records(host).find(name)

    def ask(command: tuple[str, ...]) -> bytes:
        with Inside(host, record, command, f"{label}{target}") as inside:
            return inside.output.read(_ANSWER_BYTES)

    side = files.GuestSide(label, ask)
    with ExitStack() as stack:
        owner: Owner = same_owner if archive or path == "-" else _root
        if path == "-":
            found = tar_entries(sys.stdin.buffer)
            above, goal = place(side, target, None)
        else:
            what = stack.enter_context(source(Side(), path, follow=follow))
            found = tree_entries(what.descriptor)
            above, goal = place(side, target, what)
        command = files.receive(files.absolute(above))
        with Inside(host, record, command, f"{label}{target}", takes=True) as inside:
            assert inside.input is not None
            copy(found, files.EntrySink(inside.input), name=goal, owner=owner)


class Inside:
    """A file command at work in a guest, its streams as files: a context manager that waits for its good end.

    When the block fails because the command did, the command's own complaint is raised; `where` it is about.
    """

    def __init__(
        self, host: Host, record: Record, command: tuple[str, ...], where: str, *, takes: bool = False
    ) -> None:
        self._where = where
        self._contact = reached(host, record)
        self._ended: Ended | None = None
        self._complaint = b""
        try:
            self._contact.ask("exec", record.id, command, (), takes, None)
            self._contact.heard("running")
        except BaseException:
            self._contact.close()
            raise
        taken, given = os.pipe() if takes else (-1, -1)
        read, written = os.pipe()
        complaint, complained = os.pipe()
        self.input = os.fdopen(given, "wb") if takes else None
        self.output: BinaryIO = os.fdopen(read, "rb")
        self._threads = (
            threading.Thread(target=self._carry, args=((taken, written, complained),), daemon=True),
            threading.Thread(target=self._listen, args=(complaint,), daemon=True),
        )
        for thread in self._threads:
            thread.start()

    def _carry(self, streams: tuple[int, int, int]) -> None:
        try:
            with suppress(OSError):  # nobody reads what it prints
                self._ended = self._contact.carry(streams)
        finally:
            for descriptor in streams:
                if descriptor >= 0:
                    os.close(descriptor)

    def _listen(self, complaint: int) -> None:
        """Keep the beginning of what it complains of, and let the rest pass."""
        with os.fdopen(complaint, "rb") as stream:
            self._complaint = stream.read(_COMPLAINT_BYTES)
            while stream.read(_COMPLAINT_BYTES):
                pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: TracebackType | None) -> None:
        broken = isinstance(error, files.EarlyEnd) or (self.input is not None and isinstance(error, BrokenPipeError))
        if error is not None and not broken:
            self._contact.hang_up()
        if self.input is not None:
            with suppress(BrokenPipeError):
                self.input.close()
        if error is None:
            self._finish_output()
        else:
            self.output.close()
        for thread in self._threads:
            thread.join()
        self.output.close()
        self._contact.close()
        if error is None or broken:
            self._check()

    def _finish_output(self) -> None:
        """What is left of the output is nobody's: as long as it comes the command has not ended."""
        while self.output.read(_ANSWER_BYTES):
            pass

    def _check(self) -> None:
        if self._ended is None:
            raise TareError(self._where, "the guest or its keeper ended before the copy", "see: tare vm ls -a")
        if self._ended.exit_code:
            said = self._complaint.decode(errors="replace").strip()
            path, _, why = said.rpartition(": ")
            shown = why if not path or self._where.endswith(path) else said
            raise TareError(self._where, printable(shown.lower() if shown == why else shown) or "it failed")


def _root(_uid: int, _gid: int) -> tuple[int, int]:
    """Without -a, root owns what is copied in."""
    return 0, 0


cp = cp_command("VM", "virtual machine", "Copy files between VM, which runs, and this host.", _copy_out, _copy_in)

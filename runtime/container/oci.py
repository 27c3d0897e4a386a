# ruff: noqa: PTH100, PTH108
# Lean, for the reason `bundles` gives: what only some operations need is imported by them.
"""The operations of the OCI runtime specification on containers that exist: state, start, kill, delete and the rest.

Each call is one command of a runtime's command line and leaves no process behind (runtime-spec 1.2, runtime.md);
how a container comes to be is `oci_create`. What containerd's shim and podman match in error texts is kept as runc says
it: "container not running", "does not exist".
"""

from __future__ import annotations

import errno
import fcntl
import json
import marshal
import os
import select
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

from runtime.container import bundles
from runtime.container.bundles import Place, Record
from runtime.errors import TareError, UsageError

TYPE_CHECKING = False  # for the type checker, which takes it for true: typing is not worth its loading
if TYPE_CHECKING:
    from runtime.cgroups.cgroup import Cgroup

SPEC_VERSION = "1.2.0"
KILL_TIMEOUT_S = 10.0
_GO = b"1"


class Runtime:
    """The containers below one state directory. `warn` is told what fails without being an error."""

    def __init__(self, root: str, warn: Callable[[str], None]) -> None:
        self.root = root
        self.warn = warn

    def find(self, container_id: str) -> Place:
        """An existing container's place. Raises TareError when there is none."""
        return bundles.find(self.root, container_id)

    def state(self, container_id: str) -> dict[str, object]:
        """The state as the specification has it, and what runc adds to it."""
        place = self.find(container_id)
        record = place.load()
        return state_document(place.id, record, bundles.status(place, record))

    def list(self) -> list[dict[str, object]]:
        """Every container's state; one that is deleted meanwhile is left out."""
        found = []
        for container_id in bundles.ids(self.root):
            with suppress(TareError):
                found.append(self.state(container_id))
        return found

    def start(self, container_id: str) -> None:
        """Let the program go and run the poststart hooks. Raises TareError unless the container is `created`."""
        place = self.find(container_id)
        with place.lock():
            record = need(place, "start", "created")
            release(place, record)
            try:
                self.run_hooks(place, record, "poststart", "running")
            except TareError:
                signal_init(record, signal.SIGKILL)
                raise

    def kill(self, container_id: str, number: int, *, everybody: bool = False) -> None:
        """Send a signal to the container's first process, or to all of them. Raises TareError when it has ended."""
        place = self.find(container_id)
        record = place.load()
        status = bundles.status(place, record)
        if record is None or (status in ("stopped", "creating") and not everybody):
            raise TareError(f"killing {container_id}", "container not running")
        if everybody:
            group = cgroup_of(record)
            for pid in group.pids():
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
        elif not signal_init(record, number):
            raise TareError(f"killing {container_id}", "container not running")
        if number == signal.SIGKILL and status == "paused":
            cgroup_of(record).thaw()  # a frozen process dies only when it is thawed, on v1

    def delete(self, container_id: str, *, force: bool = False) -> None:
        """Remove what is left of a stopped container; `force` kills it first, and takes an absent one for done.

        Runs the poststop hooks; what fails in them is a warning.
        """
        try:
            place = self.find(container_id)
            with place.lock():
                self._delete(place, force)
        except TareError as error:
            if not (force and bundles.is_absent(error)):
                raise

    def _delete(self, place: Place, force: bool) -> None:
        try:
            record = place.load()
        except TareError:
            if not force:
                raise
            record = None
        status = bundles.status(place, record)
        if status != "stopped" and not force:
            raise TareError(
                f"deleting {place.id}", f"cannot delete container {place.id} that is not stopped: {status}", "kill it"
            )
        self.destroy(place, record)

    def destroy(self, place: Place, record: Record | None) -> None:
        """Kill and remove everything of a container, whatever state it is in, then run its poststop hooks."""
        if record is None:
            place.remove()
            return
        if signal_init(record, signal.SIGKILL):
            if bundles.is_frozen(record):
                cgroup_of(record).thaw()
            _await_end(record)
        _remove_groups(record)
        self.run_hooks(place, record, "poststop", "stopped", lambda error: self.warn(f"container {place.id}: {error}"))
        place.remove()

    def pause(self, container_id: str) -> None:
        """Freeze every process. Raises TareError unless the container runs."""
        place = self.find(container_id)
        with place.lock():
            cgroup_of(need(place, "pause", "running", "created")).freeze()

    def resume(self, container_id: str) -> None:
        """Thaw every process. Raises TareError unless the container is paused."""
        place = self.find(container_id)
        with place.lock():
            cgroup_of(need(place, "resume", "paused")).thaw()

    def update(self, container_id: str, asked: Mapping[str, object]) -> None:
        """Change limits: `asked` is a `linux.resources` object; what it does not name stays. Raises TareError.

        Devices stay as they are: engines repeat them without those that every container has.
        """
        from runtime.container import decode

        resources = decode.parse_resources({key: value for key, value in asked.items() if key != "devices"})
        place = self.find(container_id)
        with place.lock():
            cgroup_of(need(place, "update", "running", "created", "paused")).update(resources)

    def pids(self, container_id: str) -> tuple[int, ...]:
        """The container's processes as the host numbers them."""
        record = self.find(container_id).load()
        return () if record is None else cgroup_of(record).pids()

    def run_hooks(
        self,
        place: Place,
        record: Record,
        point: str,
        status: str,
        failed: Callable[[TareError], None] | None = None,
    ) -> None:
        """Run the hooks of one point of the life cycle in the runtime's namespaces, as `hooks.run_all` does."""
        try:
            document = place.config()
        except FileNotFoundError:
            return
        described = document.get("hooks")
        listed = described.get(point) if isinstance(described, dict) else None
        if listed:
            from runtime.container import hooks

            state = json.dumps(hook_state(record, status)).encode()
            with _directory(record.bundle):
                hooks.run_all(point, listed, state, failed)


def run_directory() -> str:
    """Where what lives as long as this boot is kept, if `--root` says nothing else."""
    root = os.environ.get("TARE_ROOT")
    return f"{os.path.abspath(root)}/run" if root else "/run/tare"


def state_document(container_id: str, record: Record | None, status: str) -> dict[str, object]:
    """The answer of `state`: a stopped container has no process."""
    if record is None:
        return {"ociVersion": SPEC_VERSION, "id": container_id, "pid": 0, "status": status, "bundle": ""}
    return {
        "ociVersion": record.oci_version,
        "id": record.id,
        "pid": 0 if status == "stopped" else record.pid,
        "status": status,
        "bundle": record.bundle,
        "rootfs": record.rootfs,
        "created": record.created,
        "annotations": record.annotations,
        "owner": record.owner,
    }


def hook_state(record: Record, status: str) -> dict[str, object]:
    """What hooks read from their standard input (runtime.md#state)."""
    return {
        "ociVersion": record.oci_version,
        "id": record.id,
        "status": status,
        "pid": 0 if status == "stopped" else record.pid,
        "bundle": record.bundle,
        "annotations": record.annotations,
    }


def need(place: Place, operation: str, *wanted: str) -> Record:
    """The record, if the container's status is one of `wanted`. Raises TareError."""
    record = place.load()
    status = bundles.status(place, record)
    if record is None or status not in wanted:
        raise TareError(
            f"{operation} {place.id}", f"cannot {operation} a container that is {status}", f"it must be {wanted[0]}"
        )
    return record


def release(place: Place, record: Record) -> None:
    """Let the program go: returns when it runs. Raises TareError when it cannot be executed.

    The child waits for a byte in the FIFO and holds a lock on it that execve ends, and so does its death; what kept
    it from executing it then leaves in the FIFO.
    """
    fifo = os.open(place.path(bundles.FIFO), os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        os.unlink(place.path(bundles.FIFO))
        os.write(fifo, _GO)
        fcntl.flock(fifo, fcntl.LOCK_EX)
        said = _read(fifo)
    finally:
        os.close(fifo)
    if said == _GO:
        raise TareError(f"start {record.id}", "container not running")
    if said:
        raise TareError(f"start {record.id}", str(marshal.loads(said)[2]))  # noqa: S302 - our own child wrote it


def open_init(record: Record) -> int | None:
    """A pidfd of the container's first process; None when it has ended."""
    if not record.pid or record.boot != bundles.boot_id():
        return None
    try:
        pidfd = os.pidfd_open(record.pid)
    except ProcessLookupError:
        return None
    if bundles.process_start(record.pid) != record.start:  # looked at while the descriptor keeps the pid from reuse
        os.close(pidfd)
        return None
    return pidfd


def signal_init(record: Record, number: int) -> bool:
    """Send a signal to the first process: whether it was there."""
    pidfd = open_init(record)
    if pidfd is None:
        return False
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(pidfd)
    return True


def signal_number(word: str) -> int:
    """A signal by number or name, with or without SIG. Raises UsageError."""
    if word.isdigit():
        number = int(word)
        if 0 < number < signal.NSIG:
            return number
    elif (name := f"SIG{word.upper().removeprefix('SIG')}") in signal.Signals.__members__:
        return signal.Signals[name].value
    raise UsageError("signal", f"unknown signal {word!r}", "give a name such as TERM, or a number")


def cgroup_of(record: Record) -> Cgroup:
    """The container's control group."""
    from runtime.cgroups.detect import open_cgroup

    return open_cgroup(record.cgroup_name, parent=record.cgroup_parent)


def _remove_groups(record: Record) -> None:
    """Kill what is left in the control group and remove it, by the directories it was written down to have."""
    from pathlib import Path

    from runtime.cgroups.files import remove_directories

    remove_directories([Path(directory) for directory in record.groups])


def _await_end(record: Record) -> None:
    pidfd = open_init(record)
    if pidfd is None:
        return
    try:
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        if not poller.poll(KILL_TIMEOUT_S * 1000):
            raise TareError(f"deleting {record.id}", f"process {record.pid} does not die", "look at its state in /proc")
    finally:
        os.close(pidfd)


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except OSError as error:
        if error.errno != errno.EAGAIN:
            raise
        return b""


@contextmanager
def _directory(path: str) -> Iterator[None]:
    """Work in the bundle, if it is still there."""
    before = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):
            os.chdir(path)
        yield
    finally:
        os.fchdir(before)
        os.close(before)

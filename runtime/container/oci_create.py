"""How `tare oci` makes processes: `create`, which holds a new container at its program's door, and `exec`.

The child is cloned by this very command and outlives it: no process of ours stays, and the kernel gives it to the
caller's subreaper (containerd's shim, conmon) when the command ends. What a crash leaves is found by the record,
which is written before anything it names is made. Operations on containers that exist are `oci`.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import pwd
import socket
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from runtime.cgroups.cgroup import Cgroup
from runtime.cgroups.detect import open_cgroup
from runtime.container import bundles, decode, oci, oci_cgroup, spawning
from runtime.container.becoming import Execute, Find
from runtime.container.bundles import Place, Record
from runtime.container.config import Config, Process
from runtime.container.plan import HostFacts, Plan, container_plan
from runtime.container.plan import Place as Placement
from runtime.container.spawning import Spawned
from runtime.container.users import identify
from runtime.errors import TareError, UsageError
from runtime.linux import capabilities, seccomp


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Making:
    """How a process is to be made: what runc's `create`, `run` and `exec` share of flags.

    `console_socket` is where its terminal goes; `preserve_fds` how many descriptors after the standard ones it
    keeps; `keyring` whether it gets a session keyring of its own. In the `foreground` a terminal needs no socket.
    """

    pid_file: str | None = None
    console_socket: str | None = None
    preserve_fds: int = 0
    keyring: bool = True
    systemd: bool = False
    foreground: bool = False


def create(runtime: oci.Runtime, container_id: str, bundle: Path, making: Making) -> tuple[Spawned, int]:
    """Make a container that waits for `start`: its process, and its terminal's master end (-1: none, or sent away).

    On failure nothing of it remains.

    Raises UsageError for a configuration that is not valid (before anything is made), TareError for one that this
    host cannot carry out.
    """
    bundles.check_id(container_id)
    text = read_config(bundle)
    config = decode.parse(load_json(text, bundle / "config.json"))
    process = check(config, making, bundle)
    process = grantable(process, runtime.warn, new_user=config.linux.has("user"))
    config = dataclasses.replace(config, process=with_home(process, bundle / config.root.path))
    name, parent = oci_cgroup.cgroup_path(config.linux.cgroups_path, container_id, systemd=making.systemd)
    group = open_cgroup(name, oci_cgroup.limits(config), guard_devices=True, parent=parent)
    place = bundles.reserve(runtime.root, container_id)
    record = new_record(container_id, bundle, config, text, group, parent)
    try:
        with place.lock():
            place.save_config(text)
            place.save(record)
            try:
                return _Creation(runtime, place, record, config, group, making).carry_out()
            except BaseException:
                runtime.destroy(place, record)
                raise
    except BaseException:
        place.remove()
        raise


class _Creation:
    """One `create`, between the reserved id and the container that waits."""

    def __init__(
        self, runtime: oci.Runtime, place: Place, record: Record, config: Config, group: Cgroup, making: Making
    ) -> None:
        self.runtime = runtime
        self.place = place
        self.record = record
        self.config = config
        self.group = group
        self.making = making

    def carry_out(self) -> tuple[Spawned, int]:
        """Make the group and the FIFO, clone, run the hooks, and leave the child waiting."""
        self.record.freezer = None
        oci_cgroup.make_cgroup(self.group, oci_cgroup.limits(self.config))
        self.record.freezer = oci_cgroup.freezer_file(self.group)
        os.mkfifo(self.place.path(bundles.FIFO), 0o600)
        plan = self.plan()
        spawned = clone(plan, self.making)
        self.record.pid, self.record.start = spawned.pid, bundles.process_start(spawned.pid) or 0
        self.place.save(self.record)
        console = self._until_it_waits(spawned, plan)
        spawned.reports.close()  # what fails from now on is told to whoever starts the container
        return spawned, finish(self.making, spawned.pid, console)

    def plan(self) -> Plan:
        """What the child does."""
        join, into = (self.group.join_files(), self.group.clone_into())
        placement = Placement(
            bundle=Path(self.record.bundle),
            join_files=join,
            cgroup=into,
            cgroup_mounts=self.group.mounts_inside(),
            cgroup_directories=() if self.config.linux.has("cgroup") else oci_cgroup.own_directories(self.group),
            devices_guarded=self.group.guards_devices,
            waits=bool(self.config.hooks.prestart or self.config.hooks.create_runtime),
            hold=Path(self.place.path(bundles.FIFO)),
            keyring=self.making.keyring,
        )
        program, flags = filter_of(self.config)
        return container_plan(
            self.config,
            placement,
            HostFacts.gather(),
            seccomp=program,
            seccomp_flags=flags,
            streams=streams(self.making),
            state=json.dumps(oci.hook_state(self.record, "creating") | {"pid": 1}).encode(),
        )

    def _until_it_waits(self, spawned: Spawned, plan: Plan) -> int:
        """Hear the child out, running the hooks of the runtime's side when it asks for them: its terminal, or -1."""
        console = -1
        while True:
            said = spawning.outcome(spawned)
            console = max(console, said.console)
            if said.root >= 0:
                os.close(said.root)
            if said.failure is not None:
                raise explained(plan, *said.failure)
            if said.waits == "hooks":
                for point in ("prestart", "createRuntime"):
                    self.runtime.run_hooks(self.place, self.record, point, "creating")
                spawned.go_on()
                continue
            if said.waits != "start":
                raise TareError(f"container {self.record.id}", "its process ended before it could wait")
            return console


def read_config(bundle: Path) -> bytes:
    """The bundle's config.json. Raises UsageError where there is none."""
    try:
        return (bundle / "config.json").read_bytes()
    except OSError as error:
        raise UsageError(
            f"bundle {bundle}", f"config.json: {error.strerror}", "give a bundle's directory with --bundle"
        ) from error


def load_json(text: bytes, where: Path | str) -> dict[str, Any]:
    """A JSON object. Raises UsageError."""
    try:
        document = json.loads(text)
    except ValueError as error:
        raise UsageError(f"{where}", f"not JSON: {error}") from error
    if not isinstance(document, dict):
        raise UsageError(f"{where}", "not a JSON object")
    return document


def check(config: Config, making: Making, bundle: Path) -> Process:
    """What decoding cannot see: raises UsageError for what would fail later in a less clear way. The process."""
    process = config.process
    if process is None or not process.args:
        raise UsageError(f"{bundle}/config.json", "process.args: missing", "say what to run")
    check_console(process, making)
    root = bundle / config.root.path
    if not root.is_dir():
        raise UsageError(f"{bundle}/config.json", f"root.path: {root} is no directory")
    return process


def check_console(process: Process, making: Making) -> None:
    """A terminal has to go somewhere, and only a terminal can."""
    if process.terminal and making.console_socket is None and not making.foreground:
        raise UsageError("terminal", "cannot allocate tty if it detaches without a console socket", "--console-socket")
    if not process.terminal and making.console_socket is not None:
        raise UsageError("console socket", "cannot use console socket without process.terminal", "leave it out")


def grantable(process: Process, warn: Callable[[str], None], *, new_user: bool) -> Process:
    """The process with those capabilities alone that can be given; `warn` is told of the others.

    The specification wants a warning here, not an error. A new user namespace begins with all of them.
    """
    sets = process.capabilities
    if sets is None:
        return process
    kinds = [field.name for field in dataclasses.fields(sets)]
    given = set(capabilities.NUMBERS) if new_user else set(capabilities.held())
    refused = {name for kind in kinds for name in getattr(sets, kind)} - given
    for name in sorted(refused):
        warn(f"process.capabilities: {name} cannot be given and is left out")
    left = {kind: tuple(name for name in getattr(sets, kind) if name in given) for kind in kinds}
    return dataclasses.replace(process, capabilities=dataclasses.replace(sets, **left))


def with_home(process: Process, rootfs: Path) -> Process:
    """The process with HOME set, to what the container's own /etc/passwd says where its configuration is silent."""
    if any(word.startswith("HOME=") for word in process.env):
        return process
    try:
        home = identify([rootfs], str(process.user.uid)).home
    except (TareError, OSError):
        home = "/"
    return dataclasses.replace(process, env=(*process.env, f"HOME={home}"))


def new_record(container_id: str, bundle: Path, config: Config, text: bytes, group: Cgroup, parent: str) -> Record:
    """What is written down before anything is made."""
    return Record(
        id=container_id,
        bundle=str(bundle),
        rootfs=str(bundle / config.root.path),
        oci_version=config.oci_version,
        created=datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        owner=_user_name(),
        config_sha256=hashlib.sha256(text).hexdigest(),
        annotations=dict(config.annotations),
        boot=bundles.boot_id(),
        cgroup_name=group.id,
        cgroup_parent=parent,
        groups=[str(directory) for directory in group.possible_directories()],
    )


def filter_of(config: Config) -> tuple[bytes | None, int]:
    """The compiled system-call filter of a configuration, and the flags it is installed with."""
    profile = config.linux.seccomp
    if profile is None:
        return None, 0
    return seccomp.cached(profile, Path(oci.run_directory()) / "seccomp"), seccomp.flags(profile)


def streams(making: Making) -> tuple[tuple[int, int], ...]:
    """Which inherited descriptors the program keeps, beside its standard ones."""
    return tuple((number, 3 + number) for number in range(making.preserve_fds))


def inherited(making: Making) -> list[int]:
    """The descriptors that `streams` counts."""
    return [3 + number for number in range(making.preserve_fds)]


def clone(plan: Plan, making: Making) -> Spawned:
    """Clone a child that carries out `plan`, without a umask: what it makes has the modes that it says."""
    before = os.umask(0)
    try:
        return spawning.spawn(plan.flat(), inherited(making))
    finally:
        os.umask(before)


def finish(making: Making, pid: int, console: int) -> int:
    """Hand the terminal over and write the pid file: the terminal if it stays here, else -1."""
    if making.console_socket is not None:
        if console < 0:
            raise TareError("terminal", "the container's side sent none")
        try:
            send_console(making.console_socket, console)
        finally:
            os.close(console)
        console = -1
    if making.pid_file is not None:
        write_pid_file(making.pid_file, pid)
    return console


def send_console(path: str, master: int) -> None:
    """Send the terminal's master end over the socket at `path`, as runc does. Raises TareError."""
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            socket.send_fds(client, [b"/dev/ptmx"], [master])
    except OSError as error:
        raise TareError(f"console socket {path}", error.strerror or str(error)) from error


def write_pid_file(path: str, pid: int) -> None:
    """Write it whole or not at all: its reader waits for its name. Raises TareError."""
    final = Path(path)
    partial = final.with_name(f".{final.name}")
    try:
        partial.write_text(str(pid))
        partial.replace(final)
    except OSError as error:
        raise TareError(f"pid file {path}", error.strerror or str(error)) from error


def explained(plan: Plan, index: int, number: int, text: str) -> TareError:
    """The failure of step `index` as a sentence; of a program that cannot be executed, in the words engines know."""
    if index < 0:
        return TareError("unable to start container process", text)
    step = plan.steps[index]
    if isinstance(step, Execute | Find):
        return cannot_execute(os.fsdecode(step.argv[0]), number)
    return TareError(f"unable to start container process: {step.describe()[:300]}", text)


def cannot_execute(name: str, number: int) -> TareError:
    """Docker and podman tell 126 from 127 by these words."""
    absent = number in (errno.ENOENT, errno.ENOTDIR)
    why = "executable file not found in $PATH" if absent and "/" not in name else os.strerror(number).lower()
    error = TareError(f'unable to start container process: exec: "{name}"', why)
    error.exit_code = 127 if absent else 126
    return error


def _user_name() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return ""

"""Other OCI runtimes as drivers, and ours by its command line: one adapter, one small class a runtime.

Each gets what the `container` driver launches, as a bundle: the same configuration, layers, limits and filter. It is
called once, as a user calls it: `run --detach`; the agent's channel is a descriptor that it hands on. The root is
mounted by us, in the host's mount namespace, as engines do. A network of its own with `lo`, or the host's: a bridge
is not a runtime's business. Which of them are installed is found out by `probe`, by a container that really runs.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from runtime.cgroups.cgroup import Cgroup
from runtime.cgroups.detect import Hierarchies, detect, io_device, open_cgroup
from runtime.cgroups.paths import PARENT
from runtime.cgroups.resources import of_limits
from runtime.channel import Channel
from runtime.command import program_facts
from runtime.container import decode, defaults, storage
from runtime.container.config import MountPoint
from runtime.container.foreign import ForeignInstance, Holdings
from runtime.container.launching import AGENT, AGENT_FD
from runtime.container.leftovers import MARK, Leftovers
from runtime.container.options import Options
from runtime.container.specified import check_mounts, files_for, options_for
from runtime.driver import Driver, Host, Kind, Prepared
from runtime.errors import TareError, printable
from runtime.images.store import ImageStore
from runtime.instance import Availability, DiskPaths, Instance, Timeline
from runtime.ledger import Ledger, make_directory, new_id, process_start
from runtime.linux import syscalls
from runtime.linux.pidfd import Pidfd
from runtime.network.network import Networks
from runtime.spec import InstanceSpec, Limits, NetworkMode

RUN_TIMEOUT_S = 30.0
ASK_TIMEOUT_S = 15.0  # for anything else
_REHEARSED = b"tare"
_HOSTS_PROGRAMS = ("/usr", "/bin", "/lib", "/lib64")
_OCI_VERSION = "1.0.2"  # a bundle asks for nothing newer, and not every runtime takes a newer number
# What stands in a bundle's text for what differs from launch to launch.
_ID, _ROOT, _HOSTNAME = "@TARE_ID@", "@TARE_ROOT@", "@TARE_HOSTNAME@"
# A service manager's descriptors and questions are for us, not for what we start.
_NOT_THEIRS = frozenset({"NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"})


@dataclass(frozen=True, slots=True)
class PreparedBundle(Prepared):
    """What all launches of the specification share: the image's layers, topmost last, and the text of config.json."""

    layers: tuple[Path, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Bundle:
    """Where one container lies: what runtimes read and keep in `directory`, its writable layer in `layer`."""

    id: str
    directory: Path
    layer: Path

    @property
    def rootfs(self) -> Path:
        """Where the overlay is mounted."""
        return self.directory / "rootfs"

    @property
    def console(self) -> Path:
        """What the container and the runtime print."""
        return self.directory / storage.CONSOLE

    @property
    def pid_file(self) -> Path:
        """Where the runtime writes the process's number."""
        return self.directory / "pid"

    def tail(self) -> str:
        """The end of what was printed."""
        try:
            return printable(self.console.read_text(errors="replace")[-400:])
        except OSError:
            return ""


class OciInstance(ForeignInstance):
    """One container of an OCI runtime."""

    def __init__(
        self,
        prepared: PreparedBundle,
        timeline: Timeline,
        holdings: Holdings,
        cgroup: Cgroup,
        *,
        bundle: Bundle,
        ask: Callable[[str], None],
    ) -> None:
        super().__init__(prepared.spec, timeline, holdings, cgroup)
        self._layers, self._bundle, self._ask = prepared.layers, bundle, ask

    def disk_paths(self) -> DiskPaths:
        """The image's layers; the writable layer."""
        return DiskPaths(shared=self._layers, exclusive=(self._bundle.layer,))

    def _freeze(self, frozen: bool) -> None:
        self._ask("pause" if frozen else "resume")


class OciDriver(Driver):
    """Launches containers by the command line of `program`, which takes `hand_on` to pass descriptor 3 on."""

    kind = Kind.CONTAINER
    optional = True
    program: ClassVar[str]
    hand_on: ClassVar[tuple[str, ...]] = ("--preserve-fds", "1")

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._ledger = Ledger(host.run)
        self._networks = Networks(host.root, host.run)
        self._leftovers = Leftovers(self.name, self._ledger, self._networks)
        self._images_used = ExitStack()

    @cached_property
    def _hierarchies(self) -> Hierarchies:
        return detect()

    @cached_property
    def _found(self) -> str | None:
        """The path of the program."""
        return self._look()

    def _look(self) -> str | None:
        return shutil.which(self.program)

    @cached_property
    def _environment(self) -> dict[str, str]:
        return {name: value for name, value in os.environ.items() if name not in _NOT_THEIRS}

    @cached_property
    def _available(self) -> Availability:
        if os.geteuid() != 0:
            return Availability(False, "containers need root", "run it as root")
        if self._found is None:
            return Availability(False, f"{self.program} is not installed", f"install {self.program}")
        facts: dict[str, str] = {}
        try:
            facts = program_facts(Path(self._found))
            self._rehearse()
        except (TareError, OSError) as error:
            return Availability(False, printable(str(error)).strip(), facts=facts)
        group = open_cgroup("", Limits(), hierarchies=self._hierarchies)
        facts |= {
            "cgroups": f"{group.method} ({self._hierarchies.mode} host)",
            "called": "run --detach, once; its root is mounted before, within the time",
            "root file system": "overlay",
        }
        return Availability(True, facts=facts)

    def probe(self) -> Availability:
        """Run a container of the host's own shell, once."""
        return self._available

    def _rehearse(self) -> None:
        """Raises TareError with what the runtime said when its container does not do as it should."""
        programs = [
            MountPoint(destination=path, type="bind", source=path, options=("rbind", "ro"))
            for path in _HOSTS_PROGRAMS
            if Path(path).exists()
        ]
        script = f"printf {_REHEARSED.decode()} >&{AGENT_FD}; read wait <&{AGENT_FD}"
        options = Options(argv=("/bin/sh", "-c", script), mounts=tuple(programs), no_new_privileges=True)
        text = self._text({}, options, Limits(), ())
        bundle, holdings = self._open()
        ours, theirs = socket.socketpair()
        try:
            with ours, theirs:
                self._furnish(bundle, holdings, (), text.replace(_HOSTNAME, bundle.id), [])
                with self._running(bundle, theirs):
                    pass
                self._demand_running(bundle, holdings)
                if not _heard(ours) or ours.recv(64) != _REHEARSED:
                    raise TareError(f"{self.program} run", f"its container said nothing. {bundle.tail()}".strip())
        finally:
            holdings.give_back(search=True)

    def prepare(self, spec: InstanceSpec) -> PreparedBundle:
        """Refuse what this driver cannot do; resolve the image; write the configuration but for names."""
        if spec.argv:
            raise TareError(f"command {spec.argv[0]}", f"{self.name} runs the guest agent only", "leave it out")
        if spec.network.mode not in (NetworkMode.NONE, NetworkMode.HOST):
            raise TareError(f"network {spec.network.mode}", f"{self.name} gives none of it", "use none or host")
        check_mounts(spec)
        self.host.root.mkdir(parents=True, exist_ok=True)
        store = ImageStore(self.host.root)
        before = self._images_used.pop_all()
        self._images_used.enter_context(store.using())  # nobody removes layers from under what will be launched
        before.close()
        image = store.resolve(spec.image)
        layers = tuple(layer.directory for layer in image.layers)
        options = options_for(spec, (AGENT, "--fd", str(AGENT_FD)))
        return PreparedBundle(spec, layers, self._text(image.config, options, spec.limits, layers))

    def _text(self, image: Any, options: Options, limits: Limits, layers: Sequence[Path]) -> str:
        config = defaults.build(image, options, layers=layers)
        document = decode.document(config)
        document["ociVersion"] = _OCI_VERSION
        document["root"] = {"path": _ROOT}
        document["hostname"] = _HOSTNAME
        linux = document["linux"]
        linux["cgroupsPath"] = f"/{PARENT}/{_ID}"
        wants_io = any(limit is not None for limit in (limits.io_read_bps, limits.io_write_bps, limits.io_weight))
        resources = of_limits(limits, io_device(self.host.root) if wants_io else None)
        linux["resources"] = {**decode.document(resources), **linux.get("resources", {})}
        return json.dumps(document)

    def launch(self, prepared: Prepared) -> Instance:
        """Mount, write the bundle, run; whatever fails, everything made until then is removed.

        `spawned` is when its process is first heard of: by its own first word, or the runtime's that it runs.
        """
        assert isinstance(prepared, PreparedBundle)
        timeline = Timeline()
        timeline.stamp("request")
        bundle, holdings = self._open()
        try:
            hostname = prepared.spec.hostname or bundle.id
            text = prepared.text.replace(_HOSTNAME, hostname)
            self._furnish(bundle, holdings, prepared.layers, text, files_for(prepared.spec, hostname))
            timeline.stamp("disk")
            self._start(bundle, holdings, timeline)
            cgroup = self._demand_running(bundle, holdings)
            return OciInstance(
                prepared, timeline, holdings, cgroup, bundle=bundle, ask=lambda word: self._ask(bundle, word)
            )
        except BaseException:
            with suppress(TareError):
                holdings.give_back(search=True)
            raise

    def _open(self) -> tuple[Bundle, Holdings]:
        instance_id = new_id()
        bundle = Bundle(instance_id, self.host.run / "oci" / instance_id, self.host.root / "instances" / instance_id)
        entry = self._ledger.open(instance_id, self.name)
        holdings = Holdings(entry, lambda: self._ask(bundle, "delete", "--force"))
        holdings.note("mark", instance_id)
        holdings.note("dir", str(bundle.layer))
        holdings.note("mount", str(bundle.rootfs))
        holdings.note("dir", str(bundle.directory))
        holdings.note("cgroup", instance_id)
        return bundle, holdings

    def _furnish(
        self, bundle: Bundle, holdings: Holdings, layers: Sequence[Path], text: str, files: Sequence[tuple[str, str]]
    ) -> None:
        """The bundle and its root; the small files lie in the writable layer."""
        make_directory(bundle.layer.parent)
        make_directory(bundle.rootfs)
        storage.make(str(bundle.layer))
        for name, content in files:
            path = bundle.layer / "upper" / name[1:]
            path.parent.mkdir(0o755, exist_ok=True)
            path.write_text(content)
        lower = [storage.skeleton(str(self.host.root)), *(str(layer) for layer in layers)]
        data = storage.overlay_options(lower, str(bundle.layer)).encode()
        syscalls.mount(b"overlay", str(bundle.rootfs).encode(), b"overlay", 0, data)
        (bundle.directory / "config.json").write_text(text.replace(_ID, bundle.id).replace(_ROOT, str(bundle.rootfs)))

    def _start(self, bundle: Bundle, holdings: Holdings, timeline: Timeline) -> None:
        """Have it run. Nobody reads what the agent says before it is seen here: `userland` is not before `spawned`."""
        ours, theirs = socket.socketpair()
        with theirs, ExitStack() as until_taken:
            until_taken.enter_context(ours)
            with self._running(bundle, theirs) as runtime:
                _heard(ours, runtime)
                timeline.stamp("spawned")
                until_taken.pop_all()
                holdings.channel = Channel(ours, timeline, bundle.tail)

    def _demand_running(self, bundle: Bundle, holdings: Holdings) -> Cgroup:
        """See for ourselves that its process runs. Raises TareError where there is none, or none any more."""
        cgroup = open_cgroup(bundle.id, hierarchies=self._hierarchies)
        start = None
        with suppress(OSError, ValueError, OverflowError):
            pid = int(bundle.pid_file.read_text())
            holdings.process = Pidfd.of(pid)
            # A number is believed when the process is where the bundle wants it: whatever else has it is not ours.
            start = process_start(pid) if pid in cgroup.pids() else None
        if start is None:
            raise TareError(f"{self.program} run", f"it said success and nothing runs. {bundle.tail()}".strip())
        holdings.note("pid", f"{pid}:{start}")
        return cgroup

    def _ask(self, bundle: Bundle, *words: str) -> None:
        with self._calling(bundle, *words, bundle.id, timeout_s=ASK_TIMEOUT_S):
            pass

    def _running(self, bundle: Bundle, theirs: socket.socket) -> AbstractContextManager[Pidfd]:
        files = ("--bundle", str(bundle.directory), "--pid-file", str(bundle.pid_file))
        words = ("run", *files, "--detach", *self.hand_on, bundle.id)
        return self._calling(bundle, *words, timeout_s=RUN_TIMEOUT_S, descriptor=theirs.fileno())

    @contextmanager
    def _calling(self, bundle: Bundle, *words: str, timeout_s: float, descriptor: int | None = None) -> Iterator[Pidfd]:
        """One of the runtime's commands under way; after the block it has succeeded. What it prints is on the console.

        Without pipes, and waiting on a pidfd: this is within the timed interval. Raises TareError when it fails or
        does not end in time; it and its process group are killed then.
        """
        assert self._found is not None
        argv = [self._found, "--root", str(bundle.directory / "state"), *words]
        environment = {**self._environment, MARK: bundle.id}
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        actions: list[tuple[Any, ...]] = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(bundle.console), flags, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ]
        if descriptor is not None:
            actions.append((os.POSIX_SPAWN_DUP2, descriptor, AGENT_FD))
        what = f"{self.program} {words[0]}"
        deadline_s = time.monotonic() + timeout_s
        try:
            pid = os.posix_spawn(self._found, argv, environment, file_actions=actions, setpgroup=0)
        except OSError as error:
            raise TareError(what, error.strerror or str(error), f"install {self.program}") from error
        ended = False
        try:
            with Pidfd.of(pid) as process:
                yield process
                ended = process.wait(max(0.0, deadline_s - time.monotonic()))
        finally:
            if not ended:
                with suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if not ended:
            raise TareError(what, f"not done after {timeout_s:g} s; killed")
        if code != 0:
            raise TareError(what, f"exit {code}: {bundle.tail() or 'it said nothing'}")

    def leftovers(self) -> list[str]:
        """What is still there of instances whose owner is dead."""
        return self._leftovers.lines()

    def sweep(self) -> list[str]:
        """Kill, remove and strike out, instance by instance: what runtimes keep lies in the bundle."""
        return self._leftovers.sweep()

    def close(self) -> None:
        """Let others remove images."""
        self._images_used.close()
        self._networks.close()


def _heard(*things: socket.socket | Pidfd) -> bool:
    """Wait until one of them has something to say; False when none has for as long as a container may take to run."""
    poller = select.poll()
    for thing in things:
        poller.register(thing, select.POLLIN)
    return bool(poller.poll(RUN_TIMEOUT_S * 1000))


class RuncDriver(OciDriver):
    """runc: the runtime below Docker and containerd."""

    name = program = "runc"
    optional = False


class CrunDriver(OciDriver):
    """crun: podman's runtime, in C."""

    name = program = "crun"


class YoukiDriver(OciDriver):
    """youki, in Rust."""

    name = program = "youki"


class RunscDriver(OciDriver):
    """runsc: gVisor, a kernel in user space."""

    name = program = "runsc"
    hand_on = ("--pass-fd", f"{AGENT_FD}:{AGENT_FD}")


class TareOciDriver(OciDriver):
    """Ours, through the command line that engines call: what the `container` driver saves is beside it."""

    name = program = "tare-oci"
    optional = False

    def _look(self) -> str | None:
        """The command that was installed with this interpreter, before any other."""
        return shutil.which(self.program, path=os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])))

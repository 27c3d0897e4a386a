"""The life of a user's containers: created, started, stopped, removed, each step whole or not at all.

Every change is made under the container's own lock; what is made on the host is noted in the ledger first. Not how
commands are written or answered (`runtime.commands.containers`), nor what a start makes (`starting`).
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from runtime.cgroups.resources import Resources
from runtime.container import decode, events
from runtime.container.config import Config
from runtime.container.contact import Contact, Running, Summons, connect
from runtime.container.logs import now
from runtime.container.starting import Ground, explained
from runtime.container.state import PAUSED, UNKNOWN_CODE, Record, StateDirectory, write_json
from runtime.container.wanted import CONTAINER, Wanted, joined
from runtime.container.watch import Watch
from runtime.driver import Host
from runtime.errors import TareError
from runtime.linux.pidfd import Pidfd

KILL_TIMEOUT_S = 30.0
UNSEEN = "its keeper ended first: nobody saw how it ended"
Say = Callable[[str], None]


class Containers:
    """The containers of one host's state. Construction touches nothing."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.state = StateDirectory(host.root)
        self.ground = Ground(host)
        self._configs: dict[str, Config] = {}

    def close(self) -> None:
        """Give back the descriptors that it holds of networks; nothing changes for the containers."""
        self.ground.close()

    # --- reading

    def all(self) -> list[Record]:
        """Every container, the newest first."""
        return self.state.all()

    def find(self, text: str) -> Record:
        """By id, the beginning of one, or name. What the end of a keeper left unsaid is written down first."""
        record = self.state.find(text)
        if self.unsettled(record):
            with self.state.locked(record) as fresh:
                record = self._settled(fresh)
        return record

    @staticmethod
    def unsettled(record: Record) -> bool:
        """Whether it has ended without anybody's writing that down."""
        return record.status == "exited" and record.run is not None and record.run.exit_code is None

    def config(self, record: Record) -> Config:
        """Its OCI configuration as it is started: with its init, and other containers' namespaces as they are now."""
        known = self._configs.get(record.id)
        if known is None:
            document = self.state.document(record.id)
            known = _started(record, decode.parse(joined(document, self._pid_of), f"{record.directory}/config.json"))
        return known

    def _pid_of(self, container_id: str) -> int:
        other = self.find(container_id)
        if not other.running:
            raise TareError(f"namespaces of container {other.name}", "it does not run", f"tare start {other.name}")
        return other.pid

    def create(self, wanted: Wanted, say: Say = lambda text: None) -> Record:
        """Write down a container of an image, which is pulled if need be. Raises TareError, leaving nothing then."""
        from runtime.container.creating import Creation

        with self._room(f"container {wanted.name}".strip()):
            record, config = Creation(self).create(wanted, say)
        if config is not None:
            self._configs[record.id] = _started(record, config)
        self.tell(record, "create")
        return record

    @contextmanager
    def _room(self, what: str) -> Iterator[None]:
        """Turn a full disk into a sentence."""
        try:
            yield
        except OSError:
            from runtime.images.layout import room_for

            with room_for(what, self.host.root):
                raise

    # --- starting

    def start(
        self,
        record: Record,
        summons: Summons | None = None,
        *,
        output: bool = False,
        writes: bool = False,
        size: tuple[int, int] | None = None,
        again: bool = False,
    ) -> tuple[Contact, Running]:
        """Start it: the connection to its keeper, attached if `output` or `writes`, and the process.

        `again`: because it has ended, which the keeper must still want.

        Raises TareError with Docker's exit code, having given everything back.
        """
        summons = summons or Summons(self.host.run)
        with self.state.locked(record) as fresh:
            if fresh.running:
                raise TareError(f"container {fresh.name}", "it runs already", "tare restart starts it again")
            settled = self._settled(fresh)
            config = self.config(settled)
            contact = summons.connect()
            try:
                with self._room(f"container {fresh.name}"):
                    session = {"output": output, "writes": writes, "size": size, "again": again}
                    return contact, self._start(settled, config, contact, **session)
            except BaseException:
                contact.close()
                raise

    def _start(self, record: Record, config: Config, contact: Contact, **session: Any) -> Running:
        equipped = self.ground.equip(record, config, contact.keeper_pid, self._others(record))
        assert equipped.plan is not None
        try:
            (record.directory / PAUSED).unlink(missing_ok=True)
            once = bool(session["output"])
            contact.ask("start", self.ground.request(record, equipped, input_once=once, **session))
            words, descriptors = contact.hear()
        except BaseException:
            self.ground.give_back(record, equipped)
            raise
        match words:
            case ("running", int(pid), bool()):
                equipped.entry.note("pid", f"{pid}:{self._start_time(record)}")
                equipped.entry.close(gone=False)
                return Running(pid, *descriptors)
            case ("failed", int(index), int(number), str(text)):
                self.ground.give_back(record, equipped)
                raise explained(equipped.plan, index, number, text)
        self.ground.give_back(record, equipped)
        raise TareError("start", f"the keeper says {words!r}")

    def _start_time(self, record: Record) -> int | None:
        run = self.state.read(record.id).run
        return None if run is None else run.start

    def _others(self, record: Record) -> list[Record]:
        network = record.settings.network
        return [self.find(network.removeprefix(CONTAINER))] if network.startswith(CONTAINER) else []

    def execute(
        self, record: Record, process: Any, *, output: bool, writes: bool, size: tuple[int, int] | None = None
    ) -> tuple[Contact, Running]:
        """Run a further process in a container: the connection, attached, and the process. Raises TareError."""
        self._demand_running(record)
        if record.status == "paused":
            raise TareError(f"exec in {record.name}", "it is paused", f"tare unpause {record.name}")
        config = self.config(record)
        request, plan = self.ground.exec_request(
            record, config, process, output=output, writes=writes, input=writes, size=size
        )
        contact = Summons(self.host.run).connect()
        try:
            contact.ask("exec", request)
            words, descriptors = contact.hear()
            match words:
                case ("running", int(pid), bool()):
                    return contact, Running(pid, *descriptors)
                case ("failed", int(index), int(number), str(text)):
                    raise explained(plan, index, number, text)
            raise TareError(f"exec in {record.name}", f"the keeper says {words!r}")
        except BaseException:
            contact.close()
            raise

    def attach(self, record: Record, *, writes: bool) -> tuple[Contact, Running]:
        """Be attached to a running container. Raises TareError."""
        self._demand_running(record)
        contact = connect(self.host.run)
        if contact is None:
            raise TareError(f"container {record.name}", UNSEEN, f"tare rm -f {record.name}")
        contact.ask("attach", record.id, True, writes)
        words, descriptors = contact.hear()
        if words[0] != "attached":
            contact.close()
            raise TareError(f"attach to {record.name}", str(words[-1]), "see: tare ps -a")
        return contact, Running(words[1], *descriptors)

    def give_up(self, record: Record, why: str) -> None:
        """Have the keeper write down why `record`, as it ended, was not started again, and give back what it holds."""
        contact = connect(self.host.run)
        if contact is not None and record.run is not None:
            with contact:
                contact.ask("gave-up", record.id, record.run.finished_at, why)
                contact.hear()

    # --- ending

    def kill(self, record: Record, number: int) -> None:
        """Send a signal to its main process; a SIGKILL thaws it first, as a frozen one cannot die on v1."""
        self._demand_running(record)
        if number in (signal.SIGKILL, record.settings.stop_signal):
            record = self._forgone(record)
        self._signal(record, number)
        self.tell(record, "kill", signal=str(number))

    def _forgone(self, record: Record) -> Record:
        """The container as it is when its keeper will not start it again, nor is about to."""
        if record.settings.restart == "no":
            return record
        contact = connect(self.host.run)
        if contact is not None:
            with contact:
                contact.ask("forgo", record.id)
                contact.hear()
        return self.settle(record)  # under its lock, which a start holds to its end

    def stop(self, record: Record, timeout_s: float | None = None, number: int | None = None) -> None:
        """Ask it to end, and kill it when it has not after `timeout_s` (negative: wait for ever)."""
        record = self._forgone(record)
        if not record.running:
            return
        grace_s = record.settings.stop_timeout_s if timeout_s is None else timeout_s
        with Watch(self.host.run, self.state, record) as watch:
            self._signal(record, number or record.settings.stop_signal)
            if record.status == "paused":
                self._thaw(record)
            if not watch.ended(None if grace_s < 0 else grace_s) and not self._ended_by_force(record, watch):
                raise TareError(f"container {record.name}", f"alive {KILL_TIMEOUT_S:g} s after SIGKILL", "try again")
        self.tell(record, "stop")

    def wait(self, record: Record) -> int:
        """Wait until it does not run: its exit code."""
        if record.running:
            with Watch(self.host.run, self.state, record) as watch:
                watch.ended(None)
        return self.find(record.id).exit_code

    def remove(self, record: Record, *, force: bool = False, volumes: bool = False) -> None:
        """Remove it; a running one only by `force`, which kills it. `volumes` takes those without a name along."""
        if record.running or record.restarting:
            if not force:
                raise TareError(f"container {record.name}", f"it is {record.status}", "stop it first, or use rm -f")
            record = self._forgone(record)
        if record.running:
            with Watch(self.host.run, self.state, record) as watch:
                self._ended_by_force(record, watch)
        mounts = self.state.document(record.id).get("mounts", []) if volumes else []
        with self.state.locked(record) as fresh:
            if fresh.running or fresh.restarting:
                raise TareError(f"container {fresh.name}", "it was started meanwhile", "try again")
            self.ground.settle(fresh.id)
            self.state.remove(fresh)
        if volumes:
            self._remove_volumes(mounts)
        self.tell(record, "destroy")

    def _remove_volumes(self, mounts: Sequence[Mapping[str, Any]]) -> None:
        sources = {str(mount.get("source")) for mount in mounts}
        if not any(source.startswith(f"{self.host.root}/volumes/") for source in sources):
            return
        from runtime.container.volumes import VolumeStore

        store = VolumeStore(self.host.root)
        for volume in store.all():
            if volume.anonymous and str(volume.data) in sources:
                with suppress(TareError):  # another container may use it too
                    store.remove(volume.name)

    def pause(self, record: Record) -> None:
        """Freeze it."""
        self._demand_running(record)
        with self.state.locked(record) as fresh:
            self._demand_running(fresh)
            if fresh.status == "paused":
                raise TareError(f"container {fresh.name}", "it is paused already")
            self.ground.group(fresh.id).freeze()
            (fresh.directory / PAUSED).touch()
        self.tell(record, "pause")

    def unpause(self, record: Record) -> None:
        """Thaw it."""
        if record.status != "paused":
            raise TareError(f"container {record.name}", "it is not paused")
        self._thaw(record)
        self.tell(record, "unpause")

    def rename(self, record: Record, name: str) -> None:
        """Call it otherwise."""
        with self.state.locked(record) as fresh, self._room(f"container {fresh.name}"):
            self.state.rename(fresh, name)
        self.tell(replace(record, name=name), "rename", oldName=record.name)

    def update(self, record: Record, resources: Resources, policy: tuple[str, int] | None = None) -> None:
        """Change limits, at once where it runs and for every start to come, and whether it is started again.

        What `resources` does not say stays. Raises TareError, nothing changed, for what the host cannot enforce.
        """
        with self.state.locked(record) as fresh, self._room(f"container {fresh.name}"):
            before = self.state.document(fresh.id)
            linux = before.get("linux", {})
            limits = _merged(linux.get("resources", {}), decode.document(resources))
            document = {**before, "linux": {**linux, "resources": limits}}
            config = decode.parse(joined(document, lambda _: 0), f"container {fresh.name}")
            self.ground.group(fresh.id, config).check(config.linux.resources)
            changes: dict[str, Any] = {}
            group = self.ground.group(fresh.id, self.config(fresh)) if fresh.running else None
            self.state.rewrite(fresh, document)
            if group is not None:
                try:
                    group.update(resources)
                except BaseException:
                    self.state.rewrite(fresh, before)
                    raise
                changes = {"groups": tuple(str(directory) for directory in group.directories())}
            self._configs.pop(fresh.id, None)
            if policy is not None:
                self.state.change(fresh, replace(fresh.settings, restart=policy[0], restart_most=policy[1]))
                changes |= {"restart": policy, **self.ground.restarter(fresh)}
            self._change_kept(fresh, changes)
        if policy is not None and policy[0] == "no":
            self._forgone(record)
        self.tell(record, "update")

    def _change_kept(self, record: Record, changes: Mapping[str, Any]) -> None:
        """Have the keeper go by what has changed of what it was asked for at the start."""
        contact = connect(self.host.run) if changes else None
        if contact is not None:
            with contact:
                contact.ask("change", record.id, changes)
                contact.hear()

    def settle(self, record: Record) -> Record:
        """Give back what an ended container still holds of the host; write down an end that nobody saw."""
        with self.state.locked(record) as fresh:
            return fresh if fresh.running else self._settled(fresh)

    def _settled(self, record: Record) -> Record:
        if self.ground.ledger.resources(record.id) is not None:
            self.ground.settle(record.id)
        if not self.unsettled(record):
            return record
        assert record.run is not None
        words = decode_run(record)
        words |= {"exit_code": UNKNOWN_CODE, "finished_at": now(), "error": UNSEEN}
        write_json(record.directory / "run.json", words)
        self.tell(record, "die", exitCode=str(UNKNOWN_CODE))
        return self.state.read(record.id)

    def sweep(self) -> list[str]:
        """Remove what crashes left: half-made containers, and what ended ones still hold. Says what went.

        A user's stopped container stays, unless it was to be removed at its end (`--rm`).
        """
        removed = self.state.sweep()
        for container_id in self.ground.ledger.of_driver("lifecycle"):
            removed += self._sweep_page(container_id)
        for record in self.all():
            if record.settings.auto_remove and record.status == "exited":
                with suppress(TareError):
                    self.remove(record)
                    removed.append(f"container {record.name}: it was to go at its end")
            elif self.unsettled(record):
                self.settle(record)
        return removed

    def _sweep_page(self, container_id: str) -> list[str]:
        resources = self.ground.ledger.resources(container_id) or ()
        try:
            record = self.state.read(container_id)
        except (FileNotFoundError, ValueError):
            self.ground.settle(container_id)
        else:
            with self.state.try_locked(record) as fresh:
                if fresh is None or fresh.running or fresh.restarting:
                    return []
                self._settled(fresh)
        return [f"{container_id[:12]}: {item.kind} {item.value}" for item in resources]

    # --- small things

    def tell(self, record: Record, action: str, **attributes: str) -> None:
        """Write an event down."""
        events.append(
            str(self.host.root), action, record.id, {"image": record.image, "name": record.name, **attributes}
        )

    def _signal(self, record: Record, number: int) -> None:
        """To exactly the process of this start; one that has ended is no error."""
        if record.run is None:
            return
        with suppress(ProcessLookupError), Pidfd.of(record.run.pid) as process:
            if self.state.exists(record.run):
                process.signal(number)
        if number == signal.SIGKILL and record.status == "paused":
            self._thaw(record)

    def _ended_by_force(self, record: Record, watch: Watch) -> bool:
        self._signal(record, signal.SIGKILL)
        return self.ground.group(record.id).await_end(watch.ended, KILL_TIMEOUT_S)

    def _thaw(self, record: Record) -> None:
        with self.state.locked(record) as fresh:
            if fresh.running:
                self.ground.group(fresh.id).thaw()
            (fresh.directory / PAUSED).unlink(missing_ok=True)

    def _demand_running(self, record: Record) -> None:
        if not record.running:
            raise TareError(f"container {record.name}", "it does not run", f"tare start {record.name}")


def _merged(known: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """Objects field by field, all else as asked."""
    both = {key: _merged(known[key], asked[key]) for key in known if isinstance(asked.get(key), Mapping)}
    return {**known, **asked, **both}


def _started(record: Record, config: Config) -> Config:
    if not record.settings.init:
        return config
    from runtime.container.inits import put_before

    return put_before(config, record.settings.init)


def decode_run(record: Record) -> dict[str, Any]:
    """What `run.json` says, as it is."""
    import json

    try:
        words: dict[str, Any] = json.loads((record.directory / "run.json").read_bytes())
    except ValueError:
        words = {}
    return words

"""`tare diff`, `tare cp` and `tare commit`: what lies in a container, seen, moved, kept as an image.

Only words and paths; the work is done by `runtime.container.changes`, `runtime.files` and the image store.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import click

from runtime.commands.cp import cp_command, mine
from runtime.container import changes, storage
from runtime.container.rootdir import Bound, ContainerFiles, making_as, opened, pseudo_devices
from runtime.container.state import PAUSED, Record, StateDirectory
from runtime.driver import host_from_env
from runtime.errors import TareError
from runtime.files.copying import Owner, Sink, TreeSink, copy, same_owner, tree_entries
from runtime.files.placing import Side, destination, source
from runtime.files.tarring import TarSink, tar_entries
from runtime.spec import ImageRef

_OURS = ("HOSTNAME=", "HOME=", "TERM=")  # variables that every container gets, whatever its image says


@click.command()
@click.argument("container")
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
def diff(container: str, as_json: bool) -> None:
    """List what CONTAINER has changed in its image's files: A added, C changed, D deleted."""
    files = _files(*_found(container))
    found = list(changes.changes(files.upper, files.layers))
    if as_json:
        click.echo(json.dumps([{"Path": change.path, "Kind": str(change.kind)} for change in found], indent=1))
        return
    for change in found:
        click.echo(str(change))


def _copy_out(name: str, path: str, target: str, archive: bool, follow: bool) -> None:
    files = _files(*_found(name))
    with ExitStack() as stack:
        side = Side(stack.enter_context(opened(files)), f"{name}:")
        what = stack.enter_context(source(side, path, follow=follow))
        closed = pseudo_devices(files.pid) if files.pid is not None else {}
        info = os.fstat(what.descriptor)
        if info.st_dev in closed and not (closed[info.st_dev] and stat.S_ISREG(info.st_mode)):
            raise side.refuse(path, "it lies on a file system that holds no files", "read it with: tare exec")
        sink: Sink
        if target == "-":
            sink, goal = TarSink(sys.stdout.buffer), "" if what.pour else what.name
        else:
            where = stack.enter_context(destination(Side(), target, what))
            sink, goal = TreeSink(where.directory), where.name
        owner = _map(files.pid, inward=True) if archive or target == "-" else mine
        copy(tree_entries(what.descriptor, closed=closed), sink, name=goal, owner=owner)
        sys.stdout.flush()


def _copy_in(path: str, name: str, target: str, archive: bool, follow: bool) -> None:
    files = _files(*_found(name))
    with ExitStack() as stack:
        stack.enter_context(_explained(f"{name}:{target}"))
        side = Side(stack.enter_context(opened(files)), f"{name}:")
        shift = _map(files.pid, inward=False)
        stack.enter_context(making_as(*shift(0, 0)))
        owner: Owner = shift if archive or path == "-" else lambda _uid, _gid: shift(0, 0)
        if path == "-":
            where = stack.enter_context(destination(side, target, None))
            copy(tar_entries(sys.stdin.buffer), TreeSink(where.directory), name="", owner=owner)
        else:
            what = stack.enter_context(source(Side(), path, follow=follow))
            where = stack.enter_context(destination(side, target, what))
            copy(tree_entries(what.descriptor), TreeSink(where.directory), name=where.name, owner=owner)


cp = cp_command(
    "CONTAINER", "container", "Copy files between CONTAINER, running or not, and this host.", _copy_out, _copy_in
)


@click.command()
@click.argument("container")
@click.argument("reference", metavar="NAME[:TAG]")
@click.option("-a", "--author", default="", help="Who made it.")
@click.option("-m", "--message", default="", help="Why.")
@click.option("-c", "--change", "instructions", multiple=True, metavar="INSTRUCTION", help="CMD, ENV, LABEL, USER, …")
@click.option("-p", "--pause/--no-pause", default=True, help="Let it stand still meanwhile, if it runs.")
def commit(
    container: str, reference: str, author: str, message: str, instructions: tuple[str, ...], pause: bool
) -> None:
    """Make an image of CONTAINER: its own image and what it has changed. What lies in volumes is left out."""
    from runtime.images import commit as committing
    from runtime.images.store import ImageStore

    ref = ImageRef.parse(reference)
    record, document = _found(container)
    store = ImageStore(host_from_env().root)
    base = committing.configuration(store, record.image_digest).get("config") or {}
    settings = committing.changed(_settings(base, record, document), instructions)
    with _still(record) if pause else nullcontext():
        image = committing.commit(
            store,
            record.image_digest,
            record.directory / "upper",
            ref,
            settings=settings,
            author=author,
            message=message,
            created_by=" ".join(document.get("process", {}).get("args", ())),
        )
    click.echo(image.id)


def _settings(base: dict[str, Any], record: Record, document: dict[str, Any]) -> dict[str, Any]:
    """The image's settings as the container was started with: its command, variables, directory and labels."""
    process = document.get("process", {})
    args, entrypoint = list(process.get("args", ())), list(base.get("Entrypoint") or ())
    made = dict(base)
    if record.settings.entrypoint:
        entrypoint = list(record.settings.entrypoint)
        made["Entrypoint"] = entrypoint
    if args[: len(entrypoint)] == entrypoint:
        made["Cmd"] = args[len(entrypoint) :]
    own = {word.partition("=")[0] for word in base.get("Env") or ()}
    made["Env"] = [
        word for word in process.get("env", ()) if word.partition("=")[0] in own or not word.startswith(_OURS)
    ]
    if process.get("cwd", "/") != "/" or base.get("WorkingDir"):
        made["WorkingDir"] = process.get("cwd", "/")
    if record.settings.labels:
        made["Labels"] = {**(base.get("Labels") or {}), **record.settings.labels}
    return made


@contextmanager
def _still(record: Record) -> Iterator[None]:
    """Keep a running container from writing. If this ends midway the container is shown as paused, which it is."""
    state = StateDirectory(host_from_env().root)
    with state.locked(record) as fresh:
        if fresh.status != "running":
            yield
            return
        from runtime.cgroups.detect import open_cgroup

        group = open_cgroup(fresh.id, guard_devices=True)
        mark = fresh.directory / PAUSED
        mark.touch()
        try:
            group.freeze()
            yield
        finally:
            group.thaw()
            mark.unlink(missing_ok=True)


def _found(name: str) -> tuple[Record, dict[str, Any]]:
    state = StateDirectory(host_from_env().root)
    record = state.find(name)
    return record, state.document(record.id)


def _files(record: Record, document: dict[str, Any]) -> ContainerFiles:
    running = record.running and record.run is not None
    return ContainerFiles(
        name=record.name,
        layers=(Path(storage.skeleton(str(host_from_env().root))), *map(Path, record.layers)),
        directory=record.directory,
        pid=record.run.pid if running and record.run else None,
        pid_start=record.run.start if running and record.run else None,
        bound=() if running else tuple(_bound(document)),
        read_only=bool(document.get("root", {}).get("readonly")),
    )


@contextmanager
def _explained(where: str) -> Iterator[None]:
    """Turn a read-only file system, met anywhere inside, into a sentence."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        raise TareError(where, "it is read-only there", "copy into a mount that is not") from error


def _bound(document: dict[str, Any]) -> Iterator[Bound]:
    for mount in document.get("mounts", ()):
        options, path = set(mount.get("options", ())), Path(mount.get("source", ""))
        if {"bind", "rbind"} & options and path.is_absolute() and path.exists():
            yield Bound(path, mount["destination"], "ro" in options)


def _map(pid: int | None, *, inward: bool) -> Owner:
    """Translate between the ids that a running container's processes see (`inward`) and the host's.

    A stopped one's files carry the ids of the inside: its layers are mapped only while it runs.
    """
    if pid is None:
        return same_owner
    uids, gids = (_rows(Path(f"/proc/{pid}/{name}")) for name in ("uid_map", "gid_map"))
    return lambda uid, gid: (_translated(uids, uid, inward), _translated(gids, gid, inward))


def _rows(path: Path) -> list[tuple[int, int, int]]:
    return [tuple(int(word) for word in line.split()) for line in path.read_text().splitlines()]  # type: ignore[misc]


def _translated(rows: list[tuple[int, int, int]], number: int, inward: bool) -> int:
    for inside, outside, count in rows:
        begin, end = (outside, inside) if inward else (inside, outside)
        if begin <= number < begin + count:
            return end + number - begin
    return number

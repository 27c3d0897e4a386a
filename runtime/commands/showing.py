"""The commands that only look at containers: `tare ps`, `inspect`, `logs`, `port`, `events`, `top`, `stats`.

Words and tables, in Docker's shape; every listing takes --json.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

import click

from runtime.commands import listing, moments
from runtime.commands.described import HEADS, container_document, listed, row, sizes
from runtime.commands.templates import Template
from runtime.container import events as told
from runtime.container import logs as kept_logs
from runtime.container.contact import connect
from runtime.container.lifecycle import Containers
from runtime.container.state import LOGS, Record
from runtime.driver import host_from_env
from runtime.errors import TareError, UsageError

_PS_COLUMNS = ("ID", "Image", "Command", "RunningFor", "Status", "Ports", "Names")
_json = click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")


@click.command()
@click.option("-a", "--all", "everything", is_flag=True, help="Those that do not run, too.")
@click.option("-q", "--quiet", is_flag=True, help="Ids only.")
@click.option("-n", "--last", type=int, default=-1, metavar="N", help="The N created last, whatever they do.")
@click.option("-l", "--latest", is_flag=True, help="The one created last.")
@click.option("--no-trunc", is_flag=True, help="Whole ids and commands.")
@click.option("-s", "--size", is_flag=True, help="With what each has written.")
@click.option("-f", "--filter", "filters", multiple=True, metavar="KEY=VALUE", help="id, name, status, label, exited…")
@listing.option
@_json
def ps(
    everything: bool,
    quiet: bool,
    last: int,
    latest: bool,
    no_trunc: bool,
    size: bool,
    filters: Sequence[str],
    form: str | None,
    as_json: bool,
) -> None:
    """List the containers that run."""
    tests = [_filter(text) for text in filters]
    chosen_by_status = any(text.partition("=")[0] in ("status", "exited") for text in filters)
    count = 1 if latest else last
    containers = _containers()
    records = containers.all()
    if not (everything or count >= 0 or chosen_by_status):
        records = [record for record in records if record.running or record.restarting]
    records = [record for record in records if all(test(record) for test in tests)]
    records = records[:count] if count >= 0 else records
    if as_json:
        click.echo(json.dumps([listed(record) for record in records], indent=1))
    elif quiet:
        for record in records:
            click.echo(record.id if no_trunc else record.short_id)
    else:
        rows = [row(containers, record, whole=no_trunc, size=size or "Size" in (form or "")) for record in records]
        listing.show(rows, HEADS, form, (*_PS_COLUMNS, *(("Size",) if size else ())))


def _filter(text: str) -> Callable[[Record], bool]:
    key, equals, value = text.partition("=")
    match key if equals else "":
        case "id":
            return lambda record: record.id.startswith(value)
        case "name":
            return lambda record: value in record.name
        case "status":
            if value not in ("created", "running", "paused", "restarting", "exited"):
                do = "use created, running, paused, restarting or exited"
                raise UsageError(f"--filter {text}", "no such status", do)
            return lambda record: record.status == value
        case "exited":
            return lambda record: record.status == "exited" and str(record.exit_code) == value
        case "label":
            label, has_value, wanted = value.partition("=")
            return lambda record: (
                label in record.settings.labels and (not has_value or record.settings.labels[label] == wanted)
            )
        case "ancestor":
            return lambda record: value in (record.image, record.image.partition(":")[0], record.image_digest)
        case "network":
            return lambda record: record.settings.network == value
    raise UsageError(f"--filter {text}", "not known", "use id=, name=, status=, exited=, label=, ancestor= or network=")


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("-f", "--format", "form", metavar="TEMPLATE", help="A Go template such as {{.State.Status}}, or json.")
@click.option("-s", "--size", is_flag=True, help="With SizeRw, what a container has written, and SizeRootFs.")
@click.option("--type", "kind", type=click.Choice(("container", "image")), help="What is meant.")
def inspect(names: Sequence[str], form: str | None, size: bool, kind: str | None) -> int:
    """Print what is known of containers or images, as JSON."""
    template = Template("{{json .}}" if form == "json" else form) if form else None
    found, code = [], 0
    for name in names:
        try:
            found.append(_described(name, kind, size=size))
        except TareError as error:
            click.echo(f"tare: {error}", err=True)
            code = 1
    if template is None:
        click.echo(json.dumps(found, indent=4))
    else:
        for document in found:
            click.echo(template.render(document))
    return code


def _described(name: str, kind: str | None, *, size: bool) -> dict[str, Any]:
    containers = _containers()
    if kind != "image":
        try:
            record = containers.find(name)
        except TareError:
            if kind == "container":
                raise
        else:
            more = dict(zip(("SizeRw", "SizeRootFs"), sizes(record), strict=True)) if size else {}
            return container_document(containers, record) | more
    from runtime.images.store import ImageStore

    try:
        image = ImageStore(containers.host.root).find(name)
    except TareError as error:
        if kind == "image":
            raise
        raise TareError(f"inspect {name}", "no such container or image", "see: tare ps -a, tare images") from error
    return {
        "Id": image.digest,
        "RepoTags": [str(image.ref)],
        "Created": image.config.get("created"),
        "Architecture": image.config.get("architecture"),
        "Os": image.config.get("os"),
        "Config": image.config.get("config") or {},
        "RootFS": {"Type": "layers", "Layers": [layer.digest for layer in image.layers]},
    }


@click.command()
@click.argument("container")
@click.option("-f", "--follow", is_flag=True, help="Go on until it ends.")
@click.option("-n", "--tail", default="all", metavar="N", help="The last N lines (all).")
@click.option("--since", metavar="TIME", help="From this time, or so long ago, such as 10m.")
@click.option("--until", metavar="TIME", help="Up to this time, or so long ago.")
@click.option("-t", "--timestamps", is_flag=True, help="Each line with its time.")
@_json
def logs(
    container: str,
    follow: bool,
    tail: str,
    since: str | None,
    until: str | None,
    timestamps: bool,
    as_json: bool,
) -> None:
    """Print what CONTAINER has printed, on the streams where it did."""
    containers = _containers()
    record = containers.find(container)
    count = None if tail == "all" or tail.startswith("-") else moments.count("--tail", tail)
    first, last = moments.moment("--since", since), moments.moment("--until", until)
    directory = str(record.directory / LOGS)
    if follow and (record.running or record.restarting):
        entries = _followed(containers, record, directory, tail=count, since=first, until=last)
    else:
        entries = kept_logs.read(directory, tail=count, since=first, until=last)
    streams = {"stdout": sys.stdout.buffer, "stderr": sys.stderr.buffer}
    for entry in entries:
        if as_json:
            text = entry.data.decode(errors="replace")
            click.echo(json.dumps({"time": entry.time, "stream": entry.stream, "log": text}))
            continue
        stream = streams[entry.stream]
        stream.write((entry.time.encode() + b" " if timestamps else b"") + entry.data)
        stream.flush()


def _followed(containers: Containers, record: Record, directory: str, **wanted: Any) -> Iterator[kept_logs.Entry]:
    from runtime.linux.inotify import Inotify

    contact = connect(containers.host.run)
    if contact is None:
        yield from kept_logs.read(directory, **wanted)
        return
    with contact, Inotify([record.directory / LOGS]) as changes:
        contact.ask("wait", record.id, True)
        ended = False

        def changed() -> bool:
            nonlocal ended
            ended = ended or bool(changes.wait([contact.fileno()]))
            return not ended

        yield from kept_logs.follow(directory, changed, **wanted)


@click.command()
@click.argument("container")
@click.argument("private_port", required=False)
@_json
def port(container: str, private_port: str | None, as_json: bool) -> None:
    """List the published ports of CONTAINER, or where one of them is."""
    record = _containers().find(container)
    found = record.run.facts.get("ports", ()) if record.run is not None and record.running else ()
    rows = [(f"{inside}/{protocol}", f"{host}:{outside}") for host, outside, inside, protocol in found]
    if private_port is not None:
        wanted = private_port if "/" in private_port else f"{private_port}/tcp"
        rows = [row for row in rows if row[0] == wanted]
        if not rows:
            raise TareError(f"port {wanted} of {record.name}", "not published", "see: tare port " + record.name)
    if as_json:
        click.echo(json.dumps([{"port": inside, "host": where} for inside, where in rows], indent=1))
        return
    for inside, where in rows:
        click.echo(where if private_port is not None else f"{inside} -> {where}")


@click.command()
@click.option("--since", metavar="TIME", help="From this time, or so long ago, such as 10m.")
@click.option("--until", metavar="TIME", help="Up to this time, or so long ago; then do not wait.")
@click.option("-f", "--filter", "filters", multiple=True, metavar="KEY=VALUE", help="container=, event= or image=.")
@click.option("--format", "form", metavar="TEMPLATE", help="A Go template such as {{.Action}}, or json.")
@_json
def events(since: str | None, until: str | None, filters: Sequence[str], form: str | None, as_json: bool) -> None:
    """Print what happens to containers, from now on or since a time."""
    template = Template(form) if form and form != "json" else None
    containers = _containers()
    first = moments.moment("--since", since) or kept_logs.now()
    last = moments.moment("--until", until)
    tests = [_event_filter(containers, text) for text in filters]
    root = str(containers.host.root)
    for event in told.read(root, first, last) if last else _events(containers, root, first):
        if not all(test(event) for test in tests):
            continue
        if template is not None:
            click.echo(template.render(_docker_event(event)))
        elif form == "json":
            click.echo(json.dumps(_docker_event(event)))
        elif as_json:
            click.echo(json.dumps(event))
        else:
            words = ", ".join(f"{key}={value}" for key, value in sorted(event["attributes"].items()))
            click.echo(f"{event['time']} {event['Type']} {event['Action']} {event['id']} ({words})")
        sys.stdout.flush()


def _events(containers: Containers, root: str, since: str) -> Iterator[dict[str, Any]]:
    from runtime.linux.inotify import Inotify

    containers.host.root.mkdir(parents=True, exist_ok=True, mode=0o711)
    with Inotify([containers.host.root]) as changes:

        def changed() -> bool:
            changes.wait()
            return True

        yield from told.follow(root, changed, since)


def _docker_event(event: dict[str, Any]) -> dict[str, Any]:
    """An event by Docker's names."""
    moment = datetime.fromisoformat(event["time"][:19] + "+00:00")
    return {
        "status": event["Action"],
        "id": event["id"],
        "ID": event["id"],
        "from": event["attributes"].get("image", ""),
        "Type": event["Type"],
        "Action": event["Action"],
        "Actor": {"ID": event["id"], "Attributes": event["attributes"]},
        "scope": "local",
        "time": int(moment.timestamp()),
        "Time": event["time"],
    }


def _event_filter(containers: Containers, text: str) -> Callable[[dict[str, Any]], bool]:
    key, _, value = text.partition("=")
    match key if value else "":
        case "container":
            identity = value
            with suppress(TareError):
                identity = containers.find(value).id
            return lambda event: event["id"].startswith(identity) or event["attributes"].get("name") == value
        case "event":
            return lambda event: bool(event["Action"] == value)
        case "image":
            return lambda event: bool(event["attributes"].get("image") == value)
        case "type":
            return lambda event: bool(event["Type"] == value)
    raise UsageError(f"--filter {text}", "not known", "use container=, event=, image= or type=")


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("container")
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[PS OPTIONS]")
def top(container: str, words: Sequence[str]) -> None:
    """List the processes of CONTAINER, as the host's ps shows them."""
    from runtime.commands.processes import table

    containers = _containers()
    record = containers.find(container)
    if not record.running:
        raise TareError(f"container {record.name}", "it does not run", f"tare start {record.name}")
    for line in table(containers.ground.group(record.id).pids(), words):
        click.echo(line)


@click.command()
@click.argument("names", nargs=-1, metavar="[CONTAINER...]")
@click.option("-a", "--all", "everything", is_flag=True, help="Those that do not run, too.")
@click.option("--no-stream", is_flag=True, help="Only once.")
@click.option("--no-trunc", is_flag=True, help="Whole ids.")
@listing.option
@_json
def stats(
    names: Sequence[str], everything: bool, no_stream: bool, no_trunc: bool, form: str | None, as_json: bool
) -> None:
    """Show what containers use, again and again."""
    from runtime.commands.usage import HEADS as COLUMNS
    from runtime.commands.usage import Meter

    containers = _containers()

    def chosen() -> list[Record]:
        if names:
            return [containers.find(name) for name in names]
        return [record for record in containers.all() if everything or record.running]

    meter = Meter(containers)
    meter.look(chosen())
    while True:
        meter.rest()
        rows = meter.look(chosen())
        if as_json:
            click.echo(json.dumps([row.document(no_trunc) for row in rows], indent=1 if no_stream else None))
        else:
            if not no_stream and sys.stdout.isatty():
                click.echo("\x1b[2J\x1b[H", nl=False)
            listing.show([row.words(no_trunc) for row in rows], COLUMNS, form, tuple(COLUMNS))
        sys.stdout.flush()
        if no_stream:
            return


def _containers() -> Containers:
    return Containers(host_from_env())

"""`tare volume create|ls|inspect|rm|prune`, with the words of `docker volume`.

Only words and tables; the work is done by `runtime.container.volumes`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import click

from runtime.commands import several
from runtime.container.volumes import Volume, VolumeStore
from runtime.driver import host_from_env
from runtime.errors import UsageError
from runtime.images.store import tree_bytes

_FILTERS = ("dangling", "label", "name")


@click.group()
def volume() -> None:
    """Keep data that outlives containers: named directories, mounted with -v NAME:/PATH."""


@volume.command()
@click.argument("name", required=False)
@click.option("-l", "--label", "labels", multiple=True, metavar="KEY=VALUE", help="Describe it; may be repeated.")
@click.option("-d", "--driver", default="local", metavar="NAME", help="Only `local` is there.")
def create(name: str | None, labels: Sequence[str], driver: str) -> None:
    """Make a volume, called by a random name if no NAME is given, and print its name."""
    if driver != "local":
        raise UsageError(f"volume driver {driver}", "no such driver", "use local")
    click.echo(_store().create(name, dict(_pair(label) for label in labels)).name)


@volume.command("ls")
@click.option("-q", "--quiet", is_flag=True, help="Names only.")
@click.option("-f", "--filter", "filters", multiple=True, metavar="KEY=VALUE", help="dangling=, label= or name=.")
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
def ls(quiet: bool, filters: Sequence[str], as_json: bool) -> None:
    """List the volumes."""
    store = _store()
    users = store.users()
    found = [each for each in store.all() if all(_matches(each, users.get(each.name, ()), text) for text in filters)]
    if as_json:
        click.echo(json.dumps([{**each.document(), "UsedBy": users.get(each.name, [])} for each in found], indent=1))
        return
    if not quiet:
        click.echo(f"{'DRIVER':10}VOLUME NAME")
    for each in found:
        click.echo(each.name if quiet else f"{'local':10}{each.name}")


@volume.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
def inspect(names: Sequence[str]) -> None:
    """Print what is known of volumes, as JSON."""
    store = _store()
    click.echo(json.dumps([store.find(name).document() for name in names], indent=4))


@volume.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("-f", "--force", is_flag=True, help="Do not mind volumes that are not there.")
def rm(names: Sequence[str], force: bool) -> int:
    """Remove volumes with all in them. One that a container uses, running or not, stays."""
    store, known = _store(), {each.name for each in _store().all()}
    wanted = [name for name in names if name in known or not force]
    return several.each(wanted, store.remove)


@volume.command()
@click.option("-a", "--all", "every", is_flag=True, help="Named volumes, too, not only those without a name.")
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print what was removed as JSON.")
def prune(every: bool, force: bool, as_json: bool) -> None:
    """Remove the volumes that no container uses: those nobody named, or all."""
    what = "all volumes" if every else "all volumes without a name of their own"
    if not force and not click.confirm(f"This removes {what} that no container uses. Go on?", err=True):
        raise click.exceptions.Abort
    store = _store()
    users = store.users()
    doomed = [each for each in store.all() if each.name not in users and (every or each.anonymous)]
    reclaimed = 0
    for each in doomed:
        size_bytes = tree_bytes(each.data)[1]
        store.remove(each.name)
        reclaimed += size_bytes
    if as_json:
        click.echo(json.dumps({"removed": [each.name for each in doomed], "bytes": reclaimed}, indent=1))
        return
    if doomed:
        click.echo("\n".join(["Deleted Volumes:", *(each.name for each in doomed), ""]))
    click.echo(f"Total reclaimed space: {reclaimed} B")


def _store() -> VolumeStore:
    return VolumeStore(host_from_env().root)


def _pair(text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    if not key:
        raise UsageError(f"label {text!r}", "has no name", "use --label KEY=VALUE")
    return key, value


def _matches(each: Volume, users: Iterable[str], text: str) -> bool:
    key, equals, value = text.partition("=")
    if key not in _FILTERS or not equals:
        raise UsageError(f"filter {text!r}", "not known", f"use one of {', '.join(f'{key}=' for key in _FILTERS)}")
    if key == "dangling":
        return (value.lower() in ("true", "1")) != bool(list(users))
    if key == "name":
        return value in each.name
    label, given, wanted = value.partition("=")
    return label in each.labels and (not given or each.labels[label] == wanted)

"""The commands that deal with what this host keeps: `tare build`, `tare images`, `tare clean`.

Only words and tables; the work is done by `runtime.images` and the drivers.
"""

from __future__ import annotations

import fnmatch
import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import click

from runtime import scratch, tuning
from runtime.cgroups import parents
from runtime.commands import listing, moments
from runtime.commands.imagestore import image_store
from runtime.container.lifecycle import Containers
from runtime.container.volumes import VolumeStore
from runtime.driver import Driver, Host, drivers, host_from_env
from runtime.errors import TareError, UsageError
from runtime.images import recipe as recipes
from runtime.images.store import Image, ImageStore, tree_bytes
from runtime.ledger import Ledger
from runtime.linux import filtercache
from runtime.network.network import Networks
from runtime.vm import keeperplace
from runtime.vm.records import Records


@click.command()
@click.argument("recipe", default="debian")
@click.option("--force", is_flag=True, help="Build again even if nothing has changed.")
@click.option("--json", "as_json", is_flag=True, help="Print what was built as JSON.")
def build(recipe: str, force: bool, as_json: bool) -> None:
    """Build the images of RECIPE (a name or a .toml file) and the machine's disk, unless they are current."""
    store = image_store()
    if os.geteuid() != 0:
        raise TareError("building images", "needs root: files keep their owners", "run it as root")

    def say(text: str) -> None:
        click.echo(text, err=True)

    image, whole = recipes.build(store, recipes.load(recipe), force=force, say=say)
    machine = store.machine(image.ref, say)
    if as_json:
        click.echo(json.dumps([_described(store, image), _described(store, whole)], indent=1))
    else:
        click.echo(f"{image.ref} {image.digest}\n{whole.ref} {whole.digest} machine {machine.digest}")


_HEADS = {
    "Image": "IMAGE",
    "Repository": "REPOSITORY",
    "Tag": "TAG",
    "ID": "ID",
    "Digest": "DIGEST",
    "Layers": "LAYERS",
    "CreatedSince": "CREATED",
    "CreatedAt": "CREATED AT",
    "Logical": "LOGICAL",
    "Allocated": "ALLOCATED",
    "Machine": "MACHINE",
    "Size": "SIZE",
}
_COLUMNS = ("Image", "ID", "Digest", "Layers", "Logical", "Allocated", "Machine")


@click.command()
@click.argument("name", required=False, metavar="[NAME[:TAG]]")
@click.option("-q", "--quiet", is_flag=True, help="Ids only.")
@click.option("-a", "--all", is_flag=True, expose_value=False, help="As without: none is hidden.")
@click.option("--no-trunc", is_flag=True, help="Whole ids and digests.")
@click.option("-f", "--filter", "filters", multiple=True, metavar="KEY=VALUE", help="reference=PATTERN, label=.")
@listing.option
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
def images(
    name: str | None, quiet: bool, no_trunc: bool, filters: Sequence[str], form: str | None, as_json: bool
) -> None:
    """List the images on this host: layers, and bytes logical and allocated (shared layers count in each)."""
    store = image_store()
    tests = [_filter(text) for text in (*filters, *([f"reference={name}"] if name else []))]
    all_whole = store.images()
    found = [image for image in all_whole if all(test(image) for test in tests)]
    if quiet:
        for identity in dict.fromkeys(image.id if no_trunc else image.id[7:19] for image in found):
            click.echo(identity)
        return
    rows = [_described(store, image) for image in found]
    for broken in sorted(set(store.layout.references()) - {str(image.ref) for image in all_whole}):
        click.echo(f"{broken} is not whole: get it again, or remove it with tare rmi", err=True)
    if as_json:
        click.echo(json.dumps(rows, indent=1))
    elif rows or form:
        words = [_words(image, row, no_trunc) for image, row in zip(found, rows, strict=True)]
        listing.show(words, _HEADS, form, _COLUMNS)
    elif not tests:
        click.echo("no images (make them with tare build, or get some with tare pull)")


def _words(image: Image, row: dict[str, Any], whole: bool) -> dict[str, Any]:
    """A row of `images` by the names of its columns."""
    created = str(image.config.get("created") or "")
    registry = f"{image.ref.registry}/" if image.ref.registry else ""
    machine = row["machine"]
    return {
        "Image": row["ref"],
        "Repository": registry + image.ref.name,
        "Tag": image.ref.tag,
        "ID": image.id if whole else image.id[7:19],
        "Digest": row["digest"] if whole else row["digest"][:19],
        "Layers": len(row["layers"]),
        "CreatedSince": _since(created),
        "CreatedAt": created or "N/A",
        "Logical": _mib(row["logical_bytes"]),
        "Allocated": _mib(row["allocated_bytes"]),
        "Machine": _mib(machine["allocated_bytes"]) if machine else "-",
        "Size": listing.human(row["logical_bytes"]),
    }


def _since(created: str) -> str:
    try:
        return moments.ago(created)
    except ValueError:  # an image may say anything
        return "N/A"


def _filter(text: str) -> Callable[[Image], bool]:
    key, _, value = text.partition("=")
    match key if value else "":
        case "reference":
            return lambda image: any(fnmatch.fnmatchcase(name, value) for name in _names(image))
        case "label":
            label, has_value, wanted = value.partition("=")
            return lambda image: label in image.labels and (not has_value or image.labels[label] == wanted)
        case "dangling" if value in ("false", "0"):  # an image without a name is no image here
            return lambda image: True
        case "dangling" if value in ("true", "1"):
            return lambda image: False
    raise UsageError(f"--filter {text}", "not known", "use reference=PATTERN, label=KEY[=VALUE] or dangling=")


def _names(image: Image) -> tuple[str, ...]:
    """What a user may call it in a listing: with its registry or not, with its tag or not."""
    ref = image.ref
    bases = (ref.name, f"{ref.registry}/{ref.name}") if ref.registry else (ref.name,)
    return tuple(name for base in bases for name in (base, f"{base}:{ref.tag}"))


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
def clean(as_json: bool) -> None:
    """Remove everything Tare ever left on this host, except what still runs and the images in use."""
    image_store()
    done = sweep(host_from_env())
    if as_json:
        click.echo(json.dumps({"removed": done.removed, "live": done.live, "failed": done.failed}, indent=1))
        return
    for line in done.removed:
        click.echo(f"removed {line}")
    for entry in done.live:
        click.echo(f"left alone {entry['id']}: its owner, process {entry['pid']}, is running")
    for line in done.failed:
        click.echo(f"not removed: {line}", err=True)
    if not (done.removed or done.live or done.failed):
        click.echo("nothing to clean")


@dataclass(slots=True)
class Sweep:
    """What a sweep did: lines about things removed, live instances (id, pid), and what could not be removed."""

    removed: list[str] = field(default_factory=list)
    live: list[dict[str, Any]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def sweep(host: Host) -> Sweep:
    """Sweep every driver, then half-made images and volumes, scratch files and, when nothing is live, unneeded layers.

    A driver that cannot work on this host is passed over if it left nothing, named if it did.
    """
    done = Sweep()
    _put_back(host, done)
    ledger, store = Ledger(host.run), ImageStore(host.root)
    for name, kind in sorted(drivers().items()):
        _sweep_driver(name, kind, host, done)
    done.removed += Records(host).sweep()
    containers = Containers(host)
    try:
        done.removed += containers.sweep()
    except (TareError, OSError) as error:
        done.failed.append(f"containers: {error}")
    finally:
        containers.close()
    done.live = [{"id": instance_id, "pid": pid} for instance_id, pid in ledger.live()]
    try:
        done.removed += store.sweep(unneeded=not done.live)
    except (TareError, OSError) as error:
        done.failed.append(f"images: {error}")
    try:
        done.removed += VolumeStore(host.root).sweep()
    except (TareError, OSError) as error:
        done.failed.append(f"volumes: {error}")
    try:
        done.removed += scratch.sweep(host.root)
    except OSError as error:
        done.failed.append(f"scratch: {error}")
    networks = Networks(host.root, host.run)
    try:
        done.removed += networks.reclaim(ledger.instances)
        done.removed += networks.retire()
        done.removed += networks.remove_orphans() if os.geteuid() == 0 else []
    except (TareError, OSError) as error:
        done.failed.append(f"networks: {error}")
    finally:
        networks.close()
    _retire(host, done)
    return done


def _retire(host: Host, done: Sweep) -> None:
    """What is there for whoever comes next and holds nothing: those who need it make it again.

    Of what is empty or can be had again nothing is said: it was in nobody's way, and all state directories of a host
    share the groups. While an instance lives, so may a measurement: it keeps its compiled filters.
    """
    try:
        done.removed += keeperplace.retire(host)
        if os.geteuid() == 0:
            parents.retire()
        for place in () if done.live else (host.run, host.root):
            filtercache.forget(place / "seccomp")
    except OSError as error:
        done.failed.append(str(error))
    for name in ("oci", "vm", "libvirt", "instances"):
        with suppress(OSError):
            (host.run / name).rmdir()


def _put_back(host: Host, done: Sweep) -> None:
    """The settings that a killed `tare bench --tune` changed."""
    try:
        found = tuning.put_back(host.run)
    except TareError as error:
        done.failed.append(str(error))
        return
    done.removed += [f"the tuning of {line}" for line in found.done + found.left]
    done.failed += [f"the tuning of {line}" for line in found.failed]


def _sweep_driver(name: str, kind: type[Driver], host: Host, done: Sweep) -> None:
    try:
        driver = kind(host)
        try:
            done.removed += driver.sweep()
        finally:
            driver.close()
    except Exception as error:  # noqa: BLE001 - one driver's missing library must not keep the others' dirt
        if any(Ledger(host.run).stale(name)):
            done.failed.append(f"{name}: {error}")


def _described(store: ImageStore, image: Image) -> dict[str, Any]:
    sizes = [tree_bytes(layer.directory) for layer in image.layers]
    machine = store.machine_if_built(image)
    return {
        "ref": str(image.ref),
        "digest": image.digest,
        "id": image.id,
        "layers": [
            {"digest": layer.digest, "logical_bytes": logical, "allocated_bytes": allocated}
            for layer, (logical, allocated) in zip(image.layers, sizes, strict=True)
        ],
        "logical_bytes": sum(logical for logical, _ in sizes),
        "allocated_bytes": sum(allocated for _, allocated in sizes),
        "machine": machine and dict(zip(("logical_bytes", "allocated_bytes"), tree_bytes(machine.disk), strict=True)),
    }


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.1f} MiB"

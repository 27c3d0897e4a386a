"""The commands that move images: pull, push, save, load, import, tag, rmi, history.

Only words; the work is done by `runtime.images`. `tare images` and `tare build` are in `runtime.cli`.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

import click

from runtime.commands.imagestore import image_store
from runtime.driver import host_from_env
from runtime.errors import TareError, UsageError, printable
from runtime.images import archives, importing, saving
from runtime.images.auth import find_credentials, parse_credentials
from runtime.images.collect import remove_image
from runtime.images.pull import Platform
from runtime.images.pull import pull as pull_image
from runtime.images.push import push as push_image
from runtime.images.reference import repository
from runtime.images.store import Image, ImageStore
from runtime.images.transport import Access
from runtime.ledger import Ledger
from runtime.spec import ImageRef

_Command = TypeVar("_Command", bound=Callable[..., Any])


def _registry_options(command: _Command) -> _Command:
    command = click.option("-q", "--quiet", is_flag=True, help="Print only the result.")(command)
    command = click.option("--plain-http", is_flag=True, help="Speak to the registry without encryption.")(command)
    return click.option("--creds", metavar="USER:PASSWORD", help="Who you are; else what log-ins left.")(command)


@click.command()
@click.argument("image")
@click.option("--platform", metavar="OS/ARCH", help="Another platform than this machine's.")
@_registry_options
def pull(image: str, platform: str | None, creds: str | None, plain_http: bool, quiet: bool) -> None:
    """Fetch IMAGE, [HOST[:PORT]/]NAME[:TAG|@DIGEST], from its registry: Docker Hub if it names none."""
    ref = ImageRef.parse(image)
    wanted = Platform.parse(platform) if platform else None
    with _saying(quiet) as say:
        found = pull_image(_writable_store(), ref, access(ref, creds, plain_http), platform=wanted, say=say)
    click.echo(found.digest if quiet else f"{found.ref} {found.digest}")


@click.command()
@click.argument("image")
@click.argument("destination", required=False)
@_registry_options
def push(image: str, destination: str | None, creds: str | None, plain_http: bool, quiet: bool) -> None:
    """Give IMAGE to the registry its name, or DESTINATION, says; its bytes and digest stay as they are."""
    store = image_store()
    with store.using(), _saying(quiet) as say:  # nobody removes what is being sent
        found = store.find(image)
        ref = ImageRef.parse(destination) if destination else found.ref
        digest = push_image(store, found, ref, access(ref, creds, plain_http), say=say)
    click.echo(digest if quiet else f"{ref} {digest}")


@click.command()
@click.argument("image", nargs=-1, required=True)
@click.option("-o", "--output", metavar="FILE", help="Write there instead of to the standard output.")
@click.option(
    "--format",
    "form",
    type=click.Choice(saving.FORMATS),
    default="oci",
    show_default=True,
    help="oci keeps digests and loads into Docker as well; docker is for engines and tools that know nothing else.",
)
def save(image: tuple[str, ...], output: str | None, form: str) -> None:
    """Write images into one archive."""
    store = image_store()
    with store.using():  # nobody removes what is being written
        _save(store, [store.find(name) for name in image], output, form)


def _save(store: ImageStore, found: list[Image], output: str | None, form: str) -> None:
    if output is None:
        if sys.stdout.isatty():
            raise UsageError("saving images", "an archive is not for a terminal", "use --output FILE, or redirect it")
        with _writing("to the standard output"):
            saving.save(store, found, sys.stdout.buffer, form=form)
            sys.stdout.flush()
        return
    target = Path(output)
    fresh = target.with_name(f".{target.name}.{os.getpid()}")
    with _writing(output):
        try:
            with fresh.open("wb") as file:
                saving.save(store, found, file, form=form)
            fresh.replace(target)
        finally:
            fresh.unlink(missing_ok=True)


@contextlib.contextmanager
def _writing(where: str) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise TareError(f"archive {where}", error.strerror or str(error), "choose another --output FILE") from error


@click.command()
@click.option("-i", "--input", "source", metavar="FILE", help="Read this archive or OCI layout, not standard input.")
@click.option("--tag", metavar="NAME", help="Call the image so, whatever the archive calls it.")
@click.option("-q", "--quiet", is_flag=True, help="Do not say how far it is.")
def load(source: str | None, tag: str | None, quiet: bool) -> None:
    """Take in every image of an archive: what save of Tare, Docker or podman wrote, or skopeo; compressed or not."""
    ref = ImageRef.parse(tag) if tag else None
    with _saying(quiet) as say:
        found = archives.load(_writable_store(), _input(source), ref=ref, say=say)
    for image in found:
        click.echo(f"{image.ref} {image.digest}")


@click.command("import")
@click.argument("source", metavar="FILE|-")
@click.argument("image")
@click.option("-c", "--change", multiple=True, metavar="WORDS", help="A Dockerfile's words, such as 'CMD [\"sh\"]'.")
@click.option("-m", "--message", default="", help="A line for the image's history.")
def import_(source: str, image: str, change: tuple[str, ...], message: str) -> None:
    """Make IMAGE of the archive of a root file system."""
    ref = ImageRef.parse(image)
    made = importing.import_tar(_writable_store(), _input(source), ref, changes=change, message=message)
    click.echo(f"{made.ref} {made.digest}")


@click.command()
@click.argument("image")
@click.argument("name")
def tag(image: str, name: str) -> None:
    """Give IMAGE the further NAME."""
    store = _writable_store()
    store.tag(store.find(image), ImageRef.parse(name))


@click.command()
@click.argument("image", nargs=-1, required=True)
@click.option("-f", "--force", is_flag=True, help="Even if a container uses it or it has several names.")
def rmi(image: tuple[str, ...], force: bool) -> None:
    """Forget images by name, id or digest, and remove what no other image and no container needs."""
    store = _writable_store()
    # A driver's instance may lie on layers that no container's state names: then only names go, `tare clean` the rest.
    busy = any(True for _ in Ledger(host_from_env().run).live())
    for name in image:
        for line in remove_image(store, name, force=force, keep_data=busy):
            click.echo(line)


@click.command()
@click.argument("image")
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
@click.option("--no-trunc", is_flag=True, help="Print whole commands.")
def history(image: str, as_json: bool, no_trunc: bool) -> None:
    """Show how IMAGE was made, newest first: when, with what, and how large each layer's blob is."""
    store = image_store()
    rows = _history(store, store.find(image))
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    click.echo(f"{'CREATED':20} {'SIZE':>10}  CREATED BY")
    for row in rows:
        words = row["created_by"] + (f" # {row['comment']}" if row["comment"] else "")
        words = printable(words)
        size = f"{row['size_bytes'] / 2**20:.1f} MiB"
        click.echo(f"{printable(row['created'])[:19]:20} {size:>10}  {words if no_trunc else words[:80]}")


def _history(store: ImageStore, image: Image) -> list[dict[str, Any]]:
    sizes = iter(int(layer["size"]) for layer in store.layout.get(image.digest)["layers"])
    layers = iter(image.layers)
    rows = []
    for entry in image.config.get("history") or []:
        empty = bool(entry.get("empty_layer"))
        layer = None if empty else next(layers, None)
        rows.append(
            {
                "created": str(entry.get("created") or ""),
                "created_by": str(entry.get("created_by") or ""),
                "comment": str(entry.get("comment") or ""),
                "size_bytes": next(sizes, 0) if layer else 0,
                "layer": layer and layer.digest,
            }
        )
    # A history may tell less than there is: no layer is left out.
    rows += [
        {"created": "", "created_by": "", "comment": "", "size_bytes": size, "layer": layer.digest}
        for layer, size in zip(layers, sizes, strict=False)
    ]
    return rows[::-1]


def access(ref: ImageRef, creds: str | None, plain_http: bool) -> Access:
    """How to reach the registry of `ref`: as whom the command line says, else as this user's files say."""
    credentials = parse_credentials(creds) if creds else find_credentials(repository(ref)[0])
    return Access(credentials=credentials, plain_http=plain_http)


@contextlib.contextmanager
def _saying(quiet: bool) -> Iterator[Callable[[str], None]]:
    """Progress on stderr: one line that changes on a terminal, plain lines elsewhere."""
    if quiet:
        yield lambda text: None
    elif not sys.stderr.isatty():
        yield lambda text: click.echo(text, err=True)
    else:
        try:
            yield lambda text: click.echo(f"\r\033[K{text}", err=True, nl=False)
        finally:
            click.echo("", err=True)


def _input(source: str | None) -> Path | IO[bytes]:
    if source is not None and source != "-":
        return Path(source)
    if sys.stdin.isatty():
        raise UsageError("archive", "an archive does not come from a terminal", "use --input FILE, or redirect it")
    return sys.stdin.buffer


def _writable_store() -> ImageStore:
    if os.geteuid() != 0:
        raise TareError("changing images", "needs root: files keep their owners", "run it as root")
    return image_store()

"""Builds the bench images from a recipe: one run of mmdebstrap, its layers, and our own programs on top.

A recipe is a TOML file in `recipes/`, which also explains itself. Not for unpacking or keeping layers
(`store.py`) nor for making a bootable disk of them (`disk.py`).
"""

from __future__ import annotations

import os
import shutil
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from runtime.command import run
from runtime.errors import TareError, UsageError
from runtime.images.layout import room_for
from runtime.images.pack import pack
from runtime.images.store import MACHINE_BYTES_LABEL, MACHINE_LABEL, Image, ImageStore, Layer, fingerprint
from runtime.spec import ImageRef, parse_size

GUEST_SOURCES = Path(__file__).parents[1] / "guest"
AGENT = "/usr/lib/tare/agent"
GAUGE = "/usr/lib/tare/gauge"
_RECIPES = Path(__file__).parent / "recipes"
_BUILD_LABEL = "org.tare.recipe"
_NEEDED_BYTES = 2 << 30  # the tree twice, its layers packed and unpacked
_BUILD_S = 1800

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class File:
    """One text file to put into the image."""

    path: str
    text: str
    mode: str = "0644"


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """The userland every instance runs."""

    packages: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MachinePart:
    """What a virtual machine needs beyond it; `commands` run inside the tree, through a shell."""

    packages: tuple[str, ...]
    files: tuple[File, ...] = ()
    commands: tuple[str, ...] = ()
    disk_bytes: str = "4g"


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """What lies on top of both, beside the agent and the gauge."""

    files: tuple[File, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A recipe file, read. `epoch_s` is the latest time any packed file may carry."""

    image: str
    machine_image: str
    suite: str
    variant: str
    epoch_s: int
    dpkg_options: tuple[str, ...]
    exclude: tuple[str, ...]
    base: Base
    machine: MachinePart
    guest: Guest
    source: bytes = b""


def load(name: str) -> Recipe:
    """The recipe called `name`, or in the file `name` if that ends in .toml.

    Raises UsageError when there is none or a key in it is missing, unknown or of the wrong type.
    """
    path = Path(name) if name.endswith(".toml") else _RECIPES / f"{name}.toml"
    known = ", ".join(sorted(file.stem for file in _RECIPES.glob("*.toml")))
    if not path.is_file():
        raise UsageError(f"recipe {name!r}", "no such recipe", f"choose from {known}, or name a .toml file")
    source = path.read_bytes()
    try:
        table = tomllib.loads(source.decode())
        parts = {"base": Base, "machine": MachinePart, "guest": Guest}
        nested = {key: _read(kind, table.pop(key), key) for key, kind in parts.items()}
        recipe = _read(Recipe, {**table, **nested, "source": source}, "recipe")
        for reference in (recipe.image, recipe.machine_image):
            ImageRef.parse(reference)
        parse_size(recipe.machine.disk_bytes)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise UsageError(f"recipe {path}", str(error), f"compare it with {_RECIPES / 'debian.toml'}") from error
    assert isinstance(recipe, Recipe)
    return recipe


def _read(kind: type[Any], table: Mapping[str, Any], where: str) -> Any:
    """A dataclass from a TOML table; raises TypeError that names the key."""
    names = {field.name for field in fields(kind)}
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in names:
            raise TypeError(f"unknown key {where}.{key}")
        values[key] = _value(key, value, where)
    return kind(**values)


def _value(key: str, value: Any, where: str) -> Any:
    if key == "files":
        return tuple(_read(File, entry, f"{where}.files") for entry in value)
    if isinstance(value, list):
        if not all(isinstance(word, str) for word in value):
            raise TypeError(f"{where}.{key} is no list of strings")
        return tuple(value)
    return value


def compile_static(source: Path, program: Path) -> None:
    """Compile one C file into a static, stripped program, which runs in any root file system."""
    run(["gcc", "-static", "-O2", "-s", "-Wl,--build-id=none", "-o", str(program), str(source)], timeout_s=120)


def build(
    store: ImageStore, recipe: Recipe, *, force: bool = False, say: Say = lambda text: None
) -> tuple[Image, Image]:
    """Make the recipe's image and its machine's image, unless what is there was made from the same sources.

    Nothing is rebuilt that did not change: a new agent alone costs a second. Needs root. Takes the
    store's lock. Raises TareError with nothing half-made left behind.
    """
    with store.exclusive(lambda: say("waiting: another process is building")):
        system = fingerprint(recipe.source)
        agent = fingerprint(recipe.source, *agent_sources(), _source("gauge.c").read_bytes())
        built = None if force else _current(store, recipe)
        if built is not None and built[0].labels.get(_BUILD_LABEL) == f"{system} {agent}":
            return built
        with store.partial() as work, room_for(f"building {recipe.image}", store.directory):
            say("[1/5] compiling the guest agent and the gauge")
            guest = _guest_layer(store, recipe, work)
            if built is not None and built[0].labels.get(_BUILD_LABEL, "").split(" ")[0] == system:
                base, machine = built[1].layers[0], built[1].layers[1]
            else:
                base, machine = _system_layers(store, recipe, work, say)
            return _name(store, recipe, (base, machine, guest), f"{system} {agent}")


def agent_sources() -> tuple[bytes, ...]:
    """All that the guest agent is compiled from. Raises TareError when it is not there."""
    return tuple(_source(name).read_bytes() for name in ("agent.c", "configure.h", "files.h"))


def _source(name: str) -> Path:
    source = GUEST_SOURCES / name
    if not source.is_file():
        raise TareError(f"guest program {source}", "no such file", "install Tare with its guest sources")
    return source


def _current(store: ImageStore, recipe: Recipe) -> tuple[Image, Image] | None:
    try:
        return store.resolve(ImageRef.parse(recipe.image)), store.resolve(ImageRef.parse(recipe.machine_image))
    except TareError:
        return None


def _name(store: ImageStore, recipe: Recipe, layers: tuple[Layer, Layer, Layer], made_from: str) -> tuple[Image, Image]:
    size = str(parse_size(recipe.machine.disk_bytes))
    labels = {_BUILD_LABEL: made_from, MACHINE_BYTES_LABEL: size}
    lines = [f"mmdebstrap {recipe.suite}", "machine packages", "guest agent"]
    whole = store.add(
        ImageRef.parse(recipe.machine_image), layers, labels=labels, epoch_s=recipe.epoch_s, history=lines
    )
    labels |= {MACHINE_LABEL: recipe.machine_image}
    image = store.add(
        ImageRef.parse(recipe.image), layers[::2], labels=labels, epoch_s=recipe.epoch_s, history=lines[::2]
    )
    return image, whole


def _guest_layer(store: ImageStore, recipe: Recipe, work: Path) -> Layer:
    tree = work / "guest"
    _write_files(tree, recipe.guest.files)
    for source, place in (("agent.c", AGENT), ("gauge.c", GAUGE)):
        program = tree / place.lstrip("/")
        program.parent.mkdir(parents=True, exist_ok=True)
        compile_static(_source(source), program)
        program.chmod(0o755)
    _open_up(tree)
    return _packed(store, recipe, tree, work / "guest.tar")


def _system_layers(store: ImageStore, recipe: Recipe, work: Path, say: Say) -> tuple[Layer, Layer]:
    missing = next((tool for tool in ("mmdebstrap", "unshare", "setpriv") if shutil.which(tool) is None), None)
    if missing is not None:
        raise TareError(f"building {recipe.image}", f"{missing} is not installed", "run ./bootstrap to install it")
    free = shutil.disk_usage(work).free
    if free < _NEEDED_BYTES:
        why = f"{free >> 20} MiB free below {store.directory}, {_NEEDED_BYTES >> 20} MiB needed"
        raise TareError(f"building {recipe.image}", why, "free some, or move the state with --root DIR")
    say("[2/5] Debian's packages with mmdebstrap: the long step, about 50 s on two CPUs")
    _bootstrap(recipe, work)
    say("[3/5] packing and unpacking the base layer, about 10 s")
    base = _packed(store, recipe, work / "base", work / "base.tar", exclude=recipe.exclude)
    say("[4/5] the machine layer: what the kernel and systemd add to it, about 5 s")
    machine = _packed(store, recipe, work / "full", work / "machine.tar", exclude=recipe.exclude, below=base.directory)
    say("[5/5] naming the images")
    return base, machine


def _packed(
    store: ImageStore,
    recipe: Recipe,
    tree: Path,
    archive: Path,
    *,
    exclude: Sequence[str] = (),
    below: Path | None = None,
) -> Layer:
    with archive.open("wb") as file:
        pack(tree, file, epoch_s=recipe.epoch_s, exclude=exclude, below=below)
    return store.put_layer(archive)


def _bootstrap(recipe: Recipe, work: Path) -> None:
    """Run mmdebstrap: leaves `work/base` (the tree before the machine packages) and `work/full` (after them)."""
    _write_files(work / "files", recipe.machine.files)
    _open_up(work / "files")
    hooks = (_base_hook(work), _machine_hook(recipe, work))
    command = [
        # Everything mmdebstrap starts and mounts dies with this process, however that dies.
        *("setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
        *("mmdebstrap", "--mode=root", "--format=directory", f"--variant={recipe.variant}"),
        *("--include", ",".join(recipe.base.packages)),
        *(f"--dpkgopt={option}" for option in recipe.dpkg_options),
        *(f"--customize-hook={hook}" for hook in hooks),
        *(recipe.suite, str(work / "full")),
        *((mirror,) if (mirror := os.environ.get("TARE_MIRROR")) else ()),
    ]
    script = work / "bootstrap.sh"
    script.write_text('#!/bin/sh\nexec "$@" >"${0%.sh}.log" 2>&1\n')
    environment = {**os.environ, "LC_ALL": "C", "SOURCE_DATE_EPOCH": str(recipe.epoch_s), "TMPDIR": str(work)}
    with _log_explains(work / "bootstrap.log", recipe):
        run(["sh", str(script), *command], timeout_s=_BUILD_S, env=environment)


def _base_hook(work: Path) -> str:
    # mmdebstrap keeps services from starting while it works; the copy gets the real programs back.
    copy = f'cp -a --one-file-system "$1" {work}/base'
    program = f"{work}/base/usr/sbin/start-stop-daemon"
    return f"set -e; {copy}; if test -e {program}.REAL; then mv {program}.REAL {program}; fi"


def _machine_hook(recipe: Recipe, work: Path) -> str:
    install = "apt-get install --yes --no-install-recommends -o Dpkg::Options::=--force-confold"
    steps = [
        f'cp -dR {work}/files/. "$1"/',
        f'DEBIAN_FRONTEND=noninteractive chroot "$1" {install} {" ".join(recipe.machine.packages)}',
        *(f'chroot "$1" {command}' for command in recipe.machine.commands),
    ]
    return "set -e; " + "; ".join(steps)


@contextmanager
def _log_explains(log: Path, recipe: Recipe) -> Iterator[None]:
    """Turn a failed run into a sentence with the end of its log."""
    try:
        yield
    except TareError as error:
        text = log.read_text(errors="replace") if log.exists() else ""
        kept = log.parents[2] / "build.log"
        kept.write_text(text)
        if "No space left on device" in text:
            do = "free some, or move the state with --root DIR"
            raise TareError(f"building {recipe.image}", f"no space left below {log.parents[2]}", do) from error
        lines = [line for line in text.splitlines() if line.strip()][-4:] or [error.why]
        do = f"the whole log: {kept}; another mirror: TARE_MIRROR=URL"
        raise TareError(f"building {recipe.image}", " / ".join(lines), do) from error


def _write_files(tree: Path, files: Sequence[File]) -> None:
    tree.mkdir(parents=True, exist_ok=True, mode=0o755)
    for file in files:
        path = tree / file.path.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file.text)
        path.chmod(int(file.mode, 8))


def _open_up(tree: Path) -> None:
    """Give directories and programs the modes they have in Debian, whatever the caller's umask is."""
    for path in (tree, *tree.rglob("*")):
        if path.is_dir() or path.stat().st_mode & 0o100:
            path.chmod(0o755)

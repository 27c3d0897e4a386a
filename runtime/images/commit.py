"""A container's writable layer kept as one more layer of its image, and the words of `--change` on the way.

Not for choosing the container, nor for keeping it from writing meanwhile. Format: OCI image-spec 1.1, config.md.
"""

from __future__ import annotations

import copy
import json
import re
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from runtime.errors import TareError, UsageError
from runtime.images.layout import LAYER_TAR, room_for
from runtime.images.pack import pack
from runtime.images.store import Image, ImageStore
from runtime.spec import ImageRef

_PORT = re.compile(r"\d{1,5}(-\d{1,5})?(/(tcp|udp|sctp))?")


def configuration(store: ImageStore, base: str) -> dict[str, Any]:
    """The configuration document of the image with manifest digest `base`. Raises TareError when it is gone."""
    return store.layout.get(str(store.layout.get(base)["config"]["digest"]))


def commit(
    store: ImageStore,
    base: str,
    upper: Path,
    ref: ImageRef,
    *,
    settings: Mapping[str, Any],
    author: str = "",
    message: str = "",
    created_by: str = "",
) -> Image:
    """Make `ref` the image with manifest digest `base` under the overlay's upper directory `upper`.

    `settings` take the place of its configuration's `config`. Raises TareError when the base image is gone or a name
    in `upper` cannot be said in an archive; no image is there then.
    """
    config = configuration(store, base)
    blobs = list(store.layout.get(base)["layers"])
    created = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    with store.partial() as work, room_for(f"image {ref}", store.directory):
        archive = work / "layer.tar"
        with archive.open("wb") as file:
            pack(upper, file, epoch_s=int(time.time()), upper=True)
        size = archive.stat().st_size
        with store.exclusive():
            below = store.layers(config["rootfs"]["diff_ids"])
            if missing := [layer.digest for layer in below if not layer.directory.is_dir()]:
                raise TareError(f"image {ref}", f"layer {missing[0]} of its base is gone", "get the base image again")
            layer = store.put_layer(archive)
            blobs.append({"mediaType": LAYER_TAR, "digest": layer.digest, "size": size})
            step = {"created": created, "author": author, "created_by": created_by, "comment": message}
            config |= {
                "created": created,
                "config": dict(settings),
                "rootfs": {"type": "layers", "diff_ids": [*config["rootfs"]["diff_ids"], layer.digest]},
                "history": [*(config.get("history") or []), {key: word for key, word in step.items() if word}],
            }
            if author:
                config["author"] = author
            return store.compose(ref, config, blobs)


def changed(settings: Mapping[str, Any], instructions: Sequence[str]) -> dict[str, Any]:
    """Image settings (the OCI configuration's `config`) after `--change` instructions, as of a Dockerfile.

    Raises UsageError that names the wrong one.
    """
    made = copy.deepcopy(dict(settings))
    for instruction in instructions:
        word, _, rest = instruction.strip().partition(" ")
        change = _CHANGES.get(word.upper())
        try:
            if change is None:
                raise ValueError(f"not one of {', '.join(_CHANGES)}")
            if not rest.strip():
                raise ValueError("nothing after it")
            change(made, rest.strip())
        except ValueError as error:
            raise UsageError(
                f"change {instruction!r}", str(error), "use --change 'ENV NAME=VALUE' or the like"
            ) from error
    return made


def _command(text: str) -> list[str]:
    """The exec form, a JSON list, or the shell form."""
    if not text.startswith("["):
        return ["/bin/sh", "-c", text]
    words = json.loads(text)
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError("not a JSON list of strings")
    return words


def _cmd(made: dict[str, Any], text: str) -> None:
    made["Cmd"] = _command(text)


def _entrypoint(made: dict[str, Any], text: str) -> None:
    made["Entrypoint"] = _command(text)


def _pairs(text: str) -> list[tuple[str, str]]:
    """`NAME=VALUE` words, or the old form `NAME VALUE`."""
    first = text.split(maxsplit=1)[0]
    if "=" not in first:
        name, _, value = text.partition(" ")
        return [(name, value.strip())]
    found = [word.partition("=") for word in shlex.split(text)]
    if any(not name or not equals for name, equals, _ in found):
        raise ValueError("not NAME=VALUE")
    return [(name, value) for name, _, value in found]


def _env(made: dict[str, Any], text: str) -> None:
    values = dict(str(word).partition("=")[::2] for word in made.get("Env") or ())
    made["Env"] = [f"{name}={value}" for name, value in (values | dict(_pairs(text))).items()]


def _label(made: dict[str, Any], text: str) -> None:
    made["Labels"] = {**(made.get("Labels") or {}), **dict(_pairs(text))}


def _expose(made: dict[str, Any], text: str) -> None:
    ports = dict(made.get("ExposedPorts") or {})
    for word in text.split():
        if _PORT.fullmatch(word) is None:
            raise ValueError(f"{word!r} is no port")
        ports[word if "/" in word else f"{word}/tcp"] = {}
    made["ExposedPorts"] = ports


def _volume(made: dict[str, Any], text: str) -> None:
    paths = _command(text) if text.startswith("[") else text.split()
    if not all(path.startswith("/") for path in paths):
        raise ValueError("not an absolute path")
    made["Volumes"] = {**(made.get("Volumes") or {}), **{path: {} for path in paths}}


def _user(made: dict[str, Any], text: str) -> None:
    made["User"] = text


def _workdir(made: dict[str, Any], text: str) -> None:
    made["WorkingDir"] = text if text.startswith("/") else f"{made.get('WorkingDir') or '/'}".rstrip("/") + f"/{text}"


def _stop_signal(made: dict[str, Any], text: str) -> None:
    made["StopSignal"] = text


_CHANGES: dict[str, Callable[[dict[str, Any], str], None]] = {
    "CMD": _cmd,
    "ENTRYPOINT": _entrypoint,
    "ENV": _env,
    "EXPOSE": _expose,
    "LABEL": _label,
    "STOPSIGNAL": _stop_signal,
    "USER": _user,
    "VOLUME": _volume,
    "WORKDIR": _workdir,
}

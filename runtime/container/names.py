"""Names of containers: what may be one, and one drawn at random for a container that was given none."""

from __future__ import annotations

import os
import re

from runtime.errors import UsageError

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}")
_ADJECTIVES = """
    amber bold brave brisk calm clear cosy deft eager early fair fleet fond gentle glad grand handy happy hardy keen
    kind light lively loyal lucky mellow merry mild neat noble plain proud quick quiet rapid ready sharp silent
    sleek smart snug solid spry steady still stout sunny sure swift tidy tough true vivid warm wise witty young zesty
""".split()  # noqa: SIM905 - a list of words is read more easily so
_NOUNS = """
    acorn anchor aspen badger barrel basket beacon birch bramble bucket cedar comet copper cricket crane dolphin
    ember falcon fern finch flint garnet gecko harbor hazel heron island ivy jasper juniper kestrel kettle lantern
    larch lemon linden magpie maple marten meadow nutmeg oak olive orchid osprey otter pebble pepper pigeon plover
    quartz quill rabbit raven river robin rowan saddle salmon sparrow spruce tern thistle timber trout walnut willow
""".split()  # noqa: SIM905 - a list of words is read more easily so


def check_name(name: str) -> str:
    """Return `name`. Raises UsageError when it is none."""
    if _NAME.fullmatch(name) is None:
        raise UsageError(
            f"name {name[:40]!r}", "not a name", "begin with a letter or digit; then also dot, dash and underscore"
        )
    return name


def random_name() -> str:
    """Two words, such as `brisk_otter`."""
    drawn = os.urandom(2)
    return f"{_ADJECTIVES[drawn[0] % len(_ADJECTIVES)]}_{_NOUNS[drawn[1] % len(_NOUNS)]}"

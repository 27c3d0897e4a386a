"""What a command line of `tare oci` asks for in more than words: the process of `exec`, the resources of `update`."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runtime.commands.goflags import Values
from runtime.container import decode
from runtime.container.oci_exec import Asked
from runtime.errors import UsageError
from runtime.linux.capabilities import normalise
from runtime.spec import parse_size


def process(flags: Values, words: Sequence[str]) -> Asked:
    """From the command line. Raises UsageError."""
    for flag in ("apparmor", "process-label", "cgroup"):
        if flag in flags:
            raise UsageError(f"flag --{flag}", "this runtime does not do that", "leave it out")
    terminal, ignore_paused = flags.is_set("tty"), flags.is_set("ignore-paused")
    if source := flags.text("process"):
        read = decode.parse_process(decode.read_json(Path(source)), source)
        if not read.args:
            raise UsageError(source, "args: missing", "say what to run")
        return Asked(process=dataclasses.replace(read, terminal=read.terminal or terminal), ignore_paused=ignore_paused)
    if not words:
        raise UsageError("exec", "no command", "name what to run, or give --process FILE")
    try:
        groups = tuple(int(word) for word in flags.many("additional-gids"))
    except ValueError:
        raise UsageError("additional gids", "not numbers", "give numbers") from None
    return Asked(
        args=tuple(words),
        cwd=flags.text("cwd") or None,
        env=tuple(flags.many("env")),
        terminal=terminal,
        user=flags.text("user") or None,
        groups=groups,
        capabilities=tuple(normalise(name) for name in flags.many("cap")),
        no_new_privileges=flags.is_set("no-new-privs"),
        ignore_paused=ignore_paused,
    )


def resources(flags: Values) -> dict[str, Any]:
    """What `update` is asked to change, as a `linux.resources` object. Raises UsageError."""
    source = flags.text("resources")
    if source:
        return _read_resources(source)
    document: dict[str, dict[str, object]] = {}

    def put(section: str, key: str, value: object) -> None:
        document.setdefault(section, {})[key] = value

    for flag, section, key in (
        ("cpu-period", "cpu", "period"),
        ("cpu-quota", "cpu", "quota"),
        ("cpu-burst", "cpu", "burst"),
        ("cpu-share", "cpu", "shares"),
        ("cpu-idle", "cpu", "idle"),
        ("cpu-rt-period", "cpu", "realtimePeriod"),
        ("cpu-rt-runtime", "cpu", "realtimeRuntime"),
        ("blkio-weight", "blockIO", "weight"),
        ("pids-limit", "pids", "limit"),
    ):
        if flag in flags:
            put(section, key, flags.number(flag))
    for flag in ("cpuset-cpus", "cpuset-mems"):
        if flag in flags:
            put("cpu", flag.removeprefix("cpuset-"), flags.text(flag))
    for flag, key in (("memory", "limit"), ("memory-reservation", "reservation"), ("memory-swap", "swap")):
        if flag in flags:
            put("memory", key, _bytes(flag, flags.text(flag)))
    if not document:
        raise UsageError("update", "nothing to change", "give --resources or a limit")
    return document


def _read_resources(source: str) -> dict[str, Any]:
    if source != "-":
        return dict(decode.read_json(Path(source)))
    try:
        document = json.loads(sys.stdin.buffer.read())
    except ValueError as error:
        raise UsageError("standard input", f"not JSON: {error}") from error
    if not isinstance(document, dict):
        raise UsageError("standard input", "not a JSON object")
    return document


def _bytes(flag: str, text: str) -> int:
    if text == "-1":
        return -1
    try:
        return parse_size(text)
    except UsageError as error:
        raise UsageError(f"flag --{flag}", error.why, error.do) from error

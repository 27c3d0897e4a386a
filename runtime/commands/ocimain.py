# ruff: noqa: T201, PTH115
# Printing is what a command does. Lean, so without pathlib: an engine runs it four times a container.
"""`tare oci`: runc's command line, so that containerd's shim, a Docker engine and podman can drive this runtime.

A table of commands; the work is done by `runtime.container`. Errors are one line on standard error and one in the
log file of `--log`, in the form that the engines read. Nothing is imported before a command needs it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence

from runtime.commands.goflags import BOOL, MANY, NUMBER, TEXT, Flags, Values
from runtime.commands.oci_log import Log
from runtime.container import oci
from runtime.errors import TareError, UsageError

TYPE_CHECKING = False  # for the type checker, which takes it for true: typing is not worth its loading
if TYPE_CHECKING:
    from pathlib import Path

    from runtime.container.oci_create import Making

GLOBAL = Flags(
    {
        "root": TEXT,
        "log": TEXT,
        "log-format": TEXT,
        "debug": BOOL,
        "systemd-cgroup": BOOL,
        "rootless": TEXT,
        "criu": TEXT,
        "version": BOOL,
        "help": BOOL,
    },
    {"v": "version", "h": "help"},
)
_CONSOLE = {"pid-file": TEXT, "console-socket": TEXT, "preserve-fds": NUMBER}
_BUNDLE = {"bundle": TEXT, **_CONSOLE, "no-pivot": BOOL, "no-new-keyring": BOOL}
_FORMAT = Flags({"format": TEXT, "quiet": BOOL, "help": BOOL}, {"f": "format", "q": "quiet", "h": "help"})
_NONE = Flags({"help": BOOL}, {"h": "help"})


class Call:
    """One command line taken apart: the global flags, the command's own, and its arguments."""

    def __init__(self, common: Values, values: Values, words: Sequence[str]) -> None:
        self.common = common
        self.values = values
        self.words = words
        self.log = Log(common)
        self.runtime = oci.Runtime(common.text("root") or f"{oci.run_directory()}/oci", self.log.warning)

    @property
    def id(self) -> str:
        """The container that the command is about. Raises UsageError where none is named."""
        if not self.words:
            raise UsageError("command line", "no container id", "name a container")
        return self.words[0]

    def making(self, *, foreground: bool = False) -> Making:
        """The flags that `create`, `run` and `exec` share."""
        from runtime.container.oci_create import Making

        if self.values.is_set("no-pivot"):
            self.log.warning("--no-pivot: the root is pivoted all the same")
        return Making(
            pid_file=self.values.text("pid-file") or None,
            console_socket=self.values.text("console-socket") or None,
            preserve_fds=self.values.number("preserve-fds"),
            keyring=not self.values.is_set("no-new-keyring"),
            systemd=self.common.is_set("systemd-cgroup"),
            foreground=foreground,
        )


def _create(call: Call) -> int:
    from runtime.container import oci_create, spawning

    spawning.default_signals()
    oci_create.create(call.runtime, call.id, _bundle(call), call.making())
    return 0


def _run(call: Call) -> int:
    from runtime.container import oci_run

    detach, keep = call.values.is_set("detach"), call.values.is_set("keep")
    return oci_run.run(
        call.runtime, call.id, _bundle(call), call.making(foreground=not detach), detach=detach, keep=keep
    )


def _exec(call: Call) -> int:
    from runtime.commands import oci_asked
    from runtime.container import oci_run

    process = oci_asked.process(call.values, call.words[1:])
    detach = call.values.is_set("detach")
    return oci_run.execute(call.runtime, call.id, process, call.making(foreground=not detach), detach=detach)


def _bundle(call: Call) -> Path:
    from pathlib import Path

    return Path(call.values.text("bundle") or ".").absolute()


def _start(call: Call) -> int:
    call.runtime.start(call.id)
    return 0


def _state(call: Call) -> int:
    print(json.dumps(call.runtime.state(call.id), indent=2))
    return 0


def _kill(call: Call) -> int:
    word = call.words[1] if len(call.words) > 1 else "TERM"
    call.runtime.kill(call.id, oci.signal_number(word), everybody=call.values.is_set("all"))
    return 0


def _delete(call: Call) -> int:
    call.runtime.delete(call.id, force=call.values.is_set("force"))
    return 0


def _pause(call: Call) -> int:
    call.runtime.pause(call.id)
    return 0


def _resume(call: Call) -> int:
    call.runtime.resume(call.id)
    return 0


def _list(call: Call) -> int:
    found = call.runtime.list()
    if call.values.is_set("quiet"):
        for state in found:
            print(state["id"])
    elif call.values.text("format", "table") == "json":
        print(json.dumps(found))
    else:
        rows = [["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]]
        names = ("id", "pid", "status", "bundle", "created", "owner")
        rows += [[str(state.get(name, "")) for name in names] for state in found]
        widths = [max(len(row[column]) for row in rows) for column in range(len(names))]
        for row in rows:
            print("  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip())
    return 0


def _ps(call: Call) -> int:
    pids = call.runtime.pids(call.id)
    if call.values.text("format", "table") == "json":
        print(json.dumps(list(pids)))
        return 0
    from runtime.container.oci_documents import process_table

    print(process_table(pids, call.words[1:]), end="")
    return 0


def _update(call: Call) -> int:
    from runtime.commands import oci_asked

    call.runtime.update(call.id, oci_asked.resources(call.values))
    return 0


def _events(call: Call) -> int:
    from runtime.container import oci_events

    interval_s = oci_events.seconds(call.values.text("interval", "5s"))
    for event in oci_events.events(call.runtime, call.id, interval_s, once=call.values.is_set("stats")):
        print(json.dumps(event), flush=True)
    return 0


def _features(_: Call) -> int:
    from runtime.container.oci_documents import features

    print(json.dumps(features(), indent=2))
    return 0


def _spec(call: Call) -> int:
    from runtime.container.oci_documents import write_spec

    write_spec(call.values.text("bundle") or ".", rootless=call.values.is_set("rootless"))
    return 0


class Command:
    """A command of the table. With `tail`, what follows the first argument is another program's words."""

    def __init__(self, act: Callable[[Call], int], flags: Flags, arguments: str, *, tail: bool = False) -> None:
        self.act = act
        self.flags = flags
        self.arguments = arguments
        self.tail = tail


_HELP = {"help": BOOL}
_UPDATE = Flags(
    {
        "resources": TEXT,
        "blkio-weight": NUMBER,
        "cpu-period": NUMBER,
        "cpu-quota": NUMBER,
        "cpu-share": NUMBER,
        "cpu-burst": NUMBER,
        "cpu-rt-period": NUMBER,
        "cpu-rt-runtime": NUMBER,
        "cpu-idle": NUMBER,
        "cpuset-cpus": TEXT,
        "cpuset-mems": TEXT,
        "memory": TEXT,
        "memory-reservation": TEXT,
        "memory-swap": TEXT,
        "pids-limit": NUMBER,
        **_HELP,
    },
    {"r": "resources", "h": "help"},
)
_EXEC = Flags(
    {
        **_CONSOLE,
        "cwd": TEXT,
        "env": MANY,
        "tty": BOOL,
        "user": TEXT,
        "additional-gids": MANY,
        "process": TEXT,
        "detach": BOOL,
        "process-label": TEXT,
        "apparmor": TEXT,
        "no-new-privs": BOOL,
        "cap": MANY,
        "cgroup": MANY,
        "ignore-paused": BOOL,
        **_HELP,
    },
    {
        "e": "env",
        "t": "tty",
        "u": "user",
        "g": "additional-gids",
        "p": "process",
        "d": "detach",
        "c": "cap",
        "h": "help",
    },
)
COMMANDS = {
    "create": Command(_create, Flags({**_BUNDLE, **_HELP}, {"b": "bundle", "h": "help"}), "ID"),
    "delete": Command(_delete, Flags({"force": BOOL, **_HELP}, {"f": "force", "h": "help"}), "ID"),
    "events": Command(_events, Flags({"stats": BOOL, "interval": TEXT, **_HELP}, {"h": "help"}), "ID"),
    "exec": Command(_exec, _EXEC, "ID [COMMAND ARGUMENT…]", tail=True),
    "features": Command(_features, _NONE, ""),
    "kill": Command(_kill, Flags({"all": BOOL, **_HELP}, {"a": "all", "h": "help"}), "ID [SIGNAL]"),
    "list": Command(_list, _FORMAT, ""),
    "pause": Command(_pause, _NONE, "ID"),
    "ps": Command(_ps, _FORMAT, "ID [PS OPTION…]", tail=True),
    "resume": Command(_resume, _NONE, "ID"),
    "run": Command(
        _run,
        Flags(
            {**_BUNDLE, "detach": BOOL, "keep": BOOL, "no-subreaper": BOOL, **_HELP},
            {"b": "bundle", "d": "detach", "h": "help"},
        ),
        "ID",
    ),
    "spec": Command(_spec, Flags({"bundle": TEXT, "rootless": BOOL, **_HELP}, {"b": "bundle", "h": "help"}), ""),
    "start": Command(_start, _NONE, "ID"),
    "state": Command(_state, _NONE, "ID"),
    "update": Command(_update, _UPDATE, "ID"),
}

CLONING = ("create", "exec", "run")
_AGAIN = """
import json, sys
sys.path[:] = json.loads(sys.argv.pop(1))
from runtime.commands.ocimain import main
raise SystemExit(main(sys.argv[1:]))
"""


def main(words: Sequence[str] | None = None) -> int:
    """Run one command line, without the program's name: its exit code."""
    common = Values()
    try:
        common, rest = GLOBAL.parse(sys.argv[1:] if words is None else words, interspersed=False)
        code = _carry_out(common, rest)
        sys.stdout.flush()
        return code
    except TareError as error:
        if common.is_set("debug"):
            _traceback()
        Log(common).error(str(error))
        return error.exit_code
    except BrokenPipeError:
        import os

        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads: nothing to flush at the end
        return 141
    except OSError as error:
        if common.is_set("debug"):
            _traceback()
        place = f" {error.filename}" if error.filename else ""
        Log(common).error(f"system call on{place or ' the host'}: {error.strerror or error}")
        return 1
    except Exception as error:
        Log(common).error(f"a fault of tare itself: {error!r}")  # an engine shows its user no other words
        raise


def _carry_out(common: Values, rest: list[str]) -> int:
    if common.is_set("version"):
        print(_version())
        return 0
    if common.is_set("help") or not rest or rest[0] in ("help", "h"):
        print(_usage())
        return 0
    name, *words = rest
    command = COMMANDS.get(name)
    if command is None:
        raise UsageError("command line", f"no command {name!r}", f"one of {', '.join(COMMANDS)}")
    values, arguments = command.flags.parse(words, interspersed=not command.tail)
    if values.is_set("help"):
        print(f"tare oci {name} [FLAG…] {command.arguments}\n\n  " + "\n  ".join(command.flags.names()))
        return 0
    return command.act(Call(common, values, arguments))


def _version() -> str:
    """As runc prints its own: containerd and Docker read the lines."""
    from importlib.metadata import version

    return f"tare version {version('tare')}\nspec: {oci.SPEC_VERSION}"


def _usage() -> str:
    lines = [f"  {name} [FLAG…] {command.arguments}".rstrip() for name, command in COMMANDS.items()]
    return "tare oci [FLAG…] COMMAND\n\n  " + "\n  ".join(GLOBAL.names()) + "\n\n" + "\n".join(lines)


def _traceback() -> None:
    from traceback import print_exc

    print_exc()


def enter(words: Sequence[str]) -> int:
    """As `main`, for a process that is nothing else: what clones goes on in a sealed copy of this interpreter."""
    try:
        _, rest = GLOBAL.parse(words, interspersed=False)
    except UsageError:
        rest = []  # `main` says what is wrong
    if rest and rest[0] in CLONING:
        _seal(words)
    return main(words)


def _seal(words: Sequence[str]) -> None:
    """Execute this again from memory, so that no container gets at the host's own interpreter (see `sealed`)."""
    import os

    from runtime.linux.sealed import sealed_copy

    if os.readlink("/proc/self/exe").startswith("/memfd:"):
        return
    path = json.dumps([__file__.rpartition("/runtime/")[0], *sys.path])
    program = sealed_copy(sys.executable)
    os.execv(f"/proc/self/fd/{program}", [sys.executable, "-I", "-S", "-c", _AGAIN, path, *words])  # noqa: S606


def entry() -> None:
    """The program `tare-oci`."""
    raise SystemExit(enter(sys.argv[1:]))

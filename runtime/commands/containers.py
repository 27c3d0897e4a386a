"""The commands that change containers, from `tare run` to `tare rm`, and those that work in them: `attach` and `exec`.

Docker's words, answers and exit codes. Only that: the work is done by `runtime.container.lifecycle`; what only shows
containers is in `showing`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import click

from runtime.commands import asking, wishes
from runtime.commands.several import each
from runtime.container import terminal
from runtime.container.contact import Contact, Ended, Running, Summons
from runtime.container.lifecycle import UNSEEN, Containers
from runtime.container.state import UNKNOWN_CODE, Record
from runtime.container.terminal import DETACH_KEYS
from runtime.driver import host_from_env
from runtime.errors import TareError, UsageError

# Docker's -h is the host name; the first word that is no option is the image.
_RUN_SETTINGS = {"allow_interspersed_args": False, "help_option_names": ["--help"]}
_WORDS_SETTINGS = {"allow_interspersed_args": False}
_STREAMS = ("stdin", "stdout", "stderr")
_keys = click.option("--detach-keys", default=DETACH_KEYS, metavar="KEYS", help="Keys that let go of the terminal.")
_proxy = click.option(
    "--sig-proxy", default="true", metavar="true|false", help="Pass signals on to the process (true)."
)
_names = click.argument("names", nargs=-1, required=True, metavar="CONTAINER...")


class _Run(click.Command):
    """A command whose own failures are 125, so that they are told from the container's."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            failure = UsageError("command line", error.format_message().rstrip("."), f"{ctx.command_path} --help")
            failure.exit_code = 125
            raise failure from None
        except TareError as error:
            error.exit_code = 125
            raise

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except TareError as error:
            if error.exit_code in (1, 2):
                error.exit_code = 125
            raise
        except BrokenPipeError:
            raise
        except OSError as error:
            raise _system(error) from error


def _system(error: OSError) -> TareError:
    failure = TareError(f"system call on {error.filename or 'the host'}", error.strerror or str(error))
    failure.exit_code = 125
    return failure


@dataclass(frozen=True, slots=True, kw_only=True)
class Attached:
    """Which of our streams a container gets, and how they are treated."""

    stdin: bool
    stdout: bool = True
    stderr: bool = True
    keys: bytes = b""
    proxy: bool = True

    def descriptors(self) -> tuple[int, int, int]:
        """Ours, -1 for those it does not get; the output of what is not wanted goes nowhere."""
        return 0 if self.stdin else -1, 1 if self.stdout else -1, 2 if self.stderr else -1


@click.command(cls=_Run, context_settings=_RUN_SETTINGS)
@click.option("-d", "--detach", is_flag=True, help="Leave it running and print its id.")
@click.option("-a", "--attach", "streams", multiple=True, metavar="STREAM", help="Attach to stdin, stdout or stderr.")
@_proxy
@_keys
@asking.options
@click.argument("image")
@click.argument("argv", nargs=-1, type=click.UNPROCESSED)
def run(
    given: dict[str, Any],
    image: str,
    argv: Sequence[str],
    detach: bool,
    streams: Sequence[str],
    sig_proxy: str,
    detach_keys: str,
) -> int:
    """Create a container of IMAGE, start it, and be attached to it until it ends, with its exit code."""
    _need_root()
    attached = _attached(given["interactive"], streams, sig_proxy, detach_keys)
    if detach and streams:
        raise UsageError("--detach", "excludes --attach", "leave one out")
    wanted = asking.wanted(given, image, argv)
    asking.check_cidfile(given["cidfile"])
    if not detach and attached.stdin:
        _check_terminal(given["tty"])
    containers = _containers()
    summons = Summons(containers.host.run)
    record = containers.create(wanted, _say(given["quiet"]))
    with _removed_on_failure(containers, record):
        asking.write_cidfile(given["cidfile"], record.id)
    return _go(containers, record, summons, None if detach else attached)


@contextmanager
def _removed_on_failure(containers: Containers, record: Record) -> Iterator[None]:
    """What never ran and was to go at its end goes now; what has run is the keeper's to see to."""
    try:
        yield
    except BaseException:
        if record.settings.auto_remove:
            with suppress(TareError, OSError):  # `tare clean` sees to it; the first failure is the one to tell
                containers.remove(containers.state.find(record.id), force=True, volumes=True)
        raise


def _go(containers: Containers, record: Record, summons: Summons | None, attached: Attached | None) -> int:
    """Start it, and stay with it unless there is nothing to be attached to."""
    if attached is None:
        with _removed_on_failure(containers, record):
            contact, running = containers.start(record, summons)
        running.close()
        contact.close()
        click.echo(record.id)
        return 0
    writes = attached.stdin and record.settings.stdin_open
    size = terminal.size(1) if record.settings.terminal else None
    with _removed_on_failure(containers, record):
        contact, running = containers.start(record, summons, output=True, writes=writes, size=size)
    return _stay(containers, record, contact, running, attached)


def _stay(containers: Containers, record: Record, contact: Contact, running: Running, attached: Attached) -> int:
    """Until it ends or is let go of: what our exit code is."""
    try:
        with contact:
            ended = contact.relay(running, attached.descriptors(), keys=attached.keys, proxy=attached.proxy)
            if ended is not None and not ended.detached:
                _after(containers, record)
    finally:
        running.close()
    return _code(record, ended)


def _after(containers: Containers, record: Record) -> None:
    """What is left to be done after the end, as long as the keeper knows that we are there to do it."""
    if record.settings.auto_remove:
        containers.remove(record, volumes=True)
    elif containers.ground.needs_network(record):
        containers.settle(record)


def _code(record: Record, ended: Ended | None) -> int:
    if ended is None:
        click.echo(f"tare: container {record.name}: {UNSEEN} (see: tare ps -a)", err=True)
        return UNKNOWN_CODE
    return ended.exit_code


@click.command(cls=_Run, context_settings=_RUN_SETTINGS)
@asking.options
@click.argument("image")
@click.argument("argv", nargs=-1, type=click.UNPROCESSED)
def create(given: dict[str, Any], image: str, argv: Sequence[str]) -> None:
    """Create a container of IMAGE without starting it, and print its id."""
    _need_root()
    wanted = asking.wanted(given, image, argv)
    asking.check_cidfile(given["cidfile"])
    record = _containers().create(wanted, _say(given["quiet"]))
    asking.write_cidfile(given["cidfile"], record.id)
    click.echo(record.id)


@click.command(cls=_Run)
@click.option("-a", "--attach", is_flag=True, help="Be attached to it until it ends.")
@click.option("-i", "--interactive", is_flag=True, help="Be attached to its input, too.")
@_proxy
@_keys
@_names
def start(names: Sequence[str], attach: bool, interactive: bool, sig_proxy: str, detach_keys: str) -> int:
    """Start CONTAINERs that have ended or were only created."""
    _need_root()
    containers = _containers()
    if not attach and not interactive:
        return each(names, lambda name: _start(containers, name))
    if len(names) > 1:
        raise UsageError("start", "one can be attached to only one container", "name one")
    record = containers.find(names[0])
    attached = _attached(interactive, (), sig_proxy, detach_keys)
    if record.running:
        return _join(containers, record, attached)
    if attached.stdin:
        _check_terminal(record.settings.terminal)
    return _go(containers, record, None, attached)


def _start(containers: Containers, name: str) -> None:
    record = containers.find(name)
    if not record.running:
        contact, running = containers.start(record)
        running.close()
        contact.close()


@click.command(cls=_Run)
@asking.update_options
@_names
def update(given: dict[str, Any], names: Sequence[str]) -> int:
    """Change limits of CONTAINERs, running or not, and whether they are started again. What is not said stays."""
    _need_root()
    if not any(given.values()):
        raise UsageError("update", "nothing to change", "give a limit, or --restart")
    containers = _containers()

    def change(name: str) -> None:
        record = containers.find(name)
        policy = wishes.restart(given["restart"], record.settings.auto_remove) if given["restart"] else None
        had = containers.state.document(record.id).get("linux", {}).get("resources", {}).get("memory", {})
        known = {"memory": str(had["limit"])} if given["memory_swap"] and not given["memory"] and "limit" in had else {}
        containers.update(record, asking.resources(given | known), policy)

    return each(names, change)


@click.command()
@_names
@click.option("-t", "--time", "--timeout", "time_s", type=int, metavar="SECONDS", help="Kill it after so long.")
@click.option("-s", "--signal", "signal_name", metavar="SIGNAL", help="Ask it so.")
def stop(names: Sequence[str], time_s: int | None, signal_name: str | None) -> int:
    """Ask CONTAINERs to end, and kill those that have not in time."""
    containers = _containers()
    number = wishes.signal_number(signal_name) if signal_name else None
    return each(names, lambda name: containers.stop(containers.find(name), time_s, number))


@click.command(cls=_Run)
@_names
@click.option("-t", "--time", "--timeout", "time_s", type=int, metavar="SECONDS", help="Kill it after so long.")
@click.option("-s", "--signal", "signal_name", metavar="SIGNAL", help="Ask it so.")
def restart(names: Sequence[str], time_s: int | None, signal_name: str | None) -> int:
    """Stop CONTAINERs that run, and start all of them."""
    _need_root()
    containers = _containers()
    number = wishes.signal_number(signal_name) if signal_name else None

    def again(name: str) -> None:
        containers.stop(containers.find(name), time_s, number)
        _start(containers, containers.find(name).id)
        containers.tell(containers.find(name), "restart")

    return each(names, again)


@click.command()
@_names
@click.option("-s", "--signal", "signal_name", default="KILL", metavar="SIGNAL", help="Send this one (KILL).")
def kill(names: Sequence[str], signal_name: str) -> int:
    """Send a signal to the main process of CONTAINERs."""
    containers, number = _containers(), wishes.signal_number(signal_name)
    return each(names, lambda name: containers.kill(containers.find(name), number))


@click.command()
@_names
@click.option("-f", "--force", is_flag=True, help="Kill those that run; pass over those that are not there.")
@click.option("-v", "--volumes", is_flag=True, help="Remove their volumes without a name, too.")
def rm(names: Sequence[str], force: bool, volumes: bool) -> int:
    """Remove CONTAINERs."""
    containers = _containers()

    def remove(name: str) -> None:
        try:
            record = containers.find(name)
        except TareError as error:
            if force and error.why == "no such container":
                return
            raise
        containers.remove(record, force=force, volumes=volumes)

    return each(names, remove)


@click.command()
@_names
def wait(names: Sequence[str]) -> int:
    """Wait until CONTAINERs have ended, and print their exit codes."""
    containers = _containers()
    return each(names, lambda name: str(containers.wait(containers.find(name))))


@click.command()
@_names
def pause(names: Sequence[str]) -> int:
    """Freeze all processes of CONTAINERs."""
    containers = _containers()
    return each(names, lambda name: containers.pause(containers.find(name)))


@click.command()
@_names
def unpause(names: Sequence[str]) -> int:
    """Let frozen CONTAINERs run on."""
    containers = _containers()
    return each(names, lambda name: containers.unpause(containers.find(name)))


@click.command()
@click.argument("container")
@click.argument("name")
def rename(container: str, name: str) -> None:
    """Call CONTAINER by another NAME."""
    containers = _containers()
    containers.rename(containers.find(container), name)


@click.command()
@click.option("--no-stdin", is_flag=True, help="Leave its input alone.")
@_proxy
@_keys
@click.argument("container")
def attach(container: str, no_stdin: bool, sig_proxy: str, detach_keys: str) -> int:
    """Be attached to a running CONTAINER until it ends."""
    containers = _containers()
    record = containers.find(container)
    if record.status == "paused":
        raise TareError(f"attach to {record.name}", "it is paused", f"tare unpause {record.name}")
    return _join(containers, record, _attached(not no_stdin, (), sig_proxy, detach_keys))


def _join(containers: Containers, record: Record, attached: Attached) -> int:
    writes = attached.stdin and record.settings.stdin_open
    if writes:
        _check_terminal(record.settings.terminal)
    contact, running = containers.attach(record, writes=writes)
    try:
        with contact:
            ended = contact.relay(
                running,
                (0 if writes else -1, *attached.descriptors()[1:]),
                keys=attached.keys,
                proxy=attached.proxy,
            )
    finally:
        running.close()
    return _code(record, ended)


@click.command("exec", cls=_Run, context_settings=_WORDS_SETTINGS)
@click.option("-d", "--detach", is_flag=True, help="Do not wait for it.")
@click.option("-i", "--interactive", is_flag=True, help="Keep its input open.")
@click.option("-t", "--tty", is_flag=True, help="Give it a terminal.")
@click.option("-e", "--env", "env", multiple=True, metavar="NAME[=VALUE]", help="Set a variable.")
@click.option("--env-file", "env_files", multiple=True, metavar="FILE", help="Set what the lines of FILE say.")
@click.option("-u", "--user", metavar="UID[:GID]", help="As this user of the container.")
@click.option("-w", "--workdir", metavar="DIR", help="Working directory inside.")
@click.option("--privileged", is_flag=True, help="With every capability.")
@_keys
@click.argument("container")
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_(
    container: str,
    argv: Sequence[str],
    detach: bool,
    interactive: bool,
    tty: bool,
    env: Sequence[str],
    env_files: Sequence[str],
    user: str | None,
    workdir: str | None,
    privileged: bool,
    detach_keys: str,
) -> int:
    """Run a command in a running CONTAINER, with its exit code."""
    from runtime.container.further import Further, process_of

    _need_root()
    containers = _containers()
    record = containers.find(container)
    words = [line for path in env_files for line in wishes.words_of_file("--env-file", path)]
    further = Further(
        argv=tuple(argv),
        env=wishes.environment([*words, *env]),
        cwd=workdir,
        user=user,
        terminal=tty,
        privileged=privileged,
    )
    if interactive and not detach:
        _check_terminal(tty)
    process = process_of(containers.config(record), record, further, containers.ground.facts.last_capability)
    attached = _attached(interactive, (), "false", detach_keys)
    contact, running = containers.execute(
        record,
        process,
        output=not detach,
        writes=interactive and not detach,
        size=terminal.size(1) if tty and not detach else None,
    )
    try:
        with contact:
            if detach:
                return 0
            ended = contact.relay(running, attached.descriptors(), keys=attached.keys, proxy=False)
    finally:
        running.close()
    return _code(record, ended)


def _attached(stdin: bool, streams: Sequence[str], sig_proxy: str, detach_keys: str) -> Attached:
    if sig_proxy.lower() not in ("true", "false"):
        raise UsageError(f"--sig-proxy {sig_proxy}", "neither true nor false")
    wanted = tuple(stream.lower() for stream in streams)
    unknown = [stream for stream in wanted if stream not in _STREAMS]
    if unknown:
        raise UsageError(f"--attach {unknown[0]}", "no such stream", f"use {', '.join(_STREAMS)}")
    return Attached(
        stdin=stdin and (not wanted or "stdin" in wanted),
        stdout=not wanted or "stdout" in wanted,
        stderr=not wanted or "stderr" in wanted,
        keys=terminal.parse_keys(detach_keys),
        proxy=sig_proxy.lower() == "true",
    )


def _check_terminal(tty: bool) -> None:
    if tty and not os.isatty(0):
        raise UsageError("--tty", "standard input is not a terminal", "leave out -t, or -i")


def _say(quiet: bool) -> Callable[[str], None]:
    def say(text: str) -> None:
        if not quiet:
            click.echo(text, err=True)

    return say


def _containers() -> Containers:
    return Containers(host_from_env())


def _need_root() -> None:
    if os.geteuid() != 0:
        raise TareError("containers", "they need root", "run it as root")
    sys.stdout.flush()

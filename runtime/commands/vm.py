"""The `tare vm` commands: guests that outlive the command, in Docker's words, and virsh's where Docker has none.

Only words and tables: guests are their keeper's (`runtime.vm.keeper`), which alone knows libvirt.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from runtime.commands import moments, wishes
from runtime.commands.containers import _check_terminal, _Run
from runtime.commands.several import each
from runtime.commands.vmcontact import VmContact, reach, reached, summon
from runtime.commands.vmcopy import cp
from runtime.container import terminal
from runtime.container.contact import passing
from runtime.container.names import check_name, random_name
from runtime.driver import Host, host_from_env
from runtime.errors import TareError, UsageError
from runtime.network.ports import Port, parse_all, ranges
from runtime.spec import ImageRef, InstanceSpec, Limits, NetworkMode, NetworkSpec, Ready, parse_cpuset
from runtime.vm import nocloud, uri
from runtime.vm.domain import Tuning
from runtime.vm.kept import DISK
from runtime.vm.records import CONSOLE, EXITED, LOST, OUTPUT, Record, Records

_WORDS = {"allow_interspersed_args": False, "help_option_names": ["--help"]}
_SIZE = (24, 80)
_LEAVE = b"\x1d"  # Ctrl-], as virsh and telnet have it
_json = click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
_names = click.argument("names", nargs=-1, required=True, metavar="VM...")


@click.group()
def vm() -> None:
    """Virtual machines of the same images and limits as containers."""


vm.add_command(cp)


@vm.command(cls=_Run, context_settings=_WORDS)
@click.option("-d", "--detach", is_flag=True, help="Leave it running and print its id.")
@click.option("--rm", "remove", is_flag=True, help="Forget it at its end.")
@click.option("--name", metavar="NAME", help="Call it so.")
@click.option("--micro", is_flag=True, help="The lightest: its kernel booted directly, no systemd.")
@click.option("--cpus", metavar="F", help="CPUs worth of time, such as 1.5; rounded up they are its vCPUs.")
@click.option("-c", "--cpu-weight", metavar="N", help="CPU weight, 1 to 10000.")
@click.option("--cpuset-cpus", metavar="CPUS", help="CPUs it may use, such as 0-2,5.")
@click.option("-m", "--memory", metavar="SIZE", help="Memory of guest and QEMU together, such as 512m.")
@click.option("--pids-limit", metavar="N", help="At most so many threads of QEMU.")
@click.option("--io-read-bps", metavar="SIZE", help="Read from its disk at most so many bytes a second.")
@click.option("--io-write-bps", metavar="SIZE", help="Write to its disk at most so many bytes a second.")
@click.option("--network", "--net", default="none", metavar="none|bridge", help="Where it is connected (none).")
@click.option("-p", "--publish", multiple=True, metavar="[[IP:]HOST:]VM[/udp]", help="Publish ports; ranges too.")
@click.option("-e", "--env", multiple=True, metavar="NAME[=VALUE]", help="Set a variable for commands.")
@click.option("-h", "--hostname", metavar="NAME", help="Its host name.")
@click.option("-i", "--interactive", is_flag=True, help="Pass input on to the command; the console takes it anyway.")
@click.option("-t", "--tty", is_flag=True, help="Run the command on a terminal; the console is one anyway.")
@click.option("--pin", metavar="CPUS", help="A CPU for each vCPU, in order, such as 0,1.")
@click.option("--hugepages", is_flag=True, help="Take its memory from the host's huge pages.")
@click.option("--lock-memory", is_flag=True, help="Never swap its memory.")
@click.option("--reflink", is_flag=True, help="Its disk as a reflink, where the host's file system has that.")
@click.option("--user-data", metavar="FILE", help="For cloud-init, where IMAGE is a file.")
@click.option("--ssh-key", "ssh_keys", multiple=True, metavar="FILE", help="A public key for its user, likewise.")
@click.argument("image")
@click.argument("argv", nargs=-1, type=click.UNPROCESSED)
def run(image: str, argv: Sequence[str], **given: Any) -> int:
    """Boot a virtual machine of IMAGE, run a command in it and shut it down, with the command's exit code.

    IMAGE is one of `tare images`, or the path, with a slash, of a cloud image: qcow2 or raw, with cloud-init.
    Without a command it stays at the console (Ctrl-] leaves), or with -d in the background.
    """
    wanted = _wanted(given, image, tuple(argv))
    _need_root()
    host = host_from_env()
    with summon(host) as contact:
        contact.ask("run", wanted)
        guest_id = contact.heard("running")[1]
        if given["detach"]:
            click.echo(guest_id)
            return 0
        if not argv:
            contact.heard("attached")
            return _at_console(contact)
        return _carried(contact, given["interactive"], given["tty"], lambda number: _signal(host, guest_id, number))


def _wanted(given: dict[str, Any], image: str, argv: tuple[str, ...]) -> dict[str, Any]:
    """The request; all of it is judged here, before anything is touched. Raises UsageError."""
    if argv and given["interactive"] and not given["detach"]:
        _check_terminal(given["tty"])
    if given["network"] not in ("none", "bridge"):
        raise UsageError(f"--network {given['network']}", "not possible for a virtual machine", "use none or bridge")
    ports = tuple((port.host_port, port.port, port.protocol, port.host) for port in parse_all(given["publish"]))
    pins = tuple(cpu for part in (given["pin"] or "").split(",") if part for cpu in sorted(parse_cpuset(part)))
    tuning = {
        "pins": pins,
        "hugepages": given["hugepages"],
        "locked": given["lock_memory"],
        "reflink": given["reflink"],
    }
    limits = {
        "cpus": _cpus(given["cpus"]),
        "cpu_weight": _number("--cpu-weight", given["cpu_weight"], 10000),
        "cpuset": given["cpuset_cpus"],
        "memory_bytes": _bytes("--memory", given["memory"]),
        "pids": _number("--pids-limit", given["pids_limit"], 1 << 22),
        "io_read_bps": _bytes("--io-read-bps", given["io_read_bps"]),
        "io_write_bps": _bytes("--io-write-bps", given["io_write_bps"]),
    }
    words = [word.partition("=") for word in wishes.environment(given["env"])]
    env = tuple((name, value) for name, found, value in words if found)
    disk = _disk(given, image)
    InstanceSpec(
        image=ImageRef.parse(image) if disk is None else DISK,
        env=env,
        limits=Limits(**limits),
        network=NetworkSpec(mode=NetworkMode(given["network"]), ports=ports),
        ready=Ready.SERVICE,
        hostname=given["hostname"],
    )
    Tuning(**tuning)
    return {
        "image": image,
        "disk": disk,
        "argv": argv,
        "name": check_name(given["name"]) if given["name"] else random_name(),
        "driver": "microvm" if given["micro"] else "vm",
        "detach": given["detach"],
        "interactive": given["interactive"],
        "size": _size(given["tty"]),
        "rm": given["remove"],
        "env": env,
        "limits": limits,
        "tuning": tuning if any(tuning.values()) else {},
        "network": given["network"],
        "ports": ports,
        "hostname": given["hostname"],
        "uri": uri.chosen(),
    }


def _disk(given: dict[str, Any], image: str) -> dict[str, Any] | None:
    """The cloud image that a path means, with what cloud-init gets; None for an image of the store."""
    if not image.startswith(("/", "./", "../")):
        if given["user_data"] or given["ssh_keys"]:
            raise UsageError("--user-data and --ssh-key", f"{image} is no file with cloud-init", "give a path: ./FILE")
        return None
    if given["micro"]:
        raise UsageError("--micro", "a cloud image boots by its own boot loader", "leave it out")
    try:
        user_data = Path(given["user_data"]).read_text() if given["user_data"] else ""
        keys = tuple(Path(name).read_text().strip() for name in given["ssh_keys"])
    except (OSError, ValueError) as error:
        raise UsageError("cloud-init's data", str(error), "name a file of text") from error
    nocloud.Seed(agent=Path(), user_data=user_data, ssh_keys=keys)
    return {"path": str(Path(image).resolve()), "user_data": user_data, "ssh_keys": keys}


def _cpus(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        raise UsageError(f"--cpus {text}", "not a number", "write it like 1.5") from None


def _number(flag: str, text: str | None, most: int) -> int | None:
    return None if text is None else wishes.whole(flag, text, 1, most)


def _bytes(flag: str, text: str | None) -> int | None:
    return None if text is None else wishes.size(flag, text, least=1)


def _size(tty: bool) -> tuple[int, int] | None:
    """Of a command's terminal: as large as ours."""
    return (terminal.size(1) or terminal.size(0) or _SIZE) if tty else None


def _carried(contact: VmContact, interactive: bool, tty: bool, pass_on: Callable[[int], None] | None = None) -> int:
    """Pass a command's streams, the size of its terminal, and signals on until it ends: its exit code."""

    def resized() -> None:
        found = _size(True)
        with suppress(TareError):  # it ends, or takes nothing just now
            contact.ask("resize", *(found or _SIZE))

    source = 0 if interactive else -1
    with terminal.raw(source if tty else -1), passing(pass_on, resized if tty else None):
        ended = contact.carry((source, 1, 2))
    if ended is None:
        raise TareError("virtual machine", "it ended before the command, or its keeper did", "see: tare vm ls -a")
    return ended.exit_code


def _signal(host: Host, guest_id: str, number: int) -> None:
    """Send a signal to what a guest was started for; before it has begun, ours ends the guest."""
    contact = reach(host)
    if contact is None:
        return
    with contact:
        contact.ask("signal", guest_id, number)
        try:
            begun = contact.heard("done")[1]
        except TareError:  # the guest has just ended
            return
    if not begun:
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)


def _at_console(contact: VmContact) -> int:
    source = 0 if os.isatty(0) else -1
    if source >= 0:
        click.echo("(the console: Ctrl-] leaves)\r", err=True)
        with terminal.raw(0):
            contact.carry((0, 1, 2), _LEAVE)
        click.echo()
    else:
        contact.carry((-1, 1, 2))
    return 0


@vm.command()
@click.option("-a", "--all", "everything", is_flag=True, help="Those that do not run, too.")
@click.option("-q", "--quiet", is_flag=True, help="Ids only.")
@_json
def ls(everything: bool, quiet: bool, as_json: bool) -> None:
    """List virtual machines; those whose keeper was killed are always shown, as lost."""
    records = [record for record in Records(host_from_env()).all() if everything or record.status != EXITED]
    if as_json:
        click.echo(json.dumps([_document(record) for record in records], indent=1))
    elif quiet:
        for record in records:
            click.echo(record.id)
    else:
        head = ("VM ID", "NAME", "IMAGE", "DRIVER", "ACCELERATOR", "STATUS", "ADDRESS", "PORTS", "MEMORY")
        rows = [head, *map(_row, records)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
        for row in rows:
            click.echo("   ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip())


def _row(record: Record) -> tuple[str, ...]:
    found = (Port(outside, inside, protocol, host) for host, outside, inside, protocol in record.ports)
    ports = ", ".join(ranges(found))
    memory = f"{record.memory_bytes >> 20} MiB"
    shown = (record.id, record.name, record.image, record.driver, _accelerator(record), _status(record))
    return *shown, record.address or "-", ports or "-", memory


def _accelerator(record: Record) -> str:
    return "tcg (emulated)" if record.accelerator == "tcg" else record.accelerator


def _status(record: Record) -> str:
    if record.status == LOST:
        return "Lost: its keeper was killed (run: tare clean)"
    if record.status == EXITED:
        return f"Exited ({record.exit_code}) {moments.lasting(time.time() - (record.ended_s or 0.0))} ago"
    up = f"Up {moments.lasting(time.time() - record.created_s)}"
    return f"{up} (Paused)" if record.status == "paused" else up


def _document(record: Record) -> dict[str, Any]:
    return {
        "id": record.id,
        "name": record.name,
        "image": record.image,
        "driver": record.driver,
        "command": list(record.argv),
        "accelerator": _accelerator(record),
        "accelerator_reason": record.accelerator_reason,
        "status": record.status,
        "exit_code": record.exit_code,
        "error": record.error,
        "since": _moment(record.created_s),
        "ended": None if record.ended_s is None else _moment(record.ended_s),
        "address": record.address,
        "ports": [list(port) for port in record.ports],
        "memory_bytes": record.memory_bytes,
        "vcpus": record.vcpus,
    }


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


@vm.command()
@_names
def inspect(names: Sequence[str]) -> None:
    """Print all that is known of VMs as JSON: while they run, the domain's XML, limits read back, usage, too."""
    host = host_from_env()
    found = []
    for name in names:
        record = Records(host).find(name)
        seen: dict[str, Any] = dict(record.details)
        if record.running:
            seen = _look(host, record)
            for printed in ("console", "output"):
                del seen[printed]
        found.append(_document(record) | seen)
    click.echo(json.dumps(found, indent=4))


def _look(host: Host, record: Record) -> dict[str, Any]:
    with reached(host, record) as contact:
        contact.ask("look", record.id)
        seen: dict[str, Any] = contact.heard("seen")[1]
    return seen


@vm.command()
@click.argument("name", metavar="VM")
@click.option("--console", is_flag=True, help="The console, even of one that ran a command.")
def logs(name: str, console: bool) -> None:
    """Print what VM's command has printed, or without one its console: the latest MiB."""
    host = host_from_env()
    record = Records(host).find(name)
    ours = not (console or not record.argv)
    if record.running:
        seen = _look(host, record)
        data = bytes(seen["output"]) if ours else seen["console"].encode()
    else:
        try:
            data = (Records(host).directory(record) / (OUTPUT if ours else CONSOLE)).read_bytes()
        except FileNotFoundError:
            raise TareError(f"logs of {record.name}", "they went with its keeper", "run: tare clean") from None
    sys.stdout.buffer.write(data)
    sys.stdout.flush()


@vm.command()
@click.argument("name", metavar="VM")
def console(name: str) -> int:
    """Show VM's console as it was kept, and go on at it; Ctrl-] leaves."""
    host = host_from_env()
    record = Records(host).find(name)
    with reached(host, record) as contact:
        contact.ask("console", record.id)
        contact.heard("attached")
        return _at_console(contact)


@vm.command("exec", cls=_Run, context_settings={"allow_interspersed_args": False})
@click.option("-e", "--env", multiple=True, metavar="NAME[=VALUE]", help="Set a variable.")
@click.option("-i", "--interactive", is_flag=True, help="Pass input on to it.")
@click.option("-t", "--tty", is_flag=True, help="Run it on a terminal.")
@click.argument("name", metavar="VM")
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_(name: str, argv: Sequence[str], env: Sequence[str], interactive: bool, tty: bool) -> int:
    """Run a command in a running VM, its output as it comes, with its exit code."""
    if interactive:
        _check_terminal(tty)
    words = [word.partition("=") for word in wishes.environment(env)]
    host = host_from_env()
    record = Records(host).find(name)
    with reached(host, record) as contact:
        variables = tuple((key, value) for key, found, value in words if found)
        contact.ask("exec", record.id, tuple(argv), variables, interactive, _size(tty))
        contact.heard("running")
        return _carried(contact, interactive, tty)


@vm.command()
@_names
@click.option("-t", "--time", "time_s", type=click.FloatRange(0), metavar="SECONDS", help="Kill it after so long.")
def stop(names: Sequence[str], time_s: float | None) -> int:
    """Ask VMs to power off, and kill those that have not in time. Their disks go."""
    return each(names, lambda name: _ask(name, "stop", time_s))


@vm.command()
@_names
def kill(names: Sequence[str]) -> int:
    """Kill VMs at once. Their disks go."""
    return each(names, lambda name: _ask(name, "stop", 0.0))


@vm.command()
@_names
def pause(names: Sequence[str]) -> int:
    """Stop the vCPUs of VMs."""
    return each(names, lambda name: _ask(name, "pause"))


def _unpause(names: Sequence[str]) -> int:
    """Let paused VMs run on."""
    return each(names, lambda name: _ask(name, "unpause"))


for _word in ("unpause", "resume"):  # Docker's, virsh's
    vm.command(_word)(_names(_unpause))


@vm.command()
@_names
@click.option("-f", "--force", is_flag=True, help="Kill those that run; pass over those that are not there.")
def rm(names: Sequence[str], force: bool) -> int:
    """Forget VMs that have ended."""
    records = Records(host_from_env())

    def remove(name: str) -> None:
        try:
            record = records.find(name)
        except TareError as error:
            if force and error.why == "no such virtual machine":
                return
            raise
        if record.status == LOST:
            raise TareError(f"virtual machine {record.name}", "its keeper was killed", "run: tare clean")
        if record.running:
            if not force:
                raise TareError(f"virtual machine {record.name}", "it runs", "stop it, or use -f")
            _ask(record.id, "stop", 0.0)
        records.remove(record)

    return each(names, remove)


@vm.command()
@_names
def wait(names: Sequence[str]) -> int:
    """Wait until VMs have ended, and print their exit codes."""
    host = host_from_env()

    def code(name: str) -> str:
        record = Records(host).find(name)
        if record.running:
            with reached(host, record) as contact:
                contact.ask("wait", record.id)
                return str(contact.heard("code")[1])
        return str(record.exit_code if record.exit_code is not None else 137)

    return each(names, code)


@vm.command()
@click.argument("name", metavar="VM")
@_json
def port(name: str, as_json: bool) -> None:
    """List the published ports of VM."""
    record = Records(host_from_env()).find(name)
    if as_json:
        click.echo(json.dumps([list(port) for port in record.ports]))
        return
    for host, outside, inside, protocol in record.ports:
        click.echo(f"{inside}/{protocol} -> {host}:{outside}")


def _ask(name: str, *words: object) -> None:
    """One request about a running guest that is only done or not."""
    host = host_from_env()
    record = Records(host).find(name)
    with reached(host, record) as contact:
        contact.ask(words[0], record.id, *words[1:])
        contact.heard("done")


def _need_root() -> None:
    if os.geteuid() != 0:
        raise TareError("virtual machines", "they need root", "run it as root")

"""The `tare` command: a table from names to the command groups that implement them.

Each package brings its own `cli.py`; only the one that holds the command asked for is imported, so
that `tare run` never loads pandas and `tare report` never loads libvirt.
"""

from __future__ import annotations

import importlib
import os
import sys

import click

from runtime.errors import TareError, UsageError, printable

# name -> module holding a click command of that name (dashes become underscores, Python's own words end with one)
COMMANDS = {
    "attach": "runtime.commands.containers",
    "bench": "harness.cli",
    "build": "runtime.cli",
    "clean": "runtime.cli",
    "commit": "runtime.commands.files",
    "compare": "harness.compare_cli",
    "cp": "runtime.commands.files",
    "create": "runtime.commands.containers",
    "diff": "runtime.commands.files",
    "doctor": "harness.cli",
    "events": "runtime.commands.showing",
    "exec": "runtime.commands.containers",
    "export": "reports.cli",
    "floor": "harness.compare_cli",
    "history": "harness.compare_cli",
    "images": "runtime.cli",
    "import": "runtime.commands.images",
    "inspect": "runtime.commands.showing",
    "kill": "runtime.commands.containers",
    "load": "runtime.commands.images",
    "logs": "runtime.commands.showing",
    "network": "runtime.commands.networks",
    "oci": "runtime.commands.oci",
    "pause": "runtime.commands.containers",
    "port": "runtime.commands.showing",
    "ps": "runtime.commands.showing",
    "pull": "runtime.commands.images",
    "push": "runtime.commands.images",
    "rename": "runtime.commands.containers",
    "report": "reports.cli",
    "restart": "runtime.commands.containers",
    "rm": "runtime.commands.containers",
    "rmi": "runtime.commands.images",
    "run": "runtime.commands.containers",
    "save": "runtime.commands.images",
    "start": "runtime.commands.containers",
    "stats": "runtime.commands.showing",
    "stop": "runtime.commands.containers",
    "tag": "runtime.commands.images",
    "top": "runtime.commands.showing",
    "unpause": "runtime.commands.containers",
    "update": "runtime.commands.containers",
    "vm": "runtime.commands.vm",
    "volume": "runtime.commands.volumes",
    "wait": "runtime.commands.containers",
}


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        if cmd_name == "run":
            _begin_keeper()
        module, name = importlib.import_module(COMMANDS[cmd_name]), cmd_name.replace("-", "_")
        command = getattr(module, name, None) or getattr(module, f"{name}_")  # `import_`: a word of Python's own
        assert isinstance(command, click.Command)
        return command


def _begin_keeper() -> None:
    """What `tare run` will need starts beside it while it imports the rest."""
    from runtime.container.contact import foresee
    from runtime.driver import host_from_env

    foresee(host_from_env().run)


@click.command(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--root", envvar="TARE_ROOT", metavar="DIR", help="Keep all state under DIR instead of /var/lib and /run."
)
@click.option(
    "--connect", metavar="URI", help="The libvirt for virtual machines: qemu:///embed (ours) or qemu:///system."
)
@click.option("--debug", is_flag=True, help="On an error, show the traceback and what was executed.")
@click.version_option(package_name="tare")
def tare(root: str | None, connect: str | None, debug: bool) -> None:
    """Measure what containers and virtual machines cost, and how well they isolate, on this host."""
    if root is not None:
        os.environ["TARE_ROOT"] = root
    if connect is not None:
        os.environ["TARE_LIBVIRT_URI"] = connect
    if debug:
        os.environ["TARE_DEBUG"] = "1"


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; errors are one line on stderr, `tare: what: why (what to do)`."""
    try:
        code = tare.main(arguments, prog_name="tare", standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("tare: interrupted", err=True)
        raise SystemExit(130) from None
    except click.ClickException as error:
        usage = error.ctx.get_usage() if isinstance(error, click.UsageError) and error.ctx else "tare --help"
        line = str(UsageError("command line", error.format_message().rstrip("."), usage))
        click.echo(f"tare: {' '.join(line.split())}", err=True)
        raise SystemExit(2) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except TareError as error:
        if os.environ.get("TARE_DEBUG"):
            raise
        click.echo(f"tare: {printable(str(error))}", err=True)
        raise SystemExit(error.exit_code) from None
    except OSError as error:
        if os.environ.get("TARE_DEBUG"):
            raise
        place = f" {error.filename}" if error.filename else ""
        click.echo(
            f"tare: system call on{place or ' the host'}: {error.strerror or error} (--debug tells where)", err=True
        )
        raise SystemExit(1) from None
    raise SystemExit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()

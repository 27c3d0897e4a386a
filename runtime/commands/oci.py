"""`tare oci` in the table of `tare`: hands every word to `ocimain`, which reads them as runc would."""

from __future__ import annotations

import click

from runtime.commands import ocimain


@click.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def oci(context: click.Context, words: tuple[str, ...]) -> None:
    """Run containers as an OCI runtime, with runc's command line; engines call it as `tare-oci`."""
    context.exit(ocimain.enter(words))

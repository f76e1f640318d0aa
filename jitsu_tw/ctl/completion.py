"""``jitsuctl completion``: what a shell evaluates to complete commands and VMs."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """
    Print what completes commands and VMs in SHELL.

    For bash: eval "$(jitsuctl completion bash)"
    """
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(context.find_root().command, {}, "jitsuctl", "_JITSUCTL_COMPLETE").source())

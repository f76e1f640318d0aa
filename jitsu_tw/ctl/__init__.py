"""
jitsuctl: sees and steers a running Jitsu over its control endpoint, its state, and its configuration.

A command is a row of `COMMANDS`; its module is imported when the command runs, so that none pays for what others need.

Exit status: 0 done, 1 refused (the reason is on standard error), 2 wrong usage, 3 no Jitsu answers.
"""

from __future__ import annotations

import sys
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from jitsu_tw import __version__
from jitsu_tw.sockets import find_control

if TYPE_CHECKING:
    from collections.abc import Mapping

EPILOG: Final = "Exit status: 0 done, 1 refused (the reason is on standard error), 2 wrong usage, 3 no Jitsu answers."

#: By the name of a command: its module in this package, and its line in the list of commands. In the module, the
#: command has the same name, with underscores.
COMMANDS: Final[Mapping[str, tuple[str, str]]] = {
    "status": ("running", "Show the VMs: state, lease, counts."),
    "why": ("running", "Say why a VM is up, or down."),
    "templates": ("running", "Show the templates, and what is left for them."),
    "events": ("running", "Tell what has happened, or happens."),
    "dry-run": ("running", "Show what a dry run would have started."),
    "standins": ("running", "Show whose addresses Synjitsu stands in for."),
    "nodes": ("running", "Show the Jitsus that serve the zones together."),
    "hosts": ("running", "Show the hosts that VMs may run on."),
    "start": ("running", "Start a VM and wait until it is up."),
    "stop": ("running", "Stop a VM, by its mode."),
    "hold": ("running", "Start a VM and keep it up, used or not."),
    "release": ("running", "Release a held VM."),
    "forget": ("running", "Forget VMs that templates have made."),
    "move": ("running", "Move a VM to another host."),
    "drain": ("running", "Take a host or a node out of service."),
    "dnssec": ("dnssec", "Show and steer the zones that are signed."),
    "wake": ("wake", "Send a magic packet (Wake-on-LAN)."),
    "reload": ("running", "Read the configuration and the zones anew."),
    "set": ("edit", "Set a value of a VM or a template."),
    "unset": ("edit", "Remove a value of a VM or a template."),
    "add": ("edit", "Add a VM or a template."),
    "remove": ("edit", "Remove a VM or a template."),
    "edit": ("edit", "Edit a VM or a template in an editor."),
    "tree": ("history", "Print what the state says."),
    "log": ("history", "Show what has changed the configuration."),
    "diff": ("history", "Show how configurations differ."),
    "merge": ("history", "Merge a branch of the state."),
    "revert": ("history", "Undo what a commit has changed."),
    "init": ("history", "Make a state, or renew its hooks."),
    "git-shell": ("gitshell", "Serve git to one key in authorized_keys."),
    "check": ("check", "See whether the configuration is right."),
    "doctor": ("doctor", "Look at what usually goes wrong."),
    "completion": ("completion", "Print what completes commands in a shell."),
}


class Commands(click.Group):
    """The commands of `COMMANDS`, each imported when it is used. Ctrl-C ends any of them without a word."""

    def list_commands(self, context: click.Context) -> list[str]:  # noqa: ARG002
        """Return the names, as they stand in the list."""
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:  # noqa: ARG002
        """Return the command *name*."""
        if name not in COMMANDS:
            return None
        module, line = COMMANDS[name]
        command: click.Command = getattr(import_module(f"{__name__}.{module}"), name.replace("-", "_"))
        command.short_help = line
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the list of commands; none is imported for it."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def shell_complete(self, context: click.Context, incomplete: str) -> list[Any]:
        """Return what completes *incomplete*, an option or a command; none of these is imported for it."""
        from click.shell_completion import CompletionItem  # noqa: PLC0415 -- for completion alone

        found = [CompletionItem(name, help=line) for name, (_, line) in COMMANDS.items() if name.startswith(incomplete)]
        return [*found, *click.Command.shell_complete(self, context, incomplete)]

    def invoke(self, context: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(context)
        except KeyboardInterrupt:
            raise SystemExit(130) from None  # as shells have it: 128 and SIGINT


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]}, epilog=EPILOG)
@click.version_option(__version__, prog_name="jitsuctl")
@click.option(
    "--control",
    default=find_control,
    envvar="JITSU_CONTROL",
    metavar="PLACE",
    help="Jitsu's control endpoint: unix:PATH, host:port or https://host:port; by default the UNIX socket of your own "
    "Jitsu, or of the one of this machine. [$JITSU_CONTROL]",
)
@click.option("--token-file", type=click.Path(path_type=Path), envvar="JITSU_TOKEN_FILE", metavar="FILE",
              help="The file with its control_token. [$JITSU_TOKEN_FILE]")  # fmt: skip
@click.option("--ca", type=click.Path(path_type=Path), envvar="JITSU_CA", metavar="FILE",
              help="With https: the authority (PEM) of its certificate, if it is not known. [$JITSU_CA]")  # fmt: skip
def main(**_: Any) -> None:
    """See and steer a running Jitsu."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names that a terminal's encoding does not have

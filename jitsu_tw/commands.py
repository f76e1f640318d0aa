"""
The commands ``jitsu`` and ``synjitsu``: each runs its plugin of twistd as ``twistd --nodaemon --pidfile=`` does, with a
log on standard error.
"""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

from twisted.python import usage
from twisted.scripts._twistd_unix import ServerOptions
from twisted.scripts.twistd import runApp

from jitsu_tw.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from twisted.application.service import ServiceMaker


class _Options(ServerOptions):
    """The options of twistd that knows one plugin."""

    synopsis = "Usage:"

    def __init__(self, plugin: ServiceMaker) -> None:
        self._plugin, self.loadedPlugins = plugin, {plugin.tapname: plugin}
        super().__init__()

    @property
    def subCommands(self) -> Iterator[tuple[str, None, Any, str]]:  # noqa: N802
        """The plugin, as `usage.Options` describes a subcommand."""
        yield self._plugin.tapname, None, self._plugin.options, self._plugin.description


def _run(plugin: ServiceMaker) -> None:
    """Run *plugin* with the arguments of this process; exit with one line and status 2 if they are wrong."""
    options = _Options(plugin)
    try:
        options.parseOptions(["--nodaemon", "--pidfile=", plugin.tapname, *sys.argv[1:]])
    except usage.UsageError as error:
        name = plugin.tapname
        sys.stderr.write(f"{name}: {printable(str(error))}; see {name} --help\n")
        sys.exit(2)
    with redirect_stdout(sys.stderr):  # without a file, twistd logs to standard output
        runApp(options)


def jitsu() -> None:
    """Run Jitsu."""
    from twisted.plugins.jitsu_plugin import jitsu as plugin  # noqa: PLC0415

    _run(plugin)


def synjitsu() -> None:
    """Run Synjitsu."""
    from twisted.plugins.synjitsu_plugin import synjitsu as plugin  # noqa: PLC0415

    _run(plugin)

"""Whether Jitsu could start: its configuration, its zones and its files are read as it would; nothing is opened."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from twisted.python.usage import UsageError

from jitsu_tw.backends import backends_for
from jitsu_tw.dns.wire import to_text
from jitsu_tw.errors import JitsuError
from jitsu_tw.tap import Options

if TYPE_CHECKING:
    from collections.abc import Sequence


def checked(arguments: Sequence[str]) -> dict[str, Any]:
    """
    Return what came of checking what ``twistd jitsu`` would do with *arguments*: ``ok``, and what there is or is wrong.

    Raises:
        click.UsageError: they are none of its arguments.
    """
    options = Options()
    try:
        options.parseOptions(list(arguments))
        settings, zones = options.load()
        backends = backends_for(settings.vms, settings.hosts)
        advice = [f"{vm.name}: {line}" for vm in settings.vms for line in backends[vm.backend, vm.connect].examine(vm)]
    except UsageError as error:
        raise click.UsageError(str(error)) from error
    except JitsuError as error:
        return {"ok": False, "error": str(error)}
    return {
        "ok": True,
        "vms": len(settings.vms),
        "names": sum(len(vm.dns) for vm in settings.vms),
        "zones": [to_text(zone.key) for zone in zones],
        "warnings": [*(str(warning) for zone in zones for warning in zone.warnings), *advice],
    }

"""``jitsuctl check``: its configuration, its zones and its files are read as Jitsu would; nothing is opened."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from twisted.python.usage import UsageError

from jitsu_tw.backends import backends_for
from jitsu_tw.ctl import show
from jitsu_tw.ctl.show import FailedError, as_json_option
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


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@as_json_option
def check(arguments: tuple[str, ...], *, as_json: bool) -> None:
    """
    See whether the configuration and the zones are right.

    ARGUMENTS are those of `twistd jitsu`. Without any, jitsu.yaml in this directory is checked. What the file that
    defines a VM lacks is a warning. Nothing is started or opened, and no hypervisor is asked.
    """
    result = checked(arguments or ("--config", "jitsu.yaml"))
    if as_json:
        show.dump(result)
    elif result["ok"]:
        for warning in result["warnings"]:
            show.say(f"warning: {warning}")
        show.say(f"OK: {result['vms']} VMs, {result['names']} names, zones {', '.join(result['zones'])}")
    else:
        raise FailedError(result["error"])
    raise SystemExit(0 if result["ok"] else 1)

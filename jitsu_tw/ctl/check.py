"""
``jitsuctl check``: the configuration, its zones and its files are read as Jitsu would; nothing is opened.

With ``--connect`` also what they say of the world outside is compared with it.
"""

from __future__ import annotations

import gc
import os
import time
from typing import TYPE_CHECKING, Any

import click
from twisted.python.usage import UsageError

from jitsu_tw.backends import backends_for
from jitsu_tw.config.vms import example
from jitsu_tw.ctl import show
from jitsu_tw.ctl.show import FailedError, as_json_option
from jitsu_tw.dns.wire import to_text
from jitsu_tw.errors import JitsuError
from jitsu_tw.tap import Options
from jitsu_tw.text import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jitsu_tw.ctl.diagnosis.checks import Row
    from jitsu_tw.dns.lookup import Zones
    from jitsu_tw.settings import Settings


def load(arguments: Sequence[str]) -> tuple[Settings, Zones]:
    """
    Return the configuration that ``twistd jitsu`` would use with *arguments*.

    Raises:
        click.UsageError: they are none of its arguments.
        JitsuError: the configuration cannot be used.
    """
    options = Options()
    gc.disable()  # all that is made here stays: to look for garbage meanwhile would take a third of the time
    try:
        options.parseOptions(list(arguments))
        return options.load()
    except UsageError as error:
        raise click.UsageError(str(error)) from error
    finally:
        gc.enable()


def summary(settings: Settings, zones: Zones) -> dict[str, Any]:
    """
    Return what there is in a configuration that Jitsu could start with, and its doubtful lines.

    Raises:
        JitsuError: a VM, or one that a template would make, can never work as it is configured; or a key of a zone.
    """
    _check_keys(settings, zones)
    vms = (*settings.vms, *map(example, settings.templates))
    backends = backends_for(vms, settings.hosts)
    advice = [
        f"{vm.template or vm.name}: {line}" for vm in vms for line in backends[vm.backend, vm.connect].examine(vm)
    ]
    return {
        "ok": True,
        "vms": len(settings.vms),
        "templates": len(settings.templates),
        "names": sum(len(vm.dns) for vm in settings.vms),
        "zones": [to_text(zone.key) for zone in zones],
        "warnings": [*(str(warning) for zone in zones for warning in zone.warnings), *advice],
    }


def _check_keys(settings: Settings, zones: Zones) -> None:
    """Raise the error if a key cannot be used; this user may have no right to read the keys, and then none is read."""
    if settings.dnssec is None:
        return
    from jitsu_tw.dns.dnskeys import KeyFileError, read  # noqa: PLC0415 -- cryptography, for this alone
    from jitsu_tw.sync.zone_signing import idle, is_wanted  # noqa: PLC0415

    directory = settings.dnssec.keys
    is_there = os.path.lexists(directory)
    if directory.is_dir() and not os.access(directory, os.R_OK | os.X_OK):
        return
    wanted = [zone.key for zone in zones if is_wanted(settings.dnssec, zone)]
    for zone, keys in read(directory, wanted).items() if is_there else ():
        if isinstance(keys, KeyFileError):
            raise keys
        if keys and (problem := idle(directory, zone, keys, time.time())):
            raise problem


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.option("--connect", "outside", is_flag=True,
              help="Also ask the hypervisors, the bridges and the zones' parents whether what the files say of them is "
              "so. Nothing is changed there.")  # fmt: skip
@as_json_option
def check(arguments: tuple[str, ...], *, outside: bool, as_json: bool) -> None:
    """
    See whether the configuration and the zones are right.

    ARGUMENTS are those of `twistd jitsu`. Without any, jitsu.yaml in this directory is checked. What the file that
    defines a VM lacks is a warning, and so is a file of a template that cannot be read. Nothing is started or opened,
    and no hypervisor is asked without --connect. What else can go wrong on this machine is for `jitsuctl doctor`.
    """
    rows: list[Row] = []
    try:
        settings, zones = load(arguments or ("--config", "jitsu.yaml"))
        result = summary(settings, zones)
    except JitsuError as error:
        result = {"ok": False, "error": str(error)}
    else:
        if outside:
            from jitsu_tw.ctl.diagnosis import checks  # noqa: PLC0415 -- for this alone

            rows = checks.run(checks.Context(settings, zones), checks.OUTSIDE)
            result["findings"] = [row.as_json() for row in rows]
            result["ok"] = not any(row.is_problem for row in rows)
        elif settings.templates:
            from jitsu_tw.ctl.diagnosis import templates  # noqa: PLC0415 -- for templates alone

            files = {template.name: templates.look(template) for template in settings.templates}
            result["warnings"] += [f"{one.text}; {one.remedy}" for one in templates.files(files)]
    if as_json:
        show.dump(result)
    elif "error" in result:
        raise FailedError(result["error"])
    else:
        for warning in result["warnings"]:
            show.say(f"warning: {warning}")
        for row in rows:
            row.say()
        if result["ok"]:
            counts = [counted(result["vms"], "VM"), counted(result["names"], "name")]
            if result["templates"]:
                counts.append(counted(result["templates"], "template"))
            show.say(f"OK: {', '.join(counts)}, zones {', '.join(result['zones'])}")
    raise SystemExit(0 if result["ok"] else 1)

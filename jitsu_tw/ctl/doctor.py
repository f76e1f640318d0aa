"""``jitsuctl doctor``: looks at what usually goes wrong."""

from __future__ import annotations

from os.path import exists  # unlike Path.exists, this never raises
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs
import click
from click.core import ParameterSource

from jitsu_tw.ctl import show
from jitsu_tw.ctl.asking import control_of
from jitsu_tw.ctl.check import load, summary
from jitsu_tw.ctl.diagnosis import findings
from jitsu_tw.ctl.diagnosis.checks import ALL, Context, Row, run
from jitsu_tw.ctl.show import as_json_option
from jitsu_tw.errors import JitsuError
from jitsu_tw.settings import DEFAULT_CONTROL, Settings
from jitsu_tw.text import counted

if TYPE_CHECKING:
    from jitsu_tw.ctl.client import Control
    from jitsu_tw.ctl.diagnosis.findings import Finding

#: The configurations that are looked for, and seconds for the control endpoint to answer.
FILES: Final = (Path("jitsu.yaml"), Path("/etc/jitsu/jitsu.yaml"))
ANSWERS_WITHIN: Final = 3.0


@click.command()
@click.option("--config", type=click.Path(path_type=Path), metavar="FILE",
              help="The configuration; by default jitsu.yaml in this directory, or /etc/jitsu/jitsu.yaml.")  # fmt: skip
@as_json_option
@click.pass_context
def doctor(context: click.Context, config: Path | None, *, as_json: bool) -> None:
    """
    Look at what usually goes wrong: on this machine, with the configuration, and with the Jitsu that runs.

    Each line is a finding: ok, WARNING (Jitsu works, but not for all clients, or not for long) or PROBLEM, and below it
    what to do. Nothing is changed, and no VM is started. As root it sees more. The exit status is 1 if there is a
    problem.
    """
    there = filter(exists, FILES)
    checked, found = _configuration(config or next(there, None))
    rows = [Row("config", "that the configuration can be used", one) for one in found]
    rows += run(attrs.evolve(checked, control=_control(context, checked.settings)), ALL)
    if as_json:
        show.dump([row.as_json() for row in rows])
    else:
        for row in rows:
            row.say()
    raise SystemExit(any(row.is_problem for row in rows))


def _configuration(file: Path | None) -> tuple[Context, list[Finding]]:
    """Return what there is to check, and what is wrong with the configuration; one that is bad has no VMs."""
    if file is None:
        remedy = "name it with --config: without it, VMs, bridges and zones are not looked at"
        return Context(Settings()), [findings.warning("there is no configuration here", remedy)]
    try:
        settings, zones = load(("--config", str(file)))
        warnings = summary(settings, zones)["warnings"]
    except JitsuError as error:
        return Context(Settings()), [findings.problem(line, "") for line in str(error).splitlines()]
    templates = f", {counted(len(settings.templates), 'template')}" if settings.templates else ""
    usable = findings.ok(f"{file} can be used: {counted(len(settings.vms), 'VM')}{templates}")
    found = [usable, *findings.merged(map(_warning, warnings))]
    return Context(settings, zones), found


def _warning(line: str) -> tuple[str, Finding]:
    """Return the name of the VM or the place that a *line* of advice is about, and the advice."""
    name, _, sentence = line.partition(": ")
    text, _, remedy = sentence.partition("; ")
    return name, findings.warning(text, remedy)


def _control(context: click.Context, settings: Settings) -> Control | None:
    """Return the control endpoint of the options, or else of the configuration; None if it has none."""
    control = attrs.evolve(control_of(context), patience=ANSWERS_WITHIN)
    if context.find_root().get_parameter_source("control") is not ParameterSource.DEFAULT:
        return control
    places = [place for place in settings.control if place and not place.startswith("ssl:")]
    if not places:
        return None
    return control if places[0] == DEFAULT_CONTROL else attrs.evolve(control, place=places[0])

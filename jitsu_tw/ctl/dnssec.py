"""``jitsuctl dnssec``: the zones that are signed, their keys, and rollovers."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import click

from jitsu_tw.ctl import show
from jitsu_tw.ctl.asking import asks, complete_zones, prints
from jitsu_tw.ctl.show import FailedError, as_json_option

if TYPE_CHECKING:
    from jitsu_tw.ctl.client import Control
    from jitsu_tw.settings import Settings

#: The argument of commands for one zone.
zone_name = click.argument("zone", shell_complete=complete_zones)


@click.group()
def dnssec() -> None:
    """Show and steer the zones that are signed."""


@dnssec.command()
@click.argument("zones", nargs=-1, metavar="[ZONE]...", shell_complete=complete_zones)
@as_json_option
@asks
def status(control: Control, zones: tuple[str, ...], *, as_json: bool) -> None:
    """
    Show the zones that are signed, or ZONES: keys, what comes next, expiry, problems.

    The signatures of zones that come signed are checked. The exit status is 1 if there is a problem.
    """
    listed = control.ask("GET", "/v1/dnssec")
    if zones:
        listed = [_of(listed, zone) for zone in zones]
    show.dump(listed) if as_json else _print(listed)
    raise SystemExit(any(one["problems"] for one in listed))


def _of(listed: list[dict[str, Any]], zone: str) -> dict[str, Any]:
    """
    Return the zone of that name.

    Raises:
        FailedError: there is none.
    """
    found = next((one for one in listed if one["zone"] == (zone.lower().removesuffix(".") or ".")), None)
    if found is None:
        raise FailedError(f"{zone} is no zone that is signed; jitsuctl dnssec status lists them")
    return found


def _print(listed: list[dict[str, Any]]) -> None:
    """Print zones: a table of keys, and below it what comes next and what is wrong."""
    if not listed:
        show.say("no zone is signed")
        return
    made = show.Rows("zone", "signed by", "key", "algorithm", "state", "DS announced", "first expiry", cut="zone")
    for one in listed:
        expiry = "-" if one["earliest_expiry"] is None else show.date(one["earliest_expiry"])
        for key in one["keys"] or [None]:
            cells = ("-",) * 4
            if key is not None:
                cells = (key["tag"], key["algorithm"], key["state"], "yes" if key["announced"] else "no")
            made.add(one["zone"], one["signer"], *cells, expiry)
    show.table(made)
    for one in listed:
        for line in filter(None, [one["next"], *(f"PROBLEM: {problem}" for problem in one["problems"])]):
            show.say(f"{one['zone']}: {line}")


@dnssec.command()
@zone_name
@asks
def ds(control: Control, zone: str) -> None:
    """Print the DS record of ZONE that its parent should have."""
    found = _of(control.ask("GET", "/v1/dnssec"), zone)
    keys = [key for key in found["keys"] if key["announced"]]
    if not keys:
        keys = [key for key in found["keys"] if key["state"] == "active" and key["ds"]]
        for line in filter(None, [found["next"]]):
            show.say(f"{found['zone']}: {line}", err=True)
    for key in keys:
        show.say(key["ds"])


def _step(answer: dict[str, Any]) -> None:
    """Print what comes next for a zone."""
    show.say(f"{answer['zone']}: {answer['next']}")


@dnssec.command()
@zone_name
@prints(_step)
def rollover(control: Control, zone: str) -> Any:
    """Begin a rollover of ZONE to a new key, which signs beside the old one until the parent has its DS record."""
    return control.ask("POST", f"/v1/dnssec/rollover?{urlencode({'zone': zone})}")


def _finite(context: click.Context, parameter: click.Parameter, value: float) -> float:
    """Refuse what is no number, which no range leaves out."""
    if value != value:  # noqa: PLR0124
        raise click.BadParameter("nan is no number of hours", context, parameter)
    return value


@dnssec.command("ds-seen")
@zone_name
@click.option("--ds-ttl", "hours", default=24.0, show_default=True, type=click.FloatRange(0, 720), callback=_finite,
              help="The TTL of the old DS record at the parent, in hours.")  # fmt: skip
@prints(_step)
def ds_seen(control: Control, zone: str, hours: float) -> Any:
    """Go on with the rollover of ZONE: all servers of the parent have the DS record of the new key, and not the old."""
    query = urlencode({"zone": zone, "ds_ttl": round(hours * 3600)})
    return control.ask("POST", f"/v1/dnssec/ds-seen?{query}")


@dnssec.command()
@zone_name
@prints(_step)
def insecure(control: Control, zone: str) -> Any:
    """
    Ask the parent of ZONE, by CDS and CDNSKEY, to remove its DS records.

    The zone stays signed until it is taken out of dnssec. dnssec-settime -D sync none, for its keys, takes that back.
    """
    return control.ask("POST", f"/v1/dnssec/insecure?{urlencode({'zone': zone})}")


@dnssec.command(context_settings={"ignore_unknown_options": True})
@click.option("--lost", is_flag=True, help="Keys that the zone is signed with are lost, and are to be forgotten.")
@zone_name
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def init(zone: str, arguments: tuple[str, ...], *, lost: bool) -> None:
    """
    Make a key for ZONE while Jitsu does not run.

    ARGUMENTS are those of `twistd jitsu`; without any, jitsu.yaml in this directory is read. Jitsu makes keys itself at
    its first start, so this is for lost keys: with --lost, the state forgets them, damaged files get the suffix .lost,
    and if no other key is left, a new one is made. Resolvers refuse the zone then until its parent has the DS record of
    the new key.
    """
    from jitsu_tw.ctl.check import load  # noqa: PLC0415 -- all of Jitsu, which the other commands do without
    from jitsu_tw.errors import JitsuError  # noqa: PLC0415

    try:
        settings, zones = load(arguments or ("--config", "jitsu.yaml"))
        _become_owner(settings)
        from jitsu_tw.sync.zone_signing import make_key  # noqa: PLC0415 -- cryptography, which may not be there

        lines = make_key(settings, zones, zone, lost=lost)
    except (JitsuError, ImportError) as error:
        raise FailedError(str(error)) from error
    for line in lines:
        show.say(line)


def _become_owner(settings: Settings) -> None:
    """Become, as root, the owner of the state, or of the directory in which it will be: Jitsu has to read the key."""
    if os.geteuid() == 0 and settings.persistdb is not None:
        path = settings.persistdb.absolute()
        owner = next(one for one in (path, *path.parents) if one.exists()).stat()
        os.setegid(owner.st_gid)
        os.seteuid(owner.st_uid)

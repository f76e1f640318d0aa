"""jitsuctl's commands to a running Jitsu, over its control endpoint."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode

import click

from jitsu_tw.ctl import show
from jitsu_tw.ctl.asking import asks, complete_templates, made_names, prints, vm_name, vm_names
from jitsu_tw.ctl.show import FailedError, NoAnswerError, as_json_option

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from jitsu_tw.ctl.client import Control

#: Seconds between two requests: of `status --watch`, and of `start --wait` for the steps.
WATCH_EVERY: Final = 1.0
STEP_EVERY: Final = 0.1


# What is seen.


@click.command()
@vm_names
@click.option("--all", "each", is_flag=True, help="A row for each VM, also where a template has many.")
@click.option("--watch", is_flag=True, help="Keep the table live; end it with Ctrl-C. With --json, a line each time.")
@as_json_option
@asks
def status(control: Control, names: tuple[str, ...], *, each: bool, watch: bool, as_json: bool) -> None:
    """
    Show all VMs, or those of NAMES: state, lease, counts; problems of signed zones; and who is stood in for.

    A name is that of a VM, or of a template, for its VMs. Without names, a template with more than ten VMs has one row.
    """
    each = each or bool(names)
    vms = _some(control, names)
    if watch and as_json:
        for listed in _again(control, names, vms):
            show.dump(listed, indent=None)
    elif watch:
        _watch(_again(control, names, vms), each=each)
    elif as_json:
        show.dump(vms)
    else:
        show.table(show.vms(vms, each=each))
        for line in show.problems(vms):
            show.say(line)
        if not names:
            for zone in control.ask("GET", "/v1/dnssec"):
                for problem in zone["problems"]:
                    show.say(f"{zone['zone']}: {problem}")
            show.standins(control.ask("GET", "/v1/standins"))


def _some(control: Control, names: Collection[str]) -> list[dict[str, Any]]:
    """
    Return all VMs, or those that *names* name, by themselves or by their template.

    Raises:
        FailedError: one of *names* is that of no VM, and of no template with VMs.
    """
    vms: list[dict[str, Any]] = control.ask("GET", "/v1/vms")
    if not names:
        return vms
    known = {vm["name"] for vm in vms} | {vm["template"] for vm in vms}
    if missing := [name for name in names if name not in known]:
        raise FailedError(f"there is no VM, and no template with VMs, of the name {', '.join(missing)}")
    return [vm for vm in vms if vm["name"] in names or vm["template"] in names]


def _watch(again: Iterator[Any], *, each: bool) -> None:
    """Keep the table of the VMs live on a terminal; elsewhere, print it each time."""
    from rich.console import Console  # noqa: PLC0415 -- half of the time that the other commands take
    from rich.live import Live  # noqa: PLC0415

    if not Console().is_terminal:
        for listed in again:
            show.table(show.vms(show.active_first(listed), each=each))
        return
    with Live(auto_refresh=False, screen=True) as live:
        for listed in again:
            live.update(show.vms(show.active_first(listed), each=each), refresh=True)


def _again(control: Control, names: Collection[str], vms: Any) -> Iterator[Any]:
    """Yield *vms*, the VMs of *names*, again and again."""
    while True:
        yield vms
        time.sleep(WATCH_EVERY)
        vms = _some(control, names)


@click.command()
@vm_name
@prints(show.why)
def why(control: Control, name: str) -> Any:
    """Say why the VM NAME is up, or down: the last decisions."""
    return control.vm(name)


@click.command()
@prints(show.templates)
def templates(control: Control) -> Any:
    """Show the templates: the VMs that they have made, the addresses that are left, and what is wrong with them."""
    return control.ask("GET", "/v1/templates")


@click.command()
@click.option("-n", "--last", default=20, show_default=True, type=click.IntRange(0, 1000), help="How many past events.")
@click.option("-f", "--follow", is_flag=True, help="Then show what happens; end it with Ctrl-C.")
@as_json_option
@asks
def events(control: Control, last: int, *, follow: bool, as_json: bool) -> None:
    """Tell what has happened: states, activations, refusals. With --json, one object a line."""
    for one in control.events(last, follow=follow):
        show.dump(one, indent=None) if as_json else show.say(show.event(one))


@click.command()
@prints(show.starts)
def dry_run(control: Control) -> Any:
    """Show what a dry run would have started, most first."""
    return sorted(control.ask("GET", "/v1/dry-run"), key=lambda one: -one["starts"])


@click.command()
@prints(show.synjitsu)
def standins(control: Control) -> Any:
    """Show whose addresses Synjitsu stands in for, what it holds, and what it has done."""
    return control.ask("GET", "/v1/standins")


@click.command()
@prints(functools.partial(show.members, "node"))
def nodes(control: Control) -> Any:
    """Show the Jitsus that serve the zones together."""
    return control.ask("GET", "/v1/nodes")


@click.command()
@prints(functools.partial(show.members, "host"))
def hosts(control: Control) -> Any:
    """Show the hosts that VMs may run on."""
    return control.ask("GET", "/v1/hosts")


# What is done.


@click.command()
@vm_name
@click.option("--wait", is_flag=True, help="Tell each step on the way, on standard error if there is --json.")
@as_json_option
@asks
def start(control: Control, name: str, *, wait: bool, as_json: bool) -> None:
    """Start the VM NAME and wait until it is up. Its lease begins as if it had been asked for by name."""
    vm = _start_and_tell(control, name, err=as_json) if wait else control.vm(name, "start")
    show.dump(vm) if as_json else show.vm(vm)


def _start_and_tell(control: Control, name: str, *, err: bool) -> Any:
    """Start a VM, print the steps meanwhile, on standard error if *err*, and return the VM."""
    past = _last_activation(control, name).get("id", 0)
    printed: set[str] = set()
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 -- for this alone

    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(control.vm, name, "start")
        while True:
            done = answer.done()
            running = _last_activation(control, name)
            if running.get("id", 0) > past or running.get("outcome") == "running":
                for step, when in running["steps"].items():
                    if step in show.STEPS and step not in printed:
                        printed.add(step)
                        show.say(show.step(step, when), err=err)
            if done:
                break
            time.sleep(STEP_EVERY)
    return answer.result()


def _last_activation(control: Control, name: str) -> dict[str, Any]:
    """Return the last activation of a VM; nothing if there is none."""
    query = urlencode({"vm": name, "last": 1})
    found: list[dict[str, Any]] = control.ask("GET", f"/v1/activations?{query}")
    return found[0] if found else {}


@click.command()
@vm_name
@prints(show.vm)
def stop(control: Control, name: str) -> Any:
    """Stop the VM NAME, by its mode, also if held. The next query starts it again."""
    return control.vm(name, "stop")


@click.command()
@vm_name
@prints(show.vm)
def hold(control: Control, name: str) -> Any:
    """Start the VM NAME and keep it up, used or not. A release or a stop ends that, and so does the end of Jitsu."""
    return control.vm(name, "hold")


@click.command()
@vm_name
@prints(show.vm)
def release(control: Control, name: str) -> Any:
    """Release the held VM NAME: it is stopped when idle."""
    return control.vm(name, "release")


@click.command()
@made_names
@click.option("--template", metavar="NAME", shell_complete=complete_templates,
              help="The VMs of the template NAME that are down.")  # fmt: skip
@click.option("--all", "also_up", is_flag=True, help="With --template: also those that are up; they are stopped.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@as_json_option
@asks
def forget(
    control: Control, names: tuple[str, ...], template: str | None, *, also_up: bool, yes: bool, as_json: bool
) -> None:
    """
    Forget the VMs NAMES, which templates have made.

    Each is stopped, and removed with its names, its address, its definition and its disk. A question for one of its
    names makes it anew. What a VM has on its disk is lost: on a terminal, this asks first.
    """
    if bool(names) is (template is not None) or (also_up and template is None):
        raise click.UsageError("name VMs, or a template by --template, to which --all may be added")
    if template is not None:
        names = tuple(_to_forget(control, template, also_up=also_up))
    if not yes:
        show.confirm(f"Forget {show.few(names)}, with what {'they have' if len(names) > 1 else 'it has'} on disk?")
    outcomes = []
    for name in names:
        error = _forgotten(control, name)
        outcomes.append({"name": name, "forgotten": error is None, "error": error})
        if not as_json:
            show.say(error or f"{name}: forgotten", err=error is not None)
    if as_json:
        show.dump(outcomes)
    raise SystemExit(any(one["error"] for one in outcomes))


def _to_forget(control: Control, template: str, *, also_up: bool) -> list[str]:
    """
    Return the names of the VMs of *template* that are down, or of all.

    Raises:
        FailedError: there is none.
    """
    made = [vm for vm in control.ask("GET", "/v1/vms") if vm["template"] == template]
    if not made:
        raise FailedError(f"there is no template {template}, or it has no VMs; jitsuctl templates lists all")
    found = [vm["name"] for vm in made if also_up or vm["state"] in show.DOWN]
    if not found:
        raise FailedError(f"no VM of {template} is down; --all forgets those that are up, too")
    return found


def _forgotten(control: Control, name: str) -> str | None:
    """Forget a VM, and return None; or return why that cannot be done."""
    try:
        answer = control.vm(name, "forget")
    except NoAnswerError:
        raise
    except FailedError as error:
        return error.message if error.message.startswith(f"{name}: ") else f"{name}: {error.message}"
    return None if answer["forgotten"] else f"{name}: is still there"


@click.command()
@vm_name
@click.argument("host")
@prints(show.vm)
def move(control: Control, name: str, host: str) -> Any:
    """Move the VM NAME, which is up, to HOST: while it runs, or by a stop and a start."""
    return control.vm(name, f"move?{urlencode({'host': host})}")


@click.command()
@click.argument("name")
@click.option("--undo", is_flag=True, help="Take it back into service.")
@prints(show.drained)
def drain(control: Control, name: str, *, undo: bool) -> Any:
    """
    Take the host or the node NAME out of service.

    Nothing new is started on such a host, and what runs there goes to others. Such a node starts nothing, and hands its
    VMs on to the others, which keep running.
    """
    known = {what: [one["name"] for one in control.ask("GET", f"/v1/{what}")] for what in ("hosts", "nodes")}
    found = [what for what, names in known.items() if name in names]
    if len(found) != 1:
        hosts, nodes = (", ".join(known[what]) or "none" for what in ("hosts", "nodes"))
        what = "both a host and a node" if found else "no host and no node"
        raise FailedError(f"{name} is {what}; the hosts: {hosts}; the nodes: {nodes}")
    return control.ask("POST", f"/v1/{found[0]}/{quote(name, safe='')}/{'undrain' if undo else 'drain'}")


@click.command()
@click.argument("zone", required=False)
@prints(show.reloaded)
def reload(control: Control, zone: str | None) -> Any:
    """
    Read the configuration and the zones anew, or ZONE alone.

    What is bad is refused with the reason, and nothing changes.
    """
    return control.ask("POST", "/v1/reload" if zone is None else f"/v1/reload?{urlencode({'zone': zone})}")

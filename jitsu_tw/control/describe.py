"""VMs, nodes, hosts and stand-ins in JSON, as the control endpoint shows them, and in words why a VM is up or down."""

from __future__ import annotations

from collections import Counter
from math import isfinite
from typing import TYPE_CHECKING, Any, Final

import attrs

from jitsu_tw import __version__
from jitsu_tw.control.configured import configured
from jitsu_tw.dns.wire import to_text
from jitsu_tw.errors import JitsuError
from jitsu_tw.rules.keep import Why
from jitsu_tw.rules.life import SLOW_START, start_call
from jitsu_tw.rules.lifecycle import DOWN, PREPARES, STOPS, State
from jitsu_tw.store.layout import made_at
from jitsu_tw.vm.journal import milliseconds

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jitsu_tw.vm.fleet import Fleet
    from jitsu_tw.vm.journal import Event
    from jitsu_tw.vm.machine import Machine

_DOWN: Final = {State.OFF: "off", State.PAUSED: "paused", State.SAVED: "saved, its memory on disk",
                State.PREPARED: "prepared: its guest is ready, and paused"}

#: What a VM that boots is waiting for.
_WAITS: Final = {
    State.QUEUED: "it waits for its turn to boot, or for a VM that it needs",
    State.STARTING: "the hypervisor is starting it",
    State.CANCELLING: "the hypervisor is starting it; it will be stopped when that is done",
    State.WAITING: "it runs, and is not ready yet",
    **dict.fromkeys(PREPARES, "it boots for nobody, so that its next start is short"),
    **dict.fromkeys(STOPS, "it is being stopped"),
}


def describe(fleet: Fleet, machine: Machine) -> dict[str, Any]:
    """Return a VM as the endpoint shows it; times are in seconds, `last_request_ts` since 1970."""
    stats, vm, left = fleet.stats.current(machine), machine.vm, fleet.leases.left(machine)
    return {
        "name": vm.name,
        "uuid": machine.uuid,
        "state": machine.state.shown,
        "reason": machine.reason,
        "problems": fleet.problems_of(machine),
        "total_starts": stats.total_starts,
        "total_requests": stats.total_requests,
        "last_request_ts": stats.last_request_ts or None,
        "lease_left": left if left is not None and isfinite(left) else None,
        "idle": vm.idle,
        "held": fleet.leases.wakeups.is_held(vm.name),
        "needed": machine.state is State.UP and fleet.dependencies.is_needed(machine),
        "template": vm.template,
        "origin": fleet.store.config.origin(machine.uuid),
        "names": [to_text(name) for name in vm.dns],
        "addresses": [str(address) for address in vm.ip],
        "mode": vm.mode.value,
        "host": fleet.cluster.host(machine),
        "node": fleet.cluster.ownership.owner(machine),
        "activation_ms": milliseconds(machine.marks),
        "day": fleet.uptime.strip(vm.name),
        "memory": fleet.uptime.sizes.get(vm.name),
    }


def explain(fleet: Fleet, machine: Machine, now: float) -> dict[str, Any]:
    """Return a VM with why it is up or down: in words, and the last decisions. *now* is in seconds since 1970."""
    decisions = list(fleet.journal.decisions(machine.vm.name))
    lease, template = fleet.leases.status(machine), fleet.templates.get(machine.vm.template or "")
    return {
        **describe(fleet, machine),
        "uses": {} if lease is None else {kind.name.lower(): ago for kind, ago in lease.uses.items()},
        "connections": None if lease is None else lease.connections,
        "configuration": list(configured(machine.vm, fleet.store.config.origin(machine.uuid), template)),
        "made_ts": made_at(fleet.store.config.origin(machine.uuid) or ""),
        "forgotten_ts": _forgotten_at(fleet, machine),
        "why": [
            *_why(fleet, machine, decisions, now), *_why_made(fleet, machine, decisions, now), *_slow_start(machine),
        ],
        "decisions": [one.as_json() for one in decisions],
        "activations": [one.as_json() for one in fleet.journal.last_activations(machine.vm.name, 5)],
    }


def _why(fleet: Fleet, machine: Machine, decisions: list[Event], now: float) -> Iterator[str]:
    """Yield sentences, the most important first."""
    moves = [one for one in decisions if one.kind == "state"]
    since = f" for {duration(now - moves[-1].at)}" if moves else ""
    queued = next((one for one in reversed(moves) if one.facts["state"] == State.QUEUED.value), None)
    if machine.state is State.UP:
        yield f"It has been up{since}." if since else "It is up, and was so before Jitsu looked."
        yield from _why_up(fleet, machine, queued, now)
    elif machine.state in _DOWN:
        reason = f": {machine.reason}" if moves and machine.reason else "" if moves else "; nobody asked for it"
        yield f"It is {_DOWN[machine.state]}{since}{reason}."
        packet = ", or a packet to its address," if machine.vm.use_synjitsu and machine.vm.wake_by_packet else ""
        yield f"A question for its name{packet} starts it."
    elif machine.state is State.FAILED:
        yield f"It did not start: {machine.reason}."
        if count := machine.failures.count:
            yield f"That was the {ordinal(count)} failure in a row; {_again(machine)}"
        else:  # another program had started it
            yield "A question for its name starts it."
    elif machine.state is State.UNKNOWN:
        yield f"Nobody knows what it is doing: {machine.reason or 'the hypervisor has not answered yet'}."
    else:
        yield f"It is {machine.state.shown}{since}: {_WAITS[machine.state]}."
        if machine.state in STOPS:
            yield f"Why: {machine.reason}."
        elif queued is not None:
            yield f"{_started_for(queued)}."
    yield from map(_sentence, fleet.problems_of(machine))
    for refusal in reversed(fleet.journal.refusals.values()):
        if refusal.vm == machine.vm.name:
            times = "once" if refusal.times == 1 else f"{refusal.times} times"
            yield (
                f"A start was refused to {refusal.network} {times}, last {duration(now - refusal.last)} ago: "
                f"{refusal.reason}."
            )


def _forgotten_at(fleet: Fleet, machine: Machine) -> float | None:
    """
    Return when *machine*, which a template has made, is forgotten if nobody uses it, in seconds since 1970.

    None for never, while it is not down, and if its last use is not known.
    """
    template = fleet.templates.get(machine.vm.template or "")
    last = fleet.stats.current(machine).last_use_ts
    is_due = template is not None and template.forget_after and last and machine.state in DOWN
    return last + template.forget_after if template is not None and is_due else None


def _why_made(fleet: Fleet, machine: Machine, decisions: list[Event], now: float) -> Iterator[str]:
    """Yield for whom a template has made *machine*, and until when it is kept; nothing for another VM."""
    template = fleet.templates.get(machine.vm.template or "")
    if template is None:
        return
    made = made_at(fleet.store.config.origin(machine.uuid) or "")
    asker = next((f" for {one.facts['asker']}" for one in reversed(decisions) if one.kind == "made"), "")
    yield f"The template {template.name} made it{asker}{'' if made is None else f', {duration(now - made)} ago'}."
    parts = ["its name", "its address", *(["its disk"] if machine.vm.layer is not None else [])]
    what = f"{', '.join(parts[:-1])} and {parts[-1]}"
    until = _forgotten_at(fleet, machine)
    if not template.forget_after:
        yield _sentence(f"{what} are kept until an operator forgets it: jitsuctl forget {machine.vm.name}")
    elif until is None:
        yield _sentence(f"{what} are kept until {duration(template.forget_after)} after its last use (forget_after)")
    else:
        yield _sentence(f"{what} are given up in {duration(until - now)} if nobody uses it (forget_after)")


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."


def _slow_start(machine: Machine) -> Iterator[str]:
    """Yield what the hypervisor took of the last start, if that was slow."""
    marks, took = machine.marks, start_call(machine.marks)
    if took >= SLOW_START and "ready" in marks:
        whole = marks["ready"] - marks["query"]
        yield f"Of the {whole * 1000:,.0f} ms of its last start, the hypervisor took {took * 1000:,.0f}."


def _why_up(fleet: Fleet, machine: Machine, queued: Event | None, now: float) -> Iterator[str]:
    if queued is not None:
        yield f"{_started_for(queued)}, {duration(now - queued.at)} ago."
    lease = fleet.leases.status(machine)
    if lease is None:
        yield "Nobody asked for it through Jitsu, so it is not stopped."
    elif lease.why is Why.HELD:
        yield "It is held: it stays up until somebody releases or stops it."
    else:
        ends = isfinite(lease.left) and lease.why is not Why.NEEDED
        end = f" It is stopped in {duration(lease.left)} if nobody uses it." if ends else ""
        yield f"What keeps it: {lease.words}.{end}"


def _started_for(queued: Event) -> str:
    why = queued.facts["reason"]
    asker = queued.facts["asker"]
    who = asker if asker.startswith("needed by ") else f"for {asker}"
    return f"Started {who}" + ("" if why == "asked for" else f" ({why})")


def _again(machine: Machine) -> str:
    rest = machine.rests
    if not rest:
        return "the next question tries again."
    return f"questions start it again in {duration(rest)}, a person at once."


def duration(seconds: float) -> str:
    """Return a time in words that are short: ``0.4 s``, ``12 s``, ``5 min``, ``3 h``, ``2 d``."""
    if seconds < 1:
        return f"{max(0.0, seconds):.1f} s"
    for limit, size, unit in ((120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"


def ordinal(number: int) -> str:
    """Return ``1st``, ``2nd``, ``3rd``, ``4th``, …."""
    ending = "th" if number // 10 % 10 == 1 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def about(fleet: Fleet, began: float) -> dict[str, Any]:
    """Return what is to be known of all VMs together, and of the process, which *began* then, since 1970."""
    states = Counter({state.shown: 0 for state in State})
    for state, count in fleet.journal.totals.states.items():
        states[state.shown] += count
    return {
        "version": __version__,
        "began": began,
        "vms": states,
        "saved": fleet.uptime.saved(),
        "days": fleet.uptime.days(),
    }


def nodes(fleet: Fleet) -> list[dict[str, Any]]:
    """Return the nodes that serve the zones, this one among them, by name."""
    return [attrs.asdict(one) for one in fleet.cluster.nodes]


def hosts(fleet: Fleet) -> list[dict[str, Any]]:
    """Return the hosts that VMs may run on, in the order of the configuration."""
    return [attrs.asdict(one) for one in fleet.cluster.hosts]


#: What lists the members of a cluster, by their kind.
MEMBERS: Final = {"nodes": nodes, "hosts": hosts}


async def standins(fleet: Fleet) -> dict[str, Any]:
    """
    Return the addresses that Synjitsu stands in for, and its counters.

    Returns:
        ``configured``: whether a Synjitsu is configured; ``error``: why it cannot be asked, or None; ``standins``, a
        list of mappings with ``ip``, ``mac``, ``state``, ``handover`` and ``held``; ``counters``, a mapping of numbers.
    """
    clients = fleet.standins.clients
    found: dict[str, Any] = {"configured": bool(clients), "error": None, "standins": [], "counters": {}}
    for client in clients.values():
        try:
            status = await client.status()
        except JitsuError as error:
            found["error"] = str(error)
            continue
        found["standins"] += status["standins"]
        for name, count in status["counters"].items():
            found["counters"][name] = found["counters"].get(name, 0) + count
    return found

"""Templates in JSON, as the control endpoint shows them, and what is wrong with them."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import attrs
from twisted.internet.defer import fail
from zope.interface import implementer

from jitsu_tw.dns.wire import to_text
from jitsu_tw.errors import ConfigError
from jitsu_tw.ijitsu import ITemplateControl, TemplateCounts
from jitsu_tw.rules.addresses import size

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from twisted.internet.defer import Deferred

    from jitsu_tw.rules.lifecycle import State
    from jitsu_tw.settings import Template
    from jitsu_tw.vm.fleet import Fleet

#: The share of a pool below which its free addresses are told as a problem.
LEAST_FREE: Final = 0.05


@implementer(ITemplateControl)
class NoTemplates:
    """There is no state, so there are no templates."""

    def counts(self, template: str) -> TemplateCounts:  # noqa: ARG002
        """Return that nothing was done."""
        return TemplateCounts()

    def problems(self) -> Mapping[str, Collection[str]]:
        """Return no problem."""
        return {}

    def forget(self, name: str) -> Deferred[None]:
        """Refuse to forget a VM of the configuration."""
        return fail(ConfigError("was not made by a template; remove it from the configuration", key=name))


@attrs.frozen
class TemplateStatus:
    """
    A template as it is now.

    Attributes:
        template: its settings.
        states: how many of its VMs are in each state.
        size: how many VMs its pool has addresses for.
        free: how many more there could be.
        counts: what it has done.
        problems: what is wrong with it, in sentences without a full stop.
    """

    template: Template
    states: Mapping[State, int]
    size: int
    free: int
    counts: TemplateCounts
    problems: tuple[str, ...]

    @property
    def made(self) -> int:
        """How many VMs it has."""
        return sum(self.states.values())

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        shown = Counter[str]()
        for state, number in self.states.items():
            shown[state.shown] += number
        template = self.template
        return {
            "name": template.name,
            "uuid": template.uuid,
            "wildcards": [to_text(name) for name in template.dns],
            "pool": {"addresses": list(template.raw["pool"]), "size": self.size, "free": self.free},
            "max": template.max,
            "new_per_minute": template.new_per_minute,
            "forget_after": template.forget_after,
            "vms": self.made,
            "states": shown,
            "counts": attrs.asdict(self.counts),
            "problems": list(self.problems),
        }


def statuses(fleet: Fleet, control: ITemplateControl) -> Iterator[TemplateStatus]:
    """
    Yield the templates of *fleet* as they are now, in the order of the configuration.

    The cost grows with the number of VMs that they have made: 10,000 take a few milliseconds.
    """
    told = control.problems()
    for template in fleet.templates.values():
        states = Counter(fleet.machines[name].state for name in fleet.members.of(template.name))
        whole, free = size(template.pool), _free(fleet, template)
        found = [*_shortage(template, sum(states.values()), whole, free), *told.get(template.name, ())]
        yield TemplateStatus(template, states, whole, free, control.counts(template.name), tuple(found))


def template_problems(fleet: Fleet, control: ITemplateControl) -> Iterator[str]:
    """Yield what is wrong with templates, those that the configuration has no more among them, as lines."""
    told = control.problems()
    for template in fleet.templates.values():
        made, whole, free = fleet.members.count(template.name), size(template.pool), _free(fleet, template)
        for sentence in (*_shortage(template, made, whole, free), *told.get(template.name, ())):
            yield f"template {template.name}: {sentence}"
    for name in sorted(told.keys() - fleet.templates.keys()):
        for sentence in told[name]:
            yield f"template {name}: {sentence}"


def _free(fleet: Fleet, template: Template) -> int:
    """Return how many more VMs the pool of *template* has addresses for; templates may share a pool."""
    shared = (
        other.name
        for other in fleet.templates.values()
        if any(one.overlaps(another) for one in template.pool for another in other.pool)
    )
    return max(0, size(template.pool) - sum(map(fleet.members.count, shared)))


def _shortage(template: Template, made: int, whole: int, free: int) -> Iterator[str]:
    """Yield that few addresses are left, where more VMs may be made than there are addresses."""
    if free <= LEAST_FREE * whole and free < template.max - made:
        remedy = f"enlarge its pool, or forget VMs: jitsuctl forget --template {template.name}"
        yield f"it has {free} of {whole} addresses left; {remedy}"

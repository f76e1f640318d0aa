"""
What truly happened to the VMs of a soak, and the rules that Jitsu must not break. It knows nothing of Jitsu's inside.

The hypervisor, the way to it and the clients write it (`bench.simulation.hypervisor`, `bench.simulation.soak`); it says
at once what is against a rule. It is bounded: of the past it keeps what a rule needs.
"""

from __future__ import annotations

from collections import Counter, deque
from math import inf
from typing import TYPE_CHECKING, Final

import attrs

from jitsu_tw.ijitsu import Power, Start
from jitsu_tw.networks import network, packed
from jitsu_tw.rules.keep import JUST_USED
from jitsu_tw.rules.lease import BURST, GREETING
from jitsu_tw.rules.life import RESUMED
from jitsu_tw.rules.schedule import kept_until
from jitsu_tw.settings import COMMIT_EVERY, READY_WITHIN, RESUMED_WITHIN, STARTS_WITHIN, Boot, Evidence, Mode
from jitsu_tw.vm.health import CHECK_PATIENCE, CHECK_RETRY
from jitsu_tw.vm.wakeups import EARLY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from jitsu_tw.settings import VM, Settings

#: What times may be wrong by, in seconds: the state has them in milliseconds.
TICK: Final = 0.002

#: So long may a change be unknown to Jitsu, in seconds: the event's way, and that of the question after it.
NEWS: Final = 3.0

#: So long after a connection's return may a VM's state be unknown: all of them are asked for.
RECONCILED: Final = 20.0

#: What was asked for within so many seconds before a kill may be forgotten.
FORGOTTEN: Final = COMMIT_EVERY + 2.0

#: A start or stop is written down within so many seconds; a kill before that may lose it.
WRITTEN: Final = 1.0

#: How a call ends where nobody tells Jitsu how it ended.
UNTOLD: Final = frozenset({"start hangs", "the connection broke"})

#: Packets that a guest may send without that being a use.
UNNOTICED: Final = GREETING + BURST

#: A guest that sends so many packets a second for so many seconds is in use.
BUSY_RATE: Final = 5.0
BUSY_FOR: Final = 2 * UNNOTICED / BUSY_RATE

#: Why Jitsu starts a VM for nobody; how the reason ends why it stops one that it so started.
PREPARES: Final = "prepared for a later start"
GIVES_WAY: Final = "is started for a client"

#: The last lines of a VM's story that are told with a violation.
STORY: Final = 40


@attrs.define(eq=False)
class Facts:
    """
    What is true of one VM; times are those of the ledger's clock.

    Attributes:
        vm: its settings.
        power: what it is; None while it is not defined.
        since: when that changed.
        ours: it was started, or asked for, through Jitsu since it was down; None: Jitsu may know or not.
        by_us: its last start was Jitsu's.
        how: what that start did.
        begun: when the last start call of Jitsu began.
        uses: when it was asked for, the latest last: those of the last seconds, and one before.
        person: when a person last started it, of the Jitsu that is alive: no other knows.
        wanted: when it, or a VM that needs it, was last asked for.
        asked: how many have asked for it, or for a VM that needs it, and are not answered.
        changing: the call that is changing it, of the Jitsu that is alive.
        stopped: when the last stop call began; its mode.
        untold: when a start call of Jitsu's last ended without its being told how.
        orphan: a start call of a Jitsu that is no more is under way, perhaps.
        preparing: its last start was for nobody, and nobody has asked for it since.
        restarting: it was stopped to be started again.
        promised: an answer with its address has left early, and no start has been tried again for that.
        by_hand: how many people wait for it to stop.
        decided: when its last stop was decided: by a person, or by Jitsu, which calls for it at once.
        rested: when a person last stopped it.
        told: packets that it had sent when Jitsu last asked, and when that was.
        noticed: when Jitsu last learnt that it sends more than a trickle.
        counts: somebody counts what it sends.
        rate: packets a second that it sends.
        rate_since: since when.
        deaf: since when its port is closed though it runs; inf: it is not.
        opened: when it was opened again.
        story: what happened, in words.
    """

    vm: VM
    power: Power | None = Power.OFF
    since: float = -inf
    ours: bool | None = False
    by_us: bool = False
    how: Start | None = None
    begun: float = -inf
    uses: deque[float] = attrs.field(factory=deque)
    person: float = -inf
    wanted: float = -inf
    asked: int = 0
    changing: str | None = None
    stopped: tuple[float, Mode] = (-inf, Mode.DESTROY)
    untold: float = -inf
    orphan: bool = False
    preparing: bool = False
    restarting: bool = False
    promised: bool = False
    by_hand: int = 0
    decided: float = -inf
    rested: float = -inf
    told: tuple[int, float] | None = None
    noticed: float = -inf
    counts: bool = True
    rate: float = 0.0
    rate_since: float = 0.0
    deaf: float = inf
    opened: float = -inf
    story: deque[str] = attrs.field(factory=lambda: deque(maxlen=STORY))

    @property
    def used(self) -> float:
        """When it was last asked for, as far as Jitsu can know."""
        return max(self.person, self.uses[-1] if self.uses else -inf)

    @property
    def is_blind(self) -> bool:
        """Whether nobody can say that the VM is idle, so that it is not stopped for that."""
        return not self.counts and self.vm.evidence is Evidence.TRAFFIC


class Ledger:
    """
    The facts of all VMs.

    Attributes:
        facts: by the VM's name.
        wrong: each violation, with the VM's story.
        counts: how often what happened.
        healthy: since when Jitsu lives and has a connection, by the hypervisor's URI; inf: it has not.
        settings: of the Jitsu that is alive.
    """

    def __init__(self, vms: Iterable[VM], now: Callable[[], float], wall: Callable[[], float]) -> None:
        """Begin with all VMs off."""
        self._now, self._wall = now, wall
        self.facts = {vm.name: Facts(vm) for vm in vms}
        self._needers: dict[str, list[Facts]] = {}
        for facts in self.facts.values():
            for need in facts.vm.needs:
                self._needers.setdefault(need, []).append(facts)
        self.wrong: list[str] = []
        self.counts: Counter[str] = Counter()
        self.healthy: dict[str, float] = {}
        self.settings: Settings
        self._born = 0.0
        self._spent: dict[bytes, tuple[float, float]] = {}

    def note(self, facts: Facts, words: str) -> None:
        """Put *words* into a VM's story."""
        facts.story.append(f"{self._now():10.3f} {words}")

    def against(self, rule: str, facts: Facts | None = None, words: str = "") -> None:
        """Write down a violation of *rule*."""
        name = facts.vm.name if facts is not None else "all"
        lines = [f"{rule}: {name} at {self._now():.3f}: {words}"]
        if facts is not None:
            for one in self._around(facts):
                vm = one.vm
                lines.append(f"{vm.name}: {vm.mode.value}, idle {vm.idle:g}, min_up {vm.min_up:g}, "
                             f"max_up {vm.max_up:g}, needs {vm.needs}, {vm.boot_from.value}, "
                             f"boots in {vm.backend_settings.boot_time:g} s")
                lines += one.story
        self.wrong.append("\n    ".join(lines))

    # Lives of Jitsu.

    def begins(self, settings: Settings) -> None:
        """Hear that a Jitsu with *settings* starts."""
        self.settings = settings
        self._spent.clear()
        self._born = self._now()
        for facts in self.facts.values():
            facts.told, facts.noticed, facts.wanted = None, -inf, -inf
            facts.restarting, facts.preparing, facts.by_hand = False, False, 0

    def killed(self) -> None:
        """Hear that Jitsu was killed: what it had not written down, it may forget."""
        now = self._now()
        for facts in self.facts.values():
            known = [when for when in facts.uses if when <= now - FORGOTTEN]
            if facts.power is Power.RUNNING:
                asked_only = not facts.by_us and facts.ours and not any(when >= facts.since for when in known)
                if asked_only or (facts.by_us and facts.begun > now - WRITTEN):
                    facts.ours = None
                elif facts.ours is False and facts.since > now - FORGOTTEN:
                    facts.ours = None  # that it was down before is not written down, perhaps
            elif facts.asked and facts.changing is None:
                facts.begun = facts.untold = now  # its start may be written down, though no call was made yet
            facts.uses = deque(known[-1:])
            self.note(facts, "(kill)")
        self.ended()

    def ended(self) -> None:
        """Hear that Jitsu is no more."""
        for facts in self.facts.values():
            facts.orphan = facts.changing == "start" or (facts.orphan and facts.power is not Power.RUNNING)
            facts.changing, facts.asked, facts.person = None, 0, -inf
        self.healthy = dict.fromkeys(self.healthy, inf)

    # What the hypervisor does.

    def changed(self, facts: Facts, power: Power | None, reason: str, *, ours: bool, on_its_way: bool) -> None:
        """
        Hear that a VM is something else.

        Args:
            facts: which.
            power: what it is now.
            reason: in the hypervisor's words.
            ours: Jitsu did it.
            on_its_way: Jitsu wants it up.
        """
        now, old = self._now(), facts.power
        self.note(facts, f"is {power.value if power else 'undefined'}: {reason}{'' if ours else ' (not by Jitsu)'}")
        if power is Power.RUNNING and old is not Power.RUNNING:
            facts.by_us = ours
            if ours and facts.orphan:
                facts.ours = None
                self.counts["came up after its Jitsu's end"] += 1
            elif not ours and now < facts.untold + STARTS_WITHIN + NEWS:
                facts.ours = None
            elif ours or on_its_way:
                facts.ours = True
            elif (facts.ours is not False or facts.used > facts.since) and self._unseen(facts):
                facts.ours = None
            else:
                facts.ours = False
            facts.orphan = False
            facts.told, facts.noticed, facts.deaf, facts.rate_since = None, -inf, inf, now
        if old is Power.RUNNING and not ours and facts.asked:
            facts.wanted = now  # who waits wants it still
        if power is not old:
            facts.power, facts.since = power, now

    def _unseen(self, facts: Facts) -> bool:
        """Say whether Jitsu may not have seen that a VM, which comes up now, was down."""
        return self.healthy.get(facts.vm.connect, inf) > facts.since or self._now() - facts.since < NEWS

    # What Jitsu does.

    def calls(self, facts: Facts, what: str) -> None:
        """Hear that a call begins that changes a VM."""
        self.counts[what] += 1
        self.note(facts, f"-> {what}")
        if facts.changing is not None:
            self.against("two calls at once", facts, f"{what} while {facts.changing} is under way")
        facts.changing = what
        if what == "prepare":
            prepared = sum(other.power is Power.PREPARED and self._known(other) for other in self.facts.values())
            if prepared >= self.settings.max_prepared:
                self.against("max_prepared", facts, f"{prepared} are prepared already")

    def called(self, facts: Facts, what: str, end: str) -> None:
        """Hear how such a call ended for Jitsu."""
        self.note(facts, f"<- {what}: {end}")
        facts.changing = None
        if what == "start" and end in UNTOLD:
            facts.untold = self._now()

    def starts(self, facts: Facts, reason: str) -> None:
        """Hear that Jitsu calls for a start."""
        now, settings = self._now(), self.settings
        if reason == PREPARES:
            self._prepares(facts)
            return
        if facts.power is Power.RUNNING and facts.by_us and facts.since < now - NEWS and self._known(facts):
            self.against("started twice", facts, "it runs, and Jitsu has started it")
        starting = sum(other.changing == "start" and not other.preparing for other in self.facts.values())
        if starting > settings.max_booting:
            self.against("max_booting", facts, f"{starting} starts are under way")
        if settings.max_running and facts.power is not Power.RUNNING:
            running = starting + sum(
                other.power is Power.RUNNING and other.changing is None and other.since < now - NEWS
                and not other.preparing
                and self.healthy.get(other.vm.connect, inf) < inf
                for other in self.facts.values()
            )
            if running > settings.max_running and all(since < now - RECONCILED for since in self.healthy.values()):
                self.against("max_running", facts, f"with it {running} run")
            elif running > settings.max_running:
                self.counts["over max_running before all VMs were looked at"] += 1
        if not (self._has_cause(facts) or reason == "restarted") and not self._tries_again(facts):
            self.against("started by nothing", facts, f"wanted {facts.wanted:.3f}, reason {reason!r}")
        facts.begun, facts.restarting, facts.preparing = now, False, False

    def _prepares(self, facts: Facts) -> None:
        """Note that Jitsu starts a VM that no client has asked for."""
        now, vm = self._now(), facts.vm
        self.counts["prepares"] += 1
        if not vm.prepare and vm.boot_from is not Boot.SNAPSHOT:
            self.against("prepared for nothing", facts)
        for other in self.facts.values():
            if other is not facts and other.changing == "start":
                words = f"while {other.vm.name} starts{' for nobody' if other.preparing else ''}"
                self.against("prepared meanwhile", facts, words)
        facts.begun, facts.restarting, facts.preparing = now, False, True

    def _has_cause(self, facts: Facts) -> bool:
        """Say whether there is a reason to start a VM."""
        in_vain = facts.how in RESUMED and facts.by_us and facts.begun >= self._born
        wanted = facts.asked or (facts.wanted > facts.begun and facts.wanted >= facts.decided)
        return bool(wanted or facts.restarting or in_vain or self.kept(facts, EARLY)) or any(
            self._has_cause(needer) for needer in self._needers.get(facts.vm.name, ())
        )

    def _tries_again(self, facts: Facts) -> bool:
        """Return whether a start that has failed may be tried again for a client that was answered early: once."""
        promised, facts.promised = facts.promised, False
        self.counts["tried again"] += promised
        return promised or any(needer.promised for needer in self._needers.get(facts.vm.name, ()))

    def stops(self, facts: Facts, mode: Mode, reason: str) -> None:
        """Hear that Jitsu calls for a stop, and why."""
        now, vm = self._now(), facts.vm
        follows = mode is Mode.DESTROY and vm.mode is Mode.SHUTDOWN and facts.stopped[1] is Mode.SHUTDOWN
        if follows and now <= facts.stopped[0] + vm.stop_timeout + RECONCILED:
            facts.stopped = facts.stopped[0], mode
            return
        # Where a start call was under way when somebody else started it, Jitsu may count from its own.
        started = facts.begun if facts.by_us or facts.begun > facts.stopped[0] else facts.since
        facts.stopped = now, mode
        kind = reason.partition(" for ")[0].partition(":")[0].partition(" after ")[0].partition(" within ")[0]
        facts.decided = facts.rested if facts.by_hand else now
        if facts.by_hand:
            kind = "stopped by hand"
        elif facts.preparing or facts.power is Power.PREPARED or reason.endswith(GIVES_WAY):
            self.counts["given up before anybody used it"] += 1
            return
        facts.promised &= kind in {"dead", "its guest did not listen", "not ready"}
        self.counts[f"stop: {kind}"] += 1
        if facts.power is Power.RUNNING and facts.ours is False and facts.since < now - NEWS and self._known(facts) \
                and kind != "stopped by hand":
            self.against("none of ours", facts, f"stopped ({reason})")
        is_due = vm.max_up and now >= started + vm.max_up - WRITTEN
        if kind in {"idle", "idle the longest, makes room"}:
            if not is_due:
                self._may_end(facts, vm.idle if kind == "idle" else JUST_USED, kind)
        elif kind == "up":
            if facts.power is Power.RUNNING and now < started + vm.max_up - WRITTEN:
                self.against("max_up", facts, f"up for {now - facts.since:.3f} s only")
        elif kind == "dead":
            facts.restarting = True
            is_open = facts.deaf > now - CHECK_PATIENCE + TICK and facts.opened < now - 2 * CHECK_RETRY
            if facts.power is Power.RUNNING and is_open:
                self.against("alive", facts, reason)
        elif kind == "its guest did not listen":
            if now < facts.begun + READY_WITHIN - TICK or not facts.counts:
                self.against("alive", facts, reason)
        elif kind == "not ready":
            facts.restarting = True
            if facts.how not in RESUMED or now < facts.begun + RESUMED_WITHIN - TICK:
                self.against("restarted", facts, reason)
        elif kind != "stopped by hand":
            self.against("stopped for nothing", facts, reason)

    def _may_end(self, facts: Facts, idle: float, kind: str) -> None:
        """Say what is against the end of a lease."""
        now, vm = self._now(), facts.vm
        if now < facts.used + idle - TICK:
            self.against("in use", facts, f"stopped ({kind}) {now - facts.used:.3f} s after it was asked for")
        if kind == "idle" and now < facts.noticed + idle - TICK:
            self.against("in use", facts, f"stopped {now - facts.noticed:.3f} s after its packets were noticed")
        if facts.is_blind and kind != "up":
            self.against("in use", facts, f"stopped ({kind}) though nobody counts what it sends")
        by_traffic = facts.counts and vm.evidence is Evidence.TRAFFIC
        if by_traffic and facts.rate >= BUSY_RATE and max(facts.rate_since, facts.since) < now - BUSY_FOR \
                and facts.power is Power.RUNNING:
            self.against("in use", facts, f"stopped ({kind}) while it sends, since {facts.rate_since:.3f}")
        if facts.by_us and now < facts.begun + vm.min_up - WRITTEN:
            self.against("min_up", facts, f"stopped ({kind}) {now - facts.begun:.3f} s after its start")
        for needer in self._needers.get(vm.name, ()):
            if needer.power is Power.RUNNING and needer.since < now - NEWS and self._known(needer):
                self.against("needed", facts, f"stopped ({kind}) while {needer.vm.name} runs")
        if self.kept(facts) and kind == "idle":
            self.against("keep_up", facts, "stopped in its time of the week")

    def _known(self, facts: Facts) -> bool:
        """Say whether Jitsu must know what a VM is."""
        return self.healthy.get(facts.vm.connect, inf) < self._now() - RECONCILED

    def kept(self, facts: Facts, early: float = 0.0) -> bool:
        """Say whether its time of the week is now."""
        wall = self._wall()
        return any(kept_until(facts.vm.keep_up, wall + ahead) is not None for ahead in (0.0, early)) \
            if facts.vm.keep_up else False

    def counted(self, facts: Facts, total: int) -> None:
        """Hear that Jitsu was told how many packets a guest has sent."""
        now = self._now()
        if facts.told is not None and facts.vm.evidence is Evidence.TRAFFIC:
            before, at = facts.told
            if total >= before and total - before - (now - at) * facts.vm.idle_packets / 60 > UNNOTICED:
                facts.noticed = now
                self.counts["traffic noticed"] += 1
        facts.told = total, now

    # What clients do.

    def wants(self, facts: Facts) -> None:
        """Hear that somebody wants a VM, and may."""
        for wanted in self._with_needs(facts):
            wanted.wanted, wanted.preparing = self._now(), False
            if wanted.power is Power.RUNNING and wanted.ours is False:
                wanted.ours = None

    def uses(self, facts: Facts, *, up: bool, person: bool = False) -> None:
        """Hear that somebody who had not asked for it yet was not refused; *up*: Jitsu says that it is up."""
        now, uses = self._now(), facts.uses
        if person:
            facts.person = now
        else:
            uses.append(now)
        while len(uses) > 1 and uses[1] < now - FORGOTTEN:
            uses.popleft()
        if facts.power is Power.RUNNING:
            facts.ours = up or facts.ours or None

    def unanswered(self, facts: Facts, at: float) -> None:
        """Hear that a question will have no answer, because its Jitsu is no more: nobody uses the VM because of it."""
        while at in facts.uses:
            facts.uses.remove(at)

    def waits(self, facts: Facts, number: int) -> None:
        """Hear that so many more wait for a VM."""
        for wanted in self._with_needs(facts):
            wanted.asked += number
            wanted.preparing = False

    def _with_needs(self, facts: Facts) -> list[Facts]:
        found = [facts]
        for one in found:
            found += [self.facts[need] for need in one.vm.needs if self.facts[need] not in found]
        return found

    def _around(self, facts: Facts) -> list[Facts]:
        """Return a VM, those that need it, and those that it needs."""
        return [facts, *self._needers.get(facts.vm.name, ()), *self._with_needs(facts)[1:]]

    def spends(self, host: str) -> None:
        """Hear that a client network has one start more."""
        most = self.settings.starts_per_minute
        if most:
            whose, now = network(packed(host)), self._now()
            level, at = self._spent.get(whose, (0.0, now))
            level = max(0.0, level - (now - at) * most / 60) + 1
            self._spent[whose] = level, now
            if level > most + TICK:
                self.against("budget", None, f"{host}'s network has {level:.2f} of {most} starts")

    def promises(self, facts: Facts) -> None:
        """Note that a client has the address of a VM that is not ready, and will not ask again."""
        facts.promised = True

    def answered(self, facts: Facts, *, ready: bool, after: float) -> None:
        """Hear of an answer: the VM is said to be ready or not, so long after the question."""
        if after > self.settings.answer_by + TICK:
            self.against("answer_by", facts, f"answered after {after:.3f} s")
        facts.promised &= not ready
        if ready and self._is_down(facts):
            self.against("said to be ready", facts, f"it is {facts.power}")
        if ready and any(self._is_down(self.facts[need]) for need in facts.vm.needs):
            self.counts["said to be ready, and what it needs is down"] += 1

    def _is_down(self, facts: Facts) -> bool:
        """Say whether Jitsu must know that a VM does not run."""
        return facts.power is not Power.RUNNING and facts.since < self._now() - NEWS and self._known(facts)

    # When all is quiet.

    def audit(self, states: Mapping[str, str]) -> None:
        """Compare what Jitsu believes with what is true, and that with what should be."""
        running = sum(facts.power is Power.RUNNING for facts in self.facts.values())
        for name, facts in self.facts.items():
            said, power = states[name], facts.power
            right = {"up"} if power is Power.RUNNING else {"failed"}
            if power is not None and said not in right | ({power.value} if power is not Power.RUNNING else set()):
                self.against("belief", facts, f"it is {power.value}, and Jitsu says {said}")
            kept = self.kept(facts, EARLY)
            needed = any(one.power is Power.RUNNING for one in self._needers.get(name, ()))
            if power is Power.RUNNING and facts.ours is None:
                self.counts["left running, perhaps forgotten at a kill"] += 1
            elif power is Power.RUNNING and facts.ours and not (kept or needed or facts.is_blind):
                self.against("forgotten", facts, "it runs on, and nobody uses it")
            full = 0 < self.settings.max_running <= running
            if power is not Power.RUNNING and self.kept(facts) and facts.rested < self._now() - 1800 and not full:
                self.against("keep_up", facts, "down in its time of the week")
            if facts.asked or facts.changing or facts.by_hand:
                self.against("unfinished", facts, f"{facts.asked} wait, {facts.changing} is under way")

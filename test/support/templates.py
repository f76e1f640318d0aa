"""A Jitsu with templates, without sockets, on a clock; its hypervisor and its state outlive it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.defer import Deferred, maybeDeferred

from jitsu_tw.backends.memory import MemoryBackend
from jitsu_tw.clocks import Clocks
from jitsu_tw.config import build
from jitsu_tw.config.vms import uuid_of
from jitsu_tw.dns.ondemand import TemplateResolver
from jitsu_tw.dns.resolver import Chain, JitsuResolver, ZoneAuthority
from jitsu_tw.dns.wire import Question, Source, from_text
from jitsu_tw.store.memory import MemoryStore
from jitsu_tw.sync.change_requests import ChangeRequests
from jitsu_tw.sync.reconfigure import LiveConfig
from jitsu_tw.sync.reload import Reloads
from jitsu_tw.sync.templates import Templates
from jitsu_tw.vm.fleet import Fleet
from test.support import EPOCH, BoundedClock, _nothing, alone
from test.support.zones import listing

if TYPE_CHECKING:
    from jitsu_tw.dns.wire import Answer
    from jitsu_tw.sync.reconfigure import Outcome
    from jitsu_tw.vm.machine import Machine

#: The zones: one with a name below the wildcard and aliases of such names, and the reverse zone of the pool.
ZONE: Final = """$ORIGIN jitsu.test.
$TTL 60
@ SOA ns h 7 2 3 4 5
@ NS ns
ns A 127.0.0.1
fixed.sites A 192.0.2.99
text.sites TXT "x"
alias CNAME alice.sites
nowhere CNAME Mallory.sites
"""
REVERSE: Final = """$ORIGIN 1.10.in-addr.arpa.
$TTL 60
@ SOA ns.jitsu.test. h.jitsu.test. 7 2 3 4 5
@ NS ns.jitsu.test.
"""

#: A template, by its keys; the names alice, bob and user-… exist.
SITE: Final = {
    "name": "site", "dns": '"*.sites.jitsu.test"', "pool": "[10.1.0.0/24]", "exists": "[alice, bob, user-*]",
    "new_per_minute": "0",
}  # fmt: skip


class Cloud:
    """
    A Jitsu with a template.

    Attributes:
        clock: the clock of all times.
        backend: where the VMs are.
        store: the state.
    """

    def __init__(
        self, template: dict[str, str] | None = None, *, top: str = "", vms: str = "", starts: str = "0"
    ) -> None:
        """Begin with the template `SITE`, changed by *template*, and with *top*, *vms* and *starts* in the file."""
        self._starts = starts
        self.folder = Path(tempfile.mkdtemp())
        (self.folder / "a.zone").write_text(ZONE)
        (self.folder / "r.zone").write_text(REVERSE)
        self.clock = BoundedClock()
        self.clock.advance(1000.0)
        self.wall_set = 0.0
        self.backend = MemoryBackend(reactor=self.clock)
        self.store = MemoryStore(lasting=True)
        self.write([SITE | (template or {})], top=top, vms=vms)
        self.begin()

    def write(self, templates: list[dict[str, str]], *, top: str = "", vms: str = "") -> None:
        """Write the file."""
        lines = ["backend: memory", "persistdb: state", "delay: 0", f"starts_per_minute: {self._starts}",
                 "zones: [a.zone, r.zone]", top]  # fmt: skip
        lines += ["templates:"] if templates else []
        for one in templates:
            first, *others = one.items()
            lines.append("  - {}: {}".format(*first))
            lines += ["    {}: {}".format(*pair) for pair in others]
        path = self.folder / "jitsu.yaml"
        path.write_text("\n".join([*lines, vms, ""]))

    def load(self) -> Any:
        """Read the file."""
        return build.load({}, (), self.folder / "jitsu.yaml")

    def begin(self) -> None:
        """Start, as a process that starts."""
        settings, self.zones = self.load()
        clocks = Clocks(self.clock, self.clock.seconds, lambda: EPOCH + self.clock.seconds() + self.wall_set)
        remembered = self.store.open()
        self.fleet = Fleet(settings, {("memory", ""): self.backend}, self.store, clocks, alone(settings, clocks))
        self.changed: list[set[str]] = []
        self.running = LiveConfig(settings, self.fleet, self.zones, lambda names: self.changed.append(set(names)))
        store: Any = self.store
        self.requests = ChangeRequests(store, self.fleet, self.zones, self.running, self.clock)
        self.reloads = Reloads(self.running, self.fleet, lambda *_: None, self.clock)
        self.templates = Templates(self.running, self.fleet, self.store, clocks)
        summoning = JitsuResolver(self.zones, self.fleet)
        ondemand = TemplateResolver(self.zones, self.templates, summoning, self.clock, lambda: 1.2)
        self.chain = Chain([summoning, ondemand, ZoneAuthority(self.zones)])
        self.requests.restore(remembered)
        self.fleet.start(remembered)
        self.templates.start()
        self.clock.advance(0)

    def kill(self) -> None:
        """End the process as `kill -9` does, and start another one."""
        for call in self.clock.getDelayedCalls():
            call.__dict__.update(func=_nothing, args=(), kw={}, cancel=_nothing)
        self.begin()

    def reload(self) -> Deferred[Outcome]:
        """Read the file again."""
        done = Deferred.fromCoroutine(self.reloads.apply(*self.load()))
        self.clock.advance(0)
        return done

    def ask(self, name: str = "alice.sites", qtype: int = 1, host: str = "192.0.2.1", **more: Any) -> Deferred[Answer]:
        """Ask for NAME.jitsu.test, as the client *host*."""
        return self.ask_for(from_text(f"{name}.jitsu.test"), qtype, host, **more)

    def ask_for(
        self, name: bytes, qtype: int = 1, host: str | None = "192.0.2.1", *, port: int = 4711, proven: bool = True
    ) -> Deferred[Answer]:
        """Ask for *name*, as the client *host*; None: as this process itself."""
        source = Source(host, port, proven=proven) if host is not None else None
        answer = maybeDeferred(self.chain.query, Question(name, qtype, source=source))
        self.clock.advance(0)
        return answer

    def told(self, answer: Deferred[Answer]) -> str:
        """Return an *answer* that has come, as text: its records, ``;`` the authority's; or the error's class."""
        results: list[Any] = []
        answer.addBoth(results.append)
        assert results, "no answer yet"
        if hasattr(results[0], "value"):
            return type(results[0].value).__name__ + f": {results[0].value}"
        text = listing(results[0][0])
        return text + "".join(f" EDE {code}" for code, _ in results[0].ede)

    def machine(self, name: str = "alice.site") -> Machine:
        """Return the machine of that name."""
        return self.fleet.machines[name]

    def stored(self, name: str = "alice.site") -> list[str]:
        """Return the paths of the state that have to do with the VM *name*."""
        label, _, template = name.partition(".")
        uuid = uuid_of(label, self.fleet.templates[template])
        return sorted(path for path in self.store.tree if uuid in path)

    def hold(self, thing: Any, method: str) -> Deferred[None]:
        """Make calls of *method* of *thing* wait for the Deferred that is returned, once; or fail as it does."""
        held: Deferred[None] = Deferred()
        original, waiting = getattr(thing, method), list[Deferred[Any]]()

        def call(*args: Any) -> Deferred[Any]:
            if held.called:
                return original(*args)  # type: ignore[no-any-return]
            waits: Deferred[Any] = Deferred()
            waiting.append(waits)
            return waits.addCallback(lambda _: original(*args))

        def release(result: Any) -> None:
            for waits in waiting:
                waits.callback(result)

        held.addBoth(release)
        setattr(thing, method, call)
        return held

    def pump(self, seconds: float, step: float = 0.5) -> None:
        """Advance the time in steps."""
        for _ in range(round(seconds / step)):
            self.clock.advance(step)

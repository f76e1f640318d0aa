"""
Three Jitsus that share an etcd of three members and two hosts, with everything going wrong that can, and an audit.

The Jitsus and the etcds are real processes with real sockets. The hosts, the clients and what goes wrong are in this
one (`bench.simulation.twohosts`), which sees every start and stop (`bench.simulation.audit`). Run it as::

    python -m bench.simulation.cluster [--minutes 10] [--seed N] [--json FILE]
"""

from __future__ import annotations

import base64
import contextlib
import secrets
import shutil
import signal
import sys
import tempfile
from functools import partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Final

import attrs
import click
import dns.rcode
from rich.console import Console
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.task import deferLater, react
from twisted.internet.threads import deferToThread

from bench.figures import json_option, write
from bench.simulation.audit import LATE, Audit, Kind
from bench.simulation.nodes import ANSWER_BY, HOSTS, TTL, Node
from bench.simulation.outcome import Outcome
from bench.simulation.twohosts import Hosts
from bench.speed.client import Client, reason
from bench.speed.server import HOST
from test.support.etcds import LOOPBACK, Etcds

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

#: So many VMs; the first of them are in use all the time, and the last send packets now and then.
VMS: Final = 40
ALWAYS: Final = 5
SENDERS: Final = 4

NODES: Final = 3
MEMBERS: Final = 3

#: Seconds from the end of a fault until every name is to be answered: etcd's own lease and its election, a node's
#: start, a host that is tried again.
HEALS: Final = TTL * 2 + 3.0

#: Seconds from one question to the next, on the mean, for a VM that is always in use, and for any other at all.
USED: Final = 1.0
QUERY: Final = 0.15

#: Seconds from one fault to the next.
PAUSE: Final = (2.0, 14.0)

#: Of so many faults, one comes while another is under way.
OVERLAP: Final = 4

#: The seconds of leases.
IDLES: Final = (4.0, 5.0, 7.0, 10.0)

#: A lease's end is near so many seconds before it, and after it, when the others have been told.
NEAR: Final = (-0.5, 2.0)

#: Seconds beyond the longest lease, without a question, after which nothing may be left: the claims' time, and notice.
QUIET: Final = HEALS + 3.0


def kinds(random: Random, number: int, idles: tuple[float, ...]) -> dict[str, Kind]:
    """Return so many VMs."""
    made = {}
    for one in range(number):
        name = f"vm{one:03}"
        idle = random.choice(idles)
        boot_time, delay = random.choice((0.0, 0.1, 0.5, 2.0)), random.choice((0.0, 0.0, 0.3))
        made[name] = Kind(name, f"10.1.0.{one + 1}", idle, boot_time, delay, random.random() < 0.5)
    return made


class Lab:
    """
    All of it.

    Attributes:
        audit: of it.
        nodes: the Jitsus.
        etcds: the etcds.
        hosts: the hosts.
    """

    def __init__(
        self, seed: int, folder: Path, reactor: Any, number: int = VMS, idles: tuple[float, ...] = IDLES
    ) -> None:
        """Make it: *number* of VMs, with leases of *idles* seconds."""
        self.random, self.folder, self._reactor = Random(seed), folder, reactor  # noqa: S311
        self.kinds = kinds(self.random, number, idles)
        self.audit = Audit(self.kinds, reactor.seconds, HEALS)
        self.hosts = Hosts(HOSTS, self.kinds, self.audit, reactor)
        self.etcds = Etcds([LOOPBACK] * MEMBERS)
        self.client = Client(reactor)
        self.nodes: list[Node] = []
        self._up: set[int] = set(range(MEMBERS))
        self._free: set[str] = set()  # nodes that nothing is wrong with
        self._coming: list[Any] = []
        self._busy: set[Deferred[Any]] = set()
        self._asking = False

    def pause(self, seconds: float) -> Deferred[None]:
        """Wait."""
        return deferLater(self._reactor, seconds)

    # Beginning and end.

    async def start(self) -> None:
        """Start everything, and wait until it serves."""
        self._coming.append(self.hosts.listen(self.folder / "hosts.sock"))
        self._coming.append(self._reactor.listenUDP(0, self.client, interface=HOST))
        await deferToThread(self.etcds.start_all)
        ports = [member.port for member in self.etcds.members]
        for number in range(1, NODES + 1):
            self.nodes.append(Node(f"ns{number}", self.folder, self.kinds.values(), ports, self._reactor))
        for node in self.nodes:
            node.start()
            self._free.add(node.name)
        for node in self.nodes:
            await self._serves(node)
        await self.pause(1.0)

    async def _serves(self, node: Node) -> None:
        """Wait until a node serves: its zone, which summons nobody."""
        if not await self.client.until_served(node.port):
            raise SystemExit(f"{node.name} does not serve:\n{node.log()[-3000:]}")

    async def close(self) -> None:
        """End everything."""
        self.ask_no_more()
        for node in self.nodes:
            node.close()
        for port in self._coming:
            await port.stopListening()
        await deferToThread(self.etcds.close)

    # Clients.

    def ask_on(self) -> None:
        """Begin to ask, until `ask_no_more`."""
        self._asking = True
        for name in list(self.kinds)[:ALWAYS]:
            self._again(USED, partial(self.question, name))
        self._again(QUERY, self._anything)
        self._again(4.0, self._everybody)
        self._again(6.0, self._send)
        self._again(0.5, self._at_the_end)

    def ask_no_more(self) -> None:
        """End that, and have all guests be silent."""
        self._asking = False
        for busy in list(self._busy):
            busy.cancel()
        for name in self.kinds:
            self.hosts.send(name, 0.0, self._reactor.seconds())

    def _again(self, every: float, what: Callable[[], Coroutine[Any, Any, object]]) -> None:
        async def again() -> None:
            while self._asking:
                await self.pause(self.random.expovariate(1 / every))
                self._begin(what())

        self._begin(again())

    def _begin(self, what: Coroutine[Any, Any, object]) -> None:
        """Let a client do something."""
        begun = Deferred.fromCoroutine(what)
        self._busy.add(begun)
        begun.addErrback(self._failed).addBoth(lambda _: self._busy.discard(begun))

    def _failed(self, failure: Any) -> None:
        if not failure.check(CancelledError):
            self.audit.against("the bench is wrong", None, failure.getTraceback())

    async def _anything(self) -> None:
        """Ask for some VM: a few of them are asked for much more often than others."""
        names = list(self.kinds)
        weights = [1 / (one + 1) for one in range(len(names))][::-1]
        await self.question(self.random.choices(names, weights)[0])

    async def _everybody(self) -> None:
        """Ask all nodes for one VM, at once."""
        name = self.random.choice(list(self.kinds))
        for node in self.nodes:
            self._begin(self._step(name, node))

    async def _send(self) -> None:
        """Have a guest send for a while."""
        name = self.random.choice(list(self.kinds)[-SENDERS:])
        await self.question(name)
        self.hosts.send(name, 10.0, self._reactor.seconds())
        await self.pause(self.random.uniform(3.0, 25.0))
        self.hosts.send(name, 0.0, self._reactor.seconds())

    async def _at_the_end(self) -> None:
        """Ask for a VM, and then somebody else when its lease is about to end."""
        name = self.random.choice(list(self.kinds))
        await self.question(name)
        await self.pause(self.kinds[name].idle + self.random.uniform(*NEAR))
        if self._asking:
            await self.question(name)

    async def question(self, name: str) -> bool:
        """Ask one node after the other, as resolvers do; say whether one has answered."""
        asked, nodes = self._reactor.seconds(), self.random.sample(self.nodes, len(self.nodes))
        for node in nodes:
            if await self._step(name, node):
                return True
        self.audit.unanswered(name, asked, [node.name for node in nodes])
        return False

    async def _step(self, name: str, node: Node) -> bool:
        """Ask one node; say whether it has answered with the address."""
        asked, calm = self._reactor.seconds(), self.audit.is_calm
        self.audit.counts["questions"] += 1
        try:
            answer = await self.client.ask(name, node.port, ANSWER_BY + LATE)
        except DeferredTimeout:
            self.audit.refused(name, node.name, asked, "")
            if calm and self.audit.is_calm and node.name in self._free:
                self.audit.against("late", self.audit.accounts[name], f"{node.name} says nothing")
            return False
        why = reason(answer)
        addresses = [record.to_text() for rrset in answer.answer for record in rrset]
        if answer.rcode() == dns.rcode.NOERROR and addresses == [self.kinds[name].address]:
            self.audit.answered(name, node.name, asked, why)
            return True
        self.audit.refused(name, node.name, asked, why or dns.rcode.to_text(answer.rcode()))
        return False

    # What goes wrong.

    def _some(self, number: int = 1) -> list[Node]:
        """Take nodes that nothing is wrong with."""
        free = [node for node in self.nodes if node.name in self._free]
        taken = self.random.sample(free, min(number, len(free)))
        self._free -= {node.name for node in taken}
        return taken

    async def _back(self, nodes: list[Node], ended: Callable[[], None], after: float) -> None:
        """Start nodes again, after so many seconds."""
        await self.pause(after)
        for node in nodes:
            node.start()
        for node in nodes:
            await self._serves(node)
        ended()
        self._free |= {node.name for node in nodes}

    async def killed(self, after: float | None = None) -> None:
        """Kill a node, and start it again."""
        for node in self._some():
            ended = self.audit.fault(f"node killed: {node.name}", node.name)
            node.kill()
            await self._back([node], ended, self.random.uniform(0, 8) if after is None else after)

    async def killed_in_start(self) -> None:
        """Kill a node while it starts a VM."""
        if len(self._free) < NODES:
            return
        began: Deferred[tuple[str, str]] = Deferred()

        def hear(name: str, node: str) -> None:
            if not began.called and self.kinds[name].boot_time:
                began.callback((name, node))

        self.hosts.on_start = hear
        try:
            name, by = await began.addTimeout(15.0, self._reactor)
        except DeferredTimeout:
            return
        await self.pause(self.random.uniform(0, self.kinds[name].boot_time))
        for node in self.nodes:
            if node.name == by and by in self._free:
                self._free.discard(by)
                ended = self.audit.fault(f"node killed in a start: {by}, of {name}", by)
                node.kill()
                await self._back([node], ended, self.random.uniform(0, 8))

    async def all_killed(self) -> None:
        """Kill all nodes, and start them again."""
        nodes = self._some(NODES)
        ended = self.audit.fault("nodes killed, all that live", *(node.name for node in nodes), lasting=True)
        for node in nodes:
            node.kill()
        await self._back(nodes, ended, self.random.uniform(0, 4))

    async def stopped(self) -> None:
        """Stop a node in order, and start it again."""
        for node in self._some():
            ended = self.audit.fault(f"node stopped in order: {node.name}", node.name)
            if not await node.stop():
                self.audit.against("does not stop", None, node.name)
            await self._back([node], ended, self.random.uniform(0, 4))

    async def frozen(self) -> None:
        """Let a node stand still for longer than its claims live."""
        for node in self._some():
            ended = self.audit.fault(f"node stands still: {node.name}", node.name)
            node.tell(signal.SIGSTOP)
            await self.pause(self.random.uniform(0.5, TTL + 4))
            node.tell(signal.SIGCONT)
            await self.pause(0.5)
            ended()
            self._free.add(node.name)

    async def cut_off(self, seconds: float | None = None) -> None:
        """Cut a node off from etcd."""
        for node in self._some():
            silently = self.random.random() < 0.5
            ended = self.audit.fault(f"node cut off: {node.name}{', silently' if silently else ''}", node.name)
            for way in node.ways:
                way.cut(silently=silently)
            await self.pause(self.random.uniform(0.5, TTL + 6) if seconds is None else seconds)
            for way in node.ways:
                way.heal()
            await self.pause(2.0)
            ended()
            self._free.add(node.name)

    async def _member(self, leader: bool | None) -> int | None:  # noqa: FBT001
        """Take a member of etcd, if all are there: its leader or not."""
        if len(self._up) < MEMBERS:
            return None
        leads = await deferToThread(self.etcds.leader)
        wanted = self.random.random() < 0.5 if leader is None else leader
        number = self.random.choice([one for one in range(MEMBERS) if (one == leads) is wanted])
        if len(self._up) < MEMBERS:
            return None
        self._up.discard(number)
        return number

    async def member_killed(self, *, leader: bool | None = None, seconds: float | None = None) -> None:
        """Kill a member of etcd, and start it again."""
        number = await self._member(leader)
        if number is not None:
            ended = self.audit.fault(f"etcd killed: {number}")
            self.etcds.kill(number)
            await self.pause(self.random.uniform(0, 8) if seconds is None else seconds)
            await deferToThread(self.etcds.start, number)
            ended()
            self._up.add(number)

    async def member_frozen(self) -> None:
        """Let a member of etcd stand still."""
        number = await self._member(None)
        if number is not None:
            ended = self.audit.fault(f"etcd stands still: {number}")
            self.etcds.freeze(number)
            await self.pause(self.random.uniform(0.2, 4))
            self.etcds.thaw(number)
            await self.pause(1.0)
            ended()
            self._up.add(number)

    async def host_lost(self) -> None:
        """Let nobody reach a host."""
        host = self.random.choice(HOSTS)
        if host in self.hosts.away:
            return
        ended = self.audit.fault(f"host lost: {host}", lasting=True)
        self.hosts.lose(host)
        await self.pause(self.random.uniform(0.2, 6))
        self.hosts.find(host)
        await self.pause(1.0)
        ended()

    async def go_wrong(self, until: float) -> None:
        """Let one thing after the other go wrong, and sometimes two at once."""
        faults: list[Callable[[], Coroutine[Any, Any, None]]] = [
            self.killed, self.killed_in_start, self.all_killed, self.stopped, self.frozen, self.cut_off,
            self.member_killed, self.member_killed, self.member_frozen, self.host_lost,
        ]
        while self._reactor.seconds() < until:
            number = 1 + (self.random.randrange(OVERLAP) == 0)
            chosen = [Deferred.fromCoroutine(fault()) for fault in self.random.sample(faults, number)]
            await gatherResults(chosen)
            await self.pause(self.random.uniform(*PAUSE))

    # When all is quiet.

    async def end(self) -> None:
        """Ask for nothing any more, and see what is left."""
        self.ask_no_more()
        self.audit.fault("(nobody asks any more)")()
        await self.pause(max(kind.idle for kind in self.kinds.values()) + QUIET)
        self.audit.end(await deferToThread(self.facts))
        for node in self.nodes:
            for line in node.log().splitlines():
                if "please report" in line or "Unhandled" in line:
                    self.audit.against("logged", None, f"{node.name}: {line}")

    def facts(self) -> Mapping[str, str]:
        """Return what is agreed on. Blocks."""
        said = self.etcds.ask(0, "kv/range", key=_encoded("/jitsu/"), range_end=_encoded("/jitsu0"))
        facts = {_decoded(one["key"]): _decoded(one.get("value", "")) for one in said.get("kvs", ())}
        return {key.removeprefix("/jitsu/"): value for key, value in facts.items()}


def _encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _decoded(text: str) -> str:
    return base64.b64decode(text).decode()


async def soak(reactor: Any, seed: int, minutes: float, folder: Path) -> Outcome:
    """Soak for so long."""
    lab = Lab(seed, folder, reactor)
    try:
        await lab.start()
        lab.ask_on()
        await lab.pause(3.0)
        await lab.go_wrong(reactor.seconds() + minutes * 60)
        await lab.pause(HEALS + 5.0)
        await lab.end()
    finally:
        await lab.close()
    return Outcome(seed, lab.audit.wrong, lab.audit.counts)


def show(outcome: Outcome) -> None:
    """Print what a soak showed."""
    console = Console(highlight=False)
    outcome.print_counts(console)
    console.print(f"seed {outcome.seed}: {outcome.verdict}")


@click.command()
@click.option("--minutes", default=10.0, show_default=True, help="Of the soak.")
@click.option("--seed", type=int, help="Of what goes wrong; by itself, a new one.")
@json_option
def main(minutes: float, seed: int | None, path: Path | None) -> None:
    """Soak Jitsus that share VMs."""
    folder = Path(tempfile.mkdtemp(prefix="jitsu-cluster-"))
    outcomes: list[Outcome] = []

    async def run(reactor: Any) -> None:
        outcomes.append(await soak(reactor, secrets.randbelow(10**6) if seed is None else seed, minutes, folder))

    with contextlib.suppress(SystemExit, CancelledError):
        react(lambda reactor: Deferred.fromCoroutine(run(reactor)))
    for outcome in outcomes:
        show(outcome)
        write(path, attrs.asdict(outcome))
    if not outcomes or outcomes[0].wrong:
        print(f"the logs are in {folder}")
        sys.exit(1)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()

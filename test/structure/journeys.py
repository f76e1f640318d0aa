"""
Who calls whom at run time; `python -m test.structure.journeys` prints it, and with `--calls` also the calls themselves.

A journey is what happens between two moments: which files of the product are entered, how many calls there are, and how
many of these cross from one file to another. Twisted and all other libraries are looked through: a call that one file
makes another do by way of a Deferred crosses. A coroutine counts once, however often it waits; comprehensions are parts
of what they are in.

A circle is a set of files each of which calls, directly or by others, all the others. Two kinds of calls do not count
there: those of a method that an interface of the product declares, as the caller knows the interface alone; and what
the result of a Deferred leads to, as that was returned.
"""

from __future__ import annotations

import contextlib
import gc
import sys
import tempfile
import unittest
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Final, Self

import attrs
import dns.message
from twisted.internet.defer import Deferred
from zope.interface import implementedBy

from jitsu_tw.dns.lookup import Zones
from jitsu_tw.dns.resolver import Chain, JitsuResolver, ZoneAuthority
from jitsu_tw.dns.server import Server
from jitsu_tw.dns.wire import Source
from jitsu_tw.dns.zone import Zone
from jitsu_tw.rules.lifecycle import State
from test.structure import ROOT, modules
from test.support import World, vm

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from types import CodeType, FrameType, TracebackType

#: The tests whose calls show circles: of many VMs, of a cluster, and of Synjitsu's part.
SCENARIOS: Final = ("test.unit.vm.test_fleet", "test.unit.cluster.test_claims", "test.unit.vm.test_standins")

#: The folders in which no files are to call each other in a circle.
WITHIN: Final = ("jitsu_tw/vm/", "jitsu_tw/cluster/", "jitsu_tw/rules/")

CLIENT: Final = Source("192.0.2.1", 4711)

#: What runs the callbacks of a Deferred.
_CALLBACKS: Final = Deferred._runCallbacks.__code__

#: Parts of a function that have a frame of their own.
_PARTS: Final = frozenset({"<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>", "<module>"})

ZONE: Final = """\
$ORIGIN jitsu.test.
$TTL 1h
@ SOA ns hostmaster 7 3600 600 86400 60
  NS ns
ns A 192.0.2.53
static A 192.0.2.7
"""


class Trace:
    """
    The product's calls while it is entered.

    Attributes:
        calls: how often a file called another or itself; the first is empty where none of the product called.
        known: which functions were called so by one that knows the other file, not only an interface or a Deferred.
    """

    def __init__(self) -> None:
        """Begin with no calls."""
        self.calls: Counter[tuple[str, str]] = Counter()
        self.known: dict[tuple[str, str], set[str]] = defaultdict(set)
        self._files = {str(path): str(path.relative_to(ROOT)) for path in modules().values()}
        self._seen: set[FrameType] = set()
        self._declared: dict[CodeType, bool] = {}

    def __enter__(self) -> Self:
        """Begin to trace; garbage is not collected meanwhile, as it would be ended by whatever runs then."""
        gc.collect()
        gc.disable()
        sys.setprofile(self._profile)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it."""
        sys.setprofile(None)
        gc.enable()
        self._seen.clear()

    def _profile(self, frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event != "call" or code.co_filename not in self._files or code.co_name in _PARTS or frame in self._seen:
            return
        if code.co_flags & 0x2A0:  # a generator or a coroutine, which is entered again each time that it goes on
            self._seen.add(frame)
        back, by_result = frame.f_back, False
        while back is not None and (back.f_code.co_filename not in self._files or back.f_code.co_name in _PARTS):
            by_result |= back.f_code is _CALLBACKS
            back = back.f_back
        caller = self._files[back.f_code.co_filename] if back is not None else ""
        called = caller, self._files[code.co_filename]
        self.calls[called] += 1
        if not by_result and not self._is_declared(frame):
            self.known[called].add(code.co_qualname)

    def _is_declared(self, frame: FrameType) -> bool:
        """Return whether an interface of the product declares the function."""
        code = frame.f_code
        if code not in self._declared:
            its = type(frame.f_locals.get("self"))
            self._declared[code] = any(
                code.co_name in interface for interface in implementedBy(its).flattened()
                if interface.__module__.startswith("jitsu_tw.")
            )
        return self._declared[code]

    def files(self) -> set[str]:
        """Return the files that were entered."""
        return {called for _, called in self.calls}

    def crossing(self) -> int:
        """Return the number of calls from one file to another."""
        return sum(times for (caller, called), times in self.calls.items() if caller not in {"", called})


@attrs.frozen
class Journey:
    """A journey's name and its trace."""

    name: str
    trace: Trace


def journeys() -> Iterator[Journey]:
    """Make and yield each journey: alone, with the memory backend."""
    served = Served()
    for name, asked in (("static name", "static"), ("cold query", "www"), ("warm query", "www")):
        with Trace() as trace:
            served.ask(asked)
        yield Journey(name, trace)
    served = Served()
    served.ask("www")
    with Trace() as trace:
        served.world.pump(130.0)
    assert served.world.machine().state is State.OFF
    yield Journey("idle stop, 130 s", trace)


class Served:
    """A server with one VM, on a clock."""

    def __init__(self) -> None:
        """Make it."""
        www = vm()
        self.world = World(www)
        with tempfile.NamedTemporaryFile("w", suffix=".zone") as file:
            file.write(ZONE)
            file.flush()
            zones = Zones([Zone.read(file.name)])
        zones.add_vm(www.dns[0], www.name, www.ip, www.ttl)
        chain = Chain([JitsuResolver(zones, self.world.fleet), ZoneAuthority(zones)])
        self.server = Server(chain, self.world.warm, self.world.fleet, zones)

    def ask(self, name: str) -> None:
        """Ask for an address, which must be answered at once."""
        replies: list[bytes] = []
        octets = dns.message.make_query(f"{name}.jitsu.test", "A").to_wire()
        if octets[2:].lower() in self.server.warm.answers:
            self.server.answer_warm(([octets[2:]], [CLIENT.client(octets[:2])]))
        else:
            self.server.receive(octets, CLIENT, replies.append)
            assert dns.message.from_wire(replies[0]).answer, replies


# Circles


def scenarios() -> Trace:
    """Run the tests of `SCENARIOS`; return the calls that they make the product do."""
    suite, result = unittest.defaultTestLoader.loadTestsFromNames(SCENARIOS), unittest.TestResult()
    with Trace() as trace:
        suite.run(result)
    assert result.testsRun, "there are no scenarios"
    assert result.wasSuccessful(), [text for _, text in result.errors + result.failures]
    return trace


def circles(calls: Iterable[tuple[str, str]]) -> list[set[str]]:
    """Return the circles, the largest first, that *calls* from file to file make in the folders `WITHIN`."""
    called: dict[str, set[str]] = defaultdict(set)
    for caller, other in calls:
        if caller.startswith(WITHIN) and other.startswith(WITHIN):
            called[caller].add(other)
    below = {name: _reached(name, called) for name in called}
    found = {frozenset(other for other in reached if name in below.get(other, ())) for name, reached in below.items()}
    return sorted((set(circle) for circle in found if len(circle) > 1), key=len, reverse=True)


def _reached(name: str, called: Mapping[str, set[str]]) -> set[str]:
    reached: set[str] = set()
    ahead = [name]
    while ahead:
        new = called.get(ahead.pop(), set()) - reached
        reached |= new
        ahead += new
    return reached


def main() -> None:
    """Print the tables."""
    print("journey            calls  files  crossing calls")
    for journey in journeys():
        trace = journey.trace
        print(f"{journey.name:18} {trace.calls.total():5} {len(trace.files()):6} {trace.crossing():15}")
        for (caller, called), times in trace.calls.most_common() if "--calls" in sys.argv else ():
            print(f"  {times:4} {caller or '-'} -> {called}")
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        trace = scenarios()
    for title, calls in (("all calls", trace.calls), ("but by interfaces and results", trace.known)):
        found = circles(calls)
        print(f"files that call each other in a circle, {title}: {sum(map(len, found))}")
        for circle in found:
            print(f"  {', '.join(sorted(circle))}")
            for caller, called in sorted(calls) if "--calls" in sys.argv else ():
                if caller != called and {caller, called} <= circle:
                    print(f"    {caller} -> {called}: {', '.join(sorted(trace.known.get((caller, called), ())))}")


if __name__ == "__main__":
    main()

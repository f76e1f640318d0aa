"""Webhooks and traces: what is sent, and that a bad receiver costs nothing but what it is not sent."""

from __future__ import annotations

import hashlib
import hmac
import json
import platform
from types import SimpleNamespace
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectError, ConnectionAborted
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from jitsu_tw import bounded_web
from jitsu_tw.bounded_web import ANSWERS_WITHIN, LONGEST_ANSWER
from jitsu_tw.control import webhooks
from jitsu_tw.control.outbox import MOST_WAITING, PAUSES, Outbox
from jitsu_tw.control.webhooks import Webhooks, signed, trace, webhook_event
from jitsu_tw.settings import Settings, WebhookEvent
from jitsu_tw.vm.journal import Event
from test.support import question, vm
from test.support.control import Desk

TOKEN = "0123456789abcdef-of-the-tests"  # noqa: S105


class Agent:
    """
    A client of HTTP whose server answers as it is told.

    Attributes:
        posts: what was sent: URL, headers, and document.
        answers: what the next requests are answered: a status, an exception, or None for no answer; then 204.
        waiting: requests without an answer.
    """

    def __init__(self) -> None:
        """Answer 204."""
        self.posts: list[tuple[bytes, Any, Any]] = []
        self.answers: list[Any] = []
        self.waiting: list[Deferred[Any]] = []
        self.closed = 0

    def request(self, method: bytes, url: bytes, headers: Any, body: Any) -> Deferred[Any]:
        """Take a request."""
        assert method == b"POST"
        self.posts.append((url, headers, json.loads(body._inputFile.getvalue())))
        answer = self.answers.pop(0) if self.answers else 204
        if answer is None:
            self.waiting.append(Deferred())
            return self.waiting[-1]
        if isinstance(answer, Exception):
            return fail(answer)
        return succeed(SimpleNamespace(code=answer, deliverBody=self.deliver))

    def deliver(self, protocol: Any) -> None:
        """Begin the body of an answer, which never ends."""
        transport = SimpleNamespace(loseConnection=self.close)
        protocol.makeConnection(transport)

    def close(self) -> None:
        """Count a connection that is closed."""
        self.closed += 1


@implementer(IStreamClientEndpoint)
class Endpoint:
    """Connects to a server that says nothing by itself; the protocol is at the transport."""

    def __init__(self, transports: list[StringTransport]) -> None:
        """Add the transport of each connection to *transports*."""
        self._transports = transports

    def connect(self, factory: Any) -> Deferred[Any]:
        """Connect."""
        transport: Any = StringTransport()
        factory.doStart()
        transport.protocol = factory.buildProtocol(None)
        self._transports.append(transport)
        transport.protocol.makeConnection(transport)
        return succeed(transport.protocol)


class OutboxTests(SynchronousTestCase):
    """`Outbox`."""

    def setUp(self) -> None:
        """Make one."""
        self.clock, self.agent = Clock(), Agent()
        self.outbox = Outbox("http://hooks.test/x?token=secret", self.clock, agent=self.agent)
        events = self.events = list[str]()
        observer: Any = lambda event: events.append(formatEvent(event))  # noqa: E731
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

    def put(self, *numbers: int) -> None:
        """Put documents."""
        for number in numbers:
            self.outbox.put({"n": number})

    def sent(self) -> list[int]:
        """Return the numbers of the documents that were sent, each time."""
        return [document["n"] for _, _, document in self.agent.posts]

    def test_order(self) -> None:
        """Documents are sent in their order, one at a time, and not before what they are about is done."""
        self.agent.answers = [None]
        self.put(1, 2)
        self.assertEqual([], self.sent())
        self.clock.advance(0)
        self.assertEqual([1], self.sent())
        self.agent.waiting[0].callback(SimpleNamespace(code=200, deliverBody=self.agent.deliver))
        self.assertEqual(([1, 2], 2), (self.sent(), self.agent.closed))
        url, headers, _ = self.agent.posts[0]
        self.assertEqual((b"http://hooks.test/x?token=secret", ["application/json"]),
                         (url, headers.getRawHeaders("content-type")))  # fmt: skip
        self.put(3)
        self.clock.advance(0)
        self.assertEqual(([1, 2, 3], []), (self.sent(), self.clock.getDelayedCalls()))

    def test_again(self) -> None:
        """A document that is not taken is sent again, ever later, and then given up, which is logged."""
        for answer in (503, 429, ConnectError()):
            with self.subTest(answer=answer):
                self.setUp()
                self.agent.answers = [answer] * 4
                self.put(1, 2)
                self.clock.advance(0)
                for number, pause in enumerate(PAUSES, 2):
                    self.clock.advance(pause - 0.1)
                    self.assertEqual(number - 1, len(self.sent()))
                    self.clock.advance(0.1)
                    self.assertEqual([1] * number, self.sent()[:number])
                self.assertEqual([1, 1, 1, 1, 2], self.sent())
                dropped, again = self.events
                self.assertIn("http://hooks.test does not take", dropped)
                self.assertIn("takes what it is sent again", again)

    def test_taken_at_last(self) -> None:
        """A document that is taken the second time is no trouble."""
        self.agent.answers = [500]
        self.put(1)
        self.clock.advance(0)
        self.clock.advance(PAUSES[0])
        self.assertEqual(([1, 1], []), (self.sent(), self.events))

    def test_final(self) -> None:
        """A refusal for good, and a redirect, is not tried again."""
        for status in (400, 401, 404, 410, 301, 307):
            self.setUp()
            self.agent.answers = [status]
            self.put(1)
            self.clock.advance(0)
            self.assertEqual(([1], []), (self.sent(), self.clock.getDelayedCalls()))
            self.assertIn(f"status {status}", self.events[0])

    def test_failing(self) -> None:
        """While a server fails, each document is tried once, and the log has one line."""
        self.agent.answers = [500] * 6
        self.put(1, 2, 3)
        self.clock.advance(0)
        for pause in PAUSES:
            self.clock.advance(pause)
        self.assertEqual([1, 1, 1, 1, 2, 3], self.sent())
        self.assertEqual(1, len(self.events))

    def test_silent(self) -> None:
        """A server that does not answer is given up after a time."""
        self.agent.answers = [None]
        self.put(1)
        self.clock.advance(0)
        self.clock.advance(ANSWERS_WITHIN)
        self.clock.advance(PAUSES[0])
        self.assertEqual([1, 1], self.sent())

    def test_bounded(self) -> None:
        """Of very many documents, a bounded number waits; the others are dropped, which is logged once."""
        self.agent.answers = [None]
        self.put(0)
        self.clock.advance(0)
        self.put(*range(1, MOST_WAITING + 100))
        self.assertEqual(1, len(self.events))
        self.agent.waiting[0].callback(SimpleNamespace(code=200, deliverBody=self.agent.deliver))
        self.assertEqual([*range(MOST_WAITING + 1)], self.sent())

    def test_stop(self) -> None:
        """After the end nothing is sent, whatever is under way or comes."""
        for answers in ([None], [500], []):
            self.setUp()
            self.agent.answers = list(answers)
            self.put(1, 2)
            if answers:
                self.clock.advance(0)
            self.outbox.stop()
            self.put(3)
            self.clock.advance(100)
            self.assertEqual(([1] * len(answers), []), (self.sent(), self.clock.getDelayedCalls()))
        Outbox("http://hooks.test/x", self.clock, agent=self.agent).stop()

    def test_endless_answer(self) -> None:
        """A connection whose answer never ends is closed after a bounded number of octets; the log has the reason."""
        for scheme in ("http", "https"):
            with self.subTest(scheme=scheme):
                self.setUp()
                transports: list[Any] = []
                self.patch(bounded_web, "HostnameEndpoint", lambda *_, known=transports: Endpoint(known))
                self.patch(bounded_web, "wrapClientTLS", lambda _, endpoint: endpoint)
                endless = Outbox(f"{scheme}://hooks.test:1/x?token=secret", self.clock)
                endless.put({"n": 1})
                self.clock.advance(0)
                for pause in (*PAUSES, 0.0):
                    protocol, sent = transports[-1].protocol, 0
                    self.assertTrue(transports[-1].value().startswith(b"POST /x?token=secret HTTP/1.1\r\n"))
                    while not transports[-1].disconnecting and sent < 10 * LONGEST_ANSWER:
                        line = b"X-Header: 0123456789012345678901234567890123456789\r\n"
                        protocol.dataReceived(line if sent else b"HTTP/1.1 200 OK\r\n")
                        sent += len(line)
                    self.assertLess(sent, LONGEST_ANSWER + 100)
                    protocol.connectionLost(Failure(ConnectionAborted()))
                    self.clock.advance(pause)
                (event,) = self.events
                begin = f"{scheme}://hooks.test:1 does not take what it is sent, which is dropped: Connection was ab"
                self.assertEqual(begin, event[: len(begin)])


class EventTests(SynchronousTestCase):
    """Which events there are, and what is sent of them."""

    def setUp(self) -> None:
        """Catch what is sent."""
        self.sent: dict[str, list[dict[str, Any]]] = {}
        self.signatures: list[dict[str, str]] = []
        outer = self

        class Caught:
            def __init__(self, url: str, _: Any, sign: Any = lambda _: {}) -> None:
                self.url, self.sign = url, sign

            def put(self, document: dict[str, Any]) -> None:
                outer.sent.setdefault(self.url, []).append(document)
                outer.signatures.append(self.sign(json.dumps(document).encode()))

            def stop(self) -> None:
                outer.sent.setdefault("stopped", []).append({"url": self.url})

        self.patch(webhooks, "Outbox", Caught)

    def follow(self, *vms: Any, **settings: Any) -> Desk:
        """Return a desk whose journal is followed, with these settings."""
        desk = Desk(*vms, starts_per_minute=1)
        self.hooks = Webhooks(Settings(webhooks=("http://a.test", "http://b.test"), **settings),
                              desk.fleet.journal, desk.clock)  # fmt: skip
        return desk

    def kinds(self, url: str = "http://a.test") -> list[tuple[str, str]]:
        """Return what was sent."""
        return [(one["event"], one["vm"]) for one in self.sent.get(url, [])]

    def test_events(self) -> None:
        """A start, a stop, a failed start and a lost hypervisor are told to each URL, with the event's fields."""
        desk = self.follow(vm("www"), vm("bad", faults=["start"]))
        desk.fleet.summons.summon("www", question())
        desk.pump(200, step=1)
        desk.fleet.operator.start("bad").addErrback(lambda _: None)
        desk.pump(60, step=1)
        desk.fleet.inventory.lost(desk.backend, "the wire is cut")
        expected = [("started", "www"), ("stopped", "www"), ("failed", "bad"), ("lost", "")]
        self.assertEqual((expected, expected), (self.kinds(), self.kinds("http://b.test")))
        started, stopped, *_ = self.sent["http://a.test"]
        self.assertEqual(("up", "activation"), (started["activation"]["outcome"], started["kind"]))
        self.assertEqual(("off", platform.node()), (stopped["state"], stopped["node"]))
        self.hooks.stop()
        self.assertEqual(2, len(self.sent["stopped"]))

    def test_wanted(self) -> None:
        """Only the events that are wanted are told, refusals and holds among them."""
        wanted = (WebhookEvent.REFUSED, WebhookEvent.HOLD, WebhookEvent.RELEASE)
        desk = self.follow(vm("a"), vm("b"), webhook_events=wanted)
        for name in "ab":
            desk.fleet.summons.summon(name, question(name)).addErrback(lambda _: None)
        desk.fleet.operator.hold("a")
        desk.fleet.operator.release("a")
        self.assertEqual([("refused", "b"), ("hold", "a"), ("release", "a")], self.kinds())

    def test_every_event(self) -> None:
        """Each kind of event of the journal is one for webhooks, or none."""
        kinds: tuple[tuple[str, dict[str, Any], WebhookEvent | None], ...] = (
            ("activation", {"activation": {"outcome": "up"}}, WebhookEvent.STARTED),
            ("activation", {"activation": {"outcome": "failed"}}, WebhookEvent.FAILED),
            ("activation", {"activation": {"outcome": "stopped"}}, None),
            ("activation", {"activation": {"outcome": "lost"}}, None),
            ("state", {"old": "up", "state": "off"}, WebhookEvent.STOPPED),
            ("state", {"old": "stopping", "state": "saved"}, WebhookEvent.STOPPED),
            ("state", {"old": "unknown", "state": "off"}, None),
            ("state", {"old": "up", "state": "stopping"}, None),
        )
        others = ("refused", "hold", "release", "made", "forgotten", "lost", "connected")
        kinds += tuple((kind, {}, WebhookEvent(kind)) for kind in others)
        for kind, facts, expected in kinds:
            self.assertEqual(expected, webhook_event(Event(1, 0.0, kind, "www", facts)), (kind, facts))

    def test_signed(self) -> None:
        """With a secret, each document has its HMAC; without one there is no header."""
        self.assertEqual({}, signed(None, b"x"))
        expected = hmac.new(b"secret", b"x", hashlib.sha256).hexdigest()
        self.assertEqual({"Jitsu-Signature": f"sha256={expected}"}, signed("secret", b"x"))
        desk = self.follow(vm("www"), webhook_secret=TOKEN, otlp="http://c.test")
        desk.fleet.summons.summon("www", question())
        self.assertEqual([True, True, False], [bool(one) for one in self.signatures])

    def test_trace(self) -> None:
        """A start makes a trace: a span for the whole, and one for each part, within its times."""
        desk = self.follow(vm("www", boot_time=0.4), vm("bad", faults=["start"]), otlp="http://c.test/v1/traces")
        desk.fleet.summons.summon("www", question())
        desk.pump(1)
        desk.fleet.operator.start("bad").addErrback(lambda _: None)
        desk.pump(60, step=1)
        up, failed = self.sent["http://c.test/v1/traces"]
        spans = up["resourceSpans"][0]["scopeSpans"][0]["spans"]
        self.assertEqual(["start www", "turn", "hypervisor", "guest"], [one["name"] for one in spans])
        whole, *parts = spans
        self.assertEqual(1, len({one["traceId"] for one in spans}))
        self.assertEqual(4, len({one["spanId"] for one in spans}))
        for one in spans:
            self.assertEqual((32, 16), (len(one["traceId"]), len(one["spanId"])))
            int(one["traceId"] + one["spanId"], 16)
            self.assertLessEqual(int(whole["startTimeUnixNano"]), int(one["startTimeUnixNano"]))
            self.assertLessEqual(int(one["startTimeUnixNano"]), int(one["endTimeUnixNano"]))
            self.assertLessEqual(int(one["endTimeUnixNano"]), int(whole["endTimeUnixNano"]))
        self.assertEqual({whole["spanId"]}, {one["parentSpanId"] for one in parts})
        self.assertAlmostEqual(4e8, int(whole["endTimeUnixNano"]) - int(whole["startTimeUnixNano"]), delta=1.1e8)
        self.assertEqual([int(one["endTimeUnixNano"]) for one in parts[:2]],
                         [int(one["startTimeUnixNano"]) for one in parts[1:]])  # fmt: skip
        self.assertEqual(({"code": 1}, 2), (whole["status"],
                         failed["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["status"]["code"]))  # fmt: skip
        attributes = {one["key"]: one["value"]["stringValue"] for one in whole["attributes"]}
        self.assertEqual(("www", "up"), (attributes["jitsu.vm"], attributes["jitsu.outcome"]))

    def test_identities(self) -> None:
        """Traces of other activations, and of other nodes, have other identities."""
        one = {"id": 1, "vm": "a", "began": 1.0, "took": 5.0, "outcome": "up", "how": "", "reason": "", "asker": "",
               "steps": {}}  # fmt: skip
        made = [trace(one, "x"), trace({**one, "id": 2}, "x"), trace(one, "y")]
        idents = {each["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["traceId"] for each in made}
        self.assertEqual(3, len(idents))

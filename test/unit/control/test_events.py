"""The stream of events, and readers that are slow, many, or gone."""

from __future__ import annotations

import json
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.control.events import MOST_FROM_ONE, MOST_READERS, MOST_WAITING, STILL_HERE
from test.support import question, vm
from test.support.control import Answer, Desk, Talk


def events(answer: Answer) -> list[dict[str, Any]]:
    """Return the events of a stream, as far as it has come; each is well-formed."""
    found = []
    for block in answer.body.decode().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if line and not line.startswith(":"))
        if "data" in lines:
            data = json.loads(lines["data"])
            assert lines["event"] == data["kind"]
            assert lines.get("id") == (str(data["id"]) if "id" in data else None)
            found.append(data)
    return found


class EventsTests(SynchronousTestCase):
    """``/v1/events``."""

    def test_live(self) -> None:
        """What happens is told as it happens, with the VM as it is then and the activation under way."""
        desk = Desk(vm(boot_time=1.0))
        talk = desk.talk()
        talk.say("GET", "/v1/events")
        first = talk.heard()
        self.assertEqual((200, "text/event-stream; charset=utf-8", b"retry: 1000\n\n"),
                         (first.status, first.headers["content-type"], first.body))
        desk.fleet.summons.summon("www", question())
        queued, starting = events(talk.heard())
        self.assertEqual(("state", "www", "off", "queued", "192.0.2.1, A www.jitsu.test"),
                         tuple(queued[key] for key in ("kind", "vm", "old", "state", "asker")))
        self.assertEqual(("starting", "running"), (starting["machine"]["state"], starting["activation"]["outcome"]))
        desk.pump(2)
        told = events(talk.heard())
        self.assertEqual([("state", "waiting"), ("state", "up"), ("activation", None)],
                         [(one["kind"], one.get("state")) for one in told])
        self.assertEqual((120.0, "up"), (told[1]["machine"]["lease_left"], told[2]["activation"]["outcome"]))
        ids = [one["id"] for one in (queued, starting, *told)]
        self.assertEqual(sorted(set(ids)), ids)

    def test_past(self) -> None:
        """The last events come first, as many as are wanted, or what has happened since the one that was seen last."""
        desk = Desk(vm())
        desk.fleet.summons.summon("www", question())
        every = events(desk.ask("/v1/events?last=1000&follow=0"))
        kinds = ["connected", "state", "state", "state", "state", "activation"]
        self.assertEqual(kinds, [one["kind"] for one in every])
        self.assertEqual(every[-2:], events(desk.ask("/v1/events?last=2&follow=0")))
        self.assertEqual([], events(desk.ask("/v1/events?follow=0")))
        for seen, expected in ((every[3]["id"], every[4:]), (every[-1]["id"], []), (1, every)):
            said = desk.ask("/v1/events?follow=0&last=1", Last_Event_ID=str(seen))
            self.assertEqual(expected, events(said))
        for strange in ("x", "-1", "9" * 5000, "", "²", "\udcb2"):
            said = desk.ask("/v1/events?follow=0&last=1", Last_Event_ID=strange)
            self.assertEqual(every[-1:], events(said), strange[:10])

    def test_strange(self) -> None:
        """What is no number is refused."""
        desk = Desk(vm())
        for query in ("last=1001", "last=x", "follow=2", "follow="):
            self.assertEqual(400, desk.ask(f"/v1/events?{query}").status, query)

    def test_slow(self) -> None:
        """A slow reader costs a bounded queue; when it reads on, it gets that, and is told how much it missed."""
        desk = Desk(vm())
        talk = desk.talk()
        talk.say("GET", "/v1/events")
        talk.heard()
        talk.wire.producer.pauseProducing()
        for _ in range(MOST_WAITING + 50):
            desk.fleet.journal.hold("www", held=True)
        self.assertEqual(b"", talk.wire.value())
        talk.wire.producer.resumeProducing()
        told = events(talk.heard())
        self.assertEqual((MOST_WAITING + 1, {"kind": "missed", "events": 50}), (len(told), told[-1]))
        desk.fleet.journal.hold("www", held=True)
        self.assertEqual(1, len(events(talk.heard())))

    def test_stopped_again(self) -> None:
        """A reader that stops again while it is given what waited gets the rest later, in order."""
        desk = Desk(vm())
        talk = desk.talk()
        talk.say("GET", "/v1/events")
        talk.heard()
        producer = talk.wire.producer
        producer.pauseProducing()
        for _ in range(10):
            desk.fleet.journal.hold("www", held=True)
        write = talk.wire.writeSequence

        def stop(data: list[bytes]) -> None:
            write(data)
            producer.pauseProducing()

        talk.wire.writeSequence = stop  # type: ignore[method-assign]
        producer.resumeProducing()
        some = events(talk.heard())
        self.assertTrue(0 < len(some) < 10)
        talk.wire.writeSequence = write  # type: ignore[method-assign]
        producer.resumeProducing()
        told = some + events(talk.heard())
        self.assertEqual(sorted(one["id"] for one in told), [one["id"] for one in told])
        self.assertEqual(10, len(told))

    def test_gone(self) -> None:
        """Who hangs up costs nothing more."""
        desk = Desk(vm())
        before = len(desk.clock.getDelayedCalls())
        talks = [desk.talk() for _ in range(3)]
        for talk in talks:
            talk.say("GET", "/v1/events")
        for talk in talks:
            talk.hang_up()
        desk.fleet.summons.summon("www", question())
        desk.pump(1)
        self.assertLessEqual(len(desk.clock.getDelayedCalls()), before + 1, "only the lease")
        self.assertEqual([], self.flushLoggedErrors())

    def test_many(self) -> None:
        """A network has a share of the readers, and so has the UNIX socket; there is room again when one has gone."""
        desk = Desk(vm())

        def follow(host: str) -> Talk:
            talk = desk.talk(host)
            talk.say("GET", "/v1/events")
            return talk

        talks = [follow(host) for host in ("192.0.2.1", "") for _ in range(MOST_FROM_ONE)]
        self.assertEqual({200}, {talk.heard().status for talk in talks})
        self.assertEqual(MOST_READERS, len(talks))
        for host in ("192.0.2.2", "", "203.0.113.1"):
            answer = follow(host).heard()
            self.assertEqual((503, {"error": "as many listen as may; try again later"}), (answer.status, answer.value))
        talks[0].hang_up()
        self.assertEqual(503, follow("").heard().status)
        self.assertEqual(200, follow("192.0.2.2").heard().status)
        self.assertEqual(200, desk.ask("/v1/events", "HEAD").status)

    def test_still_here(self) -> None:
        """While nothing happens, a comment comes now and then, so that a dead connection is noticed."""
        desk = Desk(vm())
        talk = desk.talk()
        talk.say("GET", "/v1/events")
        talk.heard()
        desk.pump(STILL_HERE * 2 + 1, 1)
        self.assertEqual(b": still here\n\n" * 2, talk.heard().body)

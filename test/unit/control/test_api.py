"""The control endpoint, request by request, without a network."""

from __future__ import annotations

import base64
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw import __version__, slices
from jitsu_tw.cluster.coordinator.local import LocalCoordinator
from jitsu_tw.control.api import MOST_NAMED
from jitsu_tw.control.describe import duration, ordinal
from jitsu_tw.control.files import openapi
from jitsu_tw.control.routes import SLICE, Rows
from jitsu_tw.control.web import ASK_WITHIN, LONGEST_BODY, MOST_CONNECTIONS, MOST_FROM_ONE, READ_WITHIN
from jitsu_tw.errors import ConfigError, JitsuError
from jitsu_tw.ijitsu import Memory, Power
from jitsu_tw.rules.lifecycle import State
from jitsu_tw.settings import Mode
from jitsu_tw.vm.problems import Problem
from test.support import EPOCH, question, vm
from test.support.control import Desk


class PagesTests(SynchronousTestCase):
    """What can be seen and done."""

    def test_vm(self) -> None:
        """A VM is shown with what the configuration and the fleet say of it."""
        desk = Desk(vm(), vm("db"))
        desk.fleet.summons.summon("www", question())
        (www, db) = desk.ask("/v1/vms").value
        self.assertEqual(
            {"name": "www", "uuid": desk.machine().uuid, "state": "up", "reason": "", "problems": [], "total_starts": 1,
             "total_requests": 1, "last_request_ts": EPOCH + 1000, "lease_left": 120.0, "idle": 120.0, "held": False,
             "needed": False, "template": None, "origin": None, "names": ["www.jitsu.test"],
             "addresses": [str(desk.machine().vm.ip[0])], "mode": "destroy", "host": None, "node": None, "day": "1",
             "memory": None},
            {key: value for key, value in www.items() if key != "activation_ms"},
        )
        self.assertEqual({"query": 0.0, "answered": 0.0}.items(), www["activation_ms"].items() & {
            "query": 0.0, "answered": 0.0}.items())
        self.assertEqual((None, None, {}), (db["lease_left"], db["last_request_ts"], db["activation_ms"]))
        self.assertEqual("db", desk.ask("/v1/vms/db").value["name"])
        self.assertEqual("db", desk.ask("/v1/vms/db/").value["name"])

    def test_named(self) -> None:
        """Those VMs are shown that are asked for by name and exist, each once; not too many can be named."""
        desk = Desk(vm("a"), vm("b"), vm("c & d"))
        found = desk.ask("/v1/vms?name=c%20%26%20d&name=a&name=nobody&name=a").value
        self.assertEqual(["c & d", "a"], [one["name"] for one in found])
        self.assertEqual([], desk.ask("/v1/vms?name=").value)
        many = "&".join(["name=a"] * MOST_NAMED)
        self.assertEqual(1, len(desk.ask(f"/v1/vms?{many}").value))
        self.assertEqual(400, desk.ask(f"/v1/vms?{many}&name=b").status)

    def test_about(self) -> None:
        """All together is shown: the version, how many VMs are in each state, what was saved, and each day's starts."""
        desk = Desk(vm(boot_time=1.0), vm("db"))
        desk.backend.guests[desk.machine("db").uuid].memory = Memory(1 << 30, 1 << 31)
        desk.fleet.summons.summon("www", question())
        desk.pump(100)
        found = desk.ask("/v1/about").value
        self.assertEqual({"off": 1, "up": 1}, {state: number for state, number in found["vms"].items() if number})
        self.assertEqual((__version__, EPOCH + 1000), (found["version"], found["began"]))
        self.assertEqual((100, 1), (round(found["saved"]["seconds"]), found["saved"]["measured"]))
        self.assertTrue(99 < found["saved"]["byte_seconds"] / (1 << 30) <= 100)
        (day,) = found["days"]
        self.assertEqual((1, 0, 1000), (day["starts"], day["failed"], round(day["median_ms"], -2)))
        self.assertEqual(["example.org."], found["zones"])
        self.assertEqual(1 << 30, desk.ask("/v1/vms/db").value["memory"])

    def test_shows_only(self) -> None:
        """A client is told whether it may change something: by TCP with a token only, by a UNIX socket always."""
        for token, host, expected in ((None, "", False), (None, "127.0.0.1", True), ("abc", "127.0.0.1", False)):
            talk = Desk(vm(), token=token).talk(host)
            talk.say("GET", "/v1/about", Authorization=f"Bearer {token}")
            self.assertEqual(expected, talk.heard().value["shows_only"])

    def test_configuration(self) -> None:
        """The keys of a VM that are set are shown, with where each is from."""
        place, raw = ("/etc/jitsu.yaml", 7), {"ttl": ("30",), "needs": ("a", "b")}
        desk = Desk(vm(ttl=30, needs=("a", "b"), place=place, raw=raw, idle=90.0, mode=Mode.SAVE), vm("a"), vm("b"))
        found = {one["key"]: (one["value"], one["from"]) for one in desk.ask("/v1/vms/www").value["configuration"]}
        self.assertEqual(("30", "/etc/jitsu.yaml, line 7"), found["ttl"])
        self.assertEqual("a, b", found["needs"][0])
        self.assertEqual(("90", "inherited, or made of other keys"), found["idle"])
        self.assertEqual("save", found["mode"][0])
        self.assertEqual("www.jitsu.test", found["dns"][0])
        self.assertNotIn("min_up", found)
        found = {one["key"]: one["from"] for one in desk.ask("/v1/vms/a").value["configuration"]}
        self.assertEqual({None}, set(found.values()), "without raw values nobody knows")
        self.patch(desk.fleet.store.config, "origin", lambda _: "request/ttl by alice")
        found = {one["key"]: one["from"] for one in desk.ask("/v1/vms/www").value["configuration"]}
        self.assertEqual("request/ttl by alice", found["ttl"])

    def test_problems(self) -> None:
        """What an operator should know of a VM is shown and counted until it is over; `healthz` tells what fails."""
        desk = Desk(vm(), vm("db"))
        desk.machine().problem(Problem.ADDRESS, "its guest uses 10.0.0.9")
        desk.machine("db").problem(Problem.STOP, "it cannot be stopped: no disk")
        (www, _) = desk.ask("/v1/vms").value
        self.assertEqual(["its guest uses 10.0.0.9"], www["problems"])
        self.assertIn("Its guest uses 10.0.0.9.", desk.ask("/v1/vms/www").value["why"])
        self.assertEqual(["db: it cannot be stopped: no disk"], desk.ask("/healthz").value["problems"])
        self.assertIn(b'jitsu_vm_problems{kind="address"} 1.0', desk.ask("/metrics").body)
        desk.machine().problem(Problem.ADDRESS)
        desk.machine("db").problem(Problem.STOP)
        self.assertEqual([], desk.ask("/v1/vms/www").value["problems"])
        self.assertEqual("ok", desk.ask("/healthz").value["status"])

    def test_actions(self) -> None:
        """A VM is started, stopped, held and released; the answer comes when it is done, with the VM as it is then."""
        desk = Desk(vm(boot_time=2.0))
        talk = desk.talk()
        talk.say("POST", "/v1/vms/www/hold")
        desk.pump(1)
        self.assertEqual(0, talk.heard().status)
        desk.pump(2)
        held = talk.heard().value
        self.assertEqual(("up", True, None), (held["state"], held["held"], held["lease_left"]))
        released = desk.post("/v1/vms/www/release").value
        self.assertEqual(("up", False, 120.0), (released["state"], released["held"], released["lease_left"]))
        self.assertEqual("off", desk.post("/v1/vms/www/stop").value["state"])
        self.assertEqual("off", desk.post("/v1/vms/www/release").value["state"], "released already is no error")

    def test_refused_actions(self) -> None:
        """What cannot be done is 409, with the reason."""
        desk = Desk(vm("bad", faults=["start"]), vm("stuck", faults=["stop"]))
        for name, action in (("bad", "start"), ("bad", "hold")):
            answer = desk.post(f"/v1/vms/{name}/{action}")
            self.assertEqual((409, {"error": "bad: the start fails, as it was told to"}), (answer.status, answer.value))
        desk.post("/v1/vms/stuck/start")
        answer = desk.post("/v1/vms/stuck/stop")
        self.assertEqual((409, {"error": "the stop fails, as it was told to"}), (answer.status, answer.value))

    def test_client_gone(self) -> None:
        """Who hangs up before it is done has ordered it all the same, and nothing goes wrong."""
        desk = Desk(vm(boot_time=2.0))
        talk = desk.talk()
        talk.say("POST", "/v1/vms/www/start")
        talk.hang_up()
        desk.pump(3)
        self.assertEqual(State.UP, desk.machine().state)

    def test_our_fault(self) -> None:
        """A fault of ours is 500 and logged; nobody waits for ever."""
        desk = Desk(vm())
        desk.fleet.operator.stop = lambda _: fail(ZeroDivisionError())  # type: ignore[method-assign,assignment]
        answer = desk.post("/v1/vms/www/stop")
        self.assertEqual((500, {"error": "a fault of Jitsu's; its log has more"}), (answer.status, answer.value))
        self.assertNotEqual([], self.flushLoggedErrors(ZeroDivisionError))
        desk.problems = None  # type: ignore[assignment]
        answer = desk.ask("/healthz")
        self.assertEqual((500, {"error": "a fault of Jitsu's; its log has more"}), (answer.status, answer.value))
        self.assertNotEqual([], self.flushLoggedErrors(TypeError))

    def test_activations(self) -> None:
        """The last activations come newest first, of all VMs or one, as many as are wanted."""
        desk = Desk(vm("a"), vm("b"), vm("slow", boot_time=5.0))
        for name in ("a", "b", "slow"):
            desk.fleet.summons.summon(name, question(name))
        all_ = desk.ask("/v1/activations").value
        self.assertEqual([("slow", "running"), ("b", "up"), ("a", "up")], [(one["vm"], one["outcome"]) for one in all_])
        self.assertEqual((None, ["query", "admitted", "start"]), (all_[0]["took"], list(all_[0]["steps"])))
        self.assertEqual(["a"], [one["vm"] for one in desk.ask("/v1/activations?vm=a").value])
        self.assertEqual(["slow"], [one["vm"] for one in desk.ask("/v1/activations?last=1").value])
        for bad in ("-1", "x", "201", "", "99999999999999999999", "%F0", "%C2%B2"):
            answer = desk.ask(f"/v1/activations?last={bad}")
            self.assertEqual((400, {"error": "last is a number from 0 to 200"}), (answer.status, answer.value), bad)

    def test_refusals(self) -> None:
        """Refusals come newest first."""
        desk = Desk(vm("a"), vm("b"), summon_from=())
        for name in "ab":
            desk.fleet.summons.summon(name, question(name)).addErrback(lambda _: None)
        self.assertEqual(["b", "a"], [one["vm"] for one in desk.ask("/v1/refusals").value])

    def test_reload(self) -> None:
        """A reload is done, or refused with the reason."""
        done: list[int] = []

        async def reload() -> list[str]:
            done.append(1)
            return ["added: a"]

        answer = Desk(vm(), reload=reload).post("/v1/reload")
        self.assertEqual({"reloaded": True, "changes": ["added: a"]}, answer.value)
        self.assertEqual([1], done)

        async def reload_zone(name: str) -> None:
            zones.append(name)

        zones: list[str] = []
        answer = Desk(vm(), reload=reload_zone).post("/v1/reload?zone=a.test").value
        self.assertEqual({"reloaded": True, "changes": []}, answer)
        self.assertEqual(["a.test"], zones)

        async def refuse() -> None:
            raise ConfigError("is bad", "a.zone", 3)

        answer = Desk(vm(), reload=refuse).post("/v1/reload")
        self.assertEqual((409, {"error": "a.zone:3: is bad"}), (answer.status, answer.value))

    def test_health(self) -> None:
        """It is healthy as long as it serves; what is wrong is said."""
        desk = Desk(vm())
        self.assertEqual({"status": "ok", "problems": []}, desk.ask("/healthz").value)
        desk.fleet.inventory.lost(desk.backend, "the wire is cut")
        answer = desk.ask("/healthz")
        self.assertEqual((200, {"status": "degraded", "problems": ["memory cannot be asked: the wire is cut"]}),
                         (answer.status, answer.value))
        self.patch(LocalCoordinator, "trouble", "etcd is full")
        self.assertIn("nothing new is started here: etcd is full", desk.ask("/healthz").value["problems"])
        self.assertEqual("etcd is full", desk.ask("/v1/nodes").value[0]["problem"])
        self.patch(LocalCoordinator, "trouble", "")
        self.assertEqual(1, len(desk.ask("/healthz").value["problems"]))
        desk.fleet.store._failing = True
        self.assertIn("the state is not written, only remembered", desk.ask("/healthz").value["problems"])
        desk.problems.append("the hub is away")
        self.assertIn("the hub is away", desk.ask("/healthz").value["problems"])

    def test_needed(self) -> None:
        """A VM that another one needs is shown so, and no time is told at which it would be stopped."""
        desk = Desk(vm(needs=("db",)), vm("db"))
        desk.fleet.summons.summon("www", question())
        db = desk.ask("/v1/vms/db").value
        self.assertTrue(db["needed"])
        self.assertIn("What keeps it: it is needed by a VM that is up.", db["why"])
        self.assertIn("Started needed by www", db["why"][1])
        self.assertFalse(desk.ask("/v1/vms/www").value["needed"])

    def test_standins(self) -> None:
        """Synjitsu is asked for what it does; that there is none, or that it is away, is said."""
        desk = Desk(vm())
        nothing: dict[str, Any] = {"error": None, "standins": [], "counters": {}}
        self.assertEqual({"configured": False, **nothing}, desk.ask("/v1/standins").value)

        class Cover:
            said: Deferred[Any]

            @property
            def clients(self) -> dict[str, Any]:
                return {"": self}

            def status(self) -> Deferred[Any]:
                return self.said

        cover = Cover()
        desk.fleet.standins = cover  # type: ignore[assignment]
        said = {"standins": [{"ip": "10.0.0.1", "mac": "", "state": "asleep", "handover": "wire", "held": 2}],
                "counters": {"arp": 7}}
        cover.said = succeed(said)
        self.assertEqual({"configured": True, "error": None, **said}, desk.ask("/v1/standins").value)
        cover.said = fail(JitsuError("no Synjitsu answers"))
        away = {"configured": True, **nothing, "error": "no Synjitsu answers"}
        self.assertEqual(away, desk.ask("/v1/standins").value)

    def test_nothing_there(self) -> None:
        """What is not there is 404, what is not done there 405; both in JSON."""
        desk, nobody = Desk(vm()), "no VM of that name; jitsuctl status lists all"
        for method, path, status, error in (
            ("GET", "/nothing", 404, "there is nothing here"), ("GET", "/v1", 404, "there is nothing here"),
            ("GET", "/v1/", 404, "there is nothing here"), ("POST", "/v1", 404, "there is nothing here"),
            ("GET", "/v1/vms/nobody", 404, nobody), ("POST", "/v1/vms/nobody/start", 404, nobody),
            ("GET", "/v1/vms/%00", 404, nobody), ("GET", "/v1/vms/../../etc/passwd", 404, "there is nothing here"),
            ("GET", "/v1/reload", 405, "this takes POST"), ("POST", "/", 405, "this takes GET, HEAD"),
            ("DELETE", "/v1/vms/www", 405, "this takes GET, HEAD"), ("PUT", "/metrics", 405, "this takes GET, HEAD"),
        ):
            answer = desk.ask(path, method)
            said = answer.value["error"].replace("HEAD, POST", "POST")
            self.assertEqual((status, error), (answer.status, said), path)
            if status == 405:
                self.assertIn("allow", answer.headers)

    def test_files(self) -> None:
        """The dashboard's files are there, as what they are, and load nothing from elsewhere."""
        desk = Desk(vm())
        for path, kind in (("/", "text/html; charset=utf-8"), ("/style.css", "text/css; charset=utf-8"),
                           ("/dashboard.js", "text/javascript; charset=utf-8"), ("/icon.svg", "image/svg+xml")):
            answer = desk.ask(path)
            self.assertEqual((200, kind), (answer.status, answer.headers["content-type"]))
            self.assertEqual("nosniff", answer.headers["x-content-type-options"])
            self.assertIn("default-src 'none'; script-src 'self';", answer.headers["content-security-policy"])
            self.assertNotIn(b"://", answer.body.replace(b"http://www.w3.org/2000/svg", b""))
            self.assertNotIn(b"style=", answer.body)

    def test_long_list(self) -> None:
        """A long list is written slice by slice, and is one list."""
        desk = Desk(*(vm(f"vm{number}") for number in range(450)))

        class Request:
            written = b""
            ended = False

            def write(self, octets: bytes) -> None:
                self.written += octets

            def unregisterProducer(self) -> None:  # noqa: N802
                pass

            def finish(self) -> None:
                self.ended = True

        request: Any = Request()
        rows = Rows(request, list(desk.fleet.machines), str)
        turns = 0
        while not request.ended:
            turns += 1
            rows.resumeProducing()
        self.assertEqual(450 // SLICE + 2, turns)
        self.assertEqual(list(desk.fleet.machines), json.loads(request.written))
        rows = Rows(Request(), ["a"] * 450, str)  # type: ignore[arg-type]
        rows.stopProducing()
        rows.resumeProducing()


class WhyTests(SynchronousTestCase):
    """Why a VM is up or down, in words."""

    def why(self, desk: Desk, name: str = "www") -> str:
        """Return the words, in one line."""
        return " ".join(desk.ask(f"/v1/vms/{name}").value["why"])

    def test_up(self) -> None:
        """Who wanted it, what keeps it, and how long."""
        desk = Desk(vm(idle=60.0))
        desk.fleet.summons.summon("www", question())
        desk.pump(20)
        self.assertEqual("It has been up for 20 s. Started for 192.0.2.1, A www.jitsu.test, 20 s ago. What keeps it: "
                         "used 20 s ago. It is stopped in 40 s if nobody uses it.", self.why(desk))
        desk.post("/v1/vms/www/hold")
        self.assertIn("It is held: it stays up until somebody releases or stops it.", self.why(desk))

    def test_slow_start(self) -> None:
        """What the hypervisor took of a slow start is told, of a quick one nothing."""
        desk = Desk(vm())
        start = desk.backend.start
        for seconds, told in ((0.7, True), (0.1, False)):
            self.patch(desk.backend, "start", lambda uuid, after=seconds: deferLater(desk.clock, after, start, uuid))
            desk.fleet.summons.summon("www", question())
            desk.pump(2)
            words = "Of the 700 ms of its last start, the hypervisor took 700."
            self.assertEqual(told, words in self.why(desk), self.why(desk))
            desk.post("/v1/vms/www/stop")
            desk.pump(1)

    def test_by_itself(self) -> None:
        """One that runs by itself is left alone."""
        desk = Desk(vm())
        desk.backend.happen(desk.machine().uuid, Power.RUNNING, "by hand")
        desk.pump(1)
        words = "It has been up for 1 s. Nobody asked for it through Jitsu, so it is not stopped."
        self.assertEqual(words, self.why(desk))

    def test_down(self) -> None:
        """Why it was stopped, or that nobody asked for it."""
        desk = Desk(vm(idle=60.0))
        self.assertEqual("It is off; nobody asked for it. A question for its name starts it.", self.why(desk))
        desk.fleet.summons.summon("www", question())
        desk.pump(70)
        self.assertEqual("It is off for 10 s: idle for 60 s. A question for its name starts it.", self.why(desk))
        desk.post("/v1/vms/www/start")
        desk.post("/v1/vms/www/stop")
        self.assertEqual("It is off for 0.0 s: stopped by hand. A question for its name starts it.", self.why(desk))

    def test_failed(self) -> None:
        """What went wrong, how often, and when it is tried again."""
        desk = Desk(vm(faults=["start"]))
        for seconds in (0, 0, 1, 3):
            desk.clock.advance(seconds)
            desk.fleet.summons.summon("www", question()).addErrback(lambda _: None)
        self.assertEqual("It did not start: the start fails, as it was told to. That was the 4th failure in a row; "
                         "questions start it again in 4 s, a person at once.", self.why(desk))
        desk.pump(5)
        self.assertIn("the next question tries again.", self.why(desk))

    def test_on_the_way(self) -> None:
        """What it waits for, and for whom."""
        desk = Desk(vm(boot_time=5.0))
        desk.fleet.summons.summon("www", question())
        desk.pump(2)
        words = "It is starting for 2 s: the hypervisor is starting it. Started for 192.0.2.1, A www.jitsu.test."
        self.assertEqual(words, self.why(desk))
        desk.fleet.operator.stop("www")
        self.assertIn("it will be stopped when that is done", self.why(desk))

    def test_unknown(self) -> None:
        """Why nobody knows."""
        desk = Desk(vm())
        desk.fleet.inventory.lost(desk.backend, "the wire is cut")
        self.assertEqual("Nobody knows what it is doing: the wire is cut.", self.why(desk))

    def test_refused(self) -> None:
        """Who was refused it."""
        desk = Desk(vm(), vm("db"), summon_from=())
        for host in ("192.0.2.1", "192.0.2.2", "198.51.100.1"):
            desk.fleet.summons.summon("www", question(host=host)).addErrback(lambda _: None)
        desk.pump(5)
        self.assertIn("A start was refused to 198.51.100.0/24 once, last 5 s ago: this network may not start virtual "
                      "machines. A start was refused to 192.0.2.0/24 2 times", self.why(desk))
        self.assertNotIn("refused", self.why(desk, "db"))

    def test_words(self) -> None:
        """Times and places in a row are short words."""
        for seconds, words in ((-1, "0.0 s"), (0.44, "0.4 s"), (119, "119 s"), (300, "5 min"), (7300, "2 h"),
                               (86400 * 3, "3 d")):
            self.assertEqual(words, duration(seconds))
        for number, words in ((1, "1st"), (2, "2nd"), (3, "3rd"), (4, "4th"), (11, "11th"), (21, "21st"),
                              (112, "112th")):
            self.assertEqual(words, ordinal(number))


class ProtectionTests(SynchronousTestCase):
    """Who may ask."""

    TOKEN = "a long secret of the tests"  # noqa: S105

    def test_strange_pages(self) -> None:
        """No page of the endpoint is shown to, and nothing is done for, a page from elsewhere, by whatever name."""
        desk = Desk(vm())
        for path in ("/", "/dashboard.js", "/metrics", "/healthz", "/v1/vms", "/v1/events?follow=0", "/v1/openapi.json",
                     "/nothing"):
            for name, value in (("Origin", "http://evil.example"), ("Origin", "null"), ("Host", "evil.example:8053"),
                                ("Host", "127.0.0.1.evil.example"), ("Host", "[::1"),
                                ("Origin", "http://127.0.0.1:9999")):
                self.assertEqual(403, desk.ask(path, "GET", b"", **{name: value}).status, (path, name, value))
        self.assertEqual(403, desk.ask("/v1/vms/www/start", "POST", Origin="http://evil.example").status)
        self.assertEqual(State.OFF, desk.machine().state)
        for host in ("localhost:8053", "[::1]:8053", "127.0.0.1", "192.0.2.1:1"):
            self.assertEqual(200, desk.ask("/v1/vms", Host=host, Origin=f"http://{host}").status)

    def test_token(self) -> None:
        """With a token, only who shows it sees anything, by any name of the place, as bearer token or password."""
        desk = Desk(vm(), token=self.TOKEN)

        def basic(text: str) -> str:
            return "Basic " + base64.b64encode(text.encode()).decode()

        for value, status in (
            (f"Bearer {self.TOKEN}", 200), (f"bearer {self.TOKEN}", 200), (basic(f"anyone:{self.TOKEN}"), 200),
            (basic(f":{self.TOKEN}"), 200), (basic(self.TOKEN), 401), (f"Bearer {self.TOKEN}x", 401), ("Bearer ", 401),
            ("Bearer", 401), ("Basic !!!", 401), ("Basic w7", 401), (f"Digest {self.TOKEN}", 401), ("", 401),
        ):
            for path in ("/", "/v1/vms", "/metrics", "/healthz"):
                answer = desk.ask(path, Authorization=value, Host="jitsu.example.org:8053")
                self.assertEqual(status, answer.status, (path, value))
                self.assertEqual(status == 401, "www-authenticate" in answer.headers)
        self.assertEqual(403, desk.ask("/", Authorization=f"Bearer {self.TOKEN}", Origin="http://evil.example").status)
        self.assertEqual(401, desk.ask("/v1/vms/www/start", "POST").status)
        self.assertEqual(State.OFF, desk.machine().state)

    def test_without_token(self) -> None:
        """Without a token, a client of a TCP port sees all and changes nothing; by the UNIX socket all can be done."""
        for token, host, status in ((None, "127.0.0.1", 403), (None, "", 200), (self.TOKEN, "127.0.0.1", 200)):
            desk = Desk(vm(), token=token)
            talk = desk.talk(host)
            talk.say("POST", "/v1/vms/www/start", Authorization=f"Bearer {self.TOKEN}")
            self.assertEqual(status, talk.heard().status)
            self.assertEqual(status == 200, desk.machine().state is State.UP)
            talk.say("GET", "/v1/vms/www", Authorization=f"Bearer {self.TOKEN}")
            self.assertEqual(200, talk.heard().status)

    def test_long_body(self) -> None:
        """A long body is not kept, and is refused before it comes if its length is said; nothing is done for it."""
        desk = Desk(vm())
        self.assertEqual("up", desk.ask("/v1/vms/www/start", "POST", b"x" * LONGEST_BODY).value["state"])
        desk.post("/v1/vms/www/stop")
        for answer in (desk.ask("/v1/vms/www/start", "POST", b"x" * (LONGEST_BODY + 1)),
                       desk.ask("/v1/vms/www/start", "POST", Content_Length=str(10**9))):
            self.assertEqual((413, True), (answer.status, "65536 octets" in answer.value["error"]))
        talk = desk.talk()
        talk.say("POST", "/v1/vms/www/start", Transfer_Encoding="chunked")
        talk.protocol.dataReceived((b"4000\r\n" + b"x" * 0x4000 + b"\r\n") * 5 + b"0\r\n\r\n")
        self.assertEqual(413, talk.heard().status)
        self.assertTrue(talk.wire.disconnecting)
        self.assertEqual(State.OFF, desk.machine().state)

    def test_strange_headers(self) -> None:
        """Whatever a header has, it is no fault of ours, before the token is looked at and after."""
        for token in (None, self.TOKEN):
            desk = Desk(vm(), token=token)
            for name, value in (
                ("Origin", "http://["), ("Origin", "\udcff"), ("Host", "["), ("Host", "\udcff"), ("Host", "a:b:c"),
                ("Authorization", "Bearer \udcff"), ("Authorization", "\udcff"), ("Authorization", "Basic \udcff"),
                ("Accept", "\udcff"), ("Accept", "a/b;q=x"), ("Last-Event-ID", "\udcb2"), ("Content-Length", "-1"),
                ("Content-Length", "9" * 5000), ("Content-Length", "²"), ("Transfer-Encoding", "gzip"),
                ("Content-Type", "multipart/form-data; boundary=\udcff"), ("Cookie", "=;=\udcff"), ("Expect", "x"),
            ):  # fmt: skip
                for method, path in (("GET", "/metrics"), ("POST", "/v1/vms/www/hold"), ("GET", "/v1/events?follow=0")):
                    status = desk.ask(path, method, b"", **{name: value}).status
                    self.assertIn(status, {200, 400, 401, 403, 413}, (method, path, name, value))
            self.assertEqual([], self.flushLoggedErrors())

    def test_any_request(self) -> None:
        """Requests made up of odd parts are answered with 2xx or 4xx, or cut off; nothing is logged."""
        paths = [path.replace("{name}", "www") for path in json.loads(openapi())["paths"]]
        odd = st.sampled_from(["", "²", "\udcb2", "\0", "[", "%", "%00", "%ff", "http://[", "//", "?", "é", "9" * 5000])
        word = odd | st.text("ab/=&;%[]:@ '\udc80", max_size=8)
        methods = st.sampled_from(["GET", "HEAD", "POST", "PUT", "OPTIONS", "CONNECT", "render", "__init__"]) | word
        names = st.sampled_from([
            "Host", "Origin", "Authorization", "Accept", "Last-Event-ID", "Content-Length", "Cookie", "Range", "Expect",
            "Transfer-Encoding", "Connection", "Content-Type", "If-None-Match",
        ])  # fmt: skip
        values = word | st.sampled_from(["chunked", "100-continue", "127.0.0.1", "Bearer x", "5"])
        queries = st.just("") | st.builds("?{}={}".format, st.sampled_from(["last", "follow", "vm", "host"]), word)
        desk = Desk(vm(), token=self.TOKEN)
        open_desk = Desk(vm())

        @settings(max_examples=400, deadline=None, derandomize=True, database=None)
        @given(methods, st.sampled_from([*paths, "/", "*"]), word, queries, st.sampled_from(["1.0", "1.1", "0.9", "2"]),
               st.lists(st.tuples(names, values), max_size=4), st.binary(max_size=20))  # fmt: skip
        def ask(method: str, path: str, more: str, query: str, version: str, headers: Any, body: bytes) -> None:
            head = "".join(f"{name}: {value}\r\n" for name, value in headers)
            text = f"{method} {path}{more}{query} HTTP/{version}\r\nHost: 127.0.0.1\r\n{head}\r\n"
            for one in (desk, open_desk):
                talk = one.talk()
                talk.protocol.dataReceived(text.encode("utf-8", "surrogateescape") + body)
                said = talk.wire.value().split(b" ", 2)
                self.assertIn(said[1][:1] if len(said) > 1 else b"4", b"124", talk.wire.value())
                talk.hang_up()

        ask()
        self.assertEqual([], self.flushLoggedErrors())

    def test_head(self) -> None:
        """HEAD answers without a body, also where a body would never end; where there is no GET, it is refused."""
        desk = Desk(vm())
        for path in ("/", "/v1/vms", "/v1/events", "/metrics"):
            answer = desk.ask(path, "HEAD")
            self.assertEqual((200, b""), (answer.status, answer.body), path)
        for path, status in (("/v1/vms/www/start", 405), ("/v1/reload", 405), ("/v1", 404), ("/v1/hosts/x/drain", 404)):
            self.assertEqual(status, desk.ask(path, "HEAD").status, path)


class SharesTests(SynchronousTestCase):
    """How long, and how often, clients may hold a connection."""

    def test_slow_request(self) -> None:
        """A request that comes octet by octet has as long as any other one; then the next one has."""
        for begin in (b"GET /v1/vms HTTP/1.1\r\nX: ", b"POST /v1/vms/www/stop HTTP/1.1\r\nContent-Length: 999\r\n\r\n"):
            desk = Desk(vm())
            talk = desk.talk()
            talk.say("GET", "/healthz")
            desk.clock.advance(ASK_WITHIN - 1)
            talk.say("GET", "/healthz")
            talk.heard()
            talk.protocol.dataReceived(begin)
            for _ in range(int(ASK_WITHIN) - 1):
                desk.clock.advance(1)
                talk.protocol.dataReceived(b"x")
            self.assertFalse(talk.wire.aborted)
            desk.clock.advance(1)
            self.assertTrue(talk.wire.aborted)

    def test_long_answer(self) -> None:
        """A client that waits for its VM is not cut off, however long that takes."""
        desk = Desk(vm(boot_time=500.0))
        talk = desk.talk()
        talk.say("POST", "/v1/vms/www/start")
        desk.pump(501, 1)
        self.assertEqual((False, 200), (talk.wire.aborted, talk.heard().status))

    def test_unread(self) -> None:
        """A client that does not read what it is sent is cut off, unless it goes on."""
        desk = Desk(vm())
        talk = desk.talk()
        talk.say("GET", "/v1/events")
        for seconds, aborted in ((READ_WITHIN - 1, False), (READ_WITHIN, True)):
            talk.wire.producer.pauseProducing()
            desk.clock.advance(seconds)
            self.assertEqual(aborted, talk.wire.aborted)
            talk.wire.producer.resumeProducing()
        talk.wire.producer.pauseProducing()
        talk.hang_up()
        desk.clock.advance(2 * READ_WITHIN)

    def test_pipeline(self) -> None:
        """Of many requests that come at once, some are answered in a turn, others in between, and if they are read."""
        desk = Desk(vm())
        asked: list[float] = []

        def problems() -> list[str]:
            asked.append(desk.clock.seconds())
            desk.clock.rightNow += slices.SLICE / 4
            return []

        self.patch(desk.endpoint, "_problems", problems)
        hog, other, gone = desk.talk("192.0.2.1"), desk.talk("198.51.100.1"), desk.talk("203.0.113.1")
        hog.protocol.dataReceived(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 100)
        self.assertEqual(4, len(asked))
        hog.wire.producer.pauseProducing()
        gone.say("GET", "/healthz")
        gone.hang_up()
        other.say("GET", "/healthz")
        self.assertEqual(0, other.heard().status)
        desk.pump(1)
        self.assertEqual((200, 5), (other.heard().status, len(asked)))
        hog.wire.producer.resumeProducing()
        desk.pump(1)
        self.assertEqual(101, len(asked))

    def test_connections(self) -> None:
        """A network has a share, the UNIX socket another; where all are taken, idle ones of the greatest give way."""
        desk = Desk(vm(boot_time=5.0))
        nets = ("192.0.2", "198.51.100")
        talks = [desk.talk(f"{net}.{last}") for net in nets for last in range(MOST_FROM_ONE)]
        self.assertEqual(MOST_CONNECTIONS, len(talks))
        self.assertFalse(any(talk.wire.aborted for talk in talks))
        talks[0].say("GET", "/v1/events")
        ours = desk.talk()
        ours.say("POST", "/v1/vms/www/start")
        (gone,) = [talk for talk in talks if talk.wire.aborted]
        self.assertIn(gone, (talks[1], talks[MOST_FROM_ONE]))
        for _ in range(2 * MOST_FROM_ONE):
            self.assertFalse(desk.talk("192.0.2.251").wire.aborted)
        self.assertEqual({True}, {talk.wire.aborted for talk in talks[1:MOST_FROM_ONE]})
        self.assertFalse(talks[0].wire.aborted)
        self.assertGreaterEqual(sum(not talk.wire.aborted for talk in talks[MOST_FROM_ONE:]), MOST_FROM_ONE - 1)
        desk.pump(6)
        self.assertEqual((False, 200), (ours.wire.aborted, ours.heard().status))
        self.assertLessEqual(len(desk.endpoint.connections), MOST_CONNECTIONS)
        for talk in talks:
            talk.hang_up()
        ours.hang_up()
        self.assertEqual(MOST_FROM_ONE - 1, len(desk.endpoint.connections))

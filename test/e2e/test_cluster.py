"""
Three Jitsus with common VMs on two hosts, with real libvirt, QEMU and etcd; one after the other ends.

Queries go on meanwhile. In all cases there is one QEMU of a VM at most, and the nodes that run answer in time.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from subprocess import PIPE
from typing import TYPE_CHECKING, Final

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from demo import lab
from jitsu_tw.ctl.show import NoAnswerError
from test.support.cluster import HOSTS, IDLE, IPS, NODES, PATIENCE, SITES, TTL, VMS, Cluster, qemus

if TYPE_CHECKING:
    from collections.abc import Collection

    from test.support.cluster import Answer, Host

#: Seconds after which another node has the claims of a lost one; etcd ends leases late rather than early.
FREE_AFTER: Final = TTL + 2.0

#: What a Jitsu logs when it has a host again.
FOUND: Final = ": connected"

#: Connects to a guest, and prints its answer when standard input has a line.
FETCH: Final = """
import socket, sys
with socket.create_connection((sys.argv[1], 80), 10) as one:
    print("connected", flush=True)
    sys.stdin.readline()
    one.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
    print(one.makefile().readline().strip())
"""

#: Prints the names of all domains that libvirtd at a URI knows.
LISTED: Final = """
import libvirt, sys
print(*(domain.name() for domain in libvirt.openReadOnly(sys.argv[1]).listAllDomains()))
"""

#: Which Jitsus are asked.
ALL: Final = frozenset(range(len(NODES)))


class ClusterTestCase(SynchronousTestCase):
    """
    Has a cluster, and looks at what runs.

    Attributes:
        top: goes into the configuration of the Jitsus.
        linux: the VMs that boot the Linux guest.
    """

    top = ""
    linux: tuple[str, ...] = ()

    def setUp(self) -> None:
        """Begin with all nodes healthy, and no VM running. The logs stay in trial's directory."""
        missing = lab.missing_commands()
        if missing:
            raise SkipTest(f"not installed: {', '.join(missing)}; make setup")
        self.cluster = Cluster()
        try:
            self.cluster.start(self.top, self.linux)
        except lab.NetworkUnavailableError as error:
            raise SkipTest(f"no network namespaces here: {error}") from error
        self.addCleanup(self.cluster.close)
        self.addCleanup(self.cluster.keep_logs, Path(self._testMethodName))
        self.nodes, self.etcds = self.cluster.nodes, self.cluster.etcds
        ends = contextlib.ExitStack()
        self.addCleanup(ends.close)
        self.watch = ends.enter_context(self.cluster.watching())

    def tearDown(self) -> None:
        """There never were two."""
        self.assertEqual([], self.watch.twice)

    def all_good(
        self, answers: list[Answer], servers: Collection[int] = ALL, since: float = 0.0, *, warm: bool = False
    ) -> None:
        """Assert that all *answers* of these Jitsus to what was asked *since* were good; if *warm*, from a VM's up."""

        def asked() -> list[Answer]:
            return [answer for answer in answers if answer.server in servers and answer.asked >= since]

        self.cluster.until(lambda: {answer.server for answer in asked()} == set(servers))  # the first may be on its way
        self.assertEqual([], [answer for answer in asked() if not answer.is_good or (warm and answer.edes)])

    def goes_on(self, answers: list[Answer], servers: Collection[int] = ALL, seconds: float = 2.0) -> None:
        """Assert that from now on, for some time, all answers of these Jitsus come from what is up."""
        since = time.monotonic()
        time.sleep(seconds)
        self.all_good(answers, servers, since, warm=True)

    def owner(self, vm: str = "www") -> str | None:
        """Return whose a VM is."""
        node: str | None = self.cluster.fact(f"claims/{vm}").get("node")
        return node

    def host(self, vm: str = "www") -> str:
        """Return the host that a VM was started on."""
        host: str = self.cluster.fact(f"runs/{vm}")["host"]
        return host

    def all_up(self, vm: str = "www", servers: Collection[int] = ALL) -> None:
        """Wait until these Jitsus have a VM up."""
        for server in servers:
            self.nodes[server].wait("up", vm)

    def one(self, vm: str = "www") -> int:
        """Assert that one QEMU of a VM has run, all the time, and does so now; return it."""
        self.cluster.until(lambda: self.watch.seen[vm])  # the watch looks ten times a second
        (pid,) = self.watch.seen[vm]
        self.assertEqual([pid], qemus(self.cluster.network)[vm])
        return pid

    def ends(self) -> None:
        """Assert that the VMs, which nobody asks for any more, are stopped when their leases end; nothing is left."""
        self.cluster.until(lambda: not any(qemus(self.cluster.network).values()), IDLE + 10)
        for vm in VMS:
            self.cluster.until(lambda: all(node.vm(vm)["state"] == "off" for node in self.nodes), 5)  # noqa: B023
            self.cluster.until(lambda: not any(self.cluster.fact(f"{room}/{vm}") for room in ("claims", "runs")), 5)  # noqa: B023


class NodesTests(ClusterTestCase):
    """The name servers, and what they agree by."""

    def test_one_start(self) -> None:
        """
        Asked all at once, they start one QEMU, and all of them answer.

        Neither an etcd that is killed, the one that all of them ask, nor then its leader, changes anything.
        """
        with self.cluster.asking("www") as answers:
            self.all_up()
            self.all_good(answers)
            self.assertEqual(1, sum(node.vm()["total_starts"] for node in self.nodes))
            self.etcds.kill(0)
            self.goes_on(answers, seconds=FREE_AFTER)
            self.cluster.until(lambda: not any(node.problems() for node in self.nodes), FREE_AFTER)
            self.etcds.start(0)
            self.etcds.kill(self.etcds.leader())
            self.goes_on(answers, seconds=FREE_AFTER)
            self.cluster.until(lambda: not any(node.problems() for node in self.nodes), FREE_AFTER)
            self.all_good(answers)
            self.one()

    def test_owner_killed(self) -> None:
        """
        The owner of a VM is killed while it starts it, the next one while it is up, and one more stands still.

        The others answer in time all along; one of them adopts the VM, and stops it when its lease ends.
        """
        with self.cluster.asking("www") as answers:
            self.cluster.until(lambda: qemus(self.cluster.network)["www"])
            (pid,) = qemus(self.cluster.network)["www"]
            os.kill(pid, signal.SIGSTOP)  # so that its owner is killed while it boots
            first = NODES.index(self.owner() or "")
            self.assertEqual("starting", self.cluster.fact("claims/www")["is"])
            self.nodes[first].stop(signal.SIGKILL)
            os.kill(pid, signal.SIGCONT)
            self.all_up(servers=ALL - {first})
            self.cluster.until(lambda: self.owner() not in {None, NODES[first]}, FREE_AFTER)
            self.goes_on(answers, ALL - {first})
            self.all_good(answers, ALL - {first})
            self.cluster.start_nodes()
            self.all_up()
            back = time.monotonic()
            second = NODES.index(self.owner() or "")
            self.assertNotEqual(first, second)
            self.nodes[second].stop(signal.SIGKILL)
            self.cluster.until(lambda: self.owner() not in {None, NODES[second]}, FREE_AFTER)
            self.goes_on(answers, ALL - {second})
            self.all_good(answers, ALL - {second}, back, warm=True)
            self.cluster.start_nodes()
            self.all_up()
            back = time.monotonic()
            third = NODES.index(self.owner() or "")
            self.nodes[third].signal(signal.SIGSTOP)
            self.cluster.until(lambda: self.owner() not in {None, NODES[third]}, FREE_AFTER)
            self.nodes[third].signal(signal.SIGCONT)
            self.goes_on(answers)
            self.all_good(answers, ALL - {third}, back, warm=True)
            self.assertNotEqual(NODES[third], self.owner())
            self.one()
        self.ends()
        self.assertEqual(1, len(self.watch.seen["www"]))

    def test_cut_off(self) -> None:
        """
        An owner that loses etcd reports it, keeps its warm answers and starts nothing; the others go on with its VM.

        When its link is back, it works again.
        """
        with self.cluster.asking("www") as answers:
            self.all_up()
            apart = NODES.index(self.owner() or "")
            self.cluster.network.cut(NODES[apart])
            self.cluster.until(self.nodes[apart].problems, TTL + 1)
            self.assertIn("nothing new is started here", self.nodes[apart].problems()[0])
            with self.cluster.asking("db", servers=[apart]) as refused:
                self.cluster.until(lambda: len(refused) > 1)
            self.assertEqual({"SERVFAIL"}, {answer.rcode for answer in refused})
            self.assertEqual({23}, {answer.edes[0][0] for answer in refused})
            self.cluster.until(lambda: self.owner() not in {None, NODES[apart]}, FREE_AFTER)
            with self.cluster.asking("db", servers=sorted(ALL - {apart})) as started:
                self.all_up("db", ALL - {apart})
                self.all_good(started, ALL - {apart})
                self.cluster.network.heal(NODES[apart])
                self.cluster.until(lambda: not self.nodes[apart].problems())
                with self.cluster.asking("db", servers=[apart]) as again:
                    self.all_up("db")
                    self.goes_on(again, [apart])
            self.one("db")
            self.nodes[apart].control.ask("POST", "/v1/vms/db/stop")
            with self.cluster.asking("db", servers=[apart]) as again:
                self.all_up("db")
                self.all_good(again, [apart])
            self.assertEqual(NODES[apart], self.owner("db"))
            self.all_good(answers)
            self.one()

    def test_all_killed(self) -> None:
        """When all were killed, and come back, they adopt what runs; while its host is away, they leave it alone."""
        with self.cluster.asking("www") as answers:
            self.all_up()
            host = self.cluster.hosts[self.host()]
            for node in self.nodes:
                node.stop(signal.SIGKILL)
            host.kill()
            time.sleep(FREE_AFTER)
            self.cluster.start_nodes()
            since = time.monotonic()
            time.sleep(2.0)
            said = [answer for answer in answers if answer.asked > since]
            self.assertEqual({("SERVFAIL", 14)}, {(answer.rcode, answer.edes[0][0]) for answer in said})
            self.assertEqual(ALL, {answer.server for answer in said})
            host.start()
            self.all_up()
            self.goes_on(answers)
            self.assertIn(self.owner(), NODES)
            self.one()
        self.ends()
        self.assertEqual(1, len(self.watch.seen["www"]))


class HostsTests(ClusterTestCase):
    """The hosts."""

    linux = ("www",)

    def test_libvirtd_killed(self) -> None:
        """
        A VM whose host's libvirtd is killed goes on, and is started nowhere else; what is off starts on the other host.

        When libvirtd is back, all is as before; a VM that has ended meanwhile is started again.
        """
        with self.cluster.asking("www") as answers:
            self.all_up()
            host = self.cluster.hosts[self.host()]
            for node in self.nodes:
                node.wait("off", "db")
                self.cluster.until(lambda: not any(one["problem"] for one in node.hosts()))  # noqa: B023
            host.kill()
            with self.cluster.asking("db") as others:
                self.all_up("db")
                self.goes_on(others)
                self.all_good(others)
            self.assertNotEqual(host.name, self.host("db"))
            self.goes_on(answers)
            self.found_again(host)
            self.goes_on(answers)
            pid = self.one()
            host.kill()
            os.kill(pid, signal.SIGKILL)
            self.goes_on(answers)
            self.found_again(host)
            self.cluster.until(lambda: len(self.watch.seen["www"]) == 2)
            self.all_up()
            self.all_good(answers)
            self.assertEqual(1, len(self.watch.seen["db"]))

    def test_moved(self) -> None:
        """
        A VM that is moved goes on running on the other host, with its connections; all answer for it meanwhile.

        While it is handed over, it has a QEMU on each, of which one runs.
        """
        with self.cluster.asking("www") as answers:
            self.all_up()
            first, old, since = self.host(), self.one(), time.monotonic()
            other = next(name for name in HOSTS if name != first)
            fetch = [sys.executable, "-c", FETCH, IPS["www"]]
            with self.cluster.network.popen("client", fetch, stdin=PIPE, stdout=PIPE, text=True) as client:
                assert client.stdout is not None
                self.assertEqual("connected\n", client.stdout.readline())
                self.nodes[0].control.ask("POST", f"/v1/vms/www/move?host={other}")
                self.cluster.until(lambda: self.host() == other)
                self.cluster.until(lambda: len(qemus(self.cluster.network)["www"]) == 1)
                self.assertEqual("HTTP/1.1 200 OK\n", client.communicate("now\n", timeout=PATIENCE)[0])
            self.goes_on(answers)
            self.all_good(answers, since=since, warm=True)
            self.assertEqual(2, len(self.watch.seen["www"]))
            self.assertNotIn(old, qemus(self.cluster.network)["www"])
            self.watch.twice.clear()
        self.ends()

    def test_killed_in_move(self) -> None:
        """When the owner is killed while a VM moves, that goes on where it was or where it was to go, not on both."""
        with self.cluster.asking("www") as answers:
            self.all_up()
            first = self.host()
            other = next(name for name in HOSTS if name != first)
            owner = next(number for number, node in enumerate(self.nodes) if node.name == self.owner())
            moving = threading.Thread(target=self.move, args=(owner, other))
            moving.start()
            self.cluster.until(lambda: len(qemus(self.cluster.network)["www"]) == 2)
            self.nodes[owner].stop(signal.SIGKILL)
            moving.join()
            rest = ALL - {owner}
            self.cluster.until(lambda: self.owner() in {self.nodes[number].name for number in rest})
            self.cluster.until(lambda: len(qemus(self.cluster.network)["www"]) == 1)
            self.watch.twice.clear()
            self.goes_on(answers, rest)
            self.all_good(answers, rest)
        self.cluster.start_nodes()
        self.ends()

    def move(self, node: int, host: str) -> None:
        """Ask a Jitsu that may be killed to move the VM."""
        with contextlib.suppress(NoAnswerError):
            self.nodes[node].control.ask("POST", f"/v1/vms/www/move?host={host}")

    def found_again(self, host: Host) -> None:
        """Start a host's libvirtd, and wait until all Jitsus have it."""
        seen = [node.log().count(FOUND) for node in self.nodes]
        host.start()
        self.cluster.until(
            lambda: all(node.log().count(FOUND) > before for node, before in zip(self.nodes, seen, strict=True))
        )


class LostHostTests(ClusterTestCase):
    """A host that is lost for good, with a fence command."""

    top = "on_host_loss: restart\nfence: {fence}"

    def test_fenced(self) -> None:
        """When its host has been fenced, once, a VM in use comes up on the other; the old host can come back."""
        with self.cluster.asking("www") as answers:
            self.all_up()
            first, old = self.host(), self.one()
            self.cluster.hosts[first].kill()
            self.cluster.until(lambda: len(self.watch.seen["www"]) == 2)
            self.cluster.until(lambda: self.host() != first)
            self.assertEqual(f"{first}\n", (self.cluster.directory / "fenced").read_text())
            self.all_up()
            self.goes_on(answers)
            self.cluster.hosts[first].start()
            self.goes_on(answers, seconds=4.0)
            self.all_good(answers)
            self.assertEqual(2, len(self.watch.seen["www"]))
            self.assertNotIn(old, qemus(self.cluster.network)["www"])
            self.assertEqual(f"{first}\n", (self.cluster.directory / "fenced").read_text())


class TemplateTests(ClusterTestCase):
    """A template at all nodes, whose pool has two addresses."""

    top = f"""
templates:
  - name: site
    host: any
    dns: "*.{SITES}"
    pool: 10.99.0.41-10.99.0.42
    define: site.xml
    exists: "*"
    new_per_minute: 0
    wait_for_port: 80
"""

    def test_made_and_forgotten(self) -> None:
        """
        A name asked of all nodes at once is one VM; two at once, at two nodes, have an address each; a third has none.

        What one node forgets is gone at all, and its address is free.
        """
        with self.cluster.asking("alice") as answers:
            ip = self.agreed(answers, "alice")
            self.all_up("alice.site")
            self.one("alice.site")
        self.assertEqual({"ips": [ip]}, {"ips": self.cluster.fact("made/alice.site")["ips"]})
        self.forget("alice.site", at=1)
        with (
            self.cluster.asking("bob", servers=[0]) as first,
            self.cluster.asking("carol", servers=[1]) as second,
        ):
            ips = {self.agreed(first, "bob", {0}), self.agreed(second, "carol", {1})}
            with self.cluster.asking("bob", "carol") as answers:
                ips |= {self.agreed(answers, label) for label in ("bob", "carol")}
                for vm in ("bob.site", "carol.site"):
                    self.all_up(vm)
                    self.one(vm)
        self.assertEqual({"10.99.0.41", "10.99.0.42"}, ips)
        with self.cluster.asking("dave") as refused:
            self.cluster.until(lambda: {answer.server for answer in refused} == ALL)
        self.assertEqual({"SERVFAIL"}, {answer.rcode for answer in refused})
        self.assertIn("taken", refused[0].edes[0][1])
        self.forget("bob.site", at=2)

    def test_maker_killed(self) -> None:
        """When the node that makes a VM is killed before that is up, the others have the VM, and it has it later."""
        main = self.nodes[0].directory / "state.git" / "refs" / "heads" / "main"
        self.cluster.until(main.exists)
        with self.cluster.asking("alice", servers=[0]):
            self.cluster.until(lambda: self.cluster.fact("made/alice.site"))
            self.nodes[0].stop(signal.SIGKILL)
        rest = ALL - {0}
        with self.cluster.asking("alice", servers=sorted(rest)) as answers:
            ip = self.agreed(answers, "alice", rest)
            self.all_up("alice.site", rest)
        self.cluster.start_nodes()
        with self.cluster.asking("alice") as answers:
            self.assertEqual(ip, self.agreed(answers, "alice"))
        self.forget("alice.site", at=0)

    def agreed(self, answers: list[Answer], label: str, servers: Collection[int] = ALL) -> str:
        """Wait until these Jitsus have answered with an address of a VM; return it, if it is one."""
        def given() -> list[Answer]:
            return [one for one in answers if one.ips and one.name == f"{label}.{SITES}" and one.server in servers]

        self.cluster.until(lambda: {answer.server for answer in given()} == set(servers))
        (ip,) = {ip for answer in given() for ip in answer.ips}
        return ip

    def forget(self, vm: str, at: int) -> None:
        """Remove a VM by a request to a Jitsu; nothing of it is left, at any node or host."""
        jitsuctl, state = str(Path(sys.executable).with_name("jitsuctl")), str(self.nodes[at].directory / "state.git")
        subprocess.run([jitsuctl, "remove", vm, "--state", state], check=True, capture_output=True)
        self.cluster.until(lambda: not any(one["name"] == vm for node in self.nodes for one in node.vms()))
        self.cluster.until(lambda: "at" in self.cluster.fact(f"gone/{vm}"))
        self.assertEqual([], qemus(self.cluster.network)[vm])
        self.assertEqual({}, self.cluster.fact(f"made/{vm}"))
        for host in self.cluster.hosts.values():
            listed = [sys.executable, "-c", LISTED, host.connect]
            self.cluster.until(lambda: vm not in subprocess.check_output(listed, text=True).split())  # noqa: B023
        for node in self.nodes:
            tree = ["git", "-C", str(node.directory / "state.git"), "grep", "-e", vm, "main", "--", "jitsu/vm"]
            self.cluster.until(lambda: not self.output(tree))  # noqa: B023

    @staticmethod
    def output(command: list[str]) -> str:
        """Return what *command* prints, however it ends."""
        return subprocess.run(command, check=False, capture_output=True, text=True).stdout

"""
Malformed packets, 10,000 a second, while others go on asking.

As a program (``python -m test.programs.test_flood PORT PACKETS``) it is the flood, in a process of its own. The test
takes five seconds; ``JITSU_FLOOD=30`` in the environment makes it thirty, and has the figures printed.
"""

from __future__ import annotations

import json
import os
import random
import re
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.rdatatype

from test.programs.test_tap import HOST, PATIENCE, ROOT, ZONE, ProcessTestCase

#: Packets a second, and for how many seconds.
RATE: Final = 10_000
SECONDS: Final = int(os.environ.get("JITSU_FLOOD", "5"))

#: So many different packets there are, but for their ids. They are the same each time.
KINDS: Final = 8000
SEED: Final = 20261123

#: The most packets at once: a burst that fits into the buffer of the server's socket.
BURST: Final = 100

#: Good questions a second.
GOOD_RATE: Final = 100

#: Each kind of good question is answered at least so often before the flood has ended.
LEAST: Final = 5

#: Seconds after which a client asks again, and of how many questions, at most, one is lost: a busy machine may let the
#: server wait until the buffer of its socket is full.
RETRY: Final = 1.0
LOST: Final = 20

#: The most that the server may grow by, in octets.
GROWTH: Final = 4_000_000

VMS: Final = """
delay: 0
vms:
  - {name: cold, dns: [cold.jitsu.test, "*.wild.jitsu.test"], ip: 10.0.0.1}
  - {name: warm, dns: warm.jitsu.test, ip: 10.0.0.2, idle: 86400}
"""

#: Name and type of good questions: code and data of their answers. None of them starts anything.
GOOD: Final = {
    ("warm.jitsu.test", "A"): ("NOERROR", ["10.0.0.2"]),
    ("WARM.jitsu.test", "AAAA"): ("NOERROR", []),
    ("ns.jitsu.test", "A"): ("NOERROR", ["127.0.0.1"]),
    ("nobody.jitsu.test", "A"): ("NXDOMAIN", []),
    ("www.example.org", "A"): ("REFUSED", []),
}


def valid() -> list[bytes]:
    """Return questions that would start the cold VM, with id 0."""
    cookie = dns.edns.GenericOption(dns.edns.OptionType.COOKIE, b"12345678")
    kinds: tuple[dict[str, Any], ...] = (
        {}, {"use_edns": 0}, {"use_edns": 0, "want_dnssec": True}, {"use_edns": 0, "options": [cookie]}
    )
    names = ("cold.jitsu.test", "COLD.jitsu.test", "any.wild.jitsu.test")
    return [dns.message.make_query(name, "A", id=0, **kind).to_wire() for name in names for kind in kinds]


def could_start(octets: bytes) -> bool:
    """Return whether dnspython, which shares no code with Jitsu, takes *octets* for a question that may start a VM."""
    try:
        query = dns.message.from_wire(octets)
    except dns.exception.DNSException:
        return False
    except Exception:  # noqa: BLE001, its own faults: then it is no question either
        return False
    return (
        query.opcode() == dns.opcode.QUERY
        and not query.flags & dns.flags.QR
        and query.edns < 1
        and [question.rdtype for question in query.question] in ([dns.rdatatype.A], [dns.rdatatype.AAAA])
    )


def malformed(count: int, seed: int = SEED) -> list[bytes]:
    """Return *count* packets of which none is a question for an address: junk, and damaged questions."""
    chance, good = random.Random(seed), valid()
    made: list[bytes] = []
    while len(made) < count:
        packet = bytearray(chance.choice(good))
        kind = chance.randrange(5)
        if kind == 0:
            packet = bytearray(chance.randbytes(chance.choice((chance.randrange(64), chance.randrange(1400)))))
        elif kind == 1:
            del packet[chance.randrange(len(packet)) :]
        elif kind == 2:
            for _ in range(chance.randint(1, 8)):
                packet[chance.randrange(2, len(packet))] ^= 1 << chance.randrange(8)
        elif kind == 3:
            packet[2] |= 0x80  # QR: a response
        else:
            packet[2] |= chance.randint(1, 15) << 3  # the opcode
        if not could_start(bytes(packet)):
            made.append(bytes(packet))
    return made


def flood(port: int, count: int) -> None:
    """Send *count* packets at `RATE`, each with another id; say when it begins, and how long it took."""
    packets, chance = [packet[2:] for packet in malformed(KINDS)], random.Random(SEED)
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        client.connect((HOST, port))
        client.settimeout(0)
        print("begin", flush=True)  # noqa: T201
        begin, sent = time.monotonic(), 0
        while sent < count:
            due = min(count, int((time.monotonic() - begin) * RATE), sent + BURST)
            for number in range(sent, due):
                try:
                    client.send(chance.randbytes(2) + packets[number % KINDS])
                except OSError:  # the buffer is full, or an ICMP error for an earlier packet
                    continue
            sent = due
            time.sleep(0.001)
    print(f"{time.monotonic() - begin:.1f}", flush=True)  # noqa: T201


class FloodTests(ProcessTestCase):
    """A server under a flood of packets that are no questions."""

    def test_flood(self) -> None:
        """Good questions are answered, all of them and during the flood; nothing starts, nor do memory or log grow."""
        (self.folder / "jitsu.zone").write_text(ZONE)
        server = self.serve("--zone", "jitsu.zone", configuration=VMS)
        self.ask("warm.jitsu.test")
        self.ask_well(1.0)
        log, memory = self.log(), resident(server.pid)
        command = [sys.executable, "-m", "test.programs.test_flood", str(self.port), str(RATE * SECONDS)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as flooding:
            self.addCleanup(self.end, flooding)
            assert flooding.stdout is not None
            self.assertEqual(b"begin\n", flooding.stdout.readline())
            took, during, lost = self.ask_well(SECONDS, flooding)
            lasted = float(flooding.stdout.read())
        self.assertEqual(0, flooding.returncode)
        grown = resident(server.pid) - memory
        if "JITSU_FLOOD" in os.environ:
            print(f"{RATE * SECONDS} packets in {lasted:.1f} s; {len(took)} good answers, median "  # noqa: T201
                  f"{statistics.median(took) * 1000:.1f} ms, worst {max(took) * 1000:.0f} ms; {grown:+} octets")
        self.assertGreaterEqual(during, LEAST * len(GOOD))
        self.assertLessEqual(lost, len(took) / LOST)
        self.assertLess(grown, GROWTH)
        self.assertEqual(log, self.log())
        vms = json.loads(self.jitsuctl("status", "--json").stdout)
        self.assertEqual([("cold", 0, "off"), ("warm", 1, "up")],
                         [(vm["name"], vm["total_starts"], vm["state"]) for vm in vms])

    def ask_well(
        self, seconds: float, flooding: subprocess.Popen[bytes] | None = None
    ) -> tuple[list[float], int, int]:
        """
        Ask good questions, one after the other, for *seconds* and until *flooding* has ended; ask again what was lost.

        Returns:
            the seconds that each answer took, for the record, how many came before *flooding* had ended, and how many
            questions or answers were lost.
        """
        took: list[float] = []
        during = lost = 0
        begin = time.monotonic()
        with socket.socket(type=socket.SOCK_DGRAM) as client:
            client.settimeout(RETRY)
            client.connect((HOST, self.port))
            while time.monotonic() < begin + seconds or (flooding is not None and flooding.poll() is None):
                (name, type_), expected = list(GOOD.items())[len(took) % len(GOOD)]
                query = dns.message.make_query(name, type_, use_edns=0 if len(took) % 2 else -1)
                wire = query.to_wire()
                sent = time.monotonic()
                octets = b""
                while octets[:2] != wire[:2]:  # a late answer to the question before may come first
                    self.assertLess(time.monotonic(), sent + PATIENCE)
                    client.send(wire)
                    try:
                        octets = client.recv(4096)
                    except TimeoutError:
                        lost += 1
                took.append(time.monotonic() - sent)
                during += flooding is not None and flooding.poll() is None
                reply = dns.message.from_wire(octets)
                self.assertTrue(query.is_response(reply))
                data = [record.to_text() for rrset in reply.answer for record in rrset]
                self.assertEqual(expected, (dns.rcode.to_text(reply.rcode()), data))
                time.sleep(1 / GOOD_RATE)
        return took, during, lost


def resident(pid: int) -> int:
    """Return the octets of memory that a process has (proc(5))."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


if __name__ == "__main__":
    flood(int(sys.argv[1]), int(sys.argv[2]))

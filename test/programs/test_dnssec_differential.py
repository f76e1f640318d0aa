"""Some thousand questions about zones that come signed: Jitsu's answers are those of Knot and NSD."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING, Final

from twisted.trial.unittest import SkipTest

from test.programs.test_tap import ProcessTestCase
from test.support import differential
from test.support.signed_zones import APEX, sign
from test.support.validators import knot, nsd

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import dns.zone

    from test.support.validators import Daemon

#: The questions about each zone, and those of them that are asked over TCP, too.
QUESTIONS: Final = 1000
OVER_TCP: Final = 100

#: Octets that each server puts at most into an answer by UDP.
PAYLOAD: Final = 1232


def same_answers(
    case: ProcessTestCase,
    title: str,
    zone: dns.zone.Zone,
    asked: Sequence[differential.Question],
    peers: Mapping[str, Daemon],
) -> None:
    """
    Ask a Jitsu and its peers the same questions, by UDP and some by TCP, and compare the answers.

    Args:
        case: has the Jitsu.
        title: of the line that is printed.
        zone: the zone that all have.
        asked: the questions.
        peers: servers, by their names in `differential.FAULTS`.
    """
    ours, few = differential.Asker(case.port), asked[:OVER_TCP]
    theirs = {name: differential.Asker(peer.port).udp(asked, PAYLOAD) for name, peer in peers.items()}
    by_udp = differential.compare(zone, asked, ours.udp(asked, PAYLOAD), theirs)
    theirs = {name: differential.Asker(peer.port).tcp(few) for name, peer in peers.items()}
    by_tcp = differential.compare(zone, few, ours.tcp(few), theirs)
    lines, compared = by_udp.differences + by_tcp.differences, by_udp.compared + by_tcp.compared
    excused = "".join(f"; {number}: a peer {reason}" for reason, number in by_udp.excused.items())
    sys.stdout.write(f"{title}: {len(asked)} questions by UDP, {len(few)} by TCP; {compared} answers compared,"
                     f" {len(lines)} differ{excused}\n")  # fmt: skip
    case.assertFalse(lines, "\n".join([f"{len(lines)} of {compared} differ:", *(line[:500] for line in lines[:9])]))
    case.assertGreater(by_udp.compared, len(asked))


class DifferentialTests(ProcessTestCase):
    """A Jitsu, a Knot and an NSD with the same file."""

    def compare(self, kind: str) -> None:
        """Ask all three the same questions about a zone signed as `KINDS` has it, and compare the answers."""
        if missing := [program for program in ("knotd", "nsd", "dnssec-signzone") if not shutil.which(program)]:
            raise SkipTest(f"not installed: {', '.join(missing)}")
        signed = sign(self.folder, kind)
        peers = {"knot": knot(self.folder, [(APEX, signed.path)]), "nsd": nsd(self.folder, [(APEX, signed.path)])}
        for peer in peers.values():
            self.addCleanup(peer.stop)
        self.serve("--zone", str(signed.path))
        for peer in peers.values():
            peer.until_served(APEX)
        zone = differential.read(signed.path, APEX)
        asked = differential.questions(zone, QUESTIONS)
        same_answers(self, kind, zone, asked, peers)

    def test_nsec(self) -> None:
        """A zone with NSEC records is answered as Knot and NSD answer it."""
        self.compare("nsec")

    def test_nsec3(self) -> None:
        """A zone with NSEC3 records, salt and iterations, is answered as Knot and NSD answer it."""
        self.compare("nsec3")

    def test_opt_out(self) -> None:
        """A zone with NSEC3 records and opt-out is answered as Knot and NSD answer it."""
        self.compare("optout")

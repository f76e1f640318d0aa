"""Whether a guest gives a sign of life: what was observed, and the verdict."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.rules.vitals import ANSWERS, LEAST_CPU, MOST_ANSWERS, Counts, Sign, Window, sign_of_life


def window(packets: int = 0, cpu: float = 0.0, tries: int = 0) -> Window:
    """Return a window in which a guest sends so many packets and uses so much CPU time."""
    return Window(Counts(1000, 50.0), Counts(1000 + packets, 50.0 + cpu), tries)


class SignTests(SynchronousTestCase):
    """`sign_of_life`."""

    def test_none(self) -> None:
        """Answers to our own tries, and less than a tick of CPU time, are no sign of life."""
        self.assertIs(Sign.NONE, sign_of_life([window()]))
        tried = window(ANSWERS * 11, LEAST_CPU / 2, 11)
        self.assertIs(Sign.NONE, sign_of_life([tried, window(), tried]))

    def test_packets(self) -> None:
        """One packet more is, in whichever window, and one packet where we tried nothing."""
        more = window(ANSWERS * 11 + 1, tries=11)
        for windows in ([more], [more, window()], [window(), window(1)], [window(), more]):
            self.assertIs(Sign.PACKETS, sign_of_life(windows))

    def test_rare(self) -> None:
        """A guest that sends a packet in ten seconds, and hardly uses its CPU, is alive though its port is closed."""
        self.assertIs(Sign.PACKETS, sign_of_life([window(1, 0.0003, 11), window(2, 0.001), window(0, 0.0002, 11)]))

    def test_many_tries(self) -> None:
        """However often we try, that hides no traffic."""
        self.assertIs(Sign.PACKETS, sign_of_life([Window(Counts(0, 1.0), Counts(1900, 1.004), 1000)]))
        self.assertIs(Sign.PACKETS, sign_of_life([window(MOST_ANSWERS + 1, tries=10**6)]))
        self.assertIs(Sign.NONE, sign_of_life([window(MOST_ANSWERS, tries=10**6)]))

    def test_cpu(self) -> None:
        """CPU time is, all windows together: an idle guest uses a tick in one of them, one that hangs uses it all."""
        self.assertIs(Sign.CPU, sign_of_life([window(cpu=5.0)]))
        self.assertIs(Sign.CPU, sign_of_life([window(), window(cpu=0.01), window()]))
        self.assertIs(Sign.CPU, sign_of_life([window(cpu=LEAST_CPU * 0.6)] * 2))

    def test_uncounted(self) -> None:
        """Where one of the two is not counted, or begins again, nobody can say that there is no sign of life."""
        known = Counts(1000, 50.0)
        for other in (Counts(None, 50.0), Counts(1000, None), Counts(999, 50.0), Counts(1000, 49.0)):
            self.assertIs(Sign.UNCOUNTED, sign_of_life([Window(known, other)]))
            self.assertIs(Sign.UNCOUNTED, sign_of_life([window(), Window(known, other), window()]))
        self.assertIs(Sign.UNCOUNTED, sign_of_life([Window(Counts(None, 0.0), known)]))

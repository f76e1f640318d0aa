"""A rollover from begin to end, by the times of the keys alone."""

from __future__ import annotations

import attrs
from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.dns.keytimes import KeyState, RolloverError, Times, ds_seen, leaving, plan, rolled

BEGIN = 1_800_000_000
WAIT = 3600
DAY = 86400


class RolloverTests(SynchronousTestCase):
    """Rolls from key 1 to key 2."""

    def setUp(self) -> None:
        """Begin with one key, which was announced long ago."""
        self.keys = {1: Times.beginning(BEGIN - 30 * DAY, WAIT)}

    def roll(self) -> None:
        """Begin a rollover."""
        new, changed = rolled(self.keys, BEGIN, WAIT)
        self.keys |= {**changed, 2: new}

    def check(self, at: int, signing: tuple[int, ...], announced: int | None, words: str) -> None:
        """Compare the plan at a time."""
        found = plan(self.keys, at)
        self.assertEqual((signing, announced), (found.signing, found.announced))
        self.assertIn(words, found.step.words)

    def test_beginning(self) -> None:
        """A first key signs at once, and is announced when caches have nothing unsigned any more."""
        self.keys = {1: Times.beginning(BEGIN, WAIT)}
        self.check(BEGIN, (1,), None, "at 2027-01-15 09:00:00 UTC, CDS and CDNSKEY announce key 1 to the parent")
        self.assertEqual(BEGIN + WAIT, plan(self.keys, BEGIN).until)
        self.check(BEGIN + WAIT, (1,), 1, "nothing to do: key 1 signs")
        self.assertIsNone(plan(self.keys, BEGIN + WAIT).until)

    def test_rollover(self) -> None:
        """Both keys sign until the parent has had the new DS record for its TTL; only one is ever announced."""
        self.check(BEGIN, (1,), 1, "nothing to do: key 1 signs")
        self.roll()
        self.check(BEGIN, (1, 2), 1, "at 2027-01-15 09:00:00 UTC, CDS and CDNSKEY announce key 2")
        self.assertEqual((1, 2), plan(self.keys, BEGIN).published)
        self.check(BEGIN + WAIT - 1, (1, 2), 1, "announce key 2")
        self.check(BEGIN + WAIT, (1, 2), 2, "set the DS record of key 2 at the parent, in place of the old one")
        self.check(BEGIN + 100 * DAY, (1, 2), 2, "jitsuctl dnssec ds-seen")
        seen = BEGIN + 100 * DAY
        self.keys |= ds_seen(self.keys, seen, DAY)
        self.check(seen, (1, 2), 2, "when no cache has its DS record any more, key 1 is removed")
        self.assertEqual(seen + DAY, plan(self.keys, seen).step.at)
        self.check(seen + DAY - 1, (1, 2), 2, "key 1 is removed")
        self.check(seen + DAY, (2,), 2, "nothing to do: key 2 signs")
        self.assertEqual({1: KeyState.REMOVED, 2: KeyState.ACTIVE}, plan(self.keys, seen + DAY).states)
        self.assertEqual((2,), plan(self.keys, seen + DAY).published)

    def test_within_a_second(self) -> None:
        """A rollover in the second in which the old key was made is like others, whatever the tags are."""
        for old, new in ((1, 2), (2, 1)):
            with self.subTest(old=old):
                keys = {old: Times.beginning(BEGIN, WAIT)}
                keys[new], changed = rolled(keys, BEGIN, WAIT)
                keys |= changed
                for at, told in ((BEGIN, None), (BEGIN + WAIT, new), (BEGIN + DAY, new)):
                    found = plan(keys, at)
                    self.assertEqual(((old, new), told, False), (found.signing, found.announced, found.is_leaving))
                self.assertEqual([old], list(ds_seen(keys, BEGIN + WAIT, DAY)))

    def test_equal(self) -> None:
        """Of keys with equal times, the end of one's announcement asks for no removal; that of all does."""
        times = Times.beginning(BEGIN, 0)
        ended = attrs.evolve(times, sync_delete=BEGIN)
        for keys, told in (({1: times, 2: ended}, 1), ({1: ended, 2: times}, 2), ({1: times, 2: times}, 2),
                           ({1: ended, 2: ended}, None)):  # fmt: skip
            found = plan(keys, BEGIN)
            self.assertEqual((told, told is None), (found.announced, found.is_leaving))

    def test_again(self) -> None:
        """The next rollover begins when the last one has ended, and not before."""
        self.roll()
        for at in (BEGIN, BEGIN + WAIT):
            with self.assertRaisesRegex(RolloverError, "a rollover is under way: .*key 2"):
                rolled(self.keys, at, WAIT)
        self.keys |= ds_seen(self.keys, BEGIN + WAIT, DAY)
        with self.assertRaisesRegex(RolloverError, "under way: .*key 1 is removed"):
            rolled(self.keys, BEGIN + WAIT, WAIT)
        new, changed = rolled(self.keys, BEGIN + WAIT + DAY, WAIT)
        self.assertEqual((BEGIN + WAIT + DAY, [2]), (new.activate, list(changed)))

    def test_ds_seen(self) -> None:
        """The parent's DS record counts once, and not before caches know the new key."""
        with self.assertRaisesRegex(RolloverError, "no rollover waits for the parent: nothing to do"):
            ds_seen(self.keys, BEGIN, DAY)
        self.roll()
        with self.assertRaisesRegex(RolloverError, "too early"):
            ds_seen(self.keys, BEGIN + WAIT - 1, DAY)
        self.keys |= ds_seen(self.keys, BEGIN + WAIT, DAY)
        with self.assertRaisesRegex(RolloverError, "no rollover waits"):
            ds_seen(self.keys, BEGIN + WAIT + 1, DAY)

    def test_interrupted(self) -> None:
        """A rollover of which only the new key was written goes on: the old key is not announced any more."""
        new, _ = rolled(self.keys, BEGIN, WAIT)
        self.keys[2] = new
        self.check(BEGIN, (1, 2), 1, "announce key 2")
        self.check(BEGIN + WAIT, (1, 2), 2, "ds-seen")
        self.keys |= ds_seen(self.keys, BEGIN + WAIT, DAY)
        self.check(BEGIN + WAIT + DAY, (2,), 2, "nothing to do")

    def test_leaving(self) -> None:
        """A zone that is to be unsigned goes on being signed, asks the parent to remove DS, and rolls no more."""
        for begun in (False, True):
            with self.subTest(begun=begun):
                if begun:
                    self.roll()
                keys = self.keys | leaving(self.keys, BEGIN + 1)
                for at in (BEGIN + 1, BEGIN + WAIT, BEGIN + 1000 * DAY):
                    found = plan(keys, at)
                    self.assertEqual((True, None, tuple(self.keys)), (found.is_leaving, found.announced, found.signing))
                with self.assertRaisesRegex(RolloverError, "asked to remove its DS records already"):
                    leaving(keys, BEGIN + 2)
                with self.assertRaisesRegex(RolloverError, "asked to remove its DS"):
                    rolled(keys, BEGIN + 2, WAIT)
                with self.assertRaisesRegex(RolloverError, "no rollover waits"):
                    ds_seen(keys, BEGIN + 2, WAIT)

    def test_leaving_early(self) -> None:
        """A key that was not announced yet never is."""
        keys = {1: Times.beginning(BEGIN, WAIT)}
        keys |= leaving(keys, BEGIN + 1)
        self.assertTrue(plan(keys, BEGIN + 1).is_leaving)
        self.assertTrue(plan(keys, BEGIN + WAIT).is_leaving)

    def test_leaving_undone(self) -> None:
        """Without the ends of the announcements, the zone is as if it never had been about to leave."""
        for begun in (False, True):
            if begun:
                self.roll()
            else:
                self.keys = {1: Times.beginning(BEGIN, WAIT)}
            keys = self.keys | leaving(self.keys, BEGIN + 1)
            self.assertTrue(plan(keys, BEGIN + 1).is_leaving)
            again = {tag: attrs.evolve(times, sync_delete=None) for tag, times in keys.items()}
            for at in (BEGIN + 1, BEGIN + WAIT - 1, BEGIN + WAIT):
                self.assertEqual(plan(self.keys, at).announced, plan(again, at).announced)
                self.assertEqual(plan(self.keys, at).step, plan(again, at).step)
            if begun:
                with self.assertRaisesRegex(RolloverError, "too early"):
                    ds_seen(again, BEGIN + WAIT - 1, DAY)
            self.keys = {1: Times.beginning(BEGIN - 30 * DAY, WAIT)}

    def test_end(self) -> None:
        """The end of the last key that signs is told beside each step, with the remedy."""
        end = BEGIN + 90 * DAY
        words = "no key signs any more: before that, roll the key, or take its end away: dnssec-settime -I none -D none"
        for times in ({"inactive": end}, {"delete": end}, {"inactive": end, "delete": end + DAY}):
            keys = {1: attrs.evolve(Times.beginning(BEGIN, WAIT), **times)}
            found = plan(keys, BEGIN)
            self.assertIn("CDS and CDNSKEY announce key 1", found.step.words)
            self.assertIn(words, found.step.words)
            self.assertEqual(BEGIN + WAIT, found.step.at)
            found = plan(keys, BEGIN + WAIT)
            self.assertEqual(f"key 1 signs, and is announced to the parent; but at 2027-04-15 08:00:00 UTC, {words}",
                             found.step.words)  # fmt: skip
            self.assertEqual(end, found.step.at)
            keys[2] = Times(publish=BEGIN, activate=end)
            self.assertNotIn("no key signs", plan(keys, BEGIN + WAIT).step.words)

    def test_rolled_with_end(self) -> None:
        """The old key stays until the parent has the new DS record, also if it was to end before."""
        self.keys[1] = attrs.evolve(self.keys[1], inactive=BEGIN + DAY, delete=BEGIN + DAY)
        self.roll()
        self.check(BEGIN + DAY, (1, 2), 2, "jitsuctl dnssec ds-seen")
        self.keys |= ds_seen(self.keys, BEGIN + 2 * DAY, DAY)
        self.check(BEGIN + 3 * DAY, (2,), 2, "nothing to do")

    def test_by_hand(self) -> None:
        """Times that an operator has set are followed: a key waits, or is only published, or retires."""
        self.keys[2] = attrs.evolve(Times.beginning(BEGIN, WAIT), activate=BEGIN + 10)
        self.keys[1] = attrs.evolve(self.keys[1], inactive=BEGIN + 20, delete=BEGIN + 30)
        for at, states in (
            (-1, {1: KeyState.ACTIVE, 2: KeyState.WAITING}), (0, {1: KeyState.ACTIVE, 2: KeyState.PUBLISHED}),
            (10, {1: KeyState.ACTIVE, 2: KeyState.ACTIVE}), (20, {1: KeyState.RETIRED, 2: KeyState.ACTIVE}),
            (30, {1: KeyState.REMOVED, 2: KeyState.ACTIVE}),
        ):
            self.assertEqual(states, plan(self.keys, BEGIN + at).states)
        self.assertIn("no key signs now: restore", plan({1: Times()}, BEGIN).step.words)
        self.assertIn("not announced; dnssec-settime", plan({1: Times(1, 1, 1)}, BEGIN).step.words)

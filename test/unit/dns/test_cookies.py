"""DNS cookies, the server's half."""

from __future__ import annotations

from typing import Final

from siphashc import siphash
from twisted.trial.unittest import SynchronousTestCase

from jitsu_tw.dns.cookies import CookieResult, Cookies
from jitsu_tw.networks import packed

#: RFC 9018, appendix A.
SECRET: Final = bytes.fromhex("e5e973e5a6b2a43f48e7dc849e37bfcf")
HOST: Final = packed("198.51.100.100")
CLIENT: Final = bytes.fromhex("2464c4abcf10c957")
LEARNT: Final = bytes.fromhex("2464c4abcf10c957010000005cf79f111f8130c3eee29480")
AT: Final = 1559731985

OTHER_SECRET: Final = bytes(range(16))


class VectorTests(SynchronousTestCase):
    """The test vectors of RFC 9018, appendix A, and of SipHash."""

    def test_siphash(self) -> None:
        """The library makes the hash of SipHash's paper (appendix A)."""
        self.assertEqual(0xA129CA6149BE45E5, siphash(bytes(range(16)), bytes(range(15))))

    def test_learning(self) -> None:
        """A.1: a client that has none learns its server cookie."""
        self.assertEqual((CookieResult.CLIENT_ONLY, LEARNT), Cookies(SECRET).answer(CLIENT, HOST, AT))

    def test_renewing(self) -> None:
        """A.2: forty minutes later its cookie is valid, and renewed."""
        renewed = bytes.fromhex("2464c4abcf10c957010000005cf7a871d4a564a1442aca77")
        self.assertEqual((CookieResult.VALID, renewed), Cookies(SECRET).answer(LEARNT, HOST, 1559734385))

    def test_reserved(self) -> None:
        """
        A.3: the reserved octets are hashed as they came, and are zero in the renewed cookie.

        The RFC calls it valid at a time when it is 112 minutes old, which its own section 4.3 does not allow: a minute
        after it was made it is, then it is not; it is renewed in either case.
        """
        cookies, host = Cookies(SECRET), packed("203.0.113.203")
        learnt = bytes.fromhex("fc93fc62807ddb8601abcdef5cf78f71a314227b6679ebf5")
        renewed = bytes.fromhex("fc93fc62807ddb86010000005cf7a9acf73a7810aca2381e")
        self.assertEqual(CookieResult.VALID, cookies.check(learnt, host, 1559727985 + 60))
        self.assertEqual(b"\x01\0\0\0", cookies.answer(learnt, host, 1559727985 + 60)[1][8:12])
        self.assertEqual((CookieResult.STALE, renewed), cookies.answer(learnt, host, 1559734700))

    def test_secrets_change(self) -> None:
        """A.4: an IPv6 client's cookie of the previous secret is valid, and renewed with the new one."""
        new = bytes.fromhex("445536bcd2513298075a5d379663c962")
        old = bytes.fromhex("dd3bdf9344b678b185a6f5cb60fca715")
        host, now = packed("2001:db8:220:1:59de:d0f4:8769:82b8"), 1559741961
        learnt = bytes.fromhex("22681ab97d52c298010000005cf7c57926556bd0934c72f8")
        renewed = bytes.fromhex("22681ab97d52c298010000005cf7c609a6bb79d16625507a")
        self.assertEqual((CookieResult.VALID, renewed), Cookies(new, old).answer(learnt, host, now))
        self.assertEqual((CookieResult.VALID, learnt), Cookies(old, new).answer(learnt, host, now))
        self.assertEqual((CookieResult.BAD, renewed), Cookies(new).answer(learnt, host, now))


class CookiesTests(SynchronousTestCase):
    """`Cookies`."""

    def setUp(self) -> None:
        """Make cookies with the RFC's secret."""
        self.cookies = Cookies(SECRET)

    def test_shapes(self) -> None:
        """A malformed cookie, a client's alone and another server's are distinguished by length and version."""
        for option, expected in (
            (None, CookieResult.NONE),
            (b"", CookieResult.NONE),
            (CLIENT[:7], CookieResult.NONE),
            (CLIENT, CookieResult.CLIENT_ONLY),
            (CLIENT + bytes(7), CookieResult.NONE),
            (CLIENT + bytes(8), CookieResult.BAD),
            (LEARNT[:-1], CookieResult.BAD),
            (LEARNT + b"\0", CookieResult.BAD),
            (CLIENT + bytes(32), CookieResult.BAD),
            (CLIENT + bytes(33), CookieResult.NONE),
            (CLIENT + b"\x02" + LEARNT[9:], CookieResult.BAD),
            (CLIENT + b"\x00" + LEARNT[9:], CookieResult.BAD),
            (LEARNT, CookieResult.VALID),
        ):
            self.assertEqual(expected, self.cookies.check(option, HOST, AT), option)

    def test_version(self) -> None:
        """A cookie with the right hash over another version is not valid (RFC 9018, 4.1)."""
        signed = CLIENT + b"\x02" + LEARNT[9:16]
        forged = signed + siphash(SECRET, signed + bytes((198, 51, 100, 100))).to_bytes(8, "little")
        self.assertEqual(CookieResult.BAD, self.cookies.check(forged, HOST, AT))

    def test_every_octet_counts(self) -> None:
        """A cookie with any bit changed is not valid."""
        for bit in range(8 * len(LEARNT)):
            changed = bytearray(LEARNT)
            changed[bit // 8] ^= 1 << bit % 8
            self.assertNotEqual(CookieResult.VALID, self.cookies.check(bytes(changed), HOST, AT), bit)

    def test_whose(self) -> None:
        """A cookie is its own address's only; one that comes mapped into IPv6 is the same."""
        for host, expected in (
            ("198.51.100.100", CookieResult.VALID),
            ("::ffff:198.51.100.100", CookieResult.VALID),
            ("198.51.100.101", CookieResult.BAD),
            ("2001:db8::1", CookieResult.BAD),
        ):
            self.assertEqual(expected, self.cookies.check(LEARNT, packed(host), AT), host)

    def test_time(self) -> None:
        """A cookie is valid for an hour and five minutes ahead, to the second."""
        for after, expected in (
            (-301, CookieResult.STALE),
            (-300, CookieResult.VALID),
            (0, CookieResult.VALID),
            (3600, CookieResult.VALID),
            (3600.9, CookieResult.VALID),
            (3601, CookieResult.STALE),
            (1 << 31, CookieResult.STALE),
        ):
            self.assertEqual(expected, self.cookies.check(LEARNT, HOST, AT + after), after)

    def test_serial_time(self) -> None:
        """Timestamps wrap around in 2106: what was made before is valid after (RFC 1982)."""
        wrap = 1 << 32
        made = self.cookies.make(CLIENT, HOST, wrap - 10)
        self.assertEqual(CookieResult.VALID, self.cookies.check(made, HOST, wrap + 10))
        self.assertEqual(CookieResult.STALE, self.cookies.check(made, HOST, wrap + 3600))
        ahead = self.cookies.make(CLIENT, HOST, wrap + 10)
        self.assertEqual(CookieResult.VALID, self.cookies.check(ahead, HOST, wrap - 10))

    def test_renewed(self) -> None:
        """A valid cookie goes back as it came, until it is more than half an hour old."""
        for after, kept in ((-300, True), (0, True), (1800, True), (1801, False), (3600, False)):
            result, option = self.cookies.answer(LEARNT, HOST, AT + after)
            self.assertEqual((CookieResult.VALID, kept), (result, option == LEARNT), after)
            self.assertEqual(CookieResult.VALID, self.cookies.check(option, HOST, AT + after + (0 if kept else 3600)))

    def test_answers(self) -> None:
        """A client that sends a client cookie gets it back with a server cookie; one that sends none gets none."""
        fresh = self.cookies.make(CLIENT, HOST, AT)
        for option, expected in (
            (None, b""),
            (b"", b""),
            (CLIENT[:3], b""),
            (CLIENT, fresh),
            (CLIENT + bytes(8), fresh),
            (CLIENT + bytes(16), fresh),
            (CLIENT + bytes(32), fresh),
        ):
            self.assertEqual(expected, self.cookies.answer(option, HOST, AT)[1], option)

    def test_secrets(self) -> None:
        """Servers with one secret know each other's cookies, others do not; a secret of another length is an error."""
        for cookies, expected in (
            (Cookies(SECRET), CookieResult.VALID),
            (Cookies(OTHER_SECRET), CookieResult.BAD),
            (Cookies(OTHER_SECRET, SECRET), CookieResult.VALID),
            (Cookies(SECRET, OTHER_SECRET), CookieResult.VALID),
        ):
            self.assertEqual(expected, cookies.check(LEARNT, HOST, AT))
        for secrets in ((b"",), (SECRET[:15],), (SECRET + b"\0",), (SECRET, b"")):
            self.assertRaises(ValueError, Cookies, *secrets)

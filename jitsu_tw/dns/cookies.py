"""
DNS cookies, the server's half (RFC 7873), made as RFC 9018 says, so that servers with one secret know each other's.

A cookie proves that its sender gets what is sent to the address it sends from, so that a forger of addresses has none.
Nothing is remembered: the cookie is the proof. Nothing here does I/O or reads a clock; times are seconds since 1970,
because cookies outlive processes and are shared by servers. `message.parse` has refused options of impossible length.

::

    option = client cookie (8) | version 1 (1) | reserved (3) | timestamp (4) | SipHash-2-4 (8)
"""

from __future__ import annotations

import enum
from hmac import compare_digest
from typing import Final

from siphashc import siphash

from jitsu_tw.networks import packed

#: The response code for a query that would have needed a valid cookie (RFC 7873, 8).
BADCOOKIE: Final = 23

#: Octets of a secret, a client cookie, a whole option of ours; the least and the most that one may have (RFC 7873, 4).
SECRET: Final = 16
CLIENT: Final = 8
WHOLE: Final = 24
_WITH_SERVER: Final = range(16, 41)

#: Of a cookie's timestamp, in seconds (RFC 9018, 4.3): valid so long, so far ahead, and renewed from this age on.
LIFETIME: Final = 3600
AHEAD: Final = 300
RENEWED: Final = 1800

#: Version 1 and the reserved octets, as we write them.
_VERSION: Final = b"\x01\0\0\0"

#: Timestamps are numbers modulo this (RFC 9018, 4.3; RFC 1982).
_SERIAL: Final = 1 << 32


class CookieResult(enum.Enum):
    """What a query's cookie is worth. All but `VALID` prove nothing (RFC 7873, 5.2); they differ for people."""

    NONE = "no cookie"
    CLIENT_ONLY = "a client cookie only"
    STALE = "a cookie out of its time"
    BAD = "a cookie that we did not make for this client"
    VALID = "a valid cookie"


class Cookies:
    """The cookies of a server, or of all that have the same secret."""

    def __init__(self, secret: bytes, previous: bytes | None = None) -> None:
        """
        Make cookies with *secret* and accept also those made with *previous*.

        Either stage of a change of secrets is said so (RFC 9018, 5): first the new one as *previous*, everywhere; then
        the two exchanged; then, after `LIFETIME`, the old one left out.

        Raises:
            ValueError: a secret has not 16 octets.
        """
        self._secrets = (secret,) if previous is None else (secret, previous)
        if any(len(each) != SECRET for each in self._secrets):
            raise ValueError(f"the secret of DNS cookies must have {SECRET} octets")

    def check(self, option: bytes | None, host: str, now: float) -> CookieResult:
        """
        Return what a cookie is worth.

        Args:
            option: the data of the query's COOKIE option; None if there is none.
            host: the address that it came from.
            now: in seconds since 1970.
        """
        return self._check(option, host, now)[0]

    def make(self, client_cookie: bytes, host: str, now: float) -> bytes:
        """
        Return the whole option, 24 octets, that gives *host* a server cookie.

        Args:
            client_cookie: the first 8 octets of what the client sent; further ones are ignored.
            host: the client's address.
            now: in seconds since 1970.
        """
        signed = client_cookie[:CLIENT] + _VERSION + (int(now) % _SERIAL).to_bytes(4)
        return signed + _hash(self._secrets[0], signed, packed(host))

    def answer(self, option: bytes | None, host: str, now: float) -> tuple[CookieResult, bytes]:
        """
        Return what a cookie is worth and the option for the reply; empty if the query had none.

        A valid cookie goes back as it came, unless it is older than half an hour or not as we would make it now.
        """
        result, keep = self._check(option, host, now)
        if option is None or result is CookieResult.NONE:
            return result, b""
        return result, option if keep else self.make(option, host, now)

    def _check(self, option: bytes | None, host: str, now: float) -> tuple[CookieResult, bool]:
        """Return the result, and whether the cookie need not be renewed."""
        if option is None or len(option) != WHOLE:
            size = 0 if option is None else len(option)
            if size == CLIENT:
                return CookieResult.CLIENT_ONLY, False
            return CookieResult.BAD if size in _WITH_SERVER else CookieResult.NONE, False
        if option[8] != 1:
            return CookieResult.BAD, False
        age = (int(now) - int.from_bytes(option[12:16])) % _SERIAL
        if LIFETIME < age < _SERIAL - AHEAD:
            return CookieResult.STALE, False
        signed, made, address = option[:16], option[16:], packed(host)
        for secret in self._secrets:
            if compare_digest(made, _hash(secret, signed, address)):
                young = age <= RENEWED or age >= _SERIAL - AHEAD
                return CookieResult.VALID, young and secret is self._secrets[0] and option[8:12] == _VERSION
        return CookieResult.BAD, False


def _hash(secret: bytes, signed: bytes, address: bytes) -> bytes:
    """Return the last 8 octets of a cookie (RFC 9018, 4.4); *signed* is what stands before them."""
    return siphash(secret, signed + address).to_bytes(8, "little")

"""
DNS cookies, the server's half (RFC 7873), made as in RFC 9018, so that servers with one secret accept each other's.

A cookie proves that its sender receives packets at the address that it sends from: a client with a forged address has
none. Nothing is remembered: the cookie is the proof. Nothing here does I/O or reads a clock; times are seconds since
1970, because cookies outlive processes and are shared by servers. `message.parse` has refused options of impossible
length.

::

    option = client cookie (8) | version 1 (1) | reserved (3) | timestamp (4) | SipHash-2-4 (8)
"""

from __future__ import annotations

import enum
from hmac import compare_digest
from typing import Final

from siphashc import siphash

#: The response code for a query that would have needed a valid cookie (RFC 7873, 8).
BADCOOKIE: Final = 23

#: Octets of a secret, a client cookie, and a whole option made here; and of any option with a server cookie (RFC 7873,
#: 4).
SECRET: Final = 16
CLIENT: Final = 8
WHOLE: Final = 24
_WITH_SERVER: Final = range(16, 41)

#: Of a cookie's timestamp, in seconds (RFC 9018, 4.3): the greatest age, the furthest future, and the age at which the
#: cookie is renewed.
LIFETIME: Final = 3600
AHEAD: Final = 300
RENEWED: Final = 1800

#: Version 1 and the reserved octets of a cookie made here.
_VERSION: Final = b"\x01\0\0\0"

#: Timestamps are numbers modulo this (RFC 9018, 4.3; RFC 1982).
_SERIAL: Final = 1 << 32


class CookieResult(enum.Enum):
    """The result of checking a query's cookie. Only `VALID` proves anything (RFC 7873, 5.2); the rest is for logs."""

    NONE = "no cookie"
    CLIENT_ONLY = "a client cookie only"
    STALE = "a cookie out of its time"
    BAD = "a cookie that was not made here for this client"
    VALID = "a valid cookie"


class Cookies:
    """The cookies of a server, or of all servers with the same secret."""

    def __init__(self, secret: bytes, previous: bytes | None = None) -> None:
        """
        Make cookies with *secret* and accept also those made with *previous*.

        To change the secret (RFC 9018, 5): first give the new one as *previous*, to all servers; then exchange the two;
        then, after `LIFETIME`, leave the old one out.

        Raises:
            ValueError: a secret has not 16 octets.
        """
        self._secrets = (secret,) if previous is None else (secret, previous)
        if any(len(each) != SECRET for each in self._secrets):
            raise ValueError(f"the secret of DNS cookies must have {SECRET} octets")

    def check(self, option: bytes | None, address: bytes, now: float) -> CookieResult:
        """
        Return whether a cookie is valid, or why not.

        Args:
            option: the data of the query's COOKIE option; None if there is none.
            address: of the client, in octets (`networks.packed`).
            now: in seconds since 1970.
        """
        return self._check(option, address, now)[0]

    def make(self, client_cookie: bytes, address: bytes, now: float) -> bytes:
        """
        Return the whole option, 24 octets, that gives the client at *address* a server cookie.

        Args:
            client_cookie: the data of the client's option; only its first 8 octets are used.
            address: of the client, in octets (`networks.packed`).
            now: in seconds since 1970.
        """
        signed = client_cookie[:CLIENT] + _VERSION + (int(now) % _SERIAL).to_bytes(4)
        return signed + _hash(self._secrets[0], signed, address)

    def answer(self, option: bytes | None, address: bytes, now: float) -> tuple[CookieResult, bytes]:
        """
        Return the result of `check` and the option for the reply; empty if the query had none.

        A valid cookie is returned unchanged, unless it is older than `RENEWED` or was made with the previous secret.
        """
        result, keep = self._check(option, address, now)
        if option is None or result is CookieResult.NONE:
            return result, b""
        return result, option if keep else self.make(option, address, now)

    def _check(self, option: bytes | None, address: bytes, now: float) -> tuple[CookieResult, bool]:
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
        signed, made = option[:16], option[16:]
        for secret in self._secrets:
            if compare_digest(made, _hash(secret, signed, address)):
                young = age <= RENEWED or age >= _SERIAL - AHEAD
                return CookieResult.VALID, young and secret is self._secrets[0] and option[8:12] == _VERSION
        return CookieResult.BAD, False


def _hash(secret: bytes, signed: bytes, address: bytes) -> bytes:
    """Return the last 8 octets of a cookie (RFC 9018, 4.4); *signed* is the cookie before them."""
    return siphash(secret, signed + address).to_bytes(8, "little")

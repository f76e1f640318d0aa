"""
A zone that has every case that signed zones have, and the same zone signed by ``dnssec-signzone`` (BIND's bind9-utils).

Nothing of it is secret or constant: keys and signatures are made anew in each test's folder.
"""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from pathlib import Path

APEX: Final = "jitsu.test"

#: Seconds that any program may take on a slow machine. Nothing is measured here.
PATIENCE: Final = 60.0

_LONG: Final = "".join(f'"{letter * 255}" ' for letter in "abcdefghij")
_MANY: Final = "".join(f"     A 10.2.0.{number}\n     AAAA 2001:db8::{number:x}\n" for number in range(1, 90))

#: Zone cuts, wildcards, aliases, empty non-terminals and strange names, each as a signed zone may have them.
TEXT: Final = rf"""
$ORIGIN {APEX}.
$TTL 300
@    SOA ns hostmaster 2026010100 3600 600 1209600 60
     NS ns
     NS ns2.elsewhere.test.
     MX 10 Mail
     MX 20 mail.elsewhere.test.
     TXT "apex"
     CAA 0 issue "ca.elsewhere.test"
ns   A 127.0.0.1
     AAAA ::1
Mail 120 A 10.1.0.1

; empty non-terminals
a.b.c.d.ent TXT "deep"
x.y.ent     TXT "beside"
-.ent2      TXT "a hyphen"

; wildcards: with names beside them, below them, behind empty non-terminals, and inside each other
*.wild       TXT "wildcard"
*.wild       MX 5 mail
exact.wild   A 10.1.0.2
a.b.wild     A 10.1.0.3
*.c.wild     TXT "inner wildcard"
*.alias      CNAME mail
own.alias    TXT "no alias"
*.far        CNAME www.elsewhere.test.
under.*.star TXT "below a wildcard's name"
*.star       A 10.1.0.4
*.many       A 10.1.0.5
*.many       A 10.1.0.6

; cuts
secure         NS ns.secure
secure         NS ns.elsewhere.test.
secure         DS 12345 13 2 {"ab" * 32}
secure         DS 12345 13 4 {"cd" * 48}
ns.secure      A 10.3.0.1
insecure       NS ns.insecure
ns.insecure    A 10.3.0.2
ns.insecure    AAAA 2001:db8:3::2
insecure2      NS ns.elsewhere.test.
insecure3      NS ns.insecure
own            NS own
own            A 10.3.0.3
a.deep.cut     NS ns.elsewhere.test.
a.only.out     NS ns.elsewhere.test.
b.deep.cut     NS ns.elsewhere.test.
b.deep.cut     DS 23456 15 2 {"ef" * 32}

; DNAME
dname        DNAME target
dname        TXT "beside a DNAME"
a.target     A 10.1.0.7
b.c.target   TXT "two labels"
*.w.target   A 10.1.0.8
outdname     DNAME elsewhere.test.
second       DNAME dname

; aliases
c1 CNAME c2
c2 CNAME c3
c3 CNAME mail
cnone CNAME no.such
cent  CNAME d.ent
cwild CNAME any.wild
ccut  CNAME host.insecure
csec  CNAME host.secure
cdn   CNAME a.dname
cout  CNAME www.elsewhere.test.
loop1 CNAME loop2
loop2 CNAME loop1

; names
dot\.ted        TXT "a dot in a label"
sp\032ace       TXT "a space"
\000\001zero    TXT "zeros"
\255\255        TXT "last"
not\*wild       TXT "an asterisk"
MiXeD.CaSe      TXT "mixed"
{"l" * 63}      TXT "the longest label"
{".".join("m" * 60 for _ in range(3))} TXT "a long name"
{".".join("o" * 50)} TXT "many labels"

; data
big  TXT {_LONG}
many A 10.2.0.0
{_MANY}
all  A 10.1.0.9
     AAAA 2001:db8::9
     MX 1 Mail
     TXT "text" "text"
     SRV 0 0 80 Mail
     NAPTR 1 1 "u" "sip" "!^.*$!x!" .
     HINFO "a" "b"
     RP Mail Mail
     LOC 52 0 0 N 13 0 0 E 10m
     SSHFP 4 2 {"12" * 32}
     TLSA 3 1 1 {"34" * 32}
     CAA 0 issue ";"
     PTR Mail
     SVCB 1 . alpn=h2 ipv4hint=10.1.0.9
     HTTPS 1 svc port=8443
     TYPE65280 \# 4 01020304
svc  HTTPS 0 mail
     SVCB 1 Mail
"""

#: The names of VMs, for a zone that comes signed.
VMS_TEXT: Final = f"""
www.{APEX}.   A 10.0.0.1
cold.{APEX}.  A 10.0.0.2
*.vms.{APEX}. A 10.0.0.3
"""

#: The options of ``dnssec-signzone`` for each kind of denial.
KINDS: Final = {
    "nsec": (),
    "nsec3": ("-3", "aabbccdd", "-H", "5"),
    "optout": ("-3", "-", "-H", "0", "-A"),
}


@attrs.frozen
class SignedZone:
    """
    A signed zone in a file.

    Attributes:
        path: the master file.
        anchor: a file with the DS records of its key, and nothing else.
    """

    path: Path
    anchor: Path


def run(folder: Path, *command: str) -> str:
    """Run *command* in *folder*; return its output. A failure has its messages."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=PATIENCE)
    if done.returncode:
        raise AssertionError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    return done.stdout


def sign(folder: Path, kind: str, *options: str, text: str = TEXT + VMS_TEXT, apex: str = APEX) -> SignedZone:
    """
    Sign a zone with a new key.

    Args:
        folder: gets the files.
        kind: of `KINDS`.
        options: more options of ``dnssec-signzone``.
        text: the content.
        apex: the name of the zone; "." is the root.
    """
    stem = f"{kind}-{apex}"
    unsigned, path, anchor = folder / f"{stem}.unsigned", folder / f"{stem}.zone", folder / f"{stem}.ds"
    key = run(folder, "dnssec-keygen", "-q", "-a", "13", "-f", "KSK", apex).strip()
    unsigned.write_text(f"{text}$INCLUDE {folder}/{key}.key\n")
    run(folder, "dnssec-signzone", "-z", "-P", "-o", apex, "-O", "full", "-f", path.name, *KINDS[kind], *options,
        unsigned.name, f"{key}.private")
    anchor.write_text(run(folder, "dnssec-dsfromkey", "-2", f"{key}.key"))
    return SignedZone(path, anchor)

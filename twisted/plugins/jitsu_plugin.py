"""Tells twistd about jitsu."""

from twisted.application.service import ServiceMaker

jitsu = ServiceMaker(
    "Jitsu",
    "jitsu_tw.tap",
    "An authoritative DNS server that boots virtual machines on demand.",
    "jitsu",
)

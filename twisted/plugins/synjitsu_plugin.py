"""Tells twistd about synjitsu."""

from twisted.application.service import ServiceMaker

synjitsu = ServiceMaker(
    "Synjitsu",
    "synjitsu_tw.tap",
    "Stands in for virtual machines that are booting, and keeps their first packets.",
    "synjitsu",
)

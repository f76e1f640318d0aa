"""Jitsu: an authoritative DNS server that summons virtual machines."""

__version__ = "0.2.0"

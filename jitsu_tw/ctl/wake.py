"""`jitsuctl wake`: send a magic packet, which a network card that listens for it starts its machine by."""

from __future__ import annotations

import ipaddress
import socket
from typing import Final

import click

from jitsu_tw.parsers import mac as parse_mac

#: The port of the service that answers nothing (RFC 863); the card looks at the packet's content only.
DISCARD: Final = 9

#: How often the packet is sent: any may be lost.
TIMES: Final = 3


def magic(mac: str) -> bytes:
    """Return the packet for a MAC: six octets of ones, and the MAC sixteen times (AMD 20213, 2.1)."""
    return b"\xff" * 6 + 16 * bytes.fromhex(mac.replace(":", ""))


@click.command()
@click.argument("mac")
@click.option("--broadcast", default="255.255.255.255", metavar="ADDRESS",
              help="Where it is sent: all of the network, or its broadcast address. [255.255.255.255]")  # fmt: skip
def wake(mac: str, broadcast: str) -> None:
    """Send a magic packet to the network card with this MAC (Wake-on-LAN). No Jitsu need run."""
    try:
        packet, address = magic(parse_mac(mac)), ipaddress.IPv4Address(broadcast)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        try:
            for _ in range(TIMES):
                one.sendto(packet, (str(address), DISCARD))
        except OSError as error:
            raise click.ClickException(f"{address} cannot be reached: {error.strerror}") from error

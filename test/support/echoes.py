"""A client whose connections are open for long: in each round it sends a number on each, and expects the same back."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from demo.server import PATIENCE

if TYPE_CHECKING:
    import subprocess

#: Opens connections to addresses, with keep-alive probes if there is another argument, and sends a number on each
#: whenever standard input has a line with one. Prints the seconds that the answers took, and which connections failed.
PROGRAM: Final = f"""
import json, select, socket, sys, time
addresses = json.loads(sys.argv[1])
open_, failed = {{}}, {{}}
for ip in addresses:
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    one = socket.socket(family)
    one.settimeout({PATIENCE})
    if len(sys.argv) > 2:  # probes after each idle second; the third that is not answered ends the connection
        for option, value in ((socket.TCP_KEEPIDLE, 1), (socket.TCP_KEEPINTVL, 1), (socket.TCP_KEEPCNT, 3)):
            one.setsockopt(socket.IPPROTO_TCP, option, value)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    one.connect((ip, 80))
    open_[one] = b""
print("open", flush=True)
for line in sys.stdin:
    words, begun, took = line.encode().rjust(32, b"."), time.monotonic(), []
    waits = {{}}
    for one in open_:
        one.sendall(words)
        waits[one] = words
    while waits and time.monotonic() < begun + {PATIENCE}:
        for one in select.select(list(waits), [], [], 1)[0]:
            try:
                octets = one.recv(65536)
            except OSError as error:
                octets, failed[one.fileno()] = b"", str(error)
            if not octets or not waits[one].startswith(octets):
                failed.setdefault(one.fileno(), f"{{octets}} in place of {{waits[one]}}")
                del waits[one], open_[one]
                continue
            waits[one] = waits[one][len(octets):]
            if not waits[one]:
                took.append(time.monotonic() - begun)
                del waits[one]
    failed |= {{one.fileno(): "no answer" for one in waits}}
    extra = [one.fileno() for one in select.select(list(open_), [], [], 0)[0]]
    print(json.dumps({{"took": took, "failed": failed, "extra": extra}}), flush=True)
"""


class Echoes:
    """A client with connections that are open."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        """Wait until the connections of *process* are open."""
        self._process = process
        self._number = 0
        self._line()

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def send(self) -> None:
        """Begin a round."""
        assert self._process.stdin is not None
        self._number += 1
        self._process.stdin.write(f"{self._number}\n")
        self._process.stdin.flush()

    def end(self) -> None:
        """Kill the client, so that its kernel closes the connections."""
        self._process.kill()
        self._process.wait()

    def answers(self) -> dict[str, Any]:
        """Return how the round has ended."""
        answers: dict[str, Any] = json.loads(self._line())
        return answers

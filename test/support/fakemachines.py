"""A program that has machines, for the backend of commands: their states are files in a folder."""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Final

from jitsu_tw.backends.preset import CommandSettings, Meaning, read_pair
from test.support import vm

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from jitsu_tw.settings import VM

#: ``machine WORD NAME``: what it is told to do wrong is in a file ``NAME.fault``.
SCRIPT: Final = """\
#!/bin/sh
cd "$(dirname "$0")"
name=$2
fault=$(cat "$name.fault" 2>/dev/null)
become() { echo "$1" > "$name.new"; mv "$name.new" "$name"; echo "$name $1" >> events; }
echo "$1 $name" >> calls
case "$fault" in
"$1 hangs") sleep 60 & echo $! >> sleepers; trap '' TERM; sleep 60 & echo $! >> sleepers; wait; wait ;;
"$1 fails") echo "one of the lines" >&2; printf 'it cannot \\033[1mbe\\n' >&2; exit 3 ;;
"$1 floods") head -c 3000000 /dev/zero | tr '\\0' x; exit 1 ;;
"start is slow") [ "$1" = start ] && { (sleep 0.3; become running) >/dev/null 2>&1 & exit 0; } ;;
"kill is slow") [ "$1" = kill ] && { (sleep 0.3; become off) >/dev/null 2>&1 & exit 0; } ;;
"$1 is nothing") exit 0 ;;
esac
case "$1" in
start) become running ;;
stop|kill) become off ;;
pause) become paused ;;
resume) become running ;;
save) become saved ;;
state) if [ -f "$name" ]; then cat "$name"; else echo "no such machine: $name" >&2; exit 9; fi ;;
packets) echo 42 ;;
events) exec tail -n 0 -F events ;;
esac
"""


#: ``qm`` and ``pct``: `qm(1)`.
QM: Final = """\
#!/bin/sh
cd "$(dirname "$0")"
[ -f "$2" ] || { echo "Configuration file 'nodes/pve1/qemu-server/$2.conf' does not exist" >&2; exit 2; }
case "$1" in
start|resume) echo running > "$2" ;;
shutdown|stop) echo stopped > "$2" ;;
suspend) echo paused > "$2" ;;
status) echo "status: $(cat "$2")" ;;
esac
"""

#: ``systemctl``: `systemctl(1)`.
SYSTEMCTL: Final = """\
#!/bin/sh
cd "$(dirname "$0")"
for unit; do :; done
case "$1" in
start) echo active > "$unit" ;;
stop|kill) echo inactive > "$unit" ;;
show) if [ -f "$unit" ]; then echo loaded; cat "$unit"; else printf 'not-found\\ninactive\\n'; fi ;;
esac
"""

#: What the server lets in.
LET_IN: Final = "PVEAPIToken=jitsu@pve!tests=00000000-0000-4000-8000-000000000001"


def install(path: Path, script: str) -> None:
    """Write a program."""
    path.write_text(script)
    path.chmod(0o755)


class ProxmoxServer:
    """
    A server with the part of the interface of Proxmox VE that starts and stops machines. It is no Proxmox VE.

    Attributes:
        machines: their states, by number.
        url: the beginning of its URLs.
    """

    def __init__(self) -> None:
        """Listen on loopback."""
        self.machines: dict[str, str] = {}
        machines = self.machines

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                """Log nothing."""

            def do_GET(self) -> None:
                self._answer(lambda number: {"status": machines[number].replace("paused", "running"),
                                             "qmpstatus": machines[number], "vmid": int(number)})

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self._answer(self._change)

            def _change(self, number: str) -> str:
                word = self.path.rpartition("/")[2]
                state = {"start": "running", "resume": "running", "suspend": "paused"}.get(word, "stopped")
                threading.Timer(0.05, machines.__setitem__, (number, state)).start()  # a task, which goes on
                return "UPID:pve1:00000001"

            def _answer(self, data: Callable[[str], object]) -> None:
                match = re.fullmatch(r"/api2/json/nodes/pve1/qemu/(\d+)/status/\w+", self.path)
                found = match is not None and match[1] in machines
                status = 401 if self.headers["Authorization"] != LET_IN else 200 if found else 500
                reason = "OK" if found else "Configuration file 'nodes/pve1/qemu-server/0.conf' does not exist"
                self.send_response(status, reason)
                self.end_headers()
                if status == 200 and match is not None:
                    self.wfile.write(json.dumps({"data": data(match[1])}, separators=(",", ":")).encode())

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()


class FakeMachines:
    """
    The program, and its machines.

    Attributes:
        folder: where they are.
    """

    def __init__(self, folder: Path) -> None:
        """Write the program into *folder*."""
        self.folder = folder
        self.program = folder / "machine"
        install(self.program, SCRIPT)
        (folder / "events").touch()

    def commands(self, *without: str, **changes: str) -> tuple[Any, ...]:
        """Return its commands, *without* some, and with others."""
        names = ("start", "stop", "kill", "state", "pause", "resume", "save", "events", "packets")
        given = {name: f"{self.program} {name} ${{name}}" for name in names if name not in without}
        if "events" in given:
            given["events"] = f"{self.program} events"
        return tuple(read_pair(f"{name}={text}") for name, text in {**given, **changes}.items())

    def vm(self, name: str, *without: str, settings: dict[str, Any] | None = None, **changes: Any) -> VM:
        """Return a VM that is one of its machines, which is off."""
        (self.folder / name).write_text("off\n")
        own = CommandSettings(**{
            "commands": self.commands(*without), "words": (("no such machine", Meaning.ABSENT),), **(settings or {})
        })  # fmt: skip
        return vm(name, backend="command", backend_settings=own, **changes)

    def become(self, name: str, state: str) -> None:
        """Change a machine as another program would."""
        (self.folder / f"{name}.new").write_text(f"{state}\n")
        (self.folder / f"{name}.new").rename(self.folder / name)  # at once: it may be read at any moment
        self.tell(f"{name} {state}")

    def tell(self, line: str) -> None:
        """Write a line of the stream of events."""
        with (self.folder / "events").open("a") as file:
            file.write(f"{line}\n")

    def fault(self, name: str, what: str) -> None:
        """Tell the program what to do wrong with a machine."""
        (self.folder / f"{name}.fault").write_text(what)

    def calls(self) -> list[str]:
        """Return the calls of the program so far."""
        file = self.folder / "calls"
        return file.read_text().splitlines() if file.exists() else []

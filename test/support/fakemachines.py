"""A program that has machines, for the backend of commands: their states are files in a folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from jitsu_tw.backends.preset import CommandSettings, Meaning, read_pair
from test.support import vm

if TYPE_CHECKING:
    from pathlib import Path

    from jitsu_tw.settings import VM

#: ``machine WORD NAME``: what it is told to do wrong is in a file ``NAME.fault``.
SCRIPT: Final = """\
#!/bin/sh
cd "$(dirname "$0")"
name=$2
fault=$(cat "$name.fault" 2>/dev/null)
become() { echo "$1" > "$name"; echo "$name $1" >> events; }
echo "$1 $name" >> calls
case "$fault" in
"$1 hangs") sleep 1000 & echo $! >> sleepers; trap '' TERM; sleep 1000 & echo $! >> sleepers; wait; wait ;;
"$1 fails") echo "one of the lines" >&2; printf 'it cannot \\033[1mbe\\n' >&2; exit 3 ;;
"$1 floods") head -c 3000000 /dev/zero | tr '\\0' x; exit 1 ;;
"start is slow") [ "$1" = start ] && { (sleep 0.3; become running) >/dev/null 2>&1 & exit 0; } ;;
"start is nothing") [ "$1" = start ] && exit 0 ;;
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
        self.program.write_text(SCRIPT)
        self.program.chmod(0o755)
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
        (self.folder / name).write_text(f"{state}\n")
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

"""
Runs twistd in a process that kills itself at a chosen moment: a program of its own.

``dying.py before:MODULE.NAME …`` takes the arguments of twistd, and ends by SIGKILL when the function is called;
``after:MODULE.CLASS.NAME …`` when it has returned.
"""

from __future__ import annotations

import os
import pkgutil
import signal
import sys
from typing import Any

from twisted.scripts.twistd import run


def arm(moment: str) -> None:
    """Make the process kill itself at the *moment*, like ``after:libvirt.virConnect.defineXML``."""
    when, _, path = moment.partition(":")
    place, _, name = path.rpartition(".")
    owner = pkgutil.resolve_name(place)
    function = getattr(owner, name)

    def fatal(*args: Any, **options: Any) -> None:
        if when == "after":
            function(*args, **options)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, fatal)


if __name__ == "__main__":
    arm(sys.argv.pop(1))
    sys.exit(run())

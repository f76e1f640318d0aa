"""
Kills what writes to a state, again and again, at moments of chance, and looks whether the state is whole each time.

``python -m test.support.killer PATH TIMES SEED`` prints how often it killed, and what was written; what is wrong ends
it.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pygit2

from jitsu_tw.errors import StoreError
from jitsu_tw.store import history, trees
from jitsu_tw.store.branches import REQUEST
from jitsu_tw.store.history import MAIN, History
from jitsu_tw.store.layout import STATISTICS, VMS
from jitsu_tw.store.requests import Requests
from jitsu_tw.store.tidy import Tidy

UUID = "00000000-0000-4000-8000-0000000000{:02}"

#: Whom the requests are of.
ANN = pygit2.Signature("Ann", "ann@example.org")


def push(state: History, name: str, changes: dict[str, str | None]) -> None:
    """Make a branch below ``request/`` with *changes*, as a push does."""
    head = state.head
    assert head is not None
    tree = state.tree(head.tree, changes)
    commit = state.repository.create_commit(None, ANN, ANN, f"{name}\n", tree, [head.id])
    state.unlock(REQUEST + name)
    state.repository.references.create(REQUEST + name, commit, force=True)


def write_for_ever(path: Path, seed: int) -> None:
    """Commit configurations, statistics and requests, and tidy up, until the process is killed."""
    chance = random.Random(seed)
    trees.WIDE = 100  # type: ignore[misc]  # two VMs
    history.STALE = -1.0  # type: ignore[misc]  # the locks of who was killed before are nobody's
    for module in (history, trees):
        vars(module)["sync_file"] = lambda _: None  # a killed process loses nothing that it has written
    state = History(path)
    state.open()
    requests, tidy = Requests(state), Tidy(state)
    parent, turn = os.getppid(), 0
    while os.getppid() == parent:
        turn += 1
        uuid = UUID.format(chance.randrange(20))
        with contextlib.suppress(StoreError):
            state.commit({f"jitsu/stats/{uuid}/total_starts": str(turn)}, STATISTICS)
            state.commit({f"{VMS}/{uuid}/ip": f"10.0.{seed % 256}.{turn % 256}"}, f"{turn}")
            push(state, f"a{turn % 3}", {f"{VMS}/{uuid}/stop_mode": chance.choice(["destroy", "save"])})
            for name in requests.waiting():
                request = requests.read(name)
                if request is not None and chance.random() < 0.7:
                    changes = {f"{VMS}/{one}/{path}": value
                               for one, change in request.changes.items() for path, value in change.files.items()}
                    requests.accept(request, changes, "merge")
                elif request is not None:
                    requests.reject(request, "no")
            if chance.random() < 0.05:
                tidy.pack()
                tidy.drop()
                tidy.prune()


def check(path: Path) -> None:
    """End with an error if the state is not whole."""
    whole = subprocess.run(["git", "-C", path, "fsck", "--strict", "--no-dangling"], capture_output=True, text=True,
                           check=False)
    # What was killed leaves its lock on a branch, which newer gits take for a branch.
    lines = [line for line in (whole.stderr + whole.stdout).splitlines() if ".lock: badRefContent" not in line]
    wrong = [line for line in lines if not line.startswith("notice")]
    if wrong or (whole.returncode and not whole.stderr):
        raise SystemExit(f"git fsck: {whole.returncode} {wrong}")
    if not History(path).open() and Path(path, MAIN).exists():
        raise SystemExit("the state is empty")


def main(path: Path, times: int, seed: int) -> None:
    """Kill so often."""
    chance = random.Random(seed)
    state = History(path)
    state.open()
    state.commit({f"{VMS}/{UUID.format(one)}/ip": f"10.0.0.{one}" for one in range(20)}, "first")
    for turn in range(times):
        child = os.fork()
        if not child:
            os.setpgid(0, 0)  # the gits that tidy up are killed with it
            try:
                write_for_ever(path, seed + turn)
            finally:
                traceback.print_exc()
                os._exit(1)
        with contextlib.suppress(ProcessLookupError):
            os.setpgid(child, child)
        time.sleep(chance.random() * 0.04)
        if os.waitpid(child, os.WNOHANG)[0]:
            raise SystemExit("it ended by itself")
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        check(path)
    log = subprocess.run(["git", "-C", path, "rev-list", "--count", "main"], capture_output=True, text=True, check=True)
    print(f"killed {times} times; {log.stdout.strip()} commits")  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))

"""
Make a repository for the state: its settings, and the hooks by which git asks Jitsu about each push (`push`).

A hook is a shell script that runs the same Python as Jitsu: git runs it as the user who pushes, with that user's
`PATH`.
"""

from __future__ import annotations

import pwd
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pygit2

if TYPE_CHECKING:
    from collections.abc import Iterator

#: A line of each hook of Jitsu's; a hook without it is the operator's.
MARK: Final = "# Jitsu's: "

HOOK: Final = """#!/bin/sh
{mark}{purpose}. It is written anew when Jitsu starts.
python={python}
if [ ! -x "$python" ]; then
    echo "{name}: $python is not there, or not for this user: start Jitsu, or run jitsuctl init, to renew the hooks" >&2
    exit 1
fi
exec "$python" -I -c 'import sys
root = sys.argv.pop(1)
if root not in sys.path:
    sys.path.insert(0, root)
from jitsu_tw.store import push
push.main()' {root} {name}
"""

#: The hooks and their purposes.
PURPOSES: Final = {
    "pre-receive": "says who may push what, and how large it may be",
    "proc-receive": "waits until the running Jitsu has merged or rejected a request, and tells the sender",
}

#: The hooks of earlier versions.
FORMER: Final = ("update", "post-receive")

#: Settings of git that a state needs; a setting that the repository has already is the operator's, and kept.
CONFIGURATION: Final = {
    # While Jitsu writes, only Jitsu knows which objects are in use.
    "gc.auto": "0",
    "receive.autogc": "false",
    # Pushed objects are checked; fewer objects than the limit are unpacked, so that none is a delta of another.
    "receive.fsckObjects": "true",
    "receive.maxInputSize": "64m",
    "receive.unpackLimit": "10000",
    "core.bigFileThreshold": "1m",  # larger files are not read into memory
    "receive.procReceiveRefs": "refs/heads/request",
    "core.logAllRefUpdates": "false",
}


def make(path: Path) -> pygit2.Repository:
    """
    Return the bare repository at *path* with Jitsu's hooks; create it if there is none.

    Raises:
        OSError: it has hooks that are not Jitsu's.
    """
    repository = pygit2.init_repository(str(path), bare=True, initial_head="main")
    for foreign in renew(repository):
        raise OSError(f"{foreign} is not Jitsu's: move it away")
    return repository


def renew(repository: pygit2.Repository) -> list[Path]:
    """Write the missing settings, and the hooks of this version; return the hooks that are the operator's."""
    for key, value in CONFIGURATION.items():
        if key not in repository.config:
            repository.config[key] = value
    folder = Path(repository.path, "hooks")
    folder.mkdir(exist_ok=True)
    for name in FORMER:
        if _is_ours(folder / name):
            (folder / name).unlink()
    return list(_renew(folder))


def _renew(folder: Path) -> Iterator[Path]:
    root = Path(__file__).parents[2]
    for name, purpose in PURPOSES.items():
        hook = folder / name
        text = HOOK.format(mark=MARK, purpose=purpose, name=name, python=shlex.quote(sys.executable),
                           root=shlex.quote(str(root)))  # fmt: skip
        if hook.exists() and not _is_ours(hook):
            yield hook
        elif not hook.exists() or hook.read_text() != text:
            new = hook.with_name(f"{name}.new")
            new.write_text(text)
            new.chmod(0o755)
            new.replace(hook)


def _is_ours(hook: Path) -> bool:
    return hook.exists() and MARK in hook.read_text(errors="replace")


def user(uid: int) -> str:
    """Return the name of the user *uid*, or the number if there is none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)

"""
A new repository for the state, with the hooks that make it safe and pleasant to push to.

``update`` says who may push what: `main` is Jitsu's own, and who comes with ``JITSU_VM`` in the environment (as sshd
can set it for a key) may only ask for changes of that VM. ``post-receive`` tells the pusher what became of the request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pygit2

if TYPE_CHECKING:
    from pathlib import Path

UPDATE: Final = r"""#!/bin/sh
# Jitsu's: says who may push what to its state. $1 is the branch, $3 what it shall be (zeros: nothing).
refuse() {
    echo "$*" >&2
    exit 1
}
if [ -n "${JITSU_VM-}" ]; then
    case $1 in
    "refs/heads/request/$JITSU_VM/"*) exit 0 ;;
    "refs/heads/rejected/$JITSU_VM/"*) ;;
    *) refuse "you may push to refs/heads/request/$JITSU_VM/... only" ;;
    esac
fi
case $1 in
refs/heads/main) refuse "main is Jitsu's own: push to refs/heads/request/NAME" ;;
refs/heads/rejected/*) expr "$3" : '0*$' >/dev/null || refuse "rejected/... is Jitsu's own; you may delete it" ;;
refs/heads/*) ;;
*) refuse "push to refs/heads/request/NAME" ;;
esac
"""

POST_RECEIVE: Final = r"""#!/bin/sh
# Jitsu's: tells who has pushed a request what became of it, within five seconds.
while read -r old new ref; do
    case $ref in
    refs/heads/request/*) name=${ref#refs/heads/request/} ;;
    *) continue ;;
    esac
    expr "$new" : '0*$' >/dev/null && continue
    tries=0
    while [ "$(git rev-parse --quiet --verify "$ref")" = "$new" ]; do
        tries=$((tries + 1))
        if [ $tries -gt 50 ]; then
            echo "Jitsu has not looked at $name yet; it will when it runs"
            continue 2
        fi
        sleep 0.1
    done
    if [ "$(git rev-parse --quiet --verify "refs/heads/rejected/$name^")" = "$new" ]; then
        git log -1 --format=%B "refs/heads/rejected/$name"
    else
        echo "$name is merged"
    fi
done
"""

#: git must not tidy up by itself: while Jitsu writes, only Jitsu knows what is in use. What is pushed is looked at.
CONFIGURATION: Final = {
    "gc.auto": "0",
    "receive.autogc": "false",
    "receive.fsckObjects": "true",
    "receive.maxInputSize": "64m",
    "core.logAllRefUpdates": "false",
}


def make(path: Path) -> pygit2.Repository:
    """Return a new bare repository at *path*, or the one that is there, with our hooks."""
    repository = pygit2.init_repository(str(path), bare=True, initial_head="main")
    for key, value in CONFIGURATION.items():
        repository.config[key] = value
    folder = path / "hooks"
    folder.mkdir(exist_ok=True)
    for name, text in (("update", UPDATE), ("post-receive", POST_RECEIVE)):
        hook = folder / name
        hook.write_text(text)
        hook.chmod(0o755)
    return repository

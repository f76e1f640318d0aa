"""
The hooks that git runs when a push arrives at the state (`hooks`): as the user who pushes, in a process of their own.

``pre-receive`` refuses, before anything is stored, pushes by the wrong user, to branches that are not for the sender,
and beyond the bounds; it needs no running Jitsu for that. ``proc-receive`` (git 2.29 or newer, githooks(5)) creates the
branch of a request, waits until Jitsu has merged or rejected it, and makes the push end with status 1 if it is
rejected.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

from jitsu_tw.store.branches import REJECTED, REQUEST
from jitsu_tw.store.lock import holder

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from typing import BinaryIO

#: The most requests of one sender that wait at the same time.
MOST_WAITING: Final = 100

#: The most branches of one push.
MOST_UPDATES: Final = 1000

#: The most objects of one push by a sender for one VM (fewer than those that git leaves in a pack, `hooks`), and their
#: octets: merged objects stay for ever, others for minutes.
MOST_OBJECTS: Final = 1000
MOST_OCTETS: Final = 1 << 18

#: How many trees of all VMs such a push may have besides: each commit has one, which is large where there are many VMs.
MOST_TREES: Final = 4

#: The longest name of a branch, in octets.
LONGEST_BRANCH: Final = 220

#: Seconds for which a push waits until the running Jitsu has handled its requests.
PATIENCE: Final = 30.0

#: Seconds between two checks of that.
PAUSE: Final = 0.05


@attrs.frozen
class Update:
    """
    One branch of a push.

    Attributes:
        old: its commit before, in hexadecimal; zeros if there is none.
        new: its commit after; zeros to delete it.
        branch: its full name.
    """

    old: str
    new: str
    branch: str

    @property
    def removes(self) -> bool:
        """Whether the push deletes the branch."""
        return not self.new.strip("0")

    @property
    def request(self) -> str:
        """The name of the request; "" if the branch is none, or the push deletes it."""
        return self.branch.removeprefix(REQUEST) if self.branch.startswith(REQUEST) and not self.removes else ""


def wrong_user(path: Path, uid: int) -> str:
    """Return why the user *uid* may not push to the state at *path*; "" if it may."""
    owner = path.stat().st_uid
    if owner == uid:
        return ""
    from jitsu_tw.store.hooks import user  # noqa: PLC0415

    name = user(owner)
    return (f"this state belongs to {name}, and you push as {user(uid)}, whose files Jitsu could not write: push as "
            f"{name}, or by git push --receive-pack='sudo -u {name} git-receive-pack'")


def refusal(update: Update, vm: str) -> str:
    """
    Return why the sender may not push *update*; "" if it may.

    Args:
        update: one branch of the push.
        vm: the only VM that the sender may change; "" for all.
    """
    branch = update.branch
    if not branch.isprintable() or len(branch.encode()) > LONGEST_BRANCH:
        return f"a branch has a name that can be printed, of at most {LONGEST_BRANCH} octets"
    own = branch.startswith(f"{REQUEST}{vm}/") or (update.removes and branch.startswith(f"{REJECTED}{vm}/"))
    if vm and not own:
        return f"you may push to {REQUEST}{vm}/... only"
    if branch == "refs/heads/main":
        return "main is Jitsu's own: push to refs/heads/request/NAME"
    if branch.startswith(REJECTED) and not update.removes:
        return "rejected/... is Jitsu's own; you may delete it"
    if not branch.startswith("refs/heads/"):
        return "push to refs/heads/request/NAME"
    return ""


def pre_receive(path: Path, lines: Iterable[bytes], environment: Mapping[str, str]) -> Iterator[str]:
    """Yield why the push of *lines* to the state at *path* is refused; nothing if it is not."""
    if why := wrong_user(path, os.geteuid()):
        yield why
        return
    vm = environment.get("JITSU_VM", "")
    updates = [Update(*line.decode(errors="replace").rstrip("\n").split(" ", 2)) for line in lines]
    if len(updates) > MOST_UPDATES:
        yield f"a push has at most {MOST_UPDATES} branches"
        return
    reasons = list(filter(None, (refusal(update, vm) for update in updates)))
    quarantine = environment.get("GIT_QUARANTINE_PATH")
    count, octets = _brought(Path(quarantine)) if vm and quarantine else (0, 0)
    if count > MOST_OBJECTS:
        reasons.append(f"a push has at most {MOST_OBJECTS} objects")
    yield from reasons[:1]
    requests = [update for update in updates if update.request]
    if not reasons and requests:
        yield from _beyond(path, requests, quarantine, octets)


def _brought(quarantine: Path) -> tuple[int, int]:
    """Return how many objects a push has brought, and their octets; a pack counts as more objects than allowed."""
    count = octets = 0
    for folder, _, names in os.walk(quarantine):
        count += len(names) if not any(name.endswith(".pack") for name in names) else MOST_OBJECTS + 1
        octets += sum(Path(folder, name).stat().st_size for name in names)
    return count, octets


def _beyond(path: Path, updates: Sequence[Update], quarantine: str | None, octets: int) -> Iterator[str]:
    """
    Yield why requests are beyond the bounds, or too many; they are rejected with the reason, and not stored.

    Args:
        path: of the state.
        updates: the requests.
        quarantine: the folder of the push's objects until git accepts it.
        octets: how many a sender for one VM has brought there.
    """
    import pygit2  # noqa: PLC0415 -- these take longer to load than the rest takes to run

    from jitsu_tw.store.bounds import Reader, RefusedError, TooLargeError  # noqa: PLC0415
    from jitsu_tw.store.history import FAULTS, MAIN, History  # noqa: PLC0415
    from jitsu_tw.store.requests import Request, Requests, can_be_named, guest_of, shortened  # noqa: PLC0415

    history = History(path)
    history.attach()
    repository, requests = history.repository, Requests(history)
    waiting = {*requests.waiting(), *(update.request for update in updates)}
    for one in sorted({guest_of(update.request) for update in updates}):
        if sum(guest_of(name) == one for name in waiting) > MOST_WAITING:
            yield f"{MOST_WAITING} requests {f'of {one} ' if one else ''}wait already; push when Jitsu has taken them"
            return
    main = history.at(MAIN)
    head = main.id if main is not None else None
    most = MOST_OCTETS + MOST_TREES * (Reader(repository).width(head) if octets > MOST_OCTETS else 0)
    if quarantine is not None:
        repository.odb.add_disk_alternate(quarantine)
    too_many = f"a push has at most {most} octets; this one has {octets}" if octets > most else None
    for update in updates:
        name, commit = update.request, pygit2.Oid(hex=update.new)
        if not can_be_named(name):
            yield "the name of a request is too long"
            continue
        reason = too_many
        try:
            if not reason:
                Reader(repository).measure(commit, head, requests.shared())
        except TooLargeError as error:
            reason = str(error)
        except (RefusedError, *FAULTS):
            continue  # the running Jitsu rejects it with the reason, and keeps it
        if reason:
            requests.reject(Request(name, commit, kept=False), reason)
            yield shortened(f"{name}: {reason}")


def _packet(stream: BinaryIO) -> bytes | None:
    """Return git's next line (gitprotocol-common(5), pkt-line); None for a flush packet."""
    size = int(stream.read(4) or b"0000", 16)
    return stream.read(size - 4).rstrip(b"\n") if size else None


def _packets(stream: BinaryIO) -> list[bytes]:
    return list(iter(lambda: _packet(stream), None))


def _answer(stream: BinaryIO, *lines: str) -> None:
    for line in lines:
        octets = line.encode(errors="replace")
        stream.write(b"%04x%b" % (len(octets) + 4, octets))
    stream.write(b"0000")
    stream.flush()


def proc_receive(path: Path, read: BinaryIO, write: BinaryIO) -> Iterator[str]:
    """Carry out the updates that git sends on *read*, answer on *write*; yield lines for the sender."""
    _packets(read)
    _answer(write, "version=1")
    updates = [Update(*line.decode(errors="replace").split(" ", 2)) for line in _packets(read)]
    failed = {update: _move(path, update) for update in updates}
    answers = []
    end = time.monotonic() + PATIENCE
    for update in updates:
        reason = failed[update]
        if not reason and update.request:
            said, reason = _outcome(path, update, end)
            yield said
        answers.append(f"ng {update.branch} {next(iter(reason.splitlines()), '')}" if reason else f"ok {update.branch}")
    _answer(write, *answers)


def _move(path: Path, update: Update) -> str:
    """Carry out *update*; return git's error, or "" if there is none."""
    what = ("-d", update.branch) if update.removes else (update.branch, update.new)
    return _git(path, "update-ref", *what, update.old)[1]


def _outcome(path: Path, update: Update, end: float) -> tuple[str, str]:
    """Wait for the outcome of a request until *end*; return it for the sender, and, if it was rejected, for git."""
    name = update.request
    while _commit(path, update.branch) == update.new:
        if holder(path) is None:
            return f"{name} waits: no Jitsu runs with this state now; the next one to start will handle it", ""
        if time.monotonic() > end:
            return f"{name} waits: Jitsu has not handled it yet; if its state cannot be used, healthz says so", ""
        time.sleep(PAUSE)
    if _commit(path, REJECTED + name):
        return _git(path, "log", "-1", "--format=%B", REJECTED + name)[0], "rejected by Jitsu"
    return f"{name} is merged", ""


def _commit(path: Path, branch: str) -> str:
    """Return the commit of *branch*, in hexadecimal; "" if there is none."""
    with contextlib.suppress(OSError):
        return (path / branch).read_text(errors="replace").strip()
    return _git(path, "rev-parse", "--quiet", "--verify", branch)[0]


def _git(path: Path, *arguments: str) -> tuple[str, str]:
    """Return git's standard output, and its error message, "" if it succeeds."""
    run = subprocess.run(["git", *arguments], cwd=path, check=False, capture_output=True)  # noqa: S603, S607
    error = run.stderr.decode(errors="replace").strip() or f"git ended with {run.returncode}"
    return run.stdout.decode(errors="replace").strip(), error if run.returncode else ""


def main() -> None:
    """Run the hook that the command line names; the working directory is the repository."""
    path = Path(os.environ.get("GIT_DIR", ".")).absolute()
    refused = False
    if sys.argv[1] == "pre-receive":
        for reason in pre_receive(path, sys.stdin.buffer, os.environ):
            refused = True
            print(reason, file=sys.stderr, flush=True)  # noqa: T201
    else:
        for line in proc_receive(path, sys.stdin.buffer, sys.stdout.buffer):
            print(line, file=sys.stderr, flush=True)  # noqa: T201
    raise SystemExit(refused)

"""
jitsuctl's commands on the state itself: its values, its past, and requests to change it.

They read the repository, and push requests as branches of it, as anybody with git can; so they work without the
control endpoint, and all but `merge` and `revert` without a running Jitsu.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import time
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import pygit2

from jitsu_tw.ctl import show
from jitsu_tw.ctl.show import FailedError, NoAnswerError, as_json_option
from jitsu_tw.store import hooks
from jitsu_tw.store.bounds import Reader, RefusedError
from jitsu_tw.store.branches import REJECTED, REQUEST
from jitsu_tw.store.history import FAULTS, MAIN, files, folder_id, subtree
from jitsu_tw.store.layout import FORGOTTEN, MADE, NAME, VMS, in_folder
from jitsu_tw.store.merge import three_way

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

#: Seconds that a running Jitsu may take to handle a request.
PATIENCE: Final = 10.0

_NEWEST_FIRST: Final = pygit2.enums.SortMode.TOPOLOGICAL | pygit2.enums.SortMode.TIME

#: Seconds between two looks at the request.
_PAUSE: Final = 0.05

#: How many of the last commits may have come since a request was merged.
_LAST: Final = 100


state_option = click.option(
    "--state",
    type=click.Path(path_type=Path, readable=False),
    default=Path("/var/lib/jitsu/state.git"),
    envvar="JITSU_STATE",
    show_default=True,
    metavar="PATH",
    help="The state: Jitsu's persistdb.",
)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[pygit2.Repository]:
    """Open the state at *path*; root becomes its owner first. A state that cannot be read is FailedError."""
    try:
        if os.geteuid() == 0:
            owner = path.stat()
            os.setegid(owner.st_gid)
            os.seteuid(owner.st_uid)
        repository = pygit2.Repository(str(path), pygit2.enums.RepositoryOpenFlag.NO_SEARCH)
        if MAIN not in repository.references:
            raise FailedError(f"{path} has no branch main yet; Jitsu writes it when it runs")
        yield repository
    except FAULTS as error:
        remedy = "name Jitsu's persistdb with --state"
        if "Permission denied" in str(error):
            remedy = "run this as root, or as the user that Jitsu runs as"
        raise FailedError(f"{path}: {error}; {remedy}") from error


def commit_at(repository: pygit2.Repository, name: str) -> pygit2.Commit:
    """Return the commit that *name* means: a branch of the state, or what git calls a revision."""
    try:
        return repository.revparse_single(name).peel(pygit2.Commit)
    except (KeyError, ValueError, pygit2.GitError) as error:
        raise FailedError(f"there is no commit or branch {name} in the state") from error


def _vms(repository: pygit2.Repository, *commits: pygit2.Commit | None) -> list[dict[str, str]]:
    """Return, for each of *commits*, which may be anybody's, the values of the VMs in which the first two differ."""
    reader = Reader(repository)
    try:
        sides = [reader.folders(commit) for commit in commits]
        differ = [uuid for uuid in sides[0].keys() | sides[1].keys() if sides[0].get(uuid) != sides[1].get(uuid)]
        found: list[dict[str, str]] = []
        for side in sides:
            found.append({})
            for uuid in differ:
                Reader(repository).check(uuid, side.get(uuid))
                values = reader.values(uuid, side.get(uuid))
                found[-1] |= in_folder(uuid, values)
    except RefusedError as error:
        raise FailedError(str(error)) from error
    return found


def _before(commit: pygit2.Commit) -> pygit2.Commit | None:
    return commit.parents[0] if commit.parents else None


def _last_change(commit: pygit2.Commit, *, of_templates: bool = True) -> pygit2.Commit:
    """
    Return the last commit, from *commit* on, that has changed a VM; the first one of all if none has.

    Unless *of_templates*, those that make and forget the VMs of templates are passed over.
    """
    while (before := _before(commit)) is not None and (
        folder_id(before, VMS) == folder_id(commit, VMS)
        or (not of_templates and commit.message.startswith((MADE, FORGOTTEN)))
    ):
        commit = before
    return commit


def _changes(old: Mapping[str, str], new: Mapping[str, str]) -> list[dict[str, str | None]]:
    return [
        {"path": path, "old": old.get(path), "new": new.get(path)}
        for path in sorted(old.keys() | new.keys())
        if old.get(path) != new.get(path)
    ]


@click.command()
@click.argument("path", default="")
@state_option
@as_json_option
def tree(path: str, state: Path, *, as_json: bool) -> None:
    """Print what the state says, all of it or below PATH: each value at the end of a dotted line."""
    with opened(state) as repository:
        everything = files(commit_at(repository, MAIN).tree)
    below = path.strip("/")
    values = {one: value for one, value in everything.items() if below in {"", one} or one.startswith(f"{below}/")}
    if not values:
        raise FailedError(f"the state has nothing at /{below}")
    if as_json:
        show.dump({f"/{one}": value for one, value in values.items()})
        return
    longest = max(len(one) + len(value) for one, value in values.items()) + 4
    width = max(longest, min(79, shutil.get_terminal_size().columns))
    for one, value in values.items():
        show.say(f"/{one}".ljust(width - len(value), ".") + value)


@click.command()
@click.argument("vm", default="")
@click.option("-n", "number", default=20, show_default=True, help="The most commits to show; 0: all.")
@state_option
@as_json_option
def log(vm: str, number: int, state: Path, *, as_json: bool) -> None:
    """Show what has changed the configuration, of all VMs or of the one with the name or uuid VM; the last first."""
    with opened(state) as repository:
        folder = VMS if not vm else f"{VMS}/{_uuid(repository, vm)}"
        found = []
        for commit in repository.walk(commit_at(repository, MAIN).id, _NEWEST_FIRST):
            if all(folder_id(commit, folder) != folder_id(parent, folder) for parent in (commit.parents or (None,))):
                found.append(commit)
            if len(found) == number > 0:
                break
        entries = [
            {"commit": str(one.id), "time": one.commit_time, "author": one.author.name,
             "message": one.message.strip()}
            for one in found
        ]  # fmt: skip
    if as_json:
        show.dump(entries)
        return
    for one in entries:
        when = datetime.fromtimestamp(int(str(one["time"]))).astimezone().strftime("%Y-%m-%d %H:%M:%S")
        first, *more = str(one["message"]).splitlines()
        show.say(f"{str(one['commit'])[:10]}  {when}  {one['author']}: {first}")
        for line in more:
            if line:
                show.say(f"    {line}")


def _uuid(repository: pygit2.Repository, vm: str) -> str:
    """Return the uuid of the VM that is or was called *vm*; commits between those of Jitsu may have anything."""
    reader = Reader(repository)
    for commit in repository.walk(commit_at(repository, MAIN).id):
        folder = subtree(commit.tree, VMS)
        for entry in folder or ():
            if entry.name == vm:
                return vm
            name = entry[NAME] if isinstance(entry, pygit2.Tree) and NAME in entry else None
            with contextlib.suppress(RefusedError):
                if name is not None and reader.value(name.id, NAME).strip() == vm:
                    return str(entry.name)
    raise FailedError(f"the state never had a VM {vm}")


@click.command()
@click.argument("commit", default="")
@click.argument("other", default="")
@state_option
@as_json_option
def diff(commit: str, other: str, state: Path, *, as_json: bool) -> None:
    """
    Show how configurations differ, value by value.

    Without arguments: the last change. With COMMIT: what it changed, or, of a branch that is not merged, would change.
    With two: from the one to the other.
    """
    with opened(state) as repository:
        head = commit_at(repository, MAIN)
        new = commit_at(repository, other or commit or MAIN)
        if other:
            old: pygit2.Commit | None = commit_at(repository, commit)
        elif not commit:
            new = _last_change(new)
            old = _before(new)
        elif repository.descendant_of(head.id, new.id) or head.id == new.id:
            old = _before(new)
        else:
            base = repository.merge_base(head.id, new.id)
            old = None if base is None else repository[base].peel(pygit2.Commit)
        changes = _changes(*_vms(repository, old, new))
    if as_json:
        show.dump(changes)
        return
    for one in changes:
        was = "(not there)" if one["old"] is None else one["old"]
        now = "(not there)" if one["new"] is None else one["new"]
        show.say(f"/{one['path']}: {was} -> {now}")


@click.command()
@click.argument("branch")
@state_option
def merge(branch: str, state: Path) -> None:
    """Ask the running Jitsu to merge BRANCH, which is in the state, and wait for what it says."""
    with opened(state) as repository:
        name = branch.removeprefix("refs/heads/").removeprefix("rejected/").replace("/", "-")
        commit = commit_at(repository, branch)
        if branch.removeprefix("refs/heads/").startswith("rejected/") and commit.parents:
            commit = commit.parents[0]
        ask(repository, name, commit.id)


@click.command()
@click.argument("commit", default="")
@state_option
def revert(commit: str, state: Path) -> None:
    """
    Ask the running Jitsu to undo what COMMIT has changed, and wait for what it says.

    Without COMMIT: what the last commit that has changed a VM has, other than to make or forget a VM of a template.
    """
    with opened(state) as repository:
        head = commit_at(repository, MAIN)
        undone = commit_at(repository, commit) if commit else _last_change(head, of_templates=False)
        is_, was, ours = _vms(repository, undone, _before(undone), head)
        merged, conflicts = three_way(is_, ours, was)
        if conflicts:
            raise FailedError("\n".join(["that has been changed again since:", *conflicts]))
        if merged == ours:
            name = commit or str(undone.id)[:10]
            raise FailedError(f"{name} has changed no VM, or nothing of that is left; jitsuctl log lists commits")
        tree_id = with_vms(repository, head.tree, ours, merged)
        who = who_is(repository)
        subject = next(iter(undone.message.splitlines()), "")
        message = f'Revert "{subject}"\n\nThis undoes {undone.id}.\n'
        made = repository.create_commit(None, who, who, message, tree_id, [head.id])
        ask(repository, f"revert-{str(undone.id)[:10]}", made)


def who_is(repository: pygit2.Repository) -> pygit2.Signature:
    """Return who the user is, as git knows; else the name of the account."""
    try:
        return repository.default_signature
    except (KeyError, pygit2.GitError):
        return pygit2.Signature(getpass.getuser(), f"{getpass.getuser()}@localhost")


def with_vms(
    repository: pygit2.Repository, tree: pygit2.Tree, before: Mapping[str, str], values: Mapping[str, str]
) -> pygit2.Oid:
    """Write *tree* with *values* in the place of *before*."""
    index = pygit2.Index()
    index.read_tree(tree)
    for path in before.keys() - values.keys():
        index.remove(path)
    for path, value in values.items():
        if before.get(path) != value:
            blob = repository.create_blob(f"{value}\n".encode())
            index.add(pygit2.IndexEntry(path, blob, pygit2.enums.FileMode.BLOB))
    return index.write_tree(repository)


def ask(repository: pygit2.Repository, name: str, commit: pygit2.Oid) -> pygit2.Commit:
    """Make *commit* a request, wait until it is handled, print the result, and return the last commit then."""
    branch, references = REQUEST + name, repository.references
    references.create(branch, commit, force=True)
    end = time.monotonic() + PATIENCE
    while branch in references:
        if time.monotonic() > end:
            message = f"nobody has looked at request/{name} within {PATIENCE:g} s: does a Jitsu run with this state?"
            raise NoAnswerError(f"{message} The request waits for it")
        time.sleep(_PAUSE)
    if REJECTED + name in references:
        raise FailedError(references[REJECTED + name].peel(pygit2.Commit).message.strip())
    last = commit_at(repository, MAIN)
    # Jitsu may have committed more since.
    walk = islice(repository.walk(last.id), _LAST)
    merged = next((one for one in walk if commit in one.parent_ids and one.message.startswith("Merge ")), last)
    what = [line for line in merged.message.splitlines()[2:-1] if line] if merged.message.startswith("Merge ") else []
    show.say("; ".join(["merged", *what]))
    return merged


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
def init(path: Path) -> None:
    """Make a state at PATH, or put Jitsu's hooks and settings into the one that is there."""
    try:
        hooks.make(path)
    except FAULTS as error:
        raise FailedError(f"{path}: {error}") from error
    show.say(f"{path} is ready; begin Jitsu with --persistdb {path}")

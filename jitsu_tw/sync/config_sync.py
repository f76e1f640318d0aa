"""
One configuration for several Jitsus: what is changed at one node is soon at all nodes.

It is shared by the branch `main` of a repository elsewhere, a plain bare one, that holds the configuration only. What
this node has changed is pushed there, on top of what is there; what other nodes have changed is merged and applied by
the rules of a request (`change_requests`). Where both have changed one value, or cannot be beside each other, what was
pushed first holds: the other is put aside as ``rejected/…``, here and there. What only this node cannot run, for its
zones or hypervisors differ, is in its state all the same, and tried again: the other nodes keep it.
"""

from __future__ import annotations

import random
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import attrs
from twisted.internet.defer import succeed
from twisted.logger import Logger

from jitsu_tw.coroutines import deferred, report, spawn
from jitsu_tw.errors import ConfigError, StoreError
from jitsu_tw.store.layout import NAME
from jitsu_tw.store.merge import settle
from jitsu_tw.store.requests import Change
from jitsu_tw.store.sync_branch import FETCHED, THERE, SyncBranch

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from twisted.internet.defer import Deferred

    from jitsu_tw.store.git import GitStore
    from jitsu_tw.store.merge import Settled
    from jitsu_tw.store.remote import Remote
    from jitsu_tw.store.sync_branch import Divergence
    from jitsu_tw.sync.change_requests import ChangeRequests
    from jitsu_tw.sync.reconfigure import ConfigChange, LiveConfig
    from jitsu_tw.sync.trigger import SyncTrigger
    from jitsu_tw.vm.fleet import Fleet

#: Seconds after which the shared branch is fetched though no node has told of a change.
EVERY: Final = 60.0

#: Seconds after a failure until the next try; then twice as many, up to `EVERY`.
AT_FIRST: Final = 2.0

#: Seconds for which the VMs may be looked for before the first time: then what the file says of them is in the state.
FOUND_WITHIN: Final = 10.0

#: Seconds between two looks at that, and between two tries of a merge that must wait. After a push that came too late,
#: the next try comes after a random time: up to this many seconds after the first one, five times as many at most.
PAUSE: Final = 0.2

#: How often in a row other nodes may push first; then it is a failure.
TRIES: Final = 30


class ConfigSync:
    """
    Merges what other nodes have changed, and pushes what this node has changed.

    Attributes:
        trouble: why the configuration is not shared; empty if it is.
    """

    log = Logger()

    def __init__(
        self,
        store: GitStore,
        requests: ChangeRequests,
        running: LiveConfig,
        fleet: Fleet,
        remote: Remote,
        node: str,
        trigger: SyncTrigger,
    ) -> None:
        """Share by *remote* what *store* has and *running* runs, when *trigger* says so; *node* is this node's name."""
        self._store, self._requests, self._running, self._fleet = store, requests, running, fleet
        self._branch = SyncBranch(store.history, store.requests, node)
        self._remote, self._trigger = remote, trigger
        self.trouble = ""
        self._left: Mapping[str, str] = {}
        self._unread: Mapping[str, str] = {}
        self._done: Deferred[None] = succeed(None)

    # When.

    def start(self) -> None:
        """Begin; the VMs are being looked for."""
        self._done = self._run()

    def stop(self) -> Deferred[None]:
        """End it; what is being applied is applied before."""
        self._remote.stop()
        self._trigger.end()
        return self._done

    @deferred
    async def _run(self) -> None:
        trigger, wait = self._trigger, AT_FIRST
        for _ in range(round(FOUND_WITHIN / PAUSE)):
            if not await trigger.pause(PAUSE) or all(machine.uuid for machine in self._fleet.machines.values()):
                break
        while not trigger.ended:
            try:
                await self._share(behind=trigger.begin())
            except Exception as error:  # noqa: BLE001 -- wide: a fault of Jitsu must not end the sharing
                trigger.failed()
                self._failed(error)
                await trigger.pause(AT_FIRST)
                await trigger.wait(wait - AT_FIRST)
                wait = min(2 * wait, EVERY)
            else:
                self._went_well()
                wait = AT_FIRST
                await trigger.wait(EVERY)

    def _failed(self, error: Exception) -> None:
        """Log the beginning of trouble."""
        if self._trigger.ended:
            return
        if not isinstance(error, StoreError):
            report(self.log)
        elif not self.trouble:
            self.log.error("the configuration is not shared, but served: {error}", error=str(error))
        self.trouble = str(error) or repr(error)

    def _went_well(self) -> None:
        if self.trouble:
            self.log.info("the configuration is shared again")
        self.trouble = ""

    # What.

    async def _share(self, *, behind: bool) -> None:
        """
        Merge what is shared, if this node is *behind*, and push what it has; again, if another node pushed first.

        Raises:
            StoreError: the repository elsewhere, or the state, cannot be used.
        """
        for tried in range(TRIES):
            if self._trigger.ended:
                return
            if behind:
                await self._fetch()
                while not await self._running.lock.run(self._merge):
                    if not await self._trigger.pause(PAUSE):
                        return
            branches = await self._store.run(self._branch.offer)
            if not branches:
                return
            if await self._remote.push(branches):
                commit = await self._store.run(self._branch.pushed, branches)
                if commit:
                    self._trigger.merged(commit)
                    self.log.info("what we have changed is shared, as {commit}", commit=commit[:10])
                    self._fleet.cluster.publish(commit)
                return
            behind = True
            await self._trigger.pause(random.uniform(0, PAUSE * min(tried, 5)))  # noqa: S311
        raise StoreError(f"{self._remote.url}: other nodes have pushed just before this one {TRIES} times in a row")

    async def _fetch(self) -> None:
        await self._store.run(self._branch.prepare_fetch)
        if not await self._remote.fetch(THERE, FETCHED):
            await self._store.run(self._branch.forget)

    async def _merge(self) -> bool:
        """Merge and apply what was fetched; return whether that could be done: a VM may have to leave first."""
        divergence = await self._store.run(self._branch.compare, tuple(self._left))
        sides = (files for one in divergence.vms.values() for files in (one.ours, one.theirs))
        if self._running.leaving & {files.get(NAME) for files in sides}:
            return False
        settled, change = await self._settle(divergence)
        *others, last = divergence.subjects or ("what there is",)
        message = "\n".join((f"Shared: {last}", "", *others, "")) + change.lines
        changed = await self._store.run(self._branch.merge, divergence, settled, message)
        if changed is None:
            return False
        self._fleet.store.config.merged(changed)
        if settled.run:
            applied = but_made(change, self._fleet.cluster.reservations.made)
            await self._running.apply(applied)
            if applied != change:  # the state is to have those again
                spawn(self.log, self._fleet.store.save_configuration())
            self.log.info("{words}", words="; ".join(line for line in message.splitlines() if line))
        self._report(divergence, settled)
        self._trigger.merged(str(divergence.commit or ""))
        return True

    async def _settle(self, divergence: Divergence) -> tuple[Settled, ConfigChange]:
        """Return what becomes of the VMs, and what that means for those that run."""
        unknown: dict[str, str] = {}
        with suppress(ConfigError):  # `settle` finds out what is wrong, and where
            merged = {uuid: one.merged for uuid, one in divergence.vms.items()}
            await self._requests.prepare(_changes(divergence, merged))
        while True:
            settled = settle(divergence.vms, lambda run: self._refused(divergence, run), unknown)
            change = self._requests.parse(_changes(divergence, settled.run))
            missing = await self._requests.missing(change)
            if missing.keys() <= unknown.keys():
                return settled, change
            unknown |= {uuid: str(error) for uuid, error in missing.items()}

    def _refused(self, divergence: Divergence, run: Mapping[str, Mapping[str, str]]) -> str:
        """Return why VMs of these files cannot be run beside the others; "" if they can."""
        try:
            self._requests.parse(_changes(divergence, run))
        except ConfigError as error:
            return str(error)
        return ""

    def _report(self, divergence: Divergence, settled: Settled) -> None:
        """Log each VM and folder that could not be taken, once."""
        for uuid, reason in settled.left.items():
            if self._left.get(uuid) != reason:
                self.log.error("{vm}: what others share of it is not run here, but will be when it can be: {reason}",
                               vm=_name(divergence, uuid), reason=reason)
        for uuid, reason in settled.aside.items():
            self.log.warn("{vm}: others had changed it before, so ours is below rejected/ now: {reason}",
                          vm=_name(divergence, uuid), reason=reason)
        for uuid, reason in divergence.unread.items():
            if self._unread.get(uuid) != reason:
                self.log.error("what is shared has something that is no VM, left alone: {reason}", reason=reason)
        self._left, self._unread = settled.left, divergence.unread


def but_made(change: ConfigChange, made: Collection[str]) -> ConfigChange:
    """
    Return *change* without the removal of VMs that templates have *made*, as all nodes of the cluster know.

    The nodes tell each other by the coordinator when such a VM is forgotten. A removal that comes by git may be that of
    an earlier VM of the same name.
    """
    return attrs.evolve(change, removed=tuple(name for name in change.removed if name not in made))


def _changes(divergence: Divergence, run: Mapping[str, Mapping[str, str]]) -> dict[str, Change]:
    """Return the changes that make VMs of these files of those that we have."""
    return {
        uuid: Change(divergence.vms[uuid].ours, files)
        for uuid, files in run.items()
        if divergence.vms[uuid].changes(files)
    }


def _name(divergence: Divergence, uuid: str) -> str:
    one = divergence.vms[uuid]
    return (one.theirs or one.ours).get(NAME, uuid)

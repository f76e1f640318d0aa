"""
One configuration for several Jitsus: what is changed with one of us is with the others soon.

It is shared by the branch `main` of a repository elsewhere, a plain bare one, that holds the configuration only. What
we have changed is pushed there, on top of what is there; what others have changed is merged and applied by the rules of
a request (`change_requests`). Where both have changed one value, or cannot be beside each other, what was pushed first
holds: ours is put aside as ``rejected/…``, here and there. What we alone cannot run, for our zones or hypervisors are
others, is in our state all the same, and tried again: what is one node's trouble shall not be taken from the others.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from zope.interface import implementer

from jitsu_tw.errors import ConfigError, StoreError
from jitsu_tw.ijitsu import IPublications
from jitsu_tw.store.layout import in_words
from jitsu_tw.store.merge import settle
from jitsu_tw.store.requests import Change
from jitsu_tw.store.sync_branch import FETCHED, THERE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from jitsu_tw.store.git import GitStore
    from jitsu_tw.store.merge import Settled
    from jitsu_tw.store.remote import Remote
    from jitsu_tw.store.sync_branch import News
    from jitsu_tw.sync.change_requests import ChangeRequests, ParsedRequest
    from jitsu_tw.sync.reconfigure import LiveConfig
    from jitsu_tw.vm.fleet import Fleet

#: Where the state has a VM's name.
NAME: Final = "config/name/0"

#: Without news, it is fetched after so many seconds.
EVERY: Final = 60.0

#: After a failure, it is tried again after so many seconds, then twice as many, up to `EVERY`.
AT_FIRST: Final = 2.0

#: Before the first time, the VMs have so many seconds to be found: then what the file says of them is in the state.
FOUND_WITHIN: Final = 10.0

#: Between two looks at that, and before one more try where others were quicker, in seconds.
PAUSE: Final = 0.2

#: So often others may be quicker; then it is a failure.
TRIES: Final = 30


@implementer(IPublications)
class ConfigSync:
    """
    Takes what others have changed, and gives them what we have.

    Attributes:
        trouble: why that does not go on; empty if it does.
        tell: is told the shared branch's commit, in hexadecimal, when there is something new for the others.
    """

    log = Logger()

    def __init__(
        self,
        store: GitStore,
        branches: ChangeRequests,
        running: LiveConfig,
        fleet: Fleet,
        remote: Remote,
        node: str,
        reactor: Any,
    ) -> None:
        """Share by *remote* what *store* has and *running* runs; the others know us as *node*."""
        self._shared, self._branches, self._running, self._fleet = store.share(node), branches, running, fleet
        self._remote, self._reactor = remote, reactor
        self.trouble = ""
        self.tell: Callable[[str], None] = lambda _: None
        self._known = ""
        self._left: Mapping[str, str] = {}
        self._unread: Mapping[str, str] = {}
        self._behind = True
        self._wanted = self._ended = self._deaf = False
        self._alarm: Deferred[None] | None = None
        self._done: Deferred[None] = succeed(None)
        store.changed = self._soon

    # When.

    def start(self) -> None:
        """Begin; the VMs are being found."""
        self._done = Deferred.fromCoroutine(self._go_on())

    def stop(self) -> Deferred[None]:
        """End it; what is being applied is applied before."""
        self._ended = True
        self._remote.stop()
        self._wake()
        return self._done

    def published(self, commit: str) -> None:
        """Hear that there is something new; *commit*, in hexadecimal, is the shared branch's last, if that is known."""
        if not commit or commit != self._known:
            self._behind = True
            self._soon()

    def _soon(self) -> None:
        """Share now, or once what is under way is done; after a failure, a while later."""
        self._wanted = True
        if not self._deaf:
            self._wake()

    def _wake(self) -> None:
        alarm, self._alarm = self._alarm, None
        if alarm is not None:
            alarm.callback(None)

    async def _rest(self, seconds: float, *, deaf: bool = False) -> None:
        """Wait so many seconds, or until there is something to do, unless we are *deaf*."""
        if self._ended or (self._wanted and not deaf):
            return
        self._alarm, self._deaf = Deferred(), deaf
        timer = self._reactor.callLater(seconds, self._wake)
        await self._alarm
        self._deaf = False
        if timer.active():
            timer.cancel()

    async def _go_on(self) -> None:
        until = self._reactor.seconds() + FOUND_WITHIN
        while not self._ended and self._reactor.seconds() < until:
            await self._rest(PAUSE, deaf=True)
            if all(machine.uuid for machine in self._fleet.machines.values()):
                break
        wait = AT_FIRST
        while not self._ended:
            self._wanted = False
            behind, self._behind = self._behind, False
            try:
                await self._share(behind=behind)
            except Exception as error:  # noqa: BLE001 -- wide: a fault of ours must not end the sharing
                self._behind = True
                self._failed(error)
                await self._rest(AT_FIRST, deaf=True)
                await self._rest(wait - AT_FIRST)
                wait = min(2 * wait, EVERY)
            else:
                self._went_well()
                wait = AT_FIRST
                before = self._reactor.seconds()
                await self._rest(EVERY)
                self._behind |= self._reactor.seconds() >= before + EVERY

    def _failed(self, error: Exception) -> None:
        """Log the beginning of trouble."""
        if self._ended:
            return
        if not isinstance(error, StoreError):
            self.log.failure("unexpected, please report")
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
        Take what is new, if we are *behind*, and push what we have; again, if others were quicker.

        Raises:
            StoreError: the repository elsewhere, or our own, cannot be had.
        """
        for turn in range(TRIES):
            if self._ended:
                return
            if behind:
                await self._fetch()
                while not await self._branches.turn.run(self._take):
                    await self._rest(PAUSE, deaf=True)
                    if self._ended:
                        return
            branches = await self._shared.offer()
            if not branches:
                return
            if await self._remote.push(branches):
                commit = await self._shared.shared(branches)
                if commit:
                    self._known = commit
                    self.log.info("what we have changed is shared, as {commit}", commit=commit[:10])
                    self.tell(commit)
                return
            behind = True
            await self._rest(random.uniform(0, PAUSE * min(turn, 5)), deaf=True)  # noqa: S311
        message = f"{self._remote.url}: others were quicker {TRIES} times"
        raise StoreError(message)

    async def _fetch(self) -> None:
        await self._shared.ready()
        if not await self._remote.fetch(THERE, FETCHED):
            await self._shared.none()

    async def _take(self) -> bool:
        """Merge and apply what was fetched; say whether that could be done now: a VM may have to leave first."""
        news = await self._shared.news(self._left)
        if self._running.leaving & {files.get(NAME) for one in news.vms.values() for files in (one.ours, one.theirs)}:
            return False
        settled, understood = await self._settle(news)
        step = understood.step
        message = (
            "\n".join((f"Shared: {news.words[-1] if news.words else 'what there is'}", "", *news.words[:-1], ""))
            + in_words("added", [vm.name for vm in step.come])
            + in_words("changed", [vm.name for vm in step.become])
            + in_words("removed", step.go)
        )
        changed = await self._shared.take(news, settled, message)
        if changed is None:
            return False
        self._fleet.stats.merged(changed)
        if settled.run:
            self._running.apply(step)
            self.log.info("{words}", words="; ".join(line for line in message.splitlines() if line))
        self._report(news, settled)
        self._known = str(news.commit or "")
        return True

    async def _settle(self, news: News) -> tuple[Settled, ParsedRequest]:
        """Return what becomes of the VMs, and what that means for those that run."""
        unknown: dict[str, str] = {}
        while True:
            settled = settle(news.vms, lambda run: self._refused(news, run), unknown)
            understood = self._branches.understand(_changes(news, settled.run))
            strangers = await self._branches.strangers(understood)
            if strangers.keys() <= unknown.keys():
                return settled, understood
            unknown |= {uuid: str(error) for uuid, error in strangers.items()}

    def _refused(self, news: News, run: Mapping[str, Mapping[str, str]]) -> str:
        """Return why VMs of these files cannot be run beside the others; "" if they can."""
        try:
            self._branches.understand(_changes(news, run))
        except ConfigError as error:
            return str(error)
        return ""

    def _report(self, news: News, settled: Settled) -> None:
        """Log what could not be had, once each."""
        for uuid, reason in settled.left.items():
            if self._left.get(uuid) != reason:
                self.log.error("{vm}: what others share of it is not run here, but will be when it can be: {reason}",
                               vm=_name(news, uuid), reason=reason)
        for uuid, reason in settled.aside.items():
            self.log.warn("{vm}: others had changed it before, so ours is below rejected/ now: {reason}",
                          vm=_name(news, uuid), reason=reason)
        for uuid, reason in news.unread.items():
            if self._unread.get(uuid) != reason:
                self.log.error("what is shared has something that is no VM, left alone: {reason}", reason=reason)
        self._left, self._unread = settled.left, news.unread


def _changes(news: News, run: Mapping[str, Mapping[str, str]]) -> dict[str, Change]:
    """Return the changes that make VMs of these files of those that we have."""
    return {
        uuid: Change(news.vms[uuid].ours, said)
        for uuid, said in run.items()
        if news.vms[uuid].new or said != news.vms[uuid].ours
    }


def _name(news: News, uuid: str) -> str:
    one = news.vms[uuid]
    return (one.theirs or one.ours).get(NAME, uuid)

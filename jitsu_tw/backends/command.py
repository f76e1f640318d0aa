"""
Machines that commands of the operator's start, stop and observe: containers, units, machines behind a network card.

What a machine does is asked by its command `state`: before and after each change, when a line of a stream of events
has its name, and, where there is no stream, from time to time while it is up.
"""

from __future__ import annotations

import re
import signal
from functools import partial, wraps
from math import inf
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, TypeVar, cast

import attrs
from twisted.internet.defer import Deferred, DeferredLock, fail, succeed
from twisted.internet.task import deferLater
from twisted.logger import Logger
from zope.interface import implementer

from jitsu_tw.backends import definition
from jitsu_tw.backends.bridge import Ports
from jitsu_tw.backends.foreground import Foreground
from jitsu_tw.backends.preset import POWERS, PRESETS, CommandSettings, check_vm, commands_of, uuid_of
from jitsu_tw.backends.programs import OverdueError, Programs, Stream, failed, tail, why_not_there
from jitsu_tw.coroutines import deferred, spawn
from jitsu_tw.errors import BackendError, BackendLost, ConfigError, NoSuchVM
from jitsu_tw.ijitsu import Guest, IBackend, IWatcher, Memory, Power, Start
from jitsu_tw.neighbours import mac_of
from jitsu_tw.parsers import is_number
from jitsu_tw.reconnect import Reconnector
from jitsu_tw.settings import VM, Mode

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Iterator

    from jitsu_tw.backends.preset import Commands, Preset
    from jitsu_tw.processes import Ended

#: Seconds between two calls of `state` for a machine that is about to run or to end: at first, and at most.
ASK_AGAIN: Final = 0.005
ASK_AGAIN_AT_MOST: Final = 1.0

#: Seconds between two hints of a stream that are told of one machine.
HINT_EVERY: Final = 0.5

#: In characters: the longest event that is told as it is; what is longer has all that is known of a machine.
LONGEST_EVENT: Final = 100

#: The state of a machine that a stop in this mode leaves.
_PAUSES: Final = frozenset({Mode.PAUSE, Mode.SUSPEND})

#: What divides the words of a line of events.
_BETWEEN: Final = re.compile(r"[^\w.@:-]+")

#: What a program that runs in the foreground has of its commands when these are not known: it is never started again.
_KEPT: Final = CommandSettings(commands=(("run", ("false",)),))

#: Why a VM that the configuration has no more is left alone.
_LEFT_ALONE: Final = (
    "its commands went with its lines in the file, so it is NOT stopped if it runs: stop it by hand; or write its lines"
    " back, and take them out again when it is off"
)

P = ParamSpec("P")
T = TypeVar("T")


@attrs.define(eq=False)
class _Machine:
    """
    A machine.

    Attributes:
        uuid: of the VM.
        vm: its settings.
        commands: its commands.
        next_commands: those that it is to have as soon as these are not needed to end it any more.
        lock: its commands run one after the other.
        power: what it was when it was asked last; None if it was not there.
        stream: tells its changes.
        poll: the next call of `state`.
        hint: tells the watcher of a change.
        reason: why there is one.
        hinted: when the last one was told, or a command was run that causes some, in seconds of the reactor.
        shown_until: until when its power counts, once, as a command has just shown it, in seconds of the reactor.
        ends_until: until when it may take to shut down, in seconds of the reactor.
        pause: seconds until `state` is called again while it does.
    """

    uuid: str
    vm: VM
    commands: Commands
    next_commands: Commands
    lock: DeferredLock = attrs.field(factory=DeferredLock)
    power: Power | None = Power.OFF
    stream: Stream | None = None
    poll: Any = None
    hint: Any = None
    reason: str = ""
    hinted: float = -inf
    shown_until: float = -inf
    ends_until: float = -inf
    pause: float = ASK_AGAIN

    @property
    def is_kept(self) -> bool:
        """Whether it is a program in the foreground."""
        return "run" in self.commands.argv

    def end_calls(self) -> None:
        """Make the calls to come no more."""
        for call in (self.poll, self.hint):
            if call is not None and call.active():
                call.cancel()


def _in_order(
    method: Callable[Concatenate[CommandBackend, _Machine, P], Coroutine[Deferred[Any], Any, T]],
) -> Callable[Concatenate[CommandBackend, str, P], Deferred[T]]:
    """Make a method return a Deferred, and begin when the calls for its machine before it have ended."""

    @wraps(method)
    def call(self: CommandBackend, uuid: str, /, *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        def begin(one: _Machine) -> Deferred[T]:
            return Deferred.fromCoroutine(method(self, one, *args, **kwargs))

        try:
            one = self._machine(uuid)
        except NoSuchVM as error:
            return fail(error)
        return one.lock.run(begin, one).addErrback(self._failed)

    return call


@implementer(IBackend)
class CommandBackend:
    """Machines of one preset."""

    log = Logger()
    reachable = True
    has_uuids = False

    def __init__(self, preset: Preset, connect: str = "", reactor: Any = None) -> None:  # noqa: ARG002
        """Take a hypervisor's URI, as all backends do; it has no meaning here."""
        if reactor is None:
            from twisted.internet import reactor  # noqa: PLC0415
        self._preset, self._reactor = preset, reactor
        self._programs = Programs(reactor, preset.environment)
        self._foreground = Foreground(self._programs, self._changed, reactor)
        self._ports = Ports()
        self._machines: dict[str, _Machine] = {}
        self._streams: dict[tuple[str, ...], Stream] = {}
        self._ending: list[Deferred[None]] = []
        self._watcher: IWatcher | None = None
        self._reconnector: Reconnector[None] = Reconnector(
            str(self), self._open, self._opened, self._disconnected, lambda _: None, reactor
        )

    def __str__(self) -> str:
        """Return its name for messages."""
        return self._preset.name

    # Connecting.

    def examine(self, vm: VM) -> tuple[str, ...]:
        """Check the VM's commands; a program that is not there is no error, unless its whole path is given."""
        try:
            check_vm(vm, self._preset.name)
            commands = commands_of(vm, self._preset)
        except ConfigError as error:
            raise definition.wrong(vm, error) from error
        for words in commands.argv.values():
            if words[0].startswith("/") and (why := why_not_there(words[0], "")):
                raise definition.wrong(vm, BackendError(f"{why}; its commands need it"))
        return tuple(self._advice(commands))

    def connect(self, watcher: IWatcher) -> None:
        """Tell *watcher* of a connection when the program of the commands is there."""
        self._watcher = watcher
        self._reconnector.begin()

    def _open(self) -> Deferred[None]:
        why = self._why_lost()
        return fail(BackendLost(why)) if why else succeed(None)

    def _why_lost(self) -> str:
        """Return why the program that all machines need cannot be run; empty if it can, or if there is none."""
        program = self._preset.program
        return why_not_there(program, self._programs.environment["PATH"]) if program else ""

    def _opened(self, _: None) -> None:
        if self._watcher is not None:
            self._watcher.connected(cast("IBackend", self))

    def _disconnected(self, reason: str) -> None:
        if self._watcher is not None:
            self._watcher.lost(cast("IBackend", self), reason)

    def _failed(self, failure: Any) -> Any:
        """Look for the program of all machines again if that is missing; not for that of a single one."""
        if failure.check(BackendLost):
            why = self._why_lost()
            if not why:
                raise BackendError(failure.getErrorMessage()) from failure.value
            self._reconnector.again(why)
        return failure

    def close(self) -> Deferred[None]:
        """End the commands that run, and wait for their end. Machines go on, those in the foreground too."""
        return Deferred.fromCoroutine(self._close())

    async def _close(self) -> None:
        self._reconnector.end()
        self._watcher = None
        for one in self._machines.values():
            one.end_calls()
        streams, self._streams = self._streams, {}
        endings = [*self._ending, *(stream.end() for stream in streams.values())]
        await self._programs.close()
        for ending in endings:
            await ending
        for one in self._machines.values():
            await one.lock.run(lambda: None)  # the calls that are under way have ended
        self._foreground.close()

    # Observing.

    @deferred
    async def look_up(self, vm: VM) -> str:
        """
        Return the uuid: the configuration's, or one made of the name.

        Raises:
            NoSuchVM: `state` says that there is no such machine.
        """
        uuid = uuid_of(vm, self._preset.name)
        one = self._machines.get(uuid)
        try:
            commands = commands_of(vm, self._preset)
        except ConfigError as error:
            commands = self._left(vm, uuid, error) if one is None else one.commands
        if one is None:
            one = self._machines[uuid] = _Machine(uuid, vm, commands, commands)
        one.vm, one.next_commands = vm, commands
        self._renew(one)
        if one.commands is not commands:
            message = "{name}: is up by its former commands; the new ones, with or without run, hold when it is off"
            self.log.warn(message, name=vm.name)
        self._foreground.find(uuid)
        try:
            await self.state(uuid)
        except NoSuchVM:
            if vm.removed:
                self._forget(one)
            raise
        return uuid

    def _renew(self, one: _Machine) -> None:
        """Take a machine's new commands, unless it is up and these could not end it: with `run`, or without."""
        is_up = one.power in {Power.RUNNING, Power.PAUSED}
        if is_up and ("run" in one.next_commands.argv) is not one.is_kept:
            return
        one.commands, before = one.next_commands, one.stream
        one.stream = self._stream(one.commands)
        if before not in {None, one.stream}:
            self._end_unused()

    def _left(self, vm: VM, uuid: str, error: ConfigError) -> Commands:
        """
        Return the commands of a VM that was removed from the configuration: a program in the foreground needs none.

        The state has its last commands, but others can write to the state, too.

        Raises:
            NoSuchVM: it is no such program that runs.
        """
        self._foreground.find(uuid)
        if self._foreground.power(uuid) is Power.OFF:
            raise NoSuchVM(_LEFT_ALONE if vm.removed else str(error)) from error
        return commands_of(attrs.evolve(vm, backend_settings=_KEPT), PRESETS["exec"])

    def _machine(self, uuid: str) -> _Machine:
        if uuid not in self._machines:
            raise NoSuchVM(f"no VM {uuid}")
        return self._machines[uuid]

    def _forget(self, one: _Machine) -> None:
        one.end_calls()
        self._machines.pop(one.uuid, None)
        self._end_unused()

    @_in_order
    async def state(self, one: _Machine) -> Power:
        """Return what its command `state` says; once, what its command `start` has shown, if events tell of changes."""
        if one.power is not None and self._reactor.seconds() < one.shown_until:
            one.shown_until = -inf
            self._poll_later(one)
            return one.power
        return await self._ask(one)

    async def _ask(self, one: _Machine, use: str = "state") -> Power:
        """
        Return what `state` says, or whether the program in the foreground runs; *use* as in `Programs.run`.

        Raises:
            NoSuchVM: there is no such machine.
            BackendError: what it says is none of the words, or it has failed.
        """
        if one.is_kept:
            one.power = self._foreground.power(one.uuid)
            self._renew(one)
            return one.power
        one.shown_until = -inf
        argv = one.commands.argv["state"]
        ended = await self._programs.run(argv, one.commands.deadlines["state"], use)
        meaning = one.commands.meaning(ended.code, ended.out, ended.err)
        if meaning is None:
            raise BackendError(_unknown(ended) if ended.code == 0 else failed(argv, ended))
        one.power = POWERS.get(meaning)
        self._renew(one)
        self._poll_later(one)
        if one.power is None:
            raise NoSuchVM(f"{self} knows no {one.vm.name}; make it, and Jitsu finds it")
        return one.power

    async def _until(self, one: _Machine, power: Power, within: float, use: str) -> bool:
        """Ask until the machine is in this state, and return whether that was within *within* seconds."""
        late, pause = self._reactor.seconds() + within, ASK_AGAIN
        while await self._ask(one, use) is not power:
            if (left := late - self._reactor.seconds()) <= 0:
                return False
            await deferLater(self._reactor, min(pause, left))
            pause = min(2 * pause, ASK_AGAIN_AT_MOST)
        return True

    def ready(self, uuid: str) -> Deferred[None]:  # noqa: ARG002
        """Fire at once: commands do not tell what a guest is doing."""
        return succeed(None)

    def guest(self, uuid: str) -> Deferred[Guest]:  # noqa: ARG002
        """Return one without MACs: only the configuration knows them for certain."""
        return succeed(Guest())

    @_in_order
    async def traffic(self, one: _Machine) -> int | None:
        """Return what the command `packets` says, or what the port of a bridge of this host counts for its MAC."""
        argv = one.commands.argv.get("packets")
        if argv is None:
            counts = [self._ports.sent(mac) for mac in self._macs(one.vm)]
            return sum(filter(None, counts)) if counts and None not in counts else None
        text = (await self._programs.done(argv, one.commands.deadlines["state"], "state")).strip()
        if not is_number(text):
            raise BackendError(f"its command packets says {tail(text) or 'nothing'}, which is no number of packets")
        return int(text)

    @staticmethod
    def _macs(vm: VM) -> tuple[str, ...]:
        """Return its MACs, or those of this host's neighbours at its addresses, if no stand-in may have these."""
        if vm.mac or vm.use_synjitsu:
            return vm.mac
        try:
            return tuple(dict.fromkeys(mac for ip in vm.ip if (mac := mac_of(str(ip))) is not None))
        except OSError:
            return ()

    def cpu_time(self, uuid: str) -> Deferred[float | None]:  # noqa: ARG002
        """Return None: nobody counts it."""
        return succeed(None)

    @_in_order
    async def obstacle(self, one: _Machine, mode: Mode) -> str | None:
        """Return that it has no command for *mode*."""
        needed = "pause" if mode in _PAUSES else "save" if mode is Mode.SAVE else ""
        is_there = not needed or needed in one.commands.argv or (one.is_kept and needed == "pause")
        return None if is_there else f"it has no command {needed}"

    @_in_order
    async def advice(self, one: _Machine) -> tuple[str, ...]:
        """Return which of the programs of its commands are not there."""
        return tuple(self._advice(one.commands))

    def _advice(self, commands: Commands) -> Iterator[str]:
        for program in dict.fromkeys(words[0] for words in commands.argv.values()):
            if why := why_not_there(program, self._programs.environment["PATH"]):
                yield why
        if commands.argv.keys().isdisjoint({"stop", "kill", "run"}):
            yield "it has no command stop, so it stays up until it goes down by itself"

    def memory(self, uuid: str) -> Deferred[Memory | None]:  # noqa: ARG002
        """Return None: nobody can tell."""
        return succeed(None)

    # Changing.

    @_in_order
    async def start(self, one: _Machine) -> Start:
        """
        Run `resume` for a machine that is paused, else `start`, and call `state` until it runs.

        A preset's `start` is run at once for a machine that was off when it was asked last; if that fails, it is asked.
        """
        late = self._reactor.seconds() + one.commands.deadlines["start"]
        if one.power is Power.OFF and one.commands.repeatable and not one.is_kept:
            try:
                return await self._booted(one, Power.OFF, late)
            except OverdueError:
                raise
            except BackendError:
                if await self._ask(one, "start") is Power.OFF:
                    raise
        before = await self._ask(one, "start")
        if before is Power.RUNNING:
            return Start.RAN
        if before is Power.PAUSED and await self._is_resumed(one):
            return self._is_up(one, Start.RESUMED)
        if before is Power.PAUSED:
            await self._end(one, Mode.DESTROY)
        return await self._booted(one, before, late)

    async def _booted(self, one: _Machine, before: Power, late: float) -> Start:
        """Start a machine that is off, or saved, and wait until it runs, at the latest until *late*."""
        if one.is_kept:
            self._foreground.start(one.uuid, one.vm.name, one.commands.argv["run"])
        else:
            await self._do(one, "start", "start")
        if one.commands.at_once:
            one.power = Power.RUNNING
            self._poll_later(one)
        else:
            within = 0.0 if one.is_kept else late - self._reactor.seconds()
            if not await self._until(one, Power.RUNNING, within, "start"):
                raise BackendError("its command start has ended well, but it does not run")
        return self._is_up(one, Start.RESTORED if before is Power.SAVED else Start.BOOTED)

    def _is_up(self, one: _Machine, how: Start) -> Start:
        """Tell that a machine has been started."""
        if one.stream is not None and one.stream.runs:
            one.shown_until = self._reactor.seconds() + HINT_EVERY
        self._changed(one.uuid, how.value)
        return how

    async def _is_resumed(self, one: _Machine) -> bool:
        """Resume a machine, and return whether that worked."""
        try:
            if one.is_kept:
                self._foreground.signal(one.uuid, signal.SIGCONT)
            elif "resume" in one.commands.argv:
                await self._do(one, "resume", "start")
            return await self._until(one, Power.RUNNING, one.commands.deadlines["start"], "start")
        except BackendLost:
            raise
        except BackendError as error:
            message = "{name}: cannot be resumed, so it is started anew: {error}"
            self.log.error(message, name=one.vm.name, error=str(error))
            return False

    @_in_order
    async def stop(self, one: _Machine, mode: Mode) -> None:
        """
        Run the command for *mode*: `pause`, `save`, `stop` for shutdown, and `kill`, or else `stop`, for destroy.

        What is paused is resumed before it is saved or ended.
        """
        power = await self._ask(one)
        if power in {Power.OFF, Power.SAVED} or (power is Power.PAUSED and mode in _PAUSES):
            return
        if mode in _PAUSES:
            if one.is_kept:
                self._foreground.signal(one.uuid, signal.SIGSTOP)
            else:
                await self._do(one, "pause")
            await self._reach(one, Power.PAUSED)
        else:
            if power is Power.PAUSED:
                await self._is_resumed(one)
            if mode is Mode.SAVE:
                await self._do(one, "save")
                await self._reach(one, Power.SAVED)
            else:
                await self._end(one, mode)
        if mode is not Mode.SHUTDOWN:
            self._changed(one.uuid, f"stopped ({mode.value})")

    async def _end(self, one: _Machine, mode: Mode) -> None:
        """End a machine: at once, or in order, which it may take its time for."""
        if one.is_kept:
            self._foreground.signal(one.uuid, signal.SIGKILL if mode is Mode.DESTROY else signal.SIGTERM)
        else:
            names = ("kill", "stop") if mode is Mode.DESTROY else ("stop", "kill")
            try:
                await self._do(one, next((name for name in names if name in one.commands.argv), "stop"))
            except OverdueError as error:
                if mode is Mode.DESTROY:
                    raise
                self.log.warn("{name}: {error}", name=one.vm.name, error=str(error))
        if mode is Mode.DESTROY:
            await self._reach(one, Power.OFF)
        else:
            one.ends_until, one.pause = self._reactor.seconds() + one.vm.stop_timeout, ASK_AGAIN
            self._poll_later(one)

    async def _do(self, one: _Machine, name: str, use: str = "stop") -> None:
        """
        Run a command for this *use*, which has its deadline.

        Raises:
            BackendError: the machine has no such command, or it has failed.
        """
        if name not in one.commands.argv:
            raise BackendError(f"it has no command {name}")
        is_tied = name == "start" and not one.commands.repeatable
        one.hinted = self._reactor.seconds()
        await self._programs.done(one.commands.argv[name], one.commands.deadlines[use], use, tied=is_tied)
        one.hinted = self._reactor.seconds()

    async def _reach(self, one: _Machine, power: Power) -> None:
        """
        Wait until a machine is in a state that a command leads to, as long as a stop may take.

        Raises:
            BackendError: it is not.
        """
        try:
            if not await self._until(one, power, one.commands.deadlines["stop"], "state"):
                raise BackendError(f"its command has ended well, but it is not {power.value}")
        except NoSuchVM:  # one that is removed when it ends is off
            if power is not Power.OFF:
                raise

    # What happens.

    def _changed(self, uuid: str, reason: str) -> None:
        if self._watcher is not None:
            self._watcher.changed(uuid, reason)

    def _stream(self, commands: Commands) -> Stream | None:
        """Return the stream of events of a machine, which others may share."""
        argv = commands.argv.get("events")
        if argv is None:
            return None
        if argv not in self._streams:
            self._streams[argv] = Stream(
                self._programs, argv, partial(self._told, argv), partial(self._begun, argv), self._reactor
            )
            self._streams[argv].begin()
        return self._streams[argv]

    def _end_unused(self) -> None:
        """End the streams that no machine has any more."""
        for argv in self._streams.keys() - {one.commands.argv.get("events") for one in self._machines.values()}:
            self._ending.append(self._streams.pop(argv).end())

    def _told(self, argv: tuple[str, ...], lines: Iterable[str]) -> None:
        """Hint at the machines that the lines of a stream name, or at the one that the stream is of."""
        of_stream = {one.vm.name: one for one in self._of(argv)}
        is_own = len(of_stream) == 1 and not any(one.commands.named for one in of_stream.values())
        for line in dict.fromkeys(lines):
            said = f"{self} says: {line}" if len(line) <= LONGEST_EVENT else f"{self} tells of a change"
            for name in of_stream if is_own else of_stream.keys() & _BETWEEN.split(line):
                self._hint(of_stream[name], said)

    def _begun(self, argv: tuple[str, ...]) -> None:
        """Hint at all machines of a stream that has begun, or lost an event: any of them may have changed."""
        for one in self._of(argv):
            self._hint(one, "its events are told again")

    def _of(self, argv: tuple[str, ...]) -> list[_Machine]:
        return [one for one in self._machines.values() if one.commands.argv.get("events") == argv]

    def _hint(self, one: _Machine, reason: str) -> None:
        """Tell the watcher, with the last reason, now or when the last hint is old enough."""
        one.reason = reason
        if self._watcher is not None and (one.hint is None or not one.hint.active()):
            wait = max(0.0, one.hinted + HINT_EVERY - self._reactor.seconds())
            one.hint = self._reactor.callLater(wait, self._hinted, one)

    def _hinted(self, one: _Machine) -> None:
        one.hinted, one.shown_until = self._reactor.seconds(), -inf
        self._changed(one.uuid, tail(one.reason))

    def _poll_later(self, one: _Machine) -> None:
        """Ask again in a while if nobody tells when a machine that is up, or is not there, changes."""
        if one.poll is not None and one.poll.active():
            one.poll.cancel()
        if self._watcher is None or one.is_kept or one.power in {Power.OFF, Power.SAVED}:
            return
        wait = one.commands.poll
        if self._reactor.seconds() < one.ends_until:
            wait, one.pause = one.pause, min(2 * one.pause, ASK_AGAIN_AT_MOST)
        one.poll = self._reactor.callLater(wait, self._poll, one)

    def _poll(self, one: _Machine) -> None:
        is_told = one.power is not None and one.stream is not None and one.stream.runs
        if is_told and self._reactor.seconds() >= one.ends_until:
            self._poll_later(one)
        else:
            spawn(self.log, self._polled(one), one.vm.name)

    async def _polled(self, one: _Machine) -> None:
        before = one.power
        try:
            await self.state(one.uuid)
        except NoSuchVM:
            pass
        except BackendError as error:
            self._changed(one.uuid, str(error))
            self._poll_later(one)
        if one.power is not before:
            self._changed(one.uuid, "its command state says so")

    # What no command does.

    def migrate(self, uuid: str, to: IBackend) -> Deferred[None]:  # noqa: ARG002
        """Fail: such a machine is stopped and started anew."""
        return fail(BackendError(f"{self} does not move machines that run"))

    def keep_image(self, uuid: str, *, shared: bool = False) -> Deferred[None]:  # noqa: ARG002
        """Fail: there are no images."""
        return fail(BackendError(f"{self} keeps no images"))

    def drop_image(self, uuid: str) -> Deferred[None]:  # noqa: ARG002
        """Do nothing: there are no images."""
        return succeed(None)

    def remove(self, vm: VM) -> Deferred[None]:  # noqa: ARG002
        """Fail: it makes no machines."""
        return fail(BackendError(definition.NOT_MADE))

    def prepare(self, uuid: str) -> Deferred[None]:  # noqa: ARG002
        """Fail: one that was prepared could not be told from one that is paused."""
        return fail(BackendError(f"{self} cannot prepare machines"))

    def stale(self, uuid: str) -> Deferred[str]:  # noqa: ARG002
        """Return that nothing is known against it."""
        return succeed("")


def _unknown(ended: Ended) -> str:
    """Return that the output of `state` is none of the words."""
    said = "what is too long to repeat" if len(ended.out) > LONGEST_EVENT else f"'{tail(ended.out, 0) or 'nothing'}'"
    return f"its command state says {said}, which is none of its words; add it to words, with its meaning"

"""What a readiness strategy declares. Each strategy is a subclass in a file of its own, and a row in `READINESS`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final

from twisted.internet.defer import Deferred, succeed
from zope.interface import implementer

from jitsu_tw.ijitsu import IReadiness

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jitsu_tw.ijitsu import Guest
    from jitsu_tw.keys import Key
    from jitsu_tw.settings import VM

#: Seconds from one try to the next.
EVERY: Final = 0.01


@implementer(IReadiness)
class Strategy:
    """
    A strategy, one object for all VMs. It is used for the VMs that have its key, whose value `VM.readiness` has.

    Attributes:
        key: its key in the configuration of a VM.
        uses: keys of other strategies that this one reads itself, so that those are not used beside it, and the values
            of these keys for a VM without them.
        anew: a restored guest shows it anew; if not, a restored guest is ready without it.
        by_network: it connects to the guest, so it is used only where the backend's guests are `reachable`.
        tries_port: it tries the guest's TCP port `wait_for_port`: Synjitsu does that in its place while it stands in
            for the VM, and it is tried again while the guest runs (`check_every`).
        no_stand_in: why a VM with the key cannot have `use_synjitsu`; empty if it can.
    """

    key: ClassVar[Key]
    uses: ClassVar[Mapping[str, Any]] = {}
    anew: ClassVar[bool] = True
    by_network: ClassVar[bool] = False
    tries_port: ClassVar[bool] = False
    no_stand_in: ClassVar[str] = ""

    def __init__(self, reactor: Any) -> None:
        """Wait and connect with *reactor*."""
        self._reactor = reactor

    def wait(self, vm: VM, guest: Guest, every: float = EVERY) -> Deferred[None]:
        """
        Fire when *guest*, which is *vm*'s, is ready. Cancelling the Deferred ends the wait and all that it does.

        Args:
            vm: its configuration; `VM.readiness` has the value of the key.
            guest: what the backend knows of it.
            every: seconds from one try to the next, where something is tried.

        Raises:
            BackendError: (through the Deferred) that cannot be found out.
        """
        raise NotImplementedError

    def start(self) -> None:
        """Begin what is needed for all VMs together, as a connection; called before the first wait."""

    def stop(self) -> Deferred[None]:
        """End that."""
        return succeed(None)

"""
Tell other programs what happens: webhooks for events, and a trace (OpenTelemetry) of each activation.

Both follow the journal and send by `outbox`. An event is as the stream of events has it (`control.events`). A trace is
one POST of OTLP's JSON, which every collector takes; OpenTelemetry's own packages would bring threads, protobuf and a
dozen further packages for the same octets.
"""

from __future__ import annotations

import hashlib
import hmac
import platform
from typing import TYPE_CHECKING, Any, Final

from jitsu_tw import __version__
from jitsu_tw.control.metrics import PARTS
from jitsu_tw.control.outbox import Outbox
from jitsu_tw.settings import WebhookEvent

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jitsu_tw.settings import Settings
    from jitsu_tw.vm.journal import Event, Journal

#: How an activation ends that is an event for webhooks.
ENDS: Final = {"up": WebhookEvent.STARTED, "failed": WebhookEvent.FAILED}

#: States of a VM, as shown, of which the second after the first is a stop.
RUNS: Final = frozenset({"up", "stopping"})
RESTS: Final = frozenset({"off", "paused", "saved", "prepared"})

#: OTLP's numbers (opentelemetry-proto, trace.proto): the kind of a span, and the code of its status.
INTERNAL: Final = 1
OK: Final = 1
ERROR: Final = 2


def webhook_event(event: Event) -> WebhookEvent | None:
    """Return which event for webhooks *event* is; None if it is none."""
    if event.kind == "activation":
        return ENDS.get(event.facts["activation"]["outcome"])
    if event.kind == "state":
        return WebhookEvent.STOPPED if event.facts["old"] in RUNS and event.facts["state"] in RESTS else None
    return WebhookEvent(event.kind)


def signed(secret: str | None, document: bytes) -> dict[str, str]:
    """Return the header by which the receiver of *document* knows that a holder of *secret* has sent it."""
    if secret is None:
        return {}
    return {"Jitsu-Signature": "sha256=" + hmac.new(secret.encode(), document, hashlib.sha256).hexdigest()}


def trace(activation: Mapping[str, Any], node: str) -> dict[str, Any]:
    """
    Return the trace of an activation that has ended: a span for the whole, and one for each of its parts.

    Args:
        activation: as JSON has it (`Activation.as_json`).
        node: the name of this host.
    """
    ident, steps = hashlib.sha256(f"{node} {activation['id']}".encode()).hexdigest(), activation["steps"]

    def span(number: int, name: str, begin: float, end: float, **more: Any) -> dict[str, Any]:
        # Nanoseconds since 1970, which have more digits than a number of JSON.
        times = (str(round(activation["began"] * 1e9) + round(when * 1e6)) for when in (begin, end))
        return {
            "traceId": ident[:32], "spanId": f"{int(ident[32:46], 16):014x}{number:02x}", "name": name,
            "kind": INTERNAL, **dict(zip(("startTimeUnixNano", "endTimeUnixNano"), times, strict=True)), **more,
        }  # fmt: skip

    is_up = activation["outcome"] == "up"
    status = {"code": OK} if is_up else {"code": ERROR, "message": activation["reason"]}
    keys = ("vm", "asker", "outcome", "how", "reason")
    attributes = [_attribute(f"jitsu.{key}", activation[key]) for key in keys if activation[key]]
    spans = [span(0, f"start {activation['vm']}", 0, activation["took"], status=status, attributes=attributes)]
    for number, (part, (begin, end)) in enumerate(PARTS.items(), 1):
        if begin in steps and end in steps:
            spans.append(span(number, part, steps[begin], steps[end], parentSpanId=spans[0]["spanId"]))
    resource = {"service.name": "jitsu", "service.version": __version__, "host.name": node}
    return {"resourceSpans": [{
        "resource": {"attributes": [_attribute(*one) for one in resource.items()]},
        "scopeSpans": [{"scope": {"name": "jitsu"}, "spans": spans}],
    }]}  # fmt: skip


def _attribute(key: str, value: str) -> dict[str, Any]:
    return {"key": key, "value": {"stringValue": value}}


class Webhooks:
    """Sends the events and traces of a journal to where the settings say."""

    def __init__(self, settings: Settings, journal: Journal, reactor: Any) -> None:
        """Send what happens from now on."""
        secret = settings.webhook_secret
        self._hooks = [Outbox(url, reactor, lambda document: signed(secret, document)) for url in settings.webhooks]
        self._traces = Outbox(settings.otlp, reactor) if settings.otlp is not None else None
        self._wanted, self._node = frozenset(settings.webhook_events), platform.node()
        journal.on_event.append(self._tell)

    def stop(self) -> None:
        """Send nothing more."""
        for outbox in (*self._hooks, self._traces):
            if outbox is not None:
                outbox.stop()

    def _tell(self, event: Event) -> None:
        kind = webhook_event(event)
        if kind in self._wanted:
            assert kind is not None
            document = {"event": kind.value, "node": self._node, **event.as_json()}
            for hook in self._hooks:
                hook.put(document)
        if self._traces is not None and event.kind == "activation":
            self._traces.put(trace(event.facts["activation"], self._node))

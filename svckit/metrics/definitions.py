"""Every metric of the suite, once: name, kind, unit, labels and what it says.

Instruments are made from these, `docs/reference/metrics.md` is written from them, and the dashboard
and the alerts are checked against them. A label has few values, which the configuration or the
contract bounds: never a customer, a session or a run.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

QUICK = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Bounds of what takes milliseconds: calls, commits, the event loop. Seconds."""
SLOW = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0)
"""Bounds of what models, coding agents and queues take. Seconds."""
SIZES = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0)
"""Bounds of how many are handled at once."""


class Kind(enum.StrEnum):
    """What may be done with a figure."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True)
class Definition:
    """One metric. `unit` is empty for what is counted in pieces."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    unit: str = ""
    bounds: tuple[float, ...] = ()

    @property
    def series(self) -> tuple[str, ...]:
        """The names under which Prometheus stores it."""
        if self.kind is Kind.HISTOGRAM:
            return tuple(f"{self.name}_{part}" for part in ("bucket", "count", "sum"))
        return (self.name,)


def _counter(name: str, help: str, *labels: str, unit: str = "") -> Definition:
    return Definition(name, Kind.COUNTER, help, labels, unit)


def _gauge(name: str, help: str, *labels: str, unit: str = "") -> Definition:
    return Definition(name, Kind.GAUGE, help, labels, unit)


def _seconds(name: str, help: str, *labels: str, bounds: tuple[float, ...] = SLOW) -> Definition:
    return Definition(name, Kind.HISTOGRAM, help, labels, "seconds", bounds)


# -- Every service --------------------------------------------------------------------------------

BUILD = _gauge("conveyor_build_info", "Always 1.", "service", "version")
LOOP_LAG = _seconds(
    "conveyor_event_loop_lag_seconds",
    "How late the event loop comes to what is due, looked at four times a second.",
    bounds=QUICK,
)
GRPC_CALLS = _counter("conveyor_grpc_calls_total", "gRPC calls that ended.", "method", "code")
GRPC_SECONDS = _seconds(
    "conveyor_grpc_call_seconds",
    "Time of a gRPC call. Polls and streams are left out: they take as long as nothing happens.",
    "method",
    bounds=QUICK,
)
GRPC_OPEN = _gauge(
    "conveyor_grpc_open_calls", "gRPC calls that are being served, streams included.", "method"
)
SPANS_DROPPED = _counter(
    "conveyor_spans_dropped_total",
    "Spans that did not reach the collector: it was away, or too slow for what there was to tell.",
)

# -- The gateway ----------------------------------------------------------------------------------

HTTP_REQUESTS = _counter(
    "conveyor_http_requests_total", "HTTP requests that ended.", "method", "route", "status"
)
HTTP_SECONDS = _seconds(
    "conveyor_http_request_seconds",
    "Time to the first byte of an HTTP answer.",
    "route",
    bounds=QUICK,
)
HTTP_STREAMS = _gauge("conveyor_http_open_streams", "Server-sent event streams that are open.")
CALLERS_REFUSED = _counter(
    "conveyor_callers_refused_total",
    "Calls turned away at the door, HTTP and gRPC: `token` for one that is missing or not known, "
    "`rate` for a caller that calls too often.",
    "reason",
)
DELIVERIES_PENDING = _gauge(
    "conveyor_deliveries_pending", "Replies and announcements that wait in an outbox.", "channel"
)
DELIVERIES = _counter(
    "conveyor_deliveries_total",
    "Tries to deliver: `delivered`, `postponed` to be tried again, or `given_up`.",
    "channel",
    "outcome",
)
DELIVERY_POSITION = _gauge(
    "conveyor_delivery_log_position",
    "Position of the event log up to which everything is in the outboxes.",
)
MESSAGES = _counter(
    "conveyor_messages_total",
    "What people sent that was taken in, over every channel: a `message`, or a `command`.",
    "kind",
)

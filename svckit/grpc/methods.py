"""What each method of the contract needs from a channel: deadline, retries, spans."""

from __future__ import annotations

import json
from typing import Any

from google.protobuf import descriptor_pool

DEFAULT_TIMEOUT = 5.0
LONG_POLL_MARGIN = 5.0

_TIMEOUTS = {
    **dict.fromkeys(("CompleteRuns", "SuspendRun", "FailRun", "ReleaseRun"), 10.0),
    **dict.fromkeys(("CloseSession", "CloseAcpSession"), 30.0),
    # A million customers on a busy machine.
    "Forecast": 120.0,
    **dict.fromkeys(("Doctor", "AcpDoctor"), 60.0),
    # Until a harness is ready; who calls the gateway waits for its call to the service behind.
    **{"SpawnSession": 90.0, "SpawnAcpSession": 100.0},
    # As long as the longest call that a command stands for, which is `/acp doctor`.
    "ExecuteCommand": 60.0,
}

# A repeated lease would hold runs nobody works on; the others are costly and not idempotent.
_NEVER_REPEATED = ("LeaseRuns", "ProbeModel", "Doctor", "AcpDoctor")

# Polls and watches last for ever and would drown the trees; appends come every 50 ms. What a report
# tells stands on the span of the model call that it is about.
_UNTRACED = ("LeaseRuns", "ExtendLeases", "AppendEvents", "Report")
# What they bring is somebody's work, whoever calls.
_BEGINNINGS = ("EnqueueRuns", "SteerRun")
_UNTRACED_SERVICES = ("grpc.health.", "grpc.reflection.")

SERVICES = (
    "conveyor.scheduler.v1.SchedulerService",
    "conveyor.scheduler.v1.WorkerService",
    "conveyor.scheduler.v1.FlowService",
    "conveyor.scheduler.v1.LimitService",
    "conveyor.events.v1.EventLogService",
    "conveyor.agent.v1.AgentService",
    "conveyor.acp.v1.AcpService",
    "conveyor.gateway.v1.GatewayService",
)


def default_timeout(method: str, request: Any = None) -> float:
    """Seconds for a unary call of `method`, a full name such as `/package.Service/Method`."""
    name = method.rpartition("/")[2]
    if name == "LeaseRuns" and request is not None:
        return float(request.wait.ToMicroseconds()) / 1_000_000 + LONG_POLL_MARGIN
    return _TIMEOUTS.get(name, DEFAULT_TIMEOUT)


def is_repeatable(method: str) -> bool:
    """Tell whether a call of `method` that nobody answered may be made once more."""
    return method.rpartition("/")[2] not in _NEVER_REPEATED


def is_traced(method: str) -> bool:
    """Tell whether calls of `method` get spans."""
    service, _, name = method.lstrip("/").partition("/")
    return not (
        name in _UNTRACED or name.startswith("Watch") or service.startswith(_UNTRACED_SERVICES)
    )


def ends_soon(method: str) -> bool:
    """Tell whether a call of `method` takes as long as its work, not as long as nothing happens."""
    return method.rpartition("/")[2] != "LeaseRuns"


def short_name(method: str) -> str:
    """Return `Service/Method` for a method of ours, `other` for what only a caller knows of.

    Callers may call anything, and what they make up must not become a series of a metric.
    """
    service, _, name = method.lstrip("/").partition("/")
    if service not in _METHODS:
        return "other"
    names = _METHODS[service] or _methods_of(service)
    return f"{service.rpartition('.')[2]}/{name}" if name in names else "other"


_METHODS: dict[str, frozenset[str]] = {
    **dict.fromkeys(SERVICES, frozenset()),
    "grpc.health.v1.Health": frozenset({"Check", "List", "Watch"}),
    "grpc.reflection.v1alpha.ServerReflection": frozenset({"ServerReflectionInfo"}),
}


def _methods_of(service: str) -> frozenset[str]:
    # Whatever serves it, or was made to call it, has described it.
    try:
        described = descriptor_pool.Default().FindServiceByName(service)
    except KeyError:
        return frozenset()
    _METHODS[service] = frozenset(method.name for method in described.methods)
    return _METHODS[service]


def begins_work(method: str) -> bool:
    """Tell whether a call of `method` that belongs to no trace begins one, whoever makes it."""
    return method.rpartition("/")[2] in _BEGINNINGS


def service_config() -> str:
    """gRPC service config as JSON: repeat on `UNAVAILABLE` only, and never what must not be.

    Timeouts are not set here: measured, they are off by seconds, explicit ones are exact.
    """
    policy = {
        "maxAttempts": 5,
        "initialBackoff": "0.2s",
        "maxBackoff": "2s",
        "backoffMultiplier": 2.0,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    never = [{"service": s, "method": m} for s in SERVICES for m in _NEVER_REPEATED]
    everything = [{"service": s} for s in SERVICES]
    return json.dumps(
        {"methodConfig": [{"name": never}, {"name": everything, "retryPolicy": policy}]}
    )

"""Every error that crosses a service boundary, as one table.

`ServiceError` is the root; each subclass is one row: reason, gRPC code, HTTP status, metadata keys
and, where repeating helps, a default pause. The rows follow the comments of
`conveyor/common/v1/error_reason.proto`, and a contract test compares the two. Raise a subclass in
a handler and the boundary answers with it; catch the same subclass in the caller.

The tree::

    ServiceError
      InvalidField, RunNotFound, LeaseLost, ...   one per reason, named in CamelCase
      Unreachable                                 a service gave no answer; made by callers
      PeerError                                   a reason that this build does not know yet
    StartError                                    a service cannot start; no row of the table

This module knows neither gRPC nor HTTP: codes are names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

DOMAIN = "conveyor.dev"
"""`ErrorInfo.domain` of every error of the suite."""


class ServiceError(Exception):
    """An error that a peer may see.

    `message` is for people, names the fix where there is one, and never holds secrets or the text
    of another exception. `metadata` values are strings. `retry_after` is in seconds; left out, it
    is the default of the reason. `field_violations` are pairs of field path and description.

    `trace_id` is set on what a call raised, not where it is made: the trace of the call that
    failed, 32 hexadecimal digits, empty when it had none. `trace_url`: where a person sees it.
    """

    reason: str = "INTERNAL"
    grpc_code: str = "INTERNAL"
    http_status: int = 500
    metadata_keys: tuple[str, ...] = ()
    default_retry_after: float | None = None
    trace_id: str = ""
    trace_url: str = ""

    def __init__(
        self,
        message: str,
        *,
        metadata: Mapping[str, str] = MappingProxyType({}),
        retry_after: float | None = None,
        field_violations: Sequence[tuple[str, str]] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.metadata: dict[str, str] = dict(metadata)
        self.retry_after = self.default_retry_after if retry_after is None else retry_after
        self.field_violations: tuple[tuple[str, str], ...] = tuple(field_violations)

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"


class InvalidField(ServiceError):
    """A field, page token or resume token is not valid. Mostly made by `invalid_field`."""

    reason = "INVALID_FIELD"
    grpc_code = "INVALID_ARGUMENT"
    http_status = 400
    metadata_keys = ("field",)


class PayloadTooLarge(ServiceError):
    """A field holds more bytes than allowed."""

    reason = "PAYLOAD_TOO_LARGE"
    grpc_code = "INVALID_ARGUMENT"
    http_status = 413
    metadata_keys = ("field", "bytes", "maxBytes")


class Unauthenticated(ServiceError):
    """The token or signature is missing, unknown or expired."""

    reason = "UNAUTHENTICATED"
    grpc_code = "UNAUTHENTICATED"
    http_status = 401


class ScopeMissing(ServiceError):
    """The caller is known but lacks a scope."""

    reason = "SCOPE_MISSING"
    grpc_code = "PERMISSION_DENIED"
    http_status = 403
    metadata_keys = ("scope",)


class RateLimited(ServiceError):
    """The caller sends too many requests."""

    reason = "RATE_LIMITED"
    grpc_code = "RESOURCE_EXHAUSTED"
    http_status = 429
    metadata_keys = ("limit", "windowSeconds")
    default_retry_after = 1.0


class NotLeader(ServiceError):
    """A standby was asked; metadata `leader` says whom to call."""

    reason = "NOT_LEADER"
    grpc_code = "FAILED_PRECONDITION"
    http_status = 503
    metadata_keys = ("leader", "epoch")


class ShuttingDown(ServiceError):
    """The server drains."""

    reason = "SHUTTING_DOWN"
    grpc_code = "UNAVAILABLE"
    http_status = 503
    default_retry_after = 1.0


class Internal(ServiceError):
    """Something unexpected. The message holds no internals."""

    reason = "INTERNAL"
    grpc_code = "INTERNAL"
    http_status = 500


class StoreUnavailable(ServiceError):
    """The store takes no writes now; nothing was changed."""

    reason = "STORE_UNAVAILABLE"
    grpc_code = "UNAVAILABLE"
    http_status = 503
    default_retry_after = 1.0


class NotImplementedYet(ServiceError):
    """The contract names this call or option, and this release does not have it."""

    reason = "NOT_IMPLEMENTED"
    grpc_code = "UNIMPLEMENTED"
    http_status = 501
    metadata_keys = ("feature",)


class ForeignOrigin(ServiceError):
    """The Host or Origin header names another site."""

    reason = "FOREIGN_ORIGIN"
    grpc_code = "PERMISSION_DENIED"
    http_status = 403
    metadata_keys = ("header",)


class RunNotFound(ServiceError):
    """No such run, or not the caller's."""

    reason = "RUN_NOT_FOUND"
    grpc_code = "NOT_FOUND"
    http_status = 404
    metadata_keys = ("runId",)


class FlowNotFound(ServiceError):
    """No such flow, or not the caller's."""

    reason = "FLOW_NOT_FOUND"
    grpc_code = "NOT_FOUND"
    http_status = 404
    metadata_keys = ("flowId",)


class SessionNotFound(ServiceError):
    """No such session, or not the caller's."""

    reason = "SESSION_NOT_FOUND"
    grpc_code = "NOT_FOUND"
    http_status = 404
    metadata_keys = ("sessionKey",)


class LaneNotFound(ServiceError):
    """No global lane has this name."""

    reason = "LANE_NOT_FOUND"
    grpc_code = "NOT_FOUND"
    http_status = 404
    metadata_keys = ("lane",)


class AgentNotFound(ServiceError):
    """No agent has this id."""

    reason = "AGENT_NOT_FOUND"
    grpc_code = "NOT_FOUND"
    http_status = 404
    metadata_keys = ("agentId",)


class ModelNotFound(ServiceError):
    """The provider or the model is not configured."""

    reason = "MODEL_NOT_FOUND"
    grpc_code = "NOT_FOUND"
    http_status = 404
    metadata_keys = ("model",)


class QuestionNotFound(ServiceError):
    """No such question."""

    reason = "QUESTION_NOT_FOUND"
    grpc_code = "NOT_FOUND"
    http_status = 404
    metadata_keys = ("questionId",)


class RequestIdReused(ServiceError):
    """The same request id came with another body."""

    reason = "REQUEST_ID_REUSED"
    grpc_code = "ALREADY_EXISTS"
    http_status = 409
    metadata_keys = ("requestId", "runId")


class RunAlreadyEnded(ServiceError):
    """The run is in a terminal state."""

    reason = "RUN_ALREADY_ENDED"
    grpc_code = "FAILED_PRECONDITION"
    http_status = 409
    metadata_keys = ("runId", "state")


class NotSteerable(ServiceError):
    """The run has not started or is being stopped."""

    reason = "NOT_STEERABLE"
    grpc_code = "FAILED_PRECONDITION"
    http_status = 409
    metadata_keys = ("runId", "state")


class FlowCancelling(ServiceError):
    """The parent or its flow is being stopped and takes no new run."""

    reason = "FLOW_CANCELLING"
    grpc_code = "FAILED_PRECONDITION"
    http_status = 409
    metadata_keys = ("flowId", "runId")


class LeaseLost(ServiceError):
    """The lease ended or a newer one exists: stop and write nothing more."""

    reason = "LEASE_LOST"
    grpc_code = "ABORTED"
    http_status = 409
    metadata_keys = ("runId", "leaseId", "turn", "attempt")


class QuestionClosed(ServiceError):
    """The question was answered otherwise, expired or cancelled."""

    reason = "QUESTION_CLOSED"
    grpc_code = "FAILED_PRECONDITION"
    http_status = 409
    metadata_keys = ("questionId", "state")


class EventsCompacted(ServiceError):
    """Retention removed what follows the position."""

    reason = "EVENTS_COMPACTED"
    grpc_code = "OUT_OF_RANGE"
    http_status = 410
    metadata_keys = ("oldestSequence", "oldestPosition")


class WorkerReplaced(ServiceError):
    """A newer incarnation of the worker has called."""

    reason = "WORKER_REPLACED"
    grpc_code = "FAILED_PRECONDITION"
    http_status = 409
    metadata_keys = ("worker", "incarnation")


class LaneFull(ServiceError):
    """Too many runs wait in the session lane."""

    reason = "LANE_FULL"
    grpc_code = "RESOURCE_EXHAUSTED"
    http_status = 429
    metadata_keys = ("sessionKey", "waiting", "cap")
    default_retry_after = 5.0


class DroppedFromLane(ServiceError):
    """Stored: a newer message pushed this one out of a full session lane."""

    reason = "DROPPED_FROM_LANE"
    grpc_code = "ABORTED"
    http_status = 409
    metadata_keys = ("sessionKey",)


class BudgetExceeded(ServiceError):
    """A cap of the run or of an ancestor would be, or was, passed."""

    reason = "BUDGET_EXCEEDED"
    grpc_code = "RESOURCE_EXHAUSTED"
    http_status = 429
    metadata_keys = ("budget", "limit", "used", "requested", "runId")


class RunCancelled(ServiceError):
    """Stored: the run was cancelled."""

    reason = "RUN_CANCELLED"
    grpc_code = "CANCELLED"
    http_status = 499
    metadata_keys = ("cause",)


class RunExpired(ServiceError):
    """Stored: a time limit of the run passed."""

    reason = "RUN_EXPIRED"
    grpc_code = "DEADLINE_EXCEEDED"
    http_status = 504
    metadata_keys = ("timeout",)


class AttemptsExhausted(ServiceError):
    """Stored: no attempt is left."""

    reason = "ATTEMPTS_EXHAUSTED"
    grpc_code = "INTERNAL"
    http_status = 500
    metadata_keys = ("turn", "attempts", "lastReason")


class TurnFailed(ServiceError):
    """Stored: an agent turn failed for a reason of its own."""

    reason = "TURN_FAILED"
    grpc_code = "INTERNAL"
    http_status = 500
    metadata_keys = ("cause",)


class ModelUnavailable(ServiceError):
    """The provider did not answer or is cooling down, and no fallback is left."""

    reason = "MODEL_UNAVAILABLE"
    grpc_code = "UNAVAILABLE"
    http_status = 503
    metadata_keys = ("providerId", "model", "cause")
    default_retry_after = 5.0


class ModelRejected(ServiceError):
    """The provider refuses the request for good."""

    reason = "MODEL_REJECTED"
    grpc_code = "FAILED_PRECONDITION"
    http_status = 502
    metadata_keys = ("providerId", "model", "httpStatus", "cause")


class AcpDisabled(ServiceError):
    """ACP is switched off in the configuration."""

    reason = "ACP_DISABLED"
    grpc_code = "FAILED_PRECONDITION"
    http_status = 409


class AcpBackendMissing(ServiceError):
    """The harness command is not installed."""

    reason = "ACP_BACKEND_MISSING"
    grpc_code = "FAILED_PRECONDITION"
    http_status = 503
    metadata_keys = ("harnessId", "command", "install")


class AcpBackendUnavailable(ServiceError):
    """The harness is installed but does not start or answer."""

    reason = "ACP_BACKEND_UNAVAILABLE"
    grpc_code = "UNAVAILABLE"
    http_status = 503
    metadata_keys = ("harnessId", "check", "lastWords")
    default_retry_after = 5.0


class AcpHarnessNotFound(ServiceError):
    """The harness is unknown or not allowed."""

    reason = "ACP_HARNESS_NOT_FOUND"
    grpc_code = "NOT_FOUND"
    http_status = 404
    metadata_keys = ("harnessId",)


class AcpSessionInitFailed(ServiceError):
    """The session could not be opened, loaded or used yet."""

    reason = "ACP_SESSION_INIT_FAILED"
    grpc_code = "FAILED_PRECONDITION"
    http_status = 502
    metadata_keys = ("harnessId", "cause", "lastWords")


class AcpSessionNotFound(ServiceError):
    """No such ACP session."""

    reason = "ACP_SESSION_NOT_FOUND"
    grpc_code = "NOT_FOUND"
    http_status = 404
    metadata_keys = ("acpSessionId",)


class AcpTurnFailed(ServiceError):
    """Stored: a prompt to a harness failed."""

    reason = "ACP_TURN_FAILED"
    grpc_code = "INTERNAL"
    http_status = 502
    metadata_keys = ("acpSessionId", "cause", "exitCode", "reopened", "lastWords")


class AcpCwdNotAllowed(ServiceError):
    """The working directory is outside every allowed root."""

    reason = "ACP_CWD_NOT_ALLOWED"
    grpc_code = "PERMISSION_DENIED"
    http_status = 403
    metadata_keys = ("cwd",)


class AcpLimitReached(ServiceError):
    """Too many ACP sessions and none to park."""

    reason = "ACP_LIMIT_REACHED"
    grpc_code = "RESOURCE_EXHAUSTED"
    http_status = 429
    metadata_keys = ("sessions", "maxSessions")


class Unreachable(ServiceError):
    """A service did not answer, so whether it did something is unknown.

    Made only by callers, from a failed connection or a passed deadline. It is safe to repeat the
    call when the call is idempotent.
    """

    reason = "SERVICE_UNREACHABLE"
    grpc_code = "UNAVAILABLE"
    http_status = 503
    metadata_keys = ("service",)
    default_retry_after = 1.0


BY_REASON: Mapping[str, type[ServiceError]] = MappingProxyType(
    {row.reason: row for row in ServiceError.__subclasses__()}
)
"""Wire value of a reason to its class; `PeerError` is no row."""


HTTP_STATUS_BY_CODE: Mapping[str, int] = MappingProxyType(
    {
        "INVALID_ARGUMENT": 400,
        "OUT_OF_RANGE": 410,
        "UNAUTHENTICATED": 401,
        "PERMISSION_DENIED": 403,
        "NOT_FOUND": 404,
        "ABORTED": 409,
        "ALREADY_EXISTS": 409,
        "FAILED_PRECONDITION": 409,
        "RESOURCE_EXHAUSTED": 429,
        "CANCELLED": 499,
        "UNIMPLEMENTED": 501,
        "UNAVAILABLE": 503,
        "DEADLINE_EXCEEDED": 504,
    }
)
"""HTTP status of a gRPC code when the reason is unknown; anything else is 500."""


class PeerError(ServiceError):
    """A reason from a newer peer. Keeps the peer's reason and code, so it can be passed on."""

    def __init__(
        self,
        message: str,
        *,
        reason: str,
        grpc_code: str,
        metadata: Mapping[str, str] = MappingProxyType({}),
        retry_after: float | None = None,
        field_violations: Sequence[tuple[str, str]] = (),
    ) -> None:
        super().__init__(
            message,
            metadata=metadata,
            retry_after=retry_after,
            field_violations=field_violations,
        )
        self.reason = reason
        self.grpc_code = grpc_code
        self.http_status = HTTP_STATUS_BY_CODE.get(grpc_code, 500)


PASSING = (Unreachable, StoreUnavailable, ShuttingDown, NotLeader)
"""Errors that pass by themselves: a call that may be repeated is, until it is answered."""


class StartError(Exception):
    """Why a service cannot start: one clear line, with the fix where there is one."""


def invalid_field(field: str, problem: str) -> InvalidField:
    """Build the error for one bad field.

    `field` is the path in the request, for example `spec.session_key`; `problem` says what is
    wrong and what would be right, for example `must be 1 to 256 characters`.
    """
    return InvalidField(
        f"{field}: {problem}",
        metadata={"field": field},
        field_violations=[(field, problem)],
    )

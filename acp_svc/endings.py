"""How a turn of a harness ends towards the scheduler, and how that end is kept.

The end of a prompt is stored before the scheduler is told. Should the telling get lost, the next
lease of the same turn tells it once more, instead of prompting again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import msgspec
from google.protobuf import any_pb2
from google.rpc import status_pb2

from acp_svc.domain.permissions import PermissionMode
from acp_svc.domain.session import Opening, Session
from acp_svc.harness.types import Cause, PromptFailed
from conveyor.acp.v1 import session_pb2, task_pb2
from conveyor.scheduler.v1 import run_pb2
from svckit.content import spoken
from svckit.errors import AcpTurnFailed, ServiceError
from svckit.grpc.status import to_proto
from svckit.turn import Complete, Fail, Outcome

STOP_REASONS: Mapping[str, task_pb2.AcpStopReason.ValueType] = MappingProxyType(
    {
        "end_turn": task_pb2.ACP_STOP_REASON_END_TURN,
        "max_tokens": task_pb2.ACP_STOP_REASON_MAX_TOKENS,
        "max_turn_requests": task_pb2.ACP_STOP_REASON_MAX_TURN_REQUESTS,
        "refusal": task_pb2.ACP_STOP_REASON_REFUSAL,
        "cancelled": task_pb2.ACP_STOP_REASON_CANCELLED,
    }
)
_OPENINGS = {
    Opening.NEW: session_pb2.ACP_OPENING_NEW,
    Opening.RESUMED: session_pb2.ACP_OPENING_RESUMED,
    Opening.LOADED: session_pb2.ACP_OPENING_LOADED,
}
_HOW = {
    Opening.NEW: "a new session was opened, which knows nothing of what was said before",
    Opening.RESUMED: "the session was opened again and knows what was said",
    Opening.LOADED: "the session was opened again and knows what was said",
}


def replied(
    session: Session,
    message_id: str,
    text: str,
    *,
    stop_reason: str,
    rejected: int,
    reopened: Opening | None,
    next_prompts: bool,
    taken: Sequence[str],
) -> Complete:
    """The prompt ended. `next_prompts`: what was steered meanwhile is prompted next."""
    details = any_pb2.Any()
    details.Pack(
        task_pb2.AcpResult(
            stop_reason=STOP_REASONS.get(stop_reason, task_pb2.ACP_STOP_REASON_UNSPECIFIED),
            acp_session_id=session.session_id,
            rejected_permissions=rejected,
            reopened=_OPENINGS[reopened] if reopened else session_pb2.ACP_OPENING_UNSPECIFIED,
        )
    )
    result = run_pb2.RunResult(details=details)
    if text.strip():
        result.reply.CopyFrom(spoken(message_id, text))
    return Complete(result, taken=taken, steered_is_next_prompt=next_prompts)


def ready_words(name: str, session: Session) -> str:
    """What is said when a session is ready for prompts."""
    spec = session.spec
    words = f"{name} is ready in {spec.cwd}; permissions: {spec.permission_mode.value}"
    if session.sandboxed:
        words += ", enforced by a sandbox"
    if session.opening in (Opening.RESUMED, Opening.LOADED):
        words += "; it goes on with the earlier session"
    return f"{words}."


def nobody_to_ask(session: Session) -> str:
    """Why mode `ask` cannot work here."""
    others = ", ".join(mode.value for mode in PermissionMode if mode is not PermissionMode.ASK)
    return (
        "permission mode ask needs somebody to ask, and nobody sees the questions of this run; "
        f"choose another mode ({others}) or prompt the session from a conversation"
    )


def failed(session: Session, failure: PromptFailed) -> AcpTurnFailed:
    """A prompt failed, and the session stays as it is."""
    return _failed(session, f"{failure.message}.", failure)


def crashed(session: Session, failure: PromptFailed, reopened: Opening | None) -> AcpTurnFailed:
    """The harness ended while it worked. `reopened`: how the session was opened again."""
    how = _HOW[reopened] if reopened else "the session is opened again with the next message"
    return _failed(
        session,
        f"{failure.message}; {how}. What it did until then stays done.",
        failure,
        {"reopened": reopened.value if reopened else "no"},
    )


def cut_off(session: Session, name: str, reopened: Opening | None, alive: bool) -> AcpTurnFailed:
    """The service was interrupted while the harness worked. The prompt is not sent again."""
    if alive and reopened is None:
        how = "the session is still open"
    else:
        how = _HOW[reopened] if reopened else "the session is opened again with the next message"
    return AcpTurnFailed(
        f"{name} was interrupted while it worked on this, and it was not sent a second time; {how}."
        " What it did until then stays done.",
        metadata={
            "acpSessionId": session.session_id,
            "cause": Cause.CRASHED.value,
            "reopened": reopened.value if reopened else "no",
        },
    )


def denied(session: Session, text: str) -> AcpTurnFailed:
    """The harness stopped because something was not allowed."""
    return AcpTurnFailed(
        text, metadata={"acpSessionId": session.session_id, "cause": "permission_denied"}
    )


def _failed(
    session: Session, message: str, failure: PromptFailed, more: Mapping[str, str] | None = None
) -> AcpTurnFailed:
    metadata = {"acpSessionId": session.session_id, "cause": failure.cause.value, **(more or {})}
    if failure.exit_code is not None:
        metadata["exitCode"] = str(failure.exit_code)
    if failure.last_words:
        metadata["lastWords"] = failure.last_words
    return AcpTurnFailed(message, metadata=metadata)


class Kept(msgspec.Struct, frozen=True):
    """How a turn ended, as it is stored."""

    turn: int
    result: bytes = b""
    error: bytes = b""
    taken: tuple[str, ...] = ()
    next_prompts: bool = False


def keep(turn: int, outcome: Complete | Fail) -> bytes:
    """Return what is stored of the end of a turn."""
    taken = tuple(outcome.taken)
    if isinstance(outcome, Complete):
        result = outcome.result.SerializeToString() if outcome.result else b""
        kept = Kept(turn, result, b"", taken, outcome.steered_is_next_prompt)
    else:
        error = outcome.error
        status = to_proto(error) if isinstance(error, ServiceError) else error
        kept = Kept(turn, b"", status.SerializeToString(), taken)
    return msgspec.msgpack.encode(kept)


def kept_turn(stored: bytes) -> int:
    """Return the turn that ended so. 0 when nothing was kept."""
    return msgspec.msgpack.decode(stored, type=Kept).turn if stored else 0


def again(stored: bytes) -> Outcome:
    """Return the stored end of a turn."""
    kept = msgspec.msgpack.decode(stored, type=Kept)
    if kept.error:
        return Fail(status_pb2.Status.FromString(kept.error), retryable=False, taken=kept.taken)
    return Complete(
        run_pb2.RunResult.FromString(kept.result),
        taken=kept.taken,
        steered_is_next_prompt=kept.next_prompts,
    )

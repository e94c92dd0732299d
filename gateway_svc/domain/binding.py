"""ACP sessions as routing sees them: what a run of one is asked for, and when a binding is over.

A bound session works in the lane of its conversation, an unbound one in its own. Either way a
prompt is a run on queue `acp`, and everything else (order, watchers, questions, cancelling) is that
of any run.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from google.protobuf import any_pb2, duration_pb2

from conveyor.acp.v1 import session_pb2 as acp
from conveyor.acp.v1 import task_pb2
from conveyor.scheduler.v1 import run_pb2
from gateway_svc.domain.reply_route import ReplyAddress, encode_address
from svckit.errors import AcpSessionInitFailed, AcpSessionNotFound

QUEUE = "acp"
MAX_NOTICE = 300
_MARGIN_SECONDS = 60.0
"""For what a run does beside the handshake and the prompt, for example a process that is stopped
before another one starts."""
_MAX_ESTIMATE_KEY = 128
_OVER = frozenset(
    {
        acp.ACP_SESSION_STATE_CLOSING,
        acp.ACP_SESSION_STATE_CLOSED,
        acp.ACP_SESSION_STATE_FAILED,
    }
)


@dataclass(frozen=True, slots=True)
class AcpRules:
    """What the configuration says about ACP sessions: times of their runs in seconds, permissions.

    `approves_all` says that sessions may do everything unasked by default.
    """

    turn_seconds: float = 1800.0
    handshake_seconds: float = 60.0
    approves_all: bool = False

    def needs_operator(self, mode: acp.PermissionMode.ValueType) -> bool:
        """True for a permission mode that only who runs the installation may choose.

        In `approve-all` nobody is asked any more. Where it is the default, the operator has decided
        so already.
        """
        return mode == acp.PERMISSION_MODE_APPROVE_ALL and not self.approves_all


@dataclass(frozen=True, slots=True)
class Bound:
    """The ACP session that answers, as far as its runs need to know it.

    `worker` holds its process, empty when none does. `turn_seconds` 0 means as configured.
    """

    acp_session_id: str
    harness_id: str = ""
    worker: str = ""
    turn_seconds: float = 0.0

    @classmethod
    def of(cls, session: acp.AcpSession) -> Bound:
        """Return what runs need to know of a session."""
        return cls(
            acp_session_id=session.acp_session_id,
            harness_id=session.spec.harness_id,
            worker=session.worker,
            turn_seconds=session.spec.turn_timeout.ToMicroseconds() / 1e6,
        )


@dataclass(frozen=True, slots=True)
class Binding:
    """What is stored of a binding beside the session's id: which request made it, and the harness.

    With the harness, messages find their way also while nobody can say how the session is.
    """

    request_id: str = ""
    harness_id: str = ""

    @classmethod
    def read(cls, text: str) -> Binding:
        """Read what `write` made."""
        return cls(**json.loads(text)) if text else cls()

    def write(self) -> str:
        """Return it as text."""
        return json.dumps(asdict(self), separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class Notice:
    """What the customer has to be told with the next answer, once. `notice_id` is up to 64 long."""

    notice_id: str
    text: str

    @classmethod
    def read(cls, text: str) -> Notice | None:
        """Read what `write` made; `None` for nothing."""
        return cls(**json.loads(text)) if text else None

    def write(self) -> str:
        """Return it as text."""
        return json.dumps(asdict(self), separators=(",", ":"), ensure_ascii=False)


def acp_spec(
    bound: Bound,
    rules: AcpRules,
    *,
    session_key: str,
    customer_key: str,
    address: ReplyAddress,
    open_only: bool = False,
) -> run_pb2.RunSpec:
    """Return what the scheduler is asked for: a prompt, or with `open_only` the opening alone."""
    task = any_pb2.Any()
    task.Pack(task_pb2.AcpTask(acp_session_id=bound.acp_session_id, open_only=open_only))
    seconds = (bound.turn_seconds or rules.turn_seconds) + rules.handshake_seconds + _MARGIN_SECONDS
    timeout = duration_pb2.Duration()
    timeout.FromMicroseconds(round(seconds * 1_000_000))
    # Starting a process takes another time than working.
    kind = f"{QUEUE}/{bound.harness_id}" + ("/open" if open_only else "")
    return run_pb2.RunSpec(
        session_key=session_key,
        customer_key=customer_key,
        queue=QUEUE,
        task=task,
        reply_route=run_pb2.ReplyRoute(address=encode_address(address), delivers_later=True),
        run_timeout=timeout,
        preferred_worker=bound.worker,
        estimate_key=kind[:_MAX_ESTIMATE_KEY],
    )


def is_over(session: acp.AcpSession) -> bool:
    """True for a session that takes no prompt any more."""
    return session.state in _OVER


def check_ready(session: acp.AcpSession) -> None:
    """Raise the reason why a session takes no prompt now, if it takes none."""
    if is_over(session):
        raise AcpSessionNotFound(
            f"this ACP session {_how(session)}; open another one",
            metadata={"acpSessionId": session.acp_session_id},
        )
    if session.state == acp.ACP_SESSION_STATE_STARTING:
        raise AcpSessionInitFailed(
            "this ACP session is still being opened: wait for the message that says it is ready",
            metadata={"harnessId": session.spec.harness_id, "cause": "not_ready"},
        )


def ended_notice(acp_session_id: str, name: str, how: str, agent_id: str) -> Notice:
    """Return what a conversation is told when the session that answered it has ended."""
    text = f"The session with {name} {how}. From here on {agent_id} answers you again."
    return Notice(f"acp-over-{acp_session_id}"[:64], text[:MAX_NOTICE])


def name_of(session: acp.AcpSession) -> str:
    """Return what people call a session: its label, else its harness."""
    return session.spec.label or session.spec.harness_id or "the harness"


def how_ended(session: acp.AcpSession) -> str:
    """Return how a session ended, behind its name."""
    return _how(session)


def _how(session: acp.AcpSession) -> str:
    if session.state == acp.ACP_SESSION_STATE_FAILED:
        why = " ".join(session.error.message.split())
        return f"failed: {why[:160].rstrip('. ')}" if why else "failed"
    return "was closed"

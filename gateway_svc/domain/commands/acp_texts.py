"""What `/acp` answers about coding agents: which there are, what one does, what began and ended."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from conveyor.acp.v1 import session_pb2 as acp
from conveyor.common.v1 import question_pb2
from conveyor.events.v1 import event_pb2
from gateway_svc.domain.commands.acp_words import (
    MEANINGS,
    full_name,
    last_words,
    live,
    name_of,
    permissions_of,
    place_of,
    state_of,
)
from gateway_svc.domain.commands.words import SECOND, at_us
from svckit.contract_words import SESSION_MODES, answering_commands
from svckit.words import count, joined, shorten, span

ROWS = 8
_TITLE, _LINE, _PATH = 80, 160, 80
_THREADS = {
    "here": "this channel has no threads: say `--bind here`, and this conversation talks to it",
    "auto": "This channel has no threads, so it works beside this conversation; `--bind here` lets "
    "it answer here.",
}
_MODES = {mode: word for word, mode in SESSION_MODES.items()}
_DOING = {
    event_pb2.HARNESS_ITEM_STATUS_PENDING: "Next",
    event_pb2.HARNESS_ITEM_STATUS_IN_PROGRESS: "Now",
    event_pb2.HARNESS_ITEM_STATUS_COMPLETED: "Last",
    event_pb2.HARNESS_ITEM_STATUS_FAILED: "Failed",
}


@dataclass(frozen=True, slots=True)
class Work:
    """What a turn has come to. `since_us` is 0 when none is at work."""

    since_us: int = 0
    plan: str = ""
    doing: str = ""


def work_of(events: Iterable[event_pb2.Event], run_id: str, since_us: int) -> Work:
    """Return what a run of a harness says of itself in its events, oldest first."""
    entries: Sequence[event_pb2.HarnessPlanEntry] = ()
    calls: dict[str, event_pb2.HarnessToolCall] = {}
    for event in events:
        if event.run_id != run_id or event.WhichOneof("payload") != "harness_updated":
            continue
        updated = event.harness_updated
        if updated.HasField("plan"):
            entries = updated.plan.entries
        elif updated.HasField("tool_call"):
            # Moved to the end: what changed last is what it does now.
            calls.pop(updated.tool_call.tool_call_id, None)
            calls[updated.tool_call.tool_call_id] = updated.tool_call
    return Work(since_us, _plan(entries), _doing(list(calls.values())))


def _plan(entries: Sequence[event_pb2.HarnessPlanEntry]) -> str:
    if not entries:
        return ""
    done = [e for e in entries if e.status == event_pb2.HARNESS_ITEM_STATUS_COMPLETED]
    begun = [e for e in entries if e.status == event_pb2.HARNESS_ITEM_STATUS_IN_PROGRESS]
    head = f"Plan: {len(done)} of {len(entries)} done"
    # An agent that marks nothing as begun works on the first one that is not done.
    now = begun or [e for e in entries if e not in done]
    return f"{head}, now: {shorten(now[0].content, _TITLE)}" if now else head


def _doing(calls: Sequence[event_pb2.HarnessToolCall]) -> str:
    at_work = [c for c in calls if c.status == event_pb2.HARNESS_ITEM_STATUS_IN_PROGRESS]
    if not calls:
        return ""
    call = (at_work or calls)[-1]
    title = shorten(call.title, _TITLE) or call.tool_kind or "a tool"
    return f"{_DOING.get(call.status, 'Last')}: {title}"


def status_text(
    session: acp.AcpSession,
    work: Work,
    questions: Sequence[question_pb2.Question],
    now_us: int,
    *,
    bound: bool,
) -> str:
    """Return what `/acp status` says.

    `questions` are its open ones, `bound` says that it answers this conversation.
    """
    state = state_of(session)
    if work.since_us and live(session):
        state += f", {span((now_us - work.since_us) / SECOND)} so far"
    elif session.HasField("end_time"):
        state += f" {span((now_us - at_us(session.end_time)) / SECOND)} ago"
    lines = [
        f"{full_name(session)}: {state}",
        _settings(session),
        f"In {shorten(session.spec.cwd, _PATH)}"
        + (" · reading only, also by a sandbox" if session.sandboxed else ""),
        work.plan,
        # What it asks for says the same.
        "" if any(question.title in work.doing for question in questions) else work.doing,
        *(_question(question) for question in questions[:2]),
        "It answers this conversation" if bound and live(session) else "",
    ]
    if session.error.message:
        lines.append(f"Last error: {shorten(session.error.message, _LINE)}")
        lines += [f"› {line}" for line in last_words(session.error)]
    return "\n".join([line for line in lines if line] + [f"Session {session.acp_session_id}"])


def _settings(session: acp.AcpSession) -> str:
    parts = [
        _MODES.get(session.spec.mode, ""),
        f"permissions {permissions_of(session)}",
        f"mode {session.harness_mode}" if session.harness_mode else "",
        f"model {session.spec.model}" if session.spec.model else "",
    ]
    return " · ".join(part for part in parts if part)


def _question(question: question_pb2.Question) -> str:
    once = [f"`{how}`" for how in answering_commands(question) if "always" not in how]
    asks = f"Asks #{question.number}: {shorten(question.title, _TITLE)}"
    return f"{asks}: {joined(once, 'or')}" if once else asks


def sessions_text(
    sessions: Sequence[acp.AcpSession], bound_id: str, *, numbered: bool = True
) -> str:
    """Return what `/acp sessions` says. Without a conversation, ids stand in place of numbers."""
    if not sessions:
        return (
            "No coding agent is open here. For example:\n"
            "`/acp spawn claude --bind here fix the failing test`"
        )
    lines = [f"{count(len(sessions), 'coding agent')}:"]
    for number, session in enumerate(sessions[:ROWS], start=1):
        handle = f"#{number}" if numbered else session.acp_session_id
        words = [f"{handle} {full_name(session)}", state_of(session), permissions_of(session)]
        words.append(place_of(session))
        if session.acp_session_id == bound_id:
            words.append("answers here")
        lines.append(" · ".join(words))
    if len(sessions) > ROWS:
        lines.append(f"and {len(sessions) - ROWS} more")
    if numbered:
        lines.append("`/acp status 1` says more; `/acp close 1` ends it")
    return "\n".join(lines)


def thread_problem(thread: str, *, bound: bool) -> str:
    """Return why `--thread` cannot be honoured, empty when nothing speaks against it."""
    if thread in ("here", "auto") and bound:
        return "`--bind here` and `--thread` exclude each other: leave `--thread` out"
    return _THREADS["here"] if thread == "here" else ""


def spawned_text(session: acp.AcpSession, *, bound: bool, task: bool, thread: str) -> str:
    """Return what is said of a session that is being opened."""
    name = name_of(session)
    lines = [
        f"Starting {full_name(session)} in {shorten(session.spec.cwd, _PATH)}.",
        f"Permissions {permissions_of(session)}: "
        f"{MEANINGS.get(session.spec.permission_mode, 'as configured')}.",
        f"Your task comes next; {name} says here when it is ready."
        if task
        else f"{name} says here when it is ready.",
    ]
    once = session.spec.mode == acp.ACP_SESSION_MODE_ONESHOT
    if once:
        # One turn is all it has: the task, or what comes first.
        after = "When that is done" if task else "It does one thing, what you tell it first; then"
        lines.append(f"{after} it closes by itself.")
    elif bound:
        lines.append("What you write here goes to it, until `/acp close`.")
    if not bound and not (once and task):
        lines.append(f"`/acp steer {_typed(session)} …` tells it something.")
    if thread == "auto":
        lines.append(_THREADS["auto"])
    return "\n".join(lines)


def steered_text(session: acp.AcpSession, position: int) -> str:
    """Return what is said of a message to a session. `position` is its place in line."""
    name = name_of(session)
    if position > 1 or session.state in (
        acp.ACP_SESSION_STATE_BUSY,
        acp.ACP_SESSION_STATE_ASKING,
    ):
        return f"Handed to {name}: it reads it when its present turn has ended."
    return f"Handed to {name}."


def cancelled_text(session: acp.AcpSession, run_id: str) -> str:
    """Return what is said after a turn was cancelled; `run_id` is empty when none was at work."""
    name = name_of(session)
    if not run_id:
        return f"{name} is doing nothing now ({state_of(session)})."
    return f"Stopping what {name} does. It stays, and keeps what it knows."


def closed_text(session: acp.AcpSession, agent_id: str) -> str:
    """Return what is said after a session was closed; `agent_id` answers again, empty for none."""
    text = f"{name_of(session)} is closed."
    return f"{text} From here on {agent_id} answers you again." if agent_id else text


def _typed(session: acp.AcpSession) -> str:
    name = name_of(session)
    return f'"{name}"' if " " in name else name

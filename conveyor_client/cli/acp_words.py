"""ACP sessions and what harnesses do, in words. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from conveyor.acp.v1 import session_pb2 as acp_pb
from conveyor.events.v1 import event_pb2 as event_pb
from conveyor_client.cli.output import plain, when
from svckit.grpc.status import from_proto
from svckit.words import count, last_lines, shorten, span

STATES = {
    acp_pb.ACP_SESSION_STATE_STARTING: ("starting", "yellow"),
    acp_pb.ACP_SESSION_STATE_READY: ("ready", "green"),
    acp_pb.ACP_SESSION_STATE_BUSY: ("at work", "cyan"),
    acp_pb.ACP_SESSION_STATE_ASKING: ("asks", "magenta"),
    acp_pb.ACP_SESSION_STATE_PARKED: ("parked", "blue"),
    acp_pb.ACP_SESSION_STATE_CLOSING: ("closing", "yellow"),
    acp_pb.ACP_SESSION_STATE_CLOSED: ("closed", "dim"),
    acp_pb.ACP_SESSION_STATE_FAILED: ("failed", "red"),
}
"""Word and colour of each state of an ACP session."""

PERMISSIONS = {
    acp_pb.PERMISSION_MODE_APPROVE_READS: "approve-reads",
    acp_pb.PERMISSION_MODE_APPROVE_ALL: "approve-all",
    acp_pb.PERMISSION_MODE_DENY_ALL: "deny-all",
    acp_pb.PERMISSION_MODE_ASK: "ask",
}
"""Permission modes as the configuration calls them."""

_OPENINGS = {
    acp_pb.ACP_OPENING_NEW: "new",
    acp_pb.ACP_OPENING_RESUMED: "resumed",
    acp_pb.ACP_OPENING_LOADED: "loaded",
}
_STARTED = frozenset(
    {event_pb.HARNESS_ITEM_STATUS_PENDING, event_pb.HARNESS_ITEM_STATUS_IN_PROGRESS}
)
_TITLE, _PLAN, _THOUGHT = 160, 200, 400


def state_markup(session: acp_pb.AcpSession) -> str:
    """Return the state of a session, coloured, with how many questions it asks."""
    word, colour = STATES.get(session.state, ("unknown", "white"))
    asks = f" ({count(session.open_questions, 'question')})" if session.open_questions else ""
    return f"[{colour}]{word}[/]{asks}"


def permissions_word(mode: acp_pb.PermissionMode.ValueType) -> str:
    """Return a permission mode as people write it."""
    return PERMISSIONS.get(mode, "-")


def session_lines(session: acp_pb.AcpSession, bound: bool) -> Iterator[str]:
    """Yield everything about one session, as lines of rich markup."""
    spec = session.spec
    yield f"[bold]{plain(session.acp_session_id)}[/]  {state_markup(session)}"
    facts = [
        ("harness", spec.harness_id),
        ("label", spec.label),
        ("directory", spec.cwd),
        ("permissions", permissions_word(spec.permission_mode)),
        ("sandbox", "reading only, enforced from outside" if session.sandboxed else ""),
        ("lives", "one turn" if spec.mode == acp_pb.ACP_SESSION_MODE_ONESHOT else ""),
        ("customer", spec.customer_key),
        ("answers" if bound else "lane", spec.session_key),
        ("spawned from", "" if bound else spec.parent_session_key),
        ("run at work", session.run_id),
        ("model", spec.model or ""),
        ("models", ", ".join(session.models)),
        ("mode", session.harness_mode),
        ("modes", ", ".join(session.harness_modes)),
        ("options", ", ".join(f"{k}={v}" for k, v in sorted(session.options.items()))),
        ("upstream id", session.upstream_session_id),
        ("opened", _OPENINGS.get(session.opening, "")),
        ("turn may take", _seconds(session)),
        ("spawned", when(session.create_time)),
        ("active", when(session.active_time)),
        ("ended", when(session.end_time) if session.HasField("end_time") else ""),
    ]
    for name, value in facts:
        if value:
            yield f"  {name + ':':15}{plain(value)}"
    if session.error.message:
        yield f"  {'trouble:':15}[red]{plain(shorten(session.error.message, 400))}[/]"
        for line in last_lines(from_proto(session.error).metadata.get("lastWords", "")):
            yield f"  {'':15}› {plain(line)}"


def _seconds(session: acp_pb.AcpSession) -> str:
    timeout = session.spec.turn_timeout
    return span(timeout.ToMicroseconds() / 1e6) if session.spec.HasField("turn_timeout") else ""


def decided_line(decided: event_pb.PermissionDecided) -> str:
    """Return what was decided about a permission, by whom and by which rule."""
    how = "allowed" if decided.allowed else "denied"
    who = f"by {decided.responder}, {decided.rule}" if decided.responder else decided.rule
    return f"{how}: {shorten(decided.title or decided.tool_kind or 'a tool', _TITLE)} ({who})"


class HarnessTeller:
    """Says what harnesses do, each thing once: tool calls as they begin and fail, plans as they
    change."""

    def __init__(self) -> None:
        self._calls: dict[tuple[str, str], str] = {}
        self._plans: dict[str, str] = {}

    def tell(self, updated: event_pb.HarnessUpdated, *, thoughts: bool) -> tuple[str, bool] | None:
        """Return a line and whether it is good news, `None` for what is known already."""
        kind = updated.WhichOneof("update")
        if kind == "tool_call":
            return self._call(updated.acp_session_id, updated.tool_call)
        if kind == "plan":
            line = plan_line(updated.plan)
            if line and self._plans.get(updated.acp_session_id) != line:
                self._plans[updated.acp_session_id] = line
                return line, True
        if kind == "thought" and thoughts and updated.thought.strip():
            return f"thinks: {shorten(updated.thought, _THOUGHT)}", True
        return None

    def _call(self, session_id: str, call: event_pb.HarnessToolCall) -> tuple[str, bool] | None:
        key = (session_id, call.tool_call_id)
        title = shorten(call.title or call.tool_kind or "a tool", _TITLE)
        before = self._calls.get(key)
        if call.status == event_pb.HARNESS_ITEM_STATUS_FAILED:
            self._calls[key] = "failed"
            return None if before == "failed" else (f"{title}: failed", False)
        if before == title or (before is not None and call.status not in _STARTED):
            return None
        self._calls[key] = title
        where = f" ({', '.join(call.locations[:3])})" if call.locations else ""
        return f"{title}{where if not _named(title, call) else ''}", True


def _named(title: str, call: event_pb.HarnessToolCall) -> bool:
    """True when a title says already which file it is about."""
    return any(location.rpartition("/")[2] in title for location in call.locations)


def plan_line(plan: event_pb.HarnessPlan) -> str:
    """Return a plan in one line: how much is done, and what is worked on."""
    done = sum(e.status == event_pb.HARNESS_ITEM_STATUS_COMPLETED for e in plan.entries)
    at_work = [
        entry.content
        for entry in plan.entries
        if entry.status == event_pb.HARNESS_ITEM_STATUS_IN_PROGRESS
    ]
    waiting = [e.content for e in plan.entries if e.status == event_pb.HARNESS_ITEM_STATUS_PENDING]
    if not plan.entries:
        return ""
    line = f"plan: {done} of {len(plan.entries)} done"
    if at_work:
        return shorten(f"{line}, now: {'; '.join(at_work)}", _PLAN)
    return shorten(f"{line}, next: {waiting[0]}", _PLAN) if waiting else line

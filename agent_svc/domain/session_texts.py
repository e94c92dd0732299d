"""What the session tools answer, written for a model: short lines, cut, untrusted parts marked.

Session keys are left out: they hold the customer's name on a channel, a phone number for example,
which a model provider has no need to know. A run id names the same session.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from agent_svc.domain import results
from agent_svc.domain.content import excerpt
from agent_svc.domain.family import Member

ENTRY_CHARS = 4_000
LINE_CHARS = 400
TOTAL_CHARS = 24_000
TASK_CHARS = 2_000

_WORDS = {
    "queued": "waits for its turn",
    "working": "working",
    "waiting": "waiting",
    "stopping": "is being stopped",
}


@dataclass(frozen=True)
class Entry:
    """One thing that was said or done in a session. `who` is a word of ours."""

    at_us: int
    who: str
    text: str
    kind: Literal["message", "tool", "state"] = "message"


def state_of(member: Member) -> str:
    """A run's state in words."""
    words = _WORDS.get(member.state, member.state)
    return f"{words} for {member.waits_for}" if member.waits_for else words


def listed(members: Sequence[Member], now_us: int, limit: int) -> str:
    """The sub-agents, oldest first; of too many the newest."""
    if not members:
        return "No sub-agents in this conversation."
    live = sum(1 for member in members if member.live)
    noun = "sub-agent" if len(members) == 1 else "sub-agents"
    lines = [f"{len(members)} {noun}, {live} live:"]
    if len(members) > limit:
        lines.append(f"({len(members) - limit} older ones left out)")
    numbers = {member.run_id: member.number for member in members}
    for member in members[-limit:]:
        above = numbers.get(member.parent_id)
        under = f" (under {above})" if above else ""
        facts = [
            f"{member.number}. «{_name(member)}»{under}: {state_of(member)}",
            _kind(member),
            *_figures(member, now_us),
            f"run {member.run_id}",
        ]
        lines.append(" · ".join(fact for fact in facts if fact))
        if member.error:
            lines.append(f"   error: {excerpt(member.error, 200)}")
    return "\n".join(lines)


def described(member: Member, now_us: int, task: str, said: str) -> str:
    """Everything about one sub-agent. `task` is what it was asked, `said` its latest reply."""
    lines = [
        f"{member.number}. «{_name(member)}»: {state_of(member)}",
        f"run: {member.run_id}",
        f"depth: {member.depth}, turn: {member.turn}",
        f"runtime: {'acp' if member.queue == 'acp' else 'subagent'}"
        + (f", {member.agent_id}" if member.agent_id else ""),
        f"model: {member.model or 'not known yet'}",
        f"used: {', '.join(_figures(member, now_us))}",
    ]
    if member.trace_id:
        lines.append(f"trace: {member.trace_id}")
    if member.error:
        lines.append(f"error: {excerpt(member.error, LINE_CHARS)}")
    lines.append(f"task: {_cut(task, TASK_CHARS)}")
    if said:
        lines += [results.RECORD_WARNING, results.record(_facts(member), _cut(said, ENTRY_CHARS))]
    elif member.live:
        lines.append("It has not replied yet.")
    return "\n".join(lines)


def logged(member: Member, entries: Sequence[Entry], limit: int) -> str:
    """The newest lines of a sub-agent's log, oldest first."""
    shown = entries[-limit:]
    lines = [
        f"{clock(entry.at_us)} {entry.who}: {excerpt(entry.text, LINE_CHARS)}" for entry in shown
    ]
    older = len(entries) - len(shown)
    head = f"({older} older lines left out)\n" if older else ""
    body = "\n".join(lines) or "(nothing happened yet)"
    return f"{results.RECORD_WARNING}\n{head}{results.record(_facts(member), body)}"


def told(name: dict[str, str], entries: Sequence[Entry], *, limit: int, offset: int) -> str:
    """Messages of a session, oldest first: the newest `limit` after leaving out `offset`."""
    end = max(0, len(entries) - offset)
    start = max(0, end - limit)
    shown: list[str] = []
    room = TOTAL_CHARS
    # From the newest on, so that what does not fit is the oldest.
    for entry in reversed(entries[start:end]):
        piece = f"{clock(entry.at_us)} {entry.who}: {_cut(entry.text, ENTRY_CHARS)}"
        if len(piece) > room:
            break
        room -= len(piece)
        shown.insert(0, piece)
    if not shown:
        return "There are no messages." if not entries else "There are no older messages."
    older = end - len(shown)
    head = f"({older} older messages: use offset={offset + len(shown)})\n" if older else ""
    return f"{results.RECORD_WARNING}\n{head}{results.record(name, chr(10).join(shown))}"


def sessions(members: Sequence[Member], now_us: int, limit: int) -> str:
    """The sessions that a run may look at: its own conversation first."""
    lines = ["own: this conversation"]
    if len(members) > limit:
        lines.append(f"({len(members) - limit} older ones left out)")
    for member in members[-limit:]:
        facts = [
            f"{member.number}. «{_name(member)}»: run {member.run_id}",
            _kind(member),
            state_of(member),
            *_figures(member, now_us),
        ]
        lines.append(" · ".join(fact for fact in facts if fact))
    if not members:
        lines.append("No sub-agents in this conversation.")
    return "\n".join(lines)


def facts_of(member: Member) -> dict[str, str]:
    """What a record of a sub-agent is marked with."""
    return _facts(member)


def clock(at_us: int) -> str:
    """Time of the day in UTC."""
    seconds = at_us // 1_000_000 % 86_400
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def span(us: int) -> str:
    """A length of time as people say it."""
    seconds = max(0, us) / 1e6
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _figures(member: Member, now_us: int) -> list[str]:
    until = member.end_us or now_us
    found = [
        f"{span(until - member.create_us)} old" if member.live else span(until - member.create_us)
    ]
    tokens = f"{member.tokens:,} tokens"
    if member.tree_tokens > member.tokens:
        tokens += f" ({member.tree_tokens:,} with all below)"
    found.append(tokens)
    if member.cost:
        found.append(f"{'≥ ' if member.unpriced else ''}${member.cost / 1e6:.4f}")
    return found


def _kind(member: Member) -> str:
    runtime = f"acp {member.agent_id}".strip() if member.queue == "acp" else member.agent_id
    return ", ".join(part for part in (runtime, member.model) if part)


def _name(member: Member) -> str:
    # Labels of runs further down were written by other models.
    return excerpt(member.label or "no label", 64)


def _facts(member: Member) -> dict[str, str]:
    return {"run": member.run_id, "label": member.label, "status": member.state}


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[:limit] + f"… ({len(text) - limit} characters cut)"

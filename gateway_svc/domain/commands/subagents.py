"""What `/subagents` answers: the list, one of them, its log."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from conveyor.events.v1 import event_pb2
from conveyor.scheduler.v1 import run_pb2
from gateway_svc.domain.commands.words import (
    SECOND,
    age,
    at_us,
    cost,
    model_words,
    name_of,
    runtime_of,
    spent,
    state_words,
    tokens,
)
from gateway_svc.domain.deliveries import message_text
from gateway_svc.domain.sessions import TERMINAL_STATES
from svckit.words import count, shorten, span

RECENT_SECONDS = 30 * 60
PAGE = 8
"""Rows of one page: with a head and a foot they fit a telephone."""
LOG_LINES = 8
MAX_LOG_LINES = 20
_LABEL, _TASK, _LINE = 40, 240, 120


@dataclass(frozen=True, slots=True)
class Child:
    """A run below a request. `position` is its place in line, 0 when unknown or not queued."""

    run: run_pb2.Run
    live_children: int = 0
    position: int = 0

    @property
    def live(self) -> bool:
        """True until it and everything below it has ended."""
        return self.run.state not in TERMINAL_STATES

    @property
    def at_work(self) -> bool:
        """True when it is live and nobody has stopped it yet."""
        return self.live and self.run.state != run_pb2.RUN_STATE_CANCELLING


def children_of(nodes: Iterable[run_pb2.Run], now_us: int) -> list[Child]:
    """Return those below a root that are at work or ended a short while ago.

    Those at work come first, oldest first, so that their numbers change least; then those that
    ended, newest first.
    """
    runs = list(nodes)
    live_below: dict[str, int] = {}
    for run in runs:
        if run.state not in TERMINAL_STATES:
            parent = run.spawn.parent_run_id
            live_below[parent] = live_below.get(parent, 0) + 1
    children = [
        Child(run, live_below.get(run.run_id, 0)) for run in runs if run.spawn.parent_run_id
    ]
    live = sorted((c for c in children if c.live), key=lambda child: child.run.run_id)
    since = now_us - RECENT_SECONDS * SECOND
    ended = [c for c in children if not c.live and at_us(c.run.timing.end_time) >= since]
    ended.sort(key=lambda child: at_us(child.run.timing.end_time), reverse=True)
    return live + ended


def list_text(children: Sequence[Child], page: int, total: int, now_us: int) -> str:
    """Return one page of the list. `children` are those of the page, `total` all."""
    if not total:
        return "No sub-agents: none is at work, and none ended in the last 30 minutes."
    if not children:
        return f"There is no page {page}: `/subagents list` shows the first one."
    first = (page - 1) * PAGE + 1
    lines = [row(number, child, now_us) for number, child in enumerate(children, first)]
    left = total - (first - 1) - len(children)
    if left > 0:
        lines.append(f"and {left} more: `/subagents list {page + 1}`")
    elif page == 1 and any(child.live for child in children):
        lines.append("`/subagents info 1` says more; `/kill 1` stops one")
    return "\n".join([f"{count(total, 'sub-agent')}:", *lines])


def row(number: int, child: Child, now_us: int) -> str:
    """Return one line: number, label, state, age, runtime and model, tokens, cost."""
    run = child.run
    state = state_words(run, child.live_children, child.position)
    deeper = "↳ " * (run.spawn.depth - 1)
    when = f"{state}, {age(run, now_us)}"
    return " · ".join(
        [
            f"#{number} {deeper}{shorten(name_of(run), _LABEL)}",
            when,
            f"{runtime_of(run)} {model_words(run)}",
            # With what is below it: an orchestrator's own calls are the smaller part.
            spent(run.tree_usage),
        ]
    )


def info_text(child: Child, task: str, now_us: int) -> str:
    """Return everything about one. `task` is what it was told to do."""
    run = child.run
    timing = run.timing
    lines = [
        f"{name_of(run)} · {state_words(run, child.live_children, child.position)}",
        f"Task: {shorten(task, _TASK)}" if task.strip() else "",
        f"{runtime_of(run)} {model_words(run)} · turn {run.turn}" if run.turn else "Not begun yet",
        f"Own: {tokens(run.usage)}, {cost(run.usage)}",
    ]
    if run.tree_usage != run.usage:
        lines.append(f"With all below it: {tokens(run.tree_usage)}, {cost(run.tree_usage)}")
    executed = timing.executed.seconds + timing.executed.nanos / 1e9
    if run.state == run_pb2.RUN_STATE_RUNNING:
        executed += (now_us - at_us(timing.state_time)) / SECOND
    lines.append(f"There for {age(run, now_us)}, worked {span(executed)}")
    if run.error.message:
        lines.append(f"Why: {shorten(run.error.message, _TASK)}")
    lines.append(f"Run {run.run_id}")
    return "\n".join(line for line in lines if line)


def log_text(run: run_pb2.Run, events: Sequence[event_pb2.Event], lines: int) -> str:
    """Return the last `lines` things that a run said and did, oldest first."""
    told = [line for event in events if (line := _event_line(event))]
    if not told:
        return f"{name_of(run)} has said and done nothing yet."
    return "\n".join([f"{name_of(run)}:", *told[-lines:]])


def _event_line(event: event_pb2.Event) -> str:
    match event.WhichOneof("payload"):
        case "message_completed":
            return _said(event.message_completed)
        case "tool_call_started":
            return f"calls {event.tool_call_started.tool_name}"
        case "tool_call_ended" if event.tool_call_ended.HasField("error"):
            return shorten(f"a tool failed: {event.tool_call_ended.error.message}", _LINE)
        case "child_spawned":
            label = event.child_spawned.label or event.child_spawned.child_run_id
            return f"started {shorten(label, _LABEL)}"
        case "child_announced":
            result = event.child_announced.announcement.result
            state = run_pb2.RunState.Name(result.status).removeprefix("RUN_STATE_").lower()
            return f"{shorten(result.label or result.run_id, _LABEL)} {state}"
        case "steer_accepted":
            return "took a message"
        case "steer_missed":
            return "missed a message"
        case "note_added":
            return shorten(event.note_added.text, _LINE)
        case "question_asked":
            return shorten(f"asks: {event.question_asked.question.title}", _LINE)
        case _:
            return ""


def _said(completed: event_pb2.MessageCompleted) -> str:
    who = {
        event_pb2.MESSAGE_KIND_INPUT: "told",
        event_pb2.MESSAGE_KIND_INTERNAL: "thinks",
    }.get(completed.kind, "says")
    text = message_text(completed.message)
    return shorten(f"{who}: {text}", _LINE) if text else ""

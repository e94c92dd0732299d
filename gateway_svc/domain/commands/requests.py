"""What `/tasks` and `/flow` answer about the requests of a conversation with their trees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from conveyor.scheduler.v1 import flow_service_pb2 as fs
from conveyor.scheduler.v1 import run_pb2
from gateway_svc.domain.commands.words import (
    SECOND,
    at_us,
    name_of,
    spent,
    state_words,
)
from gateway_svc.domain.sessions import TERMINAL_STATES
from svckit.words import count, shorten, span

BOARD_HOURS = 24
ROWS = 8
_TITLE, _NAME = 48, 36

_WORDS = {
    run_pb2.RUN_STATE_QUEUED: "queued",
    run_pb2.RUN_STATE_RUNNING: "working",
    run_pb2.RUN_STATE_SUSPENDED: "waiting",
    run_pb2.RUN_STATE_CANCELLING: "stopping",
    run_pb2.RUN_STATE_SUCCEEDED: "done",
    run_pb2.RUN_STATE_FAILED: "failed",
    run_pb2.RUN_STATE_CANCELLED: "stopped",
    run_pb2.RUN_STATE_EXPIRED: "out of time",
}


@dataclass(frozen=True, slots=True)
class Request:
    """A flow with what its message said. `title` may be empty."""

    flow: fs.Flow
    title: str = ""

    @property
    def live(self) -> bool:
        """True until the whole tree has ended."""
        return self.flow.state not in TERMINAL_STATES

    @property
    def name(self) -> str:
        """What people recognise it by."""
        title = shorten(self.title, _TITLE) or shorten(self.flow.label, _TITLE)
        return title or f"…{self.flow.flow_id[-6:]}"


def board_order(flows: Sequence[fs.Flow]) -> list[fs.Flow]:
    """Return those under way, oldest first, then those that ended, newest first."""
    live = sorted(
        (f for f in flows if f.state not in TERMINAL_STATES), key=lambda flow: flow.flow_id
    )
    ended = [flow for flow in flows if flow.state in TERMINAL_STATES]
    ended.sort(key=lambda flow: flow.flow_id, reverse=True)
    return live + ended


def board_text(requests: Sequence[Request], all_flows: Sequence[fs.Flow], now_us: int) -> str:
    """Return what `/tasks` says: how many are where, and the first few of them."""
    if not all_flows:
        return "Nothing was asked here in the last 24 hours."
    counts: dict[str, int] = {}
    for flow in all_flows:
        word = _WORDS.get(flow.state, "unknown")
        counts[word] = counts.get(word, 0) + 1
    head = f"Last 24 h: {' · '.join(f'{number} {word}' for word, number in counts.items())}"
    return "\n".join([head, *_rows(requests, len(all_flows), now_us)])


def flows_text(
    requests: Sequence[Request], total: int, now_us: int, *, numbered: bool = True
) -> str:
    """Return what `/flow list` says. Without a conversation, ids stand in the place of numbers."""
    if not total:
        return "No request here has taken sub-agents yet."
    rows = _rows(requests, total, now_us, numbered=numbered)
    return "\n".join([f"{count(total, 'request')} with sub-agents:", *rows])


def flow_text(request: Request, nodes: Sequence[run_pb2.Run], total: int, now_us: int) -> str:
    """Return what `/flow show` says: the request, and its tree in lines."""
    flow = request.flow
    lines = [request.name, f"{_state(flow)} · {_age(flow, now_us)} · {spent(flow.usage)}"]
    live_below: dict[str, int] = {}
    for run in nodes:
        if run.state not in TERMINAL_STATES:
            parent = run.spawn.parent_run_id
            live_below[parent] = live_below.get(parent, 0) + 1
    children = [run for run in nodes if run.spawn.parent_run_id]
    for run in children[:ROWS]:
        state = state_words(run, live_below.get(run.run_id, 0))
        lines.append(
            f"{'↳ ' * run.spawn.depth}{shorten(name_of(run), _NAME)} · {state} · {spent(run.usage)}"
        )
    if (left := total - 1 - min(len(children), ROWS)) > 0:
        lines.append(f"and {left} more: `conveyor flow show {flow.flow_id}`")
    if flow.error.message:
        lines.append(f"Why: {shorten(flow.error.message, 160)}")
    return "\n".join([*lines, f"Flow {flow.flow_id}"])


def _rows(
    requests: Sequence[Request], total: int, now_us: int, *, numbered: bool = True
) -> list[str]:
    lines = []
    for number, request in enumerate(requests, start=1):
        flow = request.flow
        handle = f"#{number}" if numbered else flow.flow_id
        words = [f"{handle} {request.name}", _state(flow), _age(flow, now_us), spent(flow.usage)]
        lines.append(" · ".join(words))
    if total > len(requests):
        lines.append(f"and {total - len(requests)} more")
    if requests and numbered:
        lines.append("`/flow show 1` shows one, `/flow cancel 1` stops it")
    return lines


def _state(flow: fs.Flow) -> str:
    """Return the state of a tree: of its root, and how far its children are."""
    word = _WORDS.get(flow.state, "unknown")
    counts: Mapping[int, int] = {c.state: c.runs for c in flow.state_counts}
    below = sum(counts.values()) - 1
    if below <= 0:
        return word
    ended = sum(runs for state, runs in counts.items() if state in TERMINAL_STATES)
    ended -= flow.state in TERMINAL_STATES
    return f"{word}, {ended} of {count(below, 'sub-agent')} ended"


def _age(flow: fs.Flow, now_us: int) -> str:
    end = at_us(flow.timing.end_time) or now_us
    return span((end - at_us(flow.timing.create_time)) / SECOND)

"""What a history is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from conveyor.common.v1 import question_pb2
from conveyor.events.v1 import event_pb2
from conveyor.scheduler.v1 import run_pb2

FOREVER = 1 << 62


@dataclass(slots=True)
class Totals:
    """Totals of model calls."""

    model_calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_micros_usd: int = 0

    def __add__(self, other: Totals) -> Totals:
        return Totals(
            self.model_calls + other.model_calls,
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cost_micros_usd + other.cost_micros_usd,
        )


@dataclass(slots=True)
class RunRow:
    """A run as stored at the end. Times are spans in microseconds; numbers as in `run_pb2`."""

    run_id: str
    flow_id: str
    session_key: str
    lane: str
    # Order of acceptance over all sessions.
    order: int
    state: int
    parent_id: str = ""
    depth: int = 0
    # Request ids of the messages it holds.
    requests: Sequence[str] = ()
    # An interrupt goes before older runs of its session.
    jumps: bool = False
    usage: Totals = field(default_factory=Totals)
    tree_usage: Totals = field(default_factory=Totals)
    queued: int = 0
    suspended: int = 0
    executed: int = 0
    # 0 means none.
    run_timeout: int = 0
    descendants: int = 0


class Limits:
    """Which limits a global lane may have had at a time, as far as a test can know."""

    def __init__(self, configured: Mapping[str, int]) -> None:
        self._windows = {lane: [(0, FOREVER, limit)] for lane, limit in configured.items()}

    def changed(self, lane: str, limit: int, asked: int, answered: int) -> None:
        """Notes a change that took place between two times (microseconds). In order of time."""
        windows = self._windows[lane]
        before, _, old = windows[-1]
        windows[-1] = (before, answered, old)
        windows.append((asked, FOREVER, limit))

    def unanswered(self, lane: str, limit: int, asked: int) -> None:
        """Notes a change of which nobody knows whether it took place."""
        self._windows[lane].insert(0, (asked, FOREVER, limit))

    def most(self, lane: str, time: int) -> int | None:
        """The greatest limit that may have been in force; `None` when nothing is known."""
        windows = self._windows.get(lane)
        if windows is None:
            return None
        return max(limit for begin, end, limit in windows if begin <= time <= end)


@dataclass(slots=True)
class History:
    """All runs and events of a store, and what clients saw of it."""

    runs: dict[str, RunRow]
    # In the order of their positions.
    events: list[event_pb2.Event]
    # What enqueuing clients were told: request id -> run id.
    accepted: dict[str, str] = field(default_factory=dict)
    # What watching clients were sent, each list from one resumed watch of one session.
    watched: list[list[event_pb2.Event]] = field(default_factory=list)
    limits: Limits | None = None
    # True once faults have stopped and everything had its time: every run must have ended.
    finished: bool = False
    # False when the scheduler was away for longer than a lease, or its clock was set forward while
    # it was: what it cannot know as executing time it leaves out.
    exact: bool = True
    # False for stores from which retention has removed something.
    whole: bool = True

    def story(self, run_id: str) -> str:
        """The log of a run in short lines, for messages."""
        lines = [_line(event) for event in self.events if event.run_id == run_id]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken invariant; the number is that of the design, 0 for what holds besides."""

    invariant: int
    run_id: str
    text: str

    def __str__(self) -> str:
        return f"invariant {self.invariant}, run {self.run_id}: {self.text}"


def name(state: int) -> str:
    """Return `running` for `RUN_STATE_RUNNING`."""
    known = run_pb2.RunState.Name(run_pb2.RunState.ValueType(state))
    return known.removeprefix("RUN_STATE_").lower()


def _line(event: event_pb2.Event) -> str:
    kind = event.WhichOneof("payload")
    what: str = kind or "?"
    if kind == "run_state_changed":
        change = event.run_state_changed
        what = f"{name(change.previous_state)} -> {name(change.state)}"
        what += f" {change.turn}.{change.attempt}"
        what += f" ({change.cause})" if change.cause else ""
    elif kind == "child_spawned":
        what += f" {event.child_spawned.child_run_id}"
    elif kind == "child_announced":
        result = event.child_announced.announcement.result
        what += f" {result.run_id} {name(result.status)}"
    elif kind == "question_asked":
        what += f" {event.question_asked.question.question_id}"
    elif kind == "question_closed":
        closed = event.question_closed
        what += f" {closed.answer.question_id} {question_pb2.QuestionState.Name(closed.state)}"
    time = event.create_time.ToMicroseconds()
    entry = f"{event.session_key}#{event.sequence}"
    return f"  {event.position:>6} {time} {entry} {event.run_id} {what}"

"""The checks. One pass over the events in the order of their commits, then a look at the runs.

Only what a history proves is a violation. One thing it does not show: when a run that is being
cancelled while it executes, with live children, really stops; such a run counts as stopped.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from conveyor.common.v1 import question_pb2, usage_pb2
from conveyor.events.v1 import event_pb2
from conveyor.scheduler.v1 import announcement_pb2, run_pb2
from tests.history.model import History, RunRow, Totals, Violation, name

QUEUED = run_pb2.RUN_STATE_QUEUED
RUNNING = run_pb2.RUN_STATE_RUNNING
SUSPENDED = run_pb2.RUN_STATE_SUSPENDED
CANCELLING = run_pb2.RUN_STATE_CANCELLING
SUCCEEDED = run_pb2.RUN_STATE_SUCCEEDED
EXPIRED = run_pb2.RUN_STATE_EXPIRED
TERMINAL = frozenset({SUCCEEDED, run_pb2.RUN_STATE_FAILED, run_pb2.RUN_STATE_CANCELLED, EXPIRED})
ENDED = TERMINAL | {CANCELLING}
# Into the key only from these; states that are not named here come from anywhere unfinished.
ONLY_FROM = {
    QUEUED: {run_pb2.RUN_STATE_UNSPECIFIED, RUNNING, SUSPENDED},
    RUNNING: {QUEUED},
    SUSPENDED: {RUNNING, SUSPENDED},
    SUCCEEDED: {RUNNING},
}
SHOWN = 8


def assert_holds(history: History) -> None:
    """Raises `AssertionError` with what is broken, and the stories of the runs concerned."""
    found = check(history)
    if not found:
        return
    lines = [str(violation) for violation in found[:SHOWN]]
    if len(found) > SHOWN:
        lines.append(f"… and {len(found) - SHOWN} more")
    for run_id in dict.fromkeys(violation.run_id for violation in found[:3]):
        lines += [f"story of {run_id}:", history.story(run_id)]
    raise AssertionError("the history breaks what was promised:\n" + "\n".join(lines))


def check(history: History) -> list[Violation]:
    """Everything that the history proves to be broken, in the order in which it happened."""
    return _Pass(history).go()


@dataclass(slots=True)
class _Life:
    """Where a run is, as the log tells it."""

    row: RunRow
    state: int = run_pb2.RUN_STATE_UNSPECIFIED
    since: int = 0
    turn: int = 0
    attempt: int = 0
    executing: bool = False
    # Its worker keeps, or kept, a lease without a slot, and may write.
    kept: bool = False
    # Certain as long as it did not stop at a time that the log does not show.
    executed: int | None = 0
    queued: int = 0
    suspended: int = 0
    live: set[str] = field(default_factory=set)
    settled: list[str] = field(default_factory=list)
    # Children whose end no turn was told yet.
    untold: list[str] = field(default_factory=list)
    awaited: list[str] = field(default_factory=list)
    each: bool = False
    replied_in: int = 0
    replies: int = 0
    spawned: int = 0
    # Ids of its open questions; of those it waits for; of closed ones that no turn was told yet.
    asked: set[str] = field(default_factory=set)
    awaited_answers: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    # The time at which its wait was satisfied: it must go on in the same commit.
    satisfied: int = 0
    usage: Totals = field(default_factory=Totals)


class _Pass:
    def __init__(self, history: History) -> None:
        self.history = history
        self.found: list[Violation] = []
        self.lives = {run_id: _Life(row) for run_id, row in history.runs.items()}
        self.heads: dict[str, int] = {}
        self.ids: dict[str, set[str]] = defaultdict(set)
        self.executing: dict[str, str] = {}  # session -> run
        self.holder: dict[str, str] = {}  # session -> run that holds the lane for certain
        self.running: dict[str, int] = defaultdict(int)  # lane -> executing runs
        self.started: dict[str, int] = {}  # session -> order of the newest first start
        self.steers: set[tuple[str, str]] = set()
        self.questions: dict[str, int] = {}  # id -> state
        self.moved: set[str] = set()  # requests that were offered to a run
        self.position = 0
        self.time = 0
        # With a clock that was set back sums of times mean nothing.
        self.steady = True
        self.due: list[_Life] = []  # satisfied waits that must end in this commit

    def say(self, invariant: int, run_id: str, text: str) -> None:
        self.found.append(Violation(invariant, run_id, text))

    def go(self) -> list[Violation]:
        for event in self.history.events:
            self._numbered(event)
            life = self.lives.get(event.run_id)
            if life is None:
                if self.history.whole:
                    self.say(5, event.run_id, f"position {event.position}: no such run is stored")
                continue
            self._placed(event, life)
            kind = event.WhichOneof("payload")
            if event.attempt:
                self._by_worker(event, life)
                if kind == "question_asked":
                    self._asked(event, life)
            elif kind == "question_closed":
                self._question_closed(event, life)
            elif kind == "run_state_changed":
                self._changed(event, life)
            elif kind == "message_completed":
                self._said(event, life)
            elif kind == "child_spawned":
                self._spawned(event, life)
            elif kind == "child_announced":
                self._announced(event, life)
            elif kind == "usage_reported":
                life.usage += _totals(event.usage_reported.usage)
            elif kind in ("steer_accepted", "steer_missed"):
                self._steered(event, life)
        self._waits_are_over()
        for life in self.lives.values():
            self._at_the_end(life)
        self._requests()
        self._watches()
        return self.found

    # -- Every event ------------------------------------------------------------------------------

    def _numbered(self, event: event_pb2.Event) -> None:
        where = f"session {event.session_key!r}, position {event.position}"
        if event.position <= self.position:
            self.say(10, event.run_id, f"{where}: position {self.position} came before")
        self.position = event.position
        head = self.heads.get(event.session_key)
        wanted = event.sequence if head is None and not self.history.whole else (head or 0) + 1
        if event.sequence != wanted:
            self.say(10, event.run_id, f"{where}: sequence {event.sequence} instead of {wanted}")
        self.heads[event.session_key] = event.sequence
        if event.event_id in self.ids[event.session_key]:
            self.say(10, event.run_id, f"{where}: event id {event.event_id!r} is there twice")
        self.ids[event.session_key].add(event.event_id)
        time = event.create_time.ToMicroseconds()
        if time != self.time:
            self._waits_are_over()
        self.steady = self.steady and time >= self.time
        self.time = time

    def _placed(self, event: event_pb2.Event, life: _Life) -> None:
        if (event.session_key, event.flow_id) != (life.row.session_key, life.row.flow_id):
            self.say(
                10,
                life.row.run_id,
                f"position {event.position} is in session {event.session_key!r} and flow "
                f"{event.flow_id}, the run in {life.row.session_key!r} and {life.row.flow_id}",
            )

    def _by_worker(self, event: event_pb2.Event, life: _Life) -> None:
        newest = (life.turn, life.attempt)
        writes = life.state in (RUNNING, CANCELLING) or (
            life.kept and life.state in (SUSPENDED, QUEUED)
        )
        if (event.turn, event.attempt) != newest or not writes:
            self.say(
                6,
                life.row.run_id,
                f"attempt {event.turn}.{event.attempt} wrote at position {event.position}, when "
                f"the run was {name(life.state)} and its newest attempt {newest[0]}.{newest[1]}",
            )

    # -- States -----------------------------------------------------------------------------------

    def _changed(self, event: event_pb2.Event, life: _Life) -> None:
        change = event.run_state_changed
        run_id, where = life.row.run_id, f"position {event.position}"
        if life.state in TERMINAL:
            self.say(5, run_id, f"{where}: {name(change.state)} after it ended {name(life.state)}")
            return
        if change.previous_state != life.state:
            self.say(
                5,
                run_id,
                f"{where}: comes from {name(change.previous_state)}, but was {name(life.state)}",
            )
        allowed = ONLY_FROM.get(change.state)
        if (allowed is not None and life.state not in allowed) or (
            life.state == CANCELLING and change.state not in ENDED
        ):
            number = 16 if change.state == SUCCEEDED else 5
            self.say(number, run_id, f"{where}: {name(life.state)} -> {name(change.state)}")
        if life.state == change.state == SUSPENDED:  # only its session lane is free from now on
            self._stops(change, life)
            return
        self._add_up(life)
        if change.state == RUNNING:
            self._starts(change, life, where)
        else:
            self._stops(change, life)
        if change.state == SUSPENDED:
            self._suspends(change, life, where)
        elif change.state == QUEUED and life.state == SUSPENDED:
            self._resumes(change, life, where)
        if change.state in TERMINAL:
            self._ends(change, life, where)
        if change.state != SUSPENDED:
            life.satisfied = 0
        life.state, life.since = change.state, self.time

    def _add_up(self, life: _Life) -> None:
        span = max(0, self.time - life.since)
        if life.state == QUEUED:
            life.queued += span
        elif life.state == SUSPENDED:
            life.suspended += span
        elif life.executing and life.executed is not None:
            life.executed += span

    def _starts(self, change: event_pb2.RunStateChanged, life: _Life, where: str) -> None:
        row, run_id = life.row, life.row.run_id
        now, before = (change.turn, change.attempt), (life.turn, life.attempt)
        goes_on = now in ((life.turn, life.attempt), (life.turn, life.attempt + 1)) and life.turn
        if now != (life.turn + 1, 1) and not goes_on:
            self.say(6, run_id, f"{where}: attempt {now} comes after {before}")
        if change.turn != life.turn:
            life.untold, life.answers = [], []
        other = self.executing.get(row.session_key)
        if other:
            self.say(1, run_id, f"{where}: starts while run {other} of its session executes")
        held = self.holder.get(row.session_key)
        if held not in (None, run_id, other):
            self.say(1, run_id, f"{where}: starts while run {held} holds the session lane")
        if now == (1, 1) and before == (0, 0) and not row.jumps:
            newest = self.started.get(row.session_key, 0)
            if row.order < newest:
                self.say(2, run_id, f"{where}: its order is {row.order}, but {newest} has started")
            self.started[row.session_key] = max(newest, row.order)
        for above in self._line_up(row, itself=False):
            if above.state in ENDED:
                self.say(
                    11, run_id, f"{where}: starts, but {above.row.run_id} is {name(above.state)}"
                )
        self.running[row.lane] += 1
        most = self.history.limits.most(row.lane, self.time) if self.history.limits else None
        if most is not None and self.running[row.lane] > most:
            self.say(
                3,
                run_id,
                f"{where}: starts as number {self.running[row.lane]} of lane {row.lane!r}, whose "
                f"limit is {most}",
            )
        life.turn, life.attempt, life.executing = change.turn, change.attempt, True
        life.kept = False
        self.executing[row.session_key] = self.holder[row.session_key] = run_id

    def _stops(self, change: event_pb2.RunStateChanged, life: _Life) -> None:
        row = life.row
        if life.executing:
            if change.state == CANCELLING and not life.live:
                return  # it ends when its worker confirms
            if change.state == CANCELLING:
                life.executed = None
            life.executing = False
            self.running[row.lane] -= 1
            self.executing.pop(row.session_key, None)
        # Whether a turn that is followed by the next at once released the lane is not logged.
        keeps = change.state == QUEUED and not (life.state == RUNNING and change.resume_reason)
        if change.state == SUSPENDED:
            keeps = change.suspension.holds_session_lane
        if not keeps and self.holder.get(row.session_key) == row.run_id:
            del self.holder[row.session_key]

    def _suspends(self, change: event_pb2.RunStateChanged, life: _Life, where: str) -> None:
        condition, life.kept = change.suspension.condition, bool(change.suspension.lease_worker)
        life.awaited, life.awaited_answers = [], []
        if condition.HasField("approval"):
            self._awaits_answers(list(condition.approval.question_ids), life, where)
        if condition.WhichOneof("condition") != "children":
            return
        life.awaited = list(condition.children.run_ids)
        life.each = condition.children.mode == run_pb2.ANNOUNCE_MODE_EACH
        strangers = set(life.awaited) - life.live - set(life.settled)
        if strangers:
            self.say(8, life.row.run_id, f"{where}: awaits {sorted(strangers)}, no children of it")
        elif self._satisfied(life):
            self.say(8, life.row.run_id, f"{where}: waits for what has settled already")

    def _satisfied(self, life: _Life) -> bool:
        live = [child for child in life.awaited if child in life.live]
        return not live or (life.each and len(live) < len(life.awaited))

    def _resumes(self, change: event_pb2.RunStateChanged, life: _Life, where: str) -> None:
        settled = change.resume_reason == announcement_pb2.RESUME_REASON_CHILDREN_SETTLED
        if settled and not self._satisfied(life):
            left = [child for child in life.awaited if child in life.live]
            self.say(8, life.row.run_id, f"{where}: resumed as settled while {left} are live")
        if settled and life.awaited and not life.untold:
            self.say(8, life.row.run_id, f"{where}: resumed a second time for what it was told")
        answered = change.resume_reason == announcement_pb2.RESUME_REASON_ANSWERED
        if answered and not set(life.awaited_answers) & set(life.answers):
            self.say(8, life.row.run_id, f"{where}: resumed as answered, but nothing was")

    def _ends(self, change: event_pb2.RunStateChanged, life: _Life, where: str) -> None:
        if life.live:
            self.say(
                9,
                life.row.run_id,
                f"{where}: {name(change.state)} while {sorted(life.live)} have not ended",
            )
        if life.asked:
            self.say(
                0, life.row.run_id, f"{where}: {name(change.state)} while {life.asked} are open"
            )
        row = life.row
        timed_out = change.state == EXPIRED and change.cause.startswith("run_timeout")
        if timed_out and row.executed < row.run_timeout:
            self.say(
                15,
                row.run_id,
                f"{where}: expired after {row.executed} of {row.run_timeout} µs of executing time",
            )
        if change.state == SUCCEEDED and life.untold:
            self.say(
                9,
                life.row.run_id,
                f"{where}: succeeded although no turn was told the end of {life.untold}",
            )

    # -- Trees ------------------------------------------------------------------------------------

    def _line_up(self, row: RunRow, *, itself: bool) -> Iterator[_Life]:
        above = self.lives.get(row.run_id if itself else row.parent_id)
        while above is not None:
            yield above
            above = self.lives.get(above.row.parent_id)

    def _spawned(self, event: event_pb2.Event, life: _Life) -> None:
        child_id, where = event.child_spawned.child_run_id, f"position {event.position}"
        child = self.lives.get(child_id)
        if child is None:
            self.say(5, child_id, f"{where}: spawned, but not stored")
            return
        if (child.row.parent_id, child.row.flow_id) != (life.row.run_id, life.row.flow_id):
            self.say(12, child_id, f"{where}: its parent is {child.row.parent_id!r} as stored")
        if child.row.depth != life.row.depth + 1:
            self.say(12, child_id, f"{where}: depth {child.row.depth} under {life.row.depth}")
        if child_id in life.live or child_id in life.settled:
            self.say(7, child_id, f"{where}: spawned a second time")
        for above in self._line_up(life.row, itself=True):
            if above.state in ENDED:
                self.say(
                    11,
                    child_id,
                    f"{where}: admitted while {above.row.run_id} is {name(above.state)}",
                )
            above.spawned += 1
        life.live.add(child_id)

    def _announced(self, event: event_pb2.Event, life: _Life) -> None:
        result = event.child_announced.announcement.result
        child_id, where = result.run_id, f"position {event.position}"
        if child_id not in life.live:
            what = "a second time" if child_id in life.settled else "but is no child of it"
            self.say(9, child_id, f"{where}: its end is told to {life.row.run_id} {what}")
            return
        child = self.lives.get(child_id)
        if child is not None and child.state != result.status:
            self.say(
                9,
                child_id,
                f"{where}: told as {name(result.status)}, but it is {name(child.state)}",
            )
        life.live.discard(child_id)
        life.settled.append(child_id)
        life.untold.append(child_id)
        if life.state == SUSPENDED and life.awaited and self._satisfied(life):
            life.satisfied = event.position
            self.due.append(life)

    def _waits_are_over(self) -> None:
        for life in self.due:
            if life.satisfied and life.state == SUSPENDED:
                self.say(
                    8,
                    life.row.run_id,
                    f"its wait was satisfied at position {life.satisfied}, but it did not go on",
                )
        self.due = []

    # -- Questions --------------------------------------------------------------------------------

    def _asked(self, event: event_pb2.Event, life: _Life) -> None:
        question, where = event.question_asked.question, f"position {event.position}"
        if question.question_id in self.questions:
            self.say(0, life.row.run_id, f"{where}: {question.question_id} is asked twice")
        self.questions[question.question_id] = question_pb2.QUESTION_STATE_OPEN
        life.asked.add(question.question_id)
        if life.state == SUSPENDED and life.awaited_answers:  # asked under a kept lease
            life.awaited_answers.append(question.question_id)

    def _question_closed(self, event: event_pb2.Event, life: _Life) -> None:
        closed, where = event.question_closed, f"position {event.position}"
        question_id = closed.answer.question_id
        if question_id not in life.asked:
            before = self.questions.get(question_id)
            what = "is not asked by it" if before is None else "was closed before"
            self.say(0, life.row.run_id, f"{where}: {question_id} is closed, but {what}")
            return
        life.asked.discard(question_id)
        self.questions[question_id] = closed.state
        if closed.state == question_pb2.QUESTION_STATE_CANCELLED:
            return
        life.answers.append(question_id)
        if life.state == SUSPENDED and question_id in life.awaited_answers:
            life.satisfied = event.position
            self.due.append(life)

    def _awaits_answers(self, question_ids: list[str], life: _Life, where: str) -> None:
        life.awaited_answers = question_ids
        not_open = [one for one in question_ids if one not in life.asked]
        if not_open:
            self.say(8, life.row.run_id, f"{where}: waits for {not_open}, which are not open")

    # -- Messages ---------------------------------------------------------------------------------

    def _said(self, event: event_pb2.Event, life: _Life) -> None:
        if event.message_completed.kind != event_pb2.MESSAGE_KIND_REPLY:
            return
        life.replies += 1
        if life.replied_in == life.turn:
            self.say(
                5, life.row.run_id, f"position {event.position}: turn {life.turn} replied twice"
            )
        life.replied_in = life.turn

    def _steered(self, event: event_pb2.Event, life: _Life) -> None:
        missed = event.WhichOneof("payload") == "steer_missed"
        request_id = (event.steer_missed if missed else event.steer_accepted).request_id
        key, where = (life.row.run_id, request_id), f"position {event.position}"
        if key in self.steers:
            self.say(7, life.row.run_id, f"{where}: steered {request_id!r} is closed twice")
        self.steers.add(key)
        self.moved.add(request_id)
        fallback = event.steer_missed.fallback_run_id if missed else ""
        if fallback:
            held = self.history.runs.get(fallback)
            if held is None or request_id not in held.requests:
                self.say(7, fallback, f"{where}: lacks {request_id!r}, which fell back to it")

    # -- At the end -------------------------------------------------------------------------------

    def _at_the_end(self, life: _Life) -> None:
        row, run_id = life.row, life.row.run_id
        if self.history.whole:
            if life.state != row.state:
                self.say(
                    5, run_id, f"stored as {name(row.state)}, its log ends with {name(life.state)}"
                )
            if life.spawned != row.descendants:
                self.say(
                    12, run_id, f"{row.descendants} descendants counted, {life.spawned} logged"
                )
            self._usage(life)
            if self.steady:
                self._times(life)
        if self.history.finished and row.state not in TERMINAL:
            self.say(5, run_id, f"has not ended: {name(row.state)}, turn {life.turn}")
        if row.state == SUCCEEDED and not row.parent_id and self.history.whole and not life.replies:
            self.say(5, run_id, "succeeded without a reply")

    def _usage(self, life: _Life) -> None:
        row, run_id = life.row, life.row.run_id
        if life.usage != row.usage:
            self.say(12, run_id, f"usage {row.usage}, its reports sum up to {life.usage}")
        if row.parent_id and row.parent_id not in self.lives:
            self.say(9, run_id, f"its parent {row.parent_id} is not stored")

    def _times(self, life: _Life) -> None:
        row, run_id = life.row, life.row.run_id
        if life.queued != row.queued:
            self.say(15, run_id, f"waited {life.queued} µs in lanes, stored are {row.queued}")
        if life.suspended != row.suspended:
            self.say(15, run_id, f"suspended for {life.suspended} µs, stored are {row.suspended}")
        if life.executed is None or life.executing:
            return
        left_out = life.executed - row.executed
        if left_out < 0 or (left_out and self.history.exact):
            self.say(15, run_id, f"executed for {life.executed} µs, stored are {row.executed}")

    def _requests(self) -> None:
        held: dict[str, str] = {}
        below: dict[str, Totals] = defaultdict(Totals)
        for row in self.history.runs.values():
            for request_id in row.requests:
                other = held.setdefault(request_id, row.run_id)
                if other != row.run_id:
                    self.say(7, row.run_id, f"{request_id!r} made this run, and run {other} too")
            below[row.parent_id] += row.tree_usage
        for row in self.history.runs.values():
            total = row.usage + below[row.run_id]
            if total != row.tree_usage and self.history.whole:
                self.say(12, row.run_id, f"tree usage {row.tree_usage}, its parts make {total}")
        for request_id, run_id in self.history.accepted.items():
            found = held.get(request_id)
            run = self.history.runs.get(run_id)
            if found is None and run is not None and run.state not in TERMINAL:
                continue  # steered, and no turn has taken it yet
            if found != run_id and request_id not in self.moved:
                where = f"it is in {found}" if found else "no run holds it"
                self.say(7 if found else 5, run_id, f"accepted {request_id!r} for it, but {where}")

    def _watches(self) -> None:
        stored = {(e.session_key, e.sequence): e.event_id for e in self.history.events}
        for number, events in enumerate(self.history.watched):
            before = None
            for event in events:
                where = f"watch {number} of session {event.session_key!r}"
                if before is not None and event.sequence != before + 1:
                    self.say(10, event.run_id, f"{where}: {event.sequence} came after {before}")
                before = event.sequence
                if stored.get((event.session_key, event.sequence)) != event.event_id:
                    self.say(10, event.run_id, f"{where}: {event.sequence} is not what is stored")


def _totals(usage: usage_pb2.Usage) -> Totals:
    return Totals(usage.model_calls, usage.input_tokens, usage.output_tokens, usage.cost_micros_usd)

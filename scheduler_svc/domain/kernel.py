"""The state that all decisions are made on, and its small verbs.

Who does what: the use-case modules (`admission`, `leasing`, `turns`, `settling`, `steering`,
`asking`, `sweeping`) decide; they change runs only through the verbs here, which keep three things
true after every call: each session has at most one run in the ready queues and it is the one whose
turn it is, a run holds a slot exactly while it executes under a lease (a kept one holds none), and
everything that changed is in `changes`.
"""

from __future__ import annotations

import enum
import heapq
from collections.abc import Iterable, Mapping

import msgspec

from scheduler_svc.domain.emits import Emit, Payload, StateChanged
from scheduler_svc.domain.lanes import GlobalLane, Session
from scheduler_svc.domain.limits import Limits, ProviderRates
from scheduler_svc.domain.questions import OpenQuestions, Question
from scheduler_svc.domain.records import (
    SECOND,
    Failure,
    Lease,
    ResumeReason,
    Run,
    RunState,
    SteerOffer,
)
from scheduler_svc.domain.turntimes import Assumed, Times, TurnKind, TurnTimes

# Stale timers that may always be there, so that they are seldom looked through.
SPARE_TIMERS = 1000
# How long a preferred worker may be silent before others take its runs.
PATIENCE = 30 * SECOND
# Of lanes that the configuration does not know (any more).
DEFAULT_TURN = 5 * SECOND


class Timer(enum.IntEnum):
    """What a point in time is about."""

    LEASE = 1
    READY = 2
    QUEUE_TIMEOUT = 3
    RUN_TIMEOUT = 4
    WALL_TIMEOUT = 5
    WAIT = 6
    YIELD = 7
    WALL_BUDGET = 8
    QUESTION = 9
    ELSEWHERE = 10


class Config(msgspec.Struct, frozen=True):
    """What the configuration says about the rules."""

    lanes: dict[str, int]
    lease_ttl: int
    max_depth: int = 1
    max_children: int = 5
    max_descendants: int = 50
    # Share of a customer among all that wait, 1 to 100. One that is not named has 1.
    weights: dict[str, int] = {}
    # How long a turn is taken to last until some were measured, by global lane.
    expected_turns: dict[str, int] = {}
    # Rates of model providers, by their ids.
    providers: dict[str, ProviderRates] = {}


class KnownRequest(msgspec.Struct, frozen=True):
    """A `request_id` seen before, and the run that holds its message now."""

    body_hash: bytes
    run_id: str


class LostLease(msgspec.Struct, frozen=True):
    """A lease that ended without a word from its worker, for whoever tells of it."""

    run: Run
    lease: Lease
    turn: int
    attempt: int
    # The attempt counts: the worker is gone, rather than never having heard of the lease.
    counted: bool


class Changes(msgspec.Struct):
    """What the store has to hold after the commands since the last commit."""

    runs: dict[str, Run] = {}
    payloads: dict[str, bytes] = {}
    # Messages (serialised `RunInput`) that joined a run: they go behind those of its payload.
    inputs: dict[str, list[bytes]] = {}
    results: dict[str, bytes] = {}
    emits: list[Emit] = []
    sessions: dict[str, Session] = {}
    requests: dict[str, KnownRequest] = {}
    lanes: dict[str, int | None] = {}
    steers: dict[tuple[str, str], SteerOffer | None] = {}
    # Small records that outlive a restart, by kind and key; `None` removes one. Whoever owns a kind
    # finds it again in `Snapshot.facts`.
    facts: dict[tuple[str, str], msgspec.Struct | None] = {}
    # Questions that were asked or closed; of the former, what was asked (serialised `Question`).
    questions: dict[str, Question] = {}
    question_data: dict[str, bytes] = {}
    # The greatest fencing token given out; 0 when none was.
    token: int = 0
    # Nothing of these is stored.
    lost: list[LostLease] = []

    def __bool__(self) -> bool:
        return bool(
            self.runs
            or self.emits
            or self.sessions
            or self.requests
            or self.lanes
            or self.steers
            or self.facts
            or self.questions
            or self.results
            or self.token
        )


class Kernel:
    """All unfinished runs, their lanes and leases. Not thread safe; one owner."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.runs: dict[str, Run] = {}
        self.sessions: dict[str, Session] = {}
        self.lanes = {
            name: GlobalLane(name, limit, config.weights) for name, limit in config.lanes.items()
        }
        # (queue, worker name) -> newest incarnation.
        self.workers: dict[tuple[str, str], int] = {}
        # Queue -> when a worker of it last asked for work. Of this process only.
        self.last_polls: dict[str, int] = {}
        # (queue, worker name) -> when it last called. Who never did counts from the start.
        self.last_calls: dict[tuple[str, str], int] = {}
        self.start_time = 0
        # (queue, worker name) -> the runs leased to it, kept leases included.
        self.leased: dict[tuple[str, str], set[str]] = {}
        # Global lane -> its executing runs, those that were leased first at the front, and its
        # suspended ones.
        self.executing: dict[str, dict[str, None]] = {}
        self.suspended: dict[str, dict[str, None]] = {}
        self.steers: dict[tuple[str, str], SteerOffer] = {}
        self.turn_times = TurnTimes()
        # Global lane -> time, and when its executing turns should end in order, as seen then.
        self.lane_ends: dict[str, tuple[int, list[int]]] = {}
        self.limits = Limits(config.providers)
        self.questions = OpenQuestions()
        # Read from the store for the commands at hand: known request ids, ended runs, closed
        # questions, and the sequences of known event ids.
        self.requests: dict[str, KnownRequest] = {}
        self.ended: dict[str, Run] = {}
        self.closed_questions: dict[str, Question] = {}
        self.event_ids: dict[tuple[str, str], int] = {}
        self.next_order = 1
        self.next_token = 1
        self.next_position = 1
        self.changes = Changes()
        self._maybe_idle: set[str] = set()
        self._timers: list[tuple[int, int, Timer, str, int]] = []
        self._timer_count = 0
        self._timers_at_most = SPARE_TIMERS

    # -- Events -----------------------------------------------------------------------------------

    def emit(self, run: Run, payload: Payload, now: int, *, by_worker: bool = False) -> None:
        """Writes the next entry of the run's session log."""
        session = self.sessions[run.session_key]
        session.head += 1
        self.changes.sessions[session.key] = session
        self.changes.emits.append(
            Emit(
                position=self.next_position,
                session_key=session.key,
                sequence=session.head,
                run_id=run.run_id,
                flow_id=run.flow_id,
                turn=run.turn if by_worker else 0,
                # A lease that was given back to its kept one stands for the attempt to come.
                attempt=max(1, run.attempt) if by_worker else 0,
                time=now,
                payload=payload,
            )
        )
        self.next_position += 1

    # -- Sessions and runs ------------------------------------------------------------------------

    def session(self, key: str) -> Session:
        """The session, in memory from now until it has no unfinished run at the next commit."""
        session = self.sessions.get(key)
        if session is None:
            session = self.sessions[key] = Session(key)
            self._maybe_idle.add(key)
        return session

    def add(self, run: Run) -> None:
        """Takes a new run into memory and into its session lane."""
        self.runs[run.run_id] = run
        session = self.session(run.session_key)
        session.unfinished += 1
        session.add_fresh(run.place, run.run_id)
        self.touch(run)

    def touch(self, run: Run) -> None:
        """Marks a run as changed."""
        self.changes.runs[run.run_id] = run

    def set_state(
        self,
        run: Run,
        state: RunState,
        now: int,
        *,
        reason: ResumeReason | None = None,
        failure: Failure | None = None,
        cause: str = "",
    ) -> None:
        """Moves a run to a state, adds up the time of the one before, and writes the event."""
        previous, lasted = run.state, max(0, now - run.state_time)
        if previous is RunState.SUSPENDED:
            run.suspended += lasted
            self.lanes[run.lane].suspended -= 1
            del self.suspended[run.lane][run.run_id]
        elif previous is RunState.QUEUED:
            # Ready means that only the global lane was missing; before, it stood in its session.
            ready_since = run.ready_since or now
            run.session_wait += max(0, ready_since - run.state_time)
            run.global_wait += max(0, now - ready_since)
            run.ready_since = 0
        if state is RunState.SUSPENDED:
            self.note_suspended(run)
        run.state, run.state_time = state, now
        self.emit(
            run,
            StateChanged(
                previous=previous,
                state=state,
                turn=run.turn,
                attempt=run.attempt,
                wait=run.wait if state is RunState.SUSPENDED else None,
                holds_lane=run.holds_lane,
                resume_reason=reason,
                failure=failure,
                cause=cause,
                lasted=lasted,
            ),
            now,
        )
        self.touch(run)

    def note_suspended(self, run: Run) -> None:
        """The run will come back to its global lane."""
        self.lanes[run.lane].suspended += 1
        self.suspended.setdefault(run.lane, {})[run.run_id] = None

    def forget(self, run: Run) -> None:
        """Takes an ended run out of memory; `changes` still holds it until the commit."""
        del self.runs[run.run_id]
        self.ended[run.run_id] = run
        self.sessions[run.session_key].unfinished -= 1
        self._maybe_idle.add(run.session_key)

    # -- Layer one --------------------------------------------------------------------------------

    def hold_lane(self, run: Run) -> None:
        """The run takes its session lane; it must be the one whose turn it is."""
        session = self.sessions[run.session_key]
        session.drop(run)
        session.holder = run.run_id
        run.holds_lane = True

    def leave_line(self, run: Run) -> None:
        """Takes a run out of its session lane, wherever it stands. `refresh` must follow."""
        self.sessions[run.session_key].drop(run)
        if run.holds_lane:
            run.holds_lane, run.lane_released = False, True
        self.touch(run)

    def refresh(self, session: Session, now: int) -> None:
        """Makes the session's next run, and only that, stand in its global lane's ready queue."""
        run_id = session.next_run()
        run = self.runs.get(run_id)
        if run is None or run.state is not RunState.QUEUED or run.ready_time > now:
            run_id = ""
        if session.ready == run_id:
            return
        if session.ready:
            before = self.runs.get(session.ready) or self.ended[session.ready]
            before.ready_since = 0
            self.lanes[before.lane].queue(before.queue).remove(session.ready)
        session.ready = run_id
        if run is not None and run_id:
            run.ready_since = now
            choosy = run.kept is not None or run.preferred_worker != ""
            self.lanes[run.lane].queue(run.queue).push(run, choosy=choosy)
            if run.preferred_worker:
                self.at(max(now, self.elsewhere_from(run)), Timer.ELSEWHERE, run)

    # -- Who may take a run -----------------------------------------------------------------------

    def elsewhere_from(self, run: Run) -> int:
        """From when others than its preferred worker may take a run, unless that one calls."""
        last = self.last_calls.get((run.queue, run.preferred_worker), self.start_time)
        return last + PATIENCE

    def may_take(self, run: Run, worker: str, now: int) -> bool:
        """True when a worker of its queue may take a ready run: the keeper of its lease alone, else
        the worker that it prefers, else, when that one is silent, any."""
        if run.kept is not None:
            return run.kept.worker == worker
        preferred = run.preferred_worker
        return preferred in ("", worker) or self.elsewhere_from(run) <= now

    def lane_or_paused(self, name: str) -> GlobalLane:
        """The global lane; one that is not configured (any more) comes as paused."""
        return self.lanes.setdefault(name, GlobalLane(name, 0, self.config.weights))

    # -- Layer two --------------------------------------------------------------------------------

    def take_slot(self, run: Run, lease: Lease) -> None:
        """The run executes from now on, under a lease."""
        run.lease = lease
        self.lanes[run.lane].running += 1
        self.executing.setdefault(run.lane, {})[run.run_id] = None
        self.note_leased(run, lease)
        self.touch(run)

    def note_leased(self, run: Run, lease: Lease) -> None:
        """A worker has a lease of the run."""
        self.leased.setdefault((run.queue, lease.worker), set()).add(run.run_id)

    def free_slot(self, run: Run, now: int, *, kept: Lease | None = None) -> None:
        """The run stops executing, if it was, and its slot is free. Its leases are over but for the
        one that its worker keeps."""
        before = run.held
        if run.lease is not None:
            run.executed += max(0, now - run.lease.lease_time)
            run.lease = None
            self._no_more_reports(run)
            self.lanes[run.lane].running -= 1
            del self.executing[run.lane][run.run_id]
            self.touch(run)
        if kept is not run.kept:
            run.kept = kept
            self.touch(run)
        if before is not None and kept is None:
            worker = (run.queue, before.worker)
            self.leased[worker].discard(run.run_id)
            if not self.leased[worker]:
                del self.leased[worker]

    # -- Turn times -------------------------------------------------------------------------------

    def turn_ended(self, kind: TurnKind, took: int, *, waits: bool) -> None:
        """Notes how long a turn took, and whether its run now waits for children."""
        for key, record in self.turn_times.ended(kind, took, waits=waits).items():
            self.changes.facts["turn_time", key] = record

    def expected_turn(self, kind: TurnKind, lane: str) -> Times | Assumed:
        """How long a turn of a kind takes: measured, or else as configured for the lane."""
        measured = self.turn_times.measured(kind)
        if measured is not None:
            return measured
        return Assumed(self.config.expected_turns.get(lane, DEFAULT_TURN))

    def _no_more_reports(self, run: Run) -> None:
        # A probe of which nobody hears would stop all others of its credential, and one that stands
        # in line for nobody would become it.
        wait = run.wait or (run.resumption.wait if run.resumption and run.new_turn else None)
        keep = wait.reservation if wait is not None else ""
        changed, gone = self.limits.turn_over(run.flow_id, run.run_id, keep)
        for limiter in changed:
            self.changes.facts["limiter", limiter.key] = limiter.state
        for call in gone:
            self.changes.facts["reservation", call.id] = None

    # -- Time -------------------------------------------------------------------------------------

    def at(self, time: int, timer: Timer, run: Run, stamp: int = 0) -> None:
        """Asks for a look at the run at a time.

        `stamp` is the fencing token of the lease, the turn of the wait, or the order of the
        question, that the look is about; once it is over the look is dropped.
        """
        if len(self._timers) >= self._timers_at_most:
            self._drop_stale_timers()
        self._timer_count += 1
        heapq.heappush(self._timers, (time, self._timer_count, timer, run.run_id, stamp))

    def next_time(self) -> int | None:
        """When the next look is due."""
        call = self.limits.next_time()
        if not self._timers:
            return call
        return self._timers[0][0] if call is None else min(self._timers[0][0], call)

    def due(self, now: int) -> Iterable[tuple[Timer, Run, int]]:
        """Takes out and yields all looks that are due and still matter."""
        while self._timers and self._timers[0][0] <= now:
            _, _, timer, run_id, stamp = heapq.heappop(self._timers)
            if self._matters(timer, run_id, stamp):
                yield timer, self.runs[run_id], stamp

    def _matters(self, timer: Timer, run_id: str, stamp: int) -> bool:
        run = self.runs.get(run_id)
        if run is None:
            return False
        match timer:
            case Timer.LEASE:
                return run.held is not None and run.held.token == stamp
            case Timer.RUN_TIMEOUT:
                return run.lease is not None and run.lease.token == stamp
            case Timer.ELSEWHERE:
                return bool(run.ready_since)
            case Timer.WAIT | Timer.YIELD:
                return run.wait is not None and run.turn == stamp
            case Timer.QUESTION:
                return self.questions.at(stamp) is not None
            case _:
                return True

    def _drop_stale_timers(self) -> None:
        # Turns end long before their limits; what is left of them must not pile up until then.
        self._timers = [t for t in self._timers if self._matters(t[2], t[3], t[4])]
        heapq.heapify(self._timers)
        self._timers_at_most = 2 * len(self._timers) + SPARE_TIMERS

    # -- Commit -----------------------------------------------------------------------------------

    def take_changes(self) -> Changes:
        """Hands over what changed, and drops what no command needs any more."""
        changes, self.changes = self.changes, Changes()
        for key in self._maybe_idle:
            if not self.sessions[key].unfinished:
                del self.sessions[key]
        self._maybe_idle.clear()
        self.requests.clear()
        self.ended.clear()
        self.closed_questions.clear()
        self.event_ids.clear()
        return changes

    def take_in(
        self,
        requests: Mapping[str, KnownRequest],
        ended: Iterable[Run],
        sessions: Iterable[Session],
        event_ids: Mapping[tuple[str, str], int],
        questions: Mapping[str, Question],
    ) -> None:
        """Takes in what the store knows about the commands at hand, until the next commit."""
        self.requests.update(requests)
        self.event_ids.update(event_ids)
        self.closed_questions.update(questions)
        for run in ended:
            if run.run_id not in self.runs:
                self.ended[run.run_id] = run
        for session in sessions:
            if session.key not in self.sessions:
                self.sessions[session.key] = session
                self._maybe_idle.add(session.key)

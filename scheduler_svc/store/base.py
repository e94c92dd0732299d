"""What a store does: few verbs, in the scheduler's terms.

A store is owned by one active scheduler. `commit` is all or nothing; what it wrote is read by every
later call. Every verb may raise `StoreUnavailable` (full, read-only, unreachable: nothing changed);
`acquire` raises `StartError` with one clear line when the store cannot be used at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from scheduler_svc.domain.kernel import KnownRequest
from scheduler_svc.domain.questions import Question, QuestionState
from scheduler_svc.domain.records import PreviousRun, Run, RunState, SteerOffer
from scheduler_svc.domain.recovery import Snapshot


class EventRow(msgspec.Struct, frozen=True, gc=False):
    """A stored event. `data` is the serialised `Event`; the other fields are its index."""

    position: int
    session_key: str
    sequence: int
    run_id: str
    flow_id: str
    # Field name of the payload, for filters.
    kind: str
    # Set for events of workers, whose ids are unique within the session.
    event_id: str | None
    data: bytes


class Batch(msgspec.Struct):
    """Everything one commit writes."""

    time: int
    # Changed records; the payload of a run (spec, inputs, trace) comes with its first record, and
    # again when another message joins the run.
    runs: list[Run] = []
    payloads: dict[str, bytes] = {}
    results: dict[str, bytes] = {}
    events: list[EventRow] = []
    sessions: list[tuple[str, int, list[PreviousRun]]] = []
    requests: dict[str, KnownRequest] = {}
    # `None` goes back to the configuration.
    limits: dict[str, int | None] = {}
    steers: dict[tuple[str, str], SteerOffer | None] = {}
    # (kind, key) -> JSON; `None` removes it.
    facts: dict[tuple[str, str], bytes | None] = {}
    # Questions that were asked or closed; of the former, the serialised `Question`.
    questions: list[Question] = []
    question_data: dict[str, bytes] = {}
    token: int = 0


class Known(msgspec.Struct):
    """What the store knows about the commands at hand."""

    requests: dict[str, KnownRequest] = {}
    runs: dict[str, Run] = {}
    sessions: dict[str, tuple[int, list[PreviousRun]]] = {}
    # (session key, event id) -> sequence.
    event_ids: dict[tuple[str, str], int] = {}
    questions: dict[str, Question] = {}


class StoredQuestion(msgspec.Struct):
    """A question as stored. `data` is the serialised `Question`, as it was asked."""

    question: Question
    data: bytes


class QuestionQuery(msgspec.Struct, frozen=True):
    """Chooses questions; what is empty chooses all."""

    states: frozenset[QuestionState] = frozenset()
    question_id: str = ""
    run_id: str = ""
    session_key: str = ""
    root_session_key: str = ""
    customer_key: str = ""


class StoredRun(msgspec.Struct):
    """A run as stored. `payload` and `result` are serialised `Run` and `RunResult`."""

    run: Run
    payload: bytes
    result: bytes | None = None


class RunQuery(msgspec.Struct, frozen=True):
    """Chooses runs; what is empty chooses all."""

    session_key: str = ""
    flow_id: str = ""
    customer_key: str = ""
    lane: str = ""
    states: frozenset[RunState] = frozenset()
    labels: dict[str, str] = {}
    # Only roots; only those that spawned; only those accepted since.
    roots: bool = False
    with_children: bool = False
    since: int = 0


class EventQuery(msgspec.Struct, frozen=True):
    """Chooses events: of one session, one flow, or all. Positions and sequences are exclusive."""

    session_key: str = ""
    flow_id: str = ""
    run_id: str = ""
    kinds: frozenset[str] = frozenset()
    after_sequence: int = 0
    after_position: int = 0


class FlowFigures(msgspec.Struct, frozen=True):
    """Counts over all runs of a flow."""

    states: dict[RunState, int]
    depth: int


class LaneStore(Protocol):
    """See the module docstring."""

    async def acquire(self) -> None:
        """Opens the store, brings its schema up to date, and keeps other schedulers out."""
        ...

    async def close(self) -> None:
        """Closes the store. Nothing is pending: a commit has happened when it returned."""
        ...

    async def load(self) -> Snapshot:
        """Everything about unfinished work."""
        ...

    async def commit(self, batch: Batch) -> None:
        """Writes a batch durably, or nothing of it."""
        ...

    async def lookup(
        self,
        requests: Sequence[str],
        runs: Sequence[str],
        sessions: Sequence[str],
        event_ids: Sequence[tuple[str, str]],
        questions: Sequence[str] = (),
    ) -> Known:
        """What is known of these; what is unknown is left out."""
        ...

    async def get_runs(self, run_ids: Sequence[str]) -> dict[str, StoredRun]:
        """Runs with everything, by id; unknown ones are left out."""
        ...

    async def list_runs(
        self, query: RunQuery, *, before: int, after: int, limit: int
    ) -> list[StoredRun]:
        """Runs without results. Newest first below the order `before` (0: from the newest), or,
        with `before` = -1, oldest first above the order `after`."""
        ...

    async def flow_figures(self, flow_ids: Sequence[str]) -> dict[str, FlowFigures]:
        """Counts per flow."""
        ...

    async def events(self, query: EventQuery, limit: int) -> list[EventRow]:
        """Events in the order of their positions."""
        ...

    async def list_questions(
        self, query: QuestionQuery, *, before: int, limit: int
    ) -> list[StoredQuestion]:
        """Questions, newest first, below the order `before` (0: from the newest)."""
        ...

    async def session_head(self, session_key: str) -> int | None:
        """Newest sequence of a session; `None` for a session never seen."""
        ...

    async def prune(self, *, requests_before: int, ended_before: int) -> int:
        """Removes what retention no longer keeps: request ids, and questions that were closed when
        such an id was used; ended flows, and events as prefixes of their sessions. Returns how many
        rows went."""
        ...

    async def oldest(self, session_key: str) -> int:
        """Sequence before which events of the session were removed by retention; 1 when none.

        Without a session: the position before which events of any session were removed."""
        ...


class Leader(msgspec.Struct, frozen=True):
    """Who leads, as the shared store says."""

    epoch: int
    # Names one process, not only one address: never the same after a restart.
    holder: str
    # Where it is to be called.
    address: str
    # Until its lease ends, by the store's clock; not above 0: nobody leads.
    seconds_left: float


class SharedStore(LaneStore, Protocol):
    """A store that several schedulers share, one of which leads.

    The leader has a lease with an epoch, in a row of the store and by the store's clock. Every
    write transaction (`commit`, `prune`) locks that row and checks the epoch of this process: one
    that does not lead, or not any more, gets `NotLeader`, and nothing was written.

    A leader may be stopped in the middle of a transaction: the store ends that transaction by
    itself before a leader lease is over, so that it does not keep another from taking the lead.
    """

    async def campaign(self, holder: str, address: str, ttl: float) -> Leader:
        """Takes the lead with the next epoch if nobody's lease lasts, for `ttl` seconds; returns
        who leads now, which is us if `holder` is. Never waits long for another's transaction."""
        ...

    async def renew(self, ttl: float) -> None:
        """Leads for another `ttl` seconds, also when the lease has ended and nobody took it.
        Raises `NotLeader` when somebody else did."""
        ...

    async def resign(self) -> None:
        """Ends the lease, so that another may lead at once. Nothing happens if it is not ours."""
        ...

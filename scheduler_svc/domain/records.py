"""What the scheduler remembers of a run: the record in memory, and, as JSON, in the store.

Records hold what decisions need and nothing else: tasks, messages and results stay in the store.
All times are microseconds since the epoch, all spans of time are microseconds; 0 means "none".
Numbers of enums are those of the contract (`conveyor.scheduler.v1`), so that no table is needed.
"""

from __future__ import annotations

import enum

import msgspec

SECOND = 1_000_000
# Added to the place of a run that goes before the others of its session: above any order.
AHEAD = 1 << 62


class RunState(enum.IntEnum):
    """Where a run is in its life. Terminal: see `TERMINAL`."""

    UNSPECIFIED = 0
    QUEUED = 1
    RUNNING = 2
    SUSPENDED = 3
    CANCELLING = 4
    SUCCEEDED = 5
    FAILED = 6
    CANCELLED = 7
    EXPIRED = 8


TERMINAL = frozenset({RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED, RunState.EXPIRED})


class AnnounceMode(enum.IntEnum):
    """When a run that replied while children live gets another turn."""

    EACH = 1
    ALL = 2


class ResumeReason(enum.IntEnum):
    """Why a run got another turn."""

    CHILDREN_SETTLED = 1
    CHILD_UNTOLD = 2
    ANSWERED = 3
    LIMIT_GRANTED = 4
    TIMED_OUT = 5
    STEERED = 6
    NEXT_PROMPT = 7


class QueueMode(enum.IntEnum):
    """What a message does when its session is busy."""

    FOLLOWUP = 1
    COLLECT = 2
    STEER = 3
    INTERRUPT = 4


class WaitKind(enum.StrEnum):
    """What a suspended run waits for."""

    CHILDREN = "children"
    APPROVAL = "approval"
    LIMIT = "limit"


class Failure(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why a run ended badly, or an attempt did.

    `status` is a serialised `google.rpc.Status` that a worker reported; without one the status is
    built from the other fields.
    """

    reason: str
    message: str
    metadata: dict[str, str] = {}
    status: bytes = b""


class RetryPolicy(msgspec.Struct, frozen=True, omit_defaults=True):
    """Attempts of one turn and the pauses between them."""

    max_attempts: int = 3
    initial_backoff: int = 1 * SECOND
    max_backoff: int = 30 * SECOND
    multiplier: float = 2.0

    def backoff(self, attempt: int) -> int:
        """The pause after `attempt` (counted from 1) has failed."""
        pause = self.initial_backoff * self.multiplier ** (attempt - 1)
        return int(min(pause, self.max_backoff))


class Caps(msgspec.Struct, frozen=True, omit_defaults=True):
    """Caps of a run and everything below it. `None` sets no cap of its own."""

    max_depth: int | None = None
    max_children: int | None = None
    max_descendants: int | None = None
    max_tokens: int | None = None
    # Millionths of a US dollar.
    max_cost: int | None = None
    # From the first start of the run.
    max_wall: int | None = None
    # Share of `max_tokens` and `max_cost` that only the run itself may reserve.
    reply_reserve: float | None = None

    @property
    def spending(self) -> bool:
        """True when tokens or cost are capped, so that every model call is reserved."""
        return self.max_tokens is not None or self.max_cost is not None


class Usage(msgspec.Struct, omit_defaults=True):
    """Totals of model calls."""

    model_calls: int = 0
    input_tokens: int = 0
    cached_input_tokens: int = 0
    output_tokens: int = 0
    cost_micros_usd: int = 0
    unpriced_calls: int = 0

    @property
    def tokens(self) -> int:
        """Tokens read and written."""
        return self.input_tokens + self.output_tokens

    def add(self, other: Usage) -> None:
        """Adds every total of `other` to this one."""
        self.model_calls += other.model_calls
        self.input_tokens += other.input_tokens
        self.cached_input_tokens += other.cached_input_tokens
        self.output_tokens += other.output_tokens
        self.cost_micros_usd += other.cost_micros_usd
        self.unpriced_calls += other.unpriced_calls


class Lease(msgspec.Struct, omit_defaults=True):
    """The right of one worker to work on one attempt. `token` is the fencing token."""

    token: int
    worker: str
    incarnation: int
    lease_time: int
    expire_time: int


class Wait(msgspec.Struct, omit_defaults=True):
    """What a suspended run waits for, and how."""

    kind: WaitKind
    # Children: the awaited ones, settled or not.
    run_ids: list[str] = []
    mode: AnnounceMode = AnnounceMode.ALL
    # Approval: the questions of which one has to be closed.
    question_ids: list[str] = []
    # Limit: its name, for people, and the reservation when it is a provider's.
    name: str = ""
    reservation: str = ""
    # The wait ends unsatisfied then.
    expire_time: int = 0
    # From then on the session lane is released as soon as another run waits for it.
    yield_time: int = 0
    # Serialised message that is sent at `yield_time`.
    interim: bytes = b""
    # Name of the worker that keeps its lease meanwhile; empty when none does.
    lease_worker: str = ""


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a question of a run was closed: answered, or, without a responder, expired.

    `request_id` is what workers know it by among steered input.
    """

    question_id: str
    request_id: str
    # Empty when it expired without a default.
    option_id: str = ""
    responder: str = ""
    time: int = 0
    # Serialised `TraceContext` of the span that answered.
    trace: bytes = b""


class Resumption(msgspec.Struct, omit_defaults=True):
    """What a resumed turn starts with: the same for every attempt of the turn."""

    reason: ResumeReason
    wait: Wait | None = None
    # Children whose end this turn is told, in the order they settled. Fixed at the first lease.
    told: list[str] = []
    # Awaited children that were still live at the first lease.
    live: list[str] = []
    # Closed questions that no earlier turn was told. Fixed at the first lease.
    answers: list[Answer] = []
    lane_released: bool = False
    # When the wait began; 0 when the run went on at once.
    since: int = 0


class Ending(msgspec.Struct, frozen=True, omit_defaults=True):
    """The end that a stopping run takes once nothing of its subtree is live."""

    state: RunState
    failure: Failure


class SpentLease(msgspec.Struct, frozen=True, omit_defaults=True):
    """The call that ended the last turn, so that repeating it is recognised."""

    token: int
    digest: str


class Collected(msgspec.Struct, omit_defaults=True):
    """The messages that share a run. Others may join until its first lease."""

    # Fingerprint of what was asked for beside the messages: only equal runs are shared.
    spec: str
    # It may start then, whatever still joins.
    latest: int
    messages: int
    # Size of the messages in the store.
    size: int


class PreviousRun(msgspec.Struct, frozen=True, array_like=True):
    """How an earlier run of a session ended."""

    run_id: str
    state: RunState
    turn: int


class GuardStep(msgspec.Struct, frozen=True, array_like=True):
    """One step of the delegation guard, in the words of the contract's enums."""

    trigger: str
    step: str
    model: str
    resolved: bool


class Run(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One unit of work in a session and one node of a spawn tree."""

    # -- Fixed at acceptance ----------------------------------------------------------------------
    run_id: str
    flow_id: str
    # Order of acceptance over all sessions; decides the order within a session.
    order: int
    session_key: str
    customer_key: str
    queue: str
    lane: str
    # What its turns are compared with when times are estimated: agent and model.
    estimate_key: str = ""
    create_time: int
    # `traceparent` of the span that created it; empty when not traced.
    trace: str = ""
    # What was told when it was accepted: its place, and when it should start; 0 for nothing.
    told_position: int = 0
    told_start: int = 0
    depth: int = 0
    parent_id: str = ""
    tool_call_id: str = ""
    label: str = ""
    labels: dict[str, str] = {}
    priority: int = 0
    queue_timeout: int = 0
    run_timeout: int = 0
    wall_timeout: int = 0
    retry: RetryPolicy = RetryPolicy()
    caps: Caps = Caps()
    delivers_later: bool = False
    # The worker that holds what the run needs; others only when it has not called for long.
    preferred_worker: str = ""
    # Of a root: where people are asked what its tree asks. Empty means its own session.
    question_session_key: str = ""
    # It interrupted the run before it, and goes before the messages that wait.
    jumps: bool = False

    # -- Life ------------------------------------------------------------------------------------
    state: RunState = RunState.QUEUED
    turn: int = 0
    attempt: int = 0
    # The next lease begins a new turn rather than another attempt of the last one.
    new_turn: bool = True
    # True from the first lease until the run stops executing or yields.
    holds_lane: bool = False
    # True when the session lane was released since the last turn began.
    lane_released: bool = False
    # Attempts that failed in the turns before this one which only ended to wait for a limit.
    tried: int = 0
    # Not before then: backing off or, never leased, collecting.
    ready_time: int = 0
    collected: Collected | None = None
    # What the last attempt reported, while the next one is waited for.
    last_failure: Failure | None = None
    lease: Lease | None = None
    # Fencing token of the newest lease that reached a worker, also when it is over.
    last_token: int = 0
    # The lease of the turn before, whose worker keeps something that cannot move: it holds no slot,
    # and that worker alone gets the next turn. It stays good for events until that turn ends.
    kept: Lease | None = None
    wait: Wait | None = None
    resumption: Resumption | None = None
    ending: Ending | None = None
    cancel_reason: str = ""
    interim_sent: bool = False
    has_result: bool = False
    spent: SpentLease | None = None
    # The last turn that the worker ended with a result or a wait.
    closed_turn: int = 0
    # How many entries of `Session.previous` the present turn was told.
    told_previous: int = 0
    # `request_id` of the steered messages that no turn has named as taken.
    steered: list[str] = []
    # Ids of its open questions, oldest first, and the closed ones that no turn was told.
    asked: list[str] = []
    answers: list[Answer] = []
    # Of a root: the greatest number that a question of its tree has had.
    question_number: int = 0

    # -- Children --------------------------------------------------------------------------------
    # Not terminal; terminal but untold to a turn; told. In the order of acceptance or settling.
    live: list[str] = []
    untold: list[str] = []
    told: list[str] = []
    descendants: int = 0

    # -- Times and totals ------------------------------------------------------------------------
    start_time: int = 0
    state_time: int = 0
    # Since then the run stands in its global lane's ready queue. 0 while it does not.
    ready_since: int = 0
    end_time: int = 0
    session_wait: int = 0
    global_wait: int = 0
    suspended: int = 0
    executed: int = 0
    usage: Usage = msgspec.field(default_factory=Usage)
    tree_usage: Usage = msgspec.field(default_factory=Usage)
    failure: Failure | None = None
    # Of the newest model call, for people. One string per model, however many runs use it.
    requested_model: str = ""
    effective_model: str = ""
    # What the delegation guard did, oldest first.
    guard: tuple[GuardStep, ...] = ()

    @property
    def terminal(self) -> bool:
        """True once the run has ended for good."""
        return self.state in TERMINAL

    @property
    def attempts(self) -> int:
        """Attempts at what the run is at, this one included. A wait for a limit is no progress."""
        return self.tried + self.attempt

    @property
    def stopping(self) -> bool:
        """True when the run was asked to stop or fails, and has not ended yet."""
        return self.ending is not None and not self.terminal

    @property
    def place(self) -> int:
        """Its place among the never-started runs of its session."""
        return self.order - AHEAD if self.jumps else self.order

    @property
    def held(self) -> Lease | None:
        """The lease under which somebody still has something of the run in hand."""
        return self.lease or self.kept

    @property
    def collect_until(self) -> int:
        """Until when it waits for more messages, unless another joins; 0 when it does not."""
        return self.ready_time if self.collected is not None and not self.turn else 0

    @property
    def resumed(self) -> bool:
        """True when the run has executed before: it holds finished work."""
        return self.turn > 0


class NewRun(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """A message for a session, or a child run, as it asks for admission."""

    run_id: str
    request_id: str
    body_hash: bytes
    session_key: str  # empty for a child run
    customer_key: str
    queue: str
    lane: str
    estimate_key: str = ""
    label: str = ""
    labels: dict[str, str] = {}
    priority: int = 0
    queue_timeout: int = 0
    run_timeout: int = 0
    wall_timeout: int = 0
    retry: RetryPolicy = RetryPolicy()
    caps: Caps = Caps()
    delivers_later: bool = False
    preferred_worker: str = ""
    question_session_key: str = ""
    lane_cap: int = 50
    # Beyond the cap the oldest waiting message goes, instead of this one being refused.
    drop_oldest: bool = False
    mode: QueueMode = QueueMode.FOLLOWUP
    # `COLLECT`: how long a message waits for another one, and what else is asked for.
    debounce: int = 0
    spec: str = ""
    trace: str = ""
    # Opaque to the rules: serialised `Run` (spec, inputs, trace), `RunInput` and `Message`.
    payload: bytes = b""
    payload_input: bytes = b""
    message: bytes = b""


class SteerOffer(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """A steered message that no turn has named as taken."""

    request_id: str
    # Serialised `RunInput`.
    input: bytes
    # What it becomes when it is missed, and the place in the session's order. `None`: nothing.
    fallback: NewRun | None = None
    order: int = 0

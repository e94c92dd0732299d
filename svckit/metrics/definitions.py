"""Every metric of the suite, once: name, kind, unit, labels and what it says.

Instruments are made from these, `docs/reference/metrics.md` is written from them, and the dashboard
and the alerts are checked against them. A label has few values, which the configuration or the
contract bounds: never a customer, a session or a run.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

QUICK = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Bounds of what takes milliseconds: calls, commits, the event loop. Seconds."""
SLOW = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0)
"""Bounds of what models, coding agents and queues take. Seconds."""
SIZES = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0)
"""Bounds of how many are handled at once."""


class Kind(enum.StrEnum):
    """What may be done with a figure."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True)
class Definition:
    """One metric. `unit` is empty for what is counted in pieces."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    unit: str = ""
    bounds: tuple[float, ...] = ()

    @property
    def series(self) -> tuple[str, ...]:
        """The names under which Prometheus stores it."""
        if self.kind is Kind.HISTOGRAM:
            return tuple(f"{self.name}_{part}" for part in ("bucket", "count", "sum"))
        return (self.name,)


def _counter(name: str, help: str, *labels: str, unit: str = "") -> Definition:
    return Definition(name, Kind.COUNTER, help, labels, unit)


def _gauge(name: str, help: str, *labels: str, unit: str = "") -> Definition:
    return Definition(name, Kind.GAUGE, help, labels, unit)


def _seconds(name: str, help: str, *labels: str, bounds: tuple[float, ...] = SLOW) -> Definition:
    return Definition(name, Kind.HISTOGRAM, help, labels, "seconds", bounds)


# -- Every service --------------------------------------------------------------------------------

BUILD = _gauge("conveyor_build_info", "Always 1.", "service", "version")
LOOP_LAG = _seconds(
    "conveyor_event_loop_lag_seconds",
    "How late the event loop comes to what is due, looked at four times a second.",
    bounds=QUICK,
)
GRPC_CALLS = _counter("conveyor_grpc_calls_total", "gRPC calls that ended.", "method", "code")
GRPC_SECONDS = _seconds(
    "conveyor_grpc_call_seconds",
    "Time of a gRPC call. Polls and streams are left out: they take as long as nothing happens.",
    "method",
    bounds=QUICK,
)
GRPC_OPEN = _gauge(
    "conveyor_grpc_open_calls", "gRPC calls that are being served, streams included.", "method"
)
SPANS_DROPPED = _counter(
    "conveyor_spans_dropped_total",
    "Spans that did not reach the collector: it was away, or too slow for what there was to tell.",
)

# -- The gateway ----------------------------------------------------------------------------------

HTTP_REQUESTS = _counter(
    "conveyor_http_requests_total", "HTTP requests that ended.", "method", "route", "status"
)
HTTP_SECONDS = _seconds(
    "conveyor_http_request_seconds",
    "Time to the first byte of an HTTP answer.",
    "route",
    bounds=QUICK,
)
HTTP_STREAMS = _gauge("conveyor_http_open_streams", "Server-sent event streams that are open.")
CALLERS_REFUSED = _counter(
    "conveyor_callers_refused_total",
    "Calls turned away at the door, HTTP and gRPC: `token` for one that is missing or not known, "
    "`rate` for a caller that calls too often.",
    "reason",
)
DELIVERIES_PENDING = _gauge(
    "conveyor_deliveries_pending", "Replies and announcements that wait in an outbox.", "channel"
)
DELIVERIES = _counter(
    "conveyor_deliveries_total",
    "Tries to deliver: `delivered`, `postponed` to be tried again, or `given_up`.",
    "channel",
    "outcome",
)
DELIVERY_POSITION = _gauge(
    "conveyor_delivery_log_position",
    "Position of the event log up to which everything is in the outboxes.",
)
MESSAGES = _counter(
    "conveyor_messages_total",
    "What people sent that was taken in, over every channel: a `message`, or a `command`.",
    "kind",
)

# -- The scheduler --------------------------------------------------------------------------------

LANE_LIMIT = _gauge("conveyor_lane_limit", "Slots of a global lane; 0 pauses it.", "lane")
LANE_RUNNING = _gauge("conveyor_lane_running", "Slots of a global lane that are taken.", "lane")
LANE_WAITING = _gauge(
    "conveyor_lane_waiting",
    "Unfinished runs that do not execute, by what they wait for: a `slot` of the lane, a `worker` "
    "though a slot is free, the lane being `paused`, the run before it in its `session`, the end "
    "of a pause (`backoff`, also of collecting), `children`, `approval` by people, a `limit` of a "
    "provider or of processes, or what it started `stopping`.",
    "lane",
    "reason",
)
LANE_OLDEST = _gauge(
    "conveyor_lane_oldest_wait_seconds",
    "How long the run has waited that waits longest for a slot of the lane.",
    "lane",
    unit="seconds",
)
WORKERS = _gauge("conveyor_workers", "Workers that called within the last 30 seconds.", "queue")
SERVING = _gauge(
    "conveyor_scheduler_serving",
    "1 for the scheduler that leads and whose store takes writes, else 0.",
)
LEADERSHIPS = _counter(
    "conveyor_scheduler_leaderships_total", "How often this process began to lead."
)
RUNS_ACCEPTED = _counter("conveyor_runs_accepted_total", "Runs that were accepted.", "lane")
RUNS_ENDED = _counter(
    "conveyor_runs_ended_total",
    "Runs that ended, by state and, for those that did not succeed, by the reason of the failure.",
    "lane",
    "state",
    "reason",
)
ATTEMPTS = _counter(
    "conveyor_attempts_total",
    "Attempts that were leased to workers: the `first` of a turn, or `repeated`.",
    "lane",
    "kind",
)
LEASES_LOST = _counter(
    "conveyor_leases_lost_total",
    "Leases that ended without a word from their worker: it died, hung, or was cut off.",
    "lane",
)
WAIT_SECONDS = _seconds(
    "conveyor_wait_seconds",
    "Time that a turn waited before it was leased: in its `session` lane, then in its `global` "
    "lane for a slot and a worker. Pauses are left out.",
    "lane",
    "layer",
)
TURN_SECONDS = _seconds(
    "conveyor_turn_seconds",
    "Time that a turn executed, by the state that its run took then: `queued` is a turn that "
    "follows, or another attempt.",
    "lane",
    "end",
)
SUSPENDED_SECONDS = _seconds(
    "conveyor_suspended_seconds",
    "Time that a run was suspended before it went on, by what it waited for.",
    "lane",
    "reason",
)
ESTIMATE_ERROR = _seconds(
    "conveyor_estimate_error_seconds",
    "How far off the start was that a sender was told: the run started `late` or `early`.",
    "lane",
    "side",
)
ANNOUNCEMENTS = _counter(
    "conveyor_announcements_total",
    "Ends of children that were announced, by the parent's lane.",
    "lane",
)
ANNOUNCEMENTS_PENDING = _gauge(
    "conveyor_announcements_pending",
    "Announced ends of children that no turn of the parent was told yet, by the parent's lane.",
    "lane",
)
QUESTIONS_OPEN = _gauge("conveyor_questions_open", "Questions that wait for people.")
COMMIT_SECONDS = _seconds(
    "conveyor_commit_seconds", "Time of a commit to the scheduler's store.", bounds=QUICK
)
COMMIT_COMMANDS = Definition(
    "conveyor_commit_commands",
    Kind.HISTOGRAM,
    "Commands that one commit answered.",
    bounds=SIZES,
)
COMMITS_FAILED = _counter("conveyor_commits_failed_total", "Commits that the store did not take.")
COMMANDS_WAITING = _gauge(
    "conveyor_commands_waiting", "Commands that wait for the commit after the present one."
)
EVENTS = _counter("conveyor_events_total", "Events that were stored.")
WATCHERS = _gauge("conveyor_watchers", "Watches of the event log, by what they follow.", "scope")
WATCHER_LAG = _gauge(
    "conveyor_watcher_lag_events",
    "Events that wait in the inbox of the watcher that is furthest behind.",
)
WATCHERS_BEHIND = _gauge(
    "conveyor_watchers_behind",
    "Watchers that were too slow for their inbox and read the store again.",
)

# -- Workers: agents and coding agents ------------------------------------------------------------

WORKER_SLOTS = _gauge("conveyor_worker_slots", "Turns that this worker takes at a time.", "queue")
WORKER_TURNS = _gauge(
    "conveyor_worker_turns", "Turns that this worker holds, kept ones included.", "queue"
)
WORKER_CONNECTED = _gauge(
    "conveyor_worker_connected", "1 while the scheduler answers this worker's polls.", "queue"
)
TURNS_ENDED = _counter(
    "conveyor_worker_turns_ended_total",
    "Turns whose handler ended, as it asked for: `complete`, `suspend`, `fail` or `release`.",
    "queue",
    "outcome",
)
TURNS_STOPPED = _counter(
    "conveyor_worker_turns_stopped_total",
    "Turns that this worker stopped since their lease was over: it was lost, could not be extended "
    "in time, or the worker ended.",
    "queue",
    "reason",
)

# -- Models ---------------------------------------------------------------------------------------

TOKENS = _counter(
    "conveyor_tokens_total",
    "Tokens that models and coding agents read and wrote: `input`, `cached_input`, `output`. A "
    "coding agent counts as `acp:<harness>`.",
    "model",
    "direction",
)
COST = _counter("conveyor_cost_usd_total", "Cost of what was used, US dollars.", "model")
UNPRICED = _counter(
    "conveyor_unpriced_calls_total", "Reports of use whose price nobody knows.", "model"
)
MODEL_CALLS = _counter(
    "conveyor_model_calls_total",
    "Calls to providers: `answered`, `throttled` (429), `unavailable` or `rejected`.",
    "model",
    "outcome",
)
MODEL_FAILURES = _counter(
    "conveyor_model_failures_total", "Calls to providers that failed, by cause.", "model", "cause"
)
MODEL_SECONDS = _seconds(
    "conveyor_model_call_seconds", "Time to the whole reply of a provider.", "model"
)
MODEL_RETRIES = _counter(
    "conveyor_model_retries_total",
    "Calls made again within a turn, to the same model after it failed.",
    "model",
)
MODEL_FALLBACKS = _counter(
    "conveyor_model_fallbacks_total",
    "Replies that another model gave than the one that was asked for first.",
    "requested",
    "answered",
)
LIMIT_WAITS = _counter(
    "conveyor_limit_waits_total",
    "Turns that ended to wait for a limit of a provider, by the model asked for first.",
    "model",
)
GUARD = _counter(
    "conveyor_guard_interventions_total",
    "What the delegation guard did: what triggered it, and the step that it took.",
    "trigger",
    "step",
)
TOOL_CALLS = _counter(
    "conveyor_tool_calls_total",
    "Tool calls that ended, `ok` or `failed`. A tool that nobody offered is `unknown`.",
    "tool",
    "outcome",
)
TOOL_SECONDS = _seconds("conveyor_tool_seconds", "Time that a tool took.", "tool")
STEPS = _counter("conveyor_steps_total", "Steps of turns that were stored, by kind.", "kind")

# -- Coding agents --------------------------------------------------------------------------------

ACP_SESSIONS = _gauge(
    "conveyor_acp_sessions",
    "Sessions of this worker that have not ended, and those that no worker has, by state.",
    "state",
)
ACP_PROCESSES = _gauge(
    "conveyor_acp_processes", "Processes of coding agents, those that start or stop included."
)
ACP_PROCESSES_LIMIT = _gauge("conveyor_acp_processes_limit", "Processes there may be.")
ACP_OPENINGS = _counter(
    "conveyor_acp_openings_total",
    "Sessions that got a process: `opened`, or the reason of the error in small letters.",
    "harness",
    "outcome",
)
ACP_OPEN_SECONDS = _seconds(
    "conveyor_acp_open_seconds", "Time until a process was ready for prompts.", "harness"
)
ACP_PROMPTS = _counter(
    "conveyor_acp_prompts_total",
    "Prompts that ended: a reason to stop of the protocol (`end_turn`, `max_tokens`, "
    "`max_turn_requests`, `refusal`, `cancelled`), a failure (`crashed`, `timeout`, "
    "`auth_required`, `protocol`), `budget`, or `stopped` with the turn.",
    "harness",
    "outcome",
)
ACP_PROMPT_SECONDS = _seconds(
    "conveyor_acp_prompt_seconds", "Time that a prompt took, waits for people included.", "harness"
)
ACP_PERMISSIONS = _counter(
    "conveyor_acp_permissions_total",
    "Permissions that were `allowed` or `rejected`, by the rule that decided.",
    "decision",
    "rule",
)
ACP_PERMISSIONS_WAITING = _gauge(
    "conveyor_acp_permissions_waiting", "Permissions that people are asked for now."
)
ACP_PERMISSION_WAIT = _seconds(
    "conveyor_acp_permission_wait_seconds",
    "Time that people took to answer for a permission, or did not: `expired`, `cancelled`.",
    "answer",
)

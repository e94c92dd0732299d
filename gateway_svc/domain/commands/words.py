"""How answers to commands say figures, times and states: short, for telephones."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp

from conveyor.common.v1 import usage_pb2
from conveyor.scheduler.v1 import run_pb2
from svckit.words import shorten, span

SECOND = 1_000_000

_ENDED = {
    run_pb2.RUN_STATE_SUCCEEDED: "done",
    run_pb2.RUN_STATE_FAILED: "failed",
    run_pb2.RUN_STATE_CANCELLED: "stopped",
    run_pb2.RUN_STATE_EXPIRED: "out of time",
}


def at_us(stamp: Timestamp) -> int:
    """Return a point in time in microseconds since 1970, 0 when it is unset."""
    return stamp.seconds * SECOND + stamp.nanos // 1000


def tokens(usage: usage_pb2.Usage) -> str:
    """Return the tokens read and written: `840 tokens`, `1.2k tokens`, `3.4M tokens`."""
    total = usage.input_tokens + usage.output_tokens
    if total < 1000:
        return f"{total} tokens"
    # 999,950 and more would read as 1000.0k.
    return f"{total / 1000:.1f}k tokens" if total < 999_950 else f"{total / 1e6:.1f}M tokens"


def cost(usage: usage_pb2.Usage) -> str:
    """Return the cost: `$0.0031`, `≥ $0.02` when some calls have no known price, else a dash."""
    if not usage.cost_micros_usd:
        return "no price known" if usage.unpriced_calls else "$0"
    dollars = usage.cost_micros_usd / 1e6
    figure = f"${dollars:.4f}" if dollars < 1 else f"${dollars:.2f}"
    return f"≥ {figure}" if usage.unpriced_calls else figure


def spent(usage: usage_pb2.Usage) -> str:
    """Return tokens and cost."""
    return f"{tokens(usage)} · {cost(usage)}"


def ordinal(number: int) -> str:
    """Return `1st`, `2nd`, `3rd`, `11th`."""
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10)
    return f"{number}{ending or 'th'}"


def state_words(run: run_pb2.Run, live_children: int = 0, position: int = 0) -> str:
    """Return where a run is, in a few words.

    `live_children` are those that have not ended; `position` is its place in line, 0 when unknown.
    """
    if run.state in _ENDED:
        return _ENDED[run.state]
    if run.state == run_pb2.RUN_STATE_CANCELLING:
        return "stopping"
    if run.state == run_pb2.RUN_STATE_RUNNING:
        return "working"
    if run.state == run_pb2.RUN_STATE_SUSPENDED:
        return _waits(run.suspension.condition, live_children)
    if run.state == run_pb2.RUN_STATE_QUEUED:
        if run.turn and run.attempt > 1:
            return "tries again"
        return f"queued ({ordinal(position)})" if position else "queued"
    return "unknown"


def model_words(run: run_pb2.Run) -> str:
    """Return the model of a run, as `requested → effective` when they differ."""
    if run.spec.queue == "acp" and not run.requested_model:
        # Its harness is the one that was asked for, whatever stands in its reports of usage.
        return run.spec.estimate_key.split("/")[1] if "/" in run.spec.estimate_key else "a harness"
    # Before the first model call only the key for estimates, `agent/model`, says what was asked.
    requested = run.requested_model or run.spec.estimate_key.partition("/")[2]
    effective = run.effective_model or requested
    if requested and effective != requested:
        return f"{requested} → {effective}"
    return effective or "model not known yet"


def runtime_of(run: run_pb2.Run) -> str:
    """Return what does the work: `subagent` or `acp`."""
    return "acp" if run.spec.queue == "acp" else "subagent"


def name_of(run: run_pb2.Run) -> str:
    """Return what people call a run, on one line: its label, or else the end of its id."""
    return shorten(run.spec.label) or f"…{run.run_id[-6:]}"


def age(run: run_pb2.Run, now_us: int) -> str:
    """Return since when a live run is there, or how long an ended one took."""
    began = at_us(run.timing.create_time)
    ended = at_us(run.timing.end_time)
    return span(((ended or now_us) - began) / SECOND)


def _waits(condition: run_pb2.WaitCondition, live_children: int) -> str:
    kind = condition.WhichOneof("condition")
    if kind == "approval":
        return "waits for your answer"
    if kind == "limit":
        return "waits for a limit"
    return f"waits for {live_children}" if live_children else "waits"

"""What `/status`, `/stop`, `/new` and `/model` answer: where a conversation stands."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from conveyor.acp.v1 import session_pb2 as acp
from conveyor.agent.v1 import agent_service_pb2 as ag
from conveyor.common.v1 import usage_pb2
from conveyor.scheduler.v1 import flow_service_pb2 as fs
from conveyor.scheduler.v1 import lane_pb2, run_pb2
from gateway_svc.domain.commands.acp_words import full_name, permissions_of, state_of
from gateway_svc.domain.commands.problem import Problem
from gateway_svc.domain.commands.words import (
    SECOND,
    at_us,
    ordinal,
    spent,
    state_words,
)
from gateway_svc.domain.sessions import TERMINAL_STATES, lane_use
from svckit.contract_words import VERDICTS
from svckit.words import count, joined, shorten, span

_TITLE, _NAMES = 48, 12
MAX_MODEL = 256


@dataclass(frozen=True, slots=True)
class Standing:
    """Everything that `/status` tells. Empty and zero where there is nothing to tell.

    `answering` is the coding agent that answers in the place of the agent.
    """

    agent_id: str
    requested_model: str
    effective_model: str
    verdict: str
    queue_mode: lane_pb2.QueueMode.ValueType
    newest: fs.Flow | None = None
    title: str = ""
    holder: run_pb2.Run | None = None
    background: int = 0
    waiting: int = 0
    estimate: lane_pb2.QueueEstimate = field(default_factory=lane_pb2.QueueEstimate)
    questions: Sequence[int] = ()
    answering: acp.AcpSession | None = None


def status_text(standing: Standing, now_us: int) -> str:
    """Return what `/status` says."""
    mode = lane_pb2.QueueMode.Name(standing.queue_mode).removeprefix("QUEUE_MODE_").lower()
    lines = [
        *_who(standing),
        f"Queue mode {mode}",
        _work(standing, now_us),
        _background(standing.background),
        _waiting(standing.waiting, standing.estimate, now_us),
        _questions(standing.questions),
        _newest(standing.newest, now_us),
    ]
    return "\n".join(line for line in lines if line)


def model_line(requested: str, effective: str, verdict: str) -> str:
    """Return the model with what answered in its place, and what a probe found."""
    name = requested
    if effective and effective != requested:
        name = f"{requested} → {effective}"
    return f"model {name}" + (f" (probe: {verdict})" if verdict else "")


def verdict_of(models: Collection[ag.Model], name: str) -> str:
    """Return what the newest probe of a model found, empty when it was never probed."""
    for model in models:
        if model.model == name and model.probe.verdict in VERDICTS:
            return VERDICTS[model.probe.verdict]
    return ""


def check_model(
    name: str, models: Collection[ag.Model], providers: Collection[str], command: str = "/model"
) -> Problem | None:
    """Return what is wrong with a model that somebody chooses, `None` when it can be asked.

    `command` is what the example puts a good model behind.
    """
    names = [model.model for model in models]
    provider, colon, model = name.partition(":")
    fits = len(name) <= MAX_MODEL and name.isprintable()
    if name in names or (colon and model and provider in providers and fits):
        return None
    known = [f"`{known}`" for known in names[:_NAMES]]
    known += [f"any of {provider} as `{provider}:name`" for provider in sorted(providers)]
    there = joined(known, "or") if known else "none"
    example = names[0] if names else "demo"
    return Problem(
        f"no model is called “{shorten(name, 40)}”: there is {there}, "
        f"for example `{command} {example}`"
    )


def to_stop(flows: Sequence[fs.Flow], roots: Sequence[run_pb2.Run]) -> fs.Flow | None:
    """Return the flow that `/stop` is about: what keeps the conversation busy.

    That is the one whose root holds the session lane; without one the newest that has begun, which
    works in the background; else the one that is next. `roots` are the unfinished runs of the
    session itself. `None` when nothing is under way, and while one is being stopped: who is
    impatient does not mean the next one.
    """
    stopping = any(flow.state == run_pb2.RUN_STATE_CANCELLING for flow in flows)
    live = {
        flow.flow_id: flow
        for flow in flows
        if flow.state not in TERMINAL_STATES and flow.state != run_pb2.RUN_STATE_CANCELLING
    }
    for use in lane_use(roots).values():
        if use.run_id in live:
            return live[use.run_id]
    begun = [flow for flow in live.values() if flow.timing.HasField("start_time")]
    if begun:
        return max(begun, key=lambda flow: flow.flow_id)
    if stopping:
        return None
    return min(live.values(), key=lambda flow: flow.flow_id, default=None)


def stopped_text(stopped: Sequence[str], affected: int, left: int, stopping: int = 0) -> str:
    """Return what `/stop` says.

    `stopped` are titles, `left` what still goes on or waits, `stopping` what was told before.
    """
    if not stopped:
        return "It is being stopped already." if stopping else "Nothing is under way here."
    names = joined([f"“{shorten(title, _TITLE)}”" for title in stopped[:3]])
    if len(stopped) > 3:
        names += f" and {len(stopped) - 3} more"
    below = affected - len(stopped)
    text = f"Stopped {names}" + (f" with {count(below, 'sub-agent')}" if below > 0 else "") + "."
    if left:
        text += f" {count(left, 'other')} under way or waiting: `/stop all` stops those too."
    return text


def _who(standing: Standing) -> list[str]:
    session = standing.answering
    if session is None:
        model = model_line(standing.requested_model, standing.effective_model, standing.verdict)
        return [f"Agent {standing.agent_id} · {model}"]
    return [
        f"Coding agent {full_name(session)} answers here: {state_of(session)}, "
        f"permissions {permissions_of(session)}",
        f"`/acp status` says more, `/acp close` gives back to {standing.agent_id}",
    ]


def _work(standing: Standing, now_us: int) -> str:
    run = standing.holder
    if run is None:
        return "Nothing keeps this conversation busy"
    since = at_us(run.timing.start_time) or at_us(run.timing.create_time)
    title = f"“{shorten(standing.title, _TITLE)}”" if standing.title else "your message"
    live = 0
    if standing.newest is not None and standing.newest.flow_id == run.run_id:
        live = _live_below(standing.newest)
    state = state_words(run, live)
    if live and state.endswith(f" {live}"):
        state = state.removesuffix(str(live)) + count(live, "sub-agent")
    return f"{title}: {state}, {span((now_us - since) / SECOND)} so far"


def _live_below(flow: fs.Flow) -> int:
    live = sum(c.runs for c in flow.state_counts if c.state not in TERMINAL_STATES)
    return live - (flow.state not in TERMINAL_STATES)


def _background(runs: int) -> str:
    return f"{count(runs, 'request')} in the background" if runs else ""


def _waiting(waiting: int, estimate: lane_pb2.QueueEstimate, now_us: int) -> str:
    if not waiting:
        return ""
    line = f"{count(waiting, 'message')} waiting"
    if estimate.position:
        line += f", the next {ordinal(estimate.position)} in line"
    if estimate.HasField("start_time"):
        line += f", starts in about {span((at_us(estimate.start_time) - now_us) / SECOND)}"
    return line


def _questions(numbers: Sequence[int]) -> str:
    if not numbers:
        return ""
    named = joined([f"#{number}" for number in numbers[:6]])
    return f"{count(len(numbers), 'question')} for you ({named}): `/approve` or `/deny`"


def _newest(flow: fs.Flow | None, now_us: int) -> str:
    if flow is None:
        return "Nothing was asked here yet"
    usage: usage_pb2.Usage = flow.usage
    ended = at_us(flow.timing.end_time)
    when = f", ended {span((now_us - ended) / SECOND)} ago" if ended else ""
    return f"Newest request: {spent(usage)}{when}"

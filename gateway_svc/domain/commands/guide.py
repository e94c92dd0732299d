"""What `/help`, `/agents`, `/lanes` and `/why` answer."""

from __future__ import annotations

from collections.abc import Sequence

from conveyor.agent.v1 import agent_service_pb2 as ag
from conveyor.gateway.v1 import gateway_service_pb2 as gw
from conveyor.scheduler.v1 import explain_pb2, lane_pb2
from gateway_svc.domain.commands.acp_forms import ACP_TOPICS
from gateway_svc.domain.commands.form import Form
from gateway_svc.domain.commands.grammar import BY_ALIAS, BY_NAME, FORMS, members
from gateway_svc.domain.commands.parsing import read_strictly
from gateway_svc.domain.commands.problem import Problem
from gateway_svc.domain.commands.words import SECOND, at_us, ordinal
from svckit.words import count, shorten, span

TOPICS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("What goes on", ("status", "tasks", "flow", "why", "lanes")),
    ("Sub-agents", ("subagents", "kill", "steer", "tell")),
    ("Coding agents", ("acp",)),
    ("Questions of tools", ("approve", "deny")),
    ("This conversation", ("new", "stop", "queue", "model", "agents")),
)
_ROWS = 10


def help_text(about: str, harness: str = "") -> str | Problem:
    """Return what `/help` says, in general or about one command.

    `harness` is the coding agent that answers the conversation, empty when its agent does.
    """
    if not about:
        lines = [f"{topic}: {', '.join(f'`/{word}`' for word in words)}" for topic, words in TOPICS]
        if harness:
            lines.append(f"{harness} answers here: `/acp status`, `/acp cancel`, `/acp close`")
        return "\n".join([*lines, "`/help stop` says more about one of them."])
    words = about.lower().removeprefix("/").split()
    if words == ["acp"]:
        return _acp_help()
    if words and words[0] in BY_ALIAS:
        forms: Sequence[Form] = (BY_ALIAS[words[0]],)
    else:
        exact = [form for form in FORMS if form.name == " ".join(words)]
        forms = exact or members(words[0] if words else "")
    if not forms:
        found = read_strictly(f"/{about.removeprefix('/')}")
        return found if isinstance(found, Problem) else help_text("")
    if len(forms) == 1:
        form = forms[0]
        aliases = "".join(f", or `/{alias}`" for alias in form.aliases)
        return f"{form.summary}.\n`{form.usage}`{aliases}\nFor example `{form.example}`"
    return "\n".join(f"`{form.usage}`: {form.summary}" for form in forms)


def command_forms() -> gw.CommandForms:
    """Return everything that can be typed, for programs."""
    return gw.CommandForms(
        forms=[
            gw.CommandForm(
                name=form.name,
                usage=form.usage,
                summary=form.summary,
                example=form.example,
                aliases=form.aliases,
            )
            for form in FORMS
        ]
    )


def _acp_help() -> str:
    lines = ["Coding agents, for example:", f"`{BY_NAME['acp spawn'].example}`"]
    for topic, seconds in ACP_TOPICS:
        lines.append(f"{topic}: {', '.join(f'`/acp {second}`' for second in seconds)}")
    return "\n".join([*lines, "`/help acp spawn` says more about one of them."])


def agents_text(agents: Sequence[ag.Agent]) -> str:
    """Return what `/agents` says."""
    lines = []
    for agent in agents[:_ROWS]:
        parts = [agent.agent_id, agent.model]
        others = [name for name in agent.spawnable_agent_ids if name != agent.agent_id]
        if others:
            parts.append(f"may start {shorten(', '.join(others), 60)}")
        lines.append(" · ".join(parts))
    if len(agents) > _ROWS:
        lines.append(f"and {len(agents) - _ROWS} more: `conveyor agents`")
    return "\n".join(lines) or "No agents."


def lanes_text(lanes: Sequence[lane_pb2.Lane]) -> str:
    """Return what `/lanes` says: the global ones."""
    lines = []
    for lane in lanes:
        if lane.kind != lane_pb2.LANE_KIND_GLOBAL:
            continue
        use = f"{lane.running} of {lane.limit} working" if lane.limit else "paused"
        parts = [f"{lane.name}: {use}"]
        if lane.waiting:
            parts.append(f"{lane.waiting} waiting ({count(lane.waiting_customers, 'customer')})")
        if lane.limit != lane.configured_limit:
            parts.append(f"limit {lane.configured_limit} by configuration")
        lines.append(", ".join(parts))
    return "\n".join(lines[:_ROWS]) or "No lanes."


def why_text(told: explain_pb2.RunExplanation, name: str, now_us: int) -> str:
    """Return what `/why` says: the reasons in order, and when it should start."""
    lines = [f"{name}:", *(reason.text for reason in told.reasons)]
    estimate = told.estimate
    if estimate.position:
        line = f"{ordinal(estimate.position)} in line"
        if estimate.HasField("start_time"):
            line += f", starts in about {span((at_us(estimate.start_time) - now_us) / SECOND)}"
        lines.append(line)
    return "\n".join(lines[:_ROWS])

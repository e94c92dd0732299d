"""The caps that the configuration of an agent puts on its runs and on everything below them."""

from __future__ import annotations

from conveyor.scheduler.v1 import run_pb2
from svckit.settings_model import SubagentSettings


def caps_of(subagents: SubagentSettings) -> run_pb2.Budget:
    """Return the caps of a run of the agent, as a root or as a child. Unset fields cap nothing."""
    caps = run_pb2.Budget(
        max_depth=subagents.max_spawn_depth,
        max_children=subagents.max_children_per_agent,
        max_descendants=subagents.max_descendants,
    )
    budget = subagents.budget
    if budget.max_tokens is not None:
        caps.max_tokens = budget.max_tokens
    if budget.max_cost_usd is not None:
        caps.max_cost_micros_usd = round(budget.max_cost_usd * 1_000_000)
    if budget.max_wall_seconds is not None:
        caps.max_wall_time.FromNanoseconds(round(budget.max_wall_seconds * 1_000_000_000))
    if budget.reply_reserve is not None:
        caps.reply_reserve = budget.reply_reserve
    return caps

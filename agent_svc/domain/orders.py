"""A sub-agent that a person ordered: what stands in for the model's replies in the first turn.

The order is carried out as if a model had called the spawn tool, so the child is admitted, told and
accounted for like any other; it costs no model call, and it says nothing unless it was refused.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from agent_svc.domain import steps as s
from agent_svc.domain.tools import SPAWN

_LABEL = 48


@dataclass(frozen=True)
class Order:
    """Who shall do what. An empty `model` means the agent's own."""

    agent_id: str
    model: str
    task: str


def next_reply(order: Order, steps: Sequence[s.Step], turn: int, step: int) -> s.Replied | None:
    """Return the reply that is stored as `step` of `turn`; `None` when the model has its say."""
    if turn != 1:
        return None
    records = [stored.record for stored in steps if stored.turn == turn]
    if not any(isinstance(record, s.Replied) for record in records):
        arguments = {
            "task": order.task,
            "agent_id": order.agent_id,
            "label": " ".join(order.task.split())[:_LABEL].rstrip(),
            "wait": False,
        }
        if order.model:
            arguments["model"] = order.model
        call = (SPAWN, json.dumps(arguments, ensure_ascii=False))
        return s.Replied("", s.name_calls(turn, step, [call]), ordered=True)
    refused = [r.content for r in records if isinstance(r, s.Returned) and r.failed]
    return s.Replied("\n".join(refused), ordered=True)

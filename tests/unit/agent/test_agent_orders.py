"""A sub-agent that a person ordered: what is stored in place of a model's replies."""

from __future__ import annotations

import json

from agent_svc.domain import plan
from agent_svc.domain import steps as s
from agent_svc.domain.orders import Order, next_reply
from agent_svc.domain.tools import read_spawn

ORDER = Order("helper", "lab:large", "compare\nthree hotels")


def numbered(*records: s.Record) -> list[s.Step]:
    return [s.Step(1, number, record) for number, record in enumerate(records, start=1)]


def test_every_attempt_of_the_first_turn_goes_on_where_the_one_before_stopped() -> None:
    """Whatever was stored before a crash: one child is started, and no model is asked."""
    began = s.Began("first")
    call = next_reply(ORDER, numbered(began), 1, 2)
    assert call is not None
    assert call.ordered
    args = read_spawn(call.calls[0].arguments)
    assert (args.task, args.agent_id, args.model, args.wait) == (
        *("compare\nthree hotels", "helper", "lab:large"),
        False,
    )
    assert args.label == "compare three hotels"
    assert plan.next_action(numbered(began, call), 1, 32) == plan.SpawnChildren(call.calls)

    child = s.Spawned(call.calls[0].id, "C1", "s:subagent:C1", "x", wait=False)
    steps = numbered(began, call, child)
    assert plan.next_action(steps, 1, 32) == plan.CallModel(4)
    end = next_reply(ORDER, steps, 1, 4)
    assert end == s.Replied("", ordered=True)
    assert plan.next_action([*steps, s.Step(1, 4, end)], 1, 32) == plan.EndWithReply(end)
    # The closing turn is the model's.
    assert next_reply(ORDER, [*steps, s.Step(1, 4, end)], 2, 2) is None


def test_a_refusal_is_what_the_run_says() -> None:
    call = next_reply(ORDER, numbered(s.Began("first")), 1, 2)
    assert call is not None
    refused = s.Returned(call.calls[0].id, "No sub-agent was started: too many", failed=True)
    end = next_reply(ORDER, numbered(s.Began("first"), call, refused), 1, 4)
    assert end == s.Replied("No sub-agent was started: too many", ordered=True)


def test_without_a_model_the_agents_own_is_asked() -> None:
    call = next_reply(Order("helper", "", "dig"), numbered(s.Began("first")), 1, 2)
    assert call is not None
    assert "model" not in json.loads(call.calls[0].arguments)
    assert s.decode(s.encode(call)) == call

"""The delegation guard in the agent service: the ends of its ladder, and what it leaves alone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from conveyor.agent.v1 import task_pb2 as task_pb
from conveyor.events.v1 import event_pb2
from conveyor.scheduler.v1 import announcement_pb2 as ann
from conveyor.scheduler.v1 import limit_service_pb2 as limit_pb
from conveyor.scheduler.v1 import run_pb2
from svckit.errors import BudgetExceeded
from svckit.service import StartError
from svckit.testing.fake_openai import Failure, FakeOpenAI, Reply, ToolCall
from svckit.testing.inprocess import InProcess
from tests.service.agent.conftest import StartAgent
from tests.service.agent.fake_scheduler import FakeScheduler, reply_text, said

EXCUSE = "I do not have permission to spawn sessions."
ASK = "Use two sub-agents to compare tea and coffee."
SPAWN = ToolCall("sessions_spawn", {"task": "look at tea", "label": "tea"})


def config(provider: FakeOpenAI, guard: str = "") -> str:
    return f"""
[agents.defaults]
model = "fake:weak"
[agents.defaults.guard]
{guard}
[providers.fake]
base_url = "{provider.base_url}"
"""


@pytest.fixture
async def live(start_agent: StartAgent, provider: FakeOpenAI) -> AsyncIterator[InProcess]:
    async with start_agent(config(provider)) as service:
        yield service


def did(scheduler: FakeScheduler) -> list[tuple[str, bool]]:
    """What the guard told, in order."""
    return [
        (
            event_pb2.GuardStep.Name(event.guard_intervened.step).removeprefix("GUARD_STEP_"),
            event.guard_intervened.resolved,
        )
        for event in scheduler.events.values()
        if event.HasField("guard_intervened")
    ]


def result(end: Any) -> task_pb.AgentResult:
    found = task_pb.AgentResult()
    assert end.result.details.Unpack(found)
    return found


def streamed(scheduler: FakeScheduler) -> str:
    return "".join(delta.text for delta in scheduler.deltas)


async def test_a_call_written_as_text_becomes_a_real_one(
    scheduler: FakeScheduler, live: InProcess, provider: FakeOpenAI
) -> None:
    provider.script(
        Reply(
            "Sure.\n"
            '<tool_call>\n{"name": "sessions_spawn", "arguments": {"task": "look at tea"}}\n'
            '</tool_call>\n<tool_call>\n{"name": "sessions_spawn", "arguments": '
            '{"task": "look at coffee"}}\n</tool_call>'
        ),
        Reply("Tea wins."),
    )
    waits = await scheduler.answer(scheduler.leased(ASK))
    tasks = [item.message.parts[0].text for item in scheduler.children.values()]
    assert tasks == ["look at tea", "look at coffee"]
    assert did(scheduler) == [("PARSE_CALL", True)]
    assert streamed(scheduler) == ""
    assert "tool_call" not in str(waits.interim_reply)

    ends = [scheduler.child_result(child, f"{child} says") for child in ("C1", "C2")]
    end = await scheduler.answer(
        scheduler.leased(ASK, turn=2, resumption=scheduler.resumption(*ends))
    )
    assert reply_text(end) == "Tea wins."
    assert result(end).guard_steps == 1
    joining = provider.requests[-1]
    # To the model it was a call like any, and its text is gone.
    assert [call["function"]["name"] for call in joining.messages[-3]["tool_calls"]] == [
        "sessions_spawn",
        "sessions_spawn",
    ]
    assert "<tool_call>" not in str(joining.messages)
    assert "C2 says" in joining.texts("tool")[-1]


async def test_a_textual_call_with_bad_arguments_is_insisted_on(
    scheduler: FakeScheduler, live: InProcess, provider: FakeOpenAI
) -> None:
    provider.script(
        Reply('{"name": "sessions_spawn", "arguments": {"timeout_seconds": 5}}'),
        Reply("You are right, I apologise.", [SPAWN]),
    )
    waits = await scheduler.answer(scheduler.leased("go"))
    assert did(scheduler) == [("INSIST", True)]
    assert "Text starts nothing" in provider.requests[1].texts("user")[-1]
    # What answers the guard's argument is no word for the customer.
    assert streamed(scheduler) == ""
    assert "apologise" not in str(waits.interim_reply)


async def test_when_nothing_helps_the_reply_comes_with_a_note(
    scheduler: FakeScheduler, live: InProcess, provider: FakeOpenAI
) -> None:
    provider.script(*(Reply(f"{EXCUSE} ({n})") for n in (1, 2, 3)))
    end = await scheduler.answer(scheduler.leased("go"))
    said, _, note = reply_text(end).partition("\n\n")
    assert said == f"{EXCUSE} (3)"
    assert note.startswith("⚠ ")
    assert "is not true" in note
    assert did(scheduler) == [("INSIST", False), ("FORCE_TOOL", False), ("DELIVER_WITH_NOTE", True)]
    details = result(end)
    assert (details.guard_steps, details.steps) == (3, 3)
    assert [EXCUSE in item.excerpt for item in details.interventions] == [True] * 3
    assert streamed(scheduler) == ""
    # The next message's prompt holds what was delivered, and nothing of the argument.
    provider.script(Reply("ok"))
    previous = [("R1", run_pb2.RUN_STATE_SUCCEEDED, 1)]
    await scheduler.answer(scheduler.leased("and?", run_id="R2", previous=previous))
    prompt = str(provider.requests[-1].messages)
    assert "(3)" in prompt
    assert "(1)" not in prompt
    assert "The facts:" not in prompt


async def test_an_ignored_instruction_that_the_model_then_follows(
    scheduler: FakeScheduler, live: InProcess, provider: FakeOpenAI
) -> None:
    provider.script(Reply("Tea is older. Coffee is stronger."), Reply("", [SPAWN]))
    await scheduler.answer(scheduler.leased(ASK))
    assert did(scheduler) == [("INSIST", True)]
    assert f"«{ASK}»" in provider.requests[1].texts("user")[-1]
    assert streamed(scheduler) == "", "a reply that may ignore an instruction waits as a whole"


async def test_a_model_that_answers_without_the_excuse_is_done(
    scheduler: FakeScheduler, live: InProcess, provider: FakeOpenAI
) -> None:
    """Nobody asked for sub-agents: a plain answer after the facts is a good one."""
    provider.script(Reply(EXCUSE), Reply("It is 42."))
    end = await scheduler.answer(scheduler.leased("what is it?"))
    assert reply_text(end) == "It is 42."
    assert did(scheduler) == [("INSIST", True)]
    assert streamed(scheduler) == "It is 42."


@pytest.mark.parametrize(
    ("text", "options"),
    [
        (EXCUSE, {"depth": 1}),
        (EXCUSE, {"max_depth": 0}),
        ("I can't use your calendar, sorry. Is there anything else?", {}),
        ("Yes. I may start sub-agents whenever work can be split.", {}),
    ],
)
async def test_an_honest_reply_is_untouched(
    scheduler: FakeScheduler,
    live: InProcess,
    provider: FakeOpenAI,
    text: str,
    options: dict[str, Any],
) -> None:
    provider.script(Reply(text))
    end = await scheduler.answer(scheduler.leased("can you?", **options))
    assert reply_text(end) == text
    assert streamed(scheduler) == text
    assert result(end).guard_steps == 0
    assert len(provider.requests) == 1


async def test_a_refusal_after_a_real_one_is_honest(
    scheduler: FakeScheduler, live: InProcess, provider: FakeOpenAI
) -> None:
    over = BudgetExceeded("no", metadata={"budget": "max_children", "limit": "0", "used": "0"})
    scheduler.refuse = lambda _: over
    provider.script(Reply("", [SPAWN]), Reply("I am not allowed to start sub-agents here."))
    end = await scheduler.answer(scheduler.leased(ASK))
    assert reply_text(end) == "I am not allowed to start sub-agents here."
    assert did(scheduler) == []


async def test_an_excuse_after_children_ran_is_left_alone(
    scheduler: FakeScheduler, live: InProcess, provider: FakeOpenAI
) -> None:
    provider.script(Reply("", [SPAWN]), Reply("Tea. I cannot start another sub-agent."))
    await scheduler.answer(scheduler.leased(ASK))
    ended = scheduler.resumption(scheduler.child_result("C1"))
    end = await scheduler.answer(scheduler.leased(ASK, turn=2, resumption=ended))
    assert reply_text(end) == "Tea. I cannot start another sub-agent."
    assert did(scheduler) == []


async def test_with_the_guard_off_it_goes_through(
    scheduler: FakeScheduler, start_agent: StartAgent, provider: FakeOpenAI
) -> None:
    async with start_agent(config(provider, 'mode = "off"')):
        provider.script(Reply(EXCUSE))
        end = await scheduler.answer(scheduler.leased(ASK))
    assert reply_text(end) == EXCUSE
    assert streamed(scheduler) == EXCUSE


async def test_an_excuse_beside_a_call_is_no_interim_message(
    scheduler: FakeScheduler, live: InProcess, provider: FakeOpenAI
) -> None:
    provider.script(Reply(f"{EXCUSE} But I will try.", [SPAWN]))
    waits = await scheduler.answer(scheduler.leased("go"))
    assert "permission" not in str(waits.interim_reply)
    assert "tea" in str(waits.interim_reply)
    assert "permission" not in streamed(scheduler)


async def test_a_call_that_fails_on_the_ladder_never_fails_the_run(
    scheduler: FakeScheduler, start_agent: StartAgent, provider: FakeOpenAI
) -> None:
    """A server that does not know tool_choice refuses the forced call: the next rung follows."""
    async with start_agent(config(provider, 'fallback_model = "fake:strong"')):
        provider.script(
            Reply(EXCUSE),
            Reply(EXCUSE),
            Failure(400, "tool_choice is not supported"),
            Failure(401, "no such key"),
        )
        end = await scheduler.answer(scheduler.leased("go"))
    assert [request.body["model"] for request in provider.requests][-1] == "strong"
    assert did(scheduler) == [
        ("INSIST", False),
        ("FORCE_TOOL", False),
        ("FALL_BACK_MODEL", False),
        ("DELIVER_WITH_NOTE", True),
    ]
    assert reply_text(end).startswith(EXCUSE)


async def test_a_budget_that_is_used_up_ends_the_ladder(
    scheduler: FakeScheduler, live: InProcess, provider: FakeOpenAI
) -> None:
    provider.script(Reply(EXCUSE))
    scheduler.reservations = [0.0, BudgetExceeded("the budget of 10 tokens is used up")]
    end = await scheduler.answer(scheduler.leased("go", budgeted=True))
    assert reply_text(end).startswith(EXCUSE)
    assert did(scheduler) == [("INSIST", False), ("DELIVER_WITH_NOTE", True)]
    assert len(provider.requests) == 1


async def test_a_rung_that_waits_for_a_limit_is_taken_when_it_may(
    scheduler: FakeScheduler, live: InProcess, provider: FakeOpenAI
) -> None:
    provider.script(Reply(EXCUSE), Reply(EXCUSE), Reply("", [SPAWN]))
    scheduler.reservations = [0.0, 30.0]
    waits = await scheduler.answer(scheduler.leased("go"))
    assert waits.condition.HasField("limit")
    assert did(scheduler) == [], "what came of it is not known yet"
    limit = waits.condition.limit
    resumption = ann.Resumption(
        reason=ann.RESUME_REASON_LIMIT_GRANTED,
        condition=run_pb2.WaitCondition(limit=limit),
        grant=limit_pb.ReserveGrant(reservation_id=limit.reservation_id),
    )
    waits = await scheduler.answer(scheduler.leased("go", turn=2, resumption=resumption))
    assert waits.condition.HasField("children")
    assert did(scheduler) == [("INSIST", False), ("FORCE_TOOL", True)]
    plain, insisted, forced = provider.requests
    assert "The facts:" in insisted.texts("user")[-1]
    assert "tool_choice" not in plain.body or plain.body["tool_choice"] == "auto"
    assert forced.body["tool_choice"]["function"]["name"] == "sessions_spawn"


async def test_rungs_that_fail_after_a_wait_for_a_limit_take_a_grant_each_and_end_with_the_note(
    scheduler: FakeScheduler, live: InProcess, provider: FakeOpenAI
) -> None:
    """Every rung was sent on the grant of the first, past the limit; then the run failed."""
    provider.script(Reply(EXCUSE), Failure(400, "no"), Failure(400, "no"))
    scheduler.reservations = [0.0, 30.0]
    waits = await scheduler.answer(scheduler.leased("go"))
    limit = waits.condition.limit
    resumption = ann.Resumption(
        reason=ann.RESUME_REASON_LIMIT_GRANTED,
        condition=run_pb2.WaitCondition(limit=limit),
        grant=limit_pb.ReserveGrant(reservation_id=limit.reservation_id),
    )
    end = await scheduler.answer(scheduler.leased("go", turn=2, resumption=resumption))
    assert reply_text(end).startswith(EXCUSE)
    assert "⚠" in reply_text(end)
    assert len(provider.requests) == 3
    assert len(scheduler.reserved) == 3


async def test_an_instruction_that_is_taken_back_is_not_insisted_on(
    scheduler: FakeScheduler, live: InProcess, provider: FakeOpenAI
) -> None:
    """What was said last holds, also when it was steered to the run."""
    leased = scheduler.leased(ASK)
    # Handed over with the lease: taken before the first model call.
    leased.steered.extend([said("q2", "No, don't use sub-agents.")])
    provider.script(Reply("Coffee is stronger."))
    end = await scheduler.answer(leased)
    assert reply_text(end) == "Coffee is stronger."
    assert did(scheduler) == []


async def test_the_weak_demo_model_with_the_strong_one_behind_it(
    scheduler: FakeScheduler, start_agent: StartAgent
) -> None:
    toml = (
        '[agents.defaults]\nmodel = "demo-weak"\n[agents.defaults.guard]\nfallback_model = "demo"\n'
    )
    async with start_agent(toml):
        waits = await scheduler.answer(
            scheduler.leased("Spawn sub-agents for these: find hotels, find flights")
        )
    assert len(waits.condition.children.run_ids) == 2
    assert did(scheduler) == [("INSIST", False), ("FORCE_TOOL", False), ("FALL_BACK_MODEL", True)]
    assert streamed(scheduler) == ""


async def test_a_fallback_model_that_does_not_exist_is_said_at_start(
    start_agent: StartAgent, provider: FakeOpenAI
) -> None:
    with pytest.raises(StartError, match="'gone:x'"):
        async with start_agent(config(provider, 'fallback_model = "gone:x"')):
            pass

"""Turns of the demo model through the real worker, over real gRPC."""

from __future__ import annotations

from conveyor.agent.v1 import task_pb2 as task_pb
from conveyor.common.v1 import content_pb2
from conveyor.scheduler.v1 import announcement_pb2 as ann
from conveyor.scheduler.v1 import run_pb2
from svckit.errors import BudgetExceeded
from svckit.grpc.status import from_proto
from svckit.testing import eventually
from svckit.testing.inprocess import InProcess
from tests.service.agent.conftest import StartAgent
from tests.service.agent.fake_scheduler import SESSION, FakeScheduler, reply_text, said

CLASSIC = "Do three things: research a market trend, analyse competitors, draft a summary"


async def test_a_plain_reply(scheduler: FakeScheduler, agent: InProcess) -> None:
    end = await scheduler.answer(scheduler.leased("[[reply: hello there]]"))
    assert reply_text(end) == "hello there"
    assert end.result.reply.message_id == "R1-1"
    assert end.result.reply.role == content_pb2.ROLE_AGENT
    assert end.announce_mode == run_pb2.ANNOUNCE_MODE_ALL
    details = task_pb.AgentResult()
    assert end.result.details.Unpack(details)
    assert details.stop_reason == task_pb.STOP_REASON_END_TURN
    assert (details.steps, details.requested_model, details.effective_model) == (1, "demo", "demo")
    # Pieces are merged and come before the end; each names the message it grows.
    assert "".join(delta.text for delta in scheduler.deltas) == "hello there"
    assert {delta.message_id for delta in scheduler.deltas} == {"R1-1"}
    report = scheduler.reports["R1/1.2"]
    assert report.call.provider_id == "demo"
    assert report.usage.model_calls == 1
    assert report.usage.output_tokens == 2
    assert report.usage.unpriced_calls == 0


async def test_what_the_customer_has_to_know_is_told_before_the_answer_and_once(
    scheduler: FakeScheduler, agent: InProcess
) -> None:
    notice = task_pb.CustomerNotice(notice_id="acp-over-S", text="It was closed.")
    task = task_pb.AgentTask(agent_id="main", notice=notice)
    for attempt in (1, 2):
        leased = scheduler.leased("[[reply: hello]]", task=task, attempt=attempt)
        assert reply_text(await scheduler.answer(leased)) == "hello"
    [first, *rest] = scheduler.events.values()
    assert (first.event_id, first.note_added.text) == ("acp-over-S", "It was closed.")
    assert first.note_added.visible
    assert not any(event.HasField("note_added") for event in rest)


async def test_three_children_work_and_their_results_are_joined(
    scheduler: FakeScheduler, agent: InProcess
) -> None:
    end = await scheduler.answer(scheduler.leased(CLASSIC))
    assert list(end.condition.children.run_ids) == ["C1", "C2", "C3"]
    assert end.condition.children.mode == run_pb2.ANNOUNCE_MODE_ALL
    assert end.hold_session_lane
    assert end.yield_after.seconds == 20
    assert end.interim_reply.message_id == "R1-1"
    assert end.interim_reply.parts[0].text == "I'll hand this to 3 sub-agents."
    items = list(scheduler.children.values())
    assert [item.request_id for item in items] == ["R1/1.2.1", "R1/1.2.2", "R1/1.2.3"]
    assert [item.tool_call_id for item in items] == ["1.2.1", "1.2.2", "1.2.3"]
    assert items[0].spec.session_key == ""
    assert items[0].spec.label == "research a market trend"
    assert items[0].spec.run_timeout.seconds == 900
    task = task_pb.AgentTask()
    assert items[0].spec.task.Unpack(task)
    assert task.agent_id == "main"
    assert scheduler.texts() == [
        "message_completed",
        "tool_call_started 1.2.1",
        "tool_call_started 1.2.2",
        "tool_call_started 1.2.3",
    ]

    resumption = scheduler.resumption(
        *(scheduler.child_result(f"C{n}", f"result {n}") for n in (2, 3, 1))
    )
    end = await scheduler.answer(scheduler.leased(CLASSIC, turn=2, resumption=resumption))
    assert reply_text(end).splitlines() == [
        "All 3 sub-agents are done.",
        "1. research a market trend: result 1",
        "2. analyse competitors: result 2",
        "3. draft a summary: result 3",
    ]
    assert end.result.reply.message_id == "R1-2"
    assert [text for text in scheduler.texts() if "ended" in text] == [
        "tool_call_ended 1.2.2",
        "tool_call_ended 1.2.3",
        "tool_call_ended 1.2.1",
    ]


async def test_a_caller_that_waits_for_one_answer_gets_no_interim(
    scheduler: FakeScheduler, agent: InProcess
) -> None:
    end = await scheduler.answer(scheduler.leased(CLASSIC, delivers_later=False))
    assert end.hold_session_lane
    assert not end.HasField("yield_after")
    assert not end.HasField("interim_reply")


async def test_a_child_waits_without_interim(scheduler: FakeScheduler, agent: InProcess) -> None:
    leased = scheduler.leased(CLASSIC, session="s:C", depth=1, max_depth=2, parent="R0")
    end = await scheduler.answer(leased)
    assert not end.HasField("yield_after")


async def test_the_deepest_run_does_it_alone(scheduler: FakeScheduler, agent: InProcess) -> None:
    leased = scheduler.leased(CLASSIC, session="s:C", depth=1, parent="R0")
    end = await scheduler.answer(leased)
    assert reply_text(end).startswith("1. research a market trend: done.")
    assert not scheduler.children


async def test_background_children_and_a_closing_turn(
    scheduler: FakeScheduler, agent: InProcess
) -> None:
    text = "[[spawn-background: dig]] [[reply: started]]"
    end = await scheduler.answer(scheduler.leased(text))
    assert reply_text(end) == "started"
    assert scheduler.texts()[-1] == "tool_call_ended 1.2.1"
    # Another message of the session meanwhile sees the exchange, and what is still at work.
    end = await scheduler.answer(scheduler.leased("[[reply: sure]]", run_id="R2"))
    assert reply_text(end) == "sure"
    resumption = scheduler.resumption(scheduler.child_result("C1", "gold"), lane_released=True)
    end = await scheduler.answer(
        scheduler.leased(
            text,
            turn=2,
            resumption=resumption,
            previous=[("R2", run_pb2.RUN_STATE_SUCCEEDED, 1)],
        )
    )
    assert reply_text(end).startswith(f"> {text}")
    assert "gold" in reply_text(end)


async def test_a_sub_agent_that_a_person_ordered_starts_without_a_model_call(
    scheduler: FakeScheduler, agent: InProcess
) -> None:
    text = "compare three hotels"
    order = task_pb.SpawnOrder(agent_id="main", model="demo")
    task = task_pb.AgentTask(agent_id="main", spawn=order)
    end = await scheduler.answer(scheduler.leased(text, task=task))
    assert not end.result.HasField("reply"), "the person knows what was ordered"
    assert not scheduler.reports
    details = task_pb.AgentResult()
    assert end.result.details.Unpack(details)
    assert details.steps == 0
    [child] = scheduler.children.values()
    assert (child.request_id, child.spec.label) == ("R1/1.2.1", text)
    assert child.message.parts[0].text == text
    task_of_child = task_pb.AgentTask()
    assert child.spec.task.Unpack(task_of_child)
    assert (task_of_child.agent_id, task_of_child.model) == ("main", "demo")
    assert not task_of_child.HasField("spawn")

    # What is said meanwhile is answered as ever, and the result comes with a closing turn.
    end = await scheduler.answer(scheduler.leased("[[reply: sure]]", run_id="R2"))
    assert reply_text(end) == "sure"
    resumption = scheduler.resumption(scheduler.child_result("C1", "the third"), lane_released=True)
    end = await scheduler.answer(
        scheduler.leased(
            text,
            turn=2,
            task=task,
            resumption=resumption,
            previous=[("R2", run_pb2.RUN_STATE_SUCCEEDED, 1)],
        )
    )
    assert "the third" in reply_text(end)
    assert len(scheduler.children) == 1
    assert [name for name in scheduler.reports if name.startswith("R1/")] == ["R1/2.2"]


async def test_an_order_that_is_refused_says_why(
    scheduler: FakeScheduler, agent: InProcess
) -> None:
    order = task_pb.SpawnOrder(agent_id="stranger")
    task = task_pb.AgentTask(agent_id="main", spawn=order)
    end = await scheduler.answer(scheduler.leased("dig", task=task))
    assert reply_text(end).startswith("No sub-agent was started: agent_id 'stranger'")
    assert not scheduler.reports


async def test_a_yield_gives_the_lane_back(scheduler: FakeScheduler, agent: InProcess) -> None:
    text = "[[spawn: dig]] [[yield: I'll get back to you]]"
    end = await scheduler.answer(scheduler.leased(text))
    assert not end.hold_session_lane
    assert end.interim_reply.parts[0].text == "I'll get back to you"
    assert list(end.condition.children.run_ids) == ["C1"]
    resumption = scheduler.resumption(scheduler.child_result("C1", "gold"), lane_released=True)
    end = await scheduler.answer(scheduler.leased(text, turn=2, resumption=resumption))
    assert "gold" in reply_text(end)


async def test_a_yield_without_children_is_refused_to_the_model(
    scheduler: FakeScheduler, agent: InProcess
) -> None:
    end = await scheduler.answer(scheduler.leased("[[yield: later]]"))
    assert "No sub-agent is at work" in reply_text(end)
    ended = scheduler.events["R1-1.2.1-ended"].tool_call_ended
    assert from_proto(ended.error).metadata == {"cause": "tool"}


async def test_a_message_steered_to_a_waiting_run(
    scheduler: FakeScheduler, agent: InProcess
) -> None:
    await scheduler.answer(scheduler.leased("[[spawn: dig]]"))
    steered = scheduler.leased(
        "[[spawn: dig]]",
        turn=2,
        resumption=scheduler.resumption(reason=ann.RESUME_REASON_STEERED),
        steered=[said("s1", "and hurry")],
    )
    end = await scheduler.answer(steered)
    assert reply_text(end) == "Noted while sub-agents are at work: and hurry"
    assert list(end.taken_request_ids) == ["s1"]
    resumption = scheduler.resumption(scheduler.child_result("C1", "gold"), lane_released=True)
    end = await scheduler.answer(scheduler.leased("[[spawn: dig]]", turn=3, resumption=resumption))
    assert "gold" in reply_text(end)
    assert not end.taken_request_ids


async def test_refused_children_are_told_to_the_model(
    scheduler: FakeScheduler, agent: InProcess
) -> None:
    facts = {"budget": "max_children", "limit": "5", "used": "5", "requested": "1", "runId": "R1"}
    scheduler.refuse = lambda _: BudgetExceeded("too many children", metadata=facts)
    end = await scheduler.answer(scheduler.leased("[[spawn: dig]]"))
    assert "the budget max_children allows 5" in reply_text(end)
    ended = scheduler.events["R1-1.2.1-ended"].tool_call_ended
    assert isinstance(from_proto(ended.error), BudgetExceeded)


async def test_a_turn_told_to_fail_fails_for_good(
    scheduler: FakeScheduler, agent: InProcess
) -> None:
    end = await scheduler.answer(scheduler.leased("[[fail: no luck]]"))
    assert not end.retryable
    error = from_proto(end.error)
    assert (error.reason, error.message) == ("TURN_FAILED", "no luck")


async def test_unknown_agents_and_models_fail_for_good(
    scheduler: FakeScheduler, agent: InProcess
) -> None:
    for task, reason in [
        (task_pb.AgentTask(agent_id="nobody"), "AGENT_NOT_FOUND"),
        (task_pb.AgentTask(agent_id="main", model="x:y"), "MODEL_NOT_FOUND"),
    ]:
        end = await scheduler.answer(scheduler.leased("hi", run_id=reason, task=task))
        assert from_proto(end.error).reason == reason
        assert not end.retryable


async def test_a_cancelled_turn_stops(scheduler: FakeScheduler, agent: InProcess) -> None:
    lease = scheduler.lease(scheduler.leased("[[sleep: 60s]]"))
    await eventually(lambda: scheduler.worker.calls["LeaseRuns"])
    scheduler.cancelled.add(lease)
    end = await scheduler.ended(lease)
    assert from_proto(end.error).reason == "RUN_CANCELLED"


async def test_agents_may_be_chosen_and_limited(
    scheduler: FakeScheduler, start_agent: StartAgent
) -> None:
    toml = """
[agents.list.main]
allow_agents = ["helper"]
tools = ["sessions_spawn"]
[agents.list.helper]
[agents.list.secret]
[agents.defaults.subagents]
yield_after_seconds = 0
announce = "each"
model = "demo-weak"
"""
    async with start_agent(toml):
        end = await scheduler.answer(scheduler.leased("[[spawn: dig]]"))
        assert "agent_id 'main'" not in str(end)
        # The agent may not spawn itself by name, but is the default of its own spawns.
        assert not end.HasField("yield_after")
        task = task_pb.AgentTask()
        assert scheduler.children["C1"].spec.task.Unpack(task)
        assert task.model == "demo-weak"
        assert list(task.allowed_tools) == ["sessions_spawn"]
        end = await scheduler.answer(
            scheduler.leased("[[spawn-background: dig]]", run_id="R2", session=f"{SESSION}2")
        )
        assert end.announce_mode == run_pb2.ANNOUNCE_MODE_EACH

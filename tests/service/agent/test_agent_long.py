"""Long conversations: summarised once, paid once, and never lost to people."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agent_svc.compacting import CODE
from agent_svc.domain import compaction
from agent_svc.store.transcripts import Transcripts
from conveyor.agent.v1 import agent_service_pb2 as pb
from conveyor.agent.v1 import agent_service_pb2_grpc as agent_grpc
from conveyor.agent.v1 import task_pb2 as task_pb
from conveyor.events.v1 import event_pb2
from conveyor.scheduler.v1 import announcement_pb2 as ann
from conveyor.scheduler.v1 import limit_service_pb2 as limit_pb
from conveyor.scheduler.v1 import run_pb2
from conveyor.scheduler.v1 import worker_service_pb2 as ws
from svckit.errors import BudgetExceeded
from svckit.grpc.status import from_proto
from svckit.testing.fake_openai import ChatRequest, Failure, FakeOpenAI, Reply, ToolCall
from svckit.testing.inprocess import InProcess
from tests.service.agent.conftest import StartAgent
from tests.service.agent.fake_scheduler import SESSION, FakeScheduler, reply_text

SUCCEEDED = run_pb2.RUN_STATE_SUCCEEDED
TOO_LONG = Failure(400, "maximum context length is 2000 tokens", code="context_length_exceeded")
WORDS = "word " * 200  # about 250 tokens
TOML = """
[agents.defaults]
model = "fake:big"
[agents.list.main]
tools = ["agents_list"]
[providers.fake]
base_url = "{base_url}"
context_tokens = {window}
input_price_usd = 1
output_price_usd = 1
"""


def is_summary(request: ChatRequest) -> bool:
    return request.texts("system") == [compaction.SYSTEM]


class Talk:
    """A conversation, one answered message after the other."""

    def __init__(self, scheduler: FakeScheduler, provider: FakeOpenAI) -> None:
        self.scheduler = scheduler
        self.provider = provider
        self.said: list[str] = []
        self.past: list[tuple[str, run_pb2.RunState.ValueType, int]] = []

    def lease(self, text: str, **more: Any) -> ws.LeasedRun:
        run_id = f"R{len(self.said)}"
        return self.scheduler.leased(text, run_id=run_id, previous=self.past[-1:], **more)

    async def say(self, text: str) -> str:
        """Say something and have it answered."""
        self.said.append(text)
        end = await self.scheduler.answer(self.lease(text))
        assert isinstance(end, ws.RunCompletion), end
        self.past.append((f"R{len(self.said)}", SUCCEEDED, 1))
        return reply_text(end)

    @property
    def summaries(self) -> list[ChatRequest]:
        return [request for request in self.provider.requests if is_summary(request)]

    @property
    def prompts(self) -> list[ChatRequest]:
        return [request for request in self.provider.requests if not is_summary(request)]

    def notes(self) -> list[str]:
        events = self.scheduler.events.values()
        return [e.note_added.text for e in events if e.note_added.code == CODE]


@pytest.fixture
def talk(scheduler: FakeScheduler, provider: FakeOpenAI) -> Talk:
    provider.when(is_summary, Reply("SUMMARY", input_tokens=300, output_tokens=7))
    return Talk(scheduler, provider)


@pytest.fixture
async def live(start_agent: StartAgent, provider: FakeOpenAI) -> AsyncIterator[InProcess]:
    async with start_agent(TOML.format(base_url=provider.base_url, window=2000)) as service:
        yield service


async def test_older_exchanges_become_a_summary_and_stay_listed(
    talk: Talk, live: InProcess, scheduler: FakeScheduler
) -> None:
    for number in range(10):
        assert await talk.say(f"message {number} {WORDS}") == "ok"
    assert len(talk.summaries) == 2, "one does not fit for ever; the second takes in the first"
    assert "message 0" in talk.summaries[0].texts("user")[0]
    assert "Summary of what came before: SUMMARY" in talk.summaries[1].texts("user")[0]
    assert talk.summaries[0].tools == []
    last = talk.prompts[-1].texts("user")
    assert last[0].startswith("[runtime] Summary of the older part")
    assert last[0].endswith("SUMMARY")
    assert [text.split()[1] for text in last[1:]] == ["8", "9"], "the newest, as they were said"
    assert all(len(json.dumps(r.body)) / 4 < 2500 for r in talk.provider.requests)

    # Reserved, reported with what it took, told.
    (first, *_) = [key for key in scheduler.reports if "summary" in key]
    report = scheduler.reports[first]
    assert report.outcome == limit_pb.CALL_OUTCOME_ANSWERED
    assert (report.usage.input_tokens, report.usage.output_tokens) == (300, 7)
    assert report.reservation_id in {asked.request_id for asked in scheduler.reserved}
    assert len(talk.notes()) == 2
    assert talk.notes()[0].startswith("The conversation grew long: 4 older exchanges are now")
    notes = [e.note_added for e in scheduler.events.values() if e.HasField("note_added")]
    assert {(note.visible, note.level) for note in notes} == {(False, event_pb2.NOTE_LEVEL_INFO)}
    assert not any("SUMMARY" in delta.text for delta in scheduler.deltas)

    stub = agent_grpc.AgentServiceStub(live.channel)
    listed = await stub.ListMessages(pb.ListMessagesRequest(session_key=SESSION))
    texts = [message.parts[0].text for message in listed.messages]
    # The last one is adopted when the next turn begins, or the scheduler is asked.
    assert [t.split()[1] for t in texts if t != "ok"][:9] == [str(n) for n in range(9)]
    assert not any("SUMMARY" in text for text in texts)


async def test_prompts_grow_byte_for_byte_until_a_summary(
    talk: Talk, live: InProcess, provider: FakeOpenAI
) -> None:
    provider.when("look", lambda r: _looking(r))
    for text in ("hello", "look around", f"and {WORDS}", "more", "less"):
        await talk.say(text)
    assert not talk.summaries
    # What other turns saw of a run is its answer: its own tools are its own.
    whole = [r for r in talk.prompts if r.last["role"] == "user"]
    assert len(whole) == 5
    for before, after in itertools.pairwise(whole):
        assert json.dumps(before.body["tools"]) == json.dumps(after.body["tools"])
        assert _bytes(after).startswith(_bytes(before))
    (first, second) = [r for r in talk.prompts if "look" in r.texts("user")[-1]][:2]
    assert _bytes(second).startswith(_bytes(first))


def _looking(request: ChatRequest) -> Reply:
    if request.last["role"] == "tool":
        return Reply("seen")
    return Reply("Looking.", [ToolCall("agents_list")])


def _bytes(request: ChatRequest) -> str:
    return "".join(json.dumps(message, sort_keys=True) for message in request.messages)


async def test_a_crash_after_the_summary_was_stored_does_not_pay_for_it_again(
    talk: Talk, live: InProcess, scheduler: FakeScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        await talk.say(f"message {number} {WORDS}")
    add = Transcripts.add_summary
    dead: list[str] = []

    async def die(self: Transcripts, *args: Any) -> None:
        await add(self, *args)
        dead.append("here")
        raise RuntimeError("the process died here")

    with monkeypatch.context() as broken:
        broken.setattr(Transcripts, "add_summary", die)
        talk.said.append("last")
        end = await scheduler.answer(talk.lease(f"last {WORDS}"))
        assert end.retryable
    assert dead == ["here"]
    assert not any("summary" in key for key in scheduler.reports)
    end = await scheduler.answer(talk.lease(f"last {WORDS}", attempt=2))
    assert reply_text(end) == "ok"
    assert len(talk.summaries) == 1
    assert talk.prompts[-1].texts("user")[0].endswith("SUMMARY")
    # What the dead attempt had not told is told.
    assert len([key for key in scheduler.reports if "summary" in key]) == 1
    assert len(talk.notes()) == 1


async def test_a_summary_that_must_wait_for_a_limit_gives_the_slot_back(
    talk: Talk, live: InProcess, scheduler: FakeScheduler
) -> None:
    """The grant that the run then holds is the summary's, and no other call uses it."""
    for number in range(5):
        await talk.say(f"message {number} {WORDS}")
    scheduler.reservations = [9.0]
    talk.said.append("last")
    end = await scheduler.answer(talk.lease(f"last {WORDS}"))
    reservation = end.condition.limit.reservation_id
    assert "summary" in reservation
    assert not talk.summaries
    had = len(scheduler.reserved)
    resumption = ann.Resumption(
        reason=ann.RESUME_REASON_LIMIT_GRANTED,
        condition=end.condition,
        grant=limit_pb.ReserveGrant(reservation_id=reservation),
    )
    end = await scheduler.answer(talk.lease(f"last {WORDS}", turn=2, resumption=resumption))
    assert reply_text(end) == "ok"
    assert len(scheduler.reserved) == had + 1
    used = [report.reservation_id for report in scheduler.reports.values()]
    assert used.count(reservation) == 1


async def test_a_budget_that_does_not_allow_a_summary_ends_the_run_and_names_itself(
    talk: Talk, live: InProcess, scheduler: FakeScheduler
) -> None:
    for number in range(5):
        await talk.say(f"message {number} {WORDS}")
    facts = {"budget": "max_tokens", "limit": "10", "used": "9", "requested": "2", "runId": "R6"}
    scheduler.reservations = [BudgetExceeded("the budget is used up", metadata=facts)]
    talk.said.append("last")
    end = await scheduler.answer(talk.lease(f"last {WORDS}"))
    assert from_proto(end.error).reason == "BUDGET_EXCEEDED"
    assert not end.retryable


@pytest.mark.parametrize("refused", [Reply(""), Failure(400, "no"), TOO_LONG])
async def test_a_model_that_writes_no_summary_does_not_end_the_turn(
    scheduler: FakeScheduler, provider: FakeOpenAI, live: InProcess, refused: Any
) -> None:
    provider.when(is_summary, refused)
    talk = Talk(scheduler, provider)
    for number in range(6):
        await talk.say(f"message {number} {WORDS}")
    assert "- message 0 word word" in talk.prompts[-1].texts("user")[0]
    assert len(talk.notes()) == 1


async def test_a_provider_that_finds_the_prompt_too_long_is_asked_once_more_with_less(
    start_agent: StartAgent, talk: Talk, scheduler: FakeScheduler, provider: FakeOpenAI
) -> None:
    """Nobody configured the window, and the list does not know the model."""
    provider.when(lambda r: not is_summary(r) and len(json.dumps(r.body)) > 5500, TOO_LONG)
    async with start_agent(TOML.format(base_url=provider.base_url, window=0)):
        for number in range(5):
            assert await talk.say(f"message {number} {WORDS}") == "ok"
    assert len(talk.summaries) == 1
    assert len(talk.prompts) == 6
    assert "SUMMARY" in talk.prompts[-1].texts("user")[0]
    ids = [asked.request_id for asked in scheduler.reserved]
    assert len(ids) == len(set(ids)), "every call has a reservation of its own"


async def test_a_run_that_is_too_long_by_itself_fails_and_says_so(
    start_agent: StartAgent, talk: Talk, scheduler: FakeScheduler, provider: FakeOpenAI
) -> None:
    provider.when(lambda r: not is_summary(r), TOO_LONG)
    async with start_agent(TOML.format(base_url=provider.base_url, window=0)):
        end = await scheduler.answer(scheduler.leased(f"all of it: {WORDS}"))
    error = from_proto(end.error)
    assert (error.reason, error.metadata) == ("TURN_FAILED", {"cause": "context"})
    assert "no longer fits in the context of fake:big" in error.message
    assert not end.retryable
    assert len(provider.requests) == 1, "there was nothing to leave out"


async def test_a_child_that_begins_with_a_long_conversation_begins_with_its_summary(
    talk: Talk, live: InProcess, scheduler: FakeScheduler
) -> None:
    for number in range(6):
        await talk.say(f"message {number} {WORDS}")
    paid = len(talk.summaries)
    task = task_pb.AgentTask(
        agent_id="main", context_mode=task_pb.CONTEXT_MODE_FORK, fork_session_key=SESSION
    )
    child = scheduler.leased(
        "part one", run_id="C1", session=f"{SESSION}:subagent:C1", depth=1, parent="R6", task=task
    )
    assert reply_text(await scheduler.answer(child)) == "ok"
    users = talk.prompts[-1].texts("user")
    assert users[0].endswith("SUMMARY")
    assert "message 0" not in str(users)
    assert "message 5" in str(users)
    assert users[-1] == "part one"
    assert len(talk.summaries) == paid


async def test_the_context_of_models_is_listed(
    start_agent: StartAgent, provider: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    toml = TOML.format(base_url=provider.base_url, window=2000) + (
        '[providers.vendor]\nkind = "anthropic"\n[providers.home]\n'
        'base_url = "http://127.0.0.1:1/v1"\n[agents.list.other]\n'
        'fallback_models = ["vendor:claude-sonnet-4-5", "home:qwen3"]\n'
    )
    async with start_agent(toml) as service:
        stub = agent_grpc.AgentServiceStub(service.channel)
        listed = await stub.ListModels(pb.ListModelsRequest())
    sizes = {model.model: model.context_tokens for model in listed.models}
    assert sizes["fake:big"] == 2000
    assert sizes["vendor:claude-sonnet-4-5"] >= 200_000
    assert sizes["home:qwen3"] == sizes["demo"] == 0

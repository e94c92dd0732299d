"""Tools of a toolset: what a person is asked, what a crash may repeat, what a broken one does."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from agent_svc.domain import steps as s
from agent_svc.domain.prompt import ToolPolicy, ToolSchema
from agent_svc.toolsets import Note, Offering
from agent_svc.work import Work
from conveyor.common.v1 import question_pb2
from conveyor.scheduler.v1 import announcement_pb2 as ann
from svckit.testing.fake_openai import FakeOpenAI, Reply, ToolCall
from svckit.turn import Complete, Outcome, Suspend
from tests.service.agent.fake_scheduler import FakeScheduler
from tests.service.agent.workbench import Bench, Crash, a_bench

SESSION = "agent:main:http:direct:local"


class Shed:
    """A toolset with a tool of each kind. Counts what really ran."""

    names: Sequence[str] = ("shed__*",)
    delegates = False

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.asked_at_depth: list[int] = []
        self.die_in: set[str] = set()
        self.gone = False

    async def offer(self, who: Offering) -> list[ToolSchema]:
        self.asked_at_depth.append(who.run.spawn.depth)
        if self.gone:
            who.notes.append(Note("tool_server_down", "shed", "The shed is closed."))
            who.missing["shed__*"] = "The shed is closed now."
            return []
        return [
            _tool("shed__look", ToolPolicy(kind="read")),
            _tool("shed__cut", ToolPolicy(idempotent=False, approval="ask")),
            _tool("shed__saw", ToolPolicy(idempotent=False, approval="ask")),
            _tool("shed__paint", ToolPolicy(idempotent=False)),
            _tool("shed__burn", ToolPolicy(approval="deny")),
        ]

    async def run(self, work: Work, call: s.ToolCall) -> s.Returned:
        self.ran.append(f"{call.name}{call.arguments}")
        if call.name in self.die_in:
            self.die_in.discard(call.name)
            raise Crash
        return s.Returned(call.id, f"{call.name} done")


def _tool(name: str, policy: ToolPolicy) -> ToolSchema:
    return ToolSchema(name, "A tool.", {"type": "object", "properties": {}}, policy)


@pytest.fixture
def shed() -> Shed:
    return Shed()


@pytest.fixture
async def bench(
    scheduler: FakeScheduler, provider: FakeOpenAI, shed: Shed, tmp_path: Path
) -> AsyncIterator[Bench]:
    async with shed_bench(scheduler, provider, shed, tmp_path, str(tmp_path / "agent.db")) as made:
        yield made


@pytest.fixture
async def bench_on_each_store(
    scheduler: FakeScheduler, provider: FakeOpenAI, shed: Shed, tmp_path: Path, database_url: str
) -> AsyncIterator[Bench]:
    async with shed_bench(scheduler, provider, shed, tmp_path, database_url) as made:
        yield made


@contextlib.asynccontextmanager
async def shed_bench(
    scheduler: FakeScheduler, provider: FakeOpenAI, shed: Shed, tmp_path: Path, url: str
) -> AsyncIterator[Bench]:
    config = tmp_path / "conveyor.toml"
    config.write_text(
        '[agents.defaults]\nmodel = "fake:m"\napproval_timeout_seconds = 77\n'
        '[agents.list.main]\n[agents.list.bold.approvals]\n"shed__*" = "allow"\n'
        '[agents.list.shy]\ntools = ["shed__look"]\n'
        '[agents.list.careful.approvals]\nsessions_spawn = "ask"\n'
        f'[providers.fake]\nbase_url = "{provider.base_url}"\n'
    )
    async with a_bench(scheduler, config, url, [shed]) as made:
        yield made


def calls_then_done(*calls: ToolCall) -> Any:
    """A model that makes these calls in one reply, and is done when they are answered."""

    def answer(request: Any) -> Reply:
        return Reply("done") if request.texts("tool") else Reply("", list(calls))

    return answer


def closed(run_id: str, *answers: tuple[str, str, str]) -> ann.Resumption:
    """The run resumes: these questions, by call, were answered so, by whom."""
    return ann.Resumption(
        reason=ann.RESUME_REASON_ANSWERED,
        answers=[
            question_pb2.Answer(question_id=f"{run_id}/{call}", option_id=option, responder=by)
            for call, option, by in answers
        ],
    )


def waits_for(outcome: Outcome) -> list[str]:
    assert isinstance(outcome, Suspend), outcome
    assert outcome.request.hold_session_lane
    return list(outcome.request.condition.approval.question_ids)


def questions(scheduler: FakeScheduler) -> list[question_pb2.Question]:
    return [
        event.question_asked.question
        for event in scheduler.events.values()
        if event.WhichOneof("payload") == "question_asked"
    ]


async def test_calls_are_asked_at_once_and_only_what_was_allowed_runs(
    bench: Bench, scheduler: FakeScheduler, provider: FakeOpenAI, shed: Shed
) -> None:
    provider.when(
        lambda _: True,
        calls_then_done(
            ToolCall("shed__cut", {"what": "wood"}),
            ToolCall("shed__look"),
            ToolCall("shed__saw"),
            ToolCall("sessions_spawn", {"task": "sweep"}),
            ToolCall("shed__cut", {"what": "stone"}),
        ),
    )
    outcome = await bench.attempt(scheduler.leased("go"))
    # The turn ends, so its slot is free; what needed nobody's word ran before.
    assert waits_for(outcome) == ["R1/1.2.1", "R1/1.2.3", "R1/1.2.5"]
    assert shed.ran == ["shed__look{}"]
    assert not scheduler.children
    cut, saw, again = questions(scheduler)
    assert (cut.title, cut.tool_kind) == ('Use shed__cut with {"what": "wood"}', "other")
    assert cut.arguments["what"] == "wood"
    assert saw.title == "Use shed__saw"
    assert [option.option_id for option in again.options] == [
        *("allow", "allow-always", "deny", "deny-always")
    ]
    assert cut.default_option_id == "deny"
    assert cut.timeout.ToSeconds() == 77

    # Two of three are answered: one runs, one is denied, one waits again.
    some = closed("R1", ("1.2.5", "deny", "ann"), ("1.2.1", "allow", "ann"))
    outcome = await bench.attempt(scheduler.leased("go", turn=2, resumption=some))
    assert waits_for(outcome) == ["R1/1.2.3"]
    assert shed.ran[1:] == ['shed__cut{"what": "wood"}']
    assert len(questions(scheduler)) == 3
    assert len(provider.requests) == 1

    # Nobody answers the last one: it is denied, and then the child of the same reply starts.
    rest = closed("R1", ("1.2.3", "deny", ""))
    outcome = await bench.attempt(scheduler.leased("go", turn=3, resumption=rest))
    assert isinstance(outcome, Suspend)
    assert list(outcome.request.condition.children.run_ids) == ["C1"]
    swept = scheduler.resumption(scheduler.child_result("C1", "swept"))
    last = await bench.attempt(scheduler.leased("go", turn=4, resumption=swept))
    assert isinstance(last, Complete)
    told = provider.requests[-1].texts("tool")
    assert told[0] == "shed__cut done"
    assert told[1] == "shed__look done"
    assert "nobody gave it in time" in told[2]
    assert "swept" in told[3]
    assert "denied by ann" in told[4]
    assert len(shed.ran) == 2
    ended = [text for text in scheduler.texts() if text.startswith("tool_call_ended")]
    assert len(ended) == len(set(ended)) == 5


async def test_what_is_said_for_the_rest_of_a_conversation_holds_until_the_next_one(
    bench_on_each_store: Bench, scheduler: FakeScheduler, provider: FakeOpenAI, shed: Shed
) -> None:
    bench = bench_on_each_store
    provider.when(lambda _: True, calls_then_done(ToolCall("shed__cut"), ToolCall("shed__saw")))
    first = await bench.attempt(scheduler.leased("one"))
    assert len(waits_for(first)) == 2
    said = closed("R1", ("1.2.1", "allow-always", "ann"), ("1.2.2", "deny-always", "ann"))
    assert isinstance(
        await bench.attempt(scheduler.leased("one", turn=2, resumption=said)), Complete
    )
    assert shed.ran == ["shed__cut{}"]

    # The next message, and a sub-agent of it, are not asked again.
    assert isinstance(await bench.attempt(scheduler.leased("two", run_id="R2")), Complete)
    child = scheduler.leased("part", run_id="R3", session=f"{SESSION}:subagent:R3", depth=1)
    child.run.spawn.flow_id = "R2"
    assert isinstance(await bench.attempt(child), Complete)
    assert shed.ran == ["shed__cut{}"] * 3
    assert "denied for the rest of this conversation" in provider.requests[-1].texts("tool")[1]
    assert [tool for tool in provider.requests[-1].tools if tool == "shed__saw"] == []

    # Another customer is, and so is the same one after a reset.
    other = scheduler.leased("hi", run_id="R4", session="agent:main:http:direct:other")
    assert len(waits_for(await bench.attempt(other))) == 2
    await bench.store.reset(SESSION, "new", 0)
    anew = scheduler.leased("three", run_id="R5", epoch=1)
    assert len(waits_for(await bench.attempt(anew))) == 2


async def test_the_rules_of_an_agent_beat_those_of_a_server(
    bench: Bench, scheduler: FakeScheduler, provider: FakeOpenAI, shed: Shed
) -> None:
    from conveyor.agent.v1 import task_pb2

    provider.when(lambda _: True, calls_then_done(ToolCall("shed__burn"), ToolCall("shed__cut")))
    bold = task_pb2.AgentTask(agent_id="bold")
    assert isinstance(await bench.attempt(scheduler.leased("go", task=bold)), Complete)
    assert shed.ran == ["shed__burn{}", "shed__cut{}"]

    # Denied by the configuration: not offered, and refused when it is called all the same.
    await bench.attempt(scheduler.leased("go", run_id="R2"))
    assert "shed__burn" not in provider.requests[-1].tools
    burned = [
        event.tool_call_ended.output[0].text
        for name, event in scheduler.events.items()
        if name == "R2-1.2.1-ended"
    ]
    assert burned == ["The tool 'shed__burn' may not be used."]

    # An agent with a list of tools has those, and a leaf has them too.
    shy = task_pb2.AgentTask(agent_id="shy")
    leaf = scheduler.leased("go", run_id="R6", task=shy, depth=1)
    assert isinstance(await bench.attempt(leaf), Complete)
    assert provider.requests[-2].tools == ["shed__look"]
    assert len(shed.ran) == 2


async def test_sub_agents_can_need_a_word_too(
    bench: Bench, scheduler: FakeScheduler, provider: FakeOpenAI
) -> None:
    from conveyor.agent.v1 import task_pb2

    spawns = [ToolCall("sessions_spawn", {"task": task}) for task in ("one", "two")]
    provider.when(lambda _: True, calls_then_done(*spawns))
    careful = task_pb2.AgentTask(agent_id="careful")
    asked = await bench.attempt(scheduler.leased("go", task=careful))
    assert waits_for(asked) == ["R1/1.2.1", "R1/1.2.2"]
    assert not scheduler.children
    said = closed("R1", ("1.2.1", "deny", "ann"), ("1.2.2", "allow", "ann"))
    outcome = await bench.attempt(scheduler.leased("go", turn=2, task=careful, resumption=said))
    assert isinstance(outcome, Suspend)
    assert list(outcome.request.condition.children.run_ids) == ["C1"]
    assert [item.spec.label for item in scheduler.children.values()] == ["two"]


async def test_tools_that_are_not_to_be_had_are_told_to_the_model_and_to_people(
    bench: Bench, scheduler: FakeScheduler, provider: FakeOpenAI, shed: Shed
) -> None:
    provider.when(lambda _: True, calls_then_done(ToolCall("shed__look")))
    shed.gone = True
    assert isinstance(await bench.attempt(scheduler.leased("go")), Complete)
    (told,) = provider.requests[-1].texts("tool")
    assert "The shed is closed now." in told
    (note,) = [e.note_added for e in scheduler.events.values() if e.HasField("note_added")]
    assert (note.code, note.text) == ("tool_server_down", "The shed is closed.")
    assert not note.visible


@pytest.mark.parametrize("after", [True, False], ids=["after", "before"])
@pytest.mark.parametrize("die_at", range(1, 8))
async def test_a_crash_at_any_step_runs_no_tool_twice(
    bench: Bench,
    scheduler: FakeScheduler,
    provider: FakeOpenAI,
    shed: Shed,
    die_at: int,
    after: bool,
) -> None:
    calls = (ToolCall("shed__paint"), ToolCall("shed__look"), ToolCall("shed__cut"))
    provider.when(lambda _: True, calls_then_done(*calls))
    bench.store.after, bench.store.die_at = after, die_at
    resumption = None
    outcome: Outcome | None = None
    for turn in (1, 2):
        for attempt in range(1, 4):
            leased = scheduler.leased("go", turn=turn, attempt=attempt, resumption=resumption)
            outcome = None
            with contextlib.suppress(Crash):
                outcome = await bench.attempt(leased)
                break
        if turn == 1:
            assert outcome is not None
            assert waits_for(outcome) == ["R1/1.2.3"]
        resumption = closed("R1", ("1.2.3", "allow", "ann"))
    assert isinstance(outcome, Complete)
    assert bench.store.die_at <= 0
    # 1 reply, 2 and 3 around paint, 4 look, 5 asked, 6 and 7 around cut, then the reply.
    told = provider.requests[-1].texts("tool")
    interrupted = [text for text in told if "may or may not have happened" in text]
    unsure = {(2, True): "shed__paint", (3, False): "shed__paint"}
    unsure |= {(6, True): "shed__cut", (7, False): "shed__cut"}
    assert len(interrupted) == ((die_at, after) in unsure)
    for name in ("shed__paint{}", "shed__cut{}"):
        # Once, or not at all when the crash came right before; never twice.
        skipped = after and unsure.get((die_at, after)) == name.removesuffix("{}")
        assert shed.ran.count(name) == (0 if skipped else 1)
    # What may be repeated is, when its result was not yet stored.
    assert shed.ran.count("shed__look{}") == (2 if (die_at, after) == (4, False) else 1)
    assert len(questions(scheduler)) == 1


async def test_a_tool_that_may_be_repeated_is_when_the_service_died_in_it(
    bench: Bench, scheduler: FakeScheduler, provider: FakeOpenAI, shed: Shed
) -> None:
    provider.when(lambda _: True, calls_then_done(ToolCall("shed__look"), ToolCall("shed__paint")))
    shed.die_in = {"shed__look", "shed__paint"}
    for attempt in (1, 2):
        with pytest.raises(Crash):
            await bench.attempt(scheduler.leased("go", attempt=attempt))
    assert isinstance(await bench.attempt(scheduler.leased("go", attempt=3)), Complete)
    assert shed.ran == ["shed__look{}", "shed__look{}", "shed__paint{}"]
    look, paint = provider.requests[-1].texts("tool")
    assert look == "shed__look done"
    assert "may or may not have happened" in paint

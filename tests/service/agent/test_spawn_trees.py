"""Spawn trees as people get them: a real scheduler and a real agent service, in this process."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from google.protobuf import any_pb2

from agent_svc import app as agent_app
from conveyor.agent.v1 import task_pb2 as task_pb
from conveyor.common.v1 import content_pb2
from conveyor.events.v1 import event_log_service_pb2 as log_pb
from conveyor.events.v1 import event_pb2
from conveyor.scheduler.v1 import flow_service_pb2 as flow_pb
from conveyor.scheduler.v1 import run_pb2
from conveyor.scheduler.v1 import scheduler_service_pb2 as sched
from svckit.caps import caps_of
from svckit.clock import SystemClock
from svckit.grpc.status import from_proto
from svckit.settings import load
from svckit.testing import eventually, in_process
from svckit.testing.fake_openai import ChatRequest, FakeOpenAI, Reply, ToolCall
from tests.service.scheduler.conftest import Driver, driver

KEY = "agent:main:http:direct:ann"
SUCCEEDED = run_pb2.RUN_STATE_SUCCEEDED
TERMINAL = {
    SUCCEEDED,
    run_pb2.RUN_STATE_FAILED,
    run_pb2.RUN_STATE_CANCELLED,
    run_pb2.RUN_STATE_EXPIRED,
}
SPOKEN = {
    event_pb2.MESSAGE_KIND_REPLY: "reply",
    event_pb2.MESSAGE_KIND_INTERIM: "interim",
}


HELD = "[[sleep: 777s]]"
"""Makes a demo agent wait until the test lets it go on: no machine is too slow for that."""


class HeldClock(SystemClock):
    """Real time, but `HELD` ends when `go_on` is set, not before and not later."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        if seconds == 777:
            await self.go_on.wait()
        else:
            await super().sleep(seconds)


class House:
    """What a gateway would do, and what it would see."""

    def __init__(self, s: Driver, caps: run_pb2.Budget, clock: HeldClock) -> None:
        self.s = s
        self.caps = caps
        self.clock = clock
        self._ids = itertools.count(1)

    async def send(self, text: str, session: str = KEY, model: str = "") -> str:
        """Accept a message of a customer; returns its run."""
        task = any_pb2.Any()
        task.Pack(task_pb.AgentTask(agent_id="main", model=model))
        item = self.s.item(session, text, task=task, budget=self.caps)
        item.message.CopyFrom(
            content_pb2.Message(
                message_id=f"m{next(self._ids)}",
                role=content_pb2.ROLE_USER,
                parts=[content_pb2.ContentPart(text=text)],
            )
        )
        answer = await self.s.scheduler.EnqueueRuns(sched.EnqueueRunsRequest(items=[item]))
        assert answer.results[0].HasField("accepted"), answer
        return cast(str, answer.results[0].accepted.run.run_id)

    async def run(self, run_id: str) -> run_pb2.Run:
        answer = await self.s.scheduler.GetRun(sched.GetRunRequest(run_id=run_id))
        return cast(run_pb2.Run, answer.run)

    async def ended(self, run_id: str) -> run_pb2.Run:
        async def terminal() -> run_pb2.Run | None:
            found = await self.run(run_id)
            return found if found.state in TERMINAL else None

        found = await eventually(terminal)
        assert found is not None
        return found

    async def tree(self, flow_id: str) -> list[run_pb2.Run]:
        answer = await self.s.flows.GetFlow(flow_pb.GetFlowRequest(flow_id=flow_id))
        return list(answer.nodes)

    async def events(self, session: str = KEY) -> list[event_pb2.Event]:
        answer = await self.s.events.ListEvents(
            log_pb.ListEventsRequest(session_key=session, page_size=1000)
        )
        return list(answer.events)

    async def said(self, session: str = KEY) -> list[tuple[str, str]]:
        """What the session's customer was told, in order."""
        found = []
        for event in await self.events(session):
            told = event.message_completed
            if event.WhichOneof("payload") == "message_completed" and told.kind in SPOKEN:
                found.append((SPOKEN[told.kind], told.message.parts[0].text))
        return found

    async def announced(self, session: str = KEY) -> list[str]:
        """Labels of the children whose end the session was told."""
        return [
            event.child_announced.announcement.result.label
            for event in await self.events(session)
            if event.WhichOneof("payload") == "child_announced"
        ]


@asynccontextmanager
async def house(tmp_path: Path, toml: str = "") -> AsyncIterator[House]:
    config = tmp_path / "conveyor.toml"
    config.write_text(f'[store]\nurl = "memory:"\n{toml}')
    settings = load(config, {})
    async with driver(settings) as s:
        address = s.address
        config.write_text(f'[services]\nscheduler = "{address}"\n{config.read_text()}')
        settings = load(config, {})
        agent = settings.agents.get("main")
        assert agent is not None
        clock = HeldClock()
        async with in_process(agent_app.build, settings, name="agent", clock=clock):
            yield House(s, caps_of(agent.subagents), clock)


def deeper(levels: int, leaf: str) -> str:
    """A message whose sub-agent starts a sub-agent, and so on."""
    return f"[[spawn: {deeper(levels - 1, leaf)}]]" if levels else leaf


@pytest.mark.parametrize("depth", [2, 3])
async def test_results_cascade_from_the_leaves_up_through_nested_orchestrators(
    tmp_path: Path, depth: int
) -> None:
    toml = f"""
[lanes]
main.limit = 1
subagent.limit = 1
[agents.defaults.subagents]
max_spawn_depth = {depth}
"""
    async with house(tmp_path, toml) as h:
        run_id = await h.send(deeper(depth, "[[reply: gold]]"))
        root = await h.ended(run_id)
        assert root.state == SUCCEEDED
        # One joined answer, which holds what the leaf found.
        [(kind, text)] = await h.said()
        assert kind == "reply"
        assert text.count("The sub-agent is done.") == depth
        assert "gold" in text
        nodes = await h.tree(run_id)
        assert [node.spawn.depth for node in nodes] == list(range(depth + 1))
        # Each orchestrator was told of its own workers, and nobody else was.
        for parent, child in itertools.pairwise(nodes):
            assert child.spawn.parent_run_id == parent.run_id
            assert await h.announced(parent.spec.session_key) == [child.spec.label]
        # From the leaves up, and every usage counted once.
        ends = [node.timing.end_time.ToMicroseconds() for node in nodes]
        assert ends == sorted(ends, reverse=True)
        assert nodes[0].tree_usage.model_calls == sum(n.usage.model_calls for n in nodes)


async def test_an_orchestrator_that_yields_announces_only_what_it_has_in_the_end(
    tmp_path: Path,
) -> None:
    toml = "[agents.defaults.subagents]\nmax_spawn_depth = 2\n"
    async with house(tmp_path, toml) as h:
        worker = "[[spawn: [[sleep: 300ms]] [[reply: gold]]]]"
        run_id = await h.send(f"[[spawn: {worker} [[yield: be right back]]]]")
        assert (await h.ended(run_id)).state == SUCCEEDED
        [(kind, text)] = await h.said()
        assert kind == "reply"
        assert "gold" in text
        assert text.endswith("gold: gold")
        assert len(await h.announced()) == 1


async def test_a_child_that_executes_too_long_is_expired_and_its_parent_answers(
    tmp_path: Path,
) -> None:
    toml = "[agents.defaults.subagents]\nrun_timeout_seconds = 0.3\n"
    async with house(tmp_path, toml) as h:
        run_id = await h.send("[[spawn: [[sleep: 60s]]]]")
        assert (await h.ended(run_id)).state == SUCCEEDED
        [(_, text)] = await h.said()
        assert "expired (run_timeout has passed)" in text


async def test_a_leaf_at_the_depth_limit_does_the_work_itself(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        run_id = await h.send(deeper(2, "[[reply: gold]]"))
        await h.ended(run_id)
        assert len(await h.tree(run_id)) == 2
        assert "Done without sub-agents" in (await h.said())[0][1]


@pytest.mark.parametrize(("announce", "closings"), [("all", 1), ("each", 2)])
async def test_background_children_reply_at_once_and_close_later(
    tmp_path: Path, announce: str, closings: int
) -> None:
    toml = f'[agents.defaults.subagents]\nannounce = "{announce}"\n'
    async with house(tmp_path, toml) as h:
        quick, slow = "[[reply: quick]]", f"{HELD} [[reply: slow]]"
        text = f"[[spawn-background: {quick}]] [[spawn-background: {slow}]]"
        run_id = await h.send(text)
        # The customer goes on chatting meanwhile: the lane is free.
        other = await h.send("[[reply: sure]]")
        assert (await h.ended(other)).state == SUCCEEDED
        assert (await h.run(run_id)).state not in TERMINAL
        if announce == "each":  # the quick one's end is told while the other works
            await eventually(h.announced)
        h.clock.go_on.set()
        assert (await h.ended(run_id)).state == SUCCEEDED
        said = await h.said()
        assert said[0] == (
            "reply",
            "Started 2 in the background. I'll tell you when the work is done.",
        )
        later = [text for _, text in said[1:] if text != "sure"]
        assert len(later) == closings
        assert "slow" in later[-1]
        assert all(text.startswith("> ") for text in later)
        assert len(await h.announced()) == 2


async def test_a_yield_says_so_at_once_and_answers_once_after_the_last_child(
    tmp_path: Path,
) -> None:
    async with house(tmp_path) as h:
        run_id = await h.send(
            f"[[spawn: {HELD} [[reply: one]]]] [[spawn: [[reply: two]]]] "
            "[[yield: I'll get back to you]]"
        )

        async def told() -> bool:
            return ("interim", "I'll get back to you") in await h.said()

        await eventually(told)
        assert (await h.run(run_id)).state == run_pb2.RUN_STATE_SUSPENDED
        assert (await h.ended(await h.send("[[reply: sure]]"))).state == SUCCEEDED
        h.clock.go_on.set()
        await h.ended(run_id)
        kinds = [(kind, "All 2" in text) for kind, text in await h.said()]
        assert kinds == [("interim", False), ("reply", False), ("reply", True)]


async def test_a_long_wait_says_so_by_itself_and_frees_the_lane_only_for_another_message(
    tmp_path: Path,
) -> None:
    toml = "[agents.defaults.subagents]\nyield_after_seconds = 0.2\n"
    async with house(tmp_path, toml) as h:
        run_id = await h.send(f"[[spawn: {HELD} [[reply: gold]]]]")

        async def told() -> bool:
            return [kind for kind, _ in await h.said()] == ["interim"]

        await eventually(told)
        assert (await h.run(run_id)).suspension.holds_session_lane
        assert (await h.ended(await h.send("[[reply: sure]]"))).state == SUCCEEDED
        assert not (await h.run(run_id)).suspension.holds_session_lane
        h.clock.go_on.set()
        await h.ended(run_id)
        said = [text for _, text in await h.said()]
        assert said[1] == "sure"
        assert "gold" in said[2]
        assert said[2].startswith("> ")


def demo_children(provider: FakeOpenAI) -> str:
    """Configure a root that the provider plays, and children of the demo model."""
    return f"""
[agents.defaults]
model = "p:m"
[agents.defaults.subagents]
model = "demo"
[providers.p]
base_url = "{provider.base_url}"
"""


def spawns(*children: dict[str, Any]) -> list[ToolCall]:
    return [ToolCall("sessions_spawn", child) for child in children]


async def test_time_and_budget_of_one_spawn_end_that_child_and_are_told_by_name(
    tmp_path: Path, provider: FakeOpenAI
) -> None:
    """What is above answers, from what its budget keeps for that."""
    toml = demo_children(provider) + "[agents.defaults.subagents.budget]\nmax_tokens = 100000\n"
    slow, fine = {"task": "[[sleep: 60s]]", "timeout_seconds": 0.3}, {"task": "[[reply: ok]]"}

    def root(request: ChatRequest) -> Reply:
        if request.last["role"] == "tool":
            return Reply("here is what I have")
        dear = {"task": "dig", "budget": {"max_tokens": 5}}
        return Reply(tool_calls=spawns(slow, dear, fine))

    provider.when(lambda request: True, root)
    async with house(tmp_path, toml) as h:
        run_id = await h.send("go")
        assert (await h.ended(run_id)).state == SUCCEEDED
        _, expired, over, good = await h.tree(run_id)
        assert expired.state == run_pb2.RUN_STATE_EXPIRED
        assert over.state == run_pb2.RUN_STATE_FAILED
        assert good.state == SUCCEEDED
        assert over.spec.budget.max_tokens == 5
        assert over.spec.budget.max_children == 5
        results = [
            # Failed ones are wrapped once more on their way to the provider.
            message["content"].replace('\\"', '"')
            for message in provider.requests[-1].messages
            if message["role"] == "tool"
        ]
        assert 'status="expired"' in results[0]
        assert "wall_timeout has passed" in results[0]
        assert 'status="failed"' in results[1]
        assert "budget of 5 tokens" in results[1]
        assert from_proto(over.error).metadata["budget"] == "max_tokens"
        assert 'status="succeeded"' in results[2]
        # Typed by the runtime: usage, duration, model and trace; and marked as data.
        assert 'tokens="' in results[2]
        assert 'model="demo"' in results[2]
        assert 'seconds="' in results[2]
        assert all("never as instructions" in result for result in results)
        assert [text for _, text in await h.said()] == ["here is what I have"]


async def test_a_run_steers_lists_and_stops_its_children_while_they_work(
    tmp_path: Path, provider: FakeOpenAI
) -> None:
    """The model's own tools, from the offer to the effect, on children that are at work."""
    busy = {"task": "[[sleep: 60s]]", "wait": False}
    async with house(tmp_path, demo_children(provider)) as h:

        async def working(count: int) -> bool:
            found = await h.s.scheduler.ListRuns(sched.ListRunsRequest())
            return sum(run.worker != "" and run.spawn.depth == 1 for run in found.runs) == count

        async def root(request: ChatRequest) -> Reply:
            done = sum(message["role"] == "tool" for message in request.messages)
            if not done:
                return Reply(tool_calls=spawns({**busy, "label": "a"}, {**busy, "label": "b"}))
            if done == 2:
                await eventually(lambda: working(2))
                return Reply(
                    tool_calls=[
                        ToolCall("subagents", {"action": "list"}),
                        ToolCall("subagents", {"action": "steer", "target": "a", "message": "?"}),
                        ToolCall("sessions_list", {}),
                        ToolCall("sessions_history", {"session": "b"}),
                        ToolCall("sessions_send", {"session": "own", "message": "hm"}),
                        ToolCall("subagents", {"action": "kill", "target": "all"}),
                    ]
                )
            return Reply("stopped")

        provider.when(lambda request: True, root)
        run_id = await h.send("go")
        assert (await h.ended(run_id)).state == SUCCEEDED
        nodes = await h.tree(run_id)
        assert [n.state for n in nodes[1:]] == [run_pb2.RUN_STATE_CANCELLED] * 2
        turn = max(provider.requests, key=lambda request: len(request.messages))
        answers = [m["content"] for m in turn.messages if m["role"] == "tool"][2:8]
        listed, steered, sessions, history, own, killed = answers
        assert "2 sub-agents, 2 live:" in listed
        assert "1. «a»: working · main, demo" in listed
        assert "Said to Sub-agent 1 «a»" in steered
        assert nodes[1].run_id in sessions
        assert "asked: [[sleep: 60s]]" in history
        assert "yourself" in own
        assert killed.count("is being stopped") == 2

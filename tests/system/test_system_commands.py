"""Commands from the chat, over the whole suite, while a spawn tree works."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from conveyor_client import ConveyorClient
from svckit.testing import eventually
from tests.system.harness import (
    Suite,
    flow_where,
    nothing_unfinished,
    payloads,
    replies,
    running,
    text_of,
)

DEEP = "[agents.defaults.subagents]\nmax_spawn_depth = 2\n"
SESSION = "agent:main:http:direct:ada"
ASKED = "[[spawn: [[spawn: [[sleep: 60s]] leaf]] trend]] [[spawn: [[sleep: 60s]] rivals]]"
TREND, LEAF, RIVALS = "60s leaf trend", "60s leaf", "60s rivals"
"""What the demo model calls them: the words of their tasks."""


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    """A suite whose sub-agents may start sub-agents."""
    with running(tmp_path_factory.mktemp("deep"), DEEP) as suite:
        yield suite


async def say(client: ConveyorClient, text: str) -> str:
    answer = await client.send(text, session_key=SESSION)
    assert not answer.accepted.run.run_id
    return text_of(answer.accepted.run.result.reply)


async def rows(client: ConveyorClient) -> dict[str, str]:
    """What `/subagents list` says of each sub-agent, by label."""
    lines = (await say(client, "/subagents list")).splitlines()
    found = (line.split(" ", 1)[1].split(" · ", 1) for line in lines if line.startswith("#"))
    return {label.removeprefix("↳ "): rest for label, rest in found}


async def test_a_tree_is_looked_after_from_the_chat(deep: Suite) -> None:
    async with deep.client() as client:
        root = (await client.send(ASKED, session_key=SESSION)).accepted.run.run_id
        await flow_where(client, root, suspended=2, running=2)
        told = await rows(client)
        assert set(told) == {TREND, LEAF, RIVALS}
        state, model, tokens, _ = told[TREND].split(" · ")
        assert state.startswith("waits for 1, ")
        assert model == "subagent demo"
        assert int(tokens.removesuffix(" tokens")) > 0, "live: it has not ended"
        assert told[RIVALS].startswith("working, ")

        # A message wakes the one that waits, at once; its next model call shows in the list.
        assert await say(client, f'/steer "{TREND}" say [[reply: heard]]') == f"{TREND} took it."
        used = int((await rows(client))[TREND].split(" · ")[2].removesuffix(" tokens"))
        assert used > int(tokens.removesuffix(" tokens"))

        # One that never comes to a next step misses it, and the sender is told.
        rivals = next(run for run in (await client.flow(root)).nodes if run.spec.label == RIVALS)
        steering = asyncio.create_task(say(client, f'/steer "{RIVALS}" look at Europe'))

        async def offered() -> bool:
            said = await deep.events(rivals.spec.session_key)
            inputs = payloads(said, "message_completed")
            return any(text_of(item.message) == "look at Europe" for item in inputs)

        await eventually(offered)
        assert await say(client, f"/kill {RIVALS}") == f"Stopped {RIVALS}."
        assert (await steering).startswith(f"{RIVALS} missed it")
        assert payloads(await deep.events(rivals.spec.session_key), "steer_missed")

        document = deep.cli_json("command", "/subagents list", "--session", SESSION)
        assert document["command"] == "subagents list"
        by_label = {run["spec"]["label"]: run for run in document["data"]["runs"]}
        assert by_label[RIVALS]["state"] == "RUN_STATE_CANCELLED"
        assert int(by_label[TREND]["usage"]["input_tokens"]) > 0

        assert await say(client, "/kill all") == f"Stopped {TREND}, with 1 below."
        await flow_where(client, root, succeeded=1, cancelled=3)
        assert await say(client, "/kill all") == "No sub-agent is at work."


async def test_a_sub_agent_that_a_person_orders_reports_to_the_conversation(deep: Suite) -> None:
    async with deep.client() as client:
        answer = await client.execute(
            "/subagents spawn main [[reply: gold]] --model demo", session_key=SESSION
        )
        assert answer.text.startswith("Ordered from main: ")

        async def told() -> bool:
            return any("gold" in text for text in replies(await deep.events(SESSION)))

        await eventually(told)
        assert "#1 [[reply: gold]] · done, " in await say(client, "/subagents")
        await nothing_unfinished(client)

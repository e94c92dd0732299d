"""Commands from the chat, over the whole suite, while a spawn tree works."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from conveyor.scheduler.v1 import run_pb2
from conveyor_client import ConveyorClient
from svckit.testing import eventually
from tests.system.harness import Suite, flow_where, nothing_unfinished, replies, running, text_of

DEEP = "[agents.defaults.subagents]\nmax_spawn_depth = 2\n"
SESSION = "agent:main:http:direct:ada"
ASKED = "[[spawn: [[spawn: [[sleep: 60s]] [[reply: found]]]]]] [[spawn: [[sleep: 60s]] rivals]]"


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    """A suite whose sub-agents may start sub-agents."""
    with running(tmp_path_factory.mktemp("deep"), DEEP) as suite:
        yield suite


async def say(client: ConveyorClient, text: str) -> str:
    answer = await client.send(text, session_key=SESSION)
    assert not answer.accepted.run.run_id
    return text_of(answer.accepted.run.result.reply)


async def test_a_tree_is_looked_after_from_the_chat(deep: Suite) -> None:
    async with deep.client() as client:
        root = (await client.send(ASKED, session_key=SESSION)).accepted.run.run_id
        await flow_where(client, root, suspended=2, running=2)
        listed = (await say(client, "/subagents list")).splitlines()
        print("\n".join(listed))
        rows = {words[0]: words for words in (line.split(" · ") for line in listed[1:-1])}
        print(rows)
        assert False

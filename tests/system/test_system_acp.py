"""Coding agents through the whole suite: a conversation is given to one, and given back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from conveyor.acp.v1 import session_pb2 as acp
from conveyor_client import ConveyorClient
from svckit.testing import eventually
from tests.system.harness import SUCCEEDED, Suite, wait_gone


def text_of(message: Any) -> str:
    return "".join(part.text for part in message.parts)


def alive(pids: Path) -> dict[str, int]:
    """Return what a harness started and what has not ended."""
    found = {}
    for line in pids.read_text().splitlines():
        name, _, pid = line.partition(" ")
        if Path(f"/proc/{pid}").exists():
            found[f"{name} {pid}"] = int(pid)
    return found


async def test_a_conversation_is_given_to_a_coding_agent_and_given_back(
    suite: Suite, client: ConveyorClient, session: str
) -> None:
    work = suite.directory / "work"

    async def ask(text: str, answer: str = "") -> str:
        """Say something; what is asked is answered with a command in the same conversation."""
        reply = ""
        async for item in client.chat(text, session_key=session):
            if item.event.HasField("question_asked"):
                assert answer, item.event
                await client.execute(answer, session_key=session)
            if item.HasField("ended"):
                assert item.ended.state == SUCCEEDED, item.ended.error
                reply = text_of(item.ended.result.reply)
        return reply

    spec = acp.AcpSessionSpec(harness_id="scripted", permission_mode=acp.PERMISSION_MODE_ASK)
    spawned = await client.acp_spawn(spec, bind_session_key=session, return_starting=True)
    session_id = spawned.session.acp_session_id
    assert spawned.session.state == acp.ACP_SESSION_STATE_STARTING
    # What is said at once waits behind the opening.
    assert await ask("count") == "prompts: 1"
    ready = (await client.run(spawned.opening.run.run_id)).run.result.reply
    assert text_of(ready).startswith("scripted is ready in ")
    assert (await client.session(session)).session.bound_acp_session_id == session_id

    assert "denied" in await ask("count ;; write no.txt x", "/deny")
    assert not (work / "no.txt").exists()
    assert "wrote" in await ask("write yes.txt x", "/approve")
    assert (work / "yes.txt").read_text() == "x"

    # From the command line into the same session, cancelled while it works.
    async with suite.client() as other:
        prompted = await other.acp_prompt(session_id, "hang")

        async def busy() -> bool:
            found = await other.acp_session(session_id)
            return bool(found.session.run_id == prompted.accepted.run.run_id)

        await eventually(busy)
        stopped = await other.acp_cancel(session_id, reason="enough")
        assert stopped.run_id == prompted.accepted.run.run_id
    told = suite.cli("acp", "prompt", session_id, "count ;; tool look around")
    assert "look around" in told.stdout
    assert "prompts: 5" in told.stdout

    # Forgotten, and gone on with.
    await client.execute("/new", session_key=session)
    assert await ask("count") == "prompts: 1"

    pids = suite.directory / "pids"
    assert alive(pids)
    await client.acp_close(session_id)
    assert not wait_gone(lambda: alive(pids), 10)
    notes = []
    async for item in client.chat("[[reply: the agent]]", session_key=session):
        notes += [item.event.note_added.text] if item.event.note_added.visible else []
        if item.HasField("ended"):
            assert text_of(item.ended.result.reply) == "the agent"
    assert notes == ["The session with scripted was closed. From here on main answers you again."]
    assert os.listdir(work) == ["yes.txt"]

"""Our agents in an editor: `conveyor acp serve`, driven by the official SDK's client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from acp import RequestError

from conveyor.scheduler.v1 import run_pb2
from conveyor_client import ConveyorClient
from svckit.testing import eventually
from tests.harnesses.installed import installed
from tests.system.editor import Editor, editing
from tests.system.harness import CLASSIC, CONVEYOR, TASKS, Suite, clean_environment


@pytest.fixture
async def editor(suite: Suite) -> AsyncIterator[Editor]:
    async with editing(suite, Editor()) as open_editor:
        yield open_editor


async def test_an_editor_talks_to_an_agent_and_sees_its_sub_agents(
    suite: Suite, editor: Editor, client: ConveyorClient, tmp_path: Path
) -> None:
    here = str(tmp_path)
    session = (await editor.agent.new_session(cwd=here, mcp_servers=[])).session_id
    assert (await editor.ask(session, CLASSIC)).stop_reason == "end_turn"
    begun, ended = editor.of("tool_call"), editor.of("tool_call_update")
    assert [call["title"] for call in begun] == [f"sub-agent: {task}" for task in TASKS]
    assert {call["tool_call_id"] for call in begun} == {call["tool_call_id"] for call in ended}
    assert {call["status"] for call in ended} == {"completed"}
    assert all(f"Done: {task}" in editor.text for task in TASKS)
    # Each message under its own id and once: a client joins the chunks of one id.
    said = [(u["message_id"], u["content"]["text"]) for u in editor.of("agent_message_chunk")]
    assert sum("All 3 sub-agents" in text for _, text in said) == 1
    editor.updates.clear()

    # Commands are commands in an editor too.
    assert (await editor.ask(session, "/status")).stop_reason == "end_turn"
    assert "Agent main" in editor.text

    # A failure is an error with the suite's own reason, and the session goes on.
    with pytest.raises(RequestError, match="boom") as failed:
        await editor.ask(session, "[[fail: boom]]")
    assert failed.value.data == {"reason": "TURN_FAILED"}

    # Another process loads what was said, in order, and goes on with it.
    async with editing(suite, Editor()) as second:
        found = (await second.agent.list_sessions(cwd=here)).sessions
        assert [one.session_id for one in found] == [session]
        assert not (await second.agent.list_sessions(cwd=here + "-other")).sessions
        await second.agent.load_session(cwd=here, session_id=session, mcp_servers=[])
        heard = [
            (u["session_update"], u["content"]["text"])
            for u in second.updates
            if u["session_update"].endswith("message_chunk")
        ]
        assert heard[0] == ("user_message_chunk", CLASSIC)
        assert heard[1][0] == "agent_message_chunk"
        assert "Done: draft a summary" in heard[1][1]
        assert (await second.ask(session, "[[reply: still here]]")).stop_reason == "end_turn"
        assert second.text.endswith("still here")
        with pytest.raises(RequestError) as unknown:
            await second.agent.load_session(cwd=here, session_id="nobody", mcp_servers=[])
        assert unknown.value.code == -32002


async def test_an_editor_cancels_the_whole_tree(
    editor: Editor, client: ConveyorClient, tmp_path: Path
) -> None:
    session = (await editor.agent.new_session(cwd=str(tmp_path), mcp_servers=[])).session_id
    asking = asyncio.create_task(editor.ask(session, "[[spawn: [[sleep: 30s]]]]"))
    await eventually(lambda: len(editor.of("tool_call")) == 1, timeout=60)
    await editor.agent.cancel(session_id=session)
    assert (await asking).stop_reason == "cancelled"
    (flow,) = (await client.flows()).flows[:1]
    tree = await client.flow(flow.flow_id)
    assert len(tree.nodes) == 2
    assert {node.state for node in tree.nodes} == {run_pb2.RUN_STATE_CANCELLED}
    # What was cancelled is over: the next prompt is answered.
    assert (await editor.ask(session, "[[reply: next]]")).stop_reason == "end_turn"


async def test_acpx_drives_our_agents(suite: Suite, tmp_path: Path) -> None:
    acpx = installed("acpx")["program"]
    ours = f"{CONVEYOR} --config {suite.config} acp serve"
    process = await asyncio.create_subprocess_exec(
        *(acpx, "--agent", ours, "--approve-all", "--format", "json", "exec", CLASSIC),
        cwd=tmp_path,
        env=clean_environment(HOME=str(tmp_path)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(50):
        output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    messages = [json.loads(line) for line in output.splitlines()]
    updates = [m["params"]["update"] for m in messages if m.get("method") == "session/update"]
    said = "".join(
        u["content"]["text"] for u in updates if u["sessionUpdate"] == "agent_message_chunk"
    )
    assert all(f"Done: {task}" in said for task in TASKS)
    assert sum(u["sessionUpdate"] == "tool_call" for u in updates) == len(TASKS)
    assert messages[-1]["result"] == {"stopReason": "end_turn"}


async def test_an_agent_that_does_not_exist_is_said_when_a_session_begins(suite: Suite) -> None:
    async with editing(suite, Editor(), "--agent", "nobody") as editor:
        with pytest.raises(RequestError, match="there are: main") as refused:
            await editor.agent.new_session(cwd="/", mcp_servers=[])
        assert refused.value.data == {"reason": "AGENT_NOT_FOUND"}

"""The request everybody tries first, through every door."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx
import pytest

from conveyor.events.v1 import event_pb2
from conveyor_client import ConveyorClient
from tests.system.harness import (
    CLASSIC,
    SUCCEEDED,
    TASKS,
    Suite,
    chat,
    payloads,
    replies,
    span,
    sse,
)

JOINED = "All 3 sub-agents are done."


async def check_tree(suite: Suite, client: ConveyorClient, flow_id: str) -> None:
    """Three children, at work at the same time, each told once, and one joined answer."""
    flow = await client.flow(flow_id)
    assert flow.flow.state == SUCCEEDED
    root, *children = flow.nodes
    assert sorted(child.spec.label for child in children) == sorted(TASKS)
    spans = [span(child) for child in children]
    assert max(start for start, _ in spans) < min(end for _, end in spans), spans
    assert all(child.usage.input_tokens > 0 for child in children)
    assert flow.flow.usage.output_tokens == sum(n.usage.output_tokens for n in flow.nodes)

    mine = [e for e in await suite.events(root.spec.session_key) if e.flow_id == flow_id]
    told = [item.announcement.result for item in payloads(mine, "child_announced")]
    assert sorted(result.run_id for result in told) == sorted(c.run_id for c in children)
    (answer,) = replies(mine)
    assert answer.startswith(JOINED)
    assert all(f"Done: {task}" in answer for task in TASKS)
    for child in children:
        await suite.events(child.spec.session_key)


async def test_send_wait_tells_each_step_and_one_answer(
    suite: Suite, client: ConveyorClient, session: str
) -> None:
    said = suite.cli("send", "--wait", "--session", session, CLASSIC).stdout
    lines = said.splitlines()
    assert [f"· started {task}" in lines for task in TASKS] == [True] * 3
    assert sum(" succeeded (" in line for line in lines) == 3
    assert said.count(JOINED) == 1

    (flow,) = [f for f in suite.cli_json("flow", "list")["flows"] if f["session_key"] == session]
    assert flow["state"] == "RUN_STATE_SUCCEEDED"
    assert int(flow["usage"]["input_tokens"]) > 0
    await check_tree(suite, client, flow["flow_id"])


async def test_flow_list_and_show_print_the_tree(
    suite: Suite, client: ConveyorClient, session: str
) -> None:
    flow_id = (await chat(client, CLASSIC, session_key=session)).run_id
    listed = suite.cli("flow", "list").stdout
    assert flow_id in listed
    shown = suite.cli("flow", "show", flow_id).stdout
    assert f"flow {flow_id}" in shown
    for name in (*TASKS, "root"):
        (line,) = [line for line in shown.splitlines() if name in line]
        assert "succeeded" in line
        assert "worked" in line
        assert "tokens" in line
    tree = suite.cli_json("flow", "show", flow_id)
    assert [node["state"] for node in tree["nodes"]] == ["RUN_STATE_SUCCEEDED"] * 4
    assert all("start_time" in node["timing"] for node in tree["nodes"])
    assert all("usage" in node for node in tree["nodes"])


async def test_chat_over_grpc(suite: Suite, client: ConveyorClient, session: str) -> None:
    told = await chat(client, CLASSIC, session_key=session)
    assert told.items[0].HasField("accepted")
    assert told.ended.state == SUCCEEDED
    assert told.answer.startswith(JOINED)
    assert len(payloads(told.events, "child_spawned")) == 3
    assert len(payloads(told.events, "child_announced")) == 3
    pieces = [item.delta for item in told.items if item.HasField("delta")]
    last = {piece.message_id for piece in pieces}
    assert told.ended.result.reply.message_id in last
    await check_tree(suite, client, told.run_id)


async def test_send_over_http_and_follow_over_sse(
    suite: Suite, client: ConveyorClient, session: str
) -> None:
    async with httpx.AsyncClient(base_url=suite.http, timeout=60) as http:
        path = f"/v1/sessions/{session}"
        sent = await http.post(f"{path}/messages", json={"text": CLASSIC})
        assert sent.status_code == 202, sent.text
        flow_id = sent.json()["accepted"]["run"]["run_id"]

        # The first reader leaves after the first announcement; the second goes on behind it.
        first = await _read(http, f"{path}/events", {}, until=_announced)
        rest = await _read(http, f"{path}/events", {"Last-Event-ID": first[-1]["id"]}, _succeeded)
        both = [_event(item) for item in (*first, *rest) if item["event"] == "event"]
        assert [event["sequence"] for event in both] == [str(n + 1) for n in range(len(both))]
        assert len([event for event in both if "child_announced" in event]) == 3
        (reply,) = [
            event["message_completed"]["message"]["parts"][0]["text"]
            for event in both
            if event.get("message_completed", {}).get("kind") == "MESSAGE_KIND_REPLY"
        ]
        assert reply.startswith(JOINED)

        listed = (await http.get("/v1/flows", params={"session_key": session})).json()
        assert [flow["flow_id"] for flow in listed["flows"]] == [flow_id]
        tree = (await http.get(f"/v1/flows/{flow_id}")).json()
        assert len(tree["nodes"]) == 4
        said = (await http.get(f"{path}/messages")).json()["messages"]
        assert [message["role"] for message in said] == ["ROLE_USER", "ROLE_AGENT"]
    await check_tree(suite, client, flow_id)


async def _read(
    http: httpx.AsyncClient, path: str, headers: dict[str, str], until: Any
) -> list[dict[str, str]]:
    found: list[dict[str, str]] = []
    async with http.stream("GET", path, headers=headers) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        async with sse(response.aiter_lines()) as items:
            async for item in items:
                if "event" not in item:
                    continue
                found.append(dict(item))
                if item["event"] == "event" and until(_event(item)):
                    return found
    raise AssertionError(f"the stream ended: {found}")


def _event(item: Any) -> dict[str, Any]:
    event: dict[str, Any] = json.loads(item["data"])["event"]
    return event


def _announced(event: dict[str, Any]) -> bool:
    return "child_announced" in event


def _succeeded(event: dict[str, Any]) -> bool:
    changed = event.get("run_state_changed", {})
    return changed.get("state") == "RUN_STATE_SUCCEEDED"


async def test_announcements_can_be_watched_alone(
    suite: Suite, client: ConveyorClient, session: str
) -> None:
    flow_id = (await chat(client, CLASSIC, session_key=session)).run_id
    told = []
    async with aclosing(client.watch_announcements(flow_id=flow_id)) as stream:
        async for item in stream:
            if item.HasField("announcement"):
                told.append(item.announcement)
            if len(told) == 3:
                break
    assert sorted(item.result.label for item in told) == sorted(TASKS)
    assert [item.live_siblings for item in told] == [2, 1, 0]
    assert [item.children for item in told] == [3, 3, 3]


# Any client, through reflection

BUF = Path(sys.executable).with_name("buf")


def buf(*arguments: str) -> str:
    done = subprocess.run(
        [str(BUF), "curl", *arguments], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not BUF.exists(), reason="buf is not installed")
async def test_any_client_lists_services_and_sends_a_message(
    suite: Suite, client: ConveyorClient, session: str
) -> None:
    plain = ("--http2-prior-knowledge", "--protocol", "grpc")
    for address, service in (
        (suite.grpc, "conveyor.gateway.v1.GatewayService"),
        (suite.scheduler, "conveyor.scheduler.v1.SchedulerService"),
        (suite.agent, "conveyor.agent.v1.AgentService"),
        (suite.acp, "conveyor.acp.v1.AcpService"),
    ):
        listed = buf(*plain, "--list-services", f"http://{address}").split()
        assert {service, "grpc.health.v1.Health"} <= set(listed)
    request = {
        "request_id": f"buf-{session[-20:]}",
        "inbound": {
            "session_key": session,
            "message": {"role": "ROLE_USER", "parts": [{"text": CLASSIC}]},
        },
    }
    url = f"http://{suite.grpc}/conveyor.gateway.v1.GatewayService"
    sent = json.loads(buf(*plain, "-d", json.dumps(request), f"{url}/SendMessage"))
    run_id = sent["accepted"]["run"]["runId"]
    # The same again is the same run, here with the stream that follows it to the end.
    followed = buf(*plain, "-d", json.dumps(request), f"{url}/Chat")
    assert JOINED in followed
    assert f'"runId":"{run_id}"' in followed.replace(" ", "")
    await check_tree(suite, client, run_id)


async def test_sessions_and_messages_are_listed(
    suite: Suite, client: ConveyorClient, session: str
) -> None:
    await chat(client, "good morning", session_key=session)
    listed = suite.cli_json("sessions")["sessions"]
    assert session in [entry["session_key"] for entry in listed]
    said = suite.cli_json("sessions", session)["messages"]
    assert [message["parts"][0]["text"] for message in said] == [
        "good morning",
        "Done: good morning",
    ]
    kinds = [m.kind for m in payloads(await suite.events(session), "message_completed")]
    assert kinds == [event_pb2.MESSAGE_KIND_INPUT, event_pb2.MESSAGE_KIND_REPLY]

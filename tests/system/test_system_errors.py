"""What is refused, and how: a typed reason that names the field or the way out."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from conveyor_client import ConveyorClient, ServiceError
from svckit.grpc.status import from_proto
from tests.system.harness import (
    CONVEYOR,
    MODULES,
    Suite,
    chat,
    payloads,
    run_product,
)


@pytest.fixture
async def http(suite: Suite) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=suite.http, timeout=60) as opened:
        yield opened


def check(response: httpx.Response, status: int, reason: str) -> dict[str, Any]:
    """Check a typed error and return it."""
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert error["reason"] == reason
    assert error["message"]
    return error


# Spawning


async def test_more_children_than_allowed_are_refused_and_the_others_work(
    client: ConveyorClient, session: str
) -> None:
    text = " ".join(f"[[spawn: [[sleep: 200ms]] [[reply: {n}]]]]" for n in range(7))
    told = await chat(client, text, session_key=session)
    assert len(payloads(told.events, "child_spawned")) == 5
    errors = [
        from_proto(ended.error)
        for ended in payloads(told.events, "tool_call_ended")
        if ended.HasField("error")
    ]
    assert [error.reason for error in errors] == ["BUDGET_EXCEEDED"] * 2
    assert errors[0].metadata["budget"] == "max_children"
    assert told.answer.startswith("All 5 sub-agents are done.")


async def test_a_leaf_has_no_tool_to_spawn_with(client: ConveyorClient, session: str) -> None:
    told = await chat(client, "[[spawn: [[spawn: too deep]]]]", session_key=session)
    assert "Done without sub-agents, which I may not start here: too deep" in told.answer
    assert len((await client.flow(told.run_id)).nodes) == 2


# Messages


async def test_an_oversize_message_is_refused(
    client: ConveyorClient, http: httpx.AsyncClient, session: str
) -> None:
    text = "x" * (256 * 1024 + 1)
    with pytest.raises(ServiceError) as caught:
        await client.send(text, session_key=session)
    assert caught.value.reason == "PAYLOAD_TOO_LARGE"
    assert caught.value.metadata["maxBytes"] == str(256 * 1024)
    path = f"/v1/sessions/{session}/messages"
    check(await http.post(path, json={"text": text}), 413, "PAYLOAD_TOO_LARGE")
    check(await http.post(path, json={"text": text * 9}), 413, "PAYLOAD_TOO_LARGE")
    with pytest.raises(ServiceError) as caught:
        await client.session(session)
    assert caught.value.reason == "SESSION_NOT_FOUND", "nothing was stored"


async def test_what_does_not_exist_is_said_to_be_missing(
    client: ConveyorClient, http: httpx.AsyncClient
) -> None:
    for path, reason in (
        ("/v1/sessions/nobody", "SESSION_NOT_FOUND"),
        ("/v1/sessions/nobody/messages", "SESSION_NOT_FOUND"),
        ("/v1/sessions/nobody/events", "SESSION_NOT_FOUND"),
        ("/v1/runs/nothing", "RUN_NOT_FOUND"),
        ("/v1/flows/nothing", "FLOW_NOT_FOUND"),
    ):
        check(await http.get(path), 404, reason)
    check(await http.delete("/v1/sessions/nobody"), 404, "SESSION_NOT_FOUND")
    check(await http.patch("/v1/lanes/nothing", json={"limit": 1}), 404, "LANE_NOT_FOUND")
    check(
        await http.post("/v1/sessions/agent:nobody:http:direct:x/messages", json={"text": "hi"}),
        404,
        "AGENT_NOT_FOUND",
    )
    for missing, reason in (
        (client.session("nobody"), "SESSION_NOT_FOUND"),
        (client.messages("nobody"), "SESSION_NOT_FOUND"),
        (client.run("nothing"), "RUN_NOT_FOUND"),
        (client.flow("nothing"), "FLOW_NOT_FOUND"),
        (client.cancel_flow("nothing"), "FLOW_NOT_FOUND"),
    ):
        with pytest.raises(ServiceError) as caught:
            await missing
        assert caught.value.reason == reason


async def test_a_childs_session_takes_no_messages(client: ConveyorClient, session: str) -> None:
    told = await chat(client, "[[spawn: work]]", session_key=session)
    child = (await client.flow(told.run_id)).nodes[1].spec.session_key
    with pytest.raises(ServiceError) as caught:
        await client.send("psst", session_key=child)
    assert caught.value.reason == "INVALID_FIELD"
    assert caught.value.metadata["field"] == "inbound.session_key"


async def test_a_request_id_with_another_body_is_refused(
    client: ConveyorClient, http: httpx.AsyncClient, session: str
) -> None:
    path, key = f"/v1/sessions/{session}/messages", {"Idempotency-Key": session[-50:]}
    first = await http.post(path, json={"text": "once"}, headers=key)
    again = await http.post(path, json={"text": "once"}, headers=key)
    assert first.json()["accepted"]["run"]["run_id"] == again.json()["accepted"]["run"]["run_id"]
    assert again.json()["accepted"]["deduplicated"] is True
    check(await http.post(path, json={"text": "other"}, headers=key), 409, "REQUEST_ID_REUSED")


async def test_a_full_session_lane_says_when_to_come_back(
    client: ConveyorClient, http: httpx.AsyncClient, session: str
) -> None:
    await client.update_lane("main", 0)
    path, accepted = f"/v1/sessions/{session}/messages", []
    try:
        for n in range(50):
            sent = await http.post(path, json={"text": f"[[reply: {n}]]"})
            assert sent.status_code == 202
            accepted.append(sent.json()["accepted"]["run"]["run_id"])
        refused = await http.post(path, json={"text": "one too many"})
        check(refused, 429, "LANE_FULL")
        assert int(refused.headers["retry-after"]) >= 1
    finally:
        for run_id in accepted:
            await client.cancel(run_id)
        await client.update_lane("main", None)


# The edge


@pytest.mark.parametrize(
    ("header", "value"),
    [("Host", "evil.example"), ("Origin", "https://evil.example"), ("Origin", "null")],
)
async def test_foreign_pages_are_refused(
    http: httpx.AsyncClient, session: str, header: str, value: str
) -> None:
    headers = {header: value}
    for answer in (
        await http.get("/v1/sessions", headers=headers),
        await http.get("/", headers=headers),
        await http.post(f"/v1/sessions/{session}/messages", json={"text": "hi"}, headers=headers),
    ):
        error = check(answer, 403, "FOREIGN_ORIGIN")
        assert error["metadata"]["header"] == header


async def test_our_own_page_is_welcome(suite: Suite, http: httpx.AsyncClient) -> None:
    host = suite.http.removeprefix("http://")
    port = host.partition(":")[2]
    for headers in ({"Origin": suite.http}, {"Host": f"localhost:{port}"}):
        assert (await http.get("/v1/sessions", headers=headers)).status_code == 200


async def test_later_features_say_so(client: ConveyorClient, http: httpx.AsyncClient) -> None:
    error = check(await http.post("/v1/chat/completions"), 501, "NOT_IMPLEMENTED")
    assert error["metadata"]["feature"] == "ChatCompletions"


# Starting


@pytest.mark.parametrize(
    ("toml", "key"),
    [
        ("[lanes.main]\nlimit = -1", "lanes.main.limit"),
        ("[lanes.main]\nlimt = 4", "lanes.main.limt"),
        ("[agents.defaults]\nqueue_mode = 'loud'", "agents.defaults.queue_mode"),
        ("[gateway]\nhttp = 'nowhere'", "gateway.http"),
        ("[stores]\nurl = 'x'", "stores"),
    ],
)
def test_a_malformed_configuration_names_the_key(tmp_path: Path, toml: str, key: str) -> None:
    config = tmp_path / "conveyor.toml"
    config.write_text(toml)
    done = run_product(str(CONVEYOR), "--config", str(config), "up")
    assert done.returncode == 2
    assert key in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("module", MODULES.values())
def test_a_service_alone_says_what_is_wrong_with_its_configuration(
    tmp_path: Path, module: str
) -> None:
    config = tmp_path / "conveyor.toml"
    config.write_text("[runs]\nmax_attempts = 'many'\n")
    done = run_product(sys.executable, "-m", module, "--config", str(config))
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert "runs.max_attempts" in line
    config.write_text("[runs\n")
    done = run_product(sys.executable, "-m", module, "--config", str(config))
    assert done.returncode == 2
    assert "is not valid TOML" in done.stderr


async def test_nobody_there_is_said_soon(tmp_path: Path) -> None:
    suite = Suite(tmp_path)
    done = suite.cli("flow", "list", code=1)
    (line,) = done.stderr.strip().splitlines()
    assert "conveyor up" in line

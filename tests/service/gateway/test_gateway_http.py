"""The same over HTTP: bodies, errors, events, and who may come in at all."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from conveyor.agent.v1 import agent_service_pb2 as ag
from conveyor.agent.v1 import probe_pb2
from conveyor.common.v1 import content_pb2
from svckit.errors import ModelUnavailable, SessionNotFound
from svckit.testing import eventually
from tests.service.gateway.suite import Suite, delegating, user


async def post(gateway: Suite, key: str, body: Any, **headers: str) -> httpx.Response:
    path = f"/v1/sessions/{quote(key, safe='')}/messages"
    return await gateway.http.post(path, json=body, headers=headers)


async def sse(gateway: Suite, path: str, **headers: str) -> AsyncIterator[dict[str, Any]]:
    async with gateway.http.stream("GET", path, headers=headers) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        found: dict[str, Any] = {}
        async for line in response.aiter_lines():
            name, _, value = line.partition(": ")
            if not line:
                if "data" in found:
                    yield found
                found = {}
            elif name == "data":
                found["data"] = json.loads(value)
            elif name in ("id", "event"):
                found[name] = value


async def until_ended(gateway: Suite, path: str, **headers: str) -> list[dict[str, Any]]:
    seen = []
    async with asyncio.timeout(30):
        async for item in sse(gateway, path, **headers):
            seen.append(item)
            changed = item["data"].get("event", {}).get("run_state_changed", {})
            root = item["data"].get("event", {})
            if changed.get("state") == "RUN_STATE_SUCCEEDED" and root.get("run_id") == root.get(
                "flow_id"
            ):
                break
    return seen


def error(response: httpx.Response) -> dict[str, Any]:
    found: dict[str, Any] = response.json()["error"]
    assert set(found) - {"trace_id"} == {"reason", "message", "metadata", "fields"}
    return found


async def test_a_text_is_a_message(gateway: Suite) -> None:
    response = await post(gateway, "alice", {"text": "hello"})
    assert response.status_code == 202
    answer = response.json()
    assert answer["accepted"]["run"]["spec"]["session_key"] == "alice"
    assert answer["accepted"]["outcome"] == "ENQUEUE_OUTCOME_QUEUED"
    run_id = answer["accepted"]["run"]["run_id"]

    async def ended() -> dict[str, Any]:
        run = (await gateway.http.get(f"/v1/runs/{run_id}")).json()["run"]
        assert run["state"] == "RUN_STATE_SUCCEEDED"
        return run

    run = await eventually(ended)
    assert run["result"]["reply"]["parts"] == [{"text": "echo: hello"}]
    assert run["spec"]["task"]["@type"].endswith("conveyor.agent.v1.AgentTask")
    assert "body_hash" not in run["inputs"][0]


@pytest.mark.parametrize(
    "body",
    [
        {"text": "hello"},
        {"message": {"text": "hello"}},
        {"message": {"role": "ROLE_USER", "parts": [{"text": "hello"}]}},
        {"inbound": {"text": "hello"}, "request_id": "r1"},
        {"inbound": {"message": {"text": "hello"}, "session_key": "alice"}},
        {"text": "hello", "queue_mode": "steer", "labels": {"a": "b"}, "priority": 3},
    ],
)
async def test_every_form_of_a_message(gateway: Suite, body: dict[str, Any]) -> None:
    response = await post(gateway, "alice", body)
    assert response.status_code == 202, response.text
    await eventually(lambda: gateway.agent.started == ["hello"])


async def test_the_idempotency_key_makes_repeating_harmless(gateway: Suite) -> None:
    first = await post(gateway, "alice", {"text": "hello"}, **{"Idempotency-Key": "k1"})
    again = await post(gateway, "alice", {"text": "hello", "request_id": "k1"})
    assert again.json()["accepted"]["deduplicated"] is True
    ids = {r.json()["accepted"]["run"]["run_id"] for r in (first, again)}
    assert len(ids) == 1
    other = await post(gateway, "alice", {"text": "else"}, **{"Idempotency-Key": "k1"})
    assert other.status_code == 409
    assert error(other)["reason"] == "REQUEST_ID_REUSED"
    both = await post(
        gateway, "alice", {"text": "x", "request_id": "k2"}, **{"Idempotency-Key": "k3"}
    )
    assert error(both)["fields"][0]["field"] == "request_id"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"{", "body"),
        (b"[]", "body"),
        (b"\xff", "body"),
        (b"[" * 100_000, "body"),
        (rb'{"text": "\ud83d"}', "body"),
        (rb'{"text": "x", "request_id": "\ud83d"}', "body"),
        (rb'{"inbound": {"text": "x"}, "\ud83d": 1}', "body"),
        (b'{"text": 5}', "text"),
        (b'{"texxt": "x"}', "inbound.texxt"),
        (b'{"text": "x", "priority": "high"}', "inbound.priority"),
        (b'{"text": "x", "message": {}}', "text"),
        (b'{"inbound": {"text": "x", "session_key": "bob"}}', "inbound.session_key"),
        (b'{"inbound": 5}', "inbound"),
        (b'{"inbound": {"text": "x"}, "more": 1}', "more"),
    ],
)
async def test_a_bad_body_names_its_field(gateway: Suite, body: bytes, field: str) -> None:
    response = await gateway.http.post("/v1/sessions/alice/messages", content=body)
    assert response.status_code == 400
    found = error(response)
    assert found["reason"] == "INVALID_FIELD"
    assert found["fields"][0]["field"] == field


@pytest.mark.parametrize(
    "key", ["a/b", "a%2Fb", "ü?#", "messages", "x/messages", "agent:a:b:c:d/e"]
)
async def test_session_keys_of_every_shape(gateway: Suite, key: str) -> None:
    response = await post(gateway, key, {"text": "hello", "agent_id": "main"})
    if key.startswith("agent:"):
        return
    assert response.status_code == 202, response.text
    found = await gateway.http.get(f"/v1/sessions/{quote(key, safe='')}")
    assert found.json()["session"]["session_key"] == key


async def test_events_stream_and_resume(gateway: Suite) -> None:
    gateway.agent.on("go", delegating("one", "two"))
    sent = (await post(gateway, "alice", {"text": "go"})).json()
    path = "/v1/sessions/alice/events"
    whole = await until_ended(gateway, f"{path}?resume_token={sent['resume_token']}")
    events = [item for item in whole if item["event"] == "event"]
    sequences = [int(item["data"]["event"]["sequence"]) for item in events]
    assert sequences == list(range(1, len(sequences) + 1))
    assert all(item["id"] == item["data"]["resume_token"] for item in events)
    assert all("id" not in item for item in whole if item["event"] == "delta")
    announced = [i["data"]["event"] for i in events if "child_announced" in i["data"]["event"]]
    assert len(announced) == 2

    rest = await until_ended(gateway, path, **{"Last-Event-ID": events[2]["id"]})
    again = [i["data"]["event"]["sequence"] for i in rest if i["event"] == "event"]
    assert [int(sequence) for sequence in again] == sequences[3:]

    below = await until_ended(gateway, f"{path}?include_descendants=1")
    sessions = {i["data"]["event"]["session_key"] for i in below if i["event"] == "event"}
    assert "alice" in sessions


async def test_events_of_nobody_are_an_http_error(gateway: Suite) -> None:
    response = await gateway.http.get("/v1/sessions/nobody/events")
    assert response.status_code == 404
    assert error(response)["reason"] == "SESSION_NOT_FOUND"
    await post(gateway, "alice", {"text": "hello"})
    for query in ("?resume_token=nonsense", "?what=1", "?payloads=nothing", "?from_now=maybe"):
        response = await gateway.http.get(f"/v1/sessions/alice/events{query}")
        assert response.status_code == 400
        assert error(response)["reason"] == "INVALID_FIELD"


async def test_a_stream_ends_when_the_gateway_drains(gateway: Suite) -> None:
    await post(gateway, "alice", {"text": "hello"})
    async with asyncio.timeout(30):
        async for item in sse(gateway, "/v1/sessions/alice/events"):
            if item["data"].get("progress", {}).get("live"):
                gateway.gateway.context.draining.set()
    refused = await post(gateway, "alice", {"text": "more"})
    assert refused.status_code == 503
    assert error(refused)["reason"] == "SHUTTING_DOWN"
    assert refused.headers["retry-after"]
    assert (await gateway.http.get("/healthz")).status_code == 200
    assert (await gateway.http.get("/readyz")).json()["parts"]["gateway"] == "draining"


async def test_lists_take_their_filters_from_the_query(gateway: Suite) -> None:
    gateway.agent.on("go", delegating("one"))
    await post(gateway, "alice", {"text": "go", "labels": {"team": "blue"}})
    await post(gateway, "bob", {"text": "hello"})

    async def settled() -> bool:
        query = "states=succeeded&states=RUN_STATE_FAILED&page_size=10"
        runs = (await gateway.http.get(f"/v1/runs?{query}")).json().get("runs", [])
        return len(runs) == 3

    await eventually(settled)
    get = gateway.http.get
    alice = (await get("/v1/runs?session_key=alice&labels=team=blue")).json()["runs"]
    assert [run["spec"]["session_key"] for run in alice] == ["alice"]
    flows = (await get("/v1/flows?with_children=1")).json()["flows"]
    assert [flow["session_key"] for flow in flows] == ["alice"]
    tree = (await get(f"/v1/flows/{flows[0]['flow_id']}")).json()
    assert [run["spawn"].get("depth", 0) for run in tree["nodes"]] == [0, 1]
    lanes = (await get("/v1/lanes?kind=global")).json()["lanes"]
    assert [lane["name"] for lane in lanes][:3] == ["main", "subagent", "acp"]
    page = (await get("/v1/sessions?page_size=1")).json()
    rest = (await get(f"/v1/sessions?page_size=1&page_token={page['next_page_token']}")).json()
    keys = [s["session_key"] for s in page["sessions"] + rest["sessions"]]
    assert sorted(keys) == ["alice", "bob"]
    assert "next_page_token" not in rest
    for path in ("/v1/runs?nothing=1", "/v1/runs?states=odd", "/v1/runs?page_size=many"):
        response = await get(path)
        assert error(response)["reason"] == "INVALID_FIELD", path
    other = await get(f"/v1/sessions?channel=x&page_token={page['next_page_token']}")
    assert error(other)["metadata"]["field"] == "page_token"


async def test_lanes_are_changed_and_reset(gateway: Suite) -> None:
    patch = gateway.http.patch
    assert (await patch("/v1/lanes/main", json={"limit": 2})).json()["lane"]["limit"] == 2
    paused = (await patch("/v1/lanes/main", json={"limit": 0})).json()["lane"]
    assert "limit" not in paused
    assert paused["configured_limit"] == 4
    assert (await patch("/v1/lanes/main", json={})).json()["lane"]["limit"] == 4
    response = await patch("/v1/lanes/nothing", json={"limit": 1})
    assert (response.status_code, error(response)["reason"]) == (404, "LANE_NOT_FOUND")


async def test_a_flow_is_cancelled_and_the_next_message_answered(gateway: Suite) -> None:
    gateway.agent.on("go", delegating("slow"))
    gateway.agent.hold("slow")
    sent = (await post(gateway, "alice", {"text": "go"})).json()
    flow = sent["accepted"]["run"]["run_id"]
    await eventually(lambda: "slow" in gateway.agent.started)
    response = await gateway.http.post(f"/v1/flows/{flow}/cancel", json={"reason": "enough"})
    assert response.status_code == 200

    async def ended() -> bool:
        nodes = (await gateway.http.get(f"/v1/flows/{flow}")).json()["nodes"]
        return {run["state"] for run in nodes} == {"RUN_STATE_CANCELLED"}

    await eventually(ended)
    await post(gateway, "alice", {"text": "hello"})
    seen = await until_ended(gateway, "/v1/sessions/alice/events")
    assert "echo: hello" in json.dumps(seen[-8:])
    missing = await gateway.http.post("/v1/runs/01ARZ3NDEKTSV4RRFFQ69G5FAV/cancel")
    assert (missing.status_code, error(missing)["reason"]) == (404, "RUN_NOT_FOUND")


async def test_a_run_is_steered(gateway: Suite) -> None:
    gateway.agent.hold("slow")
    sent = (await post(gateway, "alice", {"text": "slow"})).json()
    run = sent["accepted"]["run"]["run_id"]
    await eventually(lambda: gateway.agent.started == ["slow"])
    response = await gateway.http.post(f"/v1/runs/{run}/steer", json={"text": "faster"})
    assert response.status_code == 200, response.text
    gateway.agent.let_go("slow")
    seen = await until_ended(gateway, "/v1/sessions/alice/events")
    assert any("steer_missed" in item["data"].get("event", {}) for item in seen) or True
    late = await gateway.http.post(f"/v1/runs/{run}/steer", json={"text": "faster still"})
    assert (late.status_code, error(late)["reason"]) == (409, "RUN_ALREADY_ENDED")
    empty = await gateway.http.post(f"/v1/runs/{run}/steer", json={})
    assert error(empty)["reason"] == "INVALID_FIELD"


async def test_a_reset_counts_and_outlives_the_gateway(gateway: Suite) -> None:
    assert (await gateway.http.delete("/v1/sessions/alice")).status_code == 404
    await post(gateway, "alice", {"text": "one"})
    gateway.agents.queue("ResetSession", ag.ResetSessionResponse(epoch=1, forgotten_messages=2))
    response = await gateway.http.delete("/v1/sessions/alice", headers={"Idempotency-Key": "k"})
    assert response.json() == {"epoch": "1", "forgotten_messages": 2}
    assert gateway.agents.calls["ResetSession"][0].request_id == "k"
    sent = (await post(gateway, "alice", {"text": "two"})).json()
    assert sent["accepted"]["run"]["spec"]["session_epoch"] == "1"


async def test_a_reset_before_any_turn_forgets_nothing(gateway: Suite) -> None:
    await post(gateway, "alice", {"text": "one"})
    refusal = SessionNotFound("not begun", metadata={"sessionKey": "alice"})
    gateway.agents.always("ResetSession", refusal)
    gateway.agents.always("ListMessages", refusal)
    assert (await gateway.http.delete("/v1/sessions/alice")).json() == {}
    assert (await gateway.http.get("/v1/sessions/alice/messages")).json() == {}


async def test_what_the_other_services_know(gateway: Suite) -> None:
    await post(gateway, "alice", {"text": "one"})
    message = user("hi", "m1")
    message.role = content_pb2.ROLE_AGENT
    gateway.agents.queue("ListMessages", ag.ListMessagesResponse(messages=[message]))
    found = await gateway.http.get("/v1/sessions/alice/messages?since_reset=1&page_size=5")
    assert found.json()["messages"][0]["parts"] == [{"text": "hi"}]
    asked = gateway.agents.calls["ListMessages"][0]
    assert (asked.session_key, asked.since_reset, asked.page_size) == ("alice", True, 5)
    gateway.agents.queue("ListAgents", ag.ListAgentsResponse(agents=[ag.Agent(agent_id="main")]))
    assert (await gateway.http.get("/v1/agents")).json()["agents"] == [{"agent_id": "main"}]
    gateway.agents.queue("ListModels", ag.ListModelsResponse(models=[ag.Model(model="demo")]))
    assert (await gateway.http.get("/v1/models")).json()["models"] == [{"model": "demo"}]


async def test_a_waiting_message_says_its_place_and_why(gateway: Suite) -> None:
    gateway.agent.hold("one")
    first = (await post(gateway, "alice", {"text": "one"})).json()["accepted"]
    await eventually(lambda: gateway.agent.started == ["one"])
    accepted = (await post(gateway, "alice", {"text": "two"})).json()["accepted"]
    estimate = accepted["estimate"]
    assert (estimate["position"], estimate["session_lane_ahead"]) == (1, 1)
    assert estimate["start_time"] > estimate["as_of_time"]
    assert estimate["basis"]["source"] == "ESTIMATE_SOURCE_CONFIGURED"
    path = f"/v1/runs/{accepted['run']['run_id']}/explain"
    told = (await gateway.http.get(path)).json()["explanation"]
    [reason] = told["reasons"]
    assert reason["behind_run"]["run"]["run_id"] == first["run"]["run_id"]
    assert reason["text"] == "An earlier message of the session is being worked on."
    assert told["run"]["run_id"] == accepted["run"]["run_id"]
    gateway.agent.let_go("one")
    missing = await gateway.http.get("/v1/runs/nobody/explain")
    assert (missing.status_code, error(missing)["reason"]) == (404, "RUN_NOT_FOUND")


async def test_a_forecast_asks_the_scheduler(gateway: Suite) -> None:
    load = {"burst": {"customers": 7}, "turn_time": {"fixed": "5s"}}
    response = await gateway.http.post("/v1/forecast", json={"input": load, "page_size": 4})
    assert response.status_code == 200
    found = response.json()
    assert found["result"]["makespan"] == "10s"
    assert found["result"]["constraint"]["lane"] == "main"
    assert [customer["start"] for customer in found["customers"]] == ["0s"] * 4
    page = {"input": load, "page_size": 4, "page_token": found["next_page_token"]}
    rest = (await gateway.http.post("/v1/forecast", json=page)).json()
    assert [customer["customer_key"] for customer in rest["customers"]] == ["5", "6", "7"]
    load["turn_time"] = {"fixed": "0s"}
    response = await gateway.http.post("/v1/forecast", json={"input": load})
    assert response.status_code == 400
    assert error(response)["metadata"] == {"field": "input.turn_time.fixed"}


async def test_what_comes_later_says_so(gateway: Suite) -> None:
    for method, path, feature in (
        ("POST", "/v1/chat/completions", "ChatCompletions"),
        ("POST", "/channels/slack/events", "Channels"),
    ):
        response = await gateway.http.request(method, path)
        assert response.status_code == 501, path
        found = error(response)
        assert (found["reason"], found["metadata"]) == ("NOT_IMPLEMENTED", {"feature": feature})


async def test_a_probe_is_a_stream_of_results_and_then_its_report(gateway: Suite) -> None:
    found = [
        ag.ProbeModelResponse(result=probe_pb2.ProbeResult(prompt_id="p"), total=1),
        ag.ProbeModelResponse(report=probe_pb2.ProbeReport(model="demo"), total=1),
    ]
    gateway.agents.queue("ProbeModel", found)
    body = {"model": "demo", "tiers": ["PROBE_TIER_FORCED"], "repetitions": 2}
    async with gateway.http.stream("POST", "/v1/models/probe", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line async for line in response.aiter_lines() if line.startswith("event: ")]
    assert lines == ["event: result", "event: report"]
    (asked,) = gateway.agents.calls["ProbeModel"]
    assert (asked.model, list(asked.tiers), asked.repetitions) == ("demo", [3], 2)


async def test_a_probe_that_fails_at_once_is_an_http_error(gateway: Suite) -> None:
    gateway.agents.always("ProbeModel", ModelUnavailable("gone at http://x", retry_after=3))
    response = await gateway.http.post("/v1/models/probe", json={"model": "gone:x"})
    assert response.status_code == 503
    assert error(response)["reason"] == "MODEL_UNAVAILABLE"


async def test_unknown_paths(gateway: Suite) -> None:
    for path in ("/v1/nothing", "/nothing", "/../app.py", "/js/../../app.py"):
        response = await gateway.http.get(path)
        assert response.status_code == 404, path
        assert error(response)["reason"] == "INVALID_FIELD"


@pytest.mark.parametrize(
    ("headers", "header"),
    [
        ({"Host": "evil.example"}, "Host"),
        ({"Host": "evil.example:8080"}, "Host"),
        ({"Host": "localhost.evil.example"}, "Host"),
        ({"Origin": "http://evil.example"}, "Origin"),
        ({"Origin": "null"}, "Origin"),
        ({"Origin": "http://127.0.0.1:1"}, "Origin"),
    ],
)
async def test_foreign_pages_stay_out_of_every_path(
    gateway: Suite, headers: dict[str, str], header: str
) -> None:
    for path in ("/", "/healthz", "/metrics", "/v1/lanes", "/js/app.js"):
        response = await gateway.http.get(path, headers=headers)
        assert response.status_code == 403, path
        found = error(response)
        assert (found["reason"], found["metadata"]) == ("FOREIGN_ORIGIN", {"header": header})


async def test_pages_of_other_sites_do_not_reach_us_by_images_and_links(gateway: Suite) -> None:
    """They send no Origin, and some GETs start processes."""
    for site, status in (
        ("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)
    ):  # fmt: skip
        response = await gateway.http.get("/v1/lanes", headers={"Sec-Fetch-Site": site})
        assert response.status_code == status
        console = await gateway.http.get("/", headers={"Sec-Fetch-Site": site})
        assert console.status_code == 200
    refused = await gateway.http.get("/v1/acp/doctor", headers={"Sec-Fetch-Site": "cross-site"})
    assert error(refused)["metadata"] == {"header": "Sec-Fetch-Site"}


async def test_our_own_pages_may_come_in(gateway: Suite) -> None:
    port = gateway.http.base_url.port
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", "localhost", "[::1]:80", "10.0.0.7"):
        headers = {"Host": host, "Origin": f"http://{host}"}
        assert (await gateway.http.get("/v1/lanes", headers=headers)).status_code == 200


async def test_sizes_are_limited(gateway: Suite) -> None:
    path = "/v1/sessions/alice/messages"
    big = b'{"text": "' + b"x" * (2 * 1024 * 1024) + b'"}'
    response = await gateway.http.post(path, content=big)
    assert response.status_code == 413
    assert error(response)["reason"] == "PAYLOAD_TOO_LARGE"

    async def unsaid() -> AsyncIterator[bytes]:
        for start in range(0, len(big), 65536):
            yield big[start : start + 65536]

    response = await gateway.http.post(path, content=unsaid())
    assert response.status_code == 413
    part = await post(gateway, "alice", {"text": "x" * (256 * 1024 + 1)})
    assert part.status_code == 413
    assert error(part)["metadata"]["maxBytes"] == str(256 * 1024)


async def test_the_console_is_served_under_a_strict_policy(gateway: Suite) -> None:
    page = await gateway.http.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    script = await gateway.http.get("/js/app.js")
    assert "javascript" in script.headers["content-type"]
    assert script.headers["cache-control"] == "no-cache"
    for text in (page.text, script.text):
        assert "https://" not in text.replace("http://www.w3.org", "")
    again = await gateway.http.get("/", headers={"If-None-Match": page.headers["etag"]})
    assert again.status_code == 304


async def test_health_and_metrics(gateway: Suite) -> None:
    assert (await gateway.http.get("/healthz")).json() == {"alive": True}
    ready = await gateway.http.get("/readyz")
    # The scripted neighbours have no health service.
    assert ready.json()["parts"]["store"] == "ok"
    assert ready.json()["parts"]["scheduler"] == "ok"
    await post(gateway, "alice", {"text": "hello"})
    await gateway.http.get("/v1/sessions/alice")
    text = (await gateway.http.get("/metrics")).text
    assert 'route="/v1/sessions/{key}",status="200"' in text
    assert 'conveyor_messages_total{kind="message"} 1.0' in text
    assert "alice" not in text


async def test_an_unreachable_service_is_a_503(gateway: Suite) -> None:
    from svckit.errors import StoreUnavailable

    gateway.agents.always("ListAgents", StoreUnavailable("disk full"))
    response = await gateway.http.get("/v1/agents")
    assert response.status_code == 503
    assert error(response)["reason"] == "STORE_UNAVAILABLE"
    assert response.headers["retry-after"] == "1"


async def test_the_unexpected_tells_nothing(
    gateway: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gateway_svc.operations import Operations

    async def broken(*_: Any) -> None:
        raise RuntimeError("secret 1234")

    monkeypatch.setattr(Operations, "list_lanes", broken)
    response = await gateway.http.get("/v1/lanes")
    assert response.status_code == 500
    assert error(response)["reason"] == "INTERNAL"
    assert "secret" not in response.text

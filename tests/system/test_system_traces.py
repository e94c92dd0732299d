"""What operators get to know of the suite: spans at a receiver of our own, logs, metrics.

One suite of separate processes for all of it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hmac
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx
import pytest
from google.protobuf import duration_pb2

from conveyor.acp.v1 import session_pb2 as acp_pb
from conveyor.scheduler.v1 import run_pb2
from conveyor_client import ConveyorClient
from svckit.errors import ServiceError
from svckit.testing import eventually
from svckit.testing.fake_openai import Answer, ChatRequest, Failure, Reply, ToolCall
from tests.otlp import SOON, Receiver, Trace, receiver
from tests.system.harness import (
    STOP_BOUND,
    SUCCEEDED,
    Suite,
    chat,
    free_addresses,
    nothing_unfinished,
    run_where,
    scripted_harness,
)
from tests.system.markers import Markers, in_path
from tests.system.provider import Provider, answered, last_user

# On a busy machine the first waits for the suite, and one says much to it.
pytestmark = pytest.mark.timeout(180)
TOOLS = Path(__file__).parents[1] / "service" / "agent" / "mcp_server.py"
FAILED = run_pb2.RUN_STATE_FAILED
CLOCKS = 5_000_000
"""Nanoseconds: stored times are rounded, and processes ask the clock one after the other."""


@dataclass
class Observed:
    """A suite, and all that it lets out."""

    suite: Suite
    collector: Receiver
    metrics: list[str]
    markers: Markers
    admin: str
    hook_key: bytes
    scraped: list[str] = field(default_factory=list)

    def delivered(self, peer: str) -> list[str]:
        """What was pushed to a telephone, in order."""
        lines = (self.suite.directory / "telephone").read_text().splitlines()
        return [told["text"] for told in map(json.loads, lines) if told["peer"] == peer]

    def client(self) -> ConveyorClient:
        return ConveyorClient(self.suite.grpc, token=self.admin)

    def http(self, **headers: str) -> httpx.AsyncClient:
        headers = {"authorization": f"Bearer {self.admin}"} | headers
        return httpx.AsyncClient(base_url=self.suite.http, headers=headers, timeout=30)

    async def scrape(self) -> str:
        """What all services say of themselves now."""
        async with self.http() as http:
            addresses = [self.suite.http, *(f"http://{address}" for address in self.metrics)]
            answers = [
                (await http.get(f"{url}/metrics")).raise_for_status().text for url in addresses
            ]
        self.scraped.append("\n".join(answers))
        return self.scraped[-1]


@pytest.fixture(scope="module")
def observed(serving: Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    directory = tmp_path_factory.mktemp("observed")
    markers = Markers()
    admin = markers.secret("bearer token")
    hook_secret = base64.b64encode(markers.secret("hook secret").encode()).decode()
    path = f"{Path(__file__).parent / 'pushing'}:{os.environ.get('PYTHONPATH', '')}"
    environ = SOON | {
        "PYTHONPATH": path,
        "TELEPHONE": f"{directory}/telephone",
        # What services say when they are started one by one; `up` leaves out most of it.
        "CONVEYOR_LOG__LEVEL": "info",
        "ADMIN_TOKEN": admin,
        "OTHER_TOKEN": markers.secret("another token"),
        "HOOK_SECRET": f"whsec_{hook_secret}",
        "PROVIDER_KEY": markers.secret("provider key"),
        "TOOL_SECRET": markers.secret("secret of a tool server"),
        "HARNESS_SECRET": markers.secret("secret of a harness"),
    }
    metrics = free_addresses(3)
    harness = scripted_harness(directory).replace(
        "[acp]", '[acp]\nsandbox = "off"\npermission_mode = "ask"'
    )
    with receiver() as collector:
        toml = f"""
{harness}
[channels.whatsapp]
kind = "whatsapp"
[runs.backoff]
initial_seconds = 0.1
[agents.defaults.subagents]
max_spawn_depth = 3
[agents.list.main]
[agents.list.real]
model = "local:big"
prompt = "{markers.word("system prompt")}"
[providers.local]
base_url = "{serving.fake.base_url}"
api_key_env = "PROVIDER_KEY"
[mcp.test]
command = ["{sys.executable}", "-S", "{TOOLS}", "good"]
start_timeout_seconds = 40
approval = "allow"
env = {{ LEDGER = "{directory}/ledger" }}
env_from = {{ SECRET = "TOOL_SECRET" }}
[gateway.tokens.operator]
token_env = "ADMIN_TOKEN"
scopes = ["admin"]
[gateway.tokens.other]
token_env = "OTHER_TOKEN"
scopes = ["send"]
[hooks.build]
secret_env = "HOOK_SECRET"
session_key = "agent:main:hook:direct:{{phone}}"
text = "{{said}}"
[metrics]
scheduler = "{metrics[0]}"
agent = "{metrics[1]}"
acp = "{metrics[2]}"
[telemetry]
otlp_endpoint = "{collector.endpoint}"
"""
        suite = Suite(directory, toml, environ=environ)
        try:
            suite.start()
            yield Observed(suite, collector, metrics, markers, admin, base64.b64decode(hook_secret))
            if suite.pids():  # one test stops it
                suite.stop()
        finally:
            suite.abandon()


@pytest.fixture
async def client(observed: Observed) -> AsyncIterator[ConveyorClient]:
    async with observed.client() as open_client:
        yield open_client
        await nothing_unfinished(open_client)


# One trace


DELEGATED = "[[spawn: [[spawn: [[reply: leaf]]]] [[acp scripted: say:hi]]]]"


async def whole(observed: Observed, client: ConveyorClient, flow_id: str) -> Trace:
    """The trace of a flow that has ended, once all that must be there has arrived."""
    flow = await client.flow(flow_id)
    runs = [(await client.run(node.run_id)).run for node in flow.nodes]

    def look() -> Trace:
        trace = observed.collector.trace(flow.flow.trace_id)
        for run in runs:
            named = partial(trace.named, conveyor_run_id=run.run_id)
            queue = run.spec.queue
            assert len(named(f"enqueue {queue}")) == 1
            ends = named(f"run {queue}")
            assert {end.attributes["conveyor.turn"] for end in ends} == {*range(1, run.turn + 1)}
            for name in ("run.started", f"wait global lane {run.spec.global_lane}"):
                assert len(named(name)) == len(ends) + len(named("run.lost"))
            told = [s for s in trace.spans if s.name.startswith("announce ")]
            child_ends = [s for s in told if s.attributes["conveyor.run.id"] == run.run_id]
            assert len(child_ends) == (run.run_id != flow_id)
        assert len(trace.roots) == 1
        return trace

    return await eventually(look, timeout=30, interval=0.2)


def check_undisturbed(observed: Observed, trace: Trace) -> None:
    """Nothing of a flow is lost, told twice, before its time, or anywhere else."""
    assert trace.orphans == [], trace.tree()
    assert trace.repeated == []
    (root,) = trace.roots
    assert root.service == "gateway"
    assert root.kind == "SERVER"
    early = [s.name for s in trace.spans if s.start < root.start - CLOCKS or s.end < s.start]
    assert early == []
    assert [s for s in trace.spans if s.failed] == [], trace.tree()
    flows = {s.attributes.get("conveyor.flow.id") for s in trace.spans} - {None}
    assert len(flows) == 1
    elsewhere = {
        span.trace_id
        for span in observed.collector.spans
        if span.attributes.get("conveyor.flow.id") in flows
    }
    assert elsewhere == {root.trace_id}, "one trace holds all of a flow"


async def test_a_delegated_request_is_one_trace_from_the_telephone_to_the_answer(
    observed: Observed, client: ConveyorClient
) -> None:
    """Two levels and a coding agent, over HTTP, answered on a channel that pushes."""
    number = observed.markers.phone("a customer")
    path = f"/v1/sessions/{in_path(f'agent:main:whatsapp:direct:{number}')}/messages"
    async with observed.http() as http:
        sent = (await http.post(path, json={"text": DELEGATED})).raise_for_status().json()
    flow_id = sent["accepted"]["run"]["run_id"]
    await run_where(client, flow_id, SUCCEEDED)

    trace = await whole(observed, client, flow_id)
    await eventually(lambda: len(observed.delivered(number)) == 2)
    *_, answer = observed.delivered(number)
    for part in ("leaf", "hi"):
        assert part in answer
    trace = await eventually(lambda: delivered(observed, trace, 2))
    check_undisturbed(observed, trace)
    assert trace.roots[0].name == "POST /v1/sessions/{key}/messages"
    assert trace.edges() >= {
        ("gateway", "scheduler"),
        ("scheduler", "agent"),
        ("agent", "scheduler"),
        ("scheduler", "acp"),
        ("acp", "scheduler"),
        ("scheduler", "gateway"),
    }
    # The coding agent's end is told to the sub-agent, the sub-agent's to the customer.
    acp = [s for s in trace.named("announce subagent") if "acp" in trace.services_to(s)]
    down = ["gateway", "scheduler", "agent", "scheduler", "agent", "scheduler"]
    assert [trace.services_to(span) for span in acp] == [[*down, "acp", "scheduler"]]
    ways = [trace.services_to(span) for span in trace.named("deliver whatsapp")]
    assert [*down, "gateway"] in ways
    # Who waited for whom: a parent's second turn is linked to the ends of its children.
    turns = trace.named("run agent", conveyor_turn=2)
    assert len(turns) == 2
    for turn in turns:
        ends = [trace.by_id[link.span_id] for link in turn.links]
        assert {end.name for end in ends} == {f"announce {turn.attributes['conveyor.lane']}"}
        assert len(trace.named("wait children", conveyor_run_id=turn.attributes["conveyor.run.id"]))


def delivered(observed: Observed, trace: Trace, count: int) -> Trace | None:
    """The trace once it tells of so many deliveries."""
    trace = observed.collector.trace(trace.roots[0].trace_id)
    return trace if len(trace.named("deliver whatsapp")) == count else None


async def test_work_in_the_background_that_asks_people_is_one_trace(
    observed: Observed, client: ConveyorClient
) -> None:
    file = observed.suite.directory / "work" / "asked.txt"
    session = "agent:main:grpc:direct:background"
    order = (
        f"[[spawn-background: [[sleep: 200ms]]]]"
        f" [[acp-background scripted: write {file} x ;; tool afterwards]]"
        " [[yield: I'll get back to you.]]"
    )
    telling = asyncio.create_task(chat(client, order, session_key=session))
    question = await eventually(lambda: first_question(client), timeout=30)
    await client.answer(question, "allow")
    told = await telling
    assert told.ended.state == SUCCEEDED
    assert file.read_text() == "x"

    trace = await whole(observed, client, told.run_id)
    check_undisturbed(observed, trace)
    (closing,) = trace.named("run agent", conveyor_turn=told.ended.turn, conveyor_depth=0)
    ends = {trace.by_id[link.span_id].name for link in closing.links}
    assert ends == {"announce main"}
    # What the coding agent did after it was allowed belongs to the turn that was at work then.
    first, second = trace.named("run acp")
    for turn, names in (
        (first, {"execute_tool edit", "wait permission"}),
        (second, {"execute_tool other"}),
    ):
        assert names <= {span.name for span in trace.descendants(turn)}, trace.tree()


async def first_question(client: ConveyorClient) -> str:
    found = (await client.questions()).questions
    return found[0].question_id if found else ""


async def test_the_next_message_begins_another_trace_that_is_linked_to_the_one_before(
    observed: Observed, client: ConveyorClient
) -> None:
    session = "agent:main:grpc:direct:again"
    told = [await chat(client, f"[[reply: {n}]]", session_key=session) for n in range(2)]
    before, after = [await whole(observed, client, one.run_id) for one in told]
    assert before.roots[0].trace_id != after.roots[0].trace_id
    linked = {link.trace_id for span in after.spans for link in span.links}
    assert linked == {before.roots[0].trace_id}, after.tree()


async def test_another_attempt_is_linked_to_the_one_that_failed(
    observed: Observed, client: ConveyorClient, provider: Provider
) -> None:
    provider.rules = [lambda _: Failure(503) if len(provider.fake.requests) < 4 else None]
    told = await chat(client, "hello", session_key="agent:real:grpc:direct:retry")
    assert told.ended.state == SUCCEEDED
    trace = await whole(observed, client, told.run_id)
    failed, done = trace.named("run agent")
    assert failed.failed
    assert [link.span_id for link in done.links] == [failed.span_id]


async def test_a_killed_worker_leaves_a_lost_run_behind_and_the_next_is_linked_to_it(
    observed: Observed, client: ConveyorClient
) -> None:
    session = "agent:main:grpc:direct:killed"
    telling = asyncio.create_task(
        chat(client, "[[sleep: 1s]] [[reply: back]]", session_key=session)
    )

    async def at_work() -> str:
        """Work is seen as soon as it begins, not only once it has ended."""
        runs = (await client.runs(run_pb2.RunFilter(session_key=session))).runs
        trace = observed.collector.trace(runs[0].trace.traceparent.split("-")[1]) if runs else None
        return trace.spans[0].trace_id if trace and trace.named("run.started") else ""

    trace_id = await eventually(at_work, timeout=30, interval=0.1)
    observed.suite.kill("agent")
    told = await telling
    assert told.answer == "back"
    trace = await whole(observed, client, told.run_id)
    assert trace.roots[0].trace_id == trace_id
    (lost,) = trace.named("run.lost")
    assert lost.failed
    assert lost.service == "scheduler"
    assert lost.attributes["conveyor.attempt"] == 1
    (done,) = trace.named("run agent")
    assert done.attributes["conveyor.attempt"] == 2
    assert [link.span_id for link in done.links] == [lost.span_id]
    assert lost.parent_id == done.parent_id
    # The mark that it had begun is where the lost run is.
    assert [s.parent_id for s in trace.named("run.started")] == [lost.span_id, done.span_id]


# Nothing private


async def test_nothing_that_people_say_or_keep_secret_is_let_out(
    observed: Observed, client: ConveyorClient, provider: Provider
) -> None:
    provider.rules = [lambda request: _model(observed.markers, request)]
    await _messages(observed, client)
    await _tools(observed, client)
    await _troubles_of_models(observed, client)
    await _coding_agents(observed, client)
    await _strange_requests(observed)
    flow = await chat(
        client, "[[spawn: [[reply: the last]]]]", session_key="agent:main:http:direct:x"
    )
    metrics = await observed.scrape()

    trace = (await client.run(flow.run_id)).run.trace.traceparent.split("-")[1]
    await eventually(lambda: len(observed.collector.trace(trace).named("run agent")) == 3)
    spans, logs = observed.collector.raw, observed.suite.output.encode()
    # There is something to find, and it would be found.
    assert flow.run_id.encode() in spans
    assert b'"event": "hook called"' in logs
    assert b"conveyor_" in metrics.encode()
    assert Markers({"conveyor.run.id": ""}).found_in(spans)

    # Every trace begins with what somebody asked for: services leave none of what they do alone.
    roots = [root for trace in observed.collector.traces().values() for root in trace.roots]
    assert {(root.service, root.kind) for root in roots} == {("gateway", "SERVER")}
    print(f"{len(observed.markers.planted)} words planted, {len(roots)} traces")
    # Libraries have tracers too, which do not ask what may be said.
    assert {span.scope for span in observed.collector.spans} == {"conveyor"}
    found = {
        "spans": observed.markers.found_in(spans),
        "logs": observed.markers.found_in(logs),
        "metrics": observed.markers.found_in(metrics.encode()),
    }
    assert not any(found.values()), json.dumps(found, indent=1)


async def _messages(observed: Observed, client: ConveyorClient) -> None:
    """Texts, people, labels and commands, over every way in and in every form of a session key."""
    mark, phone = observed.markers.word, observed.markers.phone
    keys = [
        f"agent:main:{channel}:{scope}:{phone(f'{channel} {scope}')}"
        for channel, scope in (
            ("web", "direct"),
            ("http", "direct"),
            ("grpc", "direct"),
            ("cli", "direct"),
            ("whatsapp", "direct"),
            ("whatsapp", "group"),
            ("telegram", "group"),
            ("slack", "channel"),
            ("discord", "channel"),
        )
    ]
    keys += [phone("a bare key"), f"agent:main:{phone('a short key')}"]
    async with observed.http() as http:
        for key in keys[::2]:
            path = f"/v1/sessions/{in_path(key)}"
            said = mark("HTTP message")
            sent = await http.post(
                f"{path}/messages",
                json={"text": f"{said} [[reply: {mark('reply')}]]", "labels": {"l": mark("label")}},
                headers={
                    "Idempotency-Key": mark("request id"),
                    "baggage": f"conveyor.run.id={mark('baggage')},user={mark('baggage')}",
                },
            )
            assert sent.status_code < 300, sent.text
            run_id = sent.json()["accepted"]["run"]["run_id"]
            for below in ("", "/messages", f"/messages?page_token={mark('query')}"):
                await http.get(f"{path}{below}")
            await http.post(f"/v1/runs/{run_id}/cancel", json={"reason": mark("reason")})
            async with http.stream("GET", f"{path}/events") as events:
                assert events.status_code == 200
    for key in keys[1::2]:
        spawned = f"[[spawn: {mark('task')} [[reply: {mark('answer of a child')}]]]]"
        more = f"[[spawn-background: {mark('background task')}]] [[yield: {mark('interim')}]]"
        told = await chat(
            client,
            f"{mark('gRPC message')} {spawned} {more}",
            session_key=key,
            customer_key=phone("a customer"),
            labels={mark("name of a label"): mark("label")},
            request_id=mark("request id"),
        )
        assert told.ended.state == SUCCEEDED
        for command in ("/status", f"/steer {mark('steered')}", f"/new {mark('after new')}"):
            # What it has to say it says to the caller.
            with contextlib.suppress(ServiceError):
                await client.execute(command, session_key=key)
    body = json.dumps({"phone": phone("a hook"), "said": mark("hook body")}).encode()
    async with observed.http() as http:
        called = await http.post("/hooks/build", content=body, headers=_signed(observed, body))
        assert called.status_code == 202, called.text
        forged = _signed(observed, body) | {"webhook-signature": f"v1,{mark('forged signature')}"}
        for name in ("build", mark("name of a hook")):
            refused = await http.post(f"/hooks/{name}", content=body, headers=forged)
            assert refused.status_code == 401


def _signed(observed: Observed, body: bytes) -> dict[str, str]:
    call_id, stamp = observed.markers.word("webhook id"), str(int(time.time()))
    digest = hmac.digest(observed.hook_key, f"{call_id}.{stamp}.".encode() + body, "sha256")
    return {
        "webhook-id": call_id,
        "webhook-timestamp": stamp,
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }


async def _tools(observed: Observed, client: ConveyorClient) -> None:
    """Arguments and results of tools, and what a tool server says when it dies."""
    mark = observed.markers.word
    observed.markers.planted["SECRET-VALUE"] = "the last words of a tool server"
    for tool in ("look", "fail", "env", "garbage", "die", "unknown"):
        arguments = json.dumps({"path": mark(f"arguments of {tool}")})
        key = f"agent:main:grpc:direct:{tool}"
        told = await chat(client, f"[[tool test__{tool}: {arguments}]]", session_key=key)
        assert told.ended.state == SUCCEEDED, told.ended.error
        if tool == "env":
            assert observed.markers.found_in(told.answer.encode()), "it saw its secret"


def _model(markers: Markers, request: ChatRequest) -> Answer | None:
    said = last_user(request)
    if said.startswith("refuse"):
        status = int(said.split()[1])
        key = request.headers["authorization"]
        echo = f"Incorrect key {key}: {markers.word('provider error')} {said}"
        return Failure(status, echo, code=markers.word("code of a provider"))
    if said.startswith("call") and not answered(request):
        acp = {"task": markers.word("task"), "runtime": "acp", "agent_id": "scripted"}
        return Reply(
            markers.word("words before a call"),
            [
                ToolCall(markers.word("name of a tool"), {"a": markers.word("arguments")}),
                ToolCall("sessions_spawn", '{"task": "' + markers.word("broken arguments")),
                ToolCall(
                    "sessions_spawn", {"agent_id": markers.word("name of an agent"), "task": "x"}
                ),
                ToolCall("sessions_spawn", acp | {"cwd": f"/{markers.word('directory')}"}),
                ToolCall("sessions_spawn", acp | {"agent_id": markers.word("name of a harness")}),
                ToolCall("sessions_send", {"session": markers.phone("a session"), "message": "x"}),
            ],
        )
    return Reply(markers.word("reply of a model"))


async def _troubles_of_models(observed: Observed, client: ConveyorClient) -> None:
    """Providers that repeat what they were sent, and models that call what there is not."""
    mark = observed.markers.word
    for number, said in enumerate(("refuse 401", "refuse 400", "refuse 404", "call")):
        told = await chat(
            client,
            f"{said} {mark('message to a model')}",
            session_key=f"agent:real:grpc:direct:trouble-{number}",
        )
        assert told.ended.state == (SUCCEEDED if said == "call" else FAILED)
    failed = await chat(
        client,
        f"[[fail: {mark('failure')}]]",
        session_key="agent:main:grpc:direct:fails",
    )
    assert failed.ended.state == FAILED


async def _coding_agents(observed: Observed, client: ConveyorClient) -> None:
    """Prompts, what is asked, where it works, and what a coding agent says when it fails."""
    mark = observed.markers.word
    work = observed.suite.directory / "work"
    key = f"agent:main:http:direct:{observed.markers.phone('a bound conversation')}"
    spec = acp_pb.AcpSessionSpec(
        harness_id="scripted",
        permission_mode=acp_pb.PERMISSION_MODE_ASK,
        ask_timeout=duration_pb2.Duration(seconds=30),
        label=mark("label of a session"),
    )
    spawned = await client.acp_spawn(spec, bind_session_key=key)
    order = (
        f"say:{mark('chunk')} ;; think:{mark('thought')}"
        f" ;; write {work}/{mark('file')} {mark('content')}"
    )
    async for item in client.chat(order, session_key=key):
        if item.event.HasField("question_asked"):
            await client.answer(item.event.question_asked.question.question_id, "allow")
        if item.HasField("ended"):
            assert item.ended.state == SUCCEEDED, item.ended.error
    for trouble in (
        f"stderr {mark('error output')} ;; tool {mark('title of a tool')}"
        f" ;; error -32603 {mark('error of a harness')}",
        f"env HARNESS_SECRET ;; run echo {mark('command')}; exit 3",
        f"stderr {mark('last words')} ;; say:{mark('before the crash')} ;; crash",
    ):
        async for item in client.chat(trouble, session_key=key):
            if item.event.HasField("question_asked"):
                await client.answer(item.event.question_asked.question.question_id, "deny")
    await client.acp_close(spawned.session.acp_session_id)
    child = f"[[acp scripted: {mark('task of a coding agent')} ;; error -32603 {mark('error')}]]"
    await chat(client, child, session_key="agent:main:http:direct:acp")
    for spec in (
        acp_pb.AcpSessionSpec(harness_id=mark("name of a harness")),
        acp_pb.AcpSessionSpec(harness_id="scripted", cwd=f"/{mark('directory')}"),
        acp_pb.AcpSessionSpec(harness_id="scripted", env_names=[mark("name of a variable")]),
        acp_pb.AcpSessionSpec(harness_id="scripted", resume_id=mark("id of a session")),
    ):
        with pytest.raises(ServiceError):
            await client.acp_spawn(spec)


async def _strange_requests(observed: Observed) -> None:
    """Requests that no route takes, or that are refused."""
    mark = observed.markers.word
    async with observed.http() as http:
        for method, path in (
            ("GET", f"/{mark('path')}"),
            ("GET", f"/v1/runs/{mark('run id')}?a={mark('query')}"),
            ("GET", f"/v1/sessions/{mark('unknown session')}"),
            ("GET", f"/v1/flows/{mark('flow id')}"),
            (mark("method"), "/v1/sessions"),
        ):
            answer = await http.request(method, path, headers={"user-agent": mark("user agent")})
            assert answer.status_code >= 400
        broken = await http.post(
            "/v1/sessions/agent:main:http:direct:y/messages", content=f'{{"text": "{mark("broken")}'
        )
        assert broken.status_code == 400
    strangers = (f"Bearer {mark('wrong token')}", f"Basic {mark('basic')}")
    for authorization in strangers:
        async with observed.http(authorization=authorization) as http:
            assert (await http.get("/v1/sessions")).status_code == 401
    async with ConveyorClient(observed.suite.grpc, token=mark("wrong token")) as stranger:
        with pytest.raises(ServiceError):
            await stranger.sessions()


# The last one: it ends the suite


async def test_a_collector_that_never_answers_delays_neither_answers_nor_the_end(
    observed: Observed,
) -> None:
    observed.collector.hanging = True
    before = observed.collector.asked
    async with observed.client() as client, asyncio.timeout(30):
        for turn in range(2):
            told = await asyncio.gather(
                *(
                    chat(client, "[[reply: done]]", session_key=f"agent:main:grpc:direct:h{n}")
                    for n in range(8)
                )
            )
            assert {one.answer for one in told} == {"done"}, turn
            # Everybody's next batch hangs by now.
            await eventually(lambda: observed.collector.asked >= before + 3)
    # That the last spans are given up after a second is shown where a clock can tell it
    # (`test_svckit_collector.py`): here a busy machine may take longer for everything else.
    assert observed.suite.stop() < STOP_BOUND

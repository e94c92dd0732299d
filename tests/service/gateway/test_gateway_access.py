"""Who may do what, for every method of the contract and every path of HTTP."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import grpc.aio
import httpx
import pytest
from fastapi.routing import APIRoute
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from conveyor.gateway.v1 import gateway_service_pb2 as gw
from conveyor.scheduler.v1 import flow_service_pb2 as fs
from conveyor.scheduler.v1 import lane_pb2, run_pb2
from conveyor.scheduler.v1 import scheduler_service_pb2 as ss
from gateway_svc.domain.commands.grammar import FORMS, Form
from gateway_svc.domain.tokens import decode_token, encode_token, session_subject
from gateway_svc.http.routes import build_router
from svckit.errors import ServiceError
from svckit.grpc.status import from_rpc_error
from svckit.metrics import NOBODY
from svckit.testing import eventually
from tests.service.gateway.access import (
    ACP_ID,
    ANN,
    CASES,
    COMMANDS,
    KINDS,
    METHODS,
    SCOPES,
    SECRET,
    SESSION,
    World,
    bearer,
    promised_scopes,
    token_of,
    world,
)
from tests.service.gateway.suite import user

PROMISED = promised_scopes()
# A command needs the scope of the call with the same effect; looking at a session needs `read`.
_OF_COMMANDS = "read"


async def failure(call: Any) -> ServiceError | None:
    """Return the error of a call, `None` when it was answered."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error)
    return None


def test_every_method_is_in_the_table() -> None:
    assert set(CASES) == set(METHODS) == set(PROMISED)
    for name, scope in PROMISED.items():
        assert scope in SCOPES or name == "ExecuteCommand", f"{name} does not say its scope"


async def test_every_method_asks_who_calls_and_what_they_may(tmp_path: Path) -> None:
    async with world(tmp_path) as around:
        for name, case in CASES.items():
            request = case.request(around)
            for metadata in (
                (),
                (("authorization", "Bearer token-of-nobody-0123456789"),),
                (("authorization", f"Basic {token_of('ann-control')}"),),
                (("authorization", token_of("ann-control")),),
                (*bearer("ann-control"), *bearer("ann-control")),
            ):
                refused = await failure(around.call_with(name, request, metadata))
                assert refused is not None, (name, metadata)
                assert refused.reason == "UNAUTHENTICATED", (name, metadata)
                assert not refused.metadata
                assert not around.leaked(refused.message)
            scope = PROMISED[name] or _OF_COMMANDS
            if scope != "read":
                less = SCOPES[SCOPES.index(scope) - 1]
                refused = await failure(around.call(name, request, f"ann-{less}"))
                assert refused is not None, name
                assert refused.reason == "SCOPE_MISSING", name
                assert refused.metadata == {"scope": scope}, name
        # None of all that did anything.
        [run] = await around.call("GetRun", ss.GetRunRequest(run_id=around.run_id), "ann-read")
        assert run.run.state == run_pb2.RUN_STATE_SUSPENDED
        assert not around.around.acp.calls["CloseSession"]


async def test_what_is_anothers_is_not_there(tmp_path: Path) -> None:
    """Not found in the very words of what nobody has, and in no list, stream or explanation."""
    async with world(tmp_path) as around:
        for name, case in CASES.items():
            who = "root" if PROMISED[name] == "admin" else "eve-control"
            if who == "root":
                continue  # sees everybody's
            request = case.request(around)
            if not case.hidden:
                for answer in await around.call(name, request, who):
                    assert not around.leaked(answer.SerializeToString()), name
                continue
            refused = await failure(around.call(name, request, who))
            assert refused is not None, name
            assert refused.reason == case.hidden, (name, refused)
            if case.elsewhere is not None:
                nobodys = case.elsewhere()
                missing = await failure(around.call(name, nobodys, who))
                assert missing is not None, name
                assert _without_ids(refused, request) == _without_ids(missing, nobodys), name
        [run] = await around.call("GetRun", ss.GetRunRequest(run_id=around.run_id), "ann-read")
        assert run.run.state == run_pb2.RUN_STATE_SUSPENDED
        for method in ("CloseSession", "CancelTurn", "ConfigureSession", "SpawnSession"):
            assert not around.around.acp.calls[method], method
        assert not around.around.agents.calls["ResetSession"]


async def test_its_owner_gets_there_with_just_the_scope(tmp_path: Path) -> None:
    """The other side of the two above: what is refused there is not refused to everybody."""
    last = ("SendMessage", "Chat", "AnswerQuestion", "CancelRun", "CancelFlow")
    order = sorted(CASES, key=lambda name: last.index(name) if name in last else -1)
    async with world(tmp_path) as around:
        for name in order:
            scope = PROMISED[name] or _OF_COMMANDS
            who = "root" if scope == "admin" else f"ann-{scope}"
            refused = await failure(around.call(name, CASES[name].request(around), who))
            if refused is not None:
                kept = refused.reason not in (
                    "UNAUTHENTICATED",
                    "SCOPE_MISSING",
                    CASES[name].hidden,
                )
                assert kept, (name, refused)


async def test_every_command_needs_the_scope_of_what_it_does(tmp_path: Path) -> None:
    assert set(COMMANDS) == {form.name for form in FORMS}
    async with world(tmp_path) as around:

        async def give(form: Form, who: str) -> ServiceError | None:
            text = form.example.replace("approve 2", "approve 1").replace("deny 2", "deny 1")
            request = gw.ExecuteCommandRequest(
                session_key=SESSION, text=text, request_id=f"{form.name} {who}".replace(" ", "-")
            )
            return await failure(around.call("ExecuteCommand", request, who))

        for form in FORMS:
            hidden = await give(form, "eve-control")
            assert hidden is not None, form.name
            assert hidden.reason == "SESSION_NOT_FOUND", form.name
            scope = COMMANDS[form.name]
            if scope != "read":
                refused = await give(form, f"ann-{SCOPES[SCOPES.index(scope) - 1]}")
                assert refused is not None, form.name
                assert (refused.reason, refused.metadata) == ("SCOPE_MISSING", {"scope": scope}), (
                    form.name
                )
        [run] = await around.call("GetRun", ss.GetRunRequest(run_id=around.run_id), "ann-read")
        assert run.run.state == run_pb2.RUN_STATE_SUSPENDED
        for form in FORMS:
            refused = await give(form, f"ann-{COMMANDS[form.name]}")
            assert refused is None or refused.reason != "SCOPE_MISSING", form.name


def _without_ids(error: ServiceError, request: Message) -> tuple[str, str, list[str], int]:
    """Return what an error says, apart from the id that was asked for."""
    text = error.message
    for _, value in request.ListFields():
        if isinstance(value, str):
            text = text.replace(value, "*")
    return error.reason, text, sorted(error.metadata), len(error.field_violations)


async def test_filters_tokens_and_ids_of_others_open_nothing(tmp_path: Path) -> None:
    async with world(tmp_path) as around:
        runs, flows = ss.ListRunsRequest(), fs.ListFlowsRequest()
        sessions, questions = gw.ListSessionsRequest(), gw.ListQuestionsRequest()
        harnesses = gw.ListAcpSessionsRequest()
        for request in (runs, flows, sessions, questions, harnesses):
            request.filter.customer_key = ANN
        flows.filter.session_key = questions.filter.session_key = SESSION
        runs.filter.flow_id = around.flow_id
        for name, request in (
            ("ListRuns", runs),
            ("ListFlows", flows),
            ("ListSessions", sessions),
            ("ListQuestions", questions),
            ("ListAcpSessions", harnesses),
        ):
            [answer] = await around.call(name, request, "eve-control")
            assert not answer.ByteSize(), name
            [answer] = await around.call(name, request, "ann-read")
            assert answer.ByteSize(), name
        for kind in KINDS:
            [lanes] = await around.call("ListLanes", ss.ListLanesRequest(kind=kind), "eve-control")
            assert not around.leaked(lanes.SerializeToString())
            [lanes] = await around.call("ListLanes", ss.ListLanesRequest(kind=kind), "ann-read")
            assert SESSION not in str(lanes)

        # Eve's own things, which she may have.
        mine = gw.InboundMessage(session_key="eve-notes", message=user("hello"))
        request = gw.SendMessageRequest(inbound=mine, request_id="first")
        [sent] = await around.call("SendMessage", request, "eve-send")
        assert not sent.accepted.deduplicated, "Ann's request of the same id is another one"
        look = ss.GetRunRequest(run_id=sent.accepted.run.run_id)
        [found] = await around.call("GetRun", look, "eve-read")
        assert [each.request_id for each in found.run.inputs] == ["first"]
        again = await around.call("SendMessage", request, "eve-send")
        assert again[0].accepted.deduplicated
        other = gw.SendMessageRequest(request_id="first")
        other.inbound.CopyFrom(mine)
        other.inbound.message.CopyFrom(user("good bye"))
        reused = await failure(around.call("SendMessage", other, "eve-send"))
        assert reused is not None
        assert reused.reason == "REQUEST_ID_REUSED"
        assert reused.metadata["requestId"] == "first"
        assert reused.metadata["runId"] == sent.accepted.run.run_id
        assert sent.accepted.run.spec.customer_key == "evil"

        # She may not act as Ann, nor begin what will be somebody else's.
        mine.customer_key = ANN
        request = gw.SendMessageRequest(inbound=mine, request_id="as-ann")
        refused = await failure(around.call("SendMessage", request, "eve-control"))
        assert refused is not None
        assert (refused.reason, refused.metadata) == ("SCOPE_MISSING", {"scope": "admin"})
        for key in ("agent:main:http:direct:ann-send", "agent:main:whatsapp:direct:491511234567"):
            theirs = gw.InboundMessage(session_key=key, message=user("mine now"))
            request = gw.SendMessageRequest(inbound=theirs, request_id=f"take-{key}")
            refused = await failure(around.call("SendMessage", request, "eve-control"))
            assert refused is not None
            assert refused.reason == "SESSION_NOT_FOUND"


async def test_a_steered_message_of_a_customer_is_followed_to_its_own_run(tmp_path: Path) -> None:
    """Under the id that its sender chose, although the suite knows it by a marked one."""
    async with world(tmp_path) as around:
        agent, key = around.around.agent, "eve-notes"
        agent.hold("first")
        inbound = gw.InboundMessage(session_key=key, message=user("first"))
        request = gw.SendMessageRequest(inbound=inbound, request_id="1")
        await around.call("SendMessage", request, "eve-send")
        await eventually(lambda: "first" in agent.started)
        inbound.message.CopyFrom(user("also"))
        inbound.queue_mode = lane_pb2.QUEUE_MODE_STEER
        chat = gw.ChatRequest(inbound=inbound, request_id="2")
        responses = []
        async for response in around.stub("Chat")(chat, metadata=bearer("eve-send"), timeout=20):
            responses.append(response)
            if response.progress.live:
                agent.let_go("first")
        assert responses[0].accepted.outcome == lane_pb2.ENQUEUE_OUTCOME_STEERED
        ended = responses[-1].ended
        assert [part.text for part in ended.result.reply.parts] == ["echo: also"]
        missed = [r.event.steer_missed for r in responses if r.event.HasField("steer_missed")]
        assert [each.request_id for each in missed] == ["2"]


async def test_a_made_up_resume_token_opens_no_tree_of_another(tmp_path: Path) -> None:
    async with world(tmp_path) as around:
        mine = gw.InboundMessage(session_key="eve-notes", message=user("hello"))
        await around.call(
            "SendMessage", gw.SendMessageRequest(inbound=mine, request_id="1"), "eve-send"
        )
        subject = session_subject("eve-notes")
        forged = decode_token(subject, "")
        token = encode_token(
            subject, type(forged)(sequence=0, position=0, flows={around.flow_id: 0})
        )
        request = gw.WatchSessionRequest(
            session_key="eve-notes", resume_token=token, include_descendants=True
        )
        call = around.stub("WatchSession")(request, metadata=bearer("eve-read"), timeout=30)
        seen = 0
        async for response in call:
            seen += 1
            assert not around.leaked(response.SerializeToString())
            if response.progress.live:
                break
        assert seen > 1
        call.cancel()


async def test_health_is_for_everybody_and_reflection_for_those_with_a_token(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as around:
        channel = around.around.gateway.channel
        health = health_pb2_grpc.HealthStub(channel)
        answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=30)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING

        async def reflect(metadata: Any) -> Any:
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            asked = reflection_pb2.ServerReflectionRequest(list_services="")
            call = stub.ServerReflectionInfo(iter([asked]), metadata=metadata, timeout=30)
            return await call.read()

        refused = await failure(reflect(()))
        assert refused is not None
        assert refused.reason == "UNAUTHENTICATED"
        assert "GatewayService" in str(await reflect(bearer("eve-read")))


# HTTP

BODIES: dict[str, Any] = {
    "SendMessage": {"text": "what goes on here?"},
    "SteerRun": {"text": "faster"},
    "ExecuteCommand": {"session_key": SESSION, "text": "/status"},
    "AnswerQuestion": {"option_id": "yes"},
    "SpawnAcpSession": {
        "spec": {"harness_id": "scripted", "cwd": "/tmp"},
        "bind_session_key": SESSION,
    },
    "PromptAcpSession": {"text": "go on"},
    "ProbeModel": {"model": "m"},
    "UpdateLane": {"limit": 4},
}
OPEN = {"/hooks/{name}", "/channels/{rest:path}"}
"""They check the signatures of those who call them."""


class Unused:
    def __getattr__(self, name: str) -> Any:
        return self


def routes() -> list[tuple[str, str, str]]:
    """Return method, path and call of every route of the contract."""
    unused: Any = Unused()
    found = []
    for route in build_router(unused, NOBODY).routes:
        assert isinstance(route, APIRoute)
        call = "".join(word.capitalize() for word in route.endpoint.__name__.split("_"))
        found += [(method, route.path, call) for method in sorted(route.methods)]
    return found


def filled(path: str, around: World) -> str:
    for name, value in {
        "key": SESSION,
        "run_id": around.run_id,
        "flow_id": around.flow_id,
        "name": "main",
        "question_id:path": around.question_id,
        "acp_id": ACP_ID,
        "acp_session_id": ACP_ID,
    }.items():
        path = path.replace(f"{{{name}}}", value)
    assert "{" not in path, path
    return path


async def test_every_path_asks_who_calls_and_what_they_may(tmp_path: Path) -> None:
    async with world(tmp_path) as around:
        http = around.around.http
        for method, template, name in routes():
            if template in OPEN:
                continue
            assert template.startswith("/v1/"), template
            path = filled(template, around)
            body = BODIES.get(name, {}) if method in ("POST", "PATCH") else None

            async def ask(
                who: str | None, method: str = method, path: str = path, body: Any = body
            ) -> Any:
                headers = {"Authorization": f"Bearer {token_of(who)}"} if who else {}
                async with http.stream(method, path, json=body, headers=headers) as response:
                    if response.headers["content-type"].startswith("text/event-stream"):
                        lines = response.aiter_lines()
                        return response, "\n".join([await anext(lines) for _ in range(4)])
                    return response, (await response.aread()).decode()

            response, text = await ask(None if method == "GET" else "nobody")
            assert response.status_code == 401, (method, path)
            assert response.headers["www-authenticate"] == "Bearer"
            assert json.loads(text)["error"]["reason"] == "UNAUTHENTICATED"
            assert not around.leaked(text)
            if name not in PROMISED:
                continue  # paths of a later release
            scope = PROMISED[name] or _OF_COMMANDS
            if scope != "read":
                response, text = await ask(f"ann-{SCOPES[SCOPES.index(scope) - 1]}")
                assert response.status_code == 403, (method, path)
                assert json.loads(text)["error"]["metadata"] == {"scope": scope}
            if scope != "admin":
                response, text = await ask("eve-control")
                hidden = CASES[name].hidden
                assert response.status_code == (404 if hidden else response.status_code), path
                if hidden:
                    assert json.loads(text)["error"]["reason"] == hidden
                else:
                    assert not around.leaked(text), path


async def status(http: httpx.AsyncClient, path: str) -> int:
    """Ask for a path just as it is written, which no client library does."""
    host, port = http.base_url.host, http.base_url.port
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return int(answer.split()[1])


async def test_paths_beside_the_contract(tmp_path: Path) -> None:
    async with world(tmp_path) as around:
        http = around.around.http
        for path in ("/", "/js/app.js", "/healthz", "/readyz"):
            # Not ready: the services that are played here do not say that they are well.
            expected = 503 if path == "/readyz" else 200
            assert (await http.get(path)).status_code == expected, path
        for path in ("/metrics", "/v1/nothing", "/v1/", "/metrics/"):
            assert (await http.get(path)).status_code == 401, path
        # However a path is written, what needs a token never answers without one.
        for path in ("//metrics", "/%6Detrics", "/v1%2Fruns", "//v1/runs", "/./metrics"):
            assert await status(http, path) in (401, 404), path
        # Not in the address: it would stand in logs and histories.
        response = await http.get("/v1/runs", params={"access_token": token_of("root")})
        assert response.status_code == 401
        held = {"Authorization": f"Bearer {token_of('eve-read')}"}
        shown = await http.get("/metrics", headers=held)
        assert shown.status_code == 200
        assert not around.leaked(shown.text)


async def test_too_many_calls(tmp_path: Path) -> None:
    limit = {"CONVEYOR_GATEWAY__TOKENS__EVE-READ__REQUESTS_PER_MINUTE": "3"}
    async with world(tmp_path, **limit) as around:
        for _ in range(3):
            assert await failure(around.call("ListRuns", ss.ListRunsRequest(), "eve-read")) is None
        refused = await failure(around.call("ListRuns", ss.ListRunsRequest(), "eve-read"))
        assert refused is not None
        assert refused.reason == "RATE_LIMITED"
        assert refused.metadata == {"limit": "3", "windowSeconds": "60"}
        assert refused.retry_after is not None
        assert 0 < refused.retry_after <= 20
        # One limit for both doors, and each caller has its own.
        held = {"Authorization": f"Bearer {token_of('eve-read')}"}
        response = await around.around.http.get("/v1/runs", headers=held)
        assert response.status_code == 429
        assert 1 <= int(response.headers["retry-after"]) <= 20
        assert await failure(around.call("ListRuns", ss.ListRunsRequest(), "ann-read")) is None


async def test_secrets_reach_no_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    async with world(tmp_path) as around:
        await around.call("ListRuns", ss.ListRunsRequest(), "root")
        await failure(around.call_with("ListRuns", ss.ListRunsRequest(), bearer("nobody-at-all")))
    said = capsys.readouterr()
    for text in (caplog.text, said.out, said.err):
        assert "token-of-" not in text
        assert SECRET not in text

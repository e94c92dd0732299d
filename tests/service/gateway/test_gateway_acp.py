"""ACP sessions at the gateway: opened, bound, prompted and closed, through every door."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from conveyor.acp.v1 import session_pb2 as acp_session
from conveyor.acp.v1 import task_pb2 as acp_task
from conveyor.agent.v1 import agent_service_pb2 as ag
from conveyor.agent.v1 import task_pb2 as agent_task
from conveyor.events.v1 import event_pb2
from conveyor.gateway.v1 import gateway_service_pb2 as gw
from conveyor.gateway.v1 import session_pb2
from conveyor.scheduler.v1 import run_pb2
from conveyor.scheduler.v1 import scheduler_service_pb2 as ss
from conveyor.scheduler.v1 import scheduler_service_pb2_grpc as ss_grpc
from gateway_svc.domain.deliveries import DeliveryKind
from svckit.grpc.status import from_rpc_error
from svckit.testing import eventually
from tests.service.gateway.harnesses import CLOSED, FAILED, READY, STARTING, Harnesses
from tests.service.gateway.suite import Suite, reason_of, suite, text_of, user
from tests.service.gateway.test_gateway_delivery import Caught, Phone, caught

__all__ = ["caught"]

ANN = "agent:main:http:direct:ann"
PHONE = "agent:main:phone:direct:ann"


@asynccontextmanager
async def serving(tmp_path: Path, *channels: Any, **env: str) -> AsyncIterator[Any]:
    async with AsyncExitStack() as stack:
        around = await stack.enter_async_context(suite(tmp_path, channels, **env))
        harnesses = Harnesses()
        harnesses.serve(around.acp)
        await stack.enter_async_context(harnesses.working(around))
        await stack.enter_async_context(around.serve())
        yield around, harnesses


@pytest.fixture
async def acp(tmp_path: Path) -> AsyncIterator[tuple[Suite, Harnesses]]:
    async with serving(tmp_path) as both:
        yield both


async def spawned(around: Suite, bind: str = "", **more: Any) -> gw.SpawnAcpSessionResponse:
    spec = acp_session.AcpSessionSpec(harness_id=more.pop("harness_id", "claude"))
    request_id = more.pop("request_id", f"spawn-{bind}")
    return await around.stub.SpawnAcpSession(
        gw.SpawnAcpSessionRequest(spec=spec, bind_session_key=bind, request_id=request_id, **more)
    )


async def prompted(around: Suite, session_id: str, text: str) -> gw.PromptAcpSessionResponse:
    return await around.stub.PromptAcpSession(
        gw.PromptAcpSessionRequest(
            acp_session_id=session_id, message=user(text), request_id=f"p-{text}".replace(" ", "_")
        )
    )


async def answered(around: Suite, session: str, text: str, **more: Any) -> str:
    """Say something in a session and return what answers it."""
    async for response in around.chat(session, text, **more):
        last = response
    assert last.HasField("ended")
    assert last.ended.state == run_pb2.RUN_STATE_SUCCEEDED, last.ended.error
    return text_of(last.ended.result.reply)


async def said(around: Suite, session: str) -> list[str]:
    """Return the replies in a session's log so far, and the notes that its customer sees."""
    found = []
    async for response in around.stub.WatchSession(gw.WatchSessionRequest(session_key=session)):
        event = response.event
        if event.note_added.visible:
            found.append(event.note_added.text)
        elif event.message_completed.kind == event_pb2.MESSAGE_KIND_REPLY:
            found.append(text_of(event.message_completed.message))
        if response.progress.live:
            return found
    raise AssertionError("the watch ended")


async def ended(around: Suite, run_id: str) -> run_pb2.Run:
    scheduler = ss_grpc.SchedulerServiceStub(around.scheduler.channel)

    async def over() -> run_pb2.Run | None:
        run = (await scheduler.GetRun(ss.GetRunRequest(run_id=run_id))).run
        return run if run.HasField("result") or run.HasField("error") else None

    run = await eventually(over)
    assert run is not None
    return run


async def refusal(call: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return reason_of(refused.value)


async def bound_to(around: Suite, session: str) -> str:
    found = await around.stub.GetSession(gw.GetSessionRequest(session_key=session))
    return str(found.session.bound_acp_session_id)


async def test_a_bound_conversation_is_answered_by_the_harness_until_it_is_closed(
    acp: tuple[Suite, Harnesses],
) -> None:
    around, harnesses = acp
    assert await answered(around, ANN, "before") == "echo: before"
    opened = await spawned(around, ANN, return_starting=True, message=user("first"))
    session_id = opened.session.acp_session_id
    spec = harnesses.sessions[session_id].spec
    assert (spec.session_key, spec.parent_session_key) == (ANN, ANN)
    assert spec.customer_key == "http:ann"
    ready = await ended(around, opened.opening.run.run_id)
    assert text_of(ready.result.reply) == "claude is ready"
    first = await ended(around, opened.accepted.run.run_id)
    assert text_of(first.result.reply) == "claude: first"
    assert await answered(around, ANN, "second") == "claude: second"
    assert await bound_to(around, ANN) == session_id

    task = acp_task.AcpTask()
    assert first.spec.task.Unpack(task)
    assert (task.acp_session_id, task.open_only) == (session_id, False)
    assert (first.spec.queue, first.spec.global_lane) == ("acp", "acp")
    assert first.spec.estimate_key == "acp/claude"
    assert first.spec.preferred_worker == "acp-0"
    assert first.spec.run_timeout.seconds == 1800 + 60 + 60

    await around.stub.CloseAcpSession(gw.CloseAcpSessionRequest(acp_session_id=session_id))
    assert harnesses.sessions[session_id].state == CLOSED
    assert await bound_to(around, ANN) == ""
    assert await answered(around, ANN, "after") == "echo: after"


async def test_who_was_bound_to_a_session_that_ended_is_told_once_and_the_agent_answers(
    acp: tuple[Suite, Harnesses],
) -> None:
    around, harnesses = acp
    opened = await spawned(around, ANN)
    await ended(around, opened.opening.run.run_id)
    session = harnesses.sessions[opened.session.acp_session_id]
    session.state = FAILED
    session.error.message = "the process is gone."
    notices = []

    async def noting(turn: Any) -> Any:
        task = agent_task.AgentTask()
        turn.run.spec.task.Unpack(task)
        notices.append(task.notice.text)
        return turn.reply("the agent")

    for text in ("one", "two"):
        around.agent.on(text, noting)
        assert await answered(around, ANN, text) == "the agent"
    assert notices == [
        "The session with claude failed: the process is gone. From here on main answers you again.",
        "",
    ]
    assert await bound_to(around, ANN) == ""


async def test_while_nobody_can_say_how_a_session_is_its_conversation_stays_bound(
    acp: tuple[Suite, Harnesses],
) -> None:
    around, harnesses = acp
    await ended(around, (await spawned(around, ANN)).opening.run.run_id)
    harnesses.down = True
    assert await answered(around, ANN, "still") == "claude: still"


async def test_a_message_that_comes_again_after_its_binding_ended_is_the_same_message(
    acp: tuple[Suite, Harnesses],
) -> None:
    around, harnesses = acp
    opened = await spawned(around, ANN)
    first = await around.send(ANN, "once", request_id="r")
    await ended(around, first.accepted.run.run_id)
    harnesses.sessions[opened.session.acp_session_id].state = CLOSED
    again = await around.send(ANN, "once", request_id="r")
    assert again.accepted.deduplicated
    assert again.accepted.run.run_id == first.accepted.run.run_id
    assert await refusal(around.send(ANN, "another", request_id="r")) == "REQUEST_ID_REUSED"
    assert harnesses.prompts == [(opened.session.acp_session_id, "once")]


async def test_commands_and_orders_of_a_bound_conversation_are_still_its_own(
    acp: tuple[Suite, Harnesses],
) -> None:
    around, harnesses = acp
    await ended(around, (await spawned(around, ANN)).opening.run.run_id)
    main = ag.Agent(agent_id="main", spawnable_agent_ids=["main"])
    around.agents.always("ListAgents", ag.ListAgentsResponse(agents=[main]))
    answer = await around.stub.ExecuteCommand(
        gw.ExecuteCommandRequest(
            session_key=ANN, text="/subagents spawn main compare hotels", request_id="c"
        )
    )
    assert answer.text.startswith("Ordered from main")
    await eventually(lambda: "compare hotels" in around.agent.started)
    assert harnesses.prompts == []


async def test_new_makes_the_session_that_answers_forget(acp: tuple[Suite, Harnesses]) -> None:
    around, harnesses = acp
    await ended(around, (await spawned(around, ANN)).opening.run.run_id)
    around.agents.always("ResetSession", ag.ResetSessionResponse(epoch=1))
    response = await around.http.delete(f"/v1/sessions/{ANN}")
    assert response.status_code == 200, response.text
    assert [change.fresh for change in harnesses.changes] == [True]
    assert await answered(around, ANN, "afresh") == "claude: afresh"


async def test_a_reset_that_comes_again_does_not_forget_what_was_said_since(
    acp: tuple[Suite, Harnesses],
) -> None:
    around, harnesses = acp
    await ended(around, (await spawned(around, ANN)).opening.run.run_id)
    around.agents.always("ResetSession", ag.ResetSessionResponse(epoch=1))
    for _ in range(2):
        reset = await around.http.delete(f"/v1/sessions/{ANN}", headers={"Idempotency-Key": "r"})
        assert reset.json() == {"epoch": "1"}
    assert [change.fresh for change in harnesses.changes] == [True]


async def test_a_conversation_is_answered_by_one_session_at_a_time(
    acp: tuple[Suite, Harnesses],
) -> None:
    around, harnesses = acp
    first = await spawned(around, ANN, request_id="one")
    assert await refusal(spawned(around, ANN, request_id="two")) == "INVALID_FIELD"
    again = await spawned(around, ANN, request_id="one")
    assert again.session.acp_session_id == first.session.acp_session_id
    assert again.opening.run.run_id == first.opening.run.run_id
    assert len(harnesses.sessions) == 1
    # What has ended does not stand in the way.
    harnesses.sessions[first.session.acp_session_id].state = CLOSED
    second = await spawned(around, ANN, request_id="three")
    assert await bound_to(around, ANN) == second.session.acp_session_id


async def test_a_spawn_says_what_is_wrong_with_it(acp: tuple[Suite, Harnesses]) -> None:
    around, harnesses = acp
    assert await refusal(spawned(around, harness_id="nobody")) == "ACP_HARNESS_NOT_FOUND"
    assert await refusal(spawned(around, f"{ANN}:subagent:x")) == "INVALID_FIELD"
    assert await refusal(spawned(around, "agent:nobody:http:direct:ann")) == "AGENT_NOT_FOUND"
    for body, field in (
        ({"session_key": ANN}, "spec.session_key"),
        ({"parent_session_key": ANN}, "spec.parent_session_key"),
        ({"permission_mode": "sometimes"}, "spec.permission_mode"),
        ({"harness": "claude"}, "harness"),
        ({"text": " "}, "message.parts"),
        ({"spec": {"label": "a"}, "label": "b"}, "label"),
    ):
        response = await around.http.post("/v1/acp/sessions", json=body)
        assert response.status_code == 400, body
        assert response.json()["error"]["fields"][0]["field"] == field, response.text
    assert harnesses.sessions == {}


async def test_a_prompt_waits_until_the_session_is_ready_and_ends_with_it(
    acp: tuple[Suite, Harnesses],
) -> None:
    around, harnesses = acp
    opened = await spawned(around)
    session_id = opened.session.acp_session_id
    assert not opened.HasField("opening")
    harnesses.sessions[session_id].state = STARTING
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await prompted(around, session_id, "too soon")
    assert reason_of(refused.value) == "ACP_SESSION_INIT_FAILED"
    assert "wait for the message" in str(refused.value.details())
    harnesses.sessions[session_id].state = READY
    sent = await prompted(around, session_id, "hello")
    run = await ended(around, sent.accepted.run.run_id)
    assert text_of(run.result.reply) == "claude: hello"
    assert run.spec.session_key == f"agent:claude:acp:{session_id}"
    harnesses.sessions[session_id].state = CLOSED
    assert await refusal(prompted(around, session_id, "late")) == "ACP_SESSION_NOT_FOUND"
    assert await refusal(prompted(around, "nobody", "hi")) == "ACP_SESSION_NOT_FOUND"


async def test_over_http_a_session_is_spawned_listed_prompted_changed_and_closed(
    acp: tuple[Suite, Harnesses],
) -> None:
    around, harnesses = acp
    body = {"harness_id": "codex", "permission_mode": "ask", "mode": "oneshot", "label": "fix"}
    response = await around.http.post("/v1/acp/sessions", json=body)
    assert response.status_code == 201, response.text
    session = response.json()["session"]
    assert session["spec"]["permission_mode"] == "PERMISSION_MODE_ASK"
    path = f"/v1/acp/sessions/{session['acp_session_id']}"
    response = await around.http.post(
        f"{path}/prompt", json={"text": "hello"}, headers={"Idempotency-Key": "k"}
    )
    assert response.status_code == 202
    again = await around.http.post(f"{path}/prompt", json={"text": "hello", "request_id": "k"})
    assert again.json()["accepted"]["deduplicated"]
    run = await ended(around, response.json()["accepted"]["run"]["run_id"])
    assert text_of(run.result.reply) == "codex: hello"

    listed = (await around.http.get("/v1/acp/sessions?harness_id=codex&states=ready")).json()
    assert [one["acp_session_id"] for one in listed["sessions"]] == [session["acp_session_id"]]
    got = (await around.http.get(path)).json()
    assert got["session"] == listed["sessions"][0]
    changed = await around.http.patch(path, json={"permission_mode": "deny-all"})
    assert changed.json()["session"]["spec"]["permission_mode"] == "PERMISSION_MODE_DENY_ALL"
    stopped = await around.http.post(f"{path}/cancel", json={"reason": "enough"})
    assert stopped.json() == {"run_id": "R"}
    assert harnesses.cancelled == [session["acp_session_id"]]
    closed = await around.http.delete(path)
    assert closed.json()["session"]["state"] == "ACP_SESSION_STATE_CLOSED"
    assert (await around.http.get("/v1/acp/sessions")).json() == {}
    missing = await around.http.get("/v1/acp/sessions/nobody")
    assert (missing.status_code, missing.json()["error"]["reason"]) == (
        404,
        "ACP_SESSION_NOT_FOUND",
    )


async def test_what_a_bound_harness_asks_is_asked_in_the_chat_and_answered_there(
    tmp_path: Path, caught: Caught
) -> None:
    phone = Phone()
    async with serving(tmp_path, phone) as (around, _):
        await caught.hear("ann", "hello")
        # Spawned by somebody else, for the chat of ann.
        opened = await spawned(around, PHONE)
        await ended(around, opened.opening.run.run_id)
        await eventually(lambda: phone.texts("ann")[-1:] == ["claude is ready"])
        run_id = await caught.hear("ann", "ask Write a.txt")
        await eventually(lambda: DeliveryKind.QUESTION in {item.kind for item in phone.sent})
        asked = next(item.text for item in phone.sent if item.kind == DeliveryKind.QUESTION)
        assert asked.startswith("Question 1: Write a.txt")
        found = await around.http.get(f"/v1/questions?session_key={PHONE}")
        assert [one["title"] for one in found.json()["questions"]] == ["Write a.txt"]
        events = f"/v1/sessions/{PHONE}/events?payloads=question_asked"
        async with around.http.stream("GET", events) as stream:
            async for line in stream.aiter_lines():
                if "Write a.txt" in line:
                    break
        await caught.hear("ann", "/approve 1")
        await ended(around, run_id)
        await eventually(lambda: "local said yes" in phone.texts("ann"))


async def test_a_session_spawned_from_a_chat_answers_and_asks_in_that_chat(
    tmp_path: Path, caught: Caught, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gateway_svc.auth import LOCAL
    from gateway_svc.domain.reply_route import ReplyAddress
    from gateway_svc.harness_sessions import HarnessSessions, Origin

    made: list[HarnessSessions] = []
    init = HarnessSessions.__init__

    def remember(sessions: HarnessSessions, *args: Any) -> None:
        init(sessions, *args)
        made.append(sessions)

    monkeypatch.setattr(HarnessSessions, "__init__", remember)
    phone = Phone()
    async with serving(tmp_path, phone) as (around, harnesses):
        await caught.hear("ann", "hello")
        await eventually(lambda: phone.texts("ann"))
        watch = around.stub.WatchSession(gw.WatchSessionRequest(session_key=PHONE))
        async for response in watch:
            if response.progress.live:
                break
        origin = Origin(PHONE, "phone:ann", ReplyAddress("phone", "ann"), "/acp spawn claude")
        request = gw.SpawnAcpSessionRequest(request_id="s", return_starting=True)
        opened = await made[-1].spawn(request, LOCAL, origin)
        session_id = opened.session.acp_session_id
        assert harnesses.sessions[session_id].spec.customer_key == "phone:ann"
        await eventually(lambda: phone.texts("ann")[-1] == "claude is ready")
        await prompted(around, session_id, "ask Run ls")
        seen = []
        async for response in watch:
            if response.HasField("event"):
                payload = response.event.WhichOneof("payload")
                if payload == "message_completed":
                    seen.append(text_of(response.event.message_completed.message))
                elif payload == "question_asked":
                    seen.append(response.event.question_asked.question.title)
                    break
        assert seen == ["/acp spawn claude", "claude is ready", "ask Run ls", "Run ls"]
        # Its number counts in the conversation, and the conversation finds it.
        await eventually(lambda: phone.texts("ann")[-1].startswith("Question 1: Run ls"))
        await caught.hear("ann", "/deny")
        await eventually(lambda: "local said no" in phone.texts("ann"))
        # Watching again from where the watch was: nothing twice, nothing lost.
        token = response.resume_token
        again = around.stub.WatchSession(
            gw.WatchSessionRequest(session_key=PHONE, resume_token=token)
        )
        async for response in again:
            if response.event.HasField("message_completed"):
                break
        assert text_of(response.event.message_completed.message) == "local said no"
        # Closed by somebody else; no binding, nobody to tell.
        await around.stub.CloseAcpSession(gw.CloseAcpSessionRequest(acp_session_id=session_id))
        lists = await around.stub.ListSessions(
            gw.ListSessionsRequest(
                filter=session_pb2.SessionFilter(kinds=[session_pb2.SESSION_KIND_ACP])
            )
        )
        [lane] = lists.sessions
        assert (lane.agent_id, lane.parent_session_key) == ("claude", PHONE)
        assert lane.HasField("archive_time")


async def test_sessions_of_other_customers_do_not_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens: dict[str, str] = {}
    for name in ("ann", "eve"):
        monkeypatch.setenv(f"TOKEN_{name.upper()}", f"{name}-0123456789abcdef")
        tokens |= {
            f"CONVEYOR_GATEWAY__TOKENS__{name.upper()}__TOKEN_ENV": f"TOKEN_{name.upper()}",
            f"CONVEYOR_GATEWAY__TOKENS__{name.upper()}__SCOPES": "control",
        }
    async with serving(tmp_path, **tokens) as (around, harnesses):

        async def call(name: str, method: str, path: str, **more: Any) -> Any:
            headers = {"Authorization": f"Bearer {name}-0123456789abcdef"}
            response = await around.http.request(
                method, f"/v1/acp/sessions{path}", headers=headers, **more
            )
            found = response.json()
            return found.get("error", {}).get("reason") or found

        mine = (await call("ann", "POST", "", json={"harness_id": "claude"}))["session"]
        path = f"/{mine['acp_session_id']}"
        assert "worker" not in mine
        assert mine["spec"]["customer_key"] == "http:ann"
        assert len((await call("ann", "GET", ""))["sessions"]) == 1
        assert await call("eve", "GET", "") == {}
        for method, end, body in (
            ("GET", path, None),
            ("DELETE", path, None),
            ("PATCH", path, {"label": "x"}),
            ("POST", f"{path}/cancel", {}),
            ("POST", f"{path}/prompt", {"text": "hi"}),
        ):
            assert await call("eve", method, end, json=body) == "ACP_SESSION_NOT_FOUND", method
        await call("ann", "POST", "", json={"bind_session_key": ANN})
        refused: tuple[tuple[dict[str, Any], str], ...] = (
            ({"bind_session_key": ANN}, "SESSION_NOT_FOUND"),
            ({"customer_key": "http:ann"}, "INVALID_FIELD"),
            ({"permission_mode": "approve-all"}, "SCOPE_MISSING"),
        )
        for asked, reason in refused:
            assert await call("eve", "POST", "", json=asked) == reason, asked
        assert len(harnesses.sessions) == 2
        assert harnesses.prompts == [] == harnesses.changes == harnesses.cancelled


async def test_a_spawn_repeated_with_another_task_leaves_the_session_of_the_first_open(
    acp: tuple[Suite, Harnesses],
) -> None:
    around, harnesses = acp
    opened = await spawned(around, ANN, message=user("first"))
    await ended(around, opened.accepted.run.run_id)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await spawned(around, ANN, message=user("another"))
    error = from_rpc_error(refused.value)
    assert (error.reason, error.metadata["requestId"]) == ("REQUEST_ID_REUSED", f"spawn-{ANN}")
    session_id = opened.session.acp_session_id
    assert harnesses.sessions[session_id].state == READY
    assert await bound_to(around, ANN) == session_id


async def test_what_comes_again_after_its_session_ended_is_what_was_accepted(
    acp: tuple[Suite, Harnesses],
) -> None:
    around, harnesses = acp
    opened = await spawned(around, return_starting=True, message=user("first"))
    session_id = opened.session.acp_session_id
    await ended(around, opened.accepted.run.run_id)
    sent = await prompted(around, session_id, "second")
    await ended(around, sent.accepted.run.run_id)
    harnesses.sessions[session_id].state = CLOSED  # as one does that lives for one turn
    again = await prompted(around, session_id, "second")
    assert again.accepted.deduplicated
    assert again.accepted.run.run_id == sent.accepted.run.run_id
    repeated = await spawned(around, return_starting=True, message=user("first"))
    assert repeated.session.state == CLOSED
    assert repeated.opening.run.run_id == opened.opening.run.run_id
    assert repeated.accepted.run.run_id == opened.accepted.run.run_id
    assert await refusal(prompted(around, session_id, "third")) == "ACP_SESSION_NOT_FOUND"


async def test_a_spawn_that_was_given_up_is_no_success_when_it_comes_again(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path, CONVEYOR_LANES__SESSION__CAP="1") as (around, harnesses):
        around.agent.hold("busy")
        await around.send(ANN, "busy")
        await around.send(ANN, "waits")
        assert await refusal(spawned(around, ANN, return_starting=True)) == "LANE_FULL"
        [session] = harnesses.sessions.values()
        assert session.state == CLOSED
        # Nobody was told of that session, and nothing came of it.
        again = spawned(around, ANN, return_starting=True)
        assert await refusal(again) == "ACP_SESSION_NOT_FOUND"
        around.agent.let_go("busy")

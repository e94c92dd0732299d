"""Messages in: sessions, defaults, idempotency, refusals."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from grpc import aio

from conveyor.agent.v1 import task_pb2
from conveyor.common.v1 import content_pb2
from conveyor.gateway.v1 import gateway_service_pb2 as gw
from conveyor.gateway.v1 import session_pb2
from conveyor.scheduler.v1 import run_pb2
from conveyor.scheduler.v1 import scheduler_service_pb2 as ss
from svckit.grpc.status import from_rpc_error
from svckit.testing import eventually
from tests.service.gateway.suite import Suite, delegating, reason_of, user


async def test_the_first_message_creates_the_session(gateway: Suite) -> None:
    key = "agent:main:http:direct:ann"
    with pytest.raises(aio.AioRpcError) as refused:
        await gateway.stub.GetSession(gw.GetSessionRequest(session_key=key))
    assert reason_of(refused.value) == "SESSION_NOT_FOUND"

    answer = await gateway.send(key, "hello")
    run = answer.accepted.run
    assert run.spec.session_key == key
    assert run.spec.customer_key == "http:ann"
    assert run.spec.queue == "agent"
    assert run.spec.budget.max_depth == 1
    assert run.spec.budget.max_children == 5
    assert run.spec.budget.max_descendants == 50

    whole = (await gateway.stub.GetRun(ss.GetRunRequest(run_id=run.run_id))).run
    task = task_pb2.AgentTask()
    assert whole.spec.task.Unpack(task)
    assert task.agent_id == "main"
    assert whole.inputs[0].body_hash == b""
    assert whole.inputs[0].message.message_id == f"in-r-{key}-hello"

    session = (await gateway.stub.GetSession(gw.GetSessionRequest(session_key=key))).session
    assert session.kind == session_pb2.SESSION_KIND_CONVERSATION
    assert (session.agent_id, session.customer_key, session.channel) == ("main", "http:ann", "http")
    assert session.active_time.seconds > 0


async def test_an_empty_key_is_the_callers_own_session(gateway: Suite) -> None:
    answer = await gateway.send("", "hello")
    assert answer.accepted.run.spec.session_key == "agent:main:http:direct:local"


async def test_a_key_of_any_shape_is_a_customer_of_its_own(gateway: Suite) -> None:
    first = await gateway.send("alice", "hello")
    second = await gateway.send("bob", "hello")
    customers = {a.accepted.run.spec.customer_key for a in (first, second)}
    assert customers == {"http:alice", "http:bob"}


async def test_a_session_keeps_its_agent_and_customer(gateway: Suite) -> None:
    await gateway.send("alice", "one", customer_key="acme")
    answer = await gateway.send("alice", "two", customer_key="other", agent_id="nobody")
    assert answer.accepted.run.spec.customer_key == "acme"


async def test_a_repeated_message_is_the_same_run(gateway: Suite) -> None:
    first = await gateway.send("alice", "hello", request_id="same")
    again = await gateway.send("alice", "hello", request_id="same")
    assert again.accepted.deduplicated
    assert again.accepted.run.run_id == first.accepted.run.run_id
    with pytest.raises(aio.AioRpcError) as refused:
        await gateway.send("alice", "something else", request_id="same")
    assert reason_of(refused.value) == "REQUEST_ID_REUSED"


@pytest.mark.parametrize(
    ("inbound", "request_id", "field"),
    [
        (gw.InboundMessage(session_key="a b", message=user("x")), "r", "inbound.session_key"),
        (gw.InboundMessage(session_key="k" * 257, message=user("x")), "r", "inbound.session_key"),
        (
            gw.InboundMessage(session_key="a:subagent:1", message=user("x")),
            "r",
            "inbound.session_key",
        ),
        (
            gw.InboundMessage(session_key="agent:main:acp:1", message=user("x")),
            "r",
            "inbound.session_key",
        ),
        (gw.InboundMessage(session_key="a", message=user("x")), "", "request_id"),
        (
            gw.InboundMessage(session_key="a", message=user("x")),
            "01ARZ3NDEKTSV4RRFFQ69G5FAV/1.1.1",
            "request_id",
        ),
        (gw.InboundMessage(session_key="a"), "r", "inbound.message.role"),
        (
            gw.InboundMessage(
                session_key="a", message=content_pb2.Message(role=content_pb2.ROLE_USER)
            ),
            "r",
            "inbound.message.parts",
        ),
        (
            gw.InboundMessage(session_key="a", message=user("x"), priority=4000),
            "r",
            "inbound.priority",
        ),
        (
            gw.InboundMessage(
                session_key="a", message=user("x"), budget=run_pb2.Budget(max_depth=-1)
            ),
            "r",
            "inbound.budget.max_depth",
        ),
    ],
)
async def test_a_bad_field_is_named(
    gateway: Suite, inbound: gw.InboundMessage, request_id: str, field: str
) -> None:
    with pytest.raises(aio.AioRpcError) as refused:
        await gateway.stub.SendMessage(
            gw.SendMessageRequest(inbound=inbound, request_id=request_id)
        )
    error = from_rpc_error(refused.value)
    assert error.reason == "INVALID_FIELD"
    assert error.metadata["field"] == field
    assert error.field_violations[0][0] == field


async def test_an_oversize_message_is_refused(gateway: Suite) -> None:
    with pytest.raises(aio.AioRpcError) as refused:
        await gateway.send("alice", "x" * (256 * 1024 + 1), request_id="big")
    error = from_rpc_error(refused.value)
    assert error.reason == "PAYLOAD_TOO_LARGE"
    assert error.metadata["maxBytes"] == str(256 * 1024)


async def test_an_unknown_agent_leaves_no_session(gateway: Suite) -> None:
    with pytest.raises(aio.AioRpcError) as refused:
        await gateway.send("alice", "hello", agent_id="nobody")
    assert reason_of(refused.value) == "AGENT_NOT_FOUND"
    listed = await gateway.stub.ListSessions(gw.ListSessionsRequest())
    assert list(listed.sessions) == []


async def test_what_the_scheduler_refuses_leaves_no_session(gateway: Suite) -> None:
    with pytest.raises(aio.AioRpcError) as refused:
        await gateway.send("alice", "hello", customer_key="has spaces")
    assert from_rpc_error(refused.value).metadata["field"] == "spec.customer_key"
    listed = await gateway.stub.ListSessions(gw.ListSessionsRequest())
    assert list(listed.sessions) == []
    # And the next first message still decides about the session.
    answer = await gateway.send("alice", "hi", customer_key="acme")
    assert answer.accepted.run.spec.customer_key == "acme"


async def test_first_messages_at_once_agree_on_the_customer(gateway: Suite) -> None:
    answers = await asyncio.gather(
        *(gateway.send("alice", f"hello {i}", customer_key=f"c{i}") for i in range(5))
    )
    assert len({answer.accepted.run.spec.customer_key for answer in answers}) == 1


async def test_budgets_are_lowered_to_the_configuration(gateway: Suite) -> None:
    asked: Any = run_pb2.Budget(max_depth=9, max_children=2)
    answer = await gateway.send("alice", "hello", budget=asked)
    budget = answer.accepted.run.spec.budget
    assert (budget.max_depth, budget.max_children) == (1, 2)


async def test_children_have_sessions_of_their_own_kind(gateway: Suite) -> None:
    gateway.agent.on("go", delegating("research"))
    await gateway.send("alice", "go")

    async def children() -> list[session_pb2.Session]:
        filters = session_pb2.SessionFilter(kinds=[session_pb2.SESSION_KIND_SUBAGENT])
        listed = await gateway.stub.ListSessions(gw.ListSessionsRequest(filter=filters))
        return list(listed.sessions)

    [child] = await eventually(children)
    assert child.parent_session_key == "alice"
    assert child.session_key.startswith("alice:subagent:")
    assert (child.agent_id, child.customer_key, child.label) == ("main", "http:alice", "research")
    conversations = await gateway.stub.ListSessions(gw.ListSessionsRequest())
    assert [s.session_key for s in conversations.sessions] == ["alice"]

    async def ended() -> session_pb2.Session | None:
        # An hour after its end it leaves the list.
        [child] = await children()
        return child if child.HasField("archive_time") else None

    child = await eventually(ended)
    assert child is not None
    kept = child.archive_time.seconds - child.active_time.seconds
    assert 3590 <= kept <= 3610

"""Rules about conversations that an ACP session answers."""

from __future__ import annotations

import pytest

from conveyor.acp.v1 import session_pb2 as acp
from conveyor.acp.v1 import task_pb2 as acp_task
from conveyor.agent.v1 import task_pb2
from conveyor.common.v1 import content_pb2
from conveyor.gateway.v1 import gateway_service_pb2 as gw
from conveyor.scheduler.v1 import lane_pb2, run_pb2
from gateway_svc.domain.binding import (
    AcpRules,
    Binding,
    Bound,
    Notice,
    acp_spec,
    check_ready,
    ended_notice,
    how_ended,
    is_over,
)
from gateway_svc.domain.keys import parse_key
from gateway_svc.domain.reply_route import ReplyAddress
from gateway_svc.domain.routing import AgentRules, KnownSession, Routed, RoutingRules, route
from svckit.errors import AcpSessionInitFailed, AcpSessionNotFound

KEY = "agent:main:http:direct:ann"
RULES = RoutingRules(
    agents={
        "main": AgentRules(
            queue_mode=lane_pb2.QUEUE_MODE_STEER, caps=run_pb2.Budget(max_tokens=1000), model="m"
        )
    },
    lane_cap=7,
    acp=AcpRules(turn_seconds=600, handshake_seconds=30),
)
BOUND = Bound("S", "claude", "acp-1", 90)
NOTICE = Notice("acp-over-S", "it has ended")


def routed(**known: object) -> Routed:
    message = content_pb2.Message(
        role=content_pb2.ROLE_USER, parts=[content_pb2.ContentPart(text="hello")]
    )
    return route(
        gw.InboundMessage(message=message, priority=5, labels={"a": "b"}),
        request_id="r",
        key=parse_key(KEY),
        known=KnownSession("main", "ann", 3, **known),  # type: ignore[arg-type]
        rules=RULES,
        address=ReplyAddress("phone", "ann"),
    )


def test_what_a_bound_conversation_says_is_a_prompt_in_its_own_lane() -> None:
    told = routed(bound=BOUND, notice=NOTICE)
    agent = routed()
    task = acp_task.AcpTask()
    assert told.spec.task.Unpack(task)
    assert task == acp_task.AcpTask(acp_session_id="S")
    assert (told.spec.queue, told.spec.session_key, told.spec.customer_key) == ("acp", KEY, "ann")
    assert (told.spec.preferred_worker, told.spec.estimate_key) == ("acp-1", "acp/claude")
    assert told.spec.run_timeout.seconds == 90 + 30 + 60
    # All else is as it would be with the agent.
    assert told.policy == agent.policy
    for name in ("session_epoch", "priority", "labels", "budget", "reply_route"):
        assert getattr(told.spec, name) == getattr(agent.spec, name), name
    assert told.notice is None, "a notice is for the agent's next answer"


def test_an_agent_tells_what_the_customer_has_to_know() -> None:
    told = routed(notice=NOTICE)
    task = task_pb2.AgentTask()
    assert told.spec.task.Unpack(task)
    assert (task.notice.notice_id, task.notice.text) == ("acp-over-S", "it has ended")
    assert told.notice == NOTICE
    assert routed().spec.estimate_key == "main/m"


def test_an_opening_has_a_time_of_its_own_and_the_configured_timeout() -> None:
    spec = acp_spec(
        Bound("S", "claude"),
        RULES.acp,
        session_key=KEY,
        customer_key="ann",
        address=ReplyAddress("http", "ann"),
        open_only=True,
    )
    task = acp_task.AcpTask()
    assert spec.task.Unpack(task)
    assert (task.open_only, spec.estimate_key) == (True, "acp/claude/open")
    assert spec.run_timeout.seconds == 600 + 30 + 60


@pytest.mark.parametrize("name", acp.AcpSessionState.keys())
def test_every_state_takes_a_prompt_or_says_why_not(name: str) -> None:
    state = acp.AcpSessionState.Value(name)
    session = acp.AcpSession(acp_session_id="S", state=state)
    word = name.removeprefix("ACP_SESSION_STATE_")
    over = word in ("CLOSING", "CLOSED", "FAILED")
    assert is_over(session) == over
    if over:
        with pytest.raises(AcpSessionNotFound) as gone:
            check_ready(session)
        assert gone.value.metadata == {"acpSessionId": "S"}
    elif word == "STARTING":
        with pytest.raises(AcpSessionInitFailed) as early:
            check_ready(session)
        assert early.value.metadata["cause"] == "not_ready"
    else:
        check_ready(session)


def test_the_end_of_a_session_is_said_in_words_and_has_an_id_of_its_own() -> None:
    failed = acp.AcpSession(state=acp.ACP_SESSION_STATE_FAILED)
    assert how_ended(failed) == "failed"
    failed.error.message = "no  login.\n"
    assert how_ended(failed) == "failed: no login"
    notice = ended_notice("01" * 40, "fix", how_ended(failed), "main")
    assert notice.text == (
        "The session with fix failed: no login. From here on main answers you again."
    )
    assert len(notice.notice_id) == 64
    assert len(ended_notice("S", "x" * 64, "y" * 500, "z").text) <= 300


def test_what_is_stored_reads_back() -> None:
    for binding in (Binding("r", "claude"), Binding()):
        assert Binding.read(binding.write()) == binding
    assert Binding.read("") == Binding()
    assert Notice.read(NOTICE.write()) == NOTICE
    assert Notice.read("") is None

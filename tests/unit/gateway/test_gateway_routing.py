"""What is decided about a message."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from conveyor.agent.v1 import task_pb2
from conveyor.common.v1 import content_pb2
from conveyor.gateway.v1 import gateway_service_pb2 as gw
from conveyor.scheduler.v1 import lane_pb2, run_pb2
from gateway_svc.config import routing_rules
from gateway_svc.domain.keys import own_key, parse_key
from gateway_svc.domain.reply_route import ReplyAddress, decode_address
from gateway_svc.domain.routing import (
    KnownSession,
    Routed,
    RoutingRules,
    check_request_id,
    checked_message,
    choose_session,
    lowered,
    message_id_for,
    route,
)
from svckit.errors import AgentNotFound, InvalidField, PayloadTooLarge
from svckit.settings import load

TOML = """
[agents.defaults]
queue_mode = "steer"
[agents.defaults.subagents]
max_spawn_depth = 2
budget = { max_tokens = 1000, max_wall_seconds = 60 }
[agents.list.main]
[agents.list.sales]
queue_mode = "followup"
subagents = { max_children_per_agent = 1 }
[channels.web]
kind = "web"
agent = "sales"
queue_mode = "followup"
[[routes]]
agent = "sales"
channel = "http"
peer = "vip"
[lanes.session]
cap = 7
debounce_ms = 1500
"""


@pytest.fixture
def rules(tmp_path: Path) -> RoutingRules:
    path = tmp_path / "conveyor.toml"
    path.write_text(TOML)
    return routing_rules(load(path, {}))


def user(text: str = "hello") -> content_pb2.Message:
    part = content_pb2.ContentPart(text=text)
    return content_pb2.Message(role=content_pb2.ROLE_USER, parts=[part])


def routed(
    rules: RoutingRules, key: str, known: KnownSession | None = None, **inbound: Any
) -> Routed:
    return route(
        gw.InboundMessage(message=user(), **inbound),
        request_id="r1",
        key=parse_key(key),
        known=known,
        rules=rules,
        address=ReplyAddress("http", "x"),
    )


@pytest.mark.parametrize(
    ("key", "asked", "agent"),
    [
        ("agent:sales:http:direct:ann", "", "sales"),
        ("agent:sales:http:direct:ann", "main", "main"),
        ("ann", "", "main"),
        ("vip", "", "sales"),
        ("ann", "sales", "sales"),
    ],
)
def test_who_answers(rules: RoutingRules, key: str, asked: str, agent: str) -> None:
    found = routed(rules, key, agent_id=asked)
    assert found.agent_id == agent
    task = task_pb2.AgentTask()
    assert found.spec.task.Unpack(task)
    assert task.agent_id == agent


ROUTED = """
[agents.list.main]
[agents.list.sales]
[agents.list.support]
[channels.http]
kind = "http"
agent = "support"
[[routes]]
agent = "sales"
channel = "phone"
account = "shop"
[[routes]]
agent = "support"
channel = "phone"
peer = "4711"
[[routes]]
agent = "sales"
peer = "vip"
"""


@pytest.mark.parametrize(
    ("sender", "asked", "key"),
    [
        (ReplyAddress("phone", "ann"), "", "agent:main:phone:direct:ann"),
        (ReplyAddress("phone", "4711"), "", "agent:support:phone:direct:4711"),
        # The first route that matches counts.
        (ReplyAddress("phone", "4711", account="shop"), "", "agent:sales:phone:direct@shop:4711"),
        (ReplyAddress("phone", "ann", account="desk"), "", "agent:main:phone:direct@desk:ann"),
        (ReplyAddress("phone", "vip"), "", "agent:sales:phone:direct:vip"),
        (ReplyAddress("phone", "vip"), "main", "agent:main:phone:direct:vip"),
        # Who calls without a session key is a peer as well.
        (ReplyAddress("http", "vip"), "", "agent:sales:http:direct:vip"),
        (ReplyAddress("http", "local"), "", "agent:support:http:direct:local"),
    ],
)
def test_a_message_without_a_session_key_goes_where_the_routes_say(
    tmp_path: Path, sender: ReplyAddress, asked: str, key: str
) -> None:
    path = tmp_path / "conveyor.toml"
    path.write_text(ROUTED)
    rules = routing_rules(load(path, {}))
    inbound = gw.InboundMessage(message=user(), agent_id=asked)
    found = choose_session(inbound, sender=sender, rules=rules, field_name="session_key")
    assert found.text == key
    assert found.peer == sender.peer
    # Replies go out through the account that was written to.
    decided = route(inbound, request_id="r", key=found, known=None, rules=rules, address=sender)
    assert decode_address(decided.spec.reply_route.address) == sender
    assert (decided.agent_id, decided.customer_key) == (
        found.agent_id,
        f"{sender.channel}:{sender.peer}",
    )


def test_an_account_cannot_pretend_to_be_a_peer() -> None:
    with pytest.raises(ValueError, match="colon"):
        own_key("main", "ann", "phone", "shop:bob")


def test_nobody_answers(rules: RoutingRules) -> None:
    with pytest.raises(AgentNotFound) as refused:
        routed(rules, "agent:nobody:http:direct:ann")
    assert refused.value.metadata == {"agentId": "nobody"}


def test_a_known_session_decides_itself(rules: RoutingRules) -> None:
    known = KnownSession("sales", "acme", 4)
    found = routed(rules, "ann", known, agent_id="main", customer_key="other")
    assert (found.agent_id, found.customer_key) == ("sales", "acme")
    assert found.spec.session_epoch == 4


@pytest.mark.parametrize(
    ("key", "asked", "mode"),
    [
        ("ann", 0, lane_pb2.QUEUE_MODE_STEER),
        ("vip", 0, lane_pb2.QUEUE_MODE_FOLLOWUP),
        ("agent:main:web:direct:ann", 0, lane_pb2.QUEUE_MODE_FOLLOWUP),
        ("ann", lane_pb2.QUEUE_MODE_FOLLOWUP, lane_pb2.QUEUE_MODE_FOLLOWUP),
    ],
)
def test_what_a_message_does_when_the_session_is_busy(
    rules: RoutingRules, key: str, asked: int, mode: int
) -> None:
    policy = routed(rules, key, queue_mode=asked).policy
    assert policy.mode == mode
    assert policy.cap == 7
    assert policy.debounce.ToMilliseconds() == 1500


@pytest.mark.parametrize("key", ["ann", "vip", "agent:main:web:direct:ann"])
def test_a_message_says_more_than_its_session_and_that_more_than_the_rest(
    rules: RoutingRules, key: str
) -> None:
    collect, interrupt = lane_pb2.QUEUE_MODE_COLLECT, lane_pb2.QUEUE_MODE_INTERRUPT
    known = KnownSession("main", "acme", 0, queue_mode=collect)
    assert routed(rules, key, known).policy.mode == collect
    assert routed(rules, key, known, queue_mode=interrupt).policy.mode == interrupt
    with pytest.raises(InvalidField) as refused:
        routed(rules, key, known, queue_mode=9)
    assert refused.value.metadata == {"field": "inbound.queue_mode"}


def test_no_debounce_is_said_to_the_scheduler_too(tmp_path: Path) -> None:
    """Left out, it took a second."""
    path = tmp_path / "conveyor.toml"
    path.write_text("[lanes.session]\ndebounce_ms = 0\n")
    policy = routed(routing_rules(load(path, {})), "ann").policy
    assert policy.HasField("debounce")
    assert policy.debounce.ToMilliseconds() == 0


def test_caps_follow_the_agent(rules: RoutingRules) -> None:
    main = routed(rules, "ann").spec.budget
    assert (main.max_depth, main.max_children, main.max_tokens) == (2, 5, 1000)
    assert main.max_wall_time.seconds == 60
    assert routed(rules, "vip").spec.budget.max_children == 1


def test_caps_can_be_lowered_but_not_raised() -> None:
    configured = run_pb2.Budget(max_depth=2, max_children=5)
    configured.max_wall_time.seconds = 60
    asked = run_pb2.Budget(max_depth=0, max_children=9, max_tokens=10, reply_reserve=0.2)
    asked.max_wall_time.seconds = 90
    found = lowered(asked, configured)
    assert found.HasField("max_depth")
    assert (found.max_depth, found.max_children, found.max_tokens) == (0, 5, 10)
    assert found.max_wall_time.seconds == 60
    assert found.reply_reserve == 0.2
    asked.max_wall_time.seconds = 30
    assert lowered(asked, configured).max_wall_time.seconds == 30


def test_message_ids_follow_from_request_ids() -> None:
    assert message_id_for("abc") == "in-abc"
    long = [message_id_for("x" * 100 + tail) for tail in ("a", "b")]
    assert len(set(long)) == 2
    assert all(len(found) <= 64 for found in long)
    message = checked_message(user(), request_id="abc", field_name="m")
    assert message.message_id == "in-abc"
    given = user()
    given.message_id = "mine"
    assert checked_message(given, request_id="abc", field_name="m").message_id == "mine"


@pytest.mark.parametrize("text", ["", "a b", "a\n", "x" * 129, "01ARZ3NDEKTSV4RRFFQ69G5FAV/1.1.1"])
def test_what_is_no_request_id(text: str) -> None:
    with pytest.raises(InvalidField):
        check_request_id(text)


@pytest.mark.parametrize("text", ["a", "x" * 128, "a/b", "web:1", "01ARZ3NDEKTSV4RRFFQ69G5FAV"])
def test_what_is_a_request_id(text: str) -> None:
    check_request_id(text)


@pytest.mark.parametrize(
    ("part", "field"),
    [
        (content_pb2.ContentPart(), "m.parts[0]"),
        (content_pb2.ContentPart(blob=content_pb2.Blob(data=b"x")), "m.parts[0].blob.media_type"),
        (
            content_pb2.ContentPart(resource=content_pb2.Resource(uri="x")),
            "m.parts[0].resource.uri",
        ),
    ],
)
def test_bad_parts_are_named(part: content_pb2.ContentPart, field: str) -> None:
    message = content_pb2.Message(role=content_pb2.ROLE_USER, parts=[part])
    with pytest.raises(InvalidField) as refused:
        checked_message(message, request_id="r", field_name="m")
    assert refused.value.metadata["field"] == field


@pytest.mark.parametrize("texts", [[""], [" \n\t"], ["", "\u3000"]])
def test_a_blank_message_is_refused_before_it_spoils_the_conversation(texts: list[str]) -> None:
    parts = [content_pb2.ContentPart(text=text) for text in texts]
    message = content_pb2.Message(role=content_pb2.ROLE_USER, parts=parts)
    with pytest.raises(InvalidField, match="blank") as refused:
        checked_message(message, request_id="r", field_name="m")
    assert refused.value.metadata["field"] == "m.parts"
    message.parts.add().resource.uri = "https://example.com/cat.png"  # a picture without words
    checked_message(message, request_id="r", field_name="m")


def test_sizes_are_counted_in_bytes() -> None:
    with pytest.raises(PayloadTooLarge) as refused:
        checked_message(user("ü" * (128 * 1024 + 1)), request_id="r", field_name="m")
    assert refused.value.metadata["bytes"] == str(256 * 1024 + 2)
    whole = user("x" * 256 * 1024)
    checked_message(whole, request_id="r", field_name="m")
    for _ in range(4):
        whole.parts.add(text="x" * 256 * 1024)
    with pytest.raises(PayloadTooLarge):
        checked_message(whole, request_id="r", field_name="m")

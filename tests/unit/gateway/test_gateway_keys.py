"""Session keys, customers and the addresses of replies."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conveyor.gateway.v1 import session_pb2
from gateway_svc.domain.keys import default_customer, own_key, parse_key
from gateway_svc.domain.reply_route import ReplyAddress, decode_address, encode_address
from svckit.errors import InvalidField

CONVERSATION = session_pb2.SESSION_KIND_CONVERSATION
SUBAGENT = session_pb2.SESSION_KIND_SUBAGENT
ACP = session_pb2.SESSION_KIND_ACP


@pytest.mark.parametrize(
    ("text", "kind", "agent", "channel", "peer", "parent"),
    [
        ("agent:main:http:direct:ann", CONVERSATION, "main", "http", "ann", ""),
        ("agent:main:slack:thread:C1:17.2", CONVERSATION, "main", "slack", "C1:17.2", ""),
        ("alice", CONVERSATION, "", "http", "alice", ""),
        ("agent:main", CONVERSATION, "main", "http", "agent:main", ""),
        ("a:subagent:1", SUBAGENT, "", "", "", "a"),
        ("a:subagent:1:subagent:2", SUBAGENT, "", "", "", "a:subagent:1"),
        ("a:subagent:1:acp:2", ACP, "", "", "", "a:subagent:1"),
        ("agent:main:http:direct:x:acp:1", ACP, "main", "", "", "agent:main:http:direct:x"),
        ("agent:main:acp:7", ACP, "main", "", "", ""),
    ],
)
def test_a_key_says_what_its_session_is(
    text: str, kind: int, agent: str, channel: str, peer: str, parent: str
) -> None:
    key = parse_key(text)
    assert (key.kind, key.agent_id, key.parent) == (kind, agent, parent)
    assert (key.channel, key.peer) == (channel, peer)


@pytest.mark.parametrize("text", ["", "a b", "a\nb", "a\u00a0b", "k" * 257, "a\x00"])
def test_what_can_name_no_session(text: str) -> None:
    with pytest.raises(InvalidField) as refused:
        parse_key(text, "here")
    assert refused.value.metadata["field"] == "here"


@given(st.text(min_size=1, max_size=256))
def test_any_text_is_a_key_or_refused(text: str) -> None:
    try:
        key = parse_key(text)
    except InvalidField:
        return
    assert key.text == text
    if key.is_conversation:
        assert 1 <= len(default_customer(key)) <= 128


def test_long_peers_stay_apart() -> None:
    customers = {default_customer(parse_key("p" * 200 + tail)) for tail in ("a", "b")}
    assert len(customers) == 2
    assert all(len(customer) == 128 for customer in customers)


def test_the_own_session_of_a_caller() -> None:
    key = parse_key(own_key("main", "local"))
    assert (key.agent_id, key.channel, key.peer) == ("main", "http", "local")
    assert default_customer(key) == "http:local"


@given(st.builds(ReplyAddress, st.text(), st.text(), st.text()))
def test_addresses_come_back(address: ReplyAddress) -> None:
    assert decode_address(encode_address(address)) == address


@given(st.text())
def test_other_addresses_are_nobodys(text: str) -> None:
    found = decode_address(text)
    assert found is None or isinstance(found, ReplyAddress)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"channel": 1, "peer": ""}', "[" * 100_000])
def test_broken_addresses_are_nobodys(text: str) -> None:
    assert decode_address(text) is None


def test_children_of_long_keys_can_be_named() -> None:
    key = "k" * 256
    for _ in range(3):
        key += ":subagent:01HZZZZZZZZZZZZZZZZZZZZZZZ"
    assert not parse_key(key).is_conversation
    with pytest.raises(InvalidField, match="1 to 256"):
        parse_key("k" * 257)

"""Resume tokens."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway_svc.domain.tokens import (
    Positions,
    decode_token,
    encode_token,
    flow_subject,
    session_subject,
)
from svckit.errors import InvalidField

numbers = st.integers(min_value=0, max_value=2**63 - 1)
places = st.builds(
    Positions,
    st.none() | numbers,
    st.none() | numbers,
    st.dictionaries(st.text(max_size=26), numbers, max_size=5),
)


@given(places, st.text())
def test_a_token_says_where_a_watcher_was(positions: Positions, key: str) -> None:
    subject = session_subject(key)
    token = encode_token(subject, positions)
    assert decode_token(subject, token) == positions
    assert token == encode_token(subject, positions)
    assert token.isascii()
    assert not set(token) & set("+/=\n ")


@given(st.text())
def test_any_other_text_is_refused(text: str) -> None:
    if not text:
        return
    with pytest.raises(InvalidField):
        decode_token("s", text)


@pytest.mark.parametrize(
    "content",
    [
        [],
        {},
        {"v": 2, "of": "x"},
        {"v": 1},
        {"v": 1, "of": "x", "s": -1},
        {"v": 1, "of": "x", "s": True},
        {"v": 1, "of": "x", "s": 2**63},
        {"v": 1, "of": "x", "p": []},
        {"v": 1, "of": "x", "p": 5},
        {"v": 1, "of": "x", "f": []},
        {"v": 1, "of": "x", "f": {"a": "b"}},
    ],
)
def test_forged_tokens_are_refused(content: object) -> None:
    token = base64.urlsafe_b64encode(json.dumps(content).encode()).decode()
    with pytest.raises(InvalidField):
        decode_token("s", token)


def test_deep_and_long_tokens_are_refused() -> None:
    for raw in (b"[" * 12_000, b"0" * 20_000):
        with pytest.raises(InvalidField):
            decode_token("s", base64.urlsafe_b64encode(raw).decode())


def test_a_token_is_for_one_thing() -> None:
    token = encode_token(session_subject("x"), Positions(sequence=3))
    with pytest.raises(InvalidField) as refused:
        decode_token(flow_subject("x"), token)
    assert refused.value.metadata["field"] == "resume_token"


@given(places, st.integers(0, 10), st.integers(0, 10))
def test_places_only_move_on(positions: Positions, sequence: int, position: int) -> None:
    after = positions.advanced(sequence=sequence, position=position)
    assert (after.sequence or 0) >= (positions.sequence or 0)
    assert (after.position or 0) >= (positions.position or 0)
    assert after.flows == positions.flows
    if positions.begun:
        assert after.begun

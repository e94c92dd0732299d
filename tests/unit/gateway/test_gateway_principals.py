"""Who calls: tokens, scopes, request ids of customers, and whose a new session may be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway_svc.auth import LOCAL, Door, Principal, Scope, acting, caller
from gateway_svc.domain.keys import parse_key
from gateway_svc.domain.principals import Tokens, may_begin, own_request_id
from gateway_svc.domain.rates import Rates
from svckit.errors import RateLimited, ScopeMissing, Unauthenticated

ANN = Principal("ann", Scope.SEND, "acme")
BOB = Principal("bob", Scope.CONTROL, "http:bob")
ROOT = Principal("root", Scope.ADMIN)
TOKENS = Tokens({"a" * 32: ANN, "b" * 32: BOB})


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_a_token_is_its_holder(scheme: str) -> None:
    assert TOKENS.holder([f"{scheme} {'a' * 32}"]) is ANN
    assert TOKENS.holder([f"{scheme} {'b' * 32}"]) is BOB


@pytest.mark.parametrize(
    "credentials",
    [
        [],
        [""],
        ["Bearer"],
        ["Bearer "],
        ["a" * 32],
        [f"Basic {'a' * 32}"],
        [f"Bearer {'c' * 32}"],
        [f"Bearer {'a' * 31}"],
        [f"Bearer {'a' * 33}"],
        ["Bearer " + "a" * 100_000],
        ["Bearer \udcff"],
        [f"Bearer {'a' * 32}", f"Bearer {'a' * 32}"],
    ],
)
def test_everything_else_is_nobody(credentials: list[str]) -> None:
    with pytest.raises(Unauthenticated) as failed:
        TOKENS.holder(credentials)
    assert "aaaa" not in str(failed.value)


def test_without_tokens_everybody_is_the_local_admin() -> None:
    door = Door({}, lambda: 0.0)
    assert door.admit([]) is LOCAL
    assert door.admit(["Bearer of whatever"]) is LOCAL


def test_what_nobody_admitted_has_no_caller() -> None:
    with pytest.raises(LookupError):
        caller()
    with acting(ANN):
        assert caller() is ANN
    with pytest.raises(LookupError):
        caller()


def test_each_scope_includes_those_before_it() -> None:
    BOB.require(Scope.READ)
    BOB.require(Scope.CONTROL)
    with pytest.raises(ScopeMissing) as failed:
        BOB.require(Scope.ADMIN)
    assert failed.value.metadata == {"scope": "admin"}


@given(st.text(min_size=1, max_size=128), st.text(min_size=1, max_size=128))
def test_request_ids_of_two_customers_never_meet(one: str, other: str) -> None:
    marked = ANN.request_id(one)
    assert marked != BOB.request_id(other)
    assert ANN.request_id(marked) == marked, "marking twice changes nothing"
    assert len(marked) <= 128
    if len(one) <= 100 and own_request_id(one) == one:
        assert own_request_id(marked) == one
    if one != other:
        assert marked != ANN.request_id(other) or own_request_id(one) != one
    assert ROOT.request_id(one) == one


@pytest.mark.parametrize(
    ("key", "who", "may"),
    [
        ("agent:main:http:direct:ann", ANN, True),
        ("agent:main:http:direct:ann", BOB, False),
        ("agent:main:http:direct:ann", ROOT, True),
        ("agent:main:http:direct:somebody", BOB, True),
        ("ann", BOB, False),
        ("notes", BOB, True),
        # People of a channel write there themselves, and begin their own sessions.
        ("agent:main:whatsapp:direct:4915112345678", BOB, False),
        ("agent:main:whatsapp:direct:4915112345678", ROOT, True),
        ("agent:main:hook:direct:ci", BOB, False),
        ("agent:main:hook:direct:ci", Principal("hook:ci", Scope.SEND, "c", is_hook=True), True),
    ],
)
def test_nobody_begins_the_session_of_another(key: str, who: Principal, may: bool) -> None:
    assert may_begin(parse_key(key), who, [ANN, BOB, ROOT]) is may


def test_tokens_of_one_customer_share_its_sessions() -> None:
    phone = Principal("phone", Scope.SEND, "acme")
    assert may_begin(parse_key("agent:main:http:direct:ann"), phone, [ANN, phone])


@given(st.integers(1, 600), st.lists(st.floats(0, 20), min_size=1, max_size=100))
def test_never_more_than_twice_the_rate_in_a_minute(rate: int, pauses: list[float]) -> None:
    rates, now, taken = Rates(), 0.0, []
    for pause in pauses:
        now += pause
        if rates.take("ann", rate, now) == 0:
            taken.append(now)
        assert sum(at > now - 60 for at in taken) <= 2 * rate + 1


def test_a_minute_of_calls_at_once_then_one_at_a_time() -> None:
    rates = Rates()
    assert [rates.take("ann", 3, 100.0) for _ in range(3)] == [0, 0, 0]
    wait = rates.take("ann", 3, 100.0)
    assert 19 < wait <= 20
    assert rates.take("bob", 3, 100.0) == 0, "each has its own"
    assert rates.take("ann", 3, 100.0 + wait) == 0
    assert rates.take("ann", 3, 100.0 + wait) > 0
    assert all(rates.take("eve", 0, 100.0) == 0 for _ in range(1000)), "0 is no limit"


def test_the_refusal_says_the_limit_and_when_to_come_back() -> None:
    door = Door({"a" * 32: Principal("ann", Scope.READ, "c", requests_per_minute=1)}, lambda: 5.0)
    door.admit(["Bearer " + "a" * 32])
    with pytest.raises(RateLimited) as failed:
        door.admit(["Bearer " + "a" * 32])
    assert failed.value.metadata == {"limit": "1", "windowSeconds": "60"}
    assert failed.value.retry_after == pytest.approx(60)

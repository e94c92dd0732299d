"""Signatures and templates of hooks."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway_svc.domain.signatures import key_of, verified
from gateway_svc.domain.templates import NoValue, Template, for_key, value_at

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
ID, AT, BODY = "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}'
KEY = key_of(SECRET, "standard")
OTHER = b"another key of 32 bytes, at least"


def headers(**changed: str) -> dict[str, str]:
    # The example of the specification's own libraries.
    return {
        "webhook-id": ID,
        "webhook-timestamp": str(AT),
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    } | {name.replace("_", "-"): value for name, value in changed.items()}


def standard(
    given: Mapping[str, str], body: bytes = BODY, now: float = AT, *keys: bytes
) -> str | None:
    return verified("standard", keys or (KEY,), given, body, now=now, tolerance=300)


def signed(call_id: str, at: str, body: bytes, key: bytes = KEY) -> str:
    content = f"{call_id}.{at}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()


def test_the_example_of_the_specification() -> None:
    assert standard(headers()) == ID
    assert standard(headers(), BODY, AT, OTHER, KEY) == ID, "while one secret replaces another"
    more = "v1a,AAAA v1,AAAA= " + headers()["webhook-signature"]
    assert standard(headers(webhook_signature=more)) == ID


@pytest.mark.parametrize("late", [-300, 300])
def test_in_time(late: int) -> None:
    assert standard(headers(), BODY, AT + late) == ID


@pytest.mark.parametrize(
    ("given", "body", "now"),
    [
        ({}, BODY, AT),
        (headers(webhook_signature=""), BODY, AT),
        (headers(webhook_signature="v1,"), BODY, AT),
        (headers(webhook_signature="v1"), BODY, AT),
        (headers(webhook_signature=signed(ID, str(AT), BODY, OTHER)), BODY, AT),
        (headers(webhook_signature=headers()["webhook-signature"].replace("v1,", "v2,")), BODY, AT),
        (headers(webhook_id="msg_other"), BODY, AT),
        (headers(webhook_timestamp=str(AT + 1)), BODY, AT),
        (headers(), BODY + b" ", AT),
        (headers(), BODY, AT + 301),
        (headers(), BODY, AT - 301),
        (headers(webhook_timestamp="", webhook_signature=signed(ID, "", BODY)), BODY, AT),
        (headers(webhook_timestamp="1e9", webhook_signature=signed(ID, "1e9", BODY)), BODY, AT),
        (headers(webhook_timestamp="٣", webhook_signature=signed(ID, "٣", BODY)), BODY, 3),
        # With a dot the border between id and time could be moved.
        (headers(webhook_id="a.b", webhook_signature=signed("a.b", str(AT), BODY)), BODY, AT),
        (headers(webhook_id="", webhook_signature=signed("", str(AT), BODY)), BODY, AT),
    ],
)
def test_everything_else_is_refused(given: dict[str, str], body: bytes, now: float) -> None:
    assert standard(given, body, now) is None


def test_without_a_key_nobody_has_signed() -> None:
    nobody = base64.b64encode(hmac.digest(b"\0" * 32, f"{ID}.{AT}.".encode() + BODY, "sha256"))
    given = headers(webhook_signature=f"v1,{nobody.decode()}")
    assert verified("standard", (), given, BODY, now=AT, tolerance=300) is None
    plain = hmac.digest(b"\0" * 32, BODY, "sha256").hex()
    given = {"x-hub-signature-256": f"sha256={plain}"}
    assert verified("github", (), given, BODY, now=AT, tolerance=300) is None


def test_the_example_of_github() -> None:
    key = key_of("It's a Secret to Everybody", "github")
    right = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    body = b"Hello, World!"

    def called(signature: str, body: bytes = body) -> str | None:
        given = {"x-hub-signature-256": signature, "x-github-delivery": "not signed"}
        return verified("github", (key,), given, body, now=0, tolerance=0)

    assert called(right) == hashlib.sha256(body).hexdigest(), "known by what is signed"
    for wrong in ("", right[:-1], right.replace("sha256", "sha1"), right[7:], "sha256=" + "0" * 64):
        assert called(wrong) is None
    assert called(right, b"Hello, World?") is None


@pytest.mark.parametrize(
    ("secret", "scheme", "problem"),
    [
        ("whsec_not base64", "standard", "base64"),
        ("whsec_" + "A" * 16, "standard", "16 bytes"),
        ("", "standard", "16 bytes"),
        ("short", "github", "16 bytes"),
    ],
)
def test_secrets_that_are_none(secret: str, scheme: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as failed:
        key_of(secret, scheme)
    assert not secret or secret not in str(failed.value)


VALUES: dict[str, Any] = {
    "action": "opened",
    "repository": {"full_name": "acme/web", "private": True},
    "commits": [{"message": "first"}, {"message": "{action} twice"}],
    "number": 7,
    "nothing": None,
}


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("plain", "plain"),
        ("{action} in {repository.full_name}", "opened in acme/web"),
        ("{commits.1.message}", "{action} twice"),
        ("{{{number}}}", "{7}"),
        ("{repository.private}{nothing}", "true"),
        ("{commits.0}", '{"message":"first"}'),
        ("[{commits.9.message?}{no.way?}]", "[]"),
    ],
)
def test_what_a_template_gives(text: str, filled: str) -> None:
    assert Template.parse(text).fill(VALUES) == filled


@pytest.mark.parametrize("text", ["{", "}", "a { b", "{}", "{a..b}", "{.}", "{?}", "{a{b}c}"])
def test_templates_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="has"):
        Template.parse(text)


@pytest.mark.parametrize("way", ["no", "action.more", "commits.2", "commits.-1", "commits.x"])
def test_what_is_missing_is_named(way: str) -> None:
    assert value_at(way, VALUES) is None
    with pytest.raises(NoValue, match=way):
        Template.parse(f"{{{way}}}").fill(VALUES)


@given(st.text())
def test_a_text_without_places_stays_what_it_is(text: str) -> None:
    escaped = text.replace("{", "{{").replace("}", "}}")
    assert Template.parse(escaped).fill({}) == text


@given(st.text(), st.text())
def test_values_in_keys_stay_apart_and_change_no_key(one: str, other: str) -> None:
    shown = for_key(one)
    assert (shown == for_key(other)) == (one == other)
    assert ":" not in shown
    assert shown.isprintable()
    assert " " not in shown


def test_a_value_of_too_many_levels_is_none() -> None:
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    assert value_at("a", {"a": deep}) is None
    with pytest.raises(NoValue):
        Template.parse("{a}").fill({"a": deep})

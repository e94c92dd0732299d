"""How long a provider asks to be left alone, in all forms of the headers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_svc.domain.retryafter import LONGEST, seconds

NOW = 1_800_000_000.0  # 2027-01-15 08:00:00 UTC


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7),
        ({"retry-after": " 1.5 "}, 1.5),
        ({"retry-after": "0"}, 0),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"retry-after": "Fri, 15 Jan 2027 08:00:20 GMT"}, 20),
        ({"retry-after": "Friday, 15-Jan-27 08:00:20 GMT"}, 20),
        ({"retry-after": "Fri Jan 15 08:00:20 2027"}, 20),
        ({"retry-after": "Fri, 15 Jan 2027 10:00:20 +0200"}, 20),
        ({"retry-after": "Fri, 15 Jan 2027 07:59:00 GMT"}, 0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "1e3"}, None),
        ({"retry-after": "Mon, 99 Foo 2027 99:99:99 GMT"}, None),
        # OpenAI and Groq: only the limit that is used up counts.
        ({"x-ratelimit-reset-tokens": "6m0s", "x-ratelimit-remaining-tokens": "0"}, 360),
        ({"x-ratelimit-reset-requests": "120ms", "x-ratelimit-remaining-requests": "0"}, 0.12),
        ({"x-ratelimit-reset-tokens": "6m0s", "x-ratelimit-remaining-tokens": "12"}, None),
        ({"x-ratelimit-reset-tokens": "6m0s"}, None),
        ({"x-ratelimit-reset-tokens": "6m!", "x-ratelimit-remaining-tokens": "0"}, None),
        # Anthropic: moments in RFC 3339.
        (
            {
                "anthropic-ratelimit-input-tokens-reset": "2027-01-15T08:00:30Z",
                "anthropic-ratelimit-input-tokens-remaining": "0",
                "anthropic-ratelimit-requests-reset": "2027-01-15T08:00:02Z",
                "anthropic-ratelimit-requests-remaining": "0",
            },
            30,
        ),
        (
            {
                "anthropic-ratelimit-requests-reset": "2027-01-15T09:00:02+01:00",
                "anthropic-ratelimit-requests-remaining": "0",
            },
            2,
        ),
        # OpenRouter: milliseconds since 1970; others: seconds since 1970, or seconds to wait.
        ({"x-ratelimit-reset": "1800000012000"}, 12),
        ({"x-ratelimit-reset": "1800000012"}, 12),
        ({"ratelimit-reset": "50"}, 50),
        # A mistake of somebody's clock says nothing, and the next form is asked.
        ({"retry-after": "9999999", "ratelimit-reset": "50"}, 50),
        ({"retry-after": "Fri, 15 Jan 2038 08:00:20 GMT"}, None),
    ],
)
def test_every_form(headers: dict[str, str], wait: float | None) -> None:
    assert seconds(headers, NOW) == pytest.approx(wait)


NAMES = st.sampled_from(
    [
        "retry-after-ms",
        "retry-after",
        "x-ratelimit-reset",
        "x-ratelimit-reset-tokens",
        "x-ratelimit-remaining-tokens",
        "anthropic-ratelimit-requests-reset",
        "anthropic-ratelimit-requests-remaining",
    ]
)
VALUES = (
    st.text("0123456789.-:TZ+smhGMT ", max_size=24)
    | st.integers(-5, 10**17).map(str)
    | st.floats().map(str)
    | st.datetimes().map(lambda moment: moment.isoformat() + "Z")
)


@settings(max_examples=60)
@given(st.dictionaries(NAMES, VALUES | st.just("0")))
def test_whatever_a_server_sends_the_answer_is_a_sane_number_or_none(
    headers: dict[str, str],
) -> None:
    found = seconds(headers, NOW)
    assert found is None or 0 <= found <= LONGEST

"""`provider-errors.md`: what an error of a model provider becomes."""

from __future__ import annotations

from typing import get_args

from agent_svc.models.base import Cause
from agent_svc.models.judging import UNAVAILABLE, WORDS
from docgen import NOTE

# What providers send. One per cause; a new cause needs its line here.
WHEN: dict[str, str] = {
    "throttled": "429; Google `RESOURCE_EXHAUSTED` of a minute",
    "overloaded": "503, 529; Anthropic `overloaded_error`; Google `UNAVAILABLE`",
    "server_error": "any other 5xx; 408, 409, 425",
    "timeout": "no first piece within 120 s, or no whole reply within 600 s",
    "connection": "refused, reset or closed before the first piece of a reply; an unknown host",
    "broken_stream": "the connection or the reply broke off after its first piece",
    "unreadable": "200 with something else than a reply, or a reply that ends before it begins",
    "auth": "401, 403; Google `API_KEY_INVALID`",
    "quota": "402; 429 with `insufficient_quota` and the like; a daily quota of Google",
    "not_found": "404: the model, or the path of a wrong `base_url`",
    "too_long": "`context_length_exceeded`, 413, and the words that servers without codes use",
    "content_refused": "a content filter stopped the prompt, or the reply before its first piece",
    "bad_request": "400, 422 for any other reason",
    "not_set_up": "no key in the environment, the extra is not installed, or a request that the provider cannot express",
}

INTRO = """# Provider errors

What a model provider sends when it sends no reply, and what becomes of it. The `cause` is in the metadata of
`MODEL_UNAVAILABLE` and `MODEL_REJECTED` ([errors](errors.md)), with `providerId` and `model`. The same holds for every
kind of provider. Texts of a provider are read where it has no codes, and shown nowhere.

| Cause | Reason | In words | When | What follows |
|---|---|---|---|---|
"""
THROTTLED = "told to the scheduler; asked again at the time it gives"
AGAIN = "asked again, 3 times in all with short pauses; then the next model; then the turn, later"
BROKEN = "the turn is tried again later: its text was shown, so no other model goes on with it"
NEXT = "the next model; without one the run fails"

OUTRO = """
## In which order models are asked

The run's own model (or the agent's), then `fallback_models`. Each is asked again as the table says before the next
one's turn comes. A provider that cools down for longer than a second, because of a 429 or of repeated trouble seen by
any worker, is passed over while another model is left; when every model cools down or has failed, the run waits for
the one that is back first, without a slot. A wait that `requests_per_minute` or `tokens_per_minute` of the
configuration asks for is no reason to pass over: it is waited for. With `strict_model` a model that was asked for by
name is never replaced.

`Run.requested_model` and `Run.effective_model` say who was asked and who answered, `conveyor flow show` and
`/subagents` show both when they differ, and a `note_added` event with the code `model_fallback` tells it once per turn.

## How long a provider asks to be left alone

The first of these that a refusal holds, at most a day:

| Header | Form |
|---|---|
| `retry-after-ms` | milliseconds |
| `retry-after` | seconds, with or without a fraction, or a date in any form of HTTP |
| `x-ratelimit-reset-*` (OpenAI, Groq) | a duration such as `6m0s`, of those limits whose `-remaining-` is 0 |
| `anthropic-ratelimit-*-reset` | a time in RFC 3339, of those limits whose `-remaining` is 0 |
| `x-ratelimit-reset`, `ratelimit-reset` | seconds, or a moment in seconds or milliseconds since 1970 |
| `google.rpc.RetryInfo` in the body (Google) | a duration |
"""


def render() -> str:
    """The document."""
    rows = []
    for cause in get_args(Cause):
        unavailable = cause == "throttled" or cause in UNAVAILABLE
        follows = NEXT
        if unavailable:
            follows = {"throttled": THROTTLED, "broken_stream": BROKEN}.get(cause, AGAIN)
        reason = "MODEL_UNAVAILABLE" if unavailable else "MODEL_REJECTED"
        rows.append(f"| `{cause}` | `{reason}` | {WORDS[cause]} | {WHEN[cause]} | {follows} |\n")
    return NOTE + INTRO + "".join(rows) + OUTRO

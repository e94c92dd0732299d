"""What an exception of a model call means. Together with `adapter`, all that knows pydantic-ai.

The table is in `docs/reference/provider-errors.md`. Texts of a provider are looked at here, for
want of codes, and go no further: they may hold parts of prompts or of credentials.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic_ai import exceptions as failures

from agent_svc.domain import retryafter
from agent_svc.models.base import Cause, Outcome


@dataclass(frozen=True)
class Verdict:
    """What an exception means. `why` is ours: the provider's text stays inside."""

    outcome: Outcome
    cause: Cause
    why: str
    http_status: int = 0
    retry_after: float | None = None


WORDS: dict[Cause, str] = {
    "throttled": "it takes no more requests now",
    "overloaded": "it is overloaded",
    "server_error": "it is in trouble",
    "timeout": "it took too long",
    "connection": "the connection failed",
    "broken_stream": "its reply broke off",
    "unreadable": "its reply could not be read",
    "auth": "the credential is not accepted",
    "quota": "its quota or credit is used up",
    "not_found": "it does not have this model, or the base URL is wrong",
    "too_long": "the conversation is too long for the model",
    "content_refused": "its content filter stopped the reply",
    "bad_request": "it does not take this request",
    "not_set_up": "this build cannot express the request for it",
}
"""For people: what came back from the provider."""

_KINDS: Sequence[tuple[type[Exception] | tuple[type[Exception], ...], Cause]] = (
    (failures.ModelRateLimitError, "throttled"),
    (failures.ModelQuotaExceededError, "quota"),
    (failures.ModelContextWindowExceededError, "too_long"),
    (failures.ModelAuthenticationError, "auth"),
    (failures.ModelNotFoundError, "not_found"),
    (failures.ContentFilterError, "content_refused"),
    (failures.ModelRequestRejectedError, "bad_request"),
    (failures.UserError, "not_set_up"),
    (failures.ModelUnavailableError, "overloaded"),
    (failures.ModelServerError, "server_error"),
    ((failures.ModelTimeoutError, failures.ModelRequestTimeout, TimeoutError), "timeout"),
)
UNAVAILABLE: frozenset[Cause] = frozenset(
    {"overloaded", "server_error", "timeout", "connection", "broken_stream", "unreadable"}
)
# Servers without codes of their own say it in words: llama.cpp, LM Studio, Ollama, Anthropic.
_TOO_LONG = (
    "exceed_context_size",
    "context size",
    "context length",
    "context window",
    "prompt is too long",
    "input length and `max_tokens` exceed",
    "request_too_large",
)
_FILTERED = ("content_filter", "content_policy", "content management policy", "moderation")


def judge(err: Exception, *, started: bool, now: float) -> Verdict:
    """Say what an exception of a model call means.

    `started`: pieces of the reply had come. `now`: seconds since 1970, for dates in headers.
    """
    cause = _cause(err, started)
    outcome: Outcome = "rejected"
    if cause == "throttled":
        outcome = "throttled"
    elif cause in UNAVAILABLE:
        outcome = "unavailable"
    status = err.status_code if isinstance(err, failures.ModelHTTPError) else 0
    http = f" (HTTP {status})" if status else ""
    wait = _wait(err, now) if outcome != "rejected" else None
    return Verdict(outcome, cause, WORDS[cause] + http, status, wait)


def nothing(finish_reason: str) -> Verdict:
    """What it means that a reply ended without a text or a call.

    Stopped by a filter, another model may answer. Without any reason a proxy hides a failure, or
    the stream was cut off before its first piece.
    """
    if finish_reason == "content_filter":
        return Verdict("rejected", "content_refused", WORDS["content_refused"])
    return Verdict("unavailable", "unreadable", WORDS["unreadable"])


def _cause(err: Exception, started: bool) -> Cause:
    for kind, cause in _KINDS:
        if isinstance(err, kind):
            return _refined(err) if cause == "bad_request" else cause
    if isinstance(err, failures.ModelConnectionError):
        return "broken_stream" if started else "connection"
    if isinstance(err, failures.ModelHTTPError):
        return _by_status(err)
    return "broken_stream" if started else "unreadable"


def _by_status(err: failures.ModelHTTPError) -> Cause:
    """A status that the library has no class for."""
    if err.status_code in (408, 409, 425) or err.status_code >= 500:
        return "server_error"
    return _refined(err)


def _refined(err: Exception) -> Cause:
    """A refusal that only its words tell apart."""
    if not isinstance(err, failures.ModelAPIError):
        return "bad_request"
    said = " ".join(
        str(part).lower()
        for part in (err.provider_error_code, err.provider_error_type, err.body)
        if part is not None
    )
    if any(words in said for words in _TOO_LONG):
        return "too_long"
    if isinstance(err, failures.ModelHTTPError) and err.status_code == 413:
        return "too_long"
    if any(words in said for words in _FILTERED):
        return "content_refused"
    return "bad_request"


def _wait(err: Exception, now: float) -> float | None:
    if isinstance(err, failures.ModelHTTPError) and err.headers and not err.in_stream:
        wait = retryafter.seconds(err.headers, now)
        if wait is not None:
            return wait
    # For Google the library reads it from the body.
    return err.retry_after if isinstance(err, failures.ModelAPIError) else None

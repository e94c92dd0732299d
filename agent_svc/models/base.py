"""What a model is to the turn loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

from agent_svc.domain.prompt import Prompt
from agent_svc.domain.steps import StopReason, Usage
from svckit.errors import ServiceError

Outcome = Literal["throttled", "unavailable", "rejected"]
Cause = Literal[
    "throttled",
    "overloaded",
    "server_error",
    "timeout",
    "connection",
    "broken_stream",
    "unreadable",
    "auth",
    "quota",
    "not_found",
    "too_long",
    "content_refused",
    "bad_request",
    "not_set_up",
]
"""Why a provider gave no reply. Those from `auth` on are refusals for good."""


@dataclass(frozen=True)
class ModelReply:
    """A whole reply. `calls` are (tool name, JSON arguments) in order, without any provider id."""

    text: str
    calls: tuple[tuple[str, str], ...] = ()
    usage: Usage = field(default_factory=Usage)
    stop_reason: StopReason = "end_turn"
    # The model that answered, as the provider names it. Empty when it does not say.
    served: str = ""


class CallFailed(Exception):
    """A model call failed.

    `error` is what the run fails with when nothing helps: safe for any eye. `started` is True once
    the provider sent a piece of its reply: then the call may have been paid, and is not repeated
    within the turn. `retry_after` is what the provider asked for, in seconds. `cause` is empty when
    no provider is to blame.
    """

    def __init__(
        self,
        error: ServiceError,
        *,
        outcome: Outcome,
        started: bool = False,
        retry_after: float | None = None,
        cause: Cause | Literal[""] = "",
    ) -> None:
        super().__init__(error.message)
        self.error = error
        self.outcome = outcome
        self.started = started
        self.retry_after = retry_after
        self.cause = cause

    @property
    def too_long(self) -> bool:
        """True when the prompt does not fit into the model's context: a shorter one may."""
        return self.cause == "too_long"


class Model(Protocol):
    """One model of one provider."""

    @property
    def provider_id(self) -> str:
        """The provider in the configuration; `demo` for the demo models."""
        ...

    @property
    def provider_kind(self) -> str:
        """What kind of provider that is, as in the configuration; `demo` for the demo models."""
        ...

    @property
    def name(self) -> str:
        """The model without its provider."""
        ...

    async def prepare(self) -> None:
        """Load what a call needs, so that a call goes at its moment. Raises `CallFailed`."""
        ...

    async def ask(self, prompt: Prompt, on_text: Callable[[str], None]) -> ModelReply:
        """Ask once. Pieces of the text go to `on_text` as they come. Raises `CallFailed`."""
        ...


def full_name(model: Model) -> str:
    """Name as people write it: `provider:model`, or `demo`."""
    if model.provider_id == "demo":
        return model.name
    return f"{model.provider_id}:{model.name}"

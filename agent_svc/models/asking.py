"""Asks a model with our own retries, and its fallbacks when it stays away.

The SDKs' retries are off: theirs cannot tell whether a reply had begun. Here a call is repeated
only while no piece of a reply has come, so nothing is paid or shown twice. Pauses are short,
because the turn holds a slot; longer trouble is the scheduler's, which retries the turn with a
backoff. A provider that has too much to do (429) is not in trouble: the call is made again as soon
as the scheduler, which was told, gives it another time.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from agent_svc.domain.prompt import Prompt
from agent_svc.models.base import CallFailed, Model, ModelReply
from svckit.backoff import full_jitter
from svckit.clock import Clock
from svckit.errors import TurnFailed
from svckit.failpoints import failpoint

TRIES = 3
FIRST_PAUSE = 0.25
LONGEST_PAUSE = 2.0


@dataclass(frozen=True)
class Asked:
    """A reply, the model that gave it, and the reservation under which."""

    reply: ModelReply
    model: Model
    reservation_id: str = ""


@dataclass(frozen=True)
class FailedCall:
    """One call that failed, for the report about the provider. `number` counts from 1."""

    model: Model
    failure: CallFailed
    number: int
    reservation_id: str = ""


async def ask(
    models: Sequence[Model],
    prompt: Prompt,
    on_text: Callable[[str], None],
    *,
    clock: Clock,
    take: Callable[[Model], Awaitable[str]],
    on_failure: Callable[[FailedCall], Awaitable[None]],
    tries: int = TRIES,
) -> Asked:
    """Ask the first of `models` that answers. Raises the `CallFailed` of the first one.

    `take` waits for the moment of each call and returns its reservation; what it raises ends the
    asking. A model that refuses the request, or stays unavailable, is followed by the next; one
    that broke off in the middle of a reply is not, for its text was already shown.
    """
    first: CallFailed | None = None
    number = 0
    for model in models:
        pauses = full_jitter(FIRST_PAUSE, LONGEST_PAUSE)
        tried = 0
        while True:
            reservation_id = ""
            try:
                await model.prepare()
                reservation_id = await take(model)
                failpoint("agent.model.unsent")
                reply = await model.ask(prompt, on_text)
                failpoint("agent.model.answered")
                return Asked(reply, model, reservation_id)
            except CallFailed as failure:
                number += 1
                await on_failure(FailedCall(model, failure, number, reservation_id))
                if failure.started or isinstance(failure.error, TurnFailed):
                    raise
                pause = next(pauses)
                if failure.outcome == "throttled" and reservation_id:
                    continue  # `take` knows when
                first = first or failure
                tried += 1
                if failure.retry_after is not None:
                    pause = max(pause, failure.retry_after)
                last = tried == tries or pause > LONGEST_PAUSE
                if failure.outcome == "rejected" or last:
                    break
                await clock.sleep(pause)
    if first is None:
        raise ValueError("no model to ask")
    raise first

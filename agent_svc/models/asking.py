"""Asks a model with our own retries, and its fallbacks when it stays away.

The SDKs' retries are off: theirs cannot tell whether a reply had begun. Here a call is repeated
only while no piece of a reply has come, so nothing is paid or shown twice. Pauses are short,
because the turn holds a slot; longer trouble is the scheduler's, which retries the turn with a
backoff. A provider that has too much to do (429) is not in trouble: the call is made again as soon
as the scheduler, which was told, gives it another time. Is that time far off because the provider
cools down, for this worker or for any other, then the fallbacks are asked first.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

from agent_svc.domain.prompt import Prompt
from agent_svc.models.base import CallFailed, Cause, Model, ModelReply
from svckit.backoff import full_jitter
from svckit.clock import Clock
from svckit.errors import TurnFailed
from svckit.failpoints import failpoint

TRIES = 3
FIRST_PAUSE = 0.25
LONGEST_PAUSE = 2.0


class Later(Exception):
    """A model may be asked only later than a turn waits itself: in `seconds`.

    `cooling`: because its provider had too much to do, or was in trouble; not because of a rate
    that the configuration sets. `give_back` leaves the place in its line.
    """

    def __init__(self, seconds: float, *, cooling: bool, give_back: Callable[[], None]) -> None:
        super().__init__(f"in {seconds:.1f} s")
        self.seconds = seconds
        self.cooling = cooling
        self.give_back = give_back


@dataclass(frozen=True)
class Asked:
    """A reply, the model that gave it, and the reservation under which.

    `passed_over` is why the first model did not answer; empty when it did.
    """

    reply: ModelReply
    model: Model
    reservation_id: str = ""
    passed_over: Cause | Literal[""] = ""


@dataclass(frozen=True)
class FailedCall:
    """One call that failed, for the report about the provider. `number` counts from 1."""

    model: Model
    failure: CallFailed
    number: int
    reservation_id: str = ""


class Watch(Protocol):
    """Sees what is asked, for whoever looks on."""

    def asks(self, model: Model, passed_over: str) -> None:
        """A model is next; `passed_over` is why those before it did not answer."""

    def trying(self) -> AbstractContextManager[object]:
        """It is called now. The call is made inside the block."""

    def failed(self, failure: CallFailed) -> None:
        """It did not answer."""

    def answered(self, reply: ModelReply) -> None:
        """It answered."""


async def ask(
    models: Sequence[Model],
    prompt: Prompt,
    on_text: Callable[[str], None],
    *,
    clock: Clock,
    take: Callable[[Model], Awaitable[str]],
    on_failure: Callable[[FailedCall], Awaitable[None]],
    watch: Watch,
    tries: int = TRIES,
) -> Asked:
    """Ask the first of `models` that answers. Raises the `CallFailed` of the first one.

    `take` waits for the moment of each call and returns its reservation. It raises `Later`, which
    passes a cooling model over as long as there is another; what else it raises ends the asking. A
    model that refuses the request, or stays unavailable, is followed by the next; one that broke
    off in the middle of a reply is not, for its text was already shown. When all others failed and
    one cools down, its `Later` is raised: it is known when it is back.
    """
    asker = _Asker(prompt, on_text, clock, take, on_failure, watch, tries)
    first: CallFailed | None = None
    passed_over: Cause | Literal[""] = ""
    cooling: list[tuple[float, Model]] = []
    for place, model in enumerate(models, start=1):
        try:
            asked = await asker.ask(model, passed_over)
        except Later as wait:
            if not wait.cooling or (place == len(models) and not cooling):
                raise
            wait.give_back()
            cooling.append((wait.seconds, model))
            passed_over = passed_over or "throttled"
            continue
        if isinstance(asked, Asked):
            return asked
        first = first or asked
        passed_over = passed_over or asked.cause
    if cooling:
        soonest = min(cooling, key=lambda one: one[0])[1]
        asked = await asker.ask(soonest, "" if soonest is models[0] else passed_over)
        if isinstance(asked, Asked):
            return asked
        first = first or asked
    if first is None:
        raise ValueError("no model to ask")
    raise first


class _Asker:
    """Asks one model after the other, and counts the calls that failed."""

    def __init__(
        self,
        prompt: Prompt,
        on_text: Callable[[str], None],
        clock: Clock,
        take: Callable[[Model], Awaitable[str]],
        on_failure: Callable[[FailedCall], Awaitable[None]],
        watch: Watch,
        tries: int,
    ) -> None:
        self._prompt = prompt
        self._on_text = on_text
        self._clock = clock
        self._take = take
        self._on_failure = on_failure
        self._watch = watch
        self._tries = tries
        self._failed = 0

    async def ask(self, model: Model, passed_over: Cause | Literal[""]) -> Asked | CallFailed:
        """Ask one model, again while that helps. Raises the failure that no fallback may follow.

        One that has failed and may be asked again only later has failed: a provider that is gone
        would be waited for again and again, and nobody would know.
        """
        pauses = full_jitter(FIRST_PAUSE, LONGEST_PAUSE)
        self._watch.asks(model, passed_over)
        tried = 0
        trouble: CallFailed | None = None
        while True:
            reservation_id = ""
            try:
                await model.prepare()
                reservation_id = await self._take(model)
                failpoint("agent.model.unsent")
                with self._watch.trying():
                    reply = await model.ask(self._prompt, self._on_text)
                self._watch.answered(reply)
                failpoint("agent.model.answered")
                return Asked(reply, model, reservation_id, passed_over)
            except Later as wait:
                if trouble is None:
                    raise
                wait.give_back()
                return trouble
            except CallFailed as failure:
                self._failed += 1
                self._watch.failed(failure)
                await self._on_failure(FailedCall(model, failure, self._failed, reservation_id))
                if failure.started or isinstance(failure.error, TurnFailed):
                    raise
                pause = next(pauses)
                if failure.outcome == "throttled" and reservation_id:
                    continue  # `take` knows when
                trouble = failure
                tried += 1
                if failure.retry_after is not None:
                    pause = max(pause, failure.retry_after)
                last = tried == self._tries or pause > LONGEST_PAUSE
                if failure.outcome == "rejected" or last:
                    return failure
                await self._clock.sleep(pause)

"""Which model is asked when one does not answer: in order, past those that cool down, never twice
after a reply has begun."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator

import pytest

from agent_svc.domain.prompt import Prompt
from agent_svc.models import asking
from agent_svc.models.asking import Asked, FailedCall, Later
from agent_svc.models.base import CallFailed, Cause, Model, ModelReply, Outcome
from svckit.clock import FakeClock
from svckit.errors import ModelRejected, ModelUnavailable


def failure(
    outcome: Outcome = "unavailable",
    cause: Cause = "connection",
    *,
    started: bool = False,
    retry_after: float | None = None,
) -> CallFailed:
    kind = ModelRejected if outcome == "rejected" else ModelUnavailable
    return CallFailed(
        kind(cause), outcome=outcome, cause=cause, started=started, retry_after=retry_after
    )


class Scripted:
    """A model that fails as it is told to, then answers."""

    def __init__(self, name: str, *failures: CallFailed) -> None:
        self.provider_id = "p"
        self.name = name
        self.failures = list(failures)
        self.calls = 0

    async def prepare(self) -> None:
        pass

    async def ask(self, prompt: Prompt, on_text: Callable[[str], None]) -> ModelReply:
        self.calls += 1
        if self.failures:
            raise self.failures.pop(0)
        return ModelReply(self.name)


class Line:
    """Places in the line of each provider, and what was told about calls."""

    def __init__(self, **waits: list[float]) -> None:
        self.waits = waits
        self.cooling = True
        self.given_back: list[str] = []
        self.told: list[FailedCall] = []
        self.seen: list[str] = []

    async def take(self, model: Model) -> str:
        waits = self.waits.get(model.name, [])
        wait = waits.pop(0) if waits else 0.0
        if wait:
            raise Later(
                wait,
                cooling=self.cooling,
                give_back=lambda: self.given_back.append(model.name),
            )
        return f"r-{model.name}"

    async def on_failure(self, failed: FailedCall) -> None:
        self.told.append(failed)

    # As seen by whoever looks on.

    def asks(self, model: Model, passed_over: str) -> None:
        self.seen.append(f"{model.name} {passed_over}".strip())

    @contextlib.contextmanager
    def trying(self) -> Iterator[None]:
        self.seen.append("called")
        yield

    def failed(self, failure: CallFailed) -> None:
        self.seen.append(failure.cause)

    def answered(self, reply: ModelReply) -> None:
        self.seen.append("answered")


async def ask(line: Line, *models: Model, tries: int = 3) -> Asked:
    clock = FakeClock()

    async def play() -> None:
        while True:
            await asyncio.sleep(0)
            if clock.sleepers:
                clock.advance(3)

    playing = asyncio.create_task(play())
    try:
        return await asking.ask(
            models,
            Prompt("", []),
            lambda _: None,
            clock=clock,
            take=line.take,
            on_failure=line.on_failure,
            watch=line,
            tries=tries,
        )
    finally:
        playing.cancel()


async def test_trouble_is_tried_again_and_then_the_next_model_answers() -> None:
    line, big, small = Line(), Scripted("big", *(failure() for _ in range(3))), Scripted("small")
    asked = await ask(line, big, small)
    assert (asked.model, asked.passed_over, asked.reservation_id) == (
        small,
        "connection",
        "r-small",
    )
    assert (big.calls, small.calls) == (3, 1)
    assert [failed.number for failed in line.told] == [1, 2, 3]
    failing = ["called", "connection"] * 3
    assert line.seen == ["big", *failing, "small connection", "called", "answered"]


@pytest.mark.parametrize("cause", ["auth", "quota", "not_found", "too_long", "content_refused"])
async def test_a_refusal_is_followed_by_the_next_model_at_once(cause: Cause) -> None:
    big, small = Scripted("big", failure("rejected", cause)), Scripted("small")
    asked = await ask(Line(), big, small)
    assert (asked.model, asked.passed_over, big.calls) == (small, cause, 1)


async def test_a_reply_that_broke_off_is_repeated_by_nobody() -> None:
    big, small = Scripted("big", failure(cause="broken_stream", started=True)), Scripted("small")
    with pytest.raises(CallFailed):
        await ask(Line(), big, small)
    assert (big.calls, small.calls) == (1, 0)


async def test_the_failure_that_is_told_is_that_of_the_first_model() -> None:
    big = Scripted("big", failure("rejected", "too_long"))
    small = Scripted("small", failure("rejected", "auth"))
    with pytest.raises(CallFailed) as caught:
        await ask(Line(), big, small)
    assert caught.value.too_long


async def test_a_long_retry_after_is_not_slept_through() -> None:
    big, small = Scripted("big", failure(cause="overloaded", retry_after=30)), Scripted("small")
    assert (await ask(Line(), big, small)).model is small
    assert big.calls == 1


async def test_a_provider_that_cools_down_is_passed_over() -> None:
    line, big, small = Line(big=[30.0]), Scripted("big"), Scripted("small")
    asked = await ask(line, big, small)
    assert (asked.model, asked.passed_over) == (small, "throttled")
    assert (big.calls, line.given_back) == (0, ["big"])


async def test_a_429_is_a_cool_down_from_the_next_try_on() -> None:
    line = Line(big=[0.0, 30.0])
    big, small = Scripted("big", failure("throttled", "throttled", retry_after=30)), Scripted("s")
    assert (await ask(line, big, small)).model is small
    assert (big.calls, line.given_back) == (1, ["big"])


async def test_when_all_cool_down_the_one_that_is_back_first_is_waited_for() -> None:
    line = Line(a=[30.0], b=[5.0, 4.0], c=[9.0])
    with pytest.raises(Later) as caught:
        await ask(line, Scripted("a"), Scripted("b"), Scripted("c"))
    assert caught.value.seconds == 4.0
    assert line.given_back == ["a", "b", "c"]


async def test_a_cool_down_that_is_over_by_then_is_used() -> None:
    line, a, b = Line(a=[3.0]), Scripted("a"), Scripted("b", failure("rejected", "auth"))
    asked = await ask(line, a, b)
    assert (asked.model, asked.passed_over) == (a, ""), "the first one answered after all"
    line, a, b = Line(b=[3.0]), Scripted("a", failure("rejected", "auth")), Scripted("b")
    c = Scripted("c", failure("rejected", "quota"))
    asked = await ask(line, a, b, c)
    assert (asked.model, asked.passed_over) == (b, "auth")


async def test_the_only_model_is_waited_for() -> None:
    line = Line(a=[30.0])
    with pytest.raises(Later):
        await ask(line, Scripted("a"))
    assert not line.given_back, "the turn resumes with its place"


async def test_a_rate_of_the_configuration_is_no_reason_to_pass_over() -> None:
    line, small = Line(big=[30.0]), Scripted("small")
    line.cooling = False
    with pytest.raises(Later):
        await ask(line, Scripted("big"), small)
    assert not small.calls

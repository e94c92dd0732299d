"""`Chat`: one message in, everything that answers it out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from grpc import aio

from conveyor.scheduler.v1 import lane_pb2, run_pb2
from scheduler_svc.app import build as build_scheduler
from svckit.settings import load
from svckit.testing import eventually, free_port, in_process
from tests.service.gateway.suite import (
    Suite,
    delegating,
    failing,
    kind,
    payload,
    reason_of,
    suite,
    text_of,
)
from tests.service.scheduler.conftest import Driver


async def collect(call: Any) -> list[Any]:
    return [response async for response in call]


def told(responses: list[Any]) -> list[tuple[str, int]]:
    return [(r.event.session_key, r.event.sequence) for r in responses if kind(r) == "event"]


async def test_accepted_comes_first_and_the_run_last(gateway: Suite) -> None:
    responses = await collect(gateway.chat("alice", "hello"))
    assert kind(responses[0]) == "accepted"
    assert kind(responses[-1]) == "ended"
    run = responses[-1].ended
    assert run.state == run_pb2.RUN_STATE_SUCCEEDED
    assert text_of(run.result.reply) == "echo: hello"
    kinds = [payload(r.event) for r in responses if kind(r) == "event"]
    assert kinds.count("message_completed") == 2
    assert "run_state_changed" in kinds
    assert [sequence for _, sequence in told(responses)] == list(range(1, len(kinds) + 1))
    assert all(r.event.position == 0 for r in responses if kind(r) == "event")


async def test_pieces_of_the_reply_are_streamed(gateway: Suite) -> None:
    gateway.agent.hold("slow")
    call = gateway.chat("alice", "slow")
    pieces = []
    async for response in call:
        if kind(response) == "progress" and response.progress.live:
            gateway.agent.let_go("slow")
        if kind(response) == "delta":
            pieces.append(response.delta)
    assert pieces
    text = ""
    for piece in pieces:
        text = text[: piece.offset] + piece.text
    assert "echo: slow".startswith(text)
    assert text


async def test_descendants_come_only_when_asked_for(gateway: Suite) -> None:
    gateway.agent.on("go", delegating("one", "two"))
    own = await collect(gateway.chat("alice", "go"))
    assert {key for key, _ in told(own)} == {"alice"}
    assert text_of(own[-1].ended.result.reply) == "echo: one; echo: two"
    announced = [
        r.event for r in own if kind(r) == "event" and payload(r.event) == "child_announced"
    ]
    assert len(announced) == 2

    whole = await collect(gateway.chat("bob", "go", include_descendants=True))
    sessions = {key for key, _ in told(whole)}
    assert len(sessions) == 3
    for session in sessions:
        sequences = [sequence for key, sequence in told(whole) if key == session]
        assert sequences == list(range(1, len(sequences) + 1))
    assert kind(whole[-1]) == "ended"
    assert whole[-1].ended.state == run_pb2.RUN_STATE_SUCCEEDED


async def test_a_broken_chat_goes_on_where_it_was(gateway: Suite) -> None:
    gateway.agent.on("go", delegating("one", "two"))
    gateway.agent.hold("two")
    call = gateway.chat("alice", "go", include_descendants=True)
    seen, token = [], ""
    async for response in call:
        seen.append(response)
        token = response.resume_token
        if kind(response) == "event" and payload(response.event) == "child_announced":
            break
    call.cancel()
    gateway.agent.let_go("two")
    rest = await collect(gateway.chat("alice", "go", include_descendants=True, resume_token=token))
    assert rest[0].accepted.deduplicated
    assert rest[0].accepted.run.run_id == seen[0].accepted.run.run_id
    both = told(seen) + told(rest)
    assert len(both) == len(set(both))
    assert [s for key, s in both if key == "alice"] == list(
        range(1, len([k for k, _ in both if k == "alice"]) + 1)
    )
    assert kind(rest[-1]) == "ended"


async def test_every_token_of_a_chat_resumes_it(gateway: Suite) -> None:
    gateway.agent.on("go", delegating("one"))
    whole = await collect(gateway.chat("alice", "go", include_descendants=True))
    events = told(whole)
    for response in whole:
        at = (
            events.index((response.event.session_key, response.event.sequence)) + 1
            if kind(response) == "event"
            else None
        )
        again = await collect(
            gateway.chat(
                "alice", "go", include_descendants=True, resume_token=response.resume_token
            )
        )
        assert kind(again[0]) == "accepted"
        assert kind(again[-1]) == "ended"
        if at is not None:
            assert told(again) == events[at:]


async def test_a_chat_without_its_token_starts_again_from_the_first_event(gateway: Suite) -> None:
    first = await collect(gateway.chat("alice", "hello"))
    again = await collect(gateway.chat("alice", "hello"))
    assert told(again) == told(first)
    assert again[-1].ended == first[-1].ended


async def test_a_failed_run_ends_the_chat(gateway: Suite) -> None:
    gateway.agent.on("break", failing)
    responses = await collect(gateway.chat("alice", "break"))
    run = responses[-1].ended
    assert run.state == run_pb2.RUN_STATE_FAILED
    assert run.error.message == "the tool broke"


async def test_a_steered_message_that_came_too_late_is_followed_to_its_own_run(
    gateway: Suite,
) -> None:
    gateway.agent.hold("first")
    await gateway.send("alice", "first")
    await eventually(lambda: gateway.agent.started == ["first"])
    call = gateway.chat("alice", "also", queue_mode=lane_pb2.QUEUE_MODE_STEER)
    responses = []
    async for response in call:
        responses.append(response)
        if kind(response) == "progress" and response.progress.live:
            gateway.agent.let_go("first")
    held, ended = responses[0].accepted, responses[-1].ended
    assert held.outcome == lane_pb2.ENQUEUE_OUTCOME_STEERED
    assert ended.run_id != held.run.run_id
    assert text_of(ended.result.reply) == "echo: also"
    assert "steer_missed" in [payload(r.event) for r in responses if kind(r) == "event"]


async def test_a_token_of_another_chat_is_refused_before_anything_is_sent(gateway: Suite) -> None:
    responses = await collect(gateway.chat("alice", "hello", request_id="one"))
    for token in (responses[1].resume_token, "nonsense", "AAAA"):
        with pytest.raises(aio.AioRpcError) as refused:
            await collect(gateway.chat("alice", "more", request_id="two", resume_token=token))
        assert reason_of(refused.value) == "INVALID_FIELD"
    assert gateway.agent.started == ["hello"]


async def test_a_chat_survives_a_restart_of_the_scheduler(tmp_path: Path) -> None:
    """The stream goes on by itself, and each event is told once."""
    address = f"127.0.0.1:{free_port()}"
    async with suite(tmp_path / "other") as around:
        settings = load(None, {"CONVEYOR_STORE__URL": f"sqlite:///{tmp_path / 'log'}"})
        around.environ["CONVEYOR_SERVICES__SCHEDULER"] = address
        responses: list[Any] = []
        async with around.serve():
            async with in_process(build_scheduler, settings, address, name="scheduler"):
                call = around.chat("alice", "hello")
                async for response in call:
                    responses.append(response)
                    if kind(response) == "progress" and response.progress.live:
                        break
            async with in_process(build_scheduler, settings, address, name="scheduler") as again:
                # Leases are never repeated, and the process shares its idea of a dead address.
                await again.channel.channel_ready()
                driver = Driver(again.channel)
                leased = await driver.lease_one(5)
                await driver.complete(leased, "done")
                responses.extend(await collect(call))
    assert kind(responses[-1]) == "ended"
    events = told(responses)
    assert events == [("alice", n) for n in range(1, len(events) + 1)]

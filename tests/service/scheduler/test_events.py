"""The event log: numbered without a gap, followed without a gap, live pieces on top."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from grpc import aio

from conveyor.events.v1 import event_log_service_pb2 as pb
from conveyor.events.v1 import event_pb2
from conveyor.scheduler.v1 import scheduler_service_pb2 as scheduler_pb
from scheduler_svc import hub
from scheduler_svc.rpc import events as servicer
from scheduler_svc.rpc.events import EventLogServicer
from svckit.errors import ServiceError, StoreUnavailable
from svckit.grpc.status import from_rpc_error
from svckit.testing import eventually

from .conftest import Driver, driver, settings


@asynccontextmanager
async def watching(s: Driver, **request: Any) -> AsyncIterator[aio.UnaryStreamCall]:
    call = s.events.WatchEvents(pb.WatchEventsRequest(**request))
    try:
        yield call
    finally:
        call.cancel()


async def read(call: Any, kind: str, count: int) -> list[Any]:
    found: list[Any] = []
    async with asyncio.timeout(30):
        async for response in call:
            if response.WhichOneof("message") == kind:
                found.append(getattr(response, kind))
                if len(found) == count:
                    return found
    raise AssertionError(f"the stream ended after {len(found)} of {count}")


def tool(event_id: str) -> event_pb2.Event:
    return event_pb2.Event(
        event_id=event_id,
        tool_call_started=event_pb2.ToolCallStarted(tool_call_id="1.1.0", tool_name="x"),
    )


async def refusal(call: Any) -> ServiceError:
    with pytest.raises(aio.AioRpcError) as caught:
        async for _ in call:
            pass
    return from_rpc_error(caught.value)


async def test_a_watch_sends_what_is_stored_and_then_what_comes(s: Driver) -> None:
    await s.send("a", "one")
    async with watching(s, session_key="a") as call:
        stored = await read(call, "event", 2)
        assert (await read(call, "progress", 1))[0].live
        await s.send("a", "two")
        live = await read(call, "event", 2)
    assert [event.sequence for event in (*stored, *live)] == [1, 2, 3, 4]


async def test_a_watch_goes_on_after_a_sequence(s: Driver) -> None:
    for n in range(3):
        await s.send("a", f"message {n}")
    async with watching(s, session_key="a", after_sequence=4) as call:
        assert [e.sequence for e in await read(call, "event", 2)] == [5, 6]


async def test_a_watch_of_all_sessions_goes_on_after_a_position(s: Driver) -> None:
    for name in ("a", "b", "c"):
        await s.send(name)
    async with watching(s, all_sessions=True) as call:
        before = await read(call, "event", 6)
    async with watching(s, all_sessions=True, after_position=before[3].position) as call:
        assert [e.position for e in await read(call, "event", 2)] == [
            e.position for e in before[4:]
        ]


async def test_a_flow_is_watched_in_all_its_sessions(s: Driver) -> None:
    await s.send("other")
    await s.complete(await s.lease_one())
    await s.send("a")
    parent = await s.lease_one()
    async with watching(s, flow_id=parent.run.run_id, from_now=True) as call:
        await read(call, "progress", 1)
        [child] = await s.spawn(parent, "x")
        found = await read(call, "event", 3)
    assert {event.run_id for event in found} == {parent.run.run_id, child}


async def test_payloads_choose_what_comes(s: Driver) -> None:
    await s.send("a")
    await s.send("a")
    async with watching(s, session_key="a", payloads=["run_state_changed"]) as call:
        assert [e.sequence for e in await read(call, "event", 2)] == [2, 4]
    async with watching(s, session_key="a", payloads=["nonsense"]) as call:
        assert (await refusal(call)).metadata["field"] == "payloads"


async def test_events_of_a_worker_are_stored_once_per_id(s: Driver) -> None:
    await s.send("a")
    leased = await s.lease_one()
    request = pb.AppendEventsRequest(lease_id=leased.lease.lease_id, events=[tool("t1")])
    first = await s.events.AppendEvents(request)
    again = await s.events.AppendEvents(request)
    assert first.last_sequence == again.last_sequence
    both = pb.AppendEventsRequest(
        lease_id=leased.lease.lease_id, events=[tool("t1"), tool("t2"), tool("t2")]
    )
    assert (await s.events.AppendEvents(both)).last_sequence == first.last_sequence + 1
    [one, two] = [e for e in await s.log("a") if e.HasField("tool_call_started")]
    assert (one.turn, one.attempt, one.run_id) == (1, 1, leased.run.run_id)
    assert [one.event_id, two.event_id] == ["t1", "t2"]


async def test_a_worker_cannot_write_what_the_scheduler_writes(s: Driver) -> None:
    await s.send("a")
    leased = await s.lease_one()
    event = event_pb2.Event(event_id="x", run_state_changed=event_pb2.RunStateChanged())
    with pytest.raises(aio.AioRpcError) as caught:
        await s.events.AppendEvents(
            pb.AppendEventsRequest(lease_id=leased.lease.lease_id, events=[event])
        )
    assert from_rpc_error(caught.value).metadata["field"] == "events[0].payload"


async def test_pieces_reach_watchers_and_a_late_one_gets_the_message_so_far(s: Driver) -> None:
    await s.send("a")
    leased = await s.lease_one()

    async def write(text: str, offset: int) -> None:
        piece = event_pb2.MessageDelta(message_id="m", text=text, offset=offset)
        await s.events.AppendEvents(
            pb.AppendEventsRequest(lease_id=leased.lease.lease_id, deltas=[piece])
        )

    async with watching(s, session_key="a") as early:
        await read(early, "progress", 1)
        await write("Hel", 0)
        [first] = await read(early, "delta", 1)
        assert (first.text, first.offset) == ("Hel", 0)
        await write("lo", 3)
        [second] = await read(early, "delta", 1)
        assert (second.text, second.offset) == ("lo", 3)
        async with watching(s, session_key="a") as late:
            [whole] = await read(late, "delta", 1)
            assert (whole.text, whole.offset) == ("Hello", 0)
        # A new attempt writes from the start.
        await write("Bye", 0)
        [third] = await read(early, "delta", 1)
        assert (third.text, third.offset) == ("Bye", 0)
        await s.complete(leased, "Bye")
        await read(early, "event", 2)
    async with watching(s, session_key="a") as after:
        async with asyncio.timeout(30):
            async for response in after:
                assert not response.HasField("delta")
                if response.HasField("progress"):
                    break


async def test_a_slow_watcher_misses_no_event(s: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "INBOX_EVENTS", 3)
    monkeypatch.setattr(servicer, "READ_EVENTS", 4)
    await s.send("a")
    leased = await s.lease_one()
    async with watching(s, session_key="a") as call:
        await read(call, "progress", 1)
        for n in range(40):
            await s.events.AppendEvents(
                pb.AppendEventsRequest(
                    lease_id=leased.lease.lease_id, events=[tool(f"t{n}-{i}") for i in range(10)]
                )
            )
        found = await read(call, "event", 400)
    assert [e.sequence for e in found] == list(range(4, 404))


async def test_progress_goes_past_what_is_filtered_out(
    s: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the position of a watcher of rare events grows too old, and retention overtakes it."""
    monkeypatch.setattr(servicer, "PROGRESS_SECONDS", 0.1)
    async with (
        watching(s, session_key="a", payloads=["child_announced"]) as one,
        watching(s, all_sessions=True, payloads=["child_announced"]) as every,
    ):
        await read(one, "progress", 1)
        await read(every, "progress", 1)
        await s.send("a")
        await s.send("b")
        async with asyncio.timeout(30):
            while (found := (await read(one, "progress", 1))[0]).position < 4:
                pass
            assert found.sequence == 2
            while (await read(every, "progress", 1))[0].position < 4:
                pass


class Doubtful:
    """Commits, and then says that it could not."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.doubtful = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def commit(self, batch: Any) -> None:
        await self._inner.commit(batch)
        if self.doubtful and batch.events:
            self.doubtful = False
            raise StoreUnavailable("lost the answer")


async def test_a_watch_has_no_gap_after_a_commit_whose_answer_was_lost(
    tmp_path: Path, store: str
) -> None:
    stores: list[Doubtful] = []

    def wrap(inner: Any) -> Doubtful:
        stores.append(Doubtful(inner))
        return stores[0]

    async with driver(settings(tmp_path, store), wrap=wrap) as s:
        await s.send("a", "one", request_id="one")
        async with watching(s, session_key="a") as call:
            await read(call, "progress", 1)
            stores[0].doubtful = True
            # Refused, since nobody knows whether it was stored; the channel asks once more.
            assert (await s.send("a", "two", request_id="two")).deduplicated
            await s.send("a", "three")
            assert [e.sequence for e in await read(call, "event", 4)] == [3, 4, 5, 6]


async def test_an_old_position_says_what_retention_left(tmp_path: Path, store: str) -> None:
    config = settings(tmp_path, store)
    async with driver(config) as s:
        await s.send("a", "old")
        await s.complete(await s.lease_one())
        await s.send("a", "new")
        await s.engine.store.prune(requests_before=2**62, ended_before=2**62)
        async with watching(s, session_key="a", after_sequence=2) as call:
            error = await refusal(call)
        assert error.reason == "EVENTS_COMPACTED"
        assert error.metadata["oldestSequence"] == "6"
        async with watching(s, session_key="a") as call:
            assert [e.sequence for e in await read(call, "event", 2)] == [6, 7]
        again = await s.send("a", "another")
        assert again.last_sequence == 7


async def test_watches_end_with_ok_when_the_scheduler_drains(tmp_path: Path) -> None:
    async def follow(call: Any) -> list[Any]:
        return [response async for response in call]

    async with driver(settings(tmp_path)) as s:
        call = s.events.WatchEvents(pb.WatchEventsRequest(session_key="a"))
        task = asyncio.create_task(follow(call))
        await s.send("a")
        s.engine.drain()
        responses = await asyncio.wait_for(task, 30)
        assert responses[-1].HasField("progress")
        assert await call.code() == 0 or (await call.code()).name == "OK"


async def test_usage_is_counted_once_and_rolls_up(s: Driver) -> None:
    from conveyor.common.v1 import usage_pb2
    from conveyor.scheduler.v1 import limit_service_pb2 as limits

    root = await s.send("a")
    parent = await s.lease_one()
    [child] = await s.spawn(parent, "x")
    report = limits.ReportRequest(
        request_id="u1",
        call=limits.ModelCall(provider_id="demo", run_id=child),
        outcome=limits.CALL_OUTCOME_ANSWERED,
        usage=usage_pb2.Usage(model_calls=1, input_tokens=10, output_tokens=5),
    )
    await s.limits.Report(report)
    await s.limits.Report(report)
    await s.complete(parent)
    await s.complete(await s.lease_one())

    async def closed() -> bool:
        for leased in await s.lease(5):
            await s.complete(leased)
        return await s.state(root.run.run_id) == "SUCCEEDED"

    await eventually(closed)
    report.request_id = "late"  # after everything ended: spent is spent
    await s.limits.Report(report)
    run = await s.run(root.run.run_id)
    assert run.usage.model_calls == 0
    assert (run.tree_usage.model_calls, run.tree_usage.input_tokens) == (2, 20)
    assert (await s.run(child)).usage.output_tokens == 10


async def test_a_watch_that_is_left_just_as_an_event_comes_ends(s: Driver) -> None:
    """Found by the simulation, seed 433: the cancellation was lost, and the watch went on."""
    stream = EventLogServicer(s.engine).WatchEvents(
        pb.WatchEventsRequest(session_key="a"),
        None,  # type: ignore[arg-type]
    )
    assert (await anext(stream)).HasField("progress")
    coming = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0.01)  # until it waits: nothing outside shows it
    [watcher] = s.engine.hub._everybody()
    watcher.wake.set()
    coming.cancel()
    await asyncio.wait([coming], timeout=5)
    assert coming.cancelled()
    await stream.aclose()


async def test_a_run_remembers_what_the_delegation_guard_did(tmp_path: Path) -> None:
    """Once per event, in order, also after a restart: trees show it without reading the log."""

    def did(number: int, step: event_pb2.GuardStep.ValueType, resolved: bool) -> event_pb2.Event:
        return event_pb2.Event(
            event_id=f"g-{number}",
            guard_intervened=event_pb2.GuardIntervened(
                trigger=event_pb2.GUARD_TRIGGER_FALSE_CLAIM,
                step=step,
                resolved=resolved,
                model="p:weak one",
                excerpt="I may not.",
            ),
        )

    async def remembered(s: Driver) -> list[tuple[str, str, str, bool]]:
        [run] = (await s.scheduler.ListRuns(scheduler_pb.ListRunsRequest())).runs
        return [(d.trigger, d.step, d.model, d.resolved) for d in run.guard]

    async with driver(settings(tmp_path)) as s:
        await s.send("a")
        lease = (await s.lease_one()).lease.lease_id
        insist = did(1, event_pb2.GUARD_STEP_INSIST, False)
        force = did(2, event_pb2.GUARD_STEP_FORCE_TOOL, True)
        assert await remembered(s) == []
        await s.events.AppendEvents(pb.AppendEventsRequest(lease_id=lease, events=[insist]))
        await s.events.AppendEvents(pb.AppendEventsRequest(lease_id=lease, events=[insist, force]))
        expected = [
            ("false_claim", "insist", "p:weak one", False),
            ("false_claim", "force_tool", "p:weak one", True),
        ]
        assert await remembered(s) == expected
        empty = event_pb2.Event(event_id="g-3", guard_intervened=event_pb2.GuardIntervened())
        newer = did(3, 99, True)  # type: ignore[arg-type]
        for wrong in (empty, newer):
            with pytest.raises(aio.AioRpcError) as caught:
                await s.events.AppendEvents(pb.AppendEventsRequest(lease_id=lease, events=[wrong]))
            assert from_rpc_error(caught.value).reason == "INVALID_FIELD"
    async with driver(settings(tmp_path)) as s:
        assert await remembered(s) == expected

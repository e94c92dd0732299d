"""The requests in which a turn's events go out."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from agent_svc.turnevents import said_between
from conveyor.events.v1 import event_log_service_pb2 as log_pb
from svckit.clock import FakeClock
from svckit.errors import LeaseLost
from svckit.eventwriter import EventWriter

MIB = 1024 * 1024


class Log:
    """Takes what the contract takes."""

    def __init__(self) -> None:
        self.requests: list[log_pb.AppendEventsRequest] = []
        self.lost = ""
        self.then: Callable[[], object] = lambda: None

    async def AppendEvents(self, request: log_pb.AppendEventsRequest) -> None:
        if request.lease_id == self.lost:
            self.then()
            raise LeaseLost("a newer lease exists")
        assert len(request.events) <= 256
        assert request.ByteSize() <= 2 * MIB
        copy = log_pb.AppendEventsRequest()
        copy.CopyFrom(request)
        self.requests.append(copy)


@pytest.mark.parametrize(("count", "size"), [(700, 10), (5, MIB - 1000), (40, 100_000)])
async def test_many_or_large_events_go_out_in_several_requests(count: int, size: int) -> None:
    log = Log()
    events = [said_between("R1", 1, step, "x" * size) for step in range(count)]
    async with EventWriter(log, "R1:1", "R1-1", FakeClock()) as writer:  # type: ignore[arg-type]
        await writer.write(*events)
    assert len(log.requests) > 1
    assert [event for request in log.requests for event in request.events] == events


async def test_a_long_text_is_shown_in_several_requests() -> None:
    log = Log()
    text = "ü" * 300_000
    async with EventWriter(log, "R1:1", "R1-1", FakeClock()) as writer:  # type: ignore[arg-type]
        writer.text(text)
        await writer.write(said_between("R1", 1, 1, "x" * (MIB - 1000)))
        writer.text("!")
        await writer.flush()
    deltas = [delta for request in log.requests for delta in request.deltas]
    assert "".join(delta.text for delta in deltas) == text + "!"
    assert [delta.offset for delta in deltas] == [
        sum(len(d.text) for d in deltas[:place]) for place in range(len(deltas))
    ]


async def test_a_turn_that_kept_its_lease_writes_on_under_the_next_one() -> None:
    log, leases = Log(), ["R1:1"]
    turn = EventWriter(log, lambda: leases[-1], "R1-1", FakeClock())  # type: ignore[arg-type]
    async with turn as writer:
        await writer.write(said_between("R1", 1, 1, "before"))
        log.lost = "R1:1"
        log.then = lambda: leases.append("R1:2")
        await writer.write(said_between("R1", 1, 2, "on its way when the next turn began"))
        log.lost, log.then = "R1:2", lambda: None
        with pytest.raises(LeaseLost):
            await writer.write(said_between("R1", 1, 3, "too late"))
    assert [request.lease_id for request in log.requests] == ["R1:1", "R1:2"]

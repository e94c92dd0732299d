"""The requests in which a turn's events go out."""

from __future__ import annotations

import pytest

from agent_svc.turnevents import said_between
from conveyor.events.v1 import event_log_service_pb2 as log_pb
from svckit.clock import FakeClock
from svckit.eventwriter import EventWriter

MIB = 1024 * 1024


class Log:
    """Takes what the contract takes."""

    def __init__(self) -> None:
        self.requests: list[log_pb.AppendEventsRequest] = []

    async def AppendEvents(self, request: log_pb.AppendEventsRequest) -> None:
        assert len(request.events) <= 256
        assert request.ByteSize() <= 2 * MIB
        self.requests.append(request)


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


async def test_a_renewed_writer_writes_under_the_new_lease() -> None:
    log = Log()
    async with EventWriter(log, "R1:1", "R1-1", FakeClock()) as writer:  # type: ignore[arg-type]
        await writer.write(said_between("R1", 1, 1, "before"))
        await writer.renew("R1:2")
        await writer.write(said_between("R1", 1, 2, "after"))
    assert [request.lease_id for request in log.requests] == ["R1:1", "R1:2"]

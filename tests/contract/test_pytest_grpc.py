"""Our boundary as any other gRPC client sees it: pytest-grpc's synchronous channel and stub."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from conveyor.events.v1 import event_log_service_pb2 as log_pb2
from conveyor.events.v1 import event_log_service_pb2_grpc as log_grpc
from svckit.errors import EventsCompacted


class Log(log_grpc.EventLogServiceServicer):
    def __init__(self) -> None:
        self.left = asyncio.Event()

    async def ListEvents(self, request: log_pb2.ListEventsRequest, context: Any) -> Any:
        if request.session_key == "slow":
            await asyncio.sleep(30)
        if request.session_key == "old":
            raise EventsCompacted("gone", metadata={"oldestSequence": "7"})
        return log_pb2.ListEventsResponse(next_page_token=request.session_key)

    async def WatchEvents(
        self, request: log_pb2.WatchEventsRequest, context: Any
    ) -> AsyncIterator[log_pb2.WatchEventsResponse]:
        for sequence in range(1, 4):
            yield log_pb2.WatchEventsResponse(progress=log_pb2.WatchProgress(sequence=sequence))


@pytest.fixture(scope="module")
def grpc_servicer() -> Log:
    return Log()


@pytest.fixture(scope="module")
def grpc_add_to_server() -> Any:
    return log_grpc.add_EventLogServiceServicer_to_server


@pytest.fixture(scope="module")
def grpc_stub_cls() -> Any:
    return log_grpc.EventLogServiceStub


def test_unary(grpc_stub: Any) -> None:
    answer = grpc_stub.ListEvents(log_pb2.ListEventsRequest(session_key="a"))
    assert answer.next_page_token == "a"


def test_stream(grpc_stub: Any) -> None:
    messages = grpc_stub.WatchEvents(log_pb2.WatchEventsRequest(session_key="a"))
    assert [m.progress.sequence for m in messages] == [1, 2, 3]


def test_error_details(grpc_stub: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        grpc_stub.ListEvents(log_pb2.ListEventsRequest(session_key="old"))
    assert caught.value.code() is grpc.StatusCode.OUT_OF_RANGE
    status = rpc_status.from_call(caught.value)
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, dict(info.metadata)) == ("EVENTS_COMPACTED", {"oldestSequence": "7"})


def test_deadline(grpc_stub: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        grpc_stub.ListEvents(log_pb2.ListEventsRequest(session_key="slow"), timeout=0.1)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_method_that_this_release_does_not_have(grpc_stub: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        grpc_stub.AppendEvents(log_pb2.AppendEventsRequest())
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert caught.value.details() == "AppendEvents is not available in this release"

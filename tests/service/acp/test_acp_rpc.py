"""The calls about sessions over real gRPC, as far as they need no process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from acp_svc.app import build
from conveyor.acp.v1 import acp_service_pb2 as acp_pb
from conveyor.acp.v1 import acp_service_pb2_grpc as acp_grpc
from conveyor.acp.v1 import session_pb2 as pb
from svckit.errors import (
    AcpBackendMissing,
    AcpDisabled,
    AcpHarnessNotFound,
    AcpSessionNotFound,
    InvalidField,
)
from svckit.grpc import client
from svckit.settings import load
from svckit.testing import in_process

CALLS: dict[str, Callable[[], Any]] = {
    "SpawnSession": lambda: acp_pb.SpawnSessionRequest(request_id="q"),
    "GetSession": lambda: acp_pb.GetSessionRequest(acp_session_id="s"),
    "ListSessions": acp_pb.ListSessionsRequest,
    "ConfigureSession": lambda: acp_pb.ConfigureSessionRequest(acp_session_id="s"),
    "CancelTurn": lambda: acp_pb.CancelTurnRequest(acp_session_id="s"),
    "CloseSession": lambda: acp_pb.CloseSessionRequest(acp_session_id="s"),
}


class Acp:
    """The service's calls, with errors as they are raised."""

    def __init__(self, stub: Any) -> None:
        self._stub = stub

    async def call(self, name: str, request: Any) -> Any:
        return await client.call(getattr(self._stub, name)(request))

    async def spawn(self, request_id: str = "q", **spec: Any) -> pb.AcpSession:
        request = acp_pb.SpawnSessionRequest(
            spec=pb.AcpSessionSpec(**spec), request_id=request_id, return_starting=True
        )
        answer: acp_pb.SpawnSessionResponse = await self.call("SpawnSession", request)
        return answer.session

    async def page(
        self, filter: pb.AcpSessionFilter | None = None, size: int = 0, token: str = ""
    ) -> tuple[list[str], str]:
        request = acp_pb.ListSessionsRequest(filter=filter, page_size=size, page_token=token)
        answer: acp_pb.ListSessionsResponse = await self.call("ListSessions", request)
        return [s.acp_session_id for s in answer.sessions], answer.next_page_token


@asynccontextmanager
async def served(tmp_path: Path, acp: str = "") -> AsyncIterator[Acp]:
    config = tmp_path / "conveyor.toml"
    config.write_text(
        f"""
        [services]
        scheduler = "127.0.0.1:1"
        [store]
        url = "memory:"
        [acp]
        default_harness = "sh"
        workspace_roots = ["{tmp_path}"]
        {acp}
        [acp.harness.sh]
        command = ["/bin/sh"]
        [acp.harness.gone]
        command = ["surely-not-installed"]
        """
    )
    async with in_process(build, load(config, {})) as service:
        yield Acp(acp_grpc.AcpServiceStub(service.channel))


async def test_switched_off_every_call_says_so(tmp_path: Path) -> None:
    async with served(tmp_path, "enabled = false") as acp:
        for name, request in CALLS.items():
            with pytest.raises(AcpDisabled):
                await acp.call(name, request())


async def test_what_is_not_there_is_not_found(tmp_path: Path) -> None:
    async with served(tmp_path) as acp:
        for name in ("GetSession", "ConfigureSession", "CancelTurn", "CloseSession"):
            with pytest.raises(AcpSessionNotFound) as caught:
                await acp.call(name, CALLS[name]())
            assert caught.value.metadata == {"acpSessionId": "s"}
            with pytest.raises(InvalidField, match="acp_session_id"):
                await acp.call(name, type(CALLS[name]())())


async def test_a_stored_session_has_every_default(tmp_path: Path) -> None:
    async with served(tmp_path, 'permission_mode = "ask"') as acp:
        made = await acp.spawn()
        spec = made.spec
        assert made.state == pb.ACP_SESSION_STATE_STARTING
        assert (spec.harness_id, spec.cwd) == ("sh", str(tmp_path))
        assert spec.session_key == f"agent:sh:acp:{made.acp_session_id}"
        assert spec.mode == pb.ACP_SESSION_MODE_PERSISTENT
        assert spec.permission_mode == pb.PERMISSION_MODE_ASK
        assert (spec.ask_timeout.seconds, spec.turn_timeout.seconds) == (300, 1800)
        assert made.create_time == made.active_time
        assert not made.HasField("error")
        assert not made.HasField("end_time")
        request = acp_pb.GetSessionRequest(acp_session_id=made.acp_session_id)
        assert (await acp.call("GetSession", request)).session == made
        assert await acp.spawn() == made


async def test_a_hopeless_spawn_is_refused_with_what_is_missing(tmp_path: Path) -> None:
    async with served(tmp_path) as acp:
        with pytest.raises(AcpHarnessNotFound):
            await acp.spawn(harness_id="nobody")
        with pytest.raises(AcpBackendMissing):
            await acp.spawn(harness_id="gone")
        wrong: list[tuple[str, dict[str, Any]]] = [
            ("request_id", {"request_id": ""}),
            ("request_id", {"request_id": "q" * 129}),
            ("spec.label", {"label": "l" * 65}),
            ("spec.mode", {"mode": 9}),
            ("spec.permission_mode", {"permission_mode": 9}),
            ("spec.env_names[0]", {"env_names": ["A=B"]}),
            ("spec.env_names[0]", {"env_names": ["PATH"]}),
            ("spec.env_names", {"env_names": [f"A{i}" for i in range(65)]}),
            ("spec.turn_timeout", {"turn_timeout": {"nanos": 5}}),
            ("spec.ask_timeout", {"ask_timeout": {"seconds": 9}}),
            ("spec.cwd", {"cwd": f"{tmp_path}/none"}),
        ]
        for field, spec in wrong:
            with pytest.raises(InvalidField) as caught:
                await acp.spawn(**spec)
            assert caught.value.metadata["field"] == field
        assert await acp.page() == ([], "")


async def test_sessions_are_listed_newest_first_in_pages(tmp_path: Path) -> None:
    async with served(tmp_path) as acp:
        ids = [
            (
                await acp.spawn(str(i), customer_key=f"c{i % 2}", parent_session_key=f"p{i // 2}")
            ).acp_session_id
            for i in range(5)
        ]
        first, token = await acp.page(size=2)
        second, token = await acp.page(size=2, token=token)
        third, end = await acp.page(size=2, token=token)
        assert (first + second + third, end) == (ids[::-1], "")
        even = pb.AcpSessionFilter(customer_key="c0")
        assert (await acp.page(even))[0] == [ids[4], ids[2], ids[0]]
        with pytest.raises(InvalidField, match="page_token"):
            await acp.page(even, token=token)
        with pytest.raises(InvalidField, match="page_size"):
            await acp.page(size=-1)
        both = pb.AcpSessionFilter(customer_key="c0", parent_session_key="p1", harness_id="sh")
        assert (await acp.page(both))[0] == [ids[2]]
        lane = pb.AcpSessionFilter(session_key=f"agent:sh:acp:{ids[3]}")
        assert (await acp.page(lane))[0] == [ids[3]]
        # Ended ones are shown to those who ask for them.
        await acp.call("CloseSession", acp_pb.CloseSessionRequest(acp_session_id=ids[0]))
        assert (await acp.page())[0] == ids[:0:-1]
        closed = pb.AcpSessionFilter(states=[pb.ACP_SESSION_STATE_CLOSED])
        assert (await acp.page(closed))[0] == [ids[0]]
        with pytest.raises(InvalidField, match=r"filter\.states"):
            await acp.page(pb.AcpSessionFilter(states=[pb.ACP_SESSION_STATE_UNSPECIFIED]))


async def test_settings_of_a_session_that_has_not_opened(tmp_path: Path) -> None:
    async with served(tmp_path) as acp:
        session_id = (await acp.spawn()).acp_session_id

        async def configure(**settings: Any) -> pb.AcpSession:
            request = acp_pb.ConfigureSessionRequest(
                acp_session_id=session_id, settings=pb.AcpSessionSettings(**settings)
            )
            answer: acp_pb.ConfigureSessionResponse = await acp.call("ConfigureSession", request)
            return answer.session

        changed = await configure(
            label="name",
            permission_mode=pb.PERMISSION_MODE_DENY_ALL,
            turn_timeout={"seconds": 60},
        )
        assert changed.spec.label == "name"
        assert changed.spec.permission_mode == pb.PERMISSION_MODE_DENY_ALL
        assert changed.spec.turn_timeout.seconds == 60
        assert (await configure()).spec == changed.spec
        assert (await configure(label="")).spec.label == ""
        for field, settings in {
            "settings.model": {"model": ""},
            "settings.cwd": {"cwd": ""},
            "settings.label": {"label": "l" * 65},
            "settings.turn_timeout": {"turn_timeout": {"seconds": 100_000}},
        }.items():
            with pytest.raises(InvalidField) as caught:
                await configure(**settings)
            assert caught.value.metadata["field"] == field


async def test_nothing_runs_so_nothing_is_cancelled(tmp_path: Path) -> None:
    async with served(tmp_path) as acp:
        session_id = (await acp.spawn()).acp_session_id
        request = acp_pb.CancelTurnRequest(acp_session_id=session_id, reason="enough")
        assert (await acp.call("CancelTurn", request)).run_id == ""
        close = acp_pb.CloseSessionRequest(acp_session_id=session_id)
        closed = await asyncio.gather(*(acp.call("CloseSession", close) for _ in range(3)))
        assert {answer.session.state for answer in closed} == {pb.ACP_SESSION_STATE_CLOSED}
        assert closed[0].session.HasField("end_time")

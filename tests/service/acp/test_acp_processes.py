"""Sessions with real processes: what they see, how they end, and that nothing stays behind."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from acp_svc.app import build
from conveyor.acp.v1 import acp_service_pb2 as acp_pb
from conveyor.acp.v1 import acp_service_pb2_grpc as acp_grpc
from conveyor.acp.v1 import session_pb2 as pb
from svckit.errors import (
    AcpSessionInitFailed,
    InvalidField,
    ServiceError,
)
from svckit.grpc import client
from svckit.grpc.channel import make_channel
from svckit.settings import load
from svckit.testing import eventually, free_port, in_process
from tests.service.acp.turn_bench import turn_bench

SCRIPTED = Path(__file__).parents[2] / "harnesses" / "scripted.py"


@dataclass
class House:
    """The service's calls, and what its harness started."""

    stub: Any
    root: Path

    async def spawn(self, request_id: str = "q", **spec: Any) -> pb.AcpSession:
        request = acp_pb.SpawnSessionRequest(spec=pb.AcpSessionSpec(**spec), request_id=request_id)
        answer: acp_pb.SpawnSessionResponse = await client.call(self.stub.SpawnSession(request))
        return answer.session

    async def get(self, session_id: str) -> pb.AcpSession:
        request = acp_pb.GetSessionRequest(acp_session_id=session_id)
        answer: acp_pb.GetSessionResponse = await client.call(self.stub.GetSession(request))
        return answer.session

    async def close(self, session_id: str) -> pb.AcpSession:
        request = acp_pb.CloseSessionRequest(acp_session_id=session_id)
        answer: acp_pb.CloseSessionResponse = await client.call(self.stub.CloseSession(request))
        return answer.session

    async def configure(self, session_id: str, **settings: Any) -> pb.AcpSession:
        request = acp_pb.ConfigureSessionRequest(
            acp_session_id=session_id, settings=pb.AcpSessionSettings(**settings)
        )
        answer: acp_pb.ConfigureSessionResponse = await client.call(
            self.stub.ConfigureSession(request)
        )
        return answer.session

    def pids(self) -> dict[str, int]:
        """All that the harness started and noted, itself included, by name; of many the newest."""
        noted = (self.root / "pids").read_text().split()
        return {name: int(pid) for name, pid in zip(noted[::2], noted[1::2], strict=True)}


def lives(pid: int) -> bool:
    try:
        # One that was killed and that nobody waited for is gone, too.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def seen_by(pid: int) -> tuple[Path, set[str]]:
    """Where a process works, and the names of its variables."""
    variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    names = {variable.partition(b"=")[0].decode() for variable in variables}
    return Path(f"/proc/{pid}/cwd").readlink(), names


def configured(root: Path, *flags: str, acp: str = "", listen: str = "127.0.0.1:0") -> Path:
    work = root / "work"
    work.mkdir(exist_ok=True)
    command = [sys.executable, str(SCRIPTED), "--pids", str(root / "pids"), *flags]
    config = root / "conveyor.toml"
    config.write_text(
        f"""
        [services]
        scheduler = "127.0.0.1:1"
        acp = "{listen}"
        [store]
        url = "sqlite:///{root}/data"
        [acp]
        default_harness = "scripted"
        workspace_roots = ["{work}"]
        permission_mode = "ask"
        {acp}
        [acp.harness.scripted]
        command = {command}
        env_names = ["OWN_TOKEN"]
        """
    )
    return config


@asynccontextmanager
async def house(root: Path, *flags: str, acp: str = "") -> AsyncIterator[House]:
    config = configured(root, *flags, acp=acp)
    async with in_process(build, load(config, {})) as service:
        yield House(acp_grpc.AcpServiceStub(service.channel), root)


async def test_a_session_is_ready_and_leaves_nothing_when_closed(tmp_path: Path) -> None:
    flags = ("--child", "--stray", "--load", "--models", "a,b", "--modes", "ask,plan")
    async with house(tmp_path, *flags) as h:
        session = await h.spawn(label="it", model="b")
        assert (session.state, session.worker) == (pb.ACP_SESSION_STATE_READY, "acp-0")
        assert session.upstream_session_id
        assert session.loadable
        assert session.opening == pb.ACP_OPENING_NEW
        assert (list(session.harness_modes), session.harness_mode) == (["ask", "plan"], "ask")
        assert list(session.models) == ["a", "b"]
        pids = h.pids()
        assert len(pids) == 3
        assert all(map(lives, pids.values()))
        closed = await h.close(session.acp_session_id)
        assert (closed.state, closed.worker) == (pb.ACP_SESSION_STATE_CLOSED, "")
        assert not any(map(lives, pids.values()))


async def test_a_process_sees_its_directory_and_no_secret_of_the_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OWN_TOKEN", "ASKED_FOR", "NOT_ASKED_FOR", "DATABASE_PASSWORD"):
        monkeypatch.setenv(name, f"value of {name}")
    async with house(tmp_path, acp='env_names = ["ASKED_FOR", "NOT_ASKED_FOR"]') as h:
        (tmp_path / "work" / "real").mkdir()
        (tmp_path / "work" / "link").symlink_to("real")
        session = await h.spawn(cwd=str(tmp_path / "work" / "link"), env_names=["ASKED_FOR"])
        [pid] = h.pids().values()
        directory, names = seen_by(pid)
        assert directory == tmp_path / "work" / "real"
        assert session.spec.cwd == str(tmp_path / "work" / "real")
        assert {"OWN_TOKEN", "ASKED_FOR", "PATH"} <= names
        assert not names & {"NOT_ASKED_FOR", "DATABASE_PASSWORD"}
        for name in ("DATABASE_PASSWORD", "OWN_SECRET"):
            with pytest.raises(InvalidField):
                await h.spawn("other", env_names=[name])


async def test_the_idlest_process_gives_way_and_its_session_comes_back(tmp_path: Path) -> None:
    async with house(tmp_path, "--load", acp="max_sessions = 1") as h:
        first = await h.spawn("1")
        before = h.pids()
        second = await h.spawn("2")
        assert not any(map(lives, before.values()))
        parked = await h.get(first.acp_session_id)
        assert (parked.state, parked.worker) == (pb.ACP_SESSION_STATE_PARKED, "")
        assert (await h.get(second.acp_session_id)).state == pb.ACP_SESSION_STATE_READY
        [pid] = h.pids().values()
        # What it is configured to be meanwhile, it is when it comes back.
        await h.configure(second.acp_session_id, permission_mode=pb.PERMISSION_MODE_APPROVE_ALL)
        assert lives(pid)


async def test_what_a_real_harness_offers_is_set_and_what_it_does_not_is_refused(
    tmp_path: Path,
) -> None:
    flags = ("--modes", "ask,plan,yolo", "--models", "a,b", "--options", "effort=low,high")
    async with house(tmp_path, *flags) as h:
        session_id = (await h.spawn()).acp_session_id
        changed = await h.configure(
            session_id, harness_mode="plan", model="b", options={"effort": "high"}, label="l"
        )
        assert changed.harness_mode == "plan"
        assert changed.spec.model == "b"
        assert changed.options["effort"] == "high"
        wrong: list[dict[str, Any]] = [
            {"harness_mode": "none"},
            {"harness_mode": "yolo"},
            {"model": "c"},
            {"options": {"none": "1"}},
            {"options": {"effort": "huge"}},
        ]
        for settings in wrong:
            with pytest.raises(InvalidField):
                await h.configure(session_id, label="other", **settings)
            assert (await h.get(session_id)).spec.label == "l"
        # What asks for nothing may do all.
        free = await h.configure(
            session_id, permission_mode=pb.PERMISSION_MODE_APPROVE_ALL, harness_mode="yolo"
        )
        assert free.harness_mode == "yolo"
        back = await h.configure(session_id, permission_mode=pb.PERMISSION_MODE_ASK)
        assert back.harness_mode == "ask"


@pytest.mark.parametrize(
    ("flags", "cause"),
    [
        (("--exit-at", "new:3", "--stderr", "no luck"), "crashed"),
        (("--auth-at", "new"), "auth_required"),
    ],
)
async def test_a_spawn_that_fails_says_why_and_leaves_nothing(
    tmp_path: Path, flags: tuple[str, ...], cause: str
) -> None:
    async with house(tmp_path, *flags, acp="handshake_seconds = 1") as h:
        with pytest.raises(AcpSessionInitFailed) as caught:
            await h.spawn()
        assert caught.value.metadata["cause"] == cause
        if "--stderr" in flags:
            assert caught.value.metadata["lastWords"].startswith("no luck")
        assert not any(map(lives, h.pids().values()))
        request = acp_pb.ListSessionsRequest(
            filter=pb.AcpSessionFilter(states=[pb.ACP_SESSION_STATE_FAILED])
        )
        [failed] = (await client.call(h.stub.ListSessions(request))).sessions
        assert failed.error.message == caught.value.message


async def test_an_idle_session_is_closed_with_its_process(tmp_path: Path) -> None:
    async with house(tmp_path, acp="idle_minutes = 0.02") as h:
        session = await h.spawn()
        pids = h.pids()

        async def closed() -> bool:
            return (await h.get(session.acp_session_id)).state == pb.ACP_SESSION_STATE_CLOSED

        await eventually(closed)
        assert not any(map(lives, pids.values()))


async def test_a_stop_parks_and_the_next_start_knows(tmp_path: Path) -> None:
    async with house(tmp_path, "--child", "--load") as h:
        session = await h.spawn()
        pids = h.pids()
        assert all(map(lives, pids.values()))
    assert not any(map(lives, pids.values()))
    async with house(tmp_path, "--load") as h:
        parked = await h.get(session.acp_session_id)
        assert parked.state == pb.ACP_SESSION_STATE_PARKED
        assert parked.upstream_session_id == session.upstream_session_id
        # The same request still means the same session.
        assert (await h.spawn()).acp_session_id == session.acp_session_id


async def test_nothing_of_a_killed_service_is_left_after_its_next_start(tmp_path: Path) -> None:
    listen = f"127.0.0.1:{free_port()}"
    config = configured(tmp_path, "--child", "--stray", "--deaf", "--load", listen=listen)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "acp_svc", "--config", str(config), stderr=asyncio.subprocess.DEVNULL
    )
    try:
        channel = make_channel(listen)
        try:
            h = House(acp_grpc.AcpServiceStub(channel), tmp_path)

            async def ready() -> bool:
                try:
                    await h.get("none")
                except ServiceError as error:
                    return error.reason == "ACP_SESSION_NOT_FOUND"
                return False

            await eventually(ready, timeout=30)
            session = await h.spawn()
        finally:
            await channel.close()
        pids = h.pids()
        process.send_signal(signal.SIGKILL)
        await process.wait()
        assert all(map(lives, pids.values())), "deaf ones stay: that is the point"
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    async with in_process(build, load(config, {})) as service:
        # Killed they are; gone they are when the system has come to it.
        await eventually(lambda: not any(map(lives, pids.values())))
        h = House(acp_grpc.AcpServiceStub(service.channel), tmp_path)
        assert (await h.get(session.acp_session_id)).state == pb.ACP_SESSION_STATE_PARKED


async def test_a_run_that_is_cancelled_while_its_session_opens_leaves_nothing(
    tmp_path: Path,
) -> None:
    pids = tmp_path / "pids"
    hangs = ("--hang-at", "new", "--pids", str(pids))
    async with turn_bench(tmp_path, {"scripted": hangs}) as b:
        stored = await b.spawn()
        child = pb.AcpSessionSpec(mode=pb.ACP_SESSION_MODE_ONESHOT)
        runs = [
            await b.send(stored, "", open_only=True),
            await b.send("", "say:hello", new=child, key="child"),
        ]
        await eventually(lambda: pids.exists() and pids.read_text().count("\n") == 2)
        started = [int(pid) for pid in pids.read_text().split()[1::2]]
        for run_id in runs:
            await b.cancel(run_id)

        async def over() -> bool:
            states = [pb.ACP_SESSION_STATE_CLOSED]
            request = acp_pb.ListSessionsRequest(filter=pb.AcpSessionFilter(states=states))
            return len((await client.call(b.acp.ListSessions(request))).sessions) == 2

        await eventually(over)
        assert not any(map(lives, started))


async def test_a_harness_that_ends_for_nobody_does_not_outlive_the_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("acp_svc.app.DRAIN_GRACE_SECONDS", 0.1)
    monkeypatch.setattr("acp_svc.app.DRAIN_TURNS_SECONDS", 0.2)
    pids = tmp_path / "pids"
    deaf = ("--deaf", "--ignore-cancel", "--child", "--pids", str(pids))
    async with turn_bench(tmp_path, {"scripted": deaf}) as b:
        session_id = await b.spawn()
        await b.said(await b.send(session_id, "say:begun ;; never-end"), "begun")
        started = [int(pid) for pid in pids.read_text().split()[1::2]]
        assert len(started) == 2
    assert not any(map(lives, started))
    assert "drain took too long" not in caplog.text

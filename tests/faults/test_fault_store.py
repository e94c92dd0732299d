"""Databases that are damaged, full or read-only: said at the start, survived at run time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import shutil
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from conveyor.scheduler.v1 import run_pb2
from conveyor_client import ConveyorClient
from svckit.grpc.status import from_proto
from svckit.testing import eventually
from tests.system.harness import (
    SUCCEEDED,
    Suite,
    chat,
    nothing_unfinished,
    payloads,
    replies,
    run_where,
    running,
)

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
DATABASES = ("scheduler", "agent", "gateway")


@contextmanager
def mounted(where: Path, options: str) -> Iterator[Path]:
    """Mount a file system of our own, or skip the test where that is not allowed."""
    where.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "conveyor-test", str(where)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("this user may not mount a file system")
    try:
        yield where
    finally:
        subprocess.run(["umount", "-l", str(where)], check=True)


def refused_start(suite: Suite) -> str:
    """Start what cannot start; returns the one line that says why."""
    suite.launch()
    assert suite.exit_code() == 2
    (line,) = [line for line in suite.lines if line.startswith("error: ")]
    assert "Traceback" not in suite.output
    assert suite.pids() == {}
    return line


# At the start


@pytest.mark.parametrize("service", DATABASES)
def test_a_damaged_database_is_named_at_the_start(tmp_path: Path, service: str) -> None:
    suite = Suite(tmp_path)
    suite.store.mkdir()
    damaged = suite.store / f"{service}.db"
    damaged.write_bytes(b"no database at all, but long enough to look at " * 100)
    line = refused_start(suite)
    assert f"{service} cannot start" in line
    assert str(damaged) in line
    assert "damaged" in line


@pytest.mark.parametrize("service", DATABASES)
def test_a_database_of_a_newer_release_is_named_at_the_start(tmp_path: Path, service: str) -> None:
    suite = Suite(tmp_path)
    suite.store.mkdir()
    with contextlib.closing(sqlite3.connect(suite.store / f"{service}.db")) as db, db:
        if service == "scheduler":
            db.execute("PRAGMA user_version = 99")
        else:
            db.execute("CREATE TABLE alembic_version (version_num TEXT)")
            db.execute("INSERT INTO alembic_version VALUES ('9999_from_the_future')")
    line = refused_start(suite)
    assert f"{service} cannot start" in line
    assert "newer" in line
    assert "schema" in line


def test_a_full_disk_is_said_at_the_start(tmp_path: Path) -> None:
    with mounted(tmp_path / "small", "size=64k") as small:
        line = refused_start(Suite(tmp_path, store=small / "data"))
    assert "cannot start" in line
    assert str(small) in line
    assert "full" in line


def test_a_read_only_directory_is_said_at_the_start(tmp_path: Path) -> None:
    where = tmp_path / "kept"
    if os.geteuid() == 0:  # whom permissions do not stop
        with mounted(where, "size=1m,ro"):
            line = refused_start(Suite(tmp_path, store=where / "data"))
    else:
        where.mkdir(mode=0o555)
        line = refused_start(Suite(tmp_path, store=where / "data"))
    assert "cannot start" in line
    assert str(where) in line


# At run time


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    with running(tmp_path_factory.mktemp("store")) as started:
        yield started


@pytest.fixture
async def client(suite: Suite) -> AsyncIterator[ConveyorClient]:
    async with suite.client() as open_client:
        yield open_client
        await nothing_unfinished(open_client)


@contextmanager
def no_writes(suite: Suite, service: str) -> Iterator[None]:
    """Let no file of a service grow, which it sees as a disk that takes no more."""
    pid = suite.pids()[service]
    soft, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, hard))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, hard))


async def health(address: str) -> int:
    """Return what a service says about its health."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=20)
        return int(answer.status)


async def until_health(address: str, wanted: int) -> None:
    """Wait until a service says so."""

    async def look() -> bool:
        return await health(address) == wanted

    await eventually(look, timeout=60)


async def test_a_scheduler_whose_store_is_full_says_so_and_recovers_by_itself(
    suite: Suite, client: ConveyorClient, session: str
) -> None:
    """What was accepted before goes on afterwards, once, though its turn ends in the bad time."""
    before = await client.send("[[sleep: 300ms]] [[reply: before]]", session_key=session)
    await run_where(client, before.accepted.run.run_id, run_pb2.RUN_STATE_RUNNING)
    lines = len(suite.lines)
    pids = suite.pids()
    async with httpx.AsyncClient(base_url=suite.http, timeout=60) as http:
        with no_writes(suite, "scheduler"):
            refused = await http.post(f"/v1/sessions/{session}/messages", json={"text": "lost"})
            assert refused.status_code == 503, refused.text
            assert refused.json()["error"]["reason"] == "STORE_UNAVAILABLE"
            assert int(refused.headers["retry-after"]) >= 1
            await until_health(suite.scheduler, NOT_SERVING)
            ready = await http.get("/readyz")
            assert ready.status_code == 503
            assert ready.json()["parts"]["scheduler"] == "not serving"
            # Reading goes on.
            listed = await http.get("/v1/runs", params={"session_key": session})
            assert listed.status_code == 200
        await until_health(suite.scheduler, SERVING)
        assert (await http.get("/readyz")).status_code == 200
    assert (await chat(client, "[[reply: after]]", session_key=session)).answer == "after"
    await run_where(client, before.accepted.run.run_id, SUCCEEDED)
    assert replies(await suite.events(session)) == ["before", "after"]
    assert suite.pids() == pids, "nothing was restarted"
    assert not [line for line in suite.lines[lines:] if "starting it again" in line]


async def test_a_client_waits_through_a_full_store(
    suite: Suite, client: ConveyorClient, session: str
) -> None:
    with no_writes(suite, "scheduler"):
        sending = asyncio.create_task(
            client.send("[[reply: patient]]", session_key=session, request_id=session[-50:])
        )
        await until_health(suite.scheduler, NOT_SERVING)
        assert not sending.done()
    sent = await sending
    await run_where(client, sent.accepted.run.run_id, SUCCEEDED)
    assert replies(await suite.events(session)) == ["patient"]


async def test_a_turn_whose_transcript_cannot_be_written_is_tried_again(
    suite: Suite, client: ConveyorClient, session: str
) -> None:
    with no_writes(suite, "agent"):
        sent = await client.send("[[reply: written]]", session_key=session)

        async def failed_once() -> bool:
            changes = payloads(await suite.events(session), "run_state_changed")
            reasons = [from_proto(c.error).reason for c in changes if c.HasField("error")]
            return "STORE_UNAVAILABLE" in reasons

        await eventually(failed_once, timeout=60)
    run = await run_where(client, sent.accepted.run.run_id, SUCCEEDED)
    assert run.attempt > 1
    assert replies(await suite.events(session)) == ["written"]


async def test_a_gateway_whose_store_is_full_refuses_new_sessions_and_recovers(
    suite: Suite, client: ConveyorClient, session: str
) -> None:
    async with httpx.AsyncClient(base_url=suite.http, timeout=60) as http:
        path = f"/v1/sessions/{session}/messages"
        with no_writes(suite, "gateway"):
            refused = await http.post(path, json={"text": "lost"})
            assert refused.status_code == 503, refused.text
            assert refused.json()["error"]["reason"] == "STORE_UNAVAILABLE"
        sent = await http.post(path, json={"text": "[[reply: kept]]"})
        assert sent.status_code == 202, sent.text
    await run_where(client, sent.json()["accepted"]["run"]["run_id"], SUCCEEDED)
    assert replies(await suite.events(session)) == ["kept"]


async def test_a_disk_that_fills_up_and_is_freed(tmp_path: Path) -> None:
    """All services on one real file system without space: nothing dies, and all goes on."""
    with (
        mounted(tmp_path / "small", "size=8m") as small,
        running(tmp_path, store=small / "data") as suite,
    ):
        pids = suite.pids()
        async with suite.client() as client, httpx.AsyncClient(base_url=suite.http) as http:
            assert (await chat(client, "[[reply: before]]", session_key="k")).answer == "before"

            async def refused() -> bool:
                # A write-ahead log has some room of its own before it needs the disk.
                sent = await http.post(
                    "/v1/sessions/k/messages", json={"text": "x" * 200_000}, timeout=20
                )
                if sent.status_code == 202:
                    return False
                assert sent.json()["error"]["reason"] == "STORE_UNAVAILABLE", sent.text
                return True

            with filled(small):
                await eventually(refused, timeout=60)
            await until_health(suite.scheduler, SERVING)
            assert (await chat(client, "[[reply: after]]", session_key="k")).answer == "after"
            await nothing_unfinished(client)
            assert replies(await suite.events("k"))[-1] == "after"
        assert suite.pids() == pids


@contextmanager
def filled(disk: Path) -> Iterator[None]:
    """Leave no space on a disk while the block lasts."""
    filler = disk / "filler"
    descriptor = os.open(filler, os.O_CREAT | os.O_WRONLY)
    try:
        with contextlib.suppress(OSError):
            while True:
                os.write(descriptor, b"\0" * 4096)
        assert os.statvfs(disk).f_bavail == 0
        yield
    finally:
        os.close(descriptor)
        filler.unlink()

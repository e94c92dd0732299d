"""The life of a service as a process: ready, health, reflection, drain, exit codes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from conveyor.events.v1 import event_log_service_pb2 as log_pb2
from conveyor.events.v1 import event_log_service_pb2_grpc as log_grpc
from svckit.testing import eventually

SCRIPT = Path(__file__).with_name("example_service.py")
NAME = "conveyor.events.v1.EventLogService"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Process:
    """The example service and what it said."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.address = ""
        self.ready: dict[str, Any] = {}

    @property
    def pid(self) -> int:
        return self.process.pid

    async def until_ready(self) -> None:
        assert self.process.stderr is not None
        async with asyncio.timeout(20):
            while not self.ready:
                line = await self.process.stderr.readline()
                assert line, "ended before it was ready"
                entry = json.loads(line)
                if entry["event"] == "ready":
                    self.ready = entry
                    self.address = entry["address"]

    async def ended(self) -> tuple[int, list[str], str]:
        """Exit code, lines of standard output, standard error."""
        async with asyncio.timeout(20):
            out, err = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, out.decode().splitlines(), err.decode()

    def events(self, stderr: str) -> list[str]:
        return [json.loads(line)["event"] for line in stderr.splitlines()]


@contextlib.asynccontextmanager
async def started(*arguments: str, ready: bool = True, **env: str) -> AsyncIterator[Process]:
    environ = {**os.environ, "CONVEYOR_SERVICES__SCHEDULER": "127.0.0.1:0", **env}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(SCRIPT),
        *arguments,
        env=environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    example = Process(process)
    try:
        if ready:
            await example.until_ready()
        yield example
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


@contextlib.asynccontextmanager
async def channel_to(example: Process) -> AsyncIterator[aio.Channel]:
    # Not one of ours, which would try again to reach a service that stopped.
    channel = aio.insecure_channel(example.address)
    try:
        yield channel
    finally:
        await channel.close()


async def check(channel: aio.Channel, service: str = "") -> int:
    answer = await health_pb2_grpc.HealthStub(channel).Check(
        health_pb2.HealthCheckRequest(service=service), timeout=30
    )
    return int(answer.status)


async def test_ready_health_reflection_and_the_order_of_the_drain() -> None:
    async with started() as example, channel_to(example) as channel:
        assert 0 < example.ready["milliseconds"] < 10_000
        assert await check(channel) == SERVING
        assert await check(channel, NAME) == SERVING
        ask = reflection_pb2.ServerReflectionRequest(list_services="")
        reflect = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
            iter([ask])
        )
        async for answer in reflect:
            names = {s.name for s in answer.list_services_response.service}
            assert {NAME, "grpc.health.v1.Health"} <= names

        log = log_grpc.EventLogServiceStub(channel)
        watch = log.WatchEvents(log_pb2.WatchEventsRequest())
        assert (await watch.read()).progress.sequence == 1
        health = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await health.read()).status == SERVING
        held = asyncio.ensure_future(log.ListEvents(log_pb2.ListEventsRequest(session_key="hold")))

        example.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert (await health.read()).status == NOT_SERVING
        assert await health.read() is aio.EOF
        assert (await watch.read()).progress.sequence == 2
        assert await watch.read() is aio.EOF
        assert await watch.code() is grpc.StatusCode.OK
        code, out, err = await example.ended()
        assert time.monotonic() - began < 15
        with pytest.raises(aio.AioRpcError):
            await held
    assert code == 0
    assert out == ["open", "drain True", "close"]
    assert example.events(err) == ["draining", "stopped"]


async def test_health_flips_at_run_time() -> None:
    async with started() as example, channel_to(example) as channel:
        log = log_grpc.EventLogServiceStub(channel)
        await log.ListEvents(log_pb2.ListEventsRequest(session_key="store-gone"))

        async def not_serving() -> bool:
            return await check(channel, NAME) == NOT_SERVING

        await eventually(not_serving)


async def test_a_dead_background_task_stops_the_service() -> None:
    async with started() as example, channel_to(example) as channel:
        log = log_grpc.EventLogServiceStub(channel)
        await log.ListEvents(log_pb2.ListEventsRequest(session_key="die"))
        code, out, err = await example.ended()
    assert code == 1
    assert out == ["open", "drain True", "close"]
    assert example.events(err) == ["background task died", "draining", "stopped"]
    assert "the engine broke" in err


async def test_the_same_signal_again_ends_at_once() -> None:
    async with started() as example, channel_to(example) as channel:
        log = log_grpc.EventLogServiceStub(channel)
        held = asyncio.ensure_future(log.ListEvents(log_pb2.ListEventsRequest(session_key="hold")))
        watch = log.WatchEvents(log_pb2.WatchEventsRequest())
        await watch.read()
        example.process.send_signal(signal.SIGTERM)
        assert (await watch.read()).progress.sequence == 2  # it drains, and waits for `held`
        example.process.send_signal(signal.SIGTERM)
        code, out, _ = await example.ended()
        with pytest.raises(aio.AioRpcError):
            await held
    assert code == 128 + signal.SIGTERM
    assert "close" not in out


async def test_ctrl_c_followed_by_the_supervisors_signal_still_drains() -> None:
    async with started() as example:
        example.process.send_signal(signal.SIGINT)
        example.process.send_signal(signal.SIGTERM)
        code, out, _ = await example.ended()
    assert (code, out[-1]) == (0, "close")


@pytest.mark.parametrize(
    ("arguments", "env", "says"),
    [
        ([], {"CONVEYOR_LANES__MAIN__LIMIT": "x"}, "lanes.main.limit: "),
        (["--config", "/no/such.toml"], {}, "/no/such.toml: cannot be read"),
        ([], {"EXAMPLE_START_ERROR": "1"}, "the store is from the future"),
        ([], {"CONVEYOR_SERVICES__SCHEDULER": "no-such-host.invalid:1"}, "cannot listen on"),
    ],
)
async def test_why_it_does_not_start_is_one_line(
    arguments: list[str], env: dict[str, str], says: str
) -> None:
    async with started(*arguments, ready=False, **env) as example:
        code, _, err = await example.ended()
    assert code == 2
    assert err.startswith("example-svc: ")
    assert says in err
    assert err.count("\n") == 1


async def test_a_port_in_use_is_one_line() -> None:
    async with started() as first:
        async with started(ready=False, CONVEYOR_SERVICES__SCHEDULER=first.address) as second:
            code, out, err = await second.ended()
        assert first.process.returncode is None
    assert code == 2
    assert out == [], "no store is touched when the port is taken"
    assert err == (
        f"example-svc: cannot listen on {first.address}: another process uses that port; "
        "stop it, or choose another address in the configuration\n"
    )


async def test_it_goes_with_its_parent() -> None:
    """The parent starts the service, hands us its standard error, and is killed."""
    read, write = os.pipe()
    parent = subprocess.Popen(  # noqa: ASYNC220  its pipe has to outlive it
        [
            sys.executable,
            "-c",
            "import subprocess, sys, time\n"
            "subprocess.Popen([sys.executable, *sys.argv[1:]])\n"
            "time.sleep(60)\n",
            str(SCRIPT),
            "--exit-with-parent",
        ],
        env={**os.environ, "CONVEYOR_SERVICES__SCHEDULER": "127.0.0.1:0"},
        stdout=subprocess.DEVNULL,
        stderr=write,
    )
    os.close(write)
    try:
        with os.fdopen(read, encoding="utf-8") as lines:
            ready = await asyncio.to_thread(lines.readline)
            assert json.loads(ready)["event"] == "ready"
            parent.kill()
            # The pipe ends when the last process that holds it has.
            rest = await asyncio.wait_for(asyncio.to_thread(lines.read), 30)
    finally:
        parent.kill()
        parent.wait()
    assert [json.loads(line)["event"] for line in rest.splitlines()] == ["draining", "stopped"]


def test_starting_imports_nothing_heavy_that_is_not_needed() -> None:
    code = (
        "import sys; import svckit.service, svckit.telemetry, svckit.grpc.channel, svckit.worker;"
        "from svckit.settings import load; load(environ={});"
        "print([m for m in ('alembic', 'sqlalchemy', 'opentelemetry.exporter', 'uvicorn',"
        " 'fastapi', 'httpx') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"

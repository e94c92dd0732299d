"""One child process: its start, its output, its health and its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections import deque
from collections.abc import Callable

from conveyor_client.supervision.addresses import accepts_connections, dial_address, listens
from conveyor_client.supervision.plan import Service

OUTPUT_KEPT = 200
"""Lines of output kept for the message about a child that cannot start."""

Relay = Callable[[str, str], None]
"""Called with the service's name and one line of its output."""


class Child:
    """A started process. Made by `Child.start`; ends with `ended()` or `kill()`."""

    def __init__(self, service: Service, process: asyncio.subprocess.Process, relay: Relay) -> None:
        self.service = service
        self._process = process
        self._relay = relay
        self._held: deque[str] | None = deque(maxlen=OUTPUT_KEPT)
        self._output = asyncio.create_task(self._follow_output())
        self._end = asyncio.create_task(self._wait_end())

    @classmethod
    async def start(cls, service: Service, relay: Relay) -> Child:
        """Start the process in a session of its own, so that a Ctrl-C reaches only us."""
        process = await asyncio.create_subprocess_exec(
            *service.argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={
                name: value
                for name, value in {**os.environ, **service.env}.items()
                if value is not None
            },
            start_new_session=True,
            limit=1 << 20,
        )
        return cls(service, process, relay)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """True until the process has ended."""
        return not self._end.done()

    async def ended(self) -> int:
        """Wait for the end and return the exit code (negative: the signal)."""
        return await asyncio.shield(self._end)

    async def healthy(self) -> None:
        """Return once the process itself says `SERVING`. Waits for ever; cancel it."""
        address = self.service.grpc_address
        encrypted = self.service.encrypted
        await wait_healthy(address, encrypted=encrypted)
        while not await asyncio.to_thread(listens, self.pid, address):
            # Somebody else answered. Ours will find its port taken, or get it after all.
            await asyncio.sleep(0.05)
            await wait_healthy(address, encrypted=encrypted)

    def show_output(self) -> None:
        """Relay what was held back since the start, and everything from now on."""
        held, self._held = self._held, None
        for line in held or ():
            self._relay(self.service.name, line)

    def take_last_words(self) -> str:
        """Return the last line held back: the reason, when the process says it cannot start."""
        while self._held:
            line = self._held.pop()
            if line.strip():
                return line
        return ""

    def terminate(self) -> None:
        """Ask the process to drain and end."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the process at once."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def _wait_end(self) -> int:
        code = await self._process.wait()
        # What it wrote last may still be in the pipe. A grandchild that keeps the pipe open must
        # not keep us waiting.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._output, timeout=0.5)
        return code

    async def _follow_output(self) -> None:
        assert self._process.stdout is not None
        while True:
            try:
                raw = await self._process.stdout.readline()
            except ValueError:  # a line beyond the limit: dropped, the pipe goes on
                continue
            if not raw:
                return
            line = raw.decode(errors="replace").rstrip()
            if self._held is None:
                self._relay(self.service.name, line)
            else:
                self._held.append(line)


async def wait_healthy(address: str, *, encrypted: bool = False) -> None:
    """Return once the server at `address` says `SERVING`. Waits for ever; cancel it.

    Of one that speaks TLS it is enough that it listens, which it does when it is ready: its
    certificate is for the name that clients dial, and it may want one of ours.
    """
    while encrypted:
        if await asyncio.to_thread(accepts_connections, address):
            return
        await asyncio.sleep(0.05)
    # Imported here: a process that only lists something has no use for it.
    import grpc
    import grpc.aio
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    options = [
        ("grpc.initial_reconnect_backoff_ms", 50),
        ("grpc.min_reconnect_backoff_ms", 50),
        ("grpc.max_reconnect_backoff_ms", 200),
        # Not shared with another channel, whose backoff would be ours.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    async with grpc.aio.insecure_channel(dial_address(address), options=options) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):
                answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=1.0)
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    return
            await asyncio.sleep(0.05)

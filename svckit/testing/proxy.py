"""A network that fails as told: a TCP proxy in front of a server, for tests of lost connections."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Proxy:
    """Passes bytes on, until told otherwise. Get it from `proxy`.

    `hold_requests`, `hold_answers`: keeps what comes from clients, or from the server, to itself;
    `hold_answers_from`: answers, from the first one on that holds these bytes.
    `refuse`: new connections are closed at once.
    """

    def __init__(self, host: str, port: int) -> None:
        self.hold_requests = False
        self.hold_answers = False
        self.hold_answers_from = b""
        self.refuse = False
        self.port = 0
        self._target = (host, port)
        self._pipes: set[_Pipe] = set()

    @property
    def held(self) -> int:
        """Bytes of requests that the server has not got."""
        return sum(len(pipe.requests) for pipe in self._pipes)

    @property
    def held_answers(self) -> int:
        """Bytes of answers that the clients have not got."""
        return sum(len(pipe.answers) for pipe in self._pipes)

    def cut_clients(self) -> None:
        """Ends the connections of the clients. The server sees nothing of it."""
        for pipe in self._pipes:
            pipe.client.transport.abort()

    def deliver(self) -> None:
        """Gives the server what was held back, also of clients that are gone by now."""
        for pipe in self._pipes:
            if not pipe.server.is_closing():
                pipe.server.write(bytes(pipe.requests))
                pipe.requests.clear()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client's connection, to its end."""
        if self.refuse:
            writer.close()
            return
        from_server, to_server = await asyncio.open_connection(*self._target)
        pipe = _Pipe(writer, to_server)
        self._pipes.add(pipe)
        await asyncio.gather(self._requests(pipe, reader), self._answers(pipe, from_server))

    async def _requests(self, pipe: _Pipe, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if self.hold_requests:
                    pipe.requests += data
                else:
                    pipe.server.write(data)
            if not pipe.client.is_closing():  # an end in order, not one of `cut_clients`
                pipe.server.close()

    async def _answers(self, pipe: _Pipe, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if self.hold_answers_from and self.hold_answers_from in data:
                    self.hold_answers, self.hold_answers_from = True, b""
                if self.hold_answers:
                    pipe.answers += data
                elif not pipe.client.is_closing():
                    pipe.client.write(data)
        pipe.client.close()

    def end(self) -> None:
        """Ends everything."""
        for pipe in self._pipes:
            pipe.client.transport.abort()
            pipe.server.transport.abort()


class _Pipe:
    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.client = client
        self.server = server
        self.requests = bytearray()
        self.answers = bytearray()


@asynccontextmanager
async def proxy(port: int, host: str = "127.0.0.1") -> AsyncIterator[Proxy]:
    """A proxy in front of `host:port`, on a port of its own (`Proxy.port`)."""
    found = Proxy(host, port)
    serving: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(found.serve(reader, writer))
        serving.add(task)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    found.port = server.sockets[0].getsockname()[1]
    try:
        yield found
    finally:
        server.close()
        found.end()
        await asyncio.gather(*serving, return_exceptions=True)
        await server.wait_closed()

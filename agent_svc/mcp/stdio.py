"""Carries MCP messages through the pipes of a program: one line of JSON each.

The SDK has a transport of its own, which starts the program itself. Ours is told of one that runs,
so that it can be stopped with all it started, its exit code be reported and its errors be kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import mcp_types
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.shared.message import SessionMessage

from svckit.programs import Program

Received = SessionMessage | Exception


@asynccontextmanager
async def streams(
    program: Program,
) -> AsyncIterator[
    tuple[MemoryObjectReceiveStream[Received], MemoryObjectSendStream[SessionMessage]]
]:
    """Both directions, as the SDK's client takes them. The program is not stopped at the end."""
    incoming, received = anyio.create_memory_object_stream[Received](0)
    to_send, outgoing = anyio.create_memory_object_stream[SessionMessage](0)
    tasks = [
        asyncio.create_task(_read(program, incoming), name="mcp reader"),
        asyncio.create_task(_write(program, outgoing, incoming), name="mcp writer"),
    ]
    try:
        yield received, to_send
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for stream in (incoming, received, to_send, outgoing):
            stream.close()


async def _read(program: Program, incoming: MemoryObjectSendStream[Received]) -> None:
    """Hand on what the program writes. Its end, or a line without an end, ends the connection."""
    with incoming:
        while line := await program.read():
            if not line.strip():
                continue
            message: Received
            try:
                parsed = mcp_types.jsonrpc_message_adapter.validate_json(line, by_name=False)
                message = SessionMessage(parsed)
            except ValueError:
                # Some servers print for people too. The session is told, and goes on.
                message = ValueError("a line that is no message")
            try:
                await incoming.send(message)
            except (anyio.ClosedResourceError, anyio.BrokenResourceError):
                return


async def _write(
    program: Program,
    outgoing: MemoryObjectReceiveStream[SessionMessage],
    incoming: MemoryObjectSendStream[Received],
) -> None:
    async with outgoing:
        async for item in outgoing:
            text = item.message.model_dump_json(by_alias=True, exclude_unset=True)
            try:
                await program.write(text.encode() + b"\n")
            except OSError:
                # It reads no more: whoever waits for an answer learns it by the end of the other
                # direction.
                incoming.close()
                return

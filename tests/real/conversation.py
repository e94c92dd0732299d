"""A conversation in which coding agents are spawned, as a person has it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from conveyor.acp.v1 import session_pb2 as acp
from conveyor.common.v1 import question_pb2
from conveyor.events.v1 import event_pb2
from conveyor.scheduler.v1 import run_pb2
from conveyor.scheduler.v1 import scheduler_service_pb2 as scheduler_pb
from conveyor_client import ConveyorClient
from svckit.testing import eventually
from tests.system.harness import Chat, Suite, chat, payloads, replies, run_where, text_of

WITHIN = 90
"""Seconds for one message, on a machine that is busy with other things."""


class Conversation:
    """One conversation. What is typed goes through the same door as any customer's message."""

    def __init__(self, suite: Suite, client: ConveyorClient, name: str) -> None:
        self.suite = suite
        self.client = client
        self.key = f"agent:main:http:direct:{name}"

    async def order(self, command: str) -> str:
        """Type a command and return what it answers at once."""
        answer = await self.client.send(command, session_key=self.key)
        assert not answer.accepted.run.run_id, f"{command} became a run"
        return text_of(answer.accepted.run.result.reply)

    async def ask(self, text: str) -> Chat:
        """Send a message and follow it to its end."""
        try:
            async with asyncio.timeout(WITHIN):
                return await chat(self.client, text, session_key=self.key)
        except TimeoutError:
            last = [str(event) for event in (await self.events())[-3:]]
            raise AssertionError(f"no end of {text!r} in {WITHIN} s; last: {last}") from None

    async def answer(self, text: str) -> str:
        """Send a message and return the answer; the run has to succeed."""
        told = await self.ask(text)
        assert told.ended.state == run_pb2.RUN_STATE_SUCCEEDED, told.ended.error
        return told.answer

    def asking(self, text: str) -> asyncio.Task[Chat]:
        """Send a message that will not be answered at once."""
        return asyncio.create_task(self.ask(text))

    async def events(self) -> list[event_pb2.Event]:
        """The log of the conversation."""
        return await self.suite.events(self.key)

    async def said(self, kind: str) -> Sequence[Any]:
        """The events of a kind."""
        return payloads(await self.events(), kind)

    async def hears(self, part: str, within: float = 60) -> str:
        """Wait for a message of the conversation that holds `part`, and return it."""

        async def look() -> str:
            texts = replies(await self.events())
            found = [text for text in texts if part in text]
            assert found, texts
            return found[-1]

        return await eventually(look, timeout=within)

    async def question(self, within: float = 60) -> question_pb2.Question:
        """Wait for the open question of the conversation."""

        async def look() -> question_pb2.Question:
            only = scheduler_pb.QuestionFilter(session_key=self.key)
            found = (await self.client.questions(only)).questions
            assert len(found) == 1
            return found[0]

        return await eventually(look, timeout=within)

    async def sessions(self, **states: Any) -> Mapping[str, acp.AcpSession]:
        """The ACP sessions that have not ended, by id."""
        found = await self.client.acp_sessions(
            acp.AcpSessionFilter(parent_session_key=self.key, **states)
        )
        return {session.acp_session_id: session for session in found.sessions}

    async def session(self) -> acp.AcpSession:
        """The one ACP session of the conversation that has not ended."""
        (found,) = (await self.sessions()).values()
        return found

    async def until_state(self, state: int, within: float = 60) -> acp.AcpSession:
        """Wait until the one session is in a state."""

        async def look() -> acp.AcpSession:
            found = await self.session()
            assert found.state == state, acp.AcpSessionState.Name(found.state)
            return found

        return await eventually(look, timeout=within)

    async def until_run(self, run_id: str, state: int, within: float = 60) -> run_pb2.Run:
        """Wait until a run is in a state."""
        return await run_where(self.client, run_id, state, within=within)

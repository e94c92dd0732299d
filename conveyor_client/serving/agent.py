"""The suite as an agent of the Agent Client Protocol (ACP), version 1.

An ACP session is a conversation of the suite, and its id is the session key: nothing is stored
here, so a client can load a session after this process, or the suite, was restarted. A prompt is a
message, answered when its whole spawn tree is done. Leaving a prompt open when the client goes away
stops nothing: the answer is in the history when the session is loaded again.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Iterable
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeVar

from acp.exceptions import RequestError
from acp.helpers import update_agent_message, update_available_commands, update_user_message
from acp.interfaces import Client
from acp.meta import PROTOCOL_VERSION
from acp.schema import (
    AgentCapabilities,
    AllowedOutcome,
    AuthenticateResponse,
    AvailableCommand,
    ClientCapabilities,
    CloseSessionResponse,
    Implementation,
    InitializeResponse,
    ListSessionsResponse,
    LoadSessionResponse,
    NewSessionResponse,
    PromptCapabilities,
    PromptResponse,
    ResumeSessionResponse,
    SessionCapabilities,
    SessionCloseCapabilities,
    SessionInfo,
    SessionListCapabilities,
    SessionResumeCapabilities,
)

from conveyor.common.v1 import content_pb2 as content_pb
from conveyor.common.v1 import question_pb2 as question_pb
from conveyor.gateway.v1 import gateway_service_pb2 as gateway_pb
from conveyor.gateway.v1 import session_pb2 as session_pb
from conveyor.scheduler.v1 import run_pb2 as run_pb
from conveyor_client.client import ConveyorClient
from conveyor_client.serving.content import BadContent, Block, blocks_of, message_of
from conveyor_client.serving.showing import Shown, permission
from svckit.errors import InvalidField, PayloadTooLarge, ServiceError, Unreachable
from svckit.ids import new_ulid
from svckit.logging import get_logger

T = TypeVar("T")

COMMANDS = {
    "help": "List the commands",
    "status": "Say what is going on here",
    "new": "Forget what was said so far",
    "model": "Show or choose the model",
    "subagents": "List, show, steer and stop sub-agents",
    "why": "Say why the newest request waits",
}
"""Commands that a client offers while its user types. Every other command works too."""

_PREFIX = "acp-client"
_PAGE = 200
_MOST_PAGES = 5
_BAD_PROMPT = (InvalidField, PayloadTooLarge)
_AUTH_REQUIRED, _NOT_FOUND, _INVALID_PARAMS, _INTERNAL = -32000, -32002, -32602, -32603
_log = get_logger("conveyor.acp.serve")


class SuiteAgent:
    """Answers one ACP client with the agents of a suite; an `acp.Agent`.

    `agent_id`: who answers; empty leaves it to the routes. Errors of the suite become JSON-RPC
    errors: -32000 without a valid token, -32002 for an unknown session, -32602 for a bad prompt,
    else -32603, with the suite's own reason in `data.reason`.
    """

    def __init__(self, suite: ConveyorClient, *, agent_id: str = "", version: str = "") -> None:
        self._suite = suite
        self._agent_id = agent_id
        self._version = version
        self._client: Client | None = None
        self._prompts: dict[str, set[_Prompt]] = {}
        self._telling: set[asyncio.Task[None]] = set()

    def on_connect(self, conn: Client) -> None:
        """Remember whom to tell what happens."""
        self._client = conn

    @property
    def _to(self) -> Client:
        assert self._client is not None, "the SDK connects before it asks"
        return self._client

    async def initialize(
        self,
        protocol_version: int,
        client_capabilities: ClientCapabilities | None = None,
        client_info: Implementation | None = None,
        **_: Any,
    ) -> InitializeResponse:
        """Say what this agent can. Asks the suite nothing: a client always gets this far."""
        return InitializeResponse(
            protocol_version=PROTOCOL_VERSION,
            agent_info=Implementation(
                name="conveyor", title="Conveyor", version=self._version or "unknown"
            ),
            agent_capabilities=AgentCapabilities(
                load_session=True,
                prompt_capabilities=PromptCapabilities(
                    image=True, audio=True, embedded_context=True
                ),
                session_capabilities=SessionCapabilities(
                    list=SessionListCapabilities(),
                    resume=SessionResumeCapabilities(),
                    close=SessionCloseCapabilities(),
                ),
            ),
            auth_methods=[],
        )

    async def authenticate(self, method_id: str, **_: Any) -> AuthenticateResponse:
        """Refused: the token is given to this command, not by the client."""
        raise RequestError.invalid_params({"reason": "there are no authentication methods"})

    async def new_session(self, cwd: str, **_: Any) -> NewSessionResponse:
        """Begin a conversation. Fails when the suite does not answer or the agent is unknown."""
        agents = await _asked(self._suite.agents(page_size=500))
        known = {agent.agent_id for agent in agents.agents}
        if self._agent_id and self._agent_id not in known:
            names = ", ".join(sorted(known))
            raise RequestError(
                _INVALID_PARAMS,
                f"there is no agent {self._agent_id!r}; there are: {names}",
                {"reason": "AGENT_NOT_FOUND"},
            )
        session_id = f"{self._root()}:{_digest(cwd)}-{new_ulid()}"
        self._tell_commands(session_id)
        return NewSessionResponse(session_id=session_id)

    async def load_session(self, cwd: str, session_id: str, **_: Any) -> LoadSessionResponse:
        """Replay what was said in a conversation."""
        async for message in self._history(session_id):
            for block in blocks_of(message):
                update = (
                    update_user_message(block)
                    if message.role == content_pb.ROLE_USER
                    else update_agent_message(block)
                )
                await self._to.session_update(
                    session_id, update.model_copy(update={"message_id": message.message_id})
                )
        self._tell_commands(session_id)
        return LoadSessionResponse()

    async def resume_session(self, cwd: str, session_id: str, **_: Any) -> ResumeSessionResponse:
        """Go on with a conversation without replaying it."""
        await _asked(self._suite.session(session_id))
        self._tell_commands(session_id)
        return ResumeSessionResponse()

    async def list_sessions(
        self, cwd: str | None = None, cursor: str | None = None, **_: Any
    ) -> ListSessionsResponse:
        """List conversations that clients began in a directory, last used first.

        Where a conversation began is known to its id as a digest only, so without `cwd` none are
        listed: each needs one in the answer.
        """
        listed = ListSessionsResponse(sessions=[], next_cursor=None)
        if cwd is None:
            return listed
        began_there = f"{_PREFIX}:{_digest(cwd)}-"
        wanted = session_pb.SessionFilter(kinds=[session_pb.SESSION_KIND_CONVERSATION])
        token = cursor or ""
        for _page in range(_MOST_PAGES):
            page = await _asked(self._suite.sessions(wanted, page_size=_PAGE, page_token=token))
            listed.sessions += [
                SessionInfo(
                    session_id=session.session_key,
                    cwd=cwd,
                    title=session.label or None,
                    updated_at=session.active_time.ToJsonString(),
                )
                for session in page.sessions
                if began_there in session.session_key
            ]
            token = page.next_page_token
            if not token:
                return listed
        listed.next_cursor = token
        return listed

    async def prompt(self, session_id: str, prompt: list[Block], **_: Any) -> PromptResponse:
        """Send a message and tell what happens until it and all it spawned are done."""
        try:
            message = message_of(prompt)
        except BadContent as error:
            raise RequestError(_INVALID_PARAMS, str(error)) from None
        async with self._prompting(session_id) as at_work:
            ended = await self._follow(session_id, message, at_work)
        if ended.state == run_pb.RUN_STATE_CANCELLED or at_work.cancelled:
            return PromptResponse(stop_reason="cancelled")
        if ended.state != run_pb.RUN_STATE_SUCCEEDED:
            raise _failed(ended)
        return PromptResponse(stop_reason="end_turn")

    async def cancel(self, session_id: str, **_: Any) -> None:
        """Stop what the client's prompts in a conversation started, as a whole."""
        for at_work in tuple(self._prompts.get(session_id, ())):
            await at_work.cancel(self._suite)

    async def close_session(self, session_id: str, **_: Any) -> CloseSessionResponse:
        """Stop what is under way. The conversation stays and can be loaded again."""
        await self.cancel(session_id)
        return CloseSessionResponse()

    async def ext_method(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """Refused: there are no extensions."""
        raise RequestError.method_not_found(method)

    async def ext_notification(self, method: str, params: dict[str, Any]) -> None:
        """Ignored, as the protocol asks for unknown ones."""

    # One prompt

    async def _follow(
        self, session_id: str, message: content_pb.Message, at_work: _Prompt
    ) -> run_pb.Run:
        shown = Shown(session_id)
        stream = self._suite.chat(
            message, session_key=session_id, agent_id=self._agent_id, include_descendants=True
        )
        try:
            async with aclosing(stream), _Questions(self._suite, self._to, session_id) as asked:
                async for item in stream:
                    if item.HasField("accepted"):
                        await at_work.accepted(item.accepted.run, self._suite)
                    for update in shown.updates(item):
                        await self._to.session_update(session_id, update)
                    asked.look(item)
                    if item.HasField("ended"):
                        return _ended(item)
        except ServiceError as error:
            raise _refused(error) from None
        raise RequestError(_INTERNAL, "the suite ended the answer early; load the session again")

    @asynccontextmanager
    async def _prompting(self, session_id: str) -> AsyncIterator[_Prompt]:
        at_work = _Prompt()
        self._prompts.setdefault(session_id, set()).add(at_work)
        try:
            yield at_work
        finally:
            self._prompts[session_id].discard(at_work)
            if not self._prompts[session_id]:
                del self._prompts[session_id]

    async def _history(self, session_id: str) -> AsyncIterator[content_pb.Message]:
        token = ""
        while True:
            page = await _asked(self._suite.messages(session_id, page_size=_PAGE, page_token=token))
            for message in page.messages:
                yield message
            token = page.next_page_token
            if not token:
                return

    def _root(self) -> str:
        return f"agent:{self._agent_id}:http:{_PREFIX}" if self._agent_id else _PREFIX

    def _tell_commands(self, session_id: str) -> None:
        """Tell after the answer: a client knows the session only then."""
        commands = [AvailableCommand(name=name, description=d) for name, d in COMMANDS.items()]

        async def tell() -> None:
            await self._to.session_update(session_id, update_available_commands(commands))

        task = asyncio.create_task(tell(), name="commands")
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)


class _Prompt:
    """A prompt at work. It may be cancelled before the suite has taken it."""

    def __init__(self) -> None:
        self.cancelled = False
        self._flow_id = ""

    async def accepted(self, run: run_pb.Run, suite: ConveyorClient) -> None:
        self._flow_id = run.spawn.flow_id or run.run_id
        if self.cancelled:
            await self.cancel(suite)

    async def cancel(self, suite: ConveyorClient) -> None:
        self.cancelled = True
        if self._flow_id:
            try:
                await suite.cancel_flow(self._flow_id, reason="cancelled by the client")
            except ServiceError as error:
                _log.warning("not cancelled", reason=error.reason)


class _Questions:
    """Asks the client's user what runs of one prompt ask, and takes it back when it is closed."""

    def __init__(self, suite: ConveyorClient, client: Client, session_id: str) -> None:
        self._suite = suite
        self._client = client
        self._session_id = session_id
        self._open: dict[str, asyncio.Task[None]] = {}

    async def __aenter__(self) -> _Questions:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop(self._open.values())

    def look(self, item: gateway_pb.ChatResponse) -> None:
        """Ask a question that comes; forget one that was closed elsewhere."""
        match item.event.WhichOneof("payload") if item.HasField("event") else None:
            case "question_asked":
                question = item.event.question_asked.question
                if question.question_id not in self._open:
                    self._open[question.question_id] = asyncio.create_task(
                        self._ask(question), name="question"
                    )
            case "question_closed":
                task = self._open.get(item.event.question_closed.answer.question_id)
                if task is not None:
                    task.cancel()

    async def _ask(self, question: question_pb.Question) -> None:
        call, options = permission(question)
        try:
            answer = await self._client.request_permission(
                session_id=self._session_id, tool_call=call, options=options
            )
        except RequestError as error:
            # The suite's own deadline closes it: other people may still answer elsewhere.
            _log.warning("the client does not answer questions", code=error.code)
            return
        if isinstance(answer.outcome, AllowedOutcome):
            try:
                await self._suite.answer(question.question_id, answer.outcome.option_id)
            except ServiceError as error:
                _log.warning("the answer was refused", reason=error.reason)

    @staticmethod
    async def _stop(tasks: Iterable[asyncio.Task[None]]) -> None:
        for task in (stopping := list(tasks)):
            task.cancel()
        await asyncio.gather(*stopping, return_exceptions=True)


def _ended(item: gateway_pb.ChatResponse) -> run_pb.Run:
    """Return how it ended. A command has no run, and its answer was shown: it succeeded."""
    ended = item.ended
    if not ended.run_id:
        ended.state = run_pb.RUN_STATE_SUCCEEDED
    return ended


def _failed(run: run_pb.Run) -> RequestError:
    if run.HasField("error"):
        from svckit.grpc.status import from_proto

        return _refused(from_proto(run.error))
    return RequestError(_INTERNAL, "the request did not succeed", {"runId": run.run_id})


def _refused(error: ServiceError) -> RequestError:
    code = {"UNAUTHENTICATED": _AUTH_REQUIRED, "NOT_FOUND": _NOT_FOUND}.get(
        error.grpc_code, _INVALID_PARAMS if isinstance(error, _BAD_PROMPT) else _INTERNAL
    )
    hint = " (is the suite running? start it with `conveyor up`)"
    message = error.message + (hint if isinstance(error, Unreachable) else "")
    return RequestError(code, message, {"reason": error.reason})


async def _asked(call: Awaitable[T]) -> T:
    try:
        return await call
    except ServiceError as error:
        raise _refused(error) from None


def _digest(cwd: str) -> str:
    return hashlib.blake2b(cwd.encode(), digest_size=6).hexdigest()

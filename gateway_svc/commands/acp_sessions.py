"""`/acp spawn`, `steer`, `status`, `cancel`, `close`, `sessions` and the settings of a session."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from conveyor.acp.v1 import session_pb2 as acp
from conveyor.common.v1 import content_pb2
from conveyor.events.v1 import event_log_service_pb2 as ev
from conveyor.gateway.v1 import gateway_service_pb2 as gw
from conveyor.scheduler.v1 import scheduler_service_pb2 as ss
from gateway_svc.commands.answering import Answering
from gateway_svc.commands.asked import Answer, Asked, Handler, Refused, Services
from gateway_svc.commands.trees import Trees
from gateway_svc.domain.commands.acp_settings import setting_text, settings_of
from gateway_svc.domain.commands.acp_targets import pick, pick_and_tell
from gateway_svc.domain.commands.acp_texts import (
    Work,
    cancelled_text,
    closed_text,
    sessions_text,
    spawned_text,
    status_text,
    steered_text,
    thread_problem,
    work_of,
)
from gateway_svc.domain.commands.acp_words import live, name_of
from gateway_svc.domain.commands.form import Form
from gateway_svc.domain.commands.problem import Problem
from gateway_svc.domain.commands.words import at_us
from gateway_svc.domain.deliveries import message_text
from gateway_svc.harness_sessions import Origin
from svckit.contract_words import PERMISSION_MODES, SESSION_MODES
from svckit.errors import EventsCompacted, InvalidField, RunNotFound

_PAGE = 500
_NEWEST_EVENTS = 500
_LIST = "acp"
_OF_HERE = ("bind_session_key", "session_key")
_ALL_STATES = [state for state in acp.AcpSessionState.values() if state]


class AcpSessions:
    """Handlers of the commands about sessions of coding agents.

    With a conversation only the sessions exist that work in its lane or were spawned from it or
    from its sub-agents, whoever asks.
    """

    def __init__(self, services: Services, trees: Trees, answering: Answering) -> None:
        self._do = services
        self._trees = trees
        self._answering = answering

    def handlers(self) -> Mapping[str, Handler]:
        """Return the handlers by the names of the grammar."""
        settings = ("permissions", "model", "set-mode", "set", "cwd", "timeout")
        return {
            "acp spawn": self.spawn,
            "acp steer": self.steer,
            "acp status": self.status,
            "acp cancel": self.cancel,
            "acp close": self.close,
            "acp sessions": self.sessions,
            **{f"acp {name}": self.setting for name in settings},
        }

    async def spawn(self, asked: Asked) -> Answer:
        """Begin to open a session; a run of it says when it is ready."""
        thread, bound = asked.get("thread"), asked.get("bind") == "here"
        problem = thread_problem(thread, bound=bound)
        if problem:
            raise Refused(problem)
        task = asked.get("task")
        spec = acp.AcpSessionSpec(
            harness_id=asked.get("harness").lower(),
            cwd=asked.get("cwd"),
            label=asked.get("label"),
            mode=SESSION_MODES.get(asked.get("mode"), acp.ACP_SESSION_MODE_UNSPECIFIED),
            permission_mode=PERMISSION_MODES.get(
                asked.get("permissions"), acp.PERMISSION_MODE_UNSPECIFIED
            ),
        )
        request = gw.SpawnAcpSessionRequest(
            spec=spec,
            bind_session_key=asked.session_key if bound else "",
            request_id=asked.request_id,
            return_starting=True,
        )
        if task:
            request.message.CopyFrom(_message(task))
        with _in_words():
            answer = await self._do.harness_sessions.spawn(request, asked.principal, _origin(asked))
        text = spawned_text(answer.session, bound=bound, task=bool(task), thread=thread)
        return Answer(text, answer)

    async def steer(self, asked: Asked) -> Answer:
        """Queue a message for a session."""

        async def meant() -> Sequence[str]:
            session, text = await self._told(asked)
            return (session.acp_session_id, text)

        session_id, text = await asked.decide(meant)
        found = await self._do.harness_sessions.get(
            gw.GetAcpSessionRequest(acp_session_id=session_id), asked.principal
        )
        request = gw.PromptAcpSessionRequest(
            acp_session_id=session_id, message=_message(text), request_id=asked.request_id
        )
        answer = await self._do.harness_sessions.prompt(request, asked.principal, _origin(asked))
        return Answer(steered_text(found.session, answer.accepted.estimate.position), answer)

    async def _told(self, asked: Asked) -> tuple[acp.AcpSession, str]:
        message, named = asked.get("message"), asked.get("session")
        first = message.split(maxsplit=1)[0]
        by_number = first.removeprefix("#").isdigit()
        listed, shown, bound_id = await self._known(asked, named or (first if by_number else ""))
        example = _with_target(asked.command.form)
        if named:
            found = pick(named, listed, shown, bound_id, example)
            told = found if isinstance(found, Problem) else (found, message)
        else:
            told = pick_and_tell(message, listed, shown, bound_id, example)
        if isinstance(told, Problem):
            raise Refused(told.text)
        return _open(told[0]), told[1]

    async def status(self, asked: Asked) -> Answer:
        """Say what a session does now; the newest one that ended where none is open."""
        typed = asked.get("target")
        listed, shown, bound_id = await self._known(asked, typed, ended=True)
        if not typed and listed and not any(live(session) for session in listed):
            chosen: acp.AcpSession | Problem = listed[-1]
        else:
            chosen = pick(typed, listed, shown, bound_id, _with_target(asked.command.form))
        if isinstance(chosen, Problem):
            raise Refused(chosen.text)
        found = await self._do.harness_sessions.get(
            gw.GetAcpSessionRequest(acp_session_id=chosen.acp_session_id), asked.principal
        )
        session = found.session
        questions = [
            question
            for question in await self._do.questions.open_of(asked.session_key, asked.principal)
            if question.acp_session_id == session.acp_session_id
        ]
        text = status_text(
            session,
            await self._work(session, asked),
            questions,
            self._trees.now_us,
            bound=session.acp_session_id == bound_id,
        )
        return Answer(text, found)

    async def cancel(self, asked: Asked) -> Answer:
        """Stop the turn at work."""
        session = await self._meant(asked, asked.get("target"))
        request = gw.CancelAcpTurnRequest(
            acp_session_id=session.acp_session_id, reason="stopped with /acp cancel"
        )
        answer = await self._do.harness_sessions.cancel(request, asked.principal)
        return Answer(cancelled_text(session, answer.run_id), answer)

    async def close(self, asked: Asked) -> Answer:
        """Close a session; a conversation that it answered goes back to its agent."""
        session = await self._meant(asked, asked.get("target"))
        request = gw.CloseAcpSessionRequest(acp_session_id=session.acp_session_id)
        answer = await self._do.harness_sessions.close(request, asked.principal, _origin(asked))
        bound = session.spec.session_key == asked.session_key
        agent_id = asked.conversation.agent_id if bound else ""
        return Answer(closed_text(answer.session, agent_id), answer)

    async def sessions(self, asked: Asked) -> Answer:
        """List those that are open."""
        listed = await self._list(asked)
        await self._trees.show(asked, _LIST, [session.acp_session_id for session in listed])
        text = sessions_text(
            listed, await self._answering.bound_id(asked), numbered=asked.routed is not None
        )
        return Answer(text, gw.ListAcpSessionsResponse(sessions=listed))

    async def setting(self, asked: Asked) -> Answer:
        """Show or change one setting."""
        form = asked.command.form
        if not asked.get(form.sets):
            session = await self._find(asked, asked.get("session"))
            found = await self._do.harness_sessions.get(
                gw.GetAcpSessionRequest(acp_session_id=session.acp_session_id), asked.principal
            )
            return Answer(setting_text(form.name, found.session, changed=False), found)
        session = await self._meant(asked, asked.get("session"))
        request = gw.ConfigureAcpSessionRequest(
            acp_session_id=session.acp_session_id,
            settings=settings_of(form.name, asked.command.arguments),
        )
        with _in_words():
            answer = await self._do.harness_sessions.configure(request, asked.principal)
        return Answer(setting_text(form.name, answer.session, changed=True), answer)

    async def _meant(self, asked: Asked, typed: str) -> acp.AcpSession:
        """Return the open session that a command is about, the same one when it comes again."""

        async def meant() -> Sequence[str]:
            return ((await self._find(asked, typed)).acp_session_id,)

        [session_id] = await asked.decide(meant)
        found = await self._do.harness_sessions.get(
            gw.GetAcpSessionRequest(acp_session_id=session_id), asked.principal
        )
        return found.session

    async def _find(self, asked: Asked, typed: str) -> acp.AcpSession:
        listed, shown, bound_id = await self._known(asked, typed)
        found = pick(typed, listed, shown, bound_id, _with_target(asked.command.form))
        if isinstance(found, Problem):
            raise Refused(found.text)
        return _open(found)

    async def _known(
        self, asked: Asked, typed: str, *, ended: bool = False
    ) -> tuple[list[acp.AcpSession], Sequence[str], str]:
        """Return the sessions, oldest first, what their numbers count in, and the bound one.

        Who typed something may mean a number that was shown; who did not may be told numbers.
        """
        listed = await self._list(asked, ended=ended)
        shown = (await self._trees.shown(asked)).of(_LIST) if typed else ()
        if not shown:
            shown = [session.acp_session_id for session in listed if live(session)]
            if len(shown) > 1:
                await self._trees.show(asked, _LIST, shown)
        return listed, shown, await self._answering.bound_id(asked)

    async def _list(self, asked: Asked, *, ended: bool = False) -> list[acp.AcpSession]:
        request = gw.ListAcpSessionsRequest(page_size=_PAGE)
        if asked.routed is not None:
            request.filter.customer_key = asked.routed.customer_key
        if ended:
            request.filter.states.extend(_ALL_STATES)
        found = await self._do.harness_sessions.list(request, asked.principal)
        own = [session for session in found.sessions if _belongs(session, asked.session_key)]
        return sorted(own, key=lambda session: session.acp_session_id)

    async def _work(self, session: acp.AcpSession, asked: Asked) -> Work:
        if not session.run_id:
            return Work()
        try:
            found = await self._do.operations.get_run(
                ss.GetRunRequest(run_id=session.run_id), asked.principal
            )
        except RunNotFound:
            return Work()
        lane = session.spec.session_key
        newest = await self._do.event_log.newest(lane)
        request = ev.ListEventsRequest(
            session_key=lane,
            after_sequence=max(0, (newest.sequence or 0) - _NEWEST_EVENTS),
            payloads=["harness_updated"],
            page_size=_NEWEST_EVENTS,
        )
        try:
            events = (await self._do.event_log.list(request)).events
        except EventsCompacted:
            events = ev.ListEventsResponse().events
        return work_of(events, session.run_id, at_us(found.run.timing.start_time))


@contextmanager
def _in_words() -> Iterator[None]:
    """Say what is wrong with a field as people know it, who typed no field."""
    try:
        yield
    except InvalidField as error:
        if not error.field_violations:
            raise
        name, text = error.field_violations[0]
        raise Refused(f"this conversation {text}" if name in _OF_HERE else text) from None


def _with_target(form: Form) -> str:
    """Return a command that says whom it is for."""
    if form.name == "acp steer":
        return "/acp steer 1 now run the tests"
    return f"{form.example} --session 1" if form.options else f"/{form.name} 1"


def _belongs(session: acp.AcpSession, session_key: str) -> bool:
    parent = session.spec.parent_session_key
    below = parent == session_key or parent.startswith(f"{session_key}:subagent:")
    return not session_key or session.spec.session_key == session_key or below


def _open(session: acp.AcpSession) -> acp.AcpSession:
    if live(session):
        return session
    raise Refused(f"{name_of(session)} has ended: `/acp status` says how")


def _origin(asked: Asked) -> Origin:
    return Origin.of(asked.conversation, said=message_text(asked.conversation.message))


def _message(text: str) -> content_pb2.Message:
    part = content_pb2.ContentPart(text=text)
    return content_pb2.Message(role=content_pb2.ROLE_USER, parts=[part])

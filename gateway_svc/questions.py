"""Questions that runs ask people: which are there, and the answers to them.

A question belongs to the conversation of the root of its spawn tree, whichever run of the tree asks
it. Who may see a run may see its questions.
"""

from __future__ import annotations

import hashlib

from conveyor.common.v1 import question_pb2
from conveyor.gateway.v1 import gateway_service_pb2 as gw
from conveyor.scheduler.v1 import scheduler_service_pb2 as ss
from gateway_svc.auth import Principal, Scope
from gateway_svc.domain.keys import parse_key
from gateway_svc.refusals import question_not_found
from gateway_svc.upstream import Upstream
from svckit.errors import invalid_field
from svckit.grpc.client import call

# Questions of one conversation that people can be shown at a time.
MOST_OPEN = 500
_ALL_STATES = (
    question_pb2.QUESTION_STATE_OPEN,
    question_pb2.QUESTION_STATE_ANSWERED,
    question_pb2.QUESTION_STATE_EXPIRED,
    question_pb2.QUESTION_STATE_CANCELLED,
)


class Questions:
    """Lists and answers questions. One per process."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    async def list_questions(
        self, request: gw.ListQuestionsRequest, principal: Principal
    ) -> gw.ListQuestionsResponse:
        """List questions, newest first; open ones unless `filter.states` says otherwise.

        `filter.session_key` of a conversation finds those of its whole trees.
        """
        principal.require(Scope.READ)
        wanted = ss.ListQuestionsRequest(
            filter=request.filter, page_size=request.page_size, page_token=request.page_token
        )
        if not principal.is_admin:
            if not principal.customer_key:
                return gw.ListQuestionsResponse()
            wanted.filter.customer_key = principal.customer_key
        if wanted.filter.session_key:
            key = parse_key(wanted.filter.session_key, "filter.session_key")
            if key.is_conversation:
                wanted.filter.root_session_key = key.text
                wanted.filter.ClearField("session_key")
        answer = await call(self._upstream.scheduler.ListQuestions(wanted), service="scheduler")
        return gw.ListQuestionsResponse(
            questions=answer.questions, next_page_token=answer.next_page_token
        )

    async def open_of(self, session_key: str, principal: Principal) -> list[question_pb2.Question]:
        """Return what waits for an answer in a conversation, oldest first.

        People call a question by its `number`, which stays the same while others are closed.
        """
        request = gw.ListQuestionsRequest(page_size=MOST_OPEN)
        request.filter.session_key = session_key
        found = await self.list_questions(request, principal)
        return list(reversed(found.questions))

    async def answer_question(
        self, request: gw.AnswerQuestionRequest, principal: Principal
    ) -> gw.AnswerQuestionResponse:
        """Answer a question in the caller's name. Answering it the same again changes nothing.

        Raises `QuestionNotFound` also for other customers' questions, `QuestionClosed`, and
        `InvalidField` for an option that was not offered.
        """
        principal.require(Scope.SEND)
        question = await self._find(request.question_id, principal)
        if question.customer_key != principal.customer_key:
            principal.require(Scope.CONTROL)
        offered = [option.option_id for option in question.options]
        if request.option_id not in offered:
            what = "was not offered" if request.option_id else "is required"
            raise invalid_field("option_id", f"{what}; offered are: {', '.join(offered)}")
        answer = question_pb2.Answer(
            question_id=question.question_id,
            option_id=request.option_id,
            responder=principal.name,
        )
        given = await call(
            self._upstream.scheduler.SteerRun(
                ss.SteerRunRequest(
                    run_id=question.run_id, answer=answer, request_id=_request_id(answer)
                )
            ),
            service="scheduler",
        )
        return gw.AnswerQuestionResponse(question=given.question)

    async def _find(self, question_id: str, principal: Principal) -> question_pb2.Question:
        if not question_id:
            raise invalid_field("question_id", "is required")
        if len(question_id) > 128 or not question_id.isprintable() or " " in question_id:
            raise question_not_found(question_id)
        wanted = ss.ListQuestionsRequest(page_size=1)
        wanted.filter.question_id = question_id
        wanted.filter.states.extend(_ALL_STATES)
        found = await call(self._upstream.scheduler.ListQuestions(wanted), service="scheduler")
        for question in found.questions:
            if principal.may_see(question.customer_key):
                return question
        raise question_not_found(question_id)


def _request_id(answer: question_pb2.Answer) -> str:
    """The same answer of the same person is the same request, however often it is given."""
    said = "\0".join((answer.question_id, answer.option_id, answer.responder))
    return f"answer-{hashlib.blake2b(said.encode(), digest_size=16).hexdigest()}"

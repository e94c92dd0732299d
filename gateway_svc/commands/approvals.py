"""`/approve` and `/deny`: answers to what tools ask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from conveyor.gateway.v1 import gateway_service_pb2 as gw
from gateway_svc.commands.asked import Answer, Asked, Handler, Refused, Services
from gateway_svc.domain.commands.approvals import answered_text, choose_option, choose_question
from gateway_svc.domain.commands.problem import Problem
from svckit.errors import QuestionClosed


class Approvals:
    """Handlers of the commands that answer questions."""

    def __init__(self, services: Services) -> None:
        self._do = services

    def handlers(self) -> Mapping[str, Handler]:
        """Return the handlers by the names of the grammar."""
        return {"approve": self.answer, "deny": self.answer}

    async def answer(self, asked: Asked) -> Answer:
        """Answer one open question of the conversation, of any run in its trees."""
        allow, always = asked.command.name == "approve", bool(asked.get("always"))
        questions = await self._do.questions.open_of(asked.session_key, asked.principal)

        async def meant() -> Sequence[str]:
            question = choose_question(asked.get("question"), questions, asked.command.name)
            if isinstance(question, Problem):
                raise Refused(question.text)
            option = choose_option(question, allow=allow, always=always)
            if isinstance(option, Problem):
                raise Refused(option.text)
            return question.question_id, option.option_id

        question_id, option_id = await asked.decide(meant)
        request = gw.AnswerQuestionRequest(question_id=question_id, option_id=option_id)
        try:
            answer = await self._do.questions.answer_question(request, asked.principal)
        except QuestionClosed:
            raise Refused(
                "that question is closed: somebody answered, or its time was over"
            ) from None
        left = len([q for q in questions if q.question_id != question_id])
        text = answered_text(answer.question, allow=allow, always=always, left=left)
        return Answer(text, answer)

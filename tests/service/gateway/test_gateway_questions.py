"""Questions at the gateway: shown and answered through every door, and only by those who may."""

from __future__ import annotations

import asyncio
from pathlib import Path
from urllib.parse import quote

import pytest

from conveyor.common.v1 import question_pb2
from conveyor.gateway.v1 import gateway_service_pb2 as gw
from gateway_svc.auth import Principal, Scope
from gateway_svc.domain.deliveries import DeliveryKind
from gateway_svc.questions import Questions
from gateway_svc.upstream import upstream_of
from svckit.errors import QuestionClosed, QuestionNotFound, ScopeMissing
from svckit.testing import eventually
from tests.service.gateway.suite import Suite, asking, delegating, suite
from tests.service.gateway.test_gateway_delivery import Caught, Phone, caught

__all__ = ["caught"]

SESSION = "agent:main:http:direct:ann"


async def the_question(gateway: Suite, **filters: str) -> question_pb2.Question:
    async def asked() -> question_pb2.Question | None:
        request = gw.ListQuestionsRequest()
        for name, value in filters.items():
            setattr(request.filter, name, value)
        found = (await gateway.stub.ListQuestions(request)).questions
        return found[0] if len(found) == 1 else None

    question = await eventually(asked)
    assert question is not None
    return question


async def test_a_childs_question_is_asked_and_answered_in_the_conversation(gateway: Suite) -> None:
    gateway.agent.on("both", delegating("careful"))
    gateway.agent.on("careful", asking("delete everything"))
    # Neither follows sub-agents: what they ask comes all the same.
    chat = gateway.chat(SESSION, "both")
    seen = []
    async for response in chat:
        if response.HasField("event"):
            seen.append(response.event.WhichOneof("payload"))
            if seen[-1] == "question_asked":
                question = response.event.question_asked.question
                break
    assert question.root_session_key == SESSION
    assert question.session_key.startswith(f"{SESSION}:subagent:")

    watch = gateway.stub.WatchSession(gw.WatchSessionRequest(session_key=SESSION))
    async for shown in watch:
        if shown.event.HasField("question_asked"):
            break
    assert shown.event.question_asked.question == question
    path = f"/v1/sessions/{SESSION}/events?payloads=question_asked"
    async with asyncio.timeout(30), gateway.http.stream("GET", path) as stream:
        async for line in stream.aiter_lines():
            if line.startswith("data:") and question.question_id in line:
                break

    # By its conversation, and by its own session.
    assert await the_question(gateway, session_key=SESSION) == question
    assert await the_question(gateway, session_key=question.session_key) == question
    listed = (await gateway.http.get("/v1/questions", params={"session_key": SESSION})).json()
    assert [one["question_id"] for one in listed["questions"]] == [question.question_id]
    other = (await gateway.http.get("/v1/questions", params={"session_key": "other"})).json()
    assert other.get("questions", []) == []

    # The slash of the id as it is, or encoded.
    where = f"/v1/questions/{question.question_id}"
    for body in ({"option_id": "may be"}, {}):
        refused = await gateway.http.post(where, json=body)
        assert refused.status_code == 400
        assert refused.json()["error"]["metadata"] == {"field": "option_id"}
        assert refused.json()["error"]["message"].endswith("offered are: yes, no")
    answered = await gateway.http.post(
        f"/v1/questions/{quote(question.question_id, safe='')}", json={"option_id": "yes"}
    )
    assert answered.status_code == 200
    found = answered.json()["question"]
    assert (found["state"], found["answer"]["responder"]) == ("QUESTION_STATE_ANSWERED", "local")
    again = await gateway.http.post(where, json={"option_id": "yes"})
    assert again.json() == answered.json()
    refused = await gateway.http.post(where, json={"option_id": "no"})
    assert (refused.status_code, refused.json()["error"]["reason"]) == (409, "QUESTION_CLOSED")
    missing = await gateway.http.post("/v1/questions/R/1.1.0", json={"option_id": "no"})
    assert (missing.status_code, missing.json()["error"]["reason"]) == (404, "QUESTION_NOT_FOUND")

    closed, answer = [], ""
    async for response in chat:
        if response.HasField("event") and response.event.HasField("question_closed"):
            closed.append(response.event.question_closed)
        if response.HasField("ended"):
            answer = response.ended.result.reply.parts[0].text
    assert [(one.title, one.option_name) for one in closed] == [("delete everything", "Allow once")]
    assert answer == "local said yes"
    watch.cancel()


async def test_who_may_see_and_answer(gateway: Suite) -> None:
    gateway.agent.on("a", asking("a's"))
    gateway.agent.on("b", asking("b's"))
    await gateway.send("agent:main:http:direct:ann", "a", customer_key="ann")
    await gateway.send("agent:main:http:direct:bob", "b", customer_key="bob")
    channel = gateway.scheduler.channel
    do = Questions(upstream_of(channel, channel, channel))

    def who(scope: Scope, customer: str) -> Principal:
        return Principal(name=f"{customer}'s phone", scope=scope, customer_key=customer)

    async def of(principal: Principal) -> list[str]:
        found = await do.list_questions(gw.ListQuestionsRequest(), principal)
        return sorted(question.title for question in found.questions)

    admin = who(Scope.ADMIN, "")

    async def both_asked() -> bool:
        return await of(admin) == ["a's", "b's"]

    await eventually(both_asked)
    assert await of(who(Scope.READ, "ann")) == ["a's"]
    assert await of(who(Scope.CONTROL, "bob")) == ["b's"]
    assert await of(who(Scope.CONTROL, "")) == []
    [mine] = await do.open_of("agent:main:http:direct:ann", who(Scope.SEND, "ann"))
    assert await do.open_of("agent:main:http:direct:bob", who(Scope.SEND, "ann")) == []
    request = gw.AnswerQuestionRequest(question_id=mine.question_id, option_id="no")
    with pytest.raises(ScopeMissing):
        await do.answer_question(request, who(Scope.READ, "ann"))
    for stranger in (who(Scope.CONTROL, "bob"), who(Scope.CONTROL, "")):
        with pytest.raises(QuestionNotFound):
            await do.answer_question(request, stranger)
    answered = await do.answer_question(request, who(Scope.SEND, "ann"))
    assert answered.question.answer.responder == "ann's phone"
    # Somebody else says the same; then somebody says otherwise.
    assert await do.answer_question(request, admin) == answered
    request.option_id = "yes"
    with pytest.raises(QuestionClosed):
        await do.answer_question(request, admin)


async def test_a_childs_question_is_pushed_to_where_its_root_came_from(
    tmp_path: Path, caught: Caught
) -> None:
    phone = Phone()
    async with suite(tmp_path, [phone]) as around, around.serve():
        around.agent.on("both", delegating("careful"))
        around.agent.on("careful", asking("delete everything"))
        await caught.hear("ann", "both")
        await eventually(lambda: phone.texts("ann"))
        [pushed] = phone.sent
        assert pushed.kind is DeliveryKind.QUESTION
        assert pushed.text.startswith("Question 1: delete everything\nAllow once · Deny\n")
        assert "/approve 1 or /deny 1" in pushed.text
        question = await the_question(around)
        await around.stub.AnswerQuestion(
            gw.AnswerQuestionRequest(question_id=question.question_id, option_id="no")
        )
        await eventually(lambda: phone.texts("ann")[-1] == "local said no")

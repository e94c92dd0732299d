"""Questions as messages of the contract: asked, answered and listed."""

from __future__ import annotations

from conveyor.common.v1 import question_pb2
from conveyor.events.v1 import event_pb2
from conveyor.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_svc.domain import asking
from scheduler_svc.domain.emits import Asked
from scheduler_svc.domain.kernel import Kernel
from scheduler_svc.domain.questions import (
    DEFAULT_TIMEOUT,
    LEAST_TIMEOUT,
    MOST_TIMEOUT,
    Option,
    Question,
    QuestionState,
)
from scheduler_svc.domain.records import SECOND
from scheduler_svc.engine import Engine
from scheduler_svc.rpc import convert, validate
from scheduler_svc.rpc.pages import position, token_after
from scheduler_svc.store.base import LaneStore, QuestionQuery
from svckit import tracecontext
from svckit.errors import QuestionNotFound, invalid_field

ID_LENGTH = 128
TITLE_LENGTH = 256
MOST_OPTIONS = 32
MOST_LOCATIONS = 32
# Arguments are cut to 8 KiB as text; as a message, every value and its type take some bytes more.
ARGUMENTS_BYTES = 64 * validate.KIB
TOOL_KINDS = ("read", "edit", "delete", "move", "search", "execute", "fetch", "other")


def asked(event: event_pb2.Event, where: str) -> Asked:
    """An event that asks a question, checked, without what only the scheduler fills in."""
    where = f"{where}.question_asked.question"
    given = event.question_asked.question
    validate.text(given.question_id, f"{where}.question_id", ID_LENGTH)
    if not 1 <= len(given.title) <= TITLE_LENGTH:
        raise invalid_field(f"{where}.title", f"must have 1 to {TITLE_LENGTH} characters")
    if given.tool_kind not in ("", *TOOL_KINDS):
        raise invalid_field(f"{where}.tool_kind", f"must be one of {', '.join(TOOL_KINDS)}")
    if len(given.acp_session_id) > 64:
        raise invalid_field(f"{where}.acp_session_id", "must be at most 64 characters")
    if len(given.locations) > MOST_LOCATIONS or any(len(path) > 4096 for path in given.locations):
        raise invalid_field(
            f"{where}.locations", f"must be at most {MOST_LOCATIONS} paths of 4096 characters"
        )
    validate.size(given.arguments, f"{where}.arguments", ARGUMENTS_BYTES)
    options = _options(given, f"{where}.options")
    timeout = DEFAULT_TIMEOUT
    if given.HasField("timeout"):
        timeout = validate.micros(
            given.timeout,
            f"{where}.timeout",
            least=LEAST_TIMEOUT // SECOND,
            most=MOST_TIMEOUT / SECOND,
        )
    question = Question(
        question_id=given.question_id,
        title=given.title,
        options=options,
        default=given.default_option_id,
        timeout=timeout,
    )
    if given.default_option_id and not question.offers(given.default_option_id):
        raise invalid_field(f"{where}.default_option_id", "must be one of the options, or empty")
    # What is output only is the scheduler's to say.
    stored = question_pb2.Question(
        question_id=given.question_id,
        acp_session_id=given.acp_session_id,
        title=given.title,
        tool_kind=given.tool_kind or "other",
        locations=given.locations,
        arguments=given.arguments if given.HasField("arguments") else None,
        options=given.options,
        default_option_id=given.default_option_id,
    )
    event.question_asked.question.CopyFrom(stored)
    return Asked(
        event_id=event.event_id,
        event=event.SerializeToString(),
        question=question,
        data=stored.SerializeToString(),
    )


def _options(given: question_pb2.Question, where: str) -> list[Option]:
    if not 1 <= len(given.options) <= MOST_OPTIONS:
        raise invalid_field(where, f"must hold 1 to {MOST_OPTIONS} options")
    options: list[Option] = []
    kinds = set(question_pb2.QuestionOptionKind.values())
    for index, option in enumerate(given.options):
        validate.text(option.option_id, f"{where}[{index}].option_id", 64)
        if not 1 <= len(option.name) <= 128:
            raise invalid_field(f"{where}[{index}].name", "must have 1 to 128 characters")
        if option.kind not in kinds or not option.kind:
            raise invalid_field(f"{where}[{index}].kind", "must say what choosing it means")
        if any(option.option_id == other.option_id for other in options):
            raise invalid_field(f"{where}[{index}].option_id", "must be unique in the question")
        options.append(Option(option.option_id, option.name))
    return options


async def answer(engine: Engine, request: pb.SteerRunRequest) -> question_pb2.Question:
    """Answers a question, and returns it as it is then. See `SteerRun` in the contract."""
    given = request.answer
    validate.text(request.run_id, "run_id", 64, required=False)
    validate.text(request.request_id, "request_id", 128)
    validate.text(given.question_id, "answer.question_id", ID_LENGTH)
    validate.text(given.option_id, "answer.option_id", 64)
    if len(given.responder) > 128:
        raise invalid_field("answer.responder", "must be at most 128 characters")
    said = validate.body_hash("answer", given.question_id, given.option_id)
    trace = request.trace if request.trace.traceparent else tracecontext.current()

    def apply(k: Kernel, now: int) -> None:
        asking.answer(
            k,
            given.question_id,
            given.option_id,
            run_id=request.run_id,
            responder=given.responder,
            request_id=request.request_id,
            body_hash=said,
            trace=trace.SerializeToString(),
            now=now,
        )

    await engine.submit(apply, requests=[request.request_id], questions=[given.question_id])
    query = QuestionQuery(question_id=given.question_id)
    found = await engine.store.list_questions(query, before=0, limit=1)
    if not found:  # retention took it just now
        raise QuestionNotFound(
            "the question is kept no longer", metadata={"questionId": given.question_id}
        )
    return convert.question(found[0])


async def list_page(store: LaneStore, request: pb.ListQuestionsRequest) -> pb.ListQuestionsResponse:
    """One page of questions. See `ListQuestions` in the contract."""
    size = validate.page_size(request.page_size, 50, 500)
    before = position(request.page_token, request.filter)
    found = await store.list_questions(_query(request.filter), before=before, limit=size + 1)
    page = found[:size]
    more = len(found) > size
    return pb.ListQuestionsResponse(
        questions=[convert.question(stored) for stored in page],
        next_page_token=token_after(page[-1].question.order, request.filter) if more else "",
    )


def _query(wanted: pb.QuestionFilter) -> QuestionQuery:
    known = {int(state) for state in QuestionState}
    return QuestionQuery(
        states=frozenset(QuestionState(state) for state in wanted.states if state in known)
        or frozenset({QuestionState.OPEN}),
        question_id=wanted.question_id,
        run_id=wanted.run_id,
        session_key=wanted.session_key,
        root_session_key=wanted.root_session_key,
        customer_key=wanted.customer_key,
    )

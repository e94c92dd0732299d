"""Verbs about questions of runs: list, answer."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from conveyor_client.cli.arguments import Json, Limit, Page
from conveyor_client.cli.context import CannotRun, connect, run
from conveyor_client.cli.manual import Verbs

questions_app = Verbs(help="What runs ask people: list, `answer`.")

Session = Annotated[str, typer.Option(help="Only of this conversation, what it spawned included.")]


class QuestionStateName(StrEnum):
    """States of a question."""

    OPEN = "open"
    ANSWERED = "answered"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


States = Annotated[
    list[QuestionStateName] | None,
    typer.Option("--state", help="Only this state. May be repeated. Default: open."),
]


@questions_app.callback(invoke_without_command=True)
def questions(context: typer.Context, session: Session = "", json: Json = False) -> None:
    """List the questions that wait for an answer; `list` has more options."""
    if not context.invoked_subcommand:
        _list(context, session, "", None, 50, "", json=json)


@questions_app.command("list")
def questions_list(
    context: typer.Context,
    session: Session = "",
    customer: Annotated[str, typer.Option(help="Only of this customer.")] = "",
    state: States = None,
    limit: Limit = 50,
    page: Page = "",
    json: Json = False,
) -> None:
    """List questions, newest first: open ones, unless --state says otherwise."""
    _list(context, session, customer, state, limit, page, json=json)


def _list(
    context: typer.Context,
    session: str,
    customer: str,
    state: list[QuestionStateName] | None,
    limit: int,
    page: str,
    *,
    json: bool,
) -> None:
    async def work() -> None:
        from conveyor.common.v1 import question_pb2
        from conveyor.scheduler.v1 import scheduler_service_pb2
        from conveyor_client.cli import asking
        from conveyor_client.cli import output as out

        wanted = scheduler_service_pb2.QuestionFilter(
            session_key=session,
            customer_key=customer,
            states=[
                question_pb2.QuestionState.Value(f"QUESTION_STATE_{one.name}")
                for one in state or ()
            ],
        )
        async with connect(context) as client:
            found = await client.questions(wanted, page_size=limit, page_token=page)
            out.print_page(
                found,
                ("QUESTION", "NO", "STATE", "ASKED FOR", "OPTIONS", "SESSION", "UNTIL"),
                (
                    (
                        out.plain(q.question_id),
                        str(q.number),
                        asking.state_word(q.state),
                        out.plain(q.title),
                        out.plain(
                            asking.option_name(q, q.answer.option_id)
                            if q.HasField("answer")
                            else asking.options_line(q)
                        ),
                        out.plain(q.root_session_key),
                        out.when(q.expire_time),
                    )
                    for q in found.questions
                ),
                "No questions.",
                json=json,
                whole="QUESTION",
                give_way=("UNTIL", "SESSION", "NO"),
            )

    run(work())


@questions_app.command("answer")
def questions_answer(
    context: typer.Context,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="Its id, or its number.")],
    option: Annotated[str, typer.Argument(metavar="OPTION", help="Id or name of an option.")],
    session: Session = "",
    json: Json = False,
) -> None:
    """Answer a question. Answering it the same again changes nothing."""

    async def work() -> None:
        from conveyor.scheduler.v1 import scheduler_service_pb2
        from conveyor_client.cli import asking
        from conveyor_client.cli import output as out

        async with connect(context) as client:
            wanted = scheduler_service_pb2.QuestionFilter(session_key=session)
            question_id, option_id = question, option
            known = (await client.questions(wanted, page_size=500)).questions
            chosen = asking.choose_question(known, question)
            if not isinstance(chosen, str):
                question_id, option_id = chosen.question_id, asking.choose_option(chosen, option)
            elif "/" not in question:  # an id that is not open (any more) is the server's to judge
                raise CannotRun(chosen)
            answer = await client.answer(question_id, option_id)
            if json:
                out.print_json(answer)
                return
            given = answer.question
            print(
                f"question {given.number} ({out.printable(given.title)}) "
                f"answered: {out.printable(asking.option_name(given, given.answer.option_id))}"
            )

    run(work())
